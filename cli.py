"""The `glm` command: a thin layer over the folders, which it imports when they are called."""

import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import MISSING, Field, fields
from inspect import Parameter, Signature
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import typer

from . import __version__
from .apps.options import Filling, Serving, Showing
from .conversion.released import RELEASED
from .evaluation.options import Evaluation, Scoring
from .training.options import Finetuning, Options, Pretraining, Preview

FAMILIES = (*dict.fromkeys(model.tokenizer for model in RELEASED.values()), "none")

# The choices of options; a type checker knows no names that are read from a table.
if TYPE_CHECKING:
    Model = str
    Family = str
else:
    Model = Literal[tuple(RELEASED)]
    Family = Literal[FAMILIES]
DType = Literal["float16", "bfloat16", "float32"]

app = typer.Typer(
    help="GLM for Transformers.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # which would read [gMASK] in a help text as markup and drop it
)

# What libraries say that is no fault of the program: kind of error, words of its message, and what
# is said here, where {} is the message, and {advice} what takes less memory.
LIBRARY_ERRORS: tuple[tuple[type[Exception], str, str], ...] = (
    (
        ModuleNotFoundError,
        r"datasets|matplotlib|peft|pyarrow|tensorboard",
        '{} Install what training needs with pip install ".[train]".',
    ),
    (
        ModuleNotFoundError,
        r"lm_eval",
        '{} Install what the harness needs with pip install ".[eval]".',
    ),
    (
        ModuleNotFoundError,
        r"gradio",
        '{} Install what the page needs with pip install ".[app]".',
    ),
    (
        ModuleNotFoundError,
        r"fastapi|uvicorn",
        '{} Install what serving needs with pip install ".[serve]".',
    ),
    (
        ModuleNotFoundError,
        r"torchao",
        '{} Install what int8 needs on a GPU with pip install ".[quantize]".',
    ),
    (KeyError, r"not a registered task", "lm-evaluation-harness has no such task: {}."),
    (
        RuntimeError,
        r"requires tensorboard",
        'tensorboard is not installed; install it with pip install ".[train]".',
    ),
    (
        RuntimeError,
        r"out of memory|can't allocate memory",
        "The memory is too small; {advice}.",
    ),
    (
        UnpicklingError,
        r"",
        "A file of the checkpoint to continue from is damaged; delete its folder checkpoint-..., "
        "and --resume goes on from the one before.",
    ),
    (ValueError, r"bf16|fp16", "This machine cannot compute in this --precision: {}"),
    (OSError, r"", "{}"),
)

# What takes less memory, by the options that a command may have.
LESS_MEMORY = {
    "batch_size": "lower --batch-size",
    "accumulation": "raise --accumulation",
    "gradient_checkpointing": "pass --gradient-checkpointing",
    "dtype": "pass --dtype bfloat16",
}


def less_memory(options: type[Options] | None) -> str:
    """What a command with these options can do about a memory that is too small."""
    names = {field.name for field in fields(options)} if options is not None else set()
    advice = [words for name, words in LESS_MEMORY.items() if name in names]
    return " or ".join(advice) or "end other programs, or take a machine with more"


def clear_sentence(error: Exception, options: type[Options] | None = None) -> str | None:
    """What to tell the user of an error; None if it is a fault of the program.

    Args:
        options: those of the command.
    """
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    raised_in = trace.tb_frame.f_globals["__name__"] if trace is not None else ""
    # The package's own errors are sentences for the user.
    if isinstance(error, ValueError) and raised_in.startswith(f"{__package__}."):
        return str(error)
    for kind, words, sentence in LIBRARY_ERRORS:
        if isinstance(error, kind) and re.search(words, str(error)):
            return sentence.format(error, advice=less_memory(options))
    return None


@contextmanager
def clear_errors(options: type[Options] | None = None) -> Iterator[None]:
    """A user's error as one sentence, and exit status 1; a fault of the program as it is.

    Args:
        options: those of the command.
    """
    from .conversion import ConversionError

    try:
        yield
    except Exception as error:
        ours = isinstance(error, ConversionError)
        sentence = str(error) if ours else clear_sentence(error, options)
        if sentence is None:
            raise
        typer.secho(sentence, fg=typer.colors.RED, err=True)
        raise typer.Exit(1) from error


OptionsKind = TypeVar("OptionsKind", bound=Options)


def takes(options: type[OptionsKind]) -> Callable[[Callable[[OptionsKind], None]], Callable]:
    """Makes a command of a function of `options`: its fields are the arguments and options."""

    def decorate(function: Callable[[OptionsKind], None]) -> Callable:
        def command(**values: Any) -> None:
            with clear_errors(options):
                function(options(**values))

        types = options.types()
        command.__name__, command.__doc__ = function.__name__, function.__doc__
        command.__signature__ = Signature(  # type: ignore[attr-defined]
            [parameter(field, types[field.name]) for field in fields(options)]
        )
        command.__annotations__ = {}
        return command

    return decorate


def parameter(field: Field, kind: Any) -> Parameter:
    """An argument if the field must be given or says so, else an option, a switch for a bool."""
    about = dict(
        help=field.metadata["help"],
        min=field.metadata["least"],
        max=field.metadata["most"],
    )
    if field.default is MISSING:
        given, default = typer.Argument(**about), Parameter.empty
    elif field.metadata["argument"]:
        given, default = typer.Argument(**about), field.default
    else:
        names = [f"--{field.name.replace('_', '-')}"]
        given, default = typer.Option(*names, **about), field.default
    return Parameter(
        field.name,
        Parameter.KEYWORD_ONLY,
        default=default,
        annotation=Annotated[kind, given],
    )


def show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"glm-transformers {__version__}")
        raise typer.Exit()


@app.callback()
def start(
    version: Annotated[
        bool,
        typer.Option("--version", callback=show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """GLM for Transformers."""
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")  # progress bars would fill a log


@app.command()
def convert(
    checkpoint: Annotated[
        Path,
        typer.Argument(
            help="Folder with a tracker file, iteration folder, file of the first rank, "
            "or old Hub repository."
        ),
    ],
    output: Annotated[Path, typer.Argument(help="The Hub repository to write.")],
    model: Annotated[
        Model | None,
        typer.Option(help="The released checkpoint this is, or is shaped after."),
    ] = None,
    vocab: Annotated[
        str | None,
        typer.Option(help="Folder, file or Hub name of the vocabulary."),
    ] = None,
    num_attention_heads: Annotated[
        int | None,
        typer.Option(min=1, help="Heads; wins over --model."),
    ] = None,
    tokenizer: Annotated[
        Family | None,
        typer.Option(help="Family of the tokenizer; wins over --model."),
    ] = None,
    task_mask: Annotated[
        bool | None,
        typer.Option(
            "--task-mask/--no-task-mask",
            help="Trained with [gMASK] and [sMASK]; wins over --model.",
        ),
    ] = None,
    dtype: Annotated[
        DType | None,
        typer.Option(help="Type of the weights; the checkpoint's own by default."),
    ] = None,
    max_shard_size: Annotated[str, typer.Option(help="Largest file of weights.")] = "5GB",
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Replace an existing repository."),
    ] = False,
    push_to_hub: Annotated[
        str | None,
        typer.Option(help="Name on the Hub to upload the repository to."),
    ] = None,
    results: Annotated[
        Path | None,
        typer.Option(help="Record of glm evaluate or glm score, for the model card."),
    ] = None,
    space: Annotated[
        bool,
        typer.Option("--space", help="Add the page that the Hub shows for a Space."),
    ] = False,
) -> None:
    """Convert a checkpoint to a complete Hub repository.

    The checkpoint is an original one, or a repository of the old Hub port.
    `glm models` lists what --model takes.
    """
    with clear_errors():
        from .conversion import convert_checkpoint
        from .hub_repository.config import fills_blanks, read_config
        from .hub_repository.weights import PROMPT_WEIGHTS

        repository = convert_checkpoint(
            checkpoint,
            output,
            model=model,
            vocab=vocab,
            num_attention_heads=num_attention_heads,
            tokenizer=tokenizer,
            task_mask=task_mask,
            dtype=dtype,
            max_shard_size=max_shard_size,
            overwrite=overwrite,
            push_to_hub=push_to_hub,
            results=results,
            space=space,
        )
    typer.secho(f"{repository} is complete and verified.", fg=typer.colors.GREEN)
    if (repository / PROMPT_WEIGHTS).exists():
        typer.echo(
            "The weights of its continuous prompt, which GLMConfig has no place for, are in "
            f"{PROMPT_WEIGHTS}."
        )
    if push_to_hub is not None:
        typer.echo(f"It is on the Hub as {push_to_hub}.")
    fills = fills_blanks(read_config(repository))
    loader = "AutoModelForSeq2SeqLM" if fills else "AutoModelForSequenceClassification"
    typer.echo(f'Load it with {loader}.from_pretrained("{repository}", trust_remote_code=True).')


@app.command()
def models() -> None:
    """List the ten released checkpoints.

    With their sizes and the memory that they take.
    """
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Column, Table

    numbers = ("size", "layers", "hidden", "heads", "tokens", "fp16", "fp32")
    table = Table(
        Column("--model", no_wrap=True),
        *(Column(name, justify="right") for name in numbers),
        "tokenizer",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for name, model in RELEASED.items():
        table.add_row(
            f"{name} *" if model.task_mask else name,
            f"{model.parameters / 1e6:.0f}M",
            f"{model.layers}",
            f"{model.hidden_size}",
            f"{model.num_attention_heads}",
            f"{model.positions}",
            f"{2 * model.parameters / 1e9:.1f}",
            f"{4 * model.parameters / 1e9:.1f}",
            model.tokenizer,
        )
    Console().print(table)
    typer.echo(
        "* knows [sMASK] and [gMASK] besides [MASK]; tokens: of the longest text; "
        "fp16, fp32: GB of memory for the weights."
    )


@app.command()
def verify(
    repository: Annotated[Path, typer.Argument(help="The converted repository.")],
    against: Annotated[
        Path | None,
        typer.Option(help="The checkpoint it was converted from, to compare every tensor."),
    ] = None,
) -> None:
    """Check a converted repository.

    Its files, weights, tokenizer, and one filled blank.

    Exit status 0 if all is right, else 1.
    """
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from .conversion import verify_repository

    checks = verify_repository(repository, against)
    results = {True: "[green]ok[/]", False: "[red]failed[/]", None: "-"}
    table = Table("check", "result", "", title=escape(str(repository)), title_justify="left")
    for check in checks:
        table.add_row(check.name, results[check.passed], escape(check.detail))
    Console().print(table)
    if any(check.passed is False for check in checks):
        raise typer.Exit(1)


@app.command()
def export(
    repository: Annotated[Path, typer.Argument(help="The converted repository.")],
    checkpoint: Annotated[Path, typer.Argument(help="The checkpoint folder to write.")],
    model_parallel_size: Annotated[
        int,
        typer.Option(min=1, help="Number of model-parallel ranks."),
    ] = 1,
    dtype: Annotated[
        DType | None,
        typer.Option(help="Type of the weights; the repository's own by default."),
    ] = None,
) -> None:
    """Write a checkpoint of the original code."""
    with clear_errors():
        from .conversion import export_checkpoint

        written = export_checkpoint(
            repository,
            checkpoint,
            model_parallel_size=model_parallel_size,
            dtype=dtype,
        )
    typer.secho(f"{written} is complete.", fg=typer.colors.GREEN)


@app.command()
def demo(
    output: Annotated[Path, typer.Argument(help="The Hub repository to write.")] = Path("glm-demo"),
) -> None:
    """Convert, verify and run a small real model.

    It comes with this package and needs no network.
    """
    with clear_errors():
        from .demo import run_demo

        run_demo(output)


@app.command()
@takes(Filling)
def fill(options: Filling) -> None:
    """Fill the blanks of texts.

    Of those on the command line, or on standard input; in a terminal it asks for them. Of the rows
    of a file with --data, on several processes through `accelerate launch`.
    """
    if options.data is not None:
        from .apps.fill_files import fill_file

        typer.secho(f"{fill_file(options)} is complete.", fg=typer.colors.GREEN)
        return
    from .apps.fill import fill as run

    run(options)


@app.command("app")
@takes(Showing)
def show_page(options: Showing) -> None:
    """Show a page on which people fill blanks, in a browser."""
    from .apps.listener import bind
    from .apps.page import build, launch
    from .apps.pipeline import open_pipeline

    # Held until the model is loaded: Gradio looks for the place no sooner.
    with bind(options.host, options.port):
        pipeline = open_pipeline(
            options.repository,
            options.dtype,
            options.device,
            options.quantize,
        )
        page = build(pipeline, Path(options.repository).resolve().name)
    typer.echo(f"The page is at {launch(page, options.host, options.port)}. Ctrl-C ends it.")
    page.block_thread()


@app.command()
@takes(Pretraining)
def pretrain(options: Pretraining) -> None:
    """Pretrain by autoregressive blank infilling.

    On several processes through `accelerate launch`.
    """
    from .training.pretrain import pretrain as run

    repository = run(options)
    typer.secho(f"{repository} is complete.", fg=typer.colors.GREEN)


@app.command()
@takes(Finetuning)
def finetune(options: Finetuning) -> None:
    """Fine-tune on a task, or on examples of your own.

    On several processes through `accelerate launch`.
    """
    from .training.finetune import finetune as run

    result = run(options)
    typer.secho(f"{result} is complete.", fg=typer.colors.GREEN)


@app.command()
@takes(Preview)
def preview(options: Preview) -> None:
    """Show one example of pretraining, or of a fine-tuning task.

    Its tokens, positions and labels, and who sees whom.
    """
    from rich.console import Console

    from .training.preview import draw, make_example, make_picture, make_table

    console = Console()
    example = make_example(options)
    console.print(make_table(example))
    if len(example.tokens) <= console.width:
        console.print("\nA token sees those in whose columns its row is filled:\n")
        console.print(make_picture(example))
    else:
        console.print(
            f"The picture of who sees whom is {len(example.tokens)} columns wide; "
            "pass --png FILE for a file."
        )
    if options.png is not None:
        draw(example, options.png)
        console.print(f"{options.png} is written.", style="green", markup=False)


@app.command()
@takes(Evaluation)
def evaluate(options: Evaluation) -> None:
    """Measure a model.

    LAMBADA, WikiText and texts of one's own as the original does it, the tasks of fine-tuning, and
    those of lm-evaluation-harness.
    """
    from rich.console import Console

    from .evaluation.evaluate import evaluate as run
    from .evaluation.evaluate import make_published_table, make_table

    measures = run(options)
    console = Console()
    if options.predictions is not None:
        console.print(f"{options.predictions} has the predictions.", style="green", markup=False)
    if not measures:  # another process shows them, or nobody knows what is right
        return
    console.print(make_table(measures))
    if options.lambada is not None or options.wikitext is not None:
        console.print(make_published_table())
    if options.output is not None:
        console.print(f"{options.output} has the record.", style="green", markup=False)


@app.command()
@takes(Scoring)
def score(options: Scoring) -> None:
    """Score choices, answers or whole texts.

    By their log-probability.
    """
    from rich.console import Console

    from .evaluation.evaluate import make_table
    from .evaluation.score import make_table_of_texts
    from .evaluation.score import score as run

    scores = run(options)
    console = Console()
    console.print(make_table_of_texts(scores))
    if scores.measures:
        console.print(make_table(scores.measures))
    if options.output is not None:
        console.print(f"{options.output} has all scores.", style="green", markup=False)


@app.command()
@takes(Serving)
def serve(options: Serving) -> None:
    """Fill blanks over HTTP.

    With a form of its own and that of OpenAI's completions.
    """
    from .apps.server import serve as run

    run(options)


def main() -> None:
    app()
