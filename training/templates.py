"""Texts with fields in braces, which an example fills: `"{premise:lower_first,without_end}?"`.

Behind the colon stand filters, by their names in `FILTERS`, applied from left to right. Braces that
are text are doubled, as in `str.format`.
"""

import string
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

Example = dict[str, Any]  # "text_a", "text_b", "label", or whatever columns a task names
# A column of examples that are read to be learnt: where they stand, for messages.
PLACE = "place in the data"

# Curly quotes and the en dash, which the original turns into ASCII when it reads English data.
CURLY = str.maketrans({"“": '"', "”": '"', "‘": "'", "’": "'", "–": "-"})


def without_end(text: str) -> str:
    """Without the punctuation at its end."""
    return text.rstrip(string.punctuation)


def lower_first(text: str) -> str:
    """With a small first letter."""
    return text[:1].lower() + text[1:]


def plain_quotes(text: str) -> str:
    """With the quotes and dashes of ASCII."""
    return text.translate(CURLY)


def split(text: str) -> list[str]:
    """A text of several, with | between them (the extraction task)."""
    return text.split("|")


FILTERS: dict[str, Callable[[str], str | list[str]]] = {
    "lower_first": lower_first,
    "plain_quotes": plain_quotes,
    "right_strip": str.rstrip,
    "split": split,
    "strip": str.strip,
    "without_end": without_end,
}


@dataclass
class Filled:
    """A text whose fields are filled in, and where in it (start, end) their values are."""

    text: str = ""
    fields: list[tuple[int, int]] = field(default_factory=list)


def parse(template: str) -> list[tuple[str, str | None, list[str]]]:
    """The pieces of a template: words, then the field behind them and its filters, if there is one.

    Raises:
        ValueError: for braces without a partner, a field without a name, an unknown filter.
    """
    try:
        pieces = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ValueError(
            f"The text {template!r} has a brace without a partner; double one that is text."
        ) from error
    parsed = []
    for words, name, spec, _ in pieces:
        if name == "":
            raise ValueError(f"The text {template!r} has a field without a name; name a column.")
        filters = spec.split(",") if spec else []
        for known in filters:
            if known not in FILTERS:
                raise ValueError(
                    f"The text {template!r} has the filter {known}; choose of {', '.join(FILTERS)}."
                )
        parsed.append((words, name, filters))
    return parsed


def fill(template: str, example: Example) -> Filled:
    """The template, filled from one example.

    Raises:
        ValueError: for a field that the example does not have, or that holds nothing or a list.
    """
    for _, name, filters in parse(template):
        if name is not None and isinstance(read_field(name, filters, example), list):
            raise ValueError(f"The field {name} holds a list; only answers can be several texts.")
    return fill_each(template, example)[0]


def fill_each(template: str, example: Example) -> list[Filled]:
    """The template, filled once for each entry of the field that holds a list; else once."""
    pieces = [
        (words, None if name is None else read_field(name, filters, example))
        for words, name, filters in parse(template)
    ]
    lists = [value for _, value in pieces if isinstance(value, list)]
    if len(lists) > 1:
        raise ValueError(f"The text {template!r} has several fields with lists; use one.")
    return [fill_entry(pieces, entry) for entry in range(len(lists[0]) if lists else 1)]


def fill_entry(pieces: list[tuple[str, str | list[str] | None]], entry: int) -> Filled:
    """The words and the values of the fields, one behind the other."""
    filled = Filled()
    for words, value in pieces:
        filled.text += words
        if value is not None:
            start = len(filled.text)
            filled.text += value[entry] if isinstance(value, list) else value
            filled.fields.append((start, len(filled.text)))
    return filled


def read_field(name: str, filters: list[str], example: Example) -> str | list[str]:
    """The value of a field, through its filters; of a list, each entry."""
    if name not in example:
        columns = ", ".join(column for column in example if column != PLACE)
        raise ValueError(f"The data has no column {name}, which the task reads; it has {columns}.")
    value = example[name]
    if isinstance(value, (list, tuple)):
        texts = [through(filters, text_of(entry, name)) for entry in value]
        return [text for several in texts for text in as_list(several)]
    return through(filters, text_of(value, name))


def text_of(value: Any, name: str) -> str:
    """A value of the column `name` as a text."""
    if value is None or value != value:  # not a number: how tables say that nothing is there
        raise ValueError(f"The column {name} of an example holds nothing; give it a text.")
    if isinstance(value, (dict, list, tuple)):
        raise ValueError(
            f"The column {name} of an example holds {value!r}; give it a text, or a list of texts."
        )
    return str(value)


def as_list(value: str | list[str]) -> list[str]:
    return value if isinstance(value, list) else [value]


def through(filters: list[str], text: str) -> str | list[str]:
    value: str | list[str] = text
    for name in filters:
        if isinstance(value, list):
            value = [str(FILTERS[name](entry)) for entry in value]
        else:
            value = FILTERS[name](value)
    return value
