"""The `glm` command."""

from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Annotated, Optional

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .conversion import ConversionError, convert_checkpoint, export_checkpoint, verify_repository
from .conversion.released import RELEASED
from .conversion.repository import DTYPES
from .conversion.tokenizers import BUILDERS
from .conversion.weights import PROMPT_WEIGHTS


app = typer.Typer(help="GLM for Transformers.", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)

Model = Enum("Model", {name: name for name in RELEASED})
Family = Enum("Family", {name: name for name in (*BUILDERS, "none")})
DType = Enum("DType", {name: name for name in DTYPES})


@contextmanager
def clear_errors():
    """A conversion's error as one line and exit status 1."""
    try:
        yield
    except ConversionError as error:
        typer.secho(str(error), fg=typer.colors.RED, err=True)
        raise typer.Exit(1) from error


@app.callback()
def main_help():
    """GLM for Transformers."""


@app.command()
def convert(
    checkpoint: Annotated[Path, typer.Argument(help="Folder with a tracker file, iteration folder, file of the first rank, or old Hub repository.")],
    output: Annotated[Path, typer.Argument(help="The Hub repository to write.")],
    model: Annotated[Optional[Model], typer.Option(help="The released checkpoint this is, or is shaped after.")] = None,
    vocab: Annotated[Optional[str], typer.Option(help="Folder, file or Hub name of the vocabulary.")] = None,
    num_attention_heads: Annotated[Optional[int], typer.Option(min=1, help="Heads; wins over --model.")] = None,
    tokenizer: Annotated[Optional[Family], typer.Option(help="Family of the tokenizer; wins over --model.")] = None,
    task_mask: Annotated[
        Optional[bool], typer.Option("--task-mask/--no-task-mask", help="Trained with [gMASK] and [sMASK]; wins over --model.")
    ] = None,
    dtype: Annotated[Optional[DType], typer.Option(help="Type of the weights; the checkpoint's own by default.")] = None,
    max_shard_size: Annotated[str, typer.Option(help="Largest file of weights.")] = "5GB",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing repository.")] = False,
):
    """Convert an original checkpoint, or a repository of the old Hub port, to a complete Hub repository."""
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
        )
    typer.secho(f"{repository} is complete and verified.", fg=typer.colors.GREEN)
    if (repository / PROMPT_WEIGHTS).exists():
        typer.echo(f"The weights of its continuous prompt, which GLMConfig has no place for, are in {PROMPT_WEIGHTS}.")
    typer.echo(f'Load it with AutoModelForSeq2SeqLM.from_pretrained("{repository}", trust_remote_code=True).')


@app.command()
def verify(
    repository: Annotated[Path, typer.Argument(help="The converted repository.")],
    against: Annotated[Optional[Path], typer.Option(help="The checkpoint it was converted from, to compare every tensor.")] = None,
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
    model_parallel_size: Annotated[int, typer.Option(min=1, help="Number of model-parallel ranks.")] = 1,
):
    """Write a repository's weights as a checkpoint of the original code."""
    with clear_errors():
        written = export_checkpoint(repository, checkpoint, model_parallel_size=model_parallel_size)
    typer.secho(f"{written} is complete.", fg=typer.colors.GREEN)


def main():
    app()
