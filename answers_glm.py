"""The best answers to each blank, with their probabilities: a search with beams, blank by blank.

Shapes: B batch, S tokens of the prompt, N tokens of it with its answers, V vocabulary rows.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from transformers import StoppingCriteria, StoppingCriteriaList

from .blanks_glm import is_any_of
from .steering_glm import Table, check_table, for_each_blank

LEAST_BEAMS = 4  # of a search for answers: narrower ones miss better answers
UNFINISHED = -1e8  # the library gives -1e9 to beams that found no end
# What would make scores other than the model's, or forbid the ends of short answers, where a
# repository's generation_config.json asks for it.
NEUTRAL = {
    "min_new_tokens": 0,
    "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "exponential_decay_length_penalty": (10**9, 1.0),  # from this token on, by this factor
}


@dataclass(frozen=True)
class BestAnswer:
    """An answer to a blank: its ids, without its end, and the log-probability of both."""

    ids: list[int]
    log_prob: float


class BestAnswers(NamedTuple):
    """What `best_answers` finds.

    sequences (B, N): as `generate` returns them, each blank filled with its best answer.
    answers: for each row and blank its answers, best first.
    """

    sequences: torch.Tensor
    answers: list[list[list[BestAnswer]]]


class PieceEnded(StoppingCriteria):
    """Stops a row at the end of the piece that it is at, whatever blanks are left."""

    def __init__(self, config):
        self.config = config

    def __call__(self, input_ids: torch.Tensor, scores, **kwargs) -> torch.Tensor:
        return is_any_of(input_ids[:, -1], self.config.end_token_ids)  # (B,)


class BestAnswersMixin:
    """What a model gets that has GLM's `generate`."""

    if TYPE_CHECKING:  # what the model has
        config: Any
        generation_config: Any

    def best_answers(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        k: int = 5,
        *,
        num_beams: int | None = None,
        max_new_tokens: int | None = None,
        min_piece_length: int | Table | None = None,
        max_piece_length: int | Table | None = None,
        allowed_answers: Table | None = None,
        bad_words_ids: list[list[int]] | None = None,
        stopping_criteria: StoppingCriteriaList | None = None,
    ) -> BestAnswers:
        """The best answers to each blank, with their log-probabilities: a search with beams.

        Blank after blank, in all rows at once, the earlier ones filled with their best answers. A
        log-probability is that of the whole answer and its end, as the model gives it: what
        forbids answers makes the others no likelier. As for `generate`, the end of the text is an
        end, too, which answers to `[gMASK]` have. With a prompt method of peft, call it on the
        model of peft: `BestAnswersMixin.best_answers(peft_model, ...)`.

        Args:
            input_ids (B, S): contexts, padded on either side.
            attention_mask (B, S): 1 for tokens, 0 for padding.
            k: answers of each blank, at most: a blank that few are allowed for has fewer.
            num_beams: width of the search, at least k and 2; by default k, and at least 4. Each
                beam keeps its scores, of V numbers, for each step of the search.
            max_new_tokens: the most tokens of one answer with its end, where no `max_piece_length`
                is given; by default that of the generation configuration.
            stopping_criteria: of `generate`; what they stop has empty answers from there on.
            min_piece_length, max_piece_length, allowed_answers, bad_words_ids: of `generate`.

        Raises:
            ValueError: as `generate`, and for prompts that hold pieces.
        """
        num_beams = max(k, LEAST_BEAMS) if num_beams is None else num_beams
        check_width(k, num_beams)
        contexts = read_contexts(input_ids, attention_mask, self.config)
        masks = set(self.config.mask_token_ids or [])
        blanks = [sum(id in masks for id in context) for context in contexts]  # (B,)
        if max_piece_length is None:
            max_piece_length = self._longest_answer(max_new_tokens)
        tables: dict[str, Table] = {
            "min_piece_length": for_each_blank("min_piece_length", min_piece_length, blanks),
            "max_piece_length": for_each_blank("max_piece_length", max_piece_length, blanks),
        }
        if allowed_answers is not None:
            tables["allowed_answers"] = check_table("allowed_answers", allowed_answers, blanks)
        answers: list[list[list[BestAnswer]]] = [[] for _ in contexts]
        for blank in range(max(1, *blanks)):  # a prompt without a blank is refused in the first
            rows = [row for row, number in enumerate(blanks) if max(1, number) > blank]
            found = search_answers(
                self,
                [[*contexts[row], *best_pieces(answers[row], self.config)] for row in rows],
                num_beams,
                stopping_criteria or StoppingCriteriaList(),
                bad_words_ids=bad_words_ids,
                **{name: [table[row] for row in rows] for name, table in tables.items()},
            )
            for row, of_blank in zip(rows, found, strict=True):
                answers[row].append(of_blank[:k])
        return BestAnswers(with_best_pieces(input_ids, answers, self.config), answers)

    def _longest_answer(self, max_new_tokens: int | None) -> int | None:
        """The tokens of an answer, at most, where its end is one of so many new tokens."""
        if max_new_tokens is None:
            max_new_tokens = self.generation_config.max_new_tokens
        if max_new_tokens is None:
            return None
        if max_new_tokens < 2:
            raise ValueError(
                f"max_new_tokens is {max_new_tokens}; an answer and its end take 2 at least."
            )
        if not self.config.block_position_encoding:
            return max_new_tokens - 1
        return min(max_new_tokens, self.config.max_sequence_length) - 1


def check_width(k: int, num_beams: int):
    """Raise a ValueError unless so many beams can find k answers."""
    if not (isinstance(k, int) and 1 <= k <= num_beams and num_beams > 1):
        raise ValueError(
            f"k is {k!r} and num_beams {num_beams!r}; pass 1 <= k <= num_beams, and 2 beams at "
            "least."
        )


def read_contexts(
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None,
    config,
) -> list[list[int]]:
    """The ids of each context (B, S), without its padding.

    Raises:
        ValueError: for prompts that hold pieces, and for a mask that is no padding of theirs.
    """
    if is_any_of(input_ids, config.start_token_ids).any():
        raise ValueError("A prompt holds <|startofpiece|>; pass contexts alone.")
    visible = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    if visible.shape != input_ids.shape:
        raise ValueError(
            f"attention_mask has the shape {tuple(visible.shape)}; pass the padding of the "
            f"prompts, {tuple(input_ids.shape)}."
        )
    return [ids[seen].tolist() for ids, seen in zip(input_ids, visible.bool(), strict=True)]


def with_best_pieces(
    input_ids: torch.Tensor,
    answers: list[list[list[BestAnswer]]],
    config,
) -> torch.Tensor:
    """(B, S) -> (B, N): the prompts with their best answers behind them, padded on the right."""
    pieces = [best_pieces(of_row, config) for of_row in answers]
    longest = max(map(len, pieces))
    pad = config.pad_token_id or 0
    pieces = [[*row, *[pad] * (longest - len(row))] for row in pieces]
    behind = torch.tensor(pieces, device=input_ids.device)  # (B, N - S)
    return torch.cat([input_ids, behind], dim=1)


def best_pieces(answers: list[list[BestAnswer]], config) -> list[int]:
    """`<|startofpiece|>` and the best answer to each blank of a row, with its end."""
    pieces = [config.sop_token_id]
    for of_blank in answers:
        best = of_blank[0].ids if of_blank else []
        pieces += [*best, config.eop_token_id]
    return pieces


def search_answers(
    model,
    prompts: list[list[int]],
    num_beams: int,
    stopping_criteria: StoppingCriteriaList,
    max_piece_length: Table,
    **options,
) -> list[list[BestAnswer]]:
    """The answers to one blank of each prompt, best first: the one that its ids go on with.

    Args:
        model: ours, or one of peft around it.
        prompts: their ids, up to the start of the blank's piece.
        options: of `generate`, tables for these prompts.
    """
    config = model.config
    length = max(map(len, prompts))
    pads = [length - len(prompt) for prompt in prompts]
    ids = [
        [config.pad_token_id or 0] * pad + prompt for pad, prompt in zip(pads, prompts, strict=True)
    ]
    visible = [[0] * pad + [1] * (length - pad) for pad in pads]
    room = config.max_sequence_length - 1
    limits = [most for row in max_piece_length for most in row]
    longest = max((room if most is None else most for most in limits), default=room)
    output = model.generate(
        input_ids=torch.tensor(ids, device=model.device),
        attention_mask=torch.tensor(visible, device=model.device),
        max_piece_length=max_piece_length,
        cut_pieces=False,
        max_new_tokens=longest + 1,
        stopping_criteria=StoppingCriteriaList([*stopping_criteria, PieceEnded(config)]),
        num_beams=num_beams,
        num_return_sequences=num_beams,
        do_sample=False,
        early_stopping=False,
        length_penalty=0.0,  # scores are sums of log-probabilities
        return_dict_in_generate=True,
        output_scores=True,
        **NEUTRAL,
        **options,
    )
    pieces = output.sequences[:, length:].tolist()
    scores = output.sequences_scores.tolist()
    return [
        finished(pieces[row : row + num_beams], scores[row : row + num_beams], config)
        for row in range(0, len(pieces), num_beams)
    ]


def finished(pieces: list[list[int]], scores: list[float], config) -> list[BestAnswer]:
    """The answers that have come to an end, best first; one with two ends has the likelier one."""
    answers: dict[tuple[int, ...], float] = {}
    for piece, score in zip(pieces, scores, strict=True):
        ends = [place for place, id in enumerate(piece) if id in config.end_token_ids]
        if ends and score > UNFINISHED:
            answers.setdefault(tuple(piece[: ends[0]]), score)
    return [BestAnswer([*ids], score) for ids, score in answers.items()]
