"""Fine-tuning on a task, from examples to a Hub repository or an adapter."""

import math
import warnings
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import (
    EarlyStoppingCallback,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from ..configuration_glm import GLMConfig
from ..hub_repository.config import read_config
from ..tokenization_glm import GLMTokenizerFast
from .cloze import Choices, Pooled
from .examples import read_placed_examples
from .options import Finetuning
from .own_tasks import read_task
from .processes import this_process
from .repository import find_repository, load_tokenizer
from .run import Run, common_arguments
from .seq2seq import Answers, beam_search
from .tasks import Task, is_labelled
from .templates import PLACE, Example
from .tuned import write_tuned

LOWEST_RATE = 0.1  # of the highest, where the original's decay ends
# Times the published rate, which is of the whole network: an adapter begins at nothing, and at that
# rate it hardly learns (docs/finetuning.md has numbers).
RATE_OF_LORA = 10
# Options that may be others when a run is continued. Fewer than in pretraining: the weights that
# are kept are those of the best evaluation.
CHANGEABLE = {"output", "resume", "log_every", "workers"}

Recipe = Answers | Choices
Rows = list[dict[str, Any]]


def finetune(options: Finetuning) -> Path:
    """Train on a task and write what was learnt.

    Returns:
        The repository, or the folder of the adapter.

    Raises:
        ValueError: one sentence on what is wrong with the options or the data; nothing is trained
            then.
    """
    run = Run.of(options.output)
    run.check(options.resume)
    task = read_task(options.task)
    options = with_published(options, task)
    check_options(options, task)
    repository = find_repository(str(options.model))
    tokenizer = load_tokenizer(repository)
    options = with_limits(options, task, read_config(repository))
    recipe = make_recipe(task, options, tokenizer)

    learnt = read(recipe, options.data, "train")
    examples = read(recipe, options.validation, "validation") if options.validation else []
    rows, validation = encode_each(recipe, learnt), encode_each(recipe, examples)
    check_data(recipe, learnt, examples, rows, validation)
    options = with_steps(with_fitting_batch(options, len(rows)), len(rows))
    begun = {**asdict(options), "processes": this_process().num_processes}
    run.check_same(begun, CHANGEABLE)

    trainer = recipe.trainer(
        examples,
        # Before the model: an engine that spreads it over processes has it loaded so.
        args=training_arguments(recipe, options, run),
        model=load_model(recipe, options, repository),
        train_dataset=rows,
        eval_dataset=without_missing_labels(validation) or None,
        callbacks=callbacks(options, len(rows)),
        decay="linear",
        decay_ratio=LOWEST_RATE,
        decay_steps=options.steps,
        first_step=run.first_step,
    )
    if trainer.is_world_process_zero():
        run.record(begun)
    trainer.train(resume_from_checkpoint=run.last)
    weights = trainer.gather_weights()
    if trainer.is_world_process_zero():
        write_tuned(run.output, options, recipe, trainer, weights, learnt[0])
    trainer.accelerator.wait_for_everyone()
    return run.output


# --- Options --------------------------------------------------------------------------------------


def with_published(options: Finetuning, task: Task) -> Finetuning:
    """With the values of the task wherever none was given."""
    settings = task.settings
    published: dict[str, Any] = {
        "epochs": settings.epochs,
        "batch_size": settings.batch_size,
        "learning_rate": settings.learning_rate * (RATE_OF_LORA if options.lora else 1),
        "warmup": settings.warmup,
        "weight_decay": settings.weight_decay,
        "label_smoothing": settings.label_smoothing,
        "pattern": task.pattern,
        "max_length": task.max_length,
        "max_target_length": task.max_target_length,
        "metric": task.metrics[0] if task.metrics else "loss",
    }
    missing: dict[str, Any] = {
        name: value for name, value in published.items() if getattr(options, name) is None
    }
    return replace(options, **missing)


def check_options(options: Finetuning, task: Task) -> None:
    """Raise a ValueError for options that do not go together."""
    if options.model is None:
        raise ValueError("There is no model to begin with; pass --model and a repository.")
    if options.epochs == 0 and options.steps is None:
        raise ValueError("epochs is 0, which trains nothing; give more.")
    if options.metric not in (*task.metrics, "loss"):
        known = ", ".join((*task.metrics, "loss"))
        raise ValueError(
            f"The task {task.name} has no metric {options.metric}; choose from {known}."
        )
    if options.lora_rank is not None and not options.lora:
        raise ValueError("--lora-rank is of an adapter; pass --lora too.")
    if options.space and (options.lora or options.pooled):
        raise ValueError(
            "A page is for a model that fills blanks, and no adapter; leave --space out."
        )
    check_validation(options)
    check_kind(options, task)


def check_validation(options: Finetuning) -> None:
    """Raise a ValueError for options that need validation data, or do not go with them."""
    for name in ("patience", "evaluate_every"):
        if options.validation is None and getattr(options, name) is not None:
            flag = name.replace("_", "-")
            raise ValueError(f"--{flag} needs data to evaluate on; pass --validation.")
    if options.validation is not None and options.save_every is not None:
        raise ValueError(
            "With --validation a checkpoint is saved at each evaluation; pass --evaluate-every "
            "instead of --save-every."
        )


def check_kind(options: Finetuning, task: Task) -> None:
    """Raise a ValueError for options of answers with a task of choices, and the other way round."""
    if task.kind == "choices":
        for name in ("attend_padding", "generation"):
            if getattr(options, name):
                raise ValueError(
                    f"{name} is for tasks whose answers are written, and {task.name} is none; "
                    "leave it out."
                )
    elif options.pooled:
        raise ValueError(f"The answers of {task.name} are written; leave --pooled out.")
    else:
        beam_search(task, options.generation)


def with_limits(options: Finetuning, task: Task, config: GLMConfig) -> Finetuning:
    """With the longest context that the model has positions for, where nobody chose another."""
    longest = config.max_sequence_length
    limits: dict[str, Any] = {"max_length": options.max_length or longest}
    for name in ("max_length", "max_target_length"):
        limit = limits.get(name, getattr(options, name))
        if limit is not None and limit > longest:
            flag = name.replace("_", "-")
            raise ValueError(
                f"{name} is {limit} and the model's longest position {longest}; pass --{flag} "
                f"{longest} or less."
            )
    return replace(options, **limits)


def with_fitting_batch(options: Finetuning, size: int) -> Finetuning:
    """With a step of no more examples than there are: it would take each several times.

    Args:
        size: how many examples are learnt.
    """
    samples = samples_of_a_step(options)
    if samples <= size:
        return options
    assert options.batch_size is not None  # see with_published
    batch_size = max(1, size * options.batch_size // samples)
    warnings.warn(
        f"There are {size} examples, and a step takes {samples}; the batch size is {batch_size}.",
        stacklevel=3,
    )
    return replace(options, batch_size=batch_size)


def with_steps(options: Finetuning, size: int) -> Finetuning:
    """With epochs as steps.

    Args:
        size: how many examples are learnt.
    """
    assert options.epochs is not None  # see with_published
    samples = samples_of_a_step(options)
    epoch = math.ceil(size / samples)
    steps = options.steps or max(1, math.ceil(options.epochs * size / samples))
    every = min(steps, options.evaluate_every or epoch)
    return replace(
        options,
        steps=steps,
        evaluate_every=every,
        save_every=every if options.validation else min(steps, options.save_every or epoch),
    )


def samples_of_a_step(options: Finetuning) -> int:
    assert options.batch_size is not None  # see with_published
    return options.batch_size * options.accumulation * this_process().num_processes


# --- Data -----------------------------------------------------------------------------------------


def make_recipe(task: Task, options: Finetuning, tokenizer: GLMTokenizerFast) -> Recipe:
    if task.kind == "answers":
        return Answers(task, options, tokenizer)
    if options.pooled:
        return Pooled(task, options, tokenizer)
    return Choices(task, options, tokenizer)


def read(recipe: Recipe, source: str, split: Literal["train", "validation"]) -> list[Example]:
    """The examples of a split; of long documents the parts."""
    task, options = recipe.task, recipe.options
    examples = read_placed_examples(
        task,
        source,
        split,
        options.text_column,
        options.target_column,
        to_learn=split == "train",
    )
    if task.slices is None:
        return examples
    assert options.max_length is not None  # see with_limits
    return task.slices(examples, recipe.tokenizer, options.max_length)


def encode_each(recipe: Recipe, examples: Sequence[Example]) -> Rows:
    """The rows of the examples; what is wrong with one is told with its place in the data."""
    rows = []
    for example in tqdm(examples, desc="Encoding"):
        try:
            row = recipe.encode(example)
        except KeyError as error:
            raise ValueError(f"{example[PLACE]} has no column {error}.") from error
        except ValueError as error:
            raise ValueError(f"{example[PLACE]}: {error}") from error
        rows.append({name: compact(value) for name, value in row.items()})
    return rows


def check_data(
    recipe: Recipe,
    learnt: Sequence[Example],
    examples: Sequence[Example],
    rows: Rows,
    validation: Rows,
) -> None:
    """Raise a ValueError for data from which nothing can be learnt, or that cannot be measured.

    Args:
        learnt, rows: examples of training, and what was made of each.
        examples, validation: those of validation.
    """
    if isinstance(recipe, Answers):
        recipe.limit_answers([*rows, *validation])
        warn_of_empty_answers(recipe, learnt, rows)
    else:
        check_labelled(recipe.task, [*learnt, *examples])
    if examples:
        recipe.check(examples)


def check_labelled(task: Task, examples: Sequence[Example]) -> None:
    """Raise a ValueError for the first example of which nobody says what is right."""
    for example in examples:
        if task.references not in example and not is_labelled(task, example):
            raise ValueError(
                f"{example[PLACE]} has no right choice in the column {task.label}; give it one, or "
                "leave the example out."
            )


def warn_of_empty_answers(recipe: Answers, examples: Sequence[Example], rows: Rows) -> None:
    """Warn of answers without a word: they may be meant, or cells of a table that nobody filled."""
    pairs = zip(examples, rows, strict=True)
    empty = [example[PLACE] for example, row in pairs if recipe.says_nothing(row)]
    if empty:
        warnings.warn(
            f"{len(empty)} of {len(examples)} examples have an empty answer, the first of them "
            f"{empty[0]}; the model learns to say nothing there.",
            stacklevel=2,
        )


def compact(value: Any) -> Any:
    """Lists of ids as arrays, which take a tenth of the memory."""
    if not isinstance(value, list):
        return value
    if value and isinstance(value[0], list):
        return [compact(entry) for entry in value]
    return np.asarray(value, dtype=np.int32)


def without_missing_labels(rows: Rows) -> Rows:
    """Without a column of labels if some are missing: a collator takes all or none."""
    if all(row.get("label", 0) is not None for row in rows):
        return rows
    return [{name: row[name] for name in row if name != "label"} for row in rows]


# --- Training -------------------------------------------------------------------------------------


def load_model(recipe: Recipe, options: Finetuning, repository: Path) -> torch.nn.Module:
    """The network, in float32 whatever the repository holds; with an adapter if there is one."""
    set_seed(options.seed)
    model = recipe.load(repository)
    if options.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if not options.lora:
        return model
    from .adapters import add_lora

    return add_lora(model, options.lora_rank)


def training_arguments(recipe: Recipe, options: Finetuning, run: Run) -> TrainingArguments:
    assert options.steps is not None  # see with_steps
    keeps_best: dict[str, Any] = {}
    if options.validation is not None:
        keeps_best = {
            "load_best_model_at_end": True,
            "metric_for_best_model": f"eval_{options.metric}",
            "greater_is_better": options.metric != "loss",
            # Or the patience of a run that is continued would begin anew.
            "restore_callback_states_from_checkpoint": True,
        }
    return recipe.arguments_class(
        **common_arguments(options, run, options.steps),
        **keeps_best,
        label_names=["labels"],
        logging_nan_inf_filter=False,  # see Divergence
        # Nothing but the choices of a task is predicted; logits would fill the memory.
        prediction_loss_only=not recipe.task.metrics,
    )


class Progress(TrainerCallback):
    """Tells epochs, which the endless order of the data hides, and evaluates the last weights."""

    def __init__(self, size: int, samples_of_a_step: int):
        self.size = size
        self.samples_of_a_step = samples_of_a_step

    def on_step_end(self, args, state, control, **kwargs):
        state.epoch = state.global_step * self.samples_of_a_step / self.size
        if state.global_step >= state.max_steps and args.eval_strategy != "no":
            control.should_evaluate = True
        return control


class Divergence(TrainerCallback):
    """Ends a run whose loss is no number any more; nothing is written then."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        for name, value in (logs or {}).items():
            if name.endswith("loss") and not math.isfinite(float(value)):
                raise ValueError(
                    f"The training diverged: at step {state.global_step} the {name} is {value}; "
                    "begin a new run with a lower --learning-rate."
                )


def callbacks(options: Finetuning, size: int) -> list[TrainerCallback]:
    used: list[TrainerCallback] = [Progress(size, samples_of_a_step(options)), Divergence()]
    if options.patience is not None:
        used.append(EarlyStoppingCallback(options.patience))
    return used
