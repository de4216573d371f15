"""What the training commands are told: name, type, default, limits and help of each option, once.

Imports no library, so that `glm --help` is quick.
"""

from dataclasses import dataclass, field, fields
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from .recipe import RECIPES, SHORTEST_TEXT, Mode, Recipe

LARGEST_SEED = 2**32 - 1  # that numpy takes

RECIPE_HELP = f"A JSON file with fields of Recipe, or one of {', '.join(RECIPES)}."


def about(help: str, least: float | None = None, most: float | None = None) -> dict[str, Any]:
    """What a command needs to know of a field besides its name, type and default."""
    return {"help": help, "least": least, "most": most}


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
        raise ValueError(f"{name} is {value}; choose {', '.join(others)} or {last}.")


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
class Preview(Options):
    """What `glm preview` is told.

    repository: a folder with a tokenizer.
    text, data: the text to make an example of, or documents as `load_documents` takes them, of
        which a sample is packed.
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
    mode: Mode | None = field(
        default=None,
        metadata=about("What is masked; drawn with the recipe's probabilities by default."),
    )
    recipe: str | Recipe = field(default="glm-base", metadata=about(RECIPE_HELP))
    seed: int = field(default=0, metadata=about("Another seed, another example.", least=0))
    length: int = field(default=64, metadata=about("Longest text in tokens.", least=SHORTEST_TEXT))
    png: str | None = field(default=None, metadata=about("Picture to write."))
