"""`glm fill --data`: the blanks of the texts of a file, millions of them, on several devices.

The rows are cut into parts. Each is filled, its longest texts first, and written into a file of its
own that is there when it is whole; a run that was killed goes on with those that are missing.
Process r of n fills every n-th part, or its part of the model for all of them. In the end the parts
are put together in their order.
"""

import json
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm
from transformers import set_seed

from ..evaluation.model import find
from ..evaluation.record import check_new, digests
from ..hub_repository.files import write_json
from ..pipeline_glm import GLMText2TextGenerationPipeline
from ..training.options import LARGEST_SEED
from .options import OF_THE_PIPELINE, Filling
from .pipeline import open_pipeline
from .processes import begin, seed_of

ROWS = 1024  # of a part: enough that texts of like length meet, and not much to do again
ADDED = ("blanks", "filled_text")  # the columns with the answers
OF_ONE_TEXT = ("all", "allowed_answers", "json")
# May be others when a run goes on.
NOT_OF_THE_ANSWERS = {"output", "batch_size", "device", "tensor_parallel"}

Answers = dict[str, Any]  # of one text, the columns that are added


def fill_file(options: Filling) -> Path:
    """Write the rows of a file again, in their order, with the blanks of their texts filled.

    Returns:
        The file; each row has got `blanks`, a list of answers, and `filled_text`.

    Raises:
        ValueError: one sentence on what is wrong with the options, the file or a text, before any
            is filled.
    """
    check_options(options)
    assert options.data is not None and options.output is not None  # see check_options
    table = KINDS[Path(options.data).suffix](Path(options.data), options.text_column)
    check_new(options.output)
    state = begin()
    has_own_model = state.num_processes > 1 and not options.tensor_parallel
    if has_own_model and options.device is not None:
        raise ValueError("Each process takes a device of its own; leave out --device.")
    pipeline = open_pipeline(
        options.repository,
        options.dtype,
        state.device if has_own_model else options.device,
        options.quantize,
        options.tensor_parallel,
    )
    parts = Parts(Path(options.output))
    seed = seed_of(options)
    writes = has_own_model or state.is_main_process
    turn, turns = (state.process_index, state.num_processes) if has_own_model else (0, 1)
    rows = None
    if state.is_main_process:
        rows = check_texts(table, pipeline)
        parts.begin(key_of(options))
    state.wait_for_everyone()

    hidden = None if state.is_main_process else True  # None: where nobody sits at a terminal
    with tqdm(total=rows, desc="Filling", disable=hidden) as progress:
        for number, part in enumerate(table.parts()):
            is_of_others = number % turns != turn
            if is_of_others or parts.file(number).exists():
                progress.update(len(part))
                continue
            if seed is not None:  # a part draws for itself, whoever fills it
                set_seed((seed + number) % LARGEST_SEED)
            answers = fill_texts(pipeline, table.texts(part), options, progress)
            if writes:
                parts.write(number, table, part, answers)
    state.wait_for_everyone()
    if state.is_main_process:
        parts.join(table)
    state.wait_for_everyone()
    return parts.output


def fill_texts(
    pipeline: GLMText2TextGenerationPipeline,
    texts: Sequence[str],
    options: Filling,
    progress: tqdm,
) -> list[Answers]:
    """The answers to each text, in the texts' order; batches are of texts of like length."""
    order = sorted(range(len(texts)), key=lambda number: -len(texts[number]))
    given = {name: getattr(options, name) for name in OF_THE_PIPELINE}
    results = pipeline(
        (texts[number] for number in order),
        batch_size=options.batch_size,
        do_sample=options.sample,
        **{name: value for name, value in given.items() if value is not None},
    )
    answers: dict[int, Answers] = {}
    for number, (result,) in zip(order, results, strict=True):
        answers[number] = {name: result[name] for name in ADDED}
        progress.update()
    return [answers[number] for number in range(len(texts))]


# --- Before any is filled -------------------------------------------------------------------------


def check_options(options: Filling) -> None:
    if options.texts:
        raise ValueError("The texts are those of --data; leave that out, or those beside it.")
    for name in OF_ONE_TEXT:
        if getattr(options, name):
            option = f"--{name.replace('_', '-')}"
            raise ValueError(f"{option} is for single texts; leave it out beside --data.")
    if options.output is None:
        raise ValueError("There is no file for the answers; pass --output.")
    data, output = Path(str(options.data)), Path(options.output)
    if data.suffix not in KINDS or not data.is_file():
        endings = ", ".join(KINDS)
        raise ValueError(f"{data} is no file with one of the endings {endings}.")
    if output.suffix != data.suffix:
        raise ValueError(f"{output} gets rows as {data} has them; let it end with {data.suffix}.")


def check_texts(table: "Table", pipeline: GLMText2TextGenerationPipeline) -> int:
    """How many rows there are, all of whose texts can be filled."""
    rows = 0
    with tqdm(desc="Checking", disable=None) as progress:
        for part in table.parts():
            for text in table.texts(part):
                rows += 1
                check_text(text, f"Row {rows} of {table.file}", pipeline)
            progress.update(len(part))
    if not rows:
        raise ValueError(f"{table.file} holds no rows; check the data.")
    return rows


def check_text(text: Any, place: str, pipeline: GLMText2TextGenerationPipeline) -> None:
    if not isinstance(text, str):
        raise ValueError(f"{place} has {text!r} for a text; write one, or choose --text-column.")
    if not text.strip():  # it stays as it is
        return
    try:
        pipeline.check_readable(text)
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from None


def key_of(options: Filling) -> dict[str, Any]:
    """What the answers depend on: the options, the model and the data."""
    of_answers = {
        name: value for name, value in asdict(options).items() if name not in NOT_OF_THE_ANSWERS
    }
    files = digests(find(options.repository).folders, [str(options.data)])
    return {**of_answers, "rows_of_a_part": ROWS, "files": files}


# --- Kinds of files -------------------------------------------------------------------------------


class Table(ABC):
    """Rows in a file, which are read part by part.

    Args:
        column: the one with the texts.
    """

    def __init__(self, file: Path, column: str):
        self.file = file
        self.column = column

    @abstractmethod
    def parts(self) -> Iterator[Any]:
        """The rows, `ROWS` at a time."""

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
            while part := list(islice(lines, ROWS)):
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
            yield from file.iter_batches(batch_size=ROWS)

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


# --- What is finished -----------------------------------------------------------------------------


class Parts:
    """The filled parts, in a folder beside the output until all are there.

    Args:
        output: where the whole is in the end; the folder has `.parts` behind its name.
    """

    def __init__(self, output: Path):
        self.output = output
        self.folder = Path(f"{output}.parts")

    def file(self, number: int) -> Path:
        return self.folder / f"{number:08d}{self.output.suffix}"

    def begin(self, key: dict[str, Any]) -> None:
        """Go on with what is there.

        Args:
            key: what the answers depend on.

        Raises:
            ValueError: if what is there is of another key.
        """
        file = self.folder / "key.json"
        if not file.exists():
            self.folder.mkdir(exist_ok=True)
            write_json(file, key)
        elif json.loads(file.read_text(encoding="utf-8")) != key:
            raise ValueError(
                f"{self.folder} is of other options, data or another model; give the same as then, "
                "remove it, or choose another output."
            )

    def write(self, number: int, table: Table, part: Any, answers: Sequence[Answers]) -> None:
        unfinished = self.folder / f"{number:08d}.new"
        table.write(part, answers, unfinished)
        os.replace(unfinished, self.file(number))

    def join(self, table: Table) -> None:
        """Put the parts together, and remove them when the whole is there."""
        unfinished = self.folder / "whole.new"
        table.join(sorted(self.folder.glob(f"[0-9]*{self.output.suffix}")), unfinished)
        os.replace(unfinished, self.output)
        shutil.rmtree(self.folder)
