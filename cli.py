"""The `glm` command."""

from enum import Enum
from pathlib import Path
from typing import Annotated, Optional

import typer

from .conversion import ConversionError, convert_checkpoint
from .conversion.released import RELEASED
from .conversion.repository import DTYPES
from .conversion.tokenizers import BUILDERS


app = typer.Typer(help="GLM for Transformers.", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)

Model = Enum("Model", {name: name for name in RELEASED})
Family = Enum("Family", {name: name for name in (*BUILDERS, "none")})
DType = Enum("DType", {name: name for name in DTYPES})


@app.callback()
def main_help():
    """GLM for Transformers."""


@app.command()
def convert(
    checkpoint: Annotated[Path, typer.Argument(help="Folder with a tracker file, iteration folder, or file of the first rank.")],
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
    """Convert an original checkpoint to a complete Hub repository."""
    try:
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
    except ConversionError as error:
        typer.secho(str(error), fg=typer.colors.RED, err=True)
        raise typer.Exit(1) from error
    typer.secho(f"{repository} is complete.", fg=typer.colors.GREEN)
    typer.echo(f'Load it with AutoModelForSeq2SeqLM.from_pretrained("{repository}", trust_remote_code=True).')


def main():
    app()
