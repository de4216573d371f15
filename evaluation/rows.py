"""Log-probabilities of answers, a row for each: a context with a blank, then the answer's tokens.

    [CLS] The cat chased the [gMASK] <|endoftext|>   <|startofpiece|> dog
                                                          dog          s      what is scored

The original pads such rows on the right and tells the length of each context; so it is here.

Shapes: B batch, S tokens of a context, G tokens of an answer, T = S + G of the longest row, R
scored tokens, H hidden size, V vocabulary.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from tqdm.auto import tqdm

from ..modeling_glm import GLMForConditionalGeneration
from ..tokenization_glm import IGNORED, GLMTokenizerFast

# Tokens whose logits are computed at once: (1024, 50304) in float32 are 206 MB.
TOKENS_AT_ONCE = 1024


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


class TokenScores(NamedTuple):
    """Of R tokens: log_probs (R,), logits (R,), and is_best (R,), whether none is more likely."""

    log_probs: torch.Tensor
    logits: torch.Tensor
    is_best: torch.Tensor


class Finished:
    """The scores of batches that need not be computed, by name and number; here there are none.

    `evaluation.record.FinishedParts` keeps them in a file.
    """

    answers: str | None = None  # where lm-evaluation-harness keeps what it knows

    def get(self, name: str, number: int) -> list[RowScore] | None:
        return None

    def add(self, name: str, number: int, scores: list[RowScore]) -> None:
        pass


def continuation_mask(tokenizer: GLMTokenizerFast) -> str:
    """The mask whose answer continues a text: [gMASK] if the model knows it (FACTS section 9)."""
    return "[gMASK]" if "[gMASK]" in tokenizer.masks else "[MASK]"


def continuation_mask_id(tokenizer: GLMTokenizerFast) -> int:
    return tokenizer.mask_token_ids[tokenizer.masks.index(continuation_mask(tokenizer))]


def encode(tokenizer: GLMTokenizerFast, text: str) -> list[int]:
    """The ids of a text without special tokens, however long it is."""
    return tokenizer(text, add_special_tokens=False, verbose=False).input_ids


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


@torch.inference_mode()
def score_batch(
    model: GLMForConditionalGeneration,
    tokenizer: GLMTokenizerFast,
    rows: Sequence[Row],
) -> list[RowScore]:
    """The scores of rows that fit into one forward pass."""
    batch = make_batch(rows, tokenizer)
    batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
    labels = batch.pop("labels")
    states = model.glm(**batch, use_cache=False).last_hidden_state  # (B, T, H)
    is_scored = labels != IGNORED  # (B, T)
    tokens = score_states(model, states[is_scored], labels[is_scored])
    lengths = [row.scored for row in rows]
    return [
        RowScore(float(log_probs.sum()), bool(is_best.all()))
        for log_probs, is_best in zip(
            tokens.log_probs.split(lengths),
            tokens.is_best.split(lengths),
            strict=True,
        )
    ]


def score_states(
    model: GLMForConditionalGeneration,
    states: torch.Tensor,
    tokens: torch.Tensor,
) -> TokenScores:
    """(R, H), (R,): what is said to each token after its state; in double precision, on the CPU."""
    log_probs, of_tokens, is_best = [], [], []
    for part, wanted in zip(
        states.split(TOKENS_AT_ONCE),
        tokens.split(TOKENS_AT_ONCE),
        strict=True,
    ):
        logits = model.lm_head(part).float()  # (R, V)
        of_wanted = logits.gather(1, wanted[:, None])[:, 0]  # (R,)
        log_probs.append(of_wanted - logits.logsumexp(-1))
        of_tokens.append(of_wanted)
        is_best.append(logits.argmax(-1) == wanted)
    return TokenScores(
        torch.cat(log_probs).double().cpu(),
        torch.cat(of_tokens).double().cpu(),
        torch.cat(is_best).cpu(),
    )


def score_rows(
    model: GLMForConditionalGeneration,
    tokenizer: GLMTokenizerFast,
    rows: Sequence[Row],
    batch_size: int = 16,
    name: str = "Scoring",
    finished: Finished | None = None,
) -> list[RowScore]:
    """The score of each row, in the rows' order; arguments of `score_as_they_come`."""
    come = score_as_they_come(model, tokenizer, rows, batch_size, name, finished)
    scores = dict(come)
    return [scores[number] for number in range(len(rows))]


def score_as_they_come(
    model: GLMForConditionalGeneration,
    tokenizer: GLMTokenizerFast,
    rows: Sequence[Row],
    batch_size: int = 16,
    name: str = "Scoring",
    finished: Finished | None = None,
) -> Iterator[tuple[int, RowScore]]:
    """The number and the score of each row, with a progress bar.

    The longest rows come first: what is too much for the memory is so at once.

    Args:
        model: in evaluation mode, on any device.
        name: of the progress bar, and of the batches in `finished`.
        finished: batches that were scored before, and where to keep those that are scored now.

    Raises:
        ValueError: for a model without block positions, whose answers the original cannot score.
    """
    if not model.config.block_position_encoding:
        raise ValueError(
            "This model has no block positions, and the original has no rule for scoring with it; "
            "use a model that has."
        )
    finished = finished or Finished()
    order = sorted(range(len(rows)), key=lambda number: -len(rows[number]))
    starts = range(0, len(rows), batch_size)
    for number, start in enumerate(tqdm(starts, desc=name)):
        of_batch = order[start : start + batch_size]
        scores = finished.get(name, number)
        if scores is None:
            scores = score_batch(model, tokenizer, [rows[row] for row in of_batch])
            finished.add(name, number, scores)
        yield from zip(of_batch, scores, strict=True)


def standard_error(values: Iterable[float]) -> float | None:
    """Of the sum of independent values; None where one value tells of no spread."""
    numbers = torch.tensor(list(values), dtype=torch.float64)
    if len(numbers) < 2:
        return None
    return float(numbers.std() * len(numbers) ** 0.5)
