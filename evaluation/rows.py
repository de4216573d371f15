"""Log-probabilities of answers, a row for each: a context with a blank, then the answer's tokens.

    [CLS] The cat chased the [gMASK] <|endoftext|>   <|startofpiece|> dog
                                                          dog          s      what is scored

The original pads such rows on the right and tells the length of each context; so it is here.

Shapes: B batch, S tokens of a context, G tokens of an answer, T = S + G of the longest row.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from ..modeling_glm import GLMForConditionalGeneration
from ..tokenization_glm import IGNORED, GLMTokenizerFast
from .batches import Finished, in_order, run_in_batches
from .scoring import check_model, score_tokens


@dataclass(frozen=True)
class Row:
    """
    context (S,): ids, with the special tokens.
    blank: the column of the mask that is answered.
    answer (G,): ids; those from number `first` on are scored, the others only read.
    """

    context: list[int]
    blank: int
    answer: list[int]
    first: int = 0

    def __len__(self) -> int:
        return len(self.context) + len(self.answer)

    @property
    def scored(self) -> int:
        """How many tokens are scored."""
        return len(self.answer) - self.first


class RowScore(NamedTuple):
    """log_prob: of all scored tokens together; is_greedy: whether each is the most likely one."""

    log_prob: float
    is_greedy: bool


def make_batch(rows: Sequence[Row], tokenizer: GLMTokenizerFast) -> dict[str, torch.Tensor]:
    """Rows as the model reads them, padded on the right.

    Returns:
        input_ids (B, T); position_ids (B, 2, T), the place of the blank for all tokens of its
        answer (paper, section 2.2); attention_mask (B,), the lengths of the contexts; labels
        (B, T), what each position has to say, -100 where nothing is scored.
    """
    length = max(map(len, rows))
    ids, positions, labels = [], [], []
    for row in rows:
        padding = length - len(row)
        width, answered = len(row.context), len(row.answer)
        read, _ = tokenizer.pieces([row.answer], answered + padding)
        ids.append(row.context + read)
        positions.append(
            [
                [*range(width), *[row.blank] * answered, *[0] * padding],
                [*[0] * width, *range(1, answered + 1), *[0] * padding],
            ]
        )
        unscored = width + row.first
        labels.append(
            [IGNORED] * unscored + row.answer[row.first :] + [IGNORED] * padding,
        )
    return {
        "input_ids": torch.tensor(ids),
        "position_ids": torch.tensor(positions),
        "attention_mask": torch.tensor([len(row.context) for row in rows]),
        "labels": torch.tensor(labels),
    }


def score_batch(
    model: GLMForConditionalGeneration,
    tokenizer: GLMTokenizerFast,
    rows: Sequence[Row],
) -> list[RowScore]:
    """The scores of rows that fit into one forward pass, of a model in evaluation mode."""
    batch = make_batch(rows, tokenizer)
    labels = batch.pop("labels")
    is_scored = labels != IGNORED  # (B, T)
    numbers, columns = is_scored.nonzero(as_tuple=True)
    tokens = score_tokens(model, batch, numbers, columns, labels[is_scored])
    lengths = [row.scored for row in rows]
    return [
        RowScore(float(log_probs.sum()), bool(is_best.all()))
        for log_probs, is_best in zip(
            tokens.log_probs.split(lengths),
            tokens.is_best.split(lengths),
            strict=True,
        )
    ]


def score_rows(
    model: GLMForConditionalGeneration,
    tokenizer: GLMTokenizerFast,
    rows: Sequence[Row],
    batch_size: int = 16,
    name: str = "Scoring",
    finished: Finished | None = None,
) -> list[RowScore]:
    """The score of each row, in the rows' order; arguments of `score_as_they_come`."""
    return in_order(score_as_they_come(model, tokenizer, rows, batch_size, name, finished))


def score_as_they_come(
    model: GLMForConditionalGeneration,
    tokenizer: GLMTokenizerFast,
    rows: Sequence[Row],
    batch_size: int = 16,
    name: str = "Scoring",
    finished: Finished | None = None,
) -> Iterator[tuple[int, RowScore]]:
    """The number and the score of each row, with a progress bar.

    Args:
        model: on any device; it is left in the mode in which it was.
        name, finished: of `run_in_batches`.

    Raises:
        ValueError: for a model that cannot score, see `check_model`.
    """
    check_model(model)

    def run(part: list[Row]) -> list[RowScore]:
        return score_batch(model, tokenizer, part)

    lengths = [len(row) for row in rows]
    for number, score in run_in_batches(model, run, rows, lengths, batch_size, name, finished):
        yield number, RowScore(*score)  # a list, where it was kept as JSON


def standard_error(values: Iterable[float]) -> float | None:
    """Of the sum of independent values; None where one value tells of no spread."""
    numbers = torch.tensor(list(values), dtype=torch.float64)
    if len(numbers) < 2:
        return None
    return float(numbers.std() * len(numbers) ** 0.5)
