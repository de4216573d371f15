"""A user's own task: a JSON file, or a Python file where a task takes more than that.

    {
      "kind": "choices",
      "context": "The review says: {text} It was [MASK].",
      "answers": [" bad", " great"],
      "label": "sentiment",
      "labels": ["neg", "pos"]
    }

    {
      "kind": "answers",
      "context": "The capital of {country} is [MASK], and its river is the [MASK].",
      "answers": ["{capital}", "{river}"]
    }

The keys are fields of `Task`, and of its one `Pattern`. Words in braces are columns of the data. A
context that is one string is tokenised as one text, as the tokenizer does it; a list of strings
part by part. Where it is too long the longest column is shortened.
"""

import json
import runpy
from pathlib import Path
from typing import Any

from .patterns import Pattern
from .task_table import TASKS
from .tasks import Task

# What each key of a JSON file must be: in words, and as Python has it.
KEYS: dict[str, tuple[str, tuple[type, ...]]] = {
    "name": ("a text", (str,)),
    "kind": ("choices or answers", (str,)),
    "context": ("a text, or a list of texts", (str, list)),
    "second": ("a list of texts", (list,)),
    "answers": ("a text, or a list of texts", (str, list)),
    "label": ("the name of a column", (str,)),
    "labels": ("a list with the label of each answer, or a list of its spellings", (list,)),
    "one_token": ("true or false", (bool,)),
    "max_length": ("a number of tokens", (int,)),
    "max_target_length": ("a number of tokens", (int,)),
    "metrics": ("a list of names", (list,)),
}
NEEDED = ("kind", "context", "answers")
TEXTS = ("context", "second", "answers", "metrics")  # whose lists hold texts


def read_task(name_or_file: str | Path) -> Task:
    """The task of this name in the table, or that a file describes.

    Args:
        name_or_file: a name in `TASKS`; a JSON file as above; or a Python file that sets `task` to
            a `Task`. The Python file is run: naming it is the word of the user whose it is.

    Raises:
        ValueError: one sentence, for a task that is not known and a file that is not right.
    """
    if str(name_or_file) in TASKS:
        return TASKS[str(name_or_file)]
    file = Path(name_or_file)
    if not file.is_file():
        raise ValueError(
            f"There is no task and no file {name_or_file}; the tasks are {', '.join(TASKS)}."
        )
    try:
        if file.suffix == ".py":
            return run_task(file)
        return task_of(read_entries(file), file.stem)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


def read_entries(file: Path) -> Any:
    """What a JSON file holds; what a program of Windows writes in front of it is no part of it."""
    try:
        return json.loads(file.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"A task is a JSON file, or a Python file that ends with .py; this is none: {error}."
        ) from error


def run_task(file: Path) -> Task:
    """What a Python file sets `task` to."""
    try:
        task = runpy.run_path(str(file)).get("task")
    except Exception as error:  # whatever is wrong with a user's program
        raise ValueError(f"The file does not run: {type(error).__name__}: {error}.") from error
    if not isinstance(task, Task):
        raise ValueError("The file must set task to a Task; write task = Task(...).")
    return task


def task_of(entries: Any, name: str) -> Task:
    """The task that the entries of a JSON file describe."""
    if not isinstance(entries, dict):
        raise ValueError("A task is an object with the keys " + ", ".join(KEYS) + ".")
    for key, value in entries.items():
        check_entry(key, value)
    missing = [key for key in NEEDED if key not in entries]
    if missing:
        raise ValueError(f"The key {missing[0]} is missing; it is {KEYS[missing[0]][0]}.")
    answers = entries.pop("answers")
    pattern = Pattern(
        context=entries.pop("context"),
        answers=[answers] if isinstance(answers, str) else answers,
        second=entries.pop("second", ()),
    )
    labels = entries.pop("labels", ())
    spellings = [label if isinstance(label, list) else [label] for label in labels]
    if "metrics" in entries:
        entries["metrics"] = tuple(entries["metrics"])
    return Task(
        **{
            "name": name,
            "patterns": (pattern,),
            "labels": tuple(map(tuple, spellings)),
            **entries,
        }
    )


def check_entry(key: str, value: Any) -> None:
    """Raise a ValueError for an unknown key, or a value that is not what `KEYS` asks for."""
    if key not in KEYS:
        raise ValueError(f"The key {key} is not known; choose of {', '.join(KEYS)}.")
    words, types = KEYS[key]
    right = type(value) in types
    if right and key in TEXTS and isinstance(value, list):
        right = bool(value) and all(isinstance(text, str) for text in value)
    if right and key == "labels":
        spelled = [label if isinstance(label, list) else [label] for label in value]
        right = bool(value) and all(
            labels and all(type(label) in (str, int, bool) for label in labels)
            for labels in spelled
        )
    if right and types == (int,):
        right = value > 0
    if not right:
        raise ValueError(f"The key {key} holds {json.dumps(value)}; it must be {words}.")
