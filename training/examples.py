"""Examples of a task: read from files or the Hub.

Each record, a line or a row, is read with its place in the data, which is told with whatever is
wrong with it.
"""

import csv
import json
import re
from bisect import bisect
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
from datasets import ClassLabel, Dataset, load_dataset
from tqdm import tqdm

from .official import Official, Record
from .tasks import Task
from .templates import PLACE, Example

# What splits are called in files, by their names on the Hub.
SPLITS = {
    "train": ("train",),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test",),
}
# Files of people's own data.
ENDINGS = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".source")
LONGEST_FIELD = 2**31 - 1  # of a CSV file: documents are longer than what the library allows

Placed = tuple[str, Record]  # where a record stands ("line 3 of train.jsonl"), and the record


def read_examples(
    task: Task,
    source: str | Path,
    split: str = "train",
    text_column: str | None = None,
    target_column: str | None = None,
    to_learn: bool = False,
) -> Dataset:
    """The examples of a split, with the columns that the task names.

    Args:
        source: the folder of a benchmark, as it is published; or one's own data with the columns
            that the task names: a file (JSON lines, CSV, TSV, parquet; or `.source`, with a line
            for each text, beside `.target`), a folder with such a file for each split, or the name
            of a dataset on the Hub, with its configuration behind a colon (`super_glue:boolq`).
        split: train, validation or test.
        text_column, target_column: the columns of what is read and of what is to be written, where
            they are not called source and target.
        to_learn: expand the examples into those that the original learns from (`Task.expand`).

    Raises:
        ValueError: one sentence, for data that is not there, cannot be read, or lacks a column; it
            names the file and the line.
    """
    examples = read_placed_examples(task, source, split, text_column, target_column, to_learn)
    columns = dict.fromkeys(chain.from_iterable(examples))  # of all, in the order they appear
    del columns[PLACE]
    places = [example[PLACE] for example in examples]
    return Dataset.from_dict(
        {name: column([one.get(name) for one in examples], name, places) for name in columns}
    )


def read_placed_examples(
    task: Task,
    source: str | Path,
    split: str = "train",
    text_column: str | None = None,
    target_column: str | None = None,
    to_learn: bool = False,
) -> list[Example]:
    """As `read_examples`, but each example says under `PLACE` where it stands in the data."""
    split = name_of_split(split)
    path = Path(source)
    records: Iterable[Placed]
    if path.exists():
        files = find_files(task, path, split)
        records = chain.from_iterable(read_file(file, task.official) for file in files)
    elif path.suffix in (*ENDINGS, ".txt"):
        raise ValueError(f"There is no file {source}; check its name.")
    else:
        records = read_hub(task, str(source), split)
    examples = as_examples(task, records, text_column, target_column)
    if to_learn and task.expand is not None:
        examples = expanded(task, examples)
    if not examples:
        raise ValueError(f"{source} holds no examples of {split} for the task {task.name}.")
    return examples


def name_of_split(split: str) -> str:
    """The Hub's name of a split; one that has no other name is left as it is."""
    return next((name for name, others in SPLITS.items() if split in others), split)


def as_examples(
    task: Task,
    records: Iterable[Placed],
    text_column: str | None,
    target_column: str | None,
) -> list[Example]:
    """Records as examples: as the task's data is published, or as they are."""
    asked = {"source": text_column, "target": target_column}
    renamed = {field: column for field, column in asked.items() if column is not None}
    examples: list[Example] = []
    for place, record in tqdm(records, desc="Reading", leave=False):
        try:
            record = with_names(record, renamed)
            found = [record] if task.official is None else official_examples(task.official, record)
            for example in found:
                check_references(task, example)
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from error
        examples += [{**example, PLACE: place} for example in found]
    return examples


def with_names(record: Record, renamed: dict[str, str]) -> Record:
    """The record with the values of some columns under the names that the task uses, too."""
    for column in renamed.values():
        if column not in record:
            raise ValueError(f"The data has no column {column}; it has {', '.join(record)}.")
    return {**record, **{field: record[column] for field, column in renamed.items()}}


def official_examples(official: Official, record: Record) -> list[Example]:
    try:
        return official.examples(record)
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        if "text_a" in record or "source" in record:
            return [record]  # of one's own data, under the names that the task uses
        if isinstance(error, KeyError):
            raise ValueError(
                f"The data has no column {error}, with which it is published; it has "
                f"{', '.join(record)}."
            ) from error
        raise ValueError(
            f"The data is not as it is published, but of other types: {error}."
        ) from error


def check_references(task: Task, example: Example) -> None:
    """Raise a ValueError for right texts that are no list, but one text, or nothing."""
    right = example.get(task.references or "", [])
    if not isinstance(right, list):
        raise ValueError(
            f"The column {task.references} holds {right!r}; it must hold a list of texts."
        )


def expanded(task: Task, examples: list[Example]) -> list[Example]:
    """The examples that the original learns from."""
    assert task.expand is not None  # see read_placed_examples
    try:
        return task.expand(examples)
    except KeyError as error:
        (name,) = error.args
        lacking = next(example for example in examples if name not in example)
        raise ValueError(
            f"{lacking[PLACE]}: The data has no column {name}, from which {task.name} is learnt."
        ) from error


def column(values: list[Any], name: str, places: list[str]) -> list[Any]:
    """The values of a column.

    Raises:
        ValueError: if they are of several types, which a table cannot hold.
    """
    if makes_column(values):
        return values
    first_wrong = bisect(range(len(values)), False, key=lambda n: not makes_column(values[: n + 1]))
    raise ValueError(
        f"{places[first_wrong]}: The column {name} holds {values[first_wrong]!r}, which is of "
        "another type than in the lines before; make them all of one."
    )


def makes_column(values: list[Any]) -> bool:
    try:
        pyarrow.array(values)
    except (pyarrow.ArrowException, OverflowError):
        return False
    return True


# --- Files and the Hub ----------------------------------------------------------------------------


def find_files(task: Task, folder: Path, split: str) -> list[Path]:
    """The files of a split: as the task's data is published, or of one's own; or this one file."""
    if not folder.is_dir():
        return [folder]
    pattern = task.official.files.get(split) if task.official is not None else None
    published = sorted(folder.glob(pattern)) if pattern is not None else []
    if published:
        return published
    own = [folder / (name + end) for name in SPLITS.get(split, (split,)) for end in ENDINGS]
    found = [file for file in own if file.is_file()]
    if not found:
        wanted = f"{split}.jsonl" if pattern is None else f"{pattern} or {split}.jsonl"
        endings = ", ".join(ENDINGS)
        raise ValueError(f"{folder} has no file for {split}; put {wanted} there, or {endings}.")
    return found[:1]


def read_file(file: Path, official: Official | None) -> Iterable[Placed]:
    """The records of a file, by its ending."""
    if file.suffix == ".source":
        return read_pair(file)
    if file.suffix in (".csv", ".tsv"):
        return read_table(file, official.header if official is not None else ())
    if file.suffix == ".parquet":
        return read_parquet(file)
    if file.suffix == ".txt" and official is not None and official.lines:
        return [(place(file, n), {"text": text}) for n, text in enumerate(read_lines(file), 1)]
    if file.suffix in (".jsonl", ".json", ".txt"):
        return read_json(file)
    raise ValueError(f"{file} is of no kind that is read; its ending must be {', '.join(ENDINGS)}.")


def place(file: Path, number: int, kind: str = "Line") -> str:
    return f"{kind} {number} of {file}"


def read_lines(file: Path) -> list[str]:
    """The lines of a text; what a program of Windows writes in front of it is no part of it."""
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        number = error.object.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{place(file, number)} is not UTF-8; save the file as UTF-8.") from error
    # Not splitlines, which finds ends of lines inside of texts, too.
    lines = re.split("\r\n|\r|\n", text)
    return lines if lines[-1] else lines[:-1]


def read_pair(file: Path) -> list[Placed]:
    """A text on each line of the file, and what to write in the file beside it, if there is one."""
    sources = read_lines(file)
    records = [{"source": source} for source in sources]
    beside = file.with_suffix(".target")
    if beside.is_file():
        targets = read_lines(beside)
        if len(sources) != len(targets):
            raise ValueError(
                f"{file} has {len(sources)} lines and {beside.name} {len(targets)}; give each text "
                "its target."
            )
        for record, target in zip(records, targets, strict=True):
            record["target"] = target
    return [(place(file, n), record) for n, record in enumerate(records, 1)]


def read_table(file: Path, published: tuple[str, ...]) -> list[Placed]:
    """A table with its columns in the first line.

    Args:
        published: the columns, where the file is published without that line.
    """
    rows = read_rows(file)
    if not rows:
        return []
    _, first = rows[0]
    header = published
    if len(first) != len(published) or set(first) == set(published):
        header, rows = tuple(first), rows[1:]
    twice = [name for number, name in enumerate(header) if name in header[:number]]
    if twice:
        raise ValueError(f"{file} has two columns {twice[0]!r}; give each another name.")
    for number, row in rows:
        if len(row) != len(header):
            raise ValueError(
                f"{place(file, number)} has {len(row)} columns, not {len(header)}; put texts with "
                "a separator in them into quotes."
            )
    return [(place(file, number), dict(zip(header, row, strict=True))) for number, row in rows]


def read_rows(file: Path) -> list[tuple[int, list[str]]]:
    """The rows of a table that are not blank, each with the number of its first line."""
    lines = [line + "\n" for line in read_lines(file)]
    if file.suffix == ".tsv":
        reader = csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
    else:
        reader = csv.reader(lines, strict=True)
    usual = csv.field_size_limit(LONGEST_FIELD)
    rows = []
    number = 1
    try:
        for row in reader:
            if row:
                rows.append((number, row))
            number = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(
            f"The row at line {number} of {file} cannot be read: {error}; check its quotes."
        ) from error
    finally:
        csv.field_size_limit(usual)
    return rows


def read_parquet(file: Path) -> list[Placed]:
    try:
        rows = pyarrow.parquet.read_table(file).to_pylist()
    except pyarrow.ArrowException as error:
        raise ValueError(f"{file} is no parquet file: {error}") from error
    return [(place(file, number, "Row"), row) for number, row in enumerate(rows, 1)]


def read_json(file: Path) -> list[Placed]:
    """A record on each line; or one document; or a list of records."""
    lines = read_lines(file)
    if is_document(lines):
        values = [(str(file), parse_json("\n".join(lines), file))]
    else:
        values = [
            (place(file, number), parse_json(line, file, number))
            for number, line in enumerate(lines, 1)
            if line.strip()
        ]
    if len(values) == 1 and isinstance(values[0][1], list):
        ((_, entries),) = values
        values = [(place(file, n, "Entry"), entry) for n, entry in enumerate(entries, 1)]
    for where, value in values:
        if not isinstance(value, dict):
            raise ValueError(
                f"{where} holds {shortened(value)}; it must hold an object, with a value for each "
                "column."
            )
    return values


def is_document(lines: list[str]) -> bool:
    """Whether a JSON file is one value over many lines: then the first of them leaves it open."""
    first = next((line for line in lines if line.strip()), "")
    return first.rstrip().endswith(("{", "[", ",", ":"))


def parse_json(text: str, file: Path, number: int = 1) -> Any:
    """The value of a text that begins on this line of the file."""
    try:
        value = json.loads(text)
        if "\\ud" in text.lower():  # half of a pair of these is no character
            json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        where = place(file, number + error.lineno - 1)
        raise ValueError(f"{where} is not JSON: {error.msg} (character {error.colno}).") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{place(file, number)} is not JSON that can be read: {error}.") from error
    return value


def shortened(value: Any) -> str:
    """A value in a few letters."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else f"{text[:37]}..."


def read_hub(task: Task, source: str, split: str) -> Iterator[Placed]:
    """The rows of a dataset on the Hub, with labels by their names where the task knows these."""
    name, _, configuration = source.partition(":")
    try:
        rows = load_dataset(name, configuration or None, split=split)
    except Exception as error:  # the library has a dozen kinds; the first cause says what it is
        raise ValueError(
            f"{source} is neither a file or folder nor a dataset that the Hub gives: "
            f"{error.__cause__ or error}"
        ) from error
    feature = rows.features.get(task.label)
    known = {spelling for spellings in (*task.labels, task.no_choice) for spelling in spellings}
    names: dict[int, str] = {}
    if isinstance(feature, ClassLabel) and set(feature.names) <= known:
        names = dict(enumerate(feature.names))
    for number, row in enumerate(rows, 1):
        if names:
            row = {**row, task.label: names.get(row[task.label])}
        yield f"Row {number} of {source}", row
