"""What the commands of this folder are told; imports no library, so that `--help` is quick."""

from dataclasses import dataclass, field

from ..evaluation.options import DEVICE, DTYPE, QUANTIZE, DType, Quantized
from ..training.options import LARGEST_SEED, Options, about

# What filling hands on to the pipeline as it is.
OF_THE_PIPELINE = ("max_new_tokens", "min_piece_length", "max_piece_length", "bad_words")


@dataclass
class Filling(Options):
    """What `glm fill` is told.

    repository: a converted repository, a folder or a name on the Hub.
    texts: with blanks; else a text on each line of standard input, or asked for in a terminal.
    all: so many alternatives for each blank; `alternatives` of the pipeline.
    sample, seed: draw the words, and which draw.
    json: a JSON object a line, with `text`, `blanks` and `filled_text`.
    max_new_tokens: of all blanks of a text; as generation_config.json has it by default. With
        `all` of each blank.
    min_piece_length, max_piece_length: of one blank.
    allowed_answers: the answers that a blank may have, with | between them; one such list for all
        blanks, or one for each.
    bad_words: that no answer holds.
    data: a file with rows instead of texts, see `apps.fill_files`; output: the file to write, with
        the same rows filled. A run that was killed goes on when the same command is given again.
    text_column, batch_size: of the rows; texts that are filled at once.
    tensor_parallel: the processes of `torchrun` share one model; else each has its own, for --data.
    """

    repository: str = field(metadata=about("A converted repository."))
    texts: list[str] | None = field(
        default=None,
        metadata=about(
            "Texts with blanks; without one, those on standard input, a text a line.",
            argument=True,
        ),
    )
    all: int | None = field(
        default=None,
        metadata=about("Show so many answers for each blank, with their probabilities.", least=1),
    )
    sample: bool = field(
        default=False, metadata=about("Draw the words, instead of taking the likeliest.")
    )
    seed: int | None = field(
        default=None,
        metadata=about("For the same draw again, with --sample.", least=0, most=LARGEST_SEED),
    )
    json: bool = field(default=False, metadata=about("Write a JSON object a line."))
    max_new_tokens: int | None = field(
        default=None, metadata=about("Tokens for all blanks of a text, at most.", least=1)
    )
    min_piece_length: int | None = field(
        default=None, metadata=about("Tokens of one blank, at least.", least=0)
    )
    max_piece_length: int | None = field(
        default=None, metadata=about("Tokens of one blank, at most.", least=1)
    )
    allowed_answers: list[str] | None = field(
        default=None,
        metadata=about(
            "Answers that a blank may have, as 'two|four'; once for all blanks, or for each."
        ),
    )
    bad_words: list[str] | None = field(
        default=None, metadata=about("A word that no answer holds; as often as there are such.")
    )
    data: str | None = field(
        default=None, metadata=about("JSON lines or parquet file with many texts; needs --output.")
    )
    output: str | None = field(
        default=None, metadata=about("File for the rows of --data with their blanks filled.")
    )
    text_column: str = field(default="text", metadata=about("Column of --data with the texts."))
    batch_size: int = field(
        default=16, metadata=about("Texts of --data that are filled at once.", least=1)
    )
    dtype: DType = field(default="float32", metadata=DTYPE)
    device: str | None = field(default=None, metadata=DEVICE)
    quantize: Quantized | None = field(default=None, metadata=QUANTIZE)
    tensor_parallel: bool = field(
        default=False,
        metadata=about("The processes that torchrun starts share one model, a part of it in each."),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.seed is not None and not self.sample:
            raise ValueError("--seed is for answers that are drawn; pass --sample with it.")


@dataclass
class Showing(Options):
    """What `glm app` is told.

    repository: a converted repository, a folder or a name on the Hub.
    host, port: where the page is.
    """

    repository: str = field(metadata=about("A converted repository."))
    host: str = field(
        default="127.0.0.1",
        metadata=about("Where the page is; 0.0.0.0 for other machines, too."),
    )
    port: int = field(default=7860, metadata=about("Port of the page.", least=1, most=65535))
    dtype: DType = field(default="float32", metadata=DTYPE)
    device: str | None = field(default=None, metadata=DEVICE)
    quantize: Quantized | None = field(default=None, metadata=QUANTIZE)


@dataclass
class Serving(Options):
    """What `glm serve` is told.

    repository: a converted repository, a folder or a name on the Hub.
    host, port: where the server listens; port 0 is any that is free.
    batch_size: texts that are filled at once, if so many wait.
    queue: while so many texts wait, requests are refused.
    timeout: seconds from a request to its answer.
    """

    repository: str = field(metadata=about("A converted repository."))
    host: str = field(
        default="127.0.0.1",
        metadata=about("Where it listens; 0.0.0.0 for other machines, too."),
    )
    port: int = field(default=8000, metadata=about("0 for any free one.", least=0, most=65535))
    batch_size: int = field(default=16, metadata=about("Texts of a batch, at most.", least=1))
    queue: int = field(
        default=256, metadata=about("Texts that wait, before requests are refused.", least=1)
    )
    timeout: float = field(
        default=60.0, metadata=about("Seconds until an answer must be there.", least=0.001)
    )
    dtype: DType = field(default="float32", metadata=DTYPE)
    device: str | None = field(default=None, metadata=DEVICE)
    quantize: Quantized | None = field(default=None, metadata=QUANTIZE)
