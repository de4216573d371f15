"""Gives a folder its name only when it is complete, whatever happens before."""

import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import ConversionError


@contextmanager
def clear_errors(output: Path) -> Iterator[None]:
    """What the operating system refuses, as one sentence."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise ConversionError(
                f"The disk of {output.parent} is full; make room or choose another place."
            ) from error
        raise ConversionError(
            f"{error.filename or output} cannot be used: {error.strerror or error}."
        ) from error


def prepare(output: Path, sources: list[Path], overwrite: bool = False):
    """Clean up what killed runs left beside `output`, and raise if it cannot be written: said before any work."""
    with clear_errors(output):
        clean_leftovers(output)
        if os.path.lexists(output) and not overwrite:
            raise ConversionError(
                f"{output} exists already; choose another place, or pass --overwrite."
            )
        if any(file.resolve().is_relative_to(output.resolve()) for file in sources):
            raise ConversionError(f"{output} holds what is to be read; choose another place.")


@contextmanager
def new_folder(output: Path, size: int) -> Iterator[Path]:
    """A folder beside `output`, for about `size` bytes, which takes its name at the end, and is removed on an error.

    Raises:
        ConversionError: if there is no room, or the place cannot be written.
    """
    with clear_errors(output):
        output.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(output.parent).free
        if size > free:
            raise ConversionError(
                f"{output.parent} has {free / 1e9:.1f} GB free and the weights take {size / 1e9:.1f} GB; make room or choose another place."
            )
        unfinished = output.with_name(f"{incomplete_prefix(output)}{secrets.token_hex(4)}")
        try:
            unfinished.mkdir()
            yield unfinished
            take_name(unfinished, output)
        finally:
            if unfinished.is_dir():
                remove(unfinished)


def incomplete_prefix(output: Path) -> str:
    return f".{output.name}.incomplete-"


def aside(output: Path) -> Path:
    """Where an existing folder is while a new one takes its name."""
    return output.with_name(f".{output.name}.replaced")


def take_name(unfinished: Path, output: Path):
    """Give a complete folder its name; what has that name is kept if that fails."""
    if os.path.lexists(output):
        output.rename(aside(output))
    try:
        unfinished.rename(output)
    except OSError:
        if os.path.lexists(aside(output)):
            aside(output).rename(output)
        raise
    synchronize(output.parent)
    remove(aside(output))


def clean_leftovers(output: Path):
    """Remove what killed runs left beside `output`, and undo a replacement that did not come to its end."""
    if os.path.lexists(aside(output)) and not os.path.lexists(output):
        aside(output).rename(output)
    remove(aside(output))
    if output.parent.is_dir():
        for leftover in output.parent.iterdir():
            if leftover.name.startswith(incomplete_prefix(output)):
                remove(leftover)


def remove(path: Path):
    if path.is_dir() and not path.is_symlink():
        (path / "config.json").unlink(
            missing_ok=True
        )  # first: half of a repository must not look like one
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def synchronize(path: Path):
    """Wait until the disk has it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
