"""What `glm evaluate` and `glm score` are told; imports no library, so that `--help` is quick."""

from dataclasses import dataclass, field
from typing import Literal

from ..training.options import LARGEST_SEED, Options, about

DType = Literal["float32", "float16", "bfloat16"]
Quantized = Literal["int8"]

# What `glm evaluate` is told of a task as `glm finetune` is.
OF_TASK = (
    "pattern",
    "text_column",
    "target_column",
    "max_target_length",
    "attend_padding",
    "generation",
)

# How a model is loaded, in every command that runs one.
DTYPE = about("Type of the arithmetic.")
DEVICE = about("For example cuda:1 or cpu; by default a GPU, if there is one.")
QUANTIZE = about("Weights in fewer bytes: faster and smaller, a little less exact.")


@dataclass
class Evaluation(Options):
    """What `glm evaluate` is told: what to measure, all of it if there is more, and how.

    repository: a converted repository, a folder or a name on the Hub.
    lambada, wikitext, documents: files of `evaluation.language_modeling`.
    task: a name in the table of fine-tuning tasks, or a file with a task.
    data, split: its examples, as `read_examples` takes them.
    predictions: a file for what the model answers.
    pattern, text_column, target_column, max_target_length, attend_padding, generation: as the model
        was fine-tuned; generation is the repository's by default.
    tasks: names of lm-evaluation-harness, with commas between them; task_folder: where else it
        looks for them; shots: examples before each question.
    output: a JSON file for the record. What is finished is kept beside it until all is: a run that
        was killed goes on where it was when the same command is given again.
    length, stride: tokens of a row, or of a task's context, and new tokens of a window; by default
        the original's or the task's, and the longest that the model takes where that is less.
    """

    repository: str = field(metadata=about("A converted repository, or an adapter."))
    lambada: str | None = field(
        default=None, metadata=about("JSON lines with a text each: is its last word known?")
    )
    wikitext: str | None = field(
        default=None, metadata=about("File of WikiText: perplexity of each word.")
    )
    documents: str | None = field(
        default=None, metadata=about("Text file with a document on each line: perplexity.")
    )
    task: str | None = field(
        default=None, metadata=about("Fine-tuning task, or file with one; needs --data.")
    )
    data: str | None = field(
        default=None, metadata=about("Examples of the task: a file, folder, or Hub dataset.")
    )
    split: str = field(
        default="validation", metadata=about("Which of the examples, of a folder or Hub dataset.")
    )
    predictions: str | None = field(
        default=None, metadata=about("File to write for what the model answers to the examples.")
    )
    pattern: int | None = field(
        default=None, metadata=about("Number of the pattern that examples get.", least=0)
    )
    text_column: str | None = field(default=None, metadata=about("Column of the data with texts."))
    target_column: str | None = field(
        default=None, metadata=about("Column of the data with answers.")
    )
    max_target_length: int | None = field(
        default=None, metadata=about("Longest answer in tokens, with its end.", least=1)
    )
    attend_padding: bool = field(
        default=False, metadata=about("The task's contexts see their padding, as the original's.")
    )
    generation: str | None = field(
        default=None,
        metadata=about("Task whose published beam search is used, or greedy."),
    )
    tasks: str | None = field(
        default=None, metadata=about("Tasks of lm-evaluation-harness, separated by commas.")
    )
    task_folder: str | None = field(
        default=None, metadata=about("Folder with more tasks of the harness.")
    )
    shots: int | None = field(
        default=None, metadata=about("Examples before each question of the harness.", least=0)
    )
    output: str | None = field(
        default=None, metadata=about("JSON file for the record; a killed run is continued.")
    )
    unidirectional: bool = field(
        default=False, metadata=about("Read one token and write all others.")
    )
    length: int | None = field(default=None, metadata=about("Longest row in tokens.", least=8))
    stride: int | None = field(
        default=None, metadata=about("New tokens of each window of a long text.", least=1)
    )
    limit: int | None = field(default=None, metadata=about("The first texts only.", least=1))
    batch_size: int = field(default=16, metadata=about("Rows of a forward pass.", least=1))
    dtype: DType = field(default="float32", metadata=DTYPE)
    device: str | None = field(default=None, metadata=DEVICE)
    quantize: Quantized | None = field(default=None, metadata=QUANTIZE)
    seed: int = field(
        default=0, metadata=about("Of the harness's examples.", least=0, most=LARGEST_SEED)
    )


@dataclass
class Scoring(Options):
    """What `glm score` is told.

    texts: JSON lines or plain text, see `evaluation.score.read_texts`.
    model: a converted repository, a folder or a name on the Hub.
    unidirectional, length_penalty, end_token: of `score_choices`; the last of `log_likelihood` too.
    length: tokens of a context with its longest choice, or of a row of plain text; the model's by
        default.
    output: a JSON file for all scores and what they depend on.
    """

    texts: str = field(
        metadata=about("JSON lines with choices or answers for blanks, or a plain text a line.")
    )
    model: str = field(default=".", metadata=about("A converted repository, or an adapter."))
    output: str | None = field(default=None, metadata=about("JSON file for all scores."))
    unidirectional: bool = field(
        default=False, metadata=about("Read the text from left to right, too.")
    )
    length_penalty: float = field(
        default=0.0,
        metadata=about("Power of a choice's length that divides its score.", least=0),
    )
    end_token: bool = field(default=False, metadata=about("Score the end of each answer, too."))
    length: int | None = field(default=None, metadata=about("Longest row in tokens.", least=8))
    batch_size: int = field(default=16, metadata=about("Texts of a forward pass.", least=1))
    dtype: DType = field(default="float32", metadata=DTYPE)
    device: str | None = field(default=None, metadata=DEVICE)
    quantize: Quantized | None = field(default=None, metadata=QUANTIZE)
