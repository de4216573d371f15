"""What the training commands are told: name, type, default, limits and help of each option, once.

Imports no library, so that `glm --help` is quick.
"""

from dataclasses import dataclass, field, fields
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from .recipe import RECIPES, SHORTEST_TEXT, Mode, Recipe

LARGEST_SEED = 2**32 - 1  # that numpy takes

RECIPE_HELP = f"A JSON file with fields of Recipe, or one of {', '.join(RECIPES)}."


def about(
    help: str,
    least: float | None = None,
    most: float | None = None,
    argument: bool = False,
) -> dict[str, Any]:
    """What a command needs to know of a field besides its name, type and default.

    argument: it is given without its name, though it has a default.
    """
    return {"help": help, "least": least, "most": most, "argument": argument}


@dataclass
class Options:
    """Fields with `about` as their metadata, whose values are checked one by one.

    Raises:
        ValueError: one sentence that names the field, its value, and what it may be.
    """

    @classmethod
    def types(cls) -> dict[str, Any]:
        """Type of each field on a command line: the first of those that Python code may give."""
        return {
            name: get_args(kind)[0] if get_origin(kind) in (Union, UnionType) else kind
            for name, kind in get_type_hints(cls).items()
        }

    def __post_init__(self) -> None:
        types = self.types()
        for entry in fields(self):
            value = getattr(self, entry.name)
            if value is None:
                continue
            if get_origin(types[entry.name]) is Literal:
                check_choice(entry.name, value, get_args(types[entry.name]))
            check_limits(entry.name, value, entry.metadata["least"], entry.metadata["most"])


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        *others, last = choices
        listed = f"{', '.join(others)} or {last}" if others else last
        raise ValueError(f"{name} is {value}; choose {listed}.")


def check_limits(name: str, value: Any, least: float | None, most: float | None) -> None:
    above = least is None or value >= least
    below = most is None or value <= most
    if above and below:
        return
    allowed = f"at least {least}" if most is None else f"a value between {least} and {most}"
    raise ValueError(f"{name} is {value}; give {allowed}.")


@dataclass
class Pretraining(Options):
    """What `glm pretrain` is told. The defaults of the optimiser are the original's for glm-10b.

    data, validation: as `load_documents` takes them; without validation no loss is evaluated.
    output: the Hub repository to write, which is there when the run has ended; its checkpoints and
        its log are in the folder beside it whose name ends with `-checkpoints`.
    model: a converted repository to continue from; or else
    config, tokenizer: a JSON file with fields of `GLMConfig`, and a folder with a tokenizer, to
        train from scratch. The vocabulary's size and the special ids come from the tokenizer where
        the file does not give them.
    recipe: name of a released recipe, a JSON file with fields of `Recipe`, or a `Recipe`.
    length: tokens of a text at most; the model's longest position by default.
    batch_size, accumulation: texts for each process and forward pass; passes for each step.
    warmup: share of the steps; decay_steps: where the decay ends, by default with the last step.
    resume: continue from the last checkpoint, with the same options.
    """

    data: str = field(
        metadata=about(
            "Text (a document on each line), JSON lines or parquet file, folder, or Hub dataset."
        )
    )
    output: str = field(metadata=about("The Hub repository to write."))
    model: str | None = field(
        default=None, metadata=about("A converted repository to continue from.")
    )
    config: str | None = field(
        default=None, metadata=about("JSON file with fields of GLMConfig, to train from scratch.")
    )
    tokenizer: str | None = field(
        default=None, metadata=about("Folder with the tokenizer, to train from scratch.")
    )
    recipe: str | Recipe = field(default="glm-base", metadata=about(RECIPE_HELP))
    validation: str | None = field(
        default=None, metadata=about("Documents on which the loss of each mode is evaluated.")
    )
    streaming: bool = field(default=False, metadata=about("Read the data while training."))
    one_document: bool = field(default=False, metadata=about("One document in each text."))
    length: int | None = field(
        default=None, metadata=about("Longest text in tokens.", least=SHORTEST_TEXT)
    )
    steps: int = field(default=1000, metadata=about("Steps of the optimiser.", least=1))
    batch_size: int = field(
        default=16, metadata=about("Texts for each process and forward pass.", least=1)
    )
    accumulation: int = field(default=1, metadata=about("Forward passes for each step.", least=1))
    learning_rate: float = field(default=1e-4, metadata=about("Highest learning rate.", least=0))
    warmup: float = field(
        default=0.06,
        metadata=about("Share of the steps until the highest learning rate.", least=0, most=1),
    )
    decay: Literal["linear", "cosine"] = field(
        default="cosine", metadata=about("Form of the decay.")
    )
    decay_ratio: float = field(
        default=0.1,
        metadata=about("Lowest learning rate, as a share of the highest.", least=0, most=1),
    )
    decay_steps: int | None = field(
        default=None,
        metadata=about("Step at which the decay ends; the last one by default.", least=1),
    )
    weight_decay: float = field(
        default=0.1, metadata=about("Of everything but biases and layer norms.", least=0)
    )
    max_grad_norm: float = field(default=1.0, metadata=about("Longest gradient.", least=0))
    precision: Literal["fp32", "bf16", "fp16"] = field(
        default="fp32", metadata=about("Type of the arithmetic.")
    )
    gradient_checkpointing: bool = field(default=False, metadata=about("Less memory, more time."))
    evaluate_every: int = field(default=500, metadata=about("Steps between evaluations.", least=1))
    save_every: int = field(default=500, metadata=about("Steps between checkpoints.", least=1))
    log_every: int = field(default=50, metadata=about("Steps between log entries.", least=1))
    workers: int = field(default=0, metadata=about("Processes that prepare batches.", least=0))
    seed: int = field(
        default=0, metadata=about("Of weights, order and masks.", least=0, most=LARGEST_SEED)
    )
    resume: bool = field(
        default=False, metadata=about("Continue the run in OUTPUT, with the same options.")
    )


@dataclass
class Finetuning(Options):
    """What `glm finetune` is told. None: as the published recipe of the task has it.

    task: a name in the table of tasks, or a file with a task (see `read_task`).
    data, validation: as `read_examples` takes them; without validation nothing is evaluated, and
        the last weights are kept.
    output: the Hub repository to write, or the folder of the adapter, which is there when the run
        has ended; its checkpoints and its log are in the folder beside it whose name ends with
        `-checkpoints`.
    model: the converted repository to begin with.
    lora: train small matrices beside the network's, and write them alone.
    pattern: number of the pattern in which examples are written.
    text_column, target_column: those of the data, where the task names others.
    pooled: classify by the state of one token instead of filling a blank.
    epochs, steps: how long; steps win.
    learning_rate: the highest; of an adapter ten times the published one by default, which is of
        the whole network.
    batch_size, accumulation: examples for each process and forward pass; passes for each step.
    warmup: share of the steps until the highest learning rate, which then falls in a line to a
        tenth.
    label_smoothing: share of the loss that all words of the vocabulary get alike.
    max_length, max_target_length: tokens of a context, and of an answer with its end. Where neither
        the task nor the user limits answers, twice the longest one of the data is written at most.
    attend_padding: pad contexts on the right to max_length with tokens that are seen, as the
        original does; by default nobody sees padding.
    generation: the task whose published beam search answers the validation examples, or "greedy".
    metric: the best checkpoint by this metric of the validation data is kept; the task's first one
        by default.
    patience: stop after so many evaluations without a better metric.
    evaluate_every, save_every: steps; once an epoch by default.
    resume: continue from the last checkpoint, with the same options.
    space: write `app.py`, too, the page that the Hub shows where the repository is a Space.
    """

    task: str = field(metadata=about("Name of a task, or file with one of your own."))
    data: str = field(
        metadata=about("JSON lines, CSV, parquet or .source file, folder, or Hub dataset.")
    )
    output: str = field(metadata=about("The Hub repository, or adapter, to write."))
    model: str | None = field(
        default=None, metadata=about("The converted repository to begin with; must be given.")
    )
    lora: bool = field(
        default=False,
        metadata=about("Train and write an adapter, small matrices beside the model."),
    )
    lora_rank: int | None = field(
        default=None, metadata=about("Rank of these matrices; suits the model by default.", least=1)
    )
    pattern: int | None = field(
        default=None, metadata=about("Number of the pattern that examples get.", least=0)
    )
    text_column: str | None = field(default=None, metadata=about("Column of the data with texts."))
    target_column: str | None = field(
        default=None, metadata=about("Column of the data with answers.")
    )
    pooled: bool = field(
        default=False, metadata=about("Train a pooled classifier, which fills no blank.")
    )
    validation: str | None = field(
        default=None, metadata=about("Examples to evaluate on, to keep the best checkpoint.")
    )
    epochs: float | None = field(default=None, metadata=about("Passes over the data.", least=0))
    steps: int | None = field(
        default=None, metadata=about("Steps of the optimiser, instead of epochs.", least=1)
    )
    batch_size: int | None = field(
        default=None, metadata=about("Examples for each process and forward pass.", least=1)
    )
    accumulation: int = field(default=1, metadata=about("Forward passes for each step.", least=1))
    learning_rate: float | None = field(
        default=None, metadata=about("Highest learning rate.", least=0)
    )
    warmup: float | None = field(
        default=None,
        metadata=about("Share of the steps until the highest learning rate.", least=0, most=1),
    )
    weight_decay: float | None = field(
        default=None, metadata=about("Of everything but biases and layer norms.", least=0)
    )
    max_grad_norm: float = field(default=1.0, metadata=about("Longest gradient.", least=0))
    label_smoothing: float | None = field(
        default=None,
        metadata=about("Share of the loss that all words get alike.", least=0, most=1),
    )
    precision: Literal["fp32", "bf16"] = field(
        default="fp32", metadata=about("Type of the arithmetic; the weights are float32.")
    )
    max_length: int | None = field(
        default=None, metadata=about("Longest context in tokens.", least=SHORTEST_TEXT)
    )
    max_target_length: int | None = field(
        default=None, metadata=about("Longest answer in tokens, with its end.", least=1)
    )
    attend_padding: bool = field(
        default=False, metadata=about("Let padded contexts see their padding, as the original.")
    )
    generation: str | None = field(
        default=None,
        metadata=about("Task whose published beam search is used in evaluation, or greedy."),
    )
    metric: str | None = field(
        default=None, metadata=about("Metric by which the best checkpoint is kept.")
    )
    patience: int | None = field(
        default=None, metadata=about("Evaluations without a better metric until it stops.", least=1)
    )
    gradient_checkpointing: bool = field(default=False, metadata=about("Less memory, more time."))
    evaluate_every: int | None = field(
        default=None, metadata=about("Steps between evaluations; an epoch by default.", least=1)
    )
    save_every: int | None = field(
        default=None, metadata=about("Steps between checkpoints; an epoch by default.", least=1)
    )
    log_every: int = field(default=50, metadata=about("Steps between log entries.", least=1))
    workers: int = field(default=0, metadata=about("Processes that prepare batches.", least=0))
    seed: int = field(
        default=0, metadata=about("Of new weights, order and dropout.", least=0, most=LARGEST_SEED)
    )
    resume: bool = field(
        default=False, metadata=about("Continue the run in OUTPUT, with the same options.")
    )
    space: bool = field(
        default=False, metadata=about("Add the page that the Hub shows for a Space.")
    )


@dataclass
class Preview(Options):
    """What `glm preview` is told.

    repository: a folder with a tokenizer.
    text, data: the text to make an example of, or documents as `load_documents` takes them, of
        which a sample is packed.
    task: name of a fine-tuning task, or a file with one; `data` are examples then, of which the
        first is shown, and without data the names of its fields.
    mode: what is masked; drawn with the recipe's probabilities by default.
    recipe: name of a released recipe, a JSON file with fields of `Recipe`, or a `Recipe`.
    length: tokens of the text at most.
    png: file for a picture of who sees whom.
    """

    repository: str = field(
        metadata=about("A converted repository, or another folder with its tokenizer.")
    )
    text: str | None = field(
        default=None, metadata=about("The text to make an example of; or else")
    )
    data: str | None = field(
        default=None,
        metadata=about("documents, as `glm pretrain` takes them, to pack a sample of."),
    )
    task: str | None = field(
        default=None, metadata=about("A fine-tuning task, of whose examples (--data) one is shown.")
    )
    mode: Mode | None = field(
        default=None,
        metadata=about("What is masked; drawn with the recipe's probabilities by default."),
    )
    recipe: str | Recipe = field(default="glm-base", metadata=about(RECIPE_HELP))
    seed: int = field(default=0, metadata=about("Another seed, another example.", least=0))
    length: int = field(default=64, metadata=about("Longest text in tokens.", least=SHORTEST_TEXT))
    png: str | None = field(default=None, metadata=about("Picture to write."))
