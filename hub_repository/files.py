"""Files of strangers: looked at before they are opened, and JSON read in one way."""

import hashlib
import json
import os
import stat
from pathlib import Path
from typing import NoReturn

from .errors import RepositoryError

# Bytes of the longest JSON file that is read; the largest tokenizer.json has a tenth of it.
LARGEST_JSON = 2**26
HASHED_AT_ONCE = 2**20  # bytes


def require_file(file: Path, largest: int | None = None) -> Path:
    """The file, if it is a regular one that can be read without waiting.

    Raises:
        RepositoryError: if it is missing, no regular file (a pipe would wait for ever, a link may
            lead to itself), or has more than `largest` bytes.
    """
    try:
        status = os.stat(file)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise RepositoryError(f"{file} cannot be read: {reason}.") from error
    if not stat.S_ISREG(status.st_mode):
        raise RepositoryError(f"{file} is no regular file; put the file itself in its place.")
    if largest is not None and status.st_size > largest:
        raise RepositoryError(
            f"{file} has {status.st_size} bytes, and {largest} are the most; is it the right file?"
        )
    return file


def read_text(
    file: Path,
    largest: int | None = LARGEST_JSON,
    newline: str | None = None,
) -> str:
    """The text of a file, without a byte order mark; `newline` is that of `open`."""
    require_file(file, largest)
    try:
        with open(file, encoding="utf-8-sig", newline=newline) as opened:
            return opened.read()
    except OSError as error:
        raise RepositoryError(f"{file} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise RepositoryError(f"{file} is no UTF-8 text: {error}.") from error


def read_json(file: Path) -> dict:
    """The object that a JSON file holds.

    Raises:
        RepositoryError: if it cannot be read, is too large or nested too deeply, or is no object.
    """
    text = read_text(file)
    try:
        content = json.loads(text, parse_constant=_refuse_constant)
    except RecursionError as error:
        raise RepositoryError(f"{file} is no JSON file: it is nested too deeply.") from error
    except ValueError as error:
        raise RepositoryError(f"{file} is no JSON file: {error}.") from error
    if not isinstance(content, dict):
        raise RepositoryError(f"{file} holds no JSON object.")
    return content


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def write_json(file: Path, content: dict):
    file.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


def hash_file(file: Path, largest: int | None = LARGEST_JSON) -> str:
    """SHA-256 of a regular file, of at most `largest` bytes."""
    digest = hashlib.sha256()
    with open(require_file(file, largest), "rb") as opened:
        while block := opened.read(HASHED_AT_ONCE):
            digest.update(block)
    return digest.hexdigest()
