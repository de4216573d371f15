"""Tasks as data: how an example becomes a context with blanks, and what answers them.

A task is a table entry or a small file of a user's own (`read_task`). Its patterns are lists of
parts, each tokenised by itself, as in the original (FACTS section 7 has the table):

    Pattern([Cut("{text_a}"), " Question:", " {text_b}", "? Answer:", "[MASK]", "."], ...)

An example is a flat dictionary, whose values the fields in braces name.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

Example = dict[str, Any]  # "text_a", "text_b", "label", or whatever columns a task names

# choices: the best of some answers (cloze), or a class (pooled classifier); answers: text to write.
Kind = Literal["choices", "answers"]


@dataclass(frozen=True)
class Cut:
    """A part that may be shortened where a text is too long."""

    text: str


Part = str | Cut


@dataclass(frozen=True)
class Pattern:
    """One way to write an example.

    context, second: the parts of the two sides between which the shortening is shared; the context
        is one after the other. "[MASK]" is a part of its own.
    answers: for "choices" what stands for each label, or what each choice says; for "answers" the
        answer of each blank. Fields are filled in as in the context; one that holds a list makes an
        answer of each entry.
    """

    context: Sequence[Part]
    answers: Sequence[str]
    second: Sequence[Part] = ()


@dataclass(frozen=True)
class Encoded:
    """An example as ids.

    context (S,): `[CLS]` ... `<|endoftext|>`, as long as the task's pattern makes it.
    answers: the ids of each choice as it is scored, or the answer of each blank; with the end token
        where the task learns it.
    label: the right choice; None where it is not known, and for "answers".
    """

    context: list[int]
    answers: list[list[int]]
    label: int | None = None
