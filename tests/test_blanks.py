"""Where context, blanks and pieces are, told in plain loops beside the tensors that compute it."""

import pytest
import torch
from conftest import EOP, EOS, GMASK, MASK, SMASK, SOP, tiny_config
from test_invariants import padded

from glm_transformers import GLMModel
from glm_transformers.blanks_glm import (
    BlankLayout,
    BlockPositions,
    SinglePositions,
    column_of,
    count_positions,
    is_any_of,
    position_scheme,
    sees,
)

TEXTS = [
    [1, 17, MASK, 23, 5, EOS, SOP, 60, 61],
    [1, MASK, 9, SMASK, 7, MASK, EOS, SOP, 62, EOP, 63, 64, EOP],
    [1, 2, 3, EOS],
    [1, 2, GMASK, SOP, 60, SOP, 61, EOS, 62],
]


def positions_in_words(row: list[int], generated: bool) -> list[tuple[int, int]]:
    """The rule of the paper (section 2.2), token by token."""
    context, rest = (row[: row.index(SOP)], row[row.index(SOP) :]) if SOP in row else (row, [])
    masks = [column for column, id in enumerate(context) if id in (MASK, GMASK, SMASK)]
    positions = [(column, 0) for column in range(len(context))]
    piece, place = -1, 0
    for number, id in enumerate(rest):
        begins = number == 0 or id in (EOP, EOS) or (id == SOP and not generated)
        piece, place = (piece + 1, 1) if begins else (piece, place + 1)
        positions.append((masks[min(piece, len(masks) - 1)], place))
    return positions


@pytest.mark.parametrize("generated", [False, True])
@pytest.mark.parametrize("side", ["left", "right"])
def test_positions_are_the_rule_of_the_paper(side, generated):
    ids, mask = padded(TEXTS, side)
    layout = BlankLayout.of(ids, tiny_config(), mask.bool(), generated=generated)
    positions = BlockPositions.position_ids(layout, count_positions(mask), layout.length)
    for text, of_row, visible in zip(TEXTS, positions, mask.bool(), strict=True):
        actual = list(zip(*of_row[:, visible].tolist(), strict=True))
        assert actual == positions_in_words(text, generated), text


@pytest.mark.parametrize("scheme", [BlockPositions, SinglePositions])
def test_the_last_tokens_alone_have_the_positions_of_all(scheme):
    """A step of generation asks for one token of the sequence."""
    ids, mask = padded(TEXTS, "left")
    layout = BlankLayout.of(ids, tiny_config(), generated=True)
    every = scheme.position_ids(layout, count_positions(mask), layout.length, 7)
    for tokens in (1, 2, 5):
        last = scheme.position_ids(layout, count_positions(mask), tokens, 7)
        assert torch.equal(last, every[..., -tokens:])


def test_each_blank_reserves_its_room_where_there_is_one_position():
    """Context positions after a mask are shifted by the room of a piece, which counts into it."""
    ids = torch.tensor([[1, MASK, 9, MASK, EOS, SOP, 60, 61, EOP, 62]])
    layout = BlankLayout.of(ids, tiny_config(), generated=True)
    positions = SinglePositions.position_ids(layout, torch.arange(10)[None], 10, 4)
    assert positions.tolist() == [[0, 1, 6, 7, 12, 1, 2, 3, 7, 8]]
    highest = SinglePositions.highest(layout, torch.arange(10)[None], 4)
    assert highest.amax() == 9 + 2 * 4
    assert position_scheme(tiny_config(block_position_encoding=False)) is SinglePositions
    assert position_scheme(tiny_config()) is BlockPositions


def test_columns_of_marks():
    marks = torch.tensor([[False, True, False, True], [True, False, False, False]])
    nth = torch.tensor([[0, 1, 2], [0, 1, 1]])
    assert column_of(nth, marks).tolist() == [[1, 3, 4], [0, 4, 4]]
    ids = torch.tensor([[5, 6, 7]])
    assert is_any_of(ids, [7, 5]).tolist() == [[True, False, True]]
    assert is_any_of(ids, []).tolist() == [[False, False, False]]


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
def test_the_mask_is_the_rule_for_every_token(tiny_model, side):
    """`sees` is what the library's mask with our overlay does, padding apart; with lengths too."""
    model = tiny_model(GLMModel)
    ids, mask = padded(TEXTS[:2], side)
    in_context = model.find_context(ids, mask, None)
    rule = sees(in_context)
    states = torch.empty(*ids.shape, 0)
    scores = model.scores_mask(mask, in_context, states)  # (B, 1, T, T)
    visible = mask.bool()
    for row in range(2):
        real = visible[row]
        expected = rule[row] & real
        assert torch.equal((scores[row, 0] == 0)[real], expected[real])
    lengths = torch.tensor([3, 5])
    in_context = model.find_context(ids, lengths, None)
    assert in_context.sum(-1).tolist() == [3, 5]
    scores = model.scores_mask(lengths, in_context, states)
    assert torch.equal(scores[:, 0] == 0, sees(in_context))


def test_the_rule_in_a_picture():
    in_context = torch.tensor([[True, True, False, False]])
    expected = [[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]]
    assert sees(in_context)[0].int().tolist() == expected
