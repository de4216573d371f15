"""Examples of a task: read from files or the Hub."""

import csv
import json
from collections.abc import Iterable
from itertools import chain
from pathlib import Path

from datasets import ClassLabel, Dataset, load_dataset
from tqdm import tqdm

from ..hub_repository.files import read_text
from .official import Official, Record
from .tasks import Task
from .templates import Example

# What splits are called in files, by their names on the Hub.
SPLITS = {
    "train": ("train",),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test",),
}
# Files of people's own data.
ENDINGS = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".source")


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
        ValueError: one sentence, for data that is not there, cannot be read, or lacks a column.
    """
    split = name_of_split(split)
    path = Path(source)
    rows: Iterable[Record]
    if path.exists():
        files = find_files(task, path, split)
        rows = chain.from_iterable(read_file(file, task.official) for file in files)
    else:
        rows = read_hub(task, str(source), split)
    examples = as_examples(task, rows, text_column, target_column)
    if to_learn and task.expand is not None:
        examples = task.expand(examples)
    if not examples:
        raise ValueError(f"{source} holds no examples of {split} for the task {task.name}.")
    columns = dict.fromkeys(chain.from_iterable(examples))  # of all, in the order they appear
    return Dataset.from_dict({name: [one.get(name) for one in examples] for name in columns})


def name_of_split(split: str) -> str:
    """The Hub's name of a split; one that has no other name is left as it is."""
    return next((name for name, others in SPLITS.items() if split in others), split)


def as_examples(
    task: Task,
    rows: Iterable[Record],
    text_column: str | None,
    target_column: str | None,
) -> list[Example]:
    """Rows as examples: as the task's data is published, or as they are."""
    asked = {"source": text_column, "target": target_column}
    renamed = {field: column for field, column in asked.items() if column is not None}
    examples: list[Example] = []
    for row in tqdm(rows, desc="Reading", leave=False):
        for field, column in renamed.items():
            if column not in row:
                raise ValueError(f"The data has no column {column}; it has {', '.join(row)}.")
            row = {**row, field: row[column]}
        examples += [row] if task.official is None else official_examples(task.official, row)
    return examples


def official_examples(official: Official, row: Record) -> list[Example]:
    try:
        return official.examples(row)
    except (KeyError, TypeError) as error:
        if "text_a" in row or "source" in row:
            return [row]  # of one's own data, under the names that the task uses
        raise ValueError(
            f"The data has no column {error}, with which it is published; it has {', '.join(row)}."
        ) from error


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


def read_file(file: Path, official: Official | None) -> Iterable[Record]:
    """The records of a file, by its ending."""
    if file.suffix == ".source":
        return read_pair(file)
    if file.suffix in (".csv", ".tsv"):
        return read_table(file, official.header if official is not None else ())
    if file.suffix == ".parquet":
        return Dataset.from_parquet(str(file))
    if file.suffix == ".txt" and official is not None and official.lines:
        return [{"text": line} for line in read_lines(file)]
    if file.suffix in (".jsonl", ".json", ".txt"):
        return read_json(file)
    raise ValueError(f"{file} is of no kind that is read; its ending must be {', '.join(ENDINGS)}.")


def read_lines(file: Path) -> list[str]:
    # Not splitlines, which finds ends of lines inside of texts, too.
    return read_text(file, largest=None).removesuffix("\n").split("\n")


def read_pair(file: Path) -> list[Record]:
    """A text on each line of the file, and what to write in the file beside it, if there is one."""
    sources = read_lines(file)
    beside = file.with_suffix(".target")
    if not beside.is_file():
        return [{"source": source} for source in sources]
    targets = read_lines(beside)
    if len(sources) != len(targets):
        raise ValueError(
            f"{file} has {len(sources)} lines and {beside.name} {len(targets)}; give each text its "
            "target."
        )
    return [
        {"source": source, "target": target}
        for source, target in zip(sources, targets, strict=True)
    ]


def read_table(file: Path, header: tuple[str, ...]) -> list[Record]:
    """A table with its columns in the first line, or, where published so, without."""
    with open(file, encoding="utf-8", newline="") as opened:
        if file.suffix == ".tsv":
            rows = list(csv.reader(opened, delimiter="\t", quoting=csv.QUOTE_NONE))
        else:
            rows = list(csv.reader(opened))
    if not rows or len(rows[0]) != len(header):
        header, rows = (tuple(rows[0]), rows[1:]) if rows else ((), [])
    for number, row in enumerate(rows):
        if len(row) != len(header):
            raise ValueError(
                f"Row {number} of {file} has {len(row)} columns, not {len(header)}; check the file."
            )
    return [dict(zip(header, row, strict=True)) for row in rows]


def read_json(file: Path) -> list[Record]:
    """A record on each line; or one document; or a list of records."""
    lines = [line for line in read_lines(file) if line.strip()]
    try:
        records = [json.loads(line) for line in lines]
    except ValueError:
        try:
            records = [json.loads("\n".join(lines))]
        except ValueError as error:
            raise ValueError(f"{file} holds something else than JSON: {error}.") from error
    if len(records) == 1 and isinstance(records[0], list):
        (records,) = records
    if not all(isinstance(record, dict) for record in records):
        raise ValueError(f"{file} must hold objects, one on each line; check the file.")
    return records


def read_hub(task: Task, source: str, split: str) -> Iterable[Record]:
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
    if not isinstance(feature, ClassLabel) or not set(feature.names) <= known:
        return rows
    names = dict(enumerate(feature.names))
    return ({**row, task.label: names.get(row[task.label])} for row in rows)
