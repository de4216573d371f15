"""Patterns: the parts of a context, tokenised one by one, shortened where they are too long.

    Pattern([Cut("{text_a}"), " Question:", Cut(" {text_b}"), "? Answer:", MASK, "."])

The parts are texts with fields (`templates.py`). Each is tokenised by itself, and the ids are
joined, as in the original (FACTS section 7).

Shapes: S tokens of the context.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from ..tokenization_glm import MASKS, GLMTokenizerFast
from .templates import Example, fill

MASK = "[MASK]"
# The first of these masks that the model knows: the original asks the models that were trained with
# several masks for a sentence, to write the answers of its seq2seq tasks (FACTS section 8).
SENTENCE = "[sMASK]|[MASK]"
SEPARATOR = "[SEP]"


@dataclass(frozen=True)
class Cut:
    """A part that is shortened, before all others, where a text is too long.

    text: as in every part.
    keep: which end of it stays.
    around: a text, with fields; what stays is a window with its first occurrence in the middle, or
        the start where it does not occur.
    """

    text: str
    keep: Literal["start", "end"] = "start"
    around: str | None = None


Part = str | Cut


@dataclass(frozen=True)
class Pattern:
    """One way to write an example.

    context, second: the parts of the two sides between which the shortening is shared; the context
        is one after the other. A mask is a part of its own: MASK, SENTENCE, or another mask of the
        tokenizer. A context that is one string is tokenised as one text, its masks too.
    answers: for "choices" what stands for each label, or what each choice says, exactly as it is
        to be scored; for "answers" the answer of each blank, which gets the space in front of it
        that its mask swallowed, if it does not begin with one. Fields are filled in as in the
        context; one that holds a list makes an answer of each entry.
    """

    context: str | Sequence[Part]
    answers: Sequence[str] = ()
    second: Sequence[Part] = ()


# --- Ids ------------------------------------------------------------------------------------------


@dataclass
class Segment:
    """Ids of a context that are shortened alike.

    cut: the part they are of, if that is a `Cut`.
    field: whether they come from the example; else they are the pattern's words, which stay.
    middle: the place around which a window is to stay.
    """

    ids: list[int]
    cut: Cut | None = None
    field: bool = False
    middle: int | None = None

    def shorten(self, length: int) -> None:
        """Leave `length` ids, or a few less at the end of a window."""
        if length == len(self.ids):
            return
        if self.middle is not None:
            start = max(self.middle - length // 2, 0)
            self.ids = self.ids[start : start + length]
        elif self.cut is not None and self.cut.keep == "end":
            self.ids = self.ids[len(self.ids) - length :]
        else:
            self.ids = self.ids[:length]


Sides = tuple[list[Segment], list[Segment]]


def encode_sides(
    pattern: Pattern,
    example: Example,
    tokenizer: GLMTokenizerFast,
    cls: bool = True,
    eos: bool = True,
) -> Sides:
    """The segments of the two sides of a context, `[CLS]` and `<|endoftext|>` among them."""
    if isinstance(pattern.context, str):
        return encode_text(pattern.context, example, tokenizer, special_tokens=True), []
    first = [Segment([tokenizer.cls_token_id])] if cls else []
    last = [Segment([tokenizer.eos_token_id])] if eos else []
    return (
        first + encode_parts(pattern.context, example, tokenizer),
        encode_parts(pattern.second, example, tokenizer) + last,
    )


def encode_parts(
    parts: Sequence[Part],
    example: Example,
    tokenizer: GLMTokenizerFast,
) -> list[Segment]:
    segments = []
    for part in parts:
        special = special_id(part, tokenizer)
        if special is not None:
            segments.append(Segment([special]))
        elif isinstance(part, Cut):
            segments.append(encode_cut(part, example, tokenizer))
        else:
            segments += encode_text(part, example, tokenizer)
    return segments


def special_id(part: Part, tokenizer: GLMTokenizerFast) -> int | None:
    """The id of a part that is a token: a mask, or `[SEP]`."""
    if part == SEPARATOR:
        return tokenizer.sep_token_id
    if isinstance(part, Cut) or not set(part.split("|")) <= set(MASKS):
        return None
    for mask in part.split("|"):
        if mask in tokenizer.masks:
            return tokenizer.mask_token_ids[tokenizer.masks.index(mask)]
    known = ", ".join(tokenizer.masks)
    raise ValueError(f"The model has no {part}; the masks it was trained with: {known}.")


def encode_cut(cut: Cut, example: Example, tokenizer: GLMTokenizerFast) -> Segment:
    ids = ids_of(fill(cut.text, example).text, tokenizer)
    middle = None
    if cut.around is not None:
        middle = first_occurrence(ids_of(fill(cut.around, example).text, tokenizer), ids)
    return Segment(ids, cut, middle=middle)


def encode_text(
    template: str,
    example: Example,
    tokenizer: GLMTokenizerFast,
    special_tokens: bool = False,
) -> list[Segment]:
    """One text, as segments of fields and of words in turn; a mask is always a word."""
    filled = fill(template, example)
    if not special_tokens and not filled.text.strip():
        return []  # as in the original, where white space alone has no ids
    encoded = tokenizer(filled.text, add_special_tokens=special_tokens)
    masks = set(tokenizer.mask_token_ids)
    segments: list[Segment] = []
    last = None
    for id, (start, end) in zip(encoded.input_ids, encoded.encodings[0].offsets, strict=True):
        field = None
        if start < end and id not in masks:
            field = next((span for span in filled.fields if span[0] < end <= span[1]), None)
        if not segments or field != last:
            segments.append(Segment([], field=field is not None))
        segments[-1].ids.append(id)
        last = field
    return segments


def ids_of(text: str, tokenizer: GLMTokenizerFast) -> list[int]:
    """The ids of a text; white space alone has none, as in the original."""
    return tokenizer(text, add_special_tokens=False).input_ids if text.strip() else []


def first_occurrence(part: list[int], ids: list[int]) -> int | None:
    """Where `part` begins in `ids`."""
    if not part:
        return None
    starts = range(len(ids) - len(part) + 1)
    return next((start for start in starts if ids[start : start + len(part)] == part), None)


def copy_of(sides: Sides) -> Sides:
    first, second = sides
    return (
        [replace(part, ids=[*part.ids]) for part in first],
        [replace(part, ids=[*part.ids]) for part in second],
    )


def join(
    sides: Sides,
    tokenizer: GLMTokenizerFast,
    limit: int | None,
    reserved: int = 0,
) -> list[int]:
    """The ids of a context, shortened to `limit` less what is reserved for answers.

    The sides stay as they are.
    """
    if limit is not None:
        sides = copy_of(sides)
        shorten(sides, limit, reserved)
    ids = ids_of_sides(sides)
    tokenizer.check_no_commands(ids, "A text")
    if not set(ids) & set(tokenizer.mask_token_ids):
        masks = " or ".join(tokenizer.masks)
        within = "" if limit is None else f" within {limit} tokens"
        more = "" if limit is None else ", or allow more tokens"
        raise ValueError(
            f"A text has no mask{within}; write {masks} where the answer belongs{more}."
        )
    return ids


def ids_of_sides(sides: Sides) -> list[int]:
    return [id for side in sides for segment in side for id in segment.ids]


def shorten(sides: Sides, limit: int, reserved: int) -> None:
    """Shorten in place: first what is a `Cut`, then the longest fields."""
    total = len(ids_of_sides(sides))
    excess = total + reserved - limit
    if excess <= 0:
        return
    cuts = [[segment for segment in side if segment.cut is not None] for side in sides]
    first, second = (sum(len(segment.ids) for segment in side) for side in cuts)
    taken = min(excess, first + second)
    # The longer side is brought to the length of the other; then both lose in turn, the second one
    # before the first.
    to_even = min(taken, abs(first - second))
    of_first = (taken - to_even) // 2 + (to_even if first > second else 0)
    take_from_last(cuts[0], of_first)
    take_from_last(cuts[1], taken - of_first)

    fields = [segment for side in sides for segment in side if segment.field]
    for _ in range(excess - taken):
        longest = max(fields, key=lambda segment: len(segment.ids), default=None)
        if longest is None or not longest.ids:
            words = len(ids_of_sides(sides))
            raise ValueError(
                f"The words of the pattern take {words} tokens and the answer {reserved}, of "
                f"{limit} that a text may have; allow more, or shorten the answer."
            )
        longest.ids.pop()


def take_from_last(segments: list[Segment], count: int) -> None:
    """Take tokens out of the last segment that has some, until `count` are gone."""
    for segment in reversed(segments):
        taken = min(count, len(segment.ids))
        segment.shorten(len(segment.ids) - taken)
        count -= taken
