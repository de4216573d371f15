"""Where the context, the blanks and the pieces of a sequence are, and the positions that follow.

    [CLS] Ng is a professor at [MASK] . <|endoftext|>   <|startofpiece|> Stanford <|endofpiece|>
    -------------------- context --------------------   ---------------- piece ----------------

All of it is a pure function of the ids: nothing has to travel from one step of generation to the
next. Ids are compared with Python integers, which are not copied to the device.

Shapes: B batch, N tokens so far, T the last tokens of these, which are asked about: all of them in
training, one in a step of generation.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import reduce

import torch


def is_any_of(ids: torch.Tensor, wanted: Sequence[int]) -> torch.Tensor:
    """(B, N) -> (B, N): whether each id is one of `wanted`."""
    if not wanted:
        return torch.zeros_like(ids, dtype=torch.bool)
    return reduce(torch.logical_or, (ids == id for id in wanted))


def count(marks: torch.Tensor) -> torch.Tensor:
    """(B, N) -> (B, N): how many marks there are up to each column, itself included."""
    return marks.long().cumsum(-1)


def column_of(nth: torch.Tensor, marks: torch.Tensor) -> torch.Tensor:
    """(B, T), (B, N) -> (B, T): the column of the mark number `nth`, from 0; N if there is none.

    Before it stand the columns up to which `nth` marks or fewer have been counted.
    """
    before = count(marks)[:, None] <= nth[:, :, None]  # (B, T, N)
    return before.sum(-1)


def is_context(ids: torch.Tensor, config, visible: torch.Tensor | None = None) -> torch.Tensor:
    """(B, N) -> (B, N): the bidirectional part, everything before the first `<|startofpiece|>`."""
    return count(_is_start(ids, config, visible)) == 0


def sees(in_context: torch.Tensor) -> torch.Tensor:
    """(B, N) -> (B, N, N): whether the token of the row sees that of the column (paper, figure 2).

    All see the context; the others are seen by themselves and by what follows.
    """
    columns = torch.arange(in_context.shape[1], device=in_context.device)
    causal = columns <= columns[:, None]  # (N, N)
    return causal | in_context[:, None]


def context_overlay(in_context: torch.Tensor) -> Callable:
    """What the library's causal mask lacks to be `sees`, as its `or_mask_function`."""
    return lambda batch, head, query, key: in_context[batch, key]


def _is_start(ids, config, visible):
    """(B, N) -> (B, N): the `<|startofpiece|>` tokens that are no padding."""
    starts = is_any_of(ids, config.start_token_ids)
    return starts if visible is None else starts & visible


@dataclass
class BlankLayout:
    """Where the context, the blanks and the pieces of each sequence are; each field is (B, N).

    in_context: the bidirectional part, everything before the first `<|startofpiece|>`.
    is_mask: the blanks in it.
    sops: the `<|startofpiece|>` tokens.
    starts: the first token of each piece. An end token starts the next piece: GLM never reads end
        tokens, what it reads in their place is the `<|startofpiece|>` of the next blank.
    """

    in_context: torch.Tensor
    is_mask: torch.Tensor
    sops: torch.Tensor
    starts: torch.Tensor

    @classmethod
    def of(
        cls,
        ids: torch.Tensor,
        config,
        visible: torch.Tensor | None = None,
        generated: bool = False,
    ) -> "BlankLayout":
        """Read the layout from `ids` (B, N), of which `visible` (B, N) are no padding.

        In training every `<|startofpiece|>` starts a piece. When `generated`, only the first one
        does: a later one was chosen by the model and is a token of its answer, as in the original.
        """
        sops = _is_start(ids, config, visible)
        sops_so_far = count(sops)
        in_context = sops_so_far == 0
        ends = is_any_of(ids, config.end_token_ids) & ~in_context
        if visible is not None:
            ends = ends & visible
        if generated:
            sops = sops & (sops_so_far == 1)
        return cls(
            in_context=in_context,
            is_mask=is_any_of(ids, config.mask_token_ids or []) & in_context,
            sops=sops,
            starts=sops | ends,
        )

    def answering_the_last_mask(self) -> "BlankLayout":
        """The same, but that every piece answers the last mask, as choices do (FACTS section 6)."""
        number = count(self.is_mask)
        return replace(self, is_mask=self.is_mask & (number == number[:, -1:]))

    @property
    def length(self) -> int:
        return self.in_context.shape[1]

    def read(self, ids: torch.Tensor, config) -> torch.Tensor:
        """(B, N) -> (B, N): what the network reads, `<|startofpiece|>` wherever a piece starts."""
        return torch.where(self.starts, config.sop_token_id or 0, ids)

    def pieces(self, tokens: int) -> torch.Tensor:
        """(B, T): the piece, from 0, that each of the last T tokens is of; 0 in the context."""
        return (count(self.starts)[:, -tokens:] - 1).clamp(min=0)

    def block_positions(self, tokens: int) -> torch.Tensor:
        """(B, T): 0 in the context; 1, 2, ... from the start of each piece (paper, section 2.2)."""
        columns = torch.arange(self.length, device=self.starts.device)[-tokens:]
        from_start = columns - column_of(self.pieces(tokens), self.starts)
        return torch.where(self.in_context[:, -tokens:], 0, from_start + 1)

    def limits(self, limit: int | torch.Tensor, tokens: int) -> int | torch.Tensor:
        """A limit of pieces for each of the last T tokens.

        Args:
            limit: one for all; or (P, M), for each prompt one for each of its blanks. There may be
                several rows (B) in a row for each prompt.

        Returns:
            The limit, or (B, T): that of the piece of each token.
        """
        if isinstance(limit, int):
            return limit
        piece = self.pieces(tokens).clamp(max=limit.shape[1] - 1)  # (B, T)
        copies = len(piece) // len(limit)
        return limit.repeat_interleave(copies, dim=0).gather(1, piece)

    def room(self, max_piece_length: int | torch.Tensor) -> torch.Tensor:
        """(B, N): what each mask reserves for its piece, 0 elsewhere; a limit is int or (B, M)."""
        if isinstance(max_piece_length, int):
            return self.is_mask * max_piece_length
        number = (count(self.is_mask) - 1).clamp(0, max_piece_length.shape[1] - 1)  # (B, N)
        return self.is_mask * max_piece_length.gather(1, number)

    def mask_columns(self, tokens: int) -> torch.Tensor:
        """(B, T): the column of each token's blank: the k-th piece answers the k-th mask.

        Pieces beyond the last mask answer the last one. Without a mask, it is the last column.
        """
        last_mask = (self.is_mask.sum(-1, keepdim=True) - 1).clamp(min=0)  # (B, 1)
        mask = self.pieces(tokens).minimum(last_mask)  # (B, T)
        return column_of(mask, self.is_mask).clamp(max=self.length - 1)


def count_positions(visible: torch.Tensor) -> torch.Tensor:
    """(B, N): 0, 1, 2, ... over the tokens that are not padding."""
    return (count(visible.bool()) - 1).clamp(min=0)


class BlockPositions:
    """Two positions a token: its place in the context, or its blank's; its place in its piece.

    The paper's scheme (section 2.2), which every released checkpoint has.
    """

    shape = "(batch, 2, tokens)"

    @staticmethod
    def fits(position_ids: torch.Tensor) -> bool:
        return position_ids.dim() == 3 and position_ids.shape[1] == 2

    @staticmethod
    def position_ids(
        layout: BlankLayout,
        context_positions: torch.Tensor,
        tokens: int,
        max_piece_length: int | torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Positions (B, 2, T) of the last T tokens, from those of the context (B, N)."""
        of_blank = context_positions.gather(1, layout.mask_columns(tokens))  # (B, T)
        of_context = context_positions[:, -tokens:]
        places = torch.where(layout.in_context[:, -tokens:], of_context, of_blank)
        return torch.stack([places, layout.block_positions(tokens)], dim=1)

    @staticmethod
    def highest(
        layout: BlankLayout,
        context_positions: torch.Tensor,
        max_piece_length: int | torch.Tensor,
    ) -> torch.Tensor:
        """(B, N): the highest that filling the blanks takes, whatever the answers are."""
        return context_positions * layout.in_context  # pieces have the positions of their blanks


class SinglePositions:
    """One position a token, in models that were trained without block positions.

    Every blank reserves `max_piece_length` positions behind it, which its piece takes one by one,
    as the original's generation does. It is one number, or (B, M): one for each blank.
    """

    shape = "(batch, tokens)"

    @staticmethod
    def fits(position_ids: torch.Tensor) -> bool:
        return position_ids.dim() == 2

    @staticmethod
    def position_ids(
        layout: BlankLayout,
        context_positions: torch.Tensor,
        tokens: int,
        max_piece_length: int | torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Positions (B, T) of the last T tokens, from those of the context (B, N)."""
        if max_piece_length is not None:
            room = layout.room(max_piece_length)
            of_masks_before = room.cumsum(-1) - room  # (B, N)
            context_positions = context_positions + of_masks_before
        of_blank = context_positions.gather(1, layout.mask_columns(tokens))  # (B, T)
        of_piece = of_blank + layout.block_positions(tokens) - 1
        of_context = context_positions[:, -tokens:]
        return torch.where(layout.in_context[:, -tokens:], of_context, of_piece)

    @staticmethod
    def highest(
        layout: BlankLayout,
        context_positions: torch.Tensor,
        max_piece_length: int | torch.Tensor,
    ) -> torch.Tensor:
        """(B, N): the highest that filling the blanks takes, with the room that they reserve."""
        return context_positions + layout.room(max_piece_length).sum(-1, keepdim=True)


def position_scheme(config) -> type[BlockPositions] | type[SinglePositions]:
    return BlockPositions if config.block_position_encoding else SinglePositions


# --- Ids and positions that have no row in their tables -------------------------------------------


def check_ids(ids: torch.Tensor | None, config):
    """Raise a ValueError for ids (B, T) outside the vocabulary."""
    if ids is None or not ids.numel():
        return
    lowest, highest = torch.stack(ids.aminmax()).tolist()  # read back at once
    if lowest < 0 or highest >= config.vocab_size:
        raise ValueError(
            f"input_ids hold {lowest} to {highest}, but this model's vocabulary is 0 to "
            f"{config.vocab_size - 1}; use the tokenizer that belongs to the model."
        )


def check_positions(position_ids: torch.Tensor, config):
    """Raise a ValueError for positions of a wrong shape, or beyond the table."""
    scheme = position_scheme(config)
    if not scheme.fits(position_ids):
        raise ValueError(
            f"position_ids have shape {tuple(position_ids.shape)}; this model needs {scheme.shape}."
        )
    check_range(position_ids, config)


def check_range(positions: torch.Tensor, config):
    """Raise a ValueError for positions, of any shape, beyond the table."""
    if not positions.numel():
        return
    lowest, highest = torch.stack(positions.aminmax()).tolist()  # read back at once
    if lowest < 0:
        raise ValueError(f"position_ids hold {lowest}; they start at 0.")
    if highest >= config.position_rows:
        raise ValueError(
            f"The text takes {highest + 1} positions, but this model has {config.position_rows}; "
            "shorten it, for example with truncation=True and max_length in the tokenizer."
        )
