"""Gives a folder its name only when it is complete, whatever happens before."""

import errno
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import RepositoryError
from .model_card import size as bytes_as_text

try:
    import fcntl
except ImportError:  # Windows has no such locks: there two conversions into one place are not told
    fcntl = None  # type: ignore[assignment]  # a module that may be missing has no other type


@contextmanager
def clear_errors(output: Path) -> Iterator[None]:
    """What the operating system refuses, as one sentence."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise RepositoryError(
                f"The disk of {output.parent} is full; make room or choose another place."
            ) from error
        raise RepositoryError(
            f"{error.filename or output} cannot be used: {error.strerror or error}."
        ) from error


def prepare(
    output: Path,
    sources: Iterable[Path],
    may_replace: bool = False,
    remedy: str = "choose another place",
):
    """Clean up what killed runs left beside `output`, and raise if it cannot be written.

    Said before any work.

    Args:
        sources: files and folders that are read: they are never replaced.
        may_replace: what is at `output` may be replaced.
        remedy: what to do if something is there.
    """
    if not output.name:
        raise RepositoryError(f"{output} is the root of all folders; choose another place.")
    with clear_errors(output):
        if output.parent.is_dir():
            with locked(output.parent):
                clean_leftovers(output)
        elif output.parent.exists():
            raise RepositoryError(f"{output.parent} cannot be used: Not a directory.")
        if os.path.lexists(output) and not may_replace:
            raise RepositoryError(f"{output} exists already; {remedy}.")
        place = Path(os.path.realpath(output))
        if any(Path(os.path.realpath(file)).is_relative_to(place) for file in sources):
            raise RepositoryError(f"{output} holds what is to be read; choose another place.")


@contextmanager
def new_folder(output: Path, size: int) -> Iterator[Path]:
    """A folder beside `output`, for about `size` bytes, which takes its name at the end.

    It is removed on an error. It is locked while this process lives, so that another one neither
    takes it for a leftover nor writes the same place.

    Raises:
        RepositoryError: if there is no room, the place cannot be written, or another process is
            at work there.
    """
    with clear_errors(output):
        output.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(output.parent).free
        if size > free:
            raise RepositoryError(
                f"{output.parent} has {bytes_as_text(free)} free and the weights take "
                f"{bytes_as_text(size)}; make room or choose another place."
            )
        unfinished = output.with_name(
            f"{incomplete_prefix(output)}{os.getpid()}-{secrets.token_hex(4)}"
        )
        with locked(output.parent):
            clean_leftovers(output)
            unfinished.mkdir()
            lock = lock_folder(unfinished)
        try:
            yield unfinished
            with locked(output.parent):
                take_name(unfinished, output)
        finally:
            if unfinished.is_dir():
                remove(unfinished)
            if lock is not None:
                os.close(lock)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """No two processes are in here for the same folder: for a moment of looking and renaming."""
    lock = lock_folder(folder, wait=True)
    try:
        yield
    finally:
        if lock is not None:
            os.close(lock)


def lock_folder(folder: Path, wait: bool = False) -> int | None:
    """The descriptor of a lock, which ends with the process at the latest.

    None where there are no locks: on Windows and some network file systems.

    Raises:
        BlockingIOError: if another process has it, and this one does not wait.
    """
    if fcntl is None:
        return None
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        os.close(descriptor)
        raise
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


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
    """Remove what killed runs left, and undo a replacement that did not come to its end.

    Raises:
        RepositoryError: if one of them is of a process that lives.
    """
    leftovers = [
        folder
        for folder in output.parent.iterdir()
        if folder.name.startswith(incomplete_prefix(output))
    ]
    for leftover in leftovers:
        require_dead(leftover, output)
    if os.path.lexists(aside(output)) and not os.path.lexists(output):
        aside(output).rename(output)
    for leftover in (*leftovers, aside(output)):
        remove(leftover)


def require_dead(leftover: Path, output: Path):
    try:
        lock = lock_folder(leftover)
    except BlockingIOError as error:
        process = leftover.name.removeprefix(incomplete_prefix(output)).partition("-")[0]
        raise RepositoryError(
            f"Process {process} is writing {output} at this moment; wait for it, or choose "
            "another place."
        ) from error
    if lock is not None:
        os.close(lock)


def remove(path: Path):
    if path.is_dir() and not path.is_symlink():
        # First: half of a repository must not look like one.
        (path / "config.json").unlink(missing_ok=True)
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
