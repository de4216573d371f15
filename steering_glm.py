"""What an answer may be, blank by blank: how short, how long, one of a list.

`generate` reads these options and checks them; in each step they forbid tokens. Which blank a token
is for, and how much of its answer is there, is read from the ids, as everything is.

Shapes: B prompts, M blanks of the prompt that has most, R rows of generation (B times the beams or
the returned sequences), N tokens so far, V vocabulary rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import LogitsProcessor

from .blanks_glm import BlankLayout, is_any_of

# For each prompt an entry for each of its blanks.
Table = list[list]


# --- Options --------------------------------------------------------------------------------------


def for_each_blank(name: str, value, blanks: list[int]) -> Table:
    """An option as a table.

    Args:
        name: of the option, for messages.
        value: one for all blanks; or a list with one for each blank, which is the same for all
            prompts; or a list of such lists, or a tensor (B, M), with one for each prompt.
        blanks (B,): how many each prompt has.

    Raises:
        ValueError: for a list of another length.
    """
    value = value.tolist() if torch.is_tensor(value) else value
    if not isinstance(value, (list, tuple)):
        return [[value] * number for number in blanks]
    is_nested = any(isinstance(entry, (list, tuple)) for entry in value)
    return check_table(name, value if is_nested else [value] * len(blanks), blanks)


def check_table(name: str, rows, blanks: list[int]) -> Table:
    """The table as it is; a ValueError if it does not have one entry for each blank (B,)."""
    if not isinstance(rows, (list, tuple)) or len(rows) != len(blanks):
        given = f"{len(rows)} lists" if isinstance(rows, (list, tuple)) else "no list"
        raise ValueError(f"{name} has {given} for {len(blanks)} prompts; pass one for each.")
    for prompt, (row, number) in enumerate(zip(rows, blanks, strict=True), start=1):
        if not isinstance(row, (list, tuple)) or len(row) != number:
            given = f"{len(row)} entries" if isinstance(row, (list, tuple)) else "no list"
            raise ValueError(
                f"{name} has {given} for prompt {prompt}, which has {number} blanks; pass one for "
                "each blank."
            )
    return list(rows)


@dataclass
class Steering:
    """What the answers to the blanks of B prompts may be; each field is a table.

    shortest, longest: tokens of an answer; its end does not count.
    allowed: the ids of the answers that are allowed, without their end, or None where all are.
    """

    shortest: Table
    longest: Table
    allowed: Table

    @classmethod
    def read(
        cls,
        blanks: list[int],
        room: int | None,
        config,
        min_piece_length=None,
        max_piece_length=None,
        allowed_answers=None,
        bad_words_ids=None,
    ) -> "Steering":
        """Read and check the options of `generate`.

        Args:
            blanks (B,): how many each prompt has.
            room: the most tokens that an answer can have, if there is such a number.

        Raises:
            ValueError: for what no answer can be.
        """
        shortest = for_each_blank("min_piece_length", min_piece_length, blanks)
        longest = for_each_blank("max_piece_length", max_piece_length, blanks)
        check_numbers("min_piece_length", shortest, lowest=0)
        check_numbers("max_piece_length", longest, lowest=1)
        if allowed_answers is None:
            allowed: Table = [[None] * number for number in blanks]
        else:
            allowed = check_table("allowed_answers", allowed_answers, blanks)
        longest = [[fewer(length, room) for length in row] for row in longest]
        if any(None in row for row in longest):
            raise ValueError("A model without block positions needs max_piece_length.")
        steering = cls([[least or 0 for least in row] for row in shortest], longest, allowed)
        steering.check(config, bad_words_ids or [])
        return steering

    def check(self, config, bad_words_ids: Sequence[Sequence[int]]):
        """Raise a ValueError where lengths, allowed answers and bad words contradict each other."""
        tables = zip(self.shortest, self.longest, self.allowed, strict=True)
        for prompt, row in enumerate(tables, start=1):
            for blank, (shortest, longest, answers) in enumerate(zip(*row, strict=True), start=1):
                where = f"blank {blank} of prompt {prompt}"
                if shortest > longest:
                    raise ValueError(
                        f"The answer to {where} must have {shortest} tokens and has room for "
                        f"{longest}; lower min_piece_length or raise max_piece_length."
                    )
                if answers is not None:
                    if config.block_position_encoding:  # the last token is read, too
                        longest = min(longest, config.max_sequence_length - 1)
                    check_answers(answers, shortest, longest, where, config)
                    check_bad_words(answers, bad_words_ids, where)

    def check_begun(self, ids: torch.Tensor, config):
        """Raise a ValueError for a piece in prompts (B, S) that begins no allowed answer."""
        for prompt, (blank, begun) in enumerate(pieces_so_far(ids, config)):
            row = self.allowed[prompt]
            answers = row[blank] if blank < len(row) else None  # all blanks may be filled
            if answers is None or any([*answer[: len(begun)]] == begun for answer in answers):
                continue
            raise ValueError(
                f"The answer to blank {blank + 1} of prompt {prompt + 1} begins with the ids "
                f"{begun}, and none of its allowed answers does; leave them out, or allow one that "
                "does."
            )

    @property
    def has_allowed(self) -> bool:
        return any(answers is not None for row in self.allowed for answers in row)

    def tokens_needed(self) -> int:
        """The fewest tokens, ends included, in which the blanks of every prompt can be filled."""
        return max(sum(length + 1 for length in row) for row in self.least())

    def least(self) -> Table:
        """The fewest tokens that each answer can have."""
        return [
            [
                least if answers is None else min(map(len, answers))
                for least, answers in zip(*row, strict=True)
            ]
            for row in zip(self.shortest, self.allowed, strict=True)
        ]

    def cuts(self) -> Table:
        """The tokens after which an answer is cut: an allowed answer ends by itself."""
        return [
            [longest + (answers is not None) for longest, answers in zip(*row, strict=True)]
            for row in zip(self.longest, self.allowed, strict=True)
        ]


def fewer(length: int | None, room: int | None) -> int | None:
    return min((number for number in (length, room) if number is not None), default=None)


def check_numbers(name: str, table: Table, lowest: int):
    """Raise a ValueError unless each entry is an integer from `lowest` on, or None."""
    for row in table:
        for value in row:
            is_integer = isinstance(value, int) and not isinstance(value, bool)
            if value is not None and not (is_integer and value >= lowest):
                raise ValueError(
                    f"{name} is {value!r}; pass an integer from {lowest} on, or a list with one "
                    "for each blank."
                )


def check_answers(answers, shortest: int, longest: int, where: str, config):
    """Raise a ValueError for allowed answers of one blank that it cannot have."""
    if not isinstance(answers, (list, tuple)) or not answers:
        raise ValueError(
            f"allowed_answers has no answer for {where}; pass None where all answers are allowed."
        )
    commands = {*config.start_token_ids, *config.end_token_ids}
    for ids in answers:
        if not isinstance(ids, (list, tuple)) or not all(isinstance(id, int) for id in ids):
            raise ValueError(
                f"An allowed answer for {where} is {ids!r}; pass a list of its token ids."
            )
        if not all(0 <= id < config.vocab_size for id in ids) or commands.intersection(ids):
            raise ValueError(
                f"An allowed answer for {where} has the ids {list(ids)}; pass ids of text, without "
                "the end of the answer."
            )
        if not shortest <= len(ids) <= longest:
            raise ValueError(
                f"An allowed answer for {where} has {len(ids)} tokens, but answers have from "
                f"{shortest} to {longest} there; leave it out, or change min_piece_length or "
                "max_piece_length."
            )


def check_bad_words(answers, bad_words_ids: Sequence[Sequence[int]], where: str):
    """Raise a ValueError for an allowed answer that holds a word which must not occur."""
    words = {tuple(word) for word in bad_words_ids}
    lengths = {len(word) for word in words}
    for number, answer in enumerate(answers, start=1):
        if words & stretches(answer, lengths):
            raise ValueError(
                f"Answer {number} of those allowed for {where} holds a bad word; leave one of them "
                "out."
            )


def stretches(answer: Sequence[int], lengths: set[int]) -> set[tuple[int, ...]]:
    """The ids that stand side by side in an answer, so many of them."""
    return {
        tuple(answer[start : start + length])
        for length in lengths
        for start in range(len(answer) - length + 1)
    }


def as_limit(table: Table, device: torch.device) -> int | torch.Tensor:
    """The number of all blanks, or (B, M) where they differ: a number costs a step less."""
    values = {value for row in table for value in row}
    if len(values) == 1:
        return values.pop()
    most = max(map(len, table))
    rows = [[*row, *[0] * (most - len(row))] for row in table]  # nothing reads what is filled up
    return torch.tensor(rows, device=device)


# --- In each step ---------------------------------------------------------------------------------


def pieces_so_far(ids: torch.Tensor, config) -> list[tuple[int, list[int]]]:
    """For each row (R, N) the number of the blank it is at, and the ids of its answer so far."""
    layout = BlankLayout.of(ids, config, generated=True)
    lengths = layout.block_positions(1) - 1  # (R, 1), less the start
    read = torch.cat([layout.pieces(1), lengths, ids], dim=1).tolist()  # read back at once
    return [(blank, row[len(row) - length :]) for blank, length, *row in read]


class MinPieceLength(LogitsProcessor):
    """Lets no piece end before it has so many tokens."""

    def __init__(self, min_piece_length: int | torch.Tensor, config):
        self.min_piece_length = min_piece_length  # or (B, M)
        self.config = config

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        layout = BlankLayout.of(input_ids, self.config, generated=True)
        least = layout.limits(self.min_piece_length, 1)  # (R, 1)
        is_short = layout.block_positions(1) <= least  # (R, 1): the start is at 1
        vocabulary = torch.arange(scores.shape[-1], device=scores.device)
        is_end = is_any_of(vocabulary, self.config.end_token_ids)  # (V,)
        return scores.masked_fill(is_short & is_end, -torch.inf)


class MaxPieceLength(LogitsProcessor):
    """Ends a piece that has so many tokens.

    Args:
        is_free: whether such an end costs nothing in a search with beams, as in the original, which
            cuts the piece there; otherwise it costs what the model makes of it.
    """

    def __init__(self, max_piece_length: int | torch.Tensor, config, is_free: bool):
        self.max_piece_length = max_piece_length  # or (B, M)
        self.config = config
        self.is_free = is_free

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        layout = BlankLayout.of(input_ids, self.config, generated=True)
        most = layout.limits(self.max_piece_length, 1)  # (R, 1)
        is_full = layout.block_positions(1) > most  # (R, 1): the start is at 1
        vocabulary = torch.arange(scores.shape[-1], device=scores.device)
        is_end = vocabulary == self.config.eop_token_id  # (V,)
        # What else forbids the end must leave it to be said here.
        is_stuck = scores.isneginf() if not self.is_free else torch.ones_like(scores).bool()
        of_end = scores.masked_fill(is_stuck, 0)
        return torch.where(is_full, of_end.masked_fill(~is_end, -torch.inf), scores)


class AllowedAnswers(LogitsProcessor):
    """Lets a piece be nothing but one of the answers that are allowed for its blank.

    They are a trie: a dictionary of the tokens that may come next, each with those behind it.
    """

    def __init__(self, allowed: Table, config):
        self.end = config.eop_token_id
        self.config = config
        self.tries = [
            [None if answers is None else self._trie(answers) for answers in row] for row in allowed
        ]

    def _trie(self, answers: Sequence[Sequence[int]]) -> dict:
        root: dict = {}
        for answer in answers:
            node = root
            for id in (*answer, self.end):
                node = node.setdefault(id, {})
        return root

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        copies = len(scores) // len(self.tries)  # beams, or sequences that are returned
        is_allowed = torch.ones(scores.shape, dtype=torch.bool)  # (R, V)
        for row, (blank, ids) in enumerate(pieces_so_far(input_ids, self.config)):
            tries = self.tries[row // copies]
            trie = tries[blank] if blank < len(tries) else None  # all blanks may be filled
            if trie is not None:
                is_allowed[row] = False
                is_allowed[row, self._following(trie, ids)] = True
        is_allowed = is_allowed.to(scores.device)  # copied at once
        allowed = scores.masked_fill(~is_allowed, -torch.inf)
        # What else forbids tokens must leave one to be said.
        is_stuck = allowed.isneginf().all(-1, keepdim=True)  # (R, 1)
        return torch.where(is_stuck & is_allowed, 0, allowed)

    def _following(self, trie: dict, ids: list[int]) -> list[int]:
        """The tokens that may come behind these; the end where they are no answer's beginning."""
        for id in ids:
            trie = trie.get(id, {})
        return list(trie) or [self.end]
