"""Files with rows, one column of which holds texts: JSON lines and parquet.

They are read in parts, and the parts written again with the answers to the texts' blanks.
"""

import json
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

ADDED = ("blanks", "filled_text")  # the columns with the answers

Answers = dict[str, Any]  # of one text, the columns that are added


class Table(ABC):
    """Rows in a file, which are read part by part.

    Args:
        column: the one with the texts.
        rows: of a part, at most.
    """

    def __init__(self, file: Path, column: str, rows: int):
        self.file = file
        self.column = column
        self.rows = rows

    @abstractmethod
    def parts(self) -> Iterator[Any]:
        """The rows of the file, in parts that `texts` and `write` take."""

    @abstractmethod
    def texts(self, part: Any) -> list[Any]:
        """The texts of a part.

        Raises:
            ValueError: for rows without them, or with columns of the names that are added.
        """

    @abstractmethod
    def write(self, part: Any, answers: Sequence[Answers], file: Path) -> None:
        """The rows of a part with their answers."""

    @abstractmethod
    def join(self, parts: Iterable[Path], file: Path) -> None:
        """One file of those of all parts."""

    def check_columns(self, names: Iterable[str]) -> None:
        names = list(names)
        if self.column not in names:
            found = ", ".join(names)
            raise ValueError(
                f"{self.file} has no column {self.column}; choose --text-column from {found}."
            )
        for name in ADDED:
            if name in names:
                raise ValueError(f"{self.file} has a column {name} already; rename it.")


class JSONLines(Table):
    """An object a line; a part is a list of lines."""

    def parts(self) -> Iterator[list[str]]:
        with open(self.file, encoding="utf-8") as file:
            lines = (line for line in file if line.strip())
            while part := list(islice(lines, self.rows)):
                yield part

    def texts(self, part: list[str]) -> list[Any]:
        rows = [self._row(line) for line in part]
        for row in rows:
            self.check_columns(row)
        return [row[self.column] for row in rows]

    def write(self, part: list[str], answers: Sequence[Answers], file: Path) -> None:
        rows = ({**self._row(line), **more} for line, more in zip(part, answers, strict=True))
        lines = (f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows)
        file.write_text("".join(lines), encoding="utf-8")

    def join(self, parts: Iterable[Path], file: Path) -> None:
        with open(file, "wb") as whole:
            for part in parts:
                with open(part, "rb") as lines:
                    shutil.copyfileobj(lines, whole)

    def _row(self, line: str) -> dict[str, Any]:
        try:
            return dict(json.loads(line))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{self.file} has the line {line[:60]!r}, no JSON object.") from error


class Parquet(Table):
    """A part is a batch of pyarrow."""

    def parts(self) -> Iterator[Any]:
        from pyarrow.parquet import ParquetFile

        with ParquetFile(self.file) as file:
            yield from file.iter_batches(batch_size=self.rows)

    def texts(self, part: Any) -> list[Any]:
        self.check_columns(part.schema.names)
        return part.column(self.column).to_pylist()

    def write(self, part: Any, answers: Sequence[Answers], file: Path) -> None:
        import pyarrow
        from pyarrow.parquet import write_table

        text = pyarrow.string()
        schema = pyarrow.schema([("blanks", pyarrow.list_(text)), ("filled_text", text)])
        added = pyarrow.Table.from_pylist(list(answers), schema)
        table = pyarrow.Table.from_batches([part])
        for name in ADDED:
            table = table.append_column(added.schema.field(name), added.column(name))
        write_table(table, file)

    def join(self, parts: Iterable[Path], file: Path) -> None:
        from pyarrow.parquet import ParquetWriter, read_schema, read_table

        files = list(parts)
        with ParquetWriter(file, read_schema(files[0])) as whole:
            for part in files:
                whole.write_table(read_table(part))


KINDS: dict[str, type[Table]] = {".jsonl": JSONLines, ".json": JSONLines, ".parquet": Parquet}
