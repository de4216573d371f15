"""Tasks as data: how an example becomes a context with blanks, and what answers them.

A task is an entry of the table (`task_table.py`) or a small file of a user's own (`own_tasks.py`):
patterns (`patterns.py`), labels, limits, and the settings that the original published. An example
is a flat dictionary, whose values the fields of the patterns name.

Shapes: S tokens of the context, T of a row.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Literal, get_args

from ..tokenization_glm import IGNORED, MASKS, GLMTokenizerFast
from .metrics import GROUPED, METRICS, OF_LABELS
from .official import Official
from .patterns import MASK, SENTENCE, Cut, Pattern, Sides, encode_sides, ids_of_sides, join
from .templates import Example, fill, fill_each, parse

# choices: the best of some answers (cloze), or a class (pooled classifier); answers: text to write.
Kind = Literal["choices", "answers"]


@dataclass(frozen=True)
class Settings:
    """How the original fine-tuned on a task, and wrote its answers.

    origin: where the numbers come from.
    warmup: share of the steps.
    length_penalty, num_beams, min_length, no_repeat_ngram_size: of the beam search.
    """

    origin: str
    epochs: int
    learning_rate: float = 1e-5
    batch_size: int = 16
    warmup: float = 0.1
    weight_decay: float = 0.1
    label_smoothing: float = 0.0
    num_beams: int = 1
    length_penalty: float = 1.0
    min_length: int = 0
    no_repeat_ngram_size: int = 0


Label = str | int | bool
Spellings = tuple[Label, ...]

SMALL_NUMBER = re.compile("-?[0-9]{1,9}")

# For a task without published settings: those that most of the original's scripts share.
COMMON = Settings(origin="most of the original's config_tasks/task_*.sh", epochs=10)


@dataclass(frozen=True)
class Task:
    """What is asked, of which examples.

    name: as in the table, or of the file.
    patterns: ways to write an example, by their numbers in the original.
    pattern: the number of the one that is used where nobody chooses.
    labels: for each choice the values of the column `label` that mean it: as the original's files,
        the Hub and people spell it. Without labels that column holds the number of the choice.
    no_choice: values of that column for an example none of whose choices is right.
    one_token: the choices are one token each, and nothing ends them; else the end of the piece is
        scored with each choice.
    max_length: tokens of a whole sequence, context and longest answer; with `max_target_length`, of
        the context alone.
    max_target_length: tokens of all answers of an example, with their ends.
    cls, eos: whether `[CLS]` stands in front of the context, `<|endoftext|>` behind it.
    prepare: makes fields of an example that take more than a filter.
    official: how the data is read that a benchmark publishes.
    expand: makes the examples to learn from out of those that were read (mirrored copies, ...).
    slices: cuts documents into windows that fit with their question, for a tokenizer and
        `max_length`: SQuAD's texts are longer than what is read of them.
    pooled: what the pooled classifier reads. Where it names the field choice, it reads each choice,
        of `answers`, in a row of its own, and has one class.
    references: the column with all texts that are right, where these are more than the answers.
    group: the column that says which examples are of one question.
    metrics: names of `metrics.py`; the first says which checkpoint is the best. By default
        accuracy, or exact_match for answers.

    Raises:
        ValueError: one sentence, for a task that cannot be.
    """

    name: str
    kind: Kind
    patterns: tuple[Pattern, ...]
    pattern: int = 0
    label: str = "label"
    labels: tuple[Spellings, ...] = ()
    no_choice: Spellings = ()
    one_token: bool = False
    max_length: int | None = None
    max_target_length: int | None = None
    cls: bool = True
    eos: bool = True
    prepare: Callable[[Example], Example] | None = None
    official: Official | None = None
    expand: Callable[[list[Example]], list[Example]] | None = None
    slices: Callable[[Iterable[Example], GLMTokenizerFast, int], list[Example]] | None = None
    pooled: Pattern | None = None
    references: str | None = None
    group: str | None = None
    metrics: tuple[str, ...] = ()
    settings: Settings = COMMON

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            kinds = " or ".join(get_args(Kind))
            raise ValueError(f"The kind of the task {self.name} is {self.kind!r}; it is {kinds}.")
        if not self.metrics:
            metric = "accuracy" if self.kind == "choices" else "exact_match"
            object.__setattr__(self, "metrics", (metric,))
        check_metrics(self)
        check_labels(self)
        choose_pattern(self, None)
        for pattern in self.patterns:
            check_pattern(self, pattern)


@dataclass(frozen=True)
class Encoded:
    """An example as ids.

    context (S,): `[CLS]` ... `<|endoftext|>`, as long as the task's pattern makes it.
    answers: the ids of each choice as it is scored, or the answer of each blank; with the end token
        where the task learns it.
    label: the right choice; None where it is not known or none is right, and for "answers".
    """

    context: list[int]
    answers: list[list[int]]
    label: int | None = None


def encode(
    task: Task,
    example: Example,
    tokenizer: GLMTokenizerFast,
    pattern: int | None = None,
    max_length: int | None = None,
    max_target_length: int | None = None,
    with_answers: bool = True,
) -> Encoded:
    """An example as ids: one context, and the answers behind it.

    A context that is too long is shortened by the original's rule (FACTS section 7): the longer
    of the two sides loses the last token of its last `Cut` that has one, until they are equal, then
    both in turn. Where nothing of a `Cut` is left, the longest field loses its last token; masks
    and the pattern's own words stay. A mask that a `Cut` itself holds goes with its answer.

    Args:
        pattern: number of the pattern; by default the task's.
        max_length, max_target_length: instead of the task's.
        with_answers: whether the answers are to be there; without them only the context is made of
            a task of the kind "answers", as for examples that have none yet.

    Raises:
        ValueError: one sentence, for an example or a limit of which no right ids can be made.
    """
    chosen = choose_pattern(task, pattern)
    example = prepared(task, example)
    sides = encode_sides(chosen, example, tokenizer, task.cls, task.eos)
    limit = task.max_length if max_length is None else max_length
    if task.kind == "choices":
        answers = encode_choices(task, chosen, example, tokenizer)
        label = number_of_choice(task, example, len(answers))
        context = join(sides, tokenizer, limit, reserved=max(map(len, answers)))
        return Encoded(context, answers, label)
    target_limit = task.max_target_length if max_target_length is None else max_target_length
    answers = encode_answers(chosen, example, sides, tokenizer) if with_answers else []
    reserved = sum(map(len, answers)) if target_limit is None else 0
    context = join(sides, tokenizer, limit, reserved)
    blanks = sum(id in tokenizer.mask_token_ids for id in context)
    return Encoded(context, cut_answers(answers[:blanks], target_limit))


def encode_apart(
    task: Task,
    example: Example,
    tokenizer: GLMTokenizerFast,
    pattern: int | None = None,
    max_length: int | None = None,
) -> list[Encoded]:
    """Each choice of an example behind a context of its own, shortened for that choice alone.

    The original reads multi-token choices so; `encode` shortens once, for the longest.
    """
    chosen = choose_pattern(task, pattern)
    example = prepared(task, example)
    answers = encode_choices(task, chosen, example, tokenizer)
    label = number_of_choice(task, example, len(answers))
    limit = task.max_length if max_length is None else max_length
    sides = encode_sides(chosen, example, tokenizer, task.cls, task.eos)
    apart = []
    for answer in answers:
        context = join(sides, tokenizer, limit, reserved=len(answer))
        apart.append(Encoded(context, [answer], label))
    return apart


def encode_pooled(
    task: Task,
    example: Example,
    tokenizer: GLMTokenizerFast,
    max_length: int | None = None,
) -> list[Encoded]:
    """What the pooled classifier reads: `[CLS] a [SEP] b <|endoftext|>`, cut on the right.

    Returns:
        One for a task with classes, one for each choice of a task with choices (FACTS section 6);
        none has answers.
    """
    if task.pooled is None:
        raise ValueError(f"The task {task.name} has no pattern for the pooled classifier.")
    example = prepared(task, example)
    choices = texts_of_answers(task.pooled, example)
    label = number_of_choice(task, example, len(choices) or len(task.labels))
    limit = task.max_length if max_length is None else max_length
    rows = []
    for choice in choices or [""]:
        sides = encode_sides(task.pooled, {**example, "choice": choice}, tokenizer)
        *ids, eos = ids_of_sides(sides)
        rows.append(Encoded([*ids[: limit and limit - 1], eos], [], label))
    return rows


def row_to_learn(encoded: Encoded, tokenizer: GLMTokenizerFast) -> dict[str, list[int]]:
    """The whole row of an example with answers, as `GLMDataCollator` takes it.

    Returns:
        input_ids (T,): context, then the answers as they are read; labels (T,).
    """
    read, labels = tokenizer.pieces(encoded.answers)
    return {
        "input_ids": encoded.context + read,
        "labels": [IGNORED] * len(encoded.context) + labels,
    }


def choose_pattern(task: Task, number: int | None) -> Pattern:
    number = task.pattern if number is None else number
    if not 0 <= number < len(task.patterns):
        last = len(task.patterns) - 1
        raise ValueError(
            f"The task {task.name} has no pattern {number}; choose one of 0 to {last}."
        )
    return task.patterns[number]


def check_pattern(task: Task, pattern: Pattern) -> None:
    """Raise a ValueError for texts that cannot be filled in, and answers that do not fit."""
    parts = [*pattern.context, *pattern.second]
    if isinstance(pattern.context, str):
        if pattern.second or not (task.cls and task.eos):
            raise ValueError(
                f"The context of the task {task.name} is one text, which has no second side and "
                "both its ends; make it a list of parts."
            )
        parts = [pattern.context]
    texts = [part.text if isinstance(part, Cut) else part for part in parts]
    if not any(map(has_fields, texts)):
        raise ValueError(
            f"The context of the task {task.name} names no column; write one in braces, like "
            "{text}."
        )
    masks = sum(text.replace(SENTENCE, MASK).count(mask) for text in texts for mask in MASKS)
    if task.kind == "choices" and masks > 1:
        raise ValueError(
            f"The context of the task {task.name} has {masks} masks; choices need one, which they "
            "answer."
        )
    several = any(has_fields(answer) for answer in pattern.answers)
    if task.labels and not several and len(task.labels) != len(pattern.answers):
        raise ValueError(
            f"The task {task.name} has {len(task.labels)} labels and {len(pattern.answers)} "
            "answers; give each label an answer."
        )


def check_metrics(task: Task) -> None:
    """Raise a ValueError for metrics that do not fit what the task predicts."""
    of_labels = task.kind == "choices" and task.references is None
    known = [
        name
        for name in METRICS
        if (name in OF_LABELS) == of_labels and (name not in GROUPED or task.group is not None)
    ]
    for name in task.metrics:
        if name not in known:
            raise ValueError(
                f"The task {task.name} cannot be measured by {name}; choose of {', '.join(known)}."
            )


def check_labels(task: Task) -> None:
    """Raise a ValueError for labels that are nothing, and for one that means two choices."""
    if not all(isinstance(spellings, tuple) and spellings for spellings in task.labels):
        raise ValueError(
            f"A label of the task {task.name} has no spelling; give each a tuple of those that "
            "the data have."
        )
    known: list[Label] = []
    for label in (spelling for spellings in task.labels for spelling in spellings):
        if label == "":
            raise ValueError(f"A label of the task {task.name} is empty; give it a name.")
        if is_among(label, known):
            raise ValueError(
                f"The label {label!r} of the task {task.name} is there twice; give each answer "
                "its own."
            )
        known.append(label)


def has_fields(text: str) -> bool:
    return any(name is not None for _, name, _ in parse(text))


def prepared(task: Task, example: Example) -> Example:
    return task.prepare(example) if task.prepare is not None else example


# --- Answers --------------------------------------------------------------------------------------


def groups_of(task: Task, examples: Sequence[Example]) -> list[Any] | None:
    """Of which question each example is, for a task that asks it."""
    if task.group is None:
        return None
    if any(example.get(task.group) is None for example in examples):
        raise ValueError(
            f"The metrics of {task.name} need the column {task.group}, which tells the examples of "
            "one question."
        )
    return [example[task.group] for example in examples]


def texts_of_answers(pattern: Pattern, example: Example) -> list[str]:
    return [filled.text for answer in pattern.answers for filled in fill_each(answer, example)]


def encode_choices(
    task: Task,
    pattern: Pattern,
    example: Example,
    tokenizer: GLMTokenizerFast,
) -> list[list[int]]:
    """The ids of each choice as it is scored."""
    texts = texts_of_answers(pattern, example)
    # A choice of white space alone is none, as in the original, where it has no ids.
    choices = tokenizer.encode_choices([text if text.strip() else "" for text in texts])
    if not task.one_token:
        return [[*ids, tokenizer.eop_token_id] for ids in choices]
    for text, ids in zip(texts, choices, strict=True):
        if len(ids) > 1:
            pieces = ", ".join(tokenizer.convert_ids_to_tokens(ids))
            raise ValueError(
                f"The answer {text!r} of the task {task.name} is not one token but {pieces}; "
                "choose another word, or set one_token to false."
            )
    if len({ids[0] for ids in choices}) < len(choices):
        raise ValueError(
            f"Two of the answers {texts} of the task {task.name} are the same token; choose others."
        )
    return choices


def encode_answers(
    pattern: Pattern,
    example: Example,
    sides: Sides,
    tokenizer: GLMTokenizerFast,
) -> list[list[int]]:
    """The ids of the answer of each blank, with its end."""
    texts = texts_of_answers(pattern, example)
    context = ids_of_sides(sides)
    blanks = sum(id in tokenizer.mask_token_ids for id in context)
    if len(texts) != blanks:
        raise ValueError(
            f"A text has {blanks} masks and {len(texts)} answers; give each mask an answer."
        )
    spaces = None
    if isinstance(pattern.context, str):
        encoding = tokenizer(fill(pattern.context, example).text).encodings[0]
        spaces = tokenizer.spaces_before_masks(encoding)
    answers = tokenizer.encode_answers(context, texts, spaces)
    end = [tokenizer.eop_token_id]
    return [ids if text.strip() else end for text, ids in zip(texts, answers, strict=True)]


def cut_answers(answers: list[list[int]], limit: int | None) -> list[list[int]]:
    """The answers, cut to `limit` tokens together; a cut one has no end, as in the original."""
    if limit is None:
        return answers
    starts = [0, *accumulate(map(len, answers))][:-1]
    cut = [answer[: max(limit - before, 0)] for answer, before in zip(answers, starts, strict=True)]
    return [answer for answer in cut if answer]


def number_of_choice(task: Task, example: Example, choices: int) -> int | None:
    """Which of the choices is the right one, by the label of the example.

    Returns:
        None without a label (`is_labelled`), and where none is right.
    """
    value = example.get(task.label)
    if task.labels:
        numbers = [n for n, spellings in enumerate(task.labels) if is_spelled(value, spellings)]
        known = ", ".join(str(spellings[0]) for spellings in task.labels)
    else:
        number = as_number(value)
        numbers = [number] if number is not None and 0 <= number < choices else []
        known = f"the numbers 0 to {choices - 1}"
    if not numbers and (is_spelled(value, task.no_choice) or is_nothing(value)):
        return None
    if not numbers:
        raise ValueError(
            f"The column {task.label} of an example holds {value!r}; the task {task.name} knows "
            f"{known}."
        )
    if numbers[0] >= choices:
        raise ValueError(
            f"The label {value!r} of an example means choice {numbers[0]} of 0 to {choices - 1}; "
            "check the data."
        )
    return numbers[0]


def is_labelled(task: Task, example: Example) -> bool:
    """Whether it is known which choice is right, or that none is."""
    value = example.get(task.label)
    known = (*task.labels, task.no_choice)
    return not is_nothing(value) or any(is_spelled(value, spellings) for spellings in known)


def is_nothing(value: Any) -> bool:
    """Whether a column of labels is left empty, or says -1 as in the Hub's data."""
    return value is None or value == "" or as_number(value) == -1


def as_number(value: Any) -> int | None:
    """The number that a label is; of numpy or torch, or the text of a table, too."""
    if isinstance(value, str):
        return int(value) if SMALL_NUMBER.fullmatch(value) else None
    value = value.item() if hasattr(value, "item") else value
    return value if type(value) is int else None


def is_spelled(value: Any, spellings: Spellings) -> bool:
    """Whether a label is one of these, as it is, or as the number that it is."""
    return is_among(value, spellings) or is_among(as_number(value), spellings)


def is_among(value: Any, spellings: Sequence[Label]) -> bool:
    """As `in`, but that 1 is not True."""
    return any(type(value) is type(known) and value == known for known in spellings)
