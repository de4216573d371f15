"""What a fine-tuning run leaves: a repository or an adapter, and a card: how the model is asked."""

from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig

from ..hub_repository.model_card import (
    HUB_TASK,
    HUB_TASK_OF_CLASSIFIERS,
    Tuning,
    tuning_card,
)
from ..hub_repository.output import new_folder
from .asking import code_to_paste
from .cloze import Choices
from .metrics import METRICS
from .options import Finetuning
from .repository import write_network
from .run import RepeatableTrainer
from .seq2seq import Answers
from .templates import Example

# Options that a reader of the card wants to know.
SHOWN = (
    "pattern",
    "pooled",
    "steps",
    "batch_size",
    "accumulation",
    "learning_rate",
    "warmup",
    "weight_decay",
    "label_smoothing",
    "precision",
    "max_length",
    "max_target_length",
    "attend_padding",
    "lora",
    "seed",
)


def write_tuned(
    output: Path,
    options: Finetuning,
    recipe: Answers | Choices,
    trainer: RepeatableTrainer,
    weights: dict[str, torch.Tensor],
    example: Example,
) -> None:
    """The complete repository, or the folder with the adapter.

    Args:
        weights: of the whole model, see `gather_weights`.
        example: of the data that were learnt.
    """
    model: Any = trainer.accelerator.unwrap_model(trainer.model)
    base = public_name(str(options.model))
    tuning = Tuning(
        base_model=base,
        task=recipe.task.name,
        data=public_name(options.data),
        hub_task=HUB_TASK_OF_CLASSIFIERS if options.pooled else HUB_TASK,
        options={name: value for name in SHOWN if (value := getattr(options, name)) is not None},
        results=results(trainer, options),
        validation=public_name(options.validation) if options.validation else None,
        use=code_to_paste(output.name, base, recipe, example),
    )
    if options.lora:
        card = tuning_card(output.name, tuning)
        write_adapter(output, model, weights, str(options.model), card, recipe.generation)
        return
    write_network(
        output,
        model,
        weights,
        recipe.architecture,
        recipe.tokenizer,
        generation=recipe.generation,
        tuning=tuning,
        space=options.space,
    )


def write_adapter(
    output: Path,
    model: Any,
    weights: dict[str, torch.Tensor],
    base: str,
    card: str,
    generation: dict[str, Any] | None,
) -> None:
    """
    Args:
        base: where the model of the adapter is.
        generation: how answers were written in evaluation, which is kept beside the adapter.
    """
    from .adapters import save_adapter

    nbytes = sum(weight.nbytes for weight in model.parameters() if weight.requires_grad)
    with new_folder(output, nbytes) as folder:
        save_adapter(model, folder, base, weights)
        if generation is not None:
            settings = {**model.generation_config.to_diff_dict(), **generation}
            GenerationConfig.from_dict(settings).save_pretrained(folder)
        (folder / "README.md").write_text(card, encoding="utf-8")


def public_name(name: str) -> str:
    """A name on the Hub, or that of a file or folder without the way there."""
    return Path(name).resolve().name if Path(name).exists() else name


def results(trainer: RepeatableTrainer, options: Finetuning) -> dict[str, float]:
    """The metrics of the weights that are kept."""
    name = f"eval_{options.metric}"
    evaluations = [entry for entry in trainer.state.log_history if name in entry]
    if not evaluations:
        return {}
    choose = min if options.metric == "loss" else max
    best = choose(evaluations, key=lambda entry: entry[name])  # the first of the best
    return {name: best[f"eval_{name}"] for name in METRICS if f"eval_{name}" in best}
