"""The record of an evaluation: its numbers with all that they depend on, kept while it runs."""

import glob
import json
import os
import platform
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from .. import __version__
from ..hub_repository.files import hash_file
from ..training.options import Options
from .batches import Finished

# Options that only say where something is written.
PLACES = ("output", "predictions")
# Name under which a run keeps where it writes predictions; no task can have it.
PREDICTIONS = "--predictions"
LIBRARIES = ("torch", "transformers", "tokenizers", "accelerate", "datasets", "lm_eval")


@dataclass(frozen=True)
class Measure:
    """One number.

    error: its standard error, None where the sample tells of none.
    count: of how many `of`, for example texts.
    """

    task: str
    metric: str
    value: float
    error: float | None
    count: int
    of: str


def depends_on(
    options: Options,
    folders: Iterable[Path],
    files: Iterable[str | Path],
) -> dict[str, Any]:
    """What numbers depend on.

    Args:
        options: what a command was told.
        folders: of the model, and of its adapter.
        files: with the data.
    """
    told = {name: value for name, value in asdict(options).items() if name not in PLACES}
    return {
        "options": told,
        "versions": versions(),
        "sha256": digests(folders, files),
    }


def versions() -> dict[str, str]:
    """Of the package, of Python, and of the libraries that are installed."""
    found = {"glm-transformers": __version__, "python": platform.python_version()}
    for library in LIBRARIES:
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            continue
    return found


def digests(folders: Iterable[Path], files: Iterable[str | Path]) -> dict[str, str]:
    """SHA-256 of what a number depends on: the model's files, and those with the data."""
    parts: list[Path] = []
    for folder in folders:
        parts += sorted([*folder.glob("*.json"), *folder.glob("*.safetensors")])
    return {str(file): hash_file(file, largest=None) for file in [*parts, *map(Path, files)]}


def write_record(output: str | Path, record: dict[str, Any]) -> None:
    """Write the numbers and all that they depend on, as JSON; all of it or nothing."""
    write_whole(output, f"{json.dumps(record, indent=2, sort_keys=True)}\n")


def write_whole(file: str | Path, text: str) -> None:
    """Write a text beside the file's name, and move it there when it is whole."""
    unfinished = Path(f"{file}.new")
    unfinished.write_text(text, encoding="utf-8")
    os.replace(unfinished, file)


def check_new(file: str | Path) -> None:
    """Raise a ValueError, before any work, for a file that cannot be written or is there."""
    if Path(file).exists():
        raise ValueError(f"{file} exists already; choose another file.")
    if not Path(file).parent.is_dir():
        raise ValueError(f"{Path(file).parent} is no folder; make it, or choose another.")


def file_of_parts(output: str | Path) -> Path:
    """Where a run keeps what it has finished until the record is there."""
    return Path(f"{output}.parts")


def is_begun(output: str | Path | None) -> bool:
    """Whether a run was killed before its record was there."""
    return output is not None and file_of_parts(output).exists()


def file_of_answers(output: str) -> str:
    """Where the harness keeps what it knows until the record is there, without its own ending."""
    return f"{output}.answers"


class FinishedParts(Finished):
    """Results of finished batches, in a file beside the record, a line for each.

    The harness keeps its answers in files of its own, see `file_of_answers`.

    Args:
        output: the file of the record; for the other see `file_of_parts`.
        key: what the results depend on.

    Raises:
        ValueError: if there is a record already, or if what is kept is of another key.
    """

    def __init__(self, output: str | Path, key: dict[str, Any]):
        self.output = Path(output)
        self.file = file_of_parts(output)
        self.results: dict[tuple[str, int], list] = {}
        check_new(output)
        self.key = json.dumps(key, sort_keys=True)
        if not self.file.exists():
            return
        kept, *lines = self.file.read_text(encoding="utf-8").split("\n")
        whole = lines[:-1]  # what follows the last line end was cut by a kill
        if kept != self.key:
            if whole or self.files_of_answers():
                raise ValueError(
                    f"{self.file} is of an evaluation with other options, files or versions; give "
                    "the same as then, remove it, or choose another output."
                )
            self.file.unlink()  # nothing was finished
            return
        write_whole(self.file, "\n".join([kept, *whole, ""]))
        for line in whole:
            name, number, results = json.loads(line)
            self.results[name, number] = results

    def begin(self) -> None:
        if not self.file.exists():
            write_whole(self.file, f"{self.key}\n")

    def get(self, name: str, number: int) -> list | None:
        return self.results.get((name, number))

    def add(self, name: str, number: int, results: list) -> None:
        self.begin()
        with open(self.file, "a", encoding="utf-8") as file:
            file.write(f"{json.dumps([name, number, results])}\n")

    def complete(self, record: dict[str, Any]) -> None:
        """Write the record, and remove what was kept for it."""
        write_record(self.output, record)
        self.file.unlink(missing_ok=True)
        for file in self.files_of_answers():
            file.unlink()

    def files_of_answers(self) -> list[Path]:
        """Where the harness keeps what it knows: its library adds an ending of its own."""
        name = glob.escape(file_of_answers(self.output.name))
        return sorted(self.output.parent.glob(f"{name}*"))
