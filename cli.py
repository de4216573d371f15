"""The `glm` command."""

from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from .conversion import ConversionError, convert_checkpoint, export_checkpoint, verify_repository
from .conversion.released import RELEASED
from .conversion.tokenizers import BUILDERS
from .hub_repository.config import DTYPES, fills_blanks, read_config
from .hub_repository.model_card import count
from .hub_repository.weights import PROMPT_WEIGHTS
from .training.blank_infilling import MODES, RECIPES

app = typer.Typer(
    help="GLM for Transformers.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Model = Enum("Model", {name: name for name in RELEASED})
Family = Enum("Family", {name: name for name in (*BUILDERS, "none")})
DType = Enum("DType", {name: name for name in DTYPES})
Decay = Enum("Decay", {name: name for name in ("linear", "cosine")})
Mode = Enum("Mode", {name: name for name in MODES})
Precision = Enum("Precision", {name: name for name in ("fp32", "bf16", "fp16")})


@contextmanager
def clear_errors(*kinds: type[Exception]):
    """What went wrong as one line, and exit status 1."""
    try:
        yield
    except (ConversionError, ModuleNotFoundError, *kinds) as error:
        missing = isinstance(
            error, ModuleNotFoundError
        )  # what only training needs is not installed with the rest
        message = (
            f'{error.name} is not installed; install it with pip install ".[train]".'
            if missing
            else str(error)
        )
        typer.secho(message, fg=typer.colors.RED, err=True)
        raise typer.Exit(1) from error


@app.callback()
def main_help():
    """GLM for Transformers."""


@app.command()
def convert(
    checkpoint: Annotated[
        Path,
        typer.Argument(
            help="Folder with a tracker file, iteration folder, file of the first rank, or old Hub repository."
        ),
    ],
    output: Annotated[Path, typer.Argument(help="The Hub repository to write.")],
    model: Annotated[
        Model | None, typer.Option(help="The released checkpoint this is, or is shaped after.")
    ] = None,
    vocab: Annotated[
        str | None, typer.Option(help="Folder, file or Hub name of the vocabulary.")
    ] = None,
    num_attention_heads: Annotated[
        int | None, typer.Option(min=1, help="Heads; wins over --model.")
    ] = None,
    tokenizer: Annotated[
        Family | None, typer.Option(help="Family of the tokenizer; wins over --model.")
    ] = None,
    task_mask: Annotated[
        bool | None,
        typer.Option(
            "--task-mask/--no-task-mask",
            help="Trained with [gMASK] and [sMASK]; wins over --model.",
        ),
    ] = None,
    dtype: Annotated[
        DType | None, typer.Option(help="Type of the weights; the checkpoint's own by default.")
    ] = None,
    max_shard_size: Annotated[str, typer.Option(help="Largest file of weights.")] = "5GB",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an existing repository.")
    ] = False,
    push_to_hub: Annotated[
        str | None, typer.Option(help="Name on the Hub to upload the repository to.")
    ] = None,
):
    """Convert an original checkpoint, or a repository of the old Hub port, to a complete Hub repository.

    `glm models` lists what --model takes.
    """
    with clear_errors():
        repository = convert_checkpoint(
            checkpoint,
            output,
            model=model and model.value,
            vocab=vocab,
            num_attention_heads=num_attention_heads,
            tokenizer=tokenizer and tokenizer.value,
            task_mask=task_mask,
            dtype=dtype and dtype.value,
            max_shard_size=max_shard_size,
            overwrite=overwrite,
            push_to_hub=push_to_hub,
        )
    typer.secho(f"{repository} is complete and verified.", fg=typer.colors.GREEN)
    if (repository / PROMPT_WEIGHTS).exists():
        typer.echo(
            f"The weights of its continuous prompt, which GLMConfig has no place for, are in {PROMPT_WEIGHTS}."
        )
    if push_to_hub is not None:
        typer.echo(f"It is on the Hub as {push_to_hub}.")
    fills = fills_blanks(read_config(repository))
    loader = "AutoModelForSeq2SeqLM" if fills else "AutoModelForSequenceClassification"
    typer.echo(f'Load it with {loader}.from_pretrained("{repository}", trust_remote_code=True).')


@app.command()
def models():
    """The ten released checkpoints, their sizes and the memory that they take."""
    numbers = ("size", "layers", "hidden", "heads", "tokens", "fp16", "fp32")
    table = Table(
        Column("--model", no_wrap=True),
        *(Column(name, justify="right") for name in numbers),
        "tokenizer",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for name, model in RELEASED.items():
        sizes = (model.layers, model.hidden_size, model.num_attention_heads, model.positions)
        memory = (f"{width * model.parameters / 1e9:.1f}" for width in (2, 4))
        table.add_row(
            f"{name} *" if model.task_mask else name,
            count(model.parameters),
            *map(str, sizes),
            *memory,
            model.tokenizer,
        )
    Console().print(table)
    typer.echo(
        "* knows [sMASK] and [gMASK] besides [MASK]; tokens: of the longest text; fp16, fp32: GB of memory for the weights."
    )


@app.command()
def verify(
    repository: Annotated[Path, typer.Argument(help="The converted repository.")],
    against: Annotated[
        Path | None,
        typer.Option(help="The checkpoint it was converted from, to compare every tensor."),
    ] = None,
):
    """Check a converted repository: files, weights, tokenizer, and one filled blank. Exit status 0 if all is right, else 1."""
    checks = verify_repository(repository, against)
    table = Table("check", "result", "", title=escape(str(repository)), title_justify="left")
    for check in checks:
        result = {True: "[green]ok[/]", False: "[red]failed[/]", None: "-"}[check.passed]
        table.add_row(check.name, result, escape(check.detail))
    Console().print(table)
    if any(check.passed is False for check in checks):
        raise typer.Exit(1)


@app.command()
def export(
    repository: Annotated[Path, typer.Argument(help="The converted repository.")],
    checkpoint: Annotated[Path, typer.Argument(help="The checkpoint folder to write.")],
    model_parallel_size: Annotated[
        int, typer.Option(min=1, help="Number of model-parallel ranks.")
    ] = 1,
    dtype: Annotated[
        DType | None, typer.Option(help="Type of the weights; the repository's own by default.")
    ] = None,
):
    """Write a repository's weights as a checkpoint of the original code."""
    with clear_errors():
        written = export_checkpoint(
            repository,
            checkpoint,
            model_parallel_size=model_parallel_size,
            dtype=dtype and dtype.value,
        )
    typer.secho(f"{written} is complete.", fg=typer.colors.GREEN)


@app.command()
def demo(
    output: Annotated[Path, typer.Argument(help="The Hub repository to write.")] = Path("glm-demo"),
):
    """Convert, verify and run a small real model that comes with this package; needs no network."""
    from .demo import run_demo

    with clear_errors():
        run_demo(output)


@app.command()
def pretrain(
    data: Annotated[
        str,
        typer.Argument(
            help="Text (a document on each line), JSON lines or parquet file, folder, or Hub dataset."
        ),
    ],
    output: Annotated[str, typer.Argument(help="The Hub repository to write.")],
    model: Annotated[
        str | None, typer.Option(help="A converted repository to continue from.")
    ] = None,
    config: Annotated[
        str | None,
        typer.Option(help="JSON file with fields of GLMConfig, to train from scratch."),
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="Folder with the tokenizer, to train from scratch.")
    ] = None,
    recipe: Annotated[
        str,
        typer.Option(help=f"A JSON file with fields of Recipe, or one of {', '.join(RECIPES)}."),
    ] = "glm-base",
    validation: Annotated[
        str | None, typer.Option(help="Documents on which the loss of each mode is evaluated.")
    ] = None,
    streaming: Annotated[
        bool, typer.Option("--streaming", help="Read the data while training.")
    ] = False,
    one_document: Annotated[
        bool, typer.Option("--one-document", help="One document in each text.")
    ] = False,
    length: Annotated[int | None, typer.Option(min=4, help="Longest text in tokens.")] = None,
    steps: Annotated[int, typer.Option(help="Steps of the optimiser.")] = 1000,
    batch_size: Annotated[int, typer.Option(help="Texts for each process and forward pass.")] = 16,
    accumulation: Annotated[int, typer.Option(help="Forward passes for each step.")] = 1,
    learning_rate: Annotated[float, typer.Option(help="Highest learning rate.")] = 1e-4,
    warmup: Annotated[
        float, typer.Option(help="Share of the steps until the highest learning rate.")
    ] = 0.06,
    decay: Annotated[Decay, typer.Option(help="Form of the decay.")] = Decay.cosine,
    decay_ratio: Annotated[
        float, typer.Option(help="Lowest learning rate, as a share of the highest.")
    ] = 0.1,
    decay_steps: Annotated[
        int | None,
        typer.Option(min=1, help="Step at which the decay ends; the last one by default."),
    ] = None,
    weight_decay: Annotated[
        float, typer.Option(help="Of everything but biases and layer norms.")
    ] = 0.1,
    max_grad_norm: Annotated[float, typer.Option(help="Longest gradient.")] = 1.0,
    precision: Annotated[Precision, typer.Option(help="Type of the arithmetic.")] = Precision.fp32,
    gradient_checkpointing: Annotated[
        bool, typer.Option("--gradient-checkpointing", help="Less memory, more time.")
    ] = False,
    evaluate_every: Annotated[int, typer.Option(help="Steps between evaluations.")] = 500,
    save_every: Annotated[int, typer.Option(help="Steps between checkpoints.")] = 500,
    log_every: Annotated[int, typer.Option(help="Steps between log entries.")] = 50,
    workers: Annotated[int, typer.Option(min=0, help="Processes that prepare batches.")] = 0,
    seed: Annotated[int, typer.Option(help="Of weights, order and masks.")] = 0,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run in OUTPUT, with the same options.")
    ] = False,
):
    """Pretrain by autoregressive blank infilling; on several processes through `accelerate launch`."""
    options = {
        name: value.value if isinstance(value, Enum) else value for name, value in locals().items()
    }
    with clear_errors(ValueError, OSError):
        from .training.pretrain import Pretraining
        from .training.pretrain import pretrain as run

        repository = run(Pretraining(**options))
    typer.secho(f"{repository} is complete.", fg=typer.colors.GREEN)


@app.command()
def preview(
    repository: Annotated[
        str, typer.Argument(help="A converted repository, or another folder with its tokenizer.")
    ],
    text: Annotated[
        str | None, typer.Option(help="The text to make an example of; or else")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(help="documents, as `glm pretrain` takes them, to pack a sample of."),
    ] = None,
    mode: Annotated[
        Mode | None,
        typer.Option(help="What is masked; drawn with the recipe's probabilities by default."),
    ] = None,
    recipe: Annotated[
        str,
        typer.Option(help=f"A JSON file with fields of Recipe, or one of {', '.join(RECIPES)}."),
    ] = "glm-base",
    seed: Annotated[int, typer.Option(min=0, help="Another seed, another example.")] = 0,
    length: Annotated[int, typer.Option(min=4, help="Longest text in tokens.")] = 64,
    png: Annotated[Path | None, typer.Option(help="Picture to write.")] = None,
):
    """Show one example of pretraining: its tokens, positions and labels, and who sees whom."""
    from .training.preview import draw, make_example, make_picture, make_table

    console = Console()
    with clear_errors(ValueError, OSError):
        example = make_example(repository, text, data, mode and mode.value, recipe, seed, length)
        console.print(make_table(example))
        if len(example.tokens) <= console.width:
            console.print("\nA token sees those in whose columns its row is filled:\n")
            console.print(make_picture(example))
        else:
            console.print(
                f"The picture of who sees whom is {len(example.tokens)} columns wide; pass --png FILE for a file."
            )
        if png is not None:
            draw(example, png)
            console.print(f"{png} is written.", style="green", markup=False)


def main():
    app()
