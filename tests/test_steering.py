"""Answers that people steer: how long they are, which are allowed, which words must not occur."""

import pytest
import torch
from conftest import EOP, EOS, GMASK, MASK, SMASK, SOP
from test_invariants import KINDS, PROMPTS, answer, padded

# One, two and three blanks.
SHORTEST = [[2], [0, 3], [4, 1, 2]]
LONGEST = [[2], [1, 5], [6, 1, None]]
WAYS = pytest.mark.parametrize(
    "way",
    [{}, {"num_beams": 3}, {"do_sample": True, "num_beams": 2}, {"do_sample": True, "top_k": 5}],
    ids=["greedy", "beams", "sampled beams", "sampling"],
)
# What follows needs no end to come by itself, and may not run out of tokens.
ROOM = dict(max_new_tokens=40, max_piece_length=12)


def pieces_of(row: list[int]) -> list[list[int]]:
    """What follows `<|startofpiece|>`, without the ends and what follows the last one."""
    pieces, piece = [], []
    for id in row:
        if id in (EOP, EOS):
            pieces.append(piece)
            piece = []
        else:
            piece.append(id)
    return pieces


def fill(model, side="left", **options) -> list[list[list[int]]]:
    """The pieces of each of `PROMPTS`, filled in one batch."""
    ids, mask = padded(PROMPTS, side)
    return [pieces_of(row) for row in answer(model, ids, mask, **{**ROOM, **options})]


def fill_alone(model, number: int, **options) -> list[list[int]]:
    ids = torch.tensor([PROMPTS[number]])
    return pieces_of(answer(model, ids, **{**ROOM, **options})[0])


# --- Lengths --------------------------------------------------------------------------------------


@KINDS
@WAYS
@pytest.mark.parametrize("side", ["left", "right"])
def test_each_answer_has_the_length_of_its_blank(tiny_model, way, side, block_position_encoding):
    model = tiny_model(block_position_encoding=block_position_encoding, max_sequence_length=128)
    longest = [[most or 7 for most in row] for row in LONGEST]
    rows = fill(model, side, min_piece_length=SHORTEST, max_piece_length=longest, **way)
    for row, fewest, most in zip(rows, SHORTEST, longest, strict=True):
        assert len(row) == len(fewest)
        for piece, least, top in zip(row, fewest, most, strict=True):
            assert least <= len(piece) <= top


@KINDS
@pytest.mark.parametrize("num_beams", [1, 3])
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_row_of_a_batch_is_steered_as_it_is_alone(
    tiny_model, num_beams, side, block_position_encoding
):
    """Where there is one position a token, each blank reserves its own room, in both."""
    model = tiny_model(block_position_encoding=block_position_encoding)
    options = dict(min_piece_length=SHORTEST, max_piece_length=[[3], [1, 5], [6, 2, 4]])
    rows = fill(model, side, num_beams=num_beams, **options)
    for number, row in enumerate(rows):
        mine = {name: [table[number]] for name, table in options.items()}
        assert fill_alone(model, number, num_beams=num_beams, **mine) == row
        flat = {name: table[number] for name, table in options.items()}
        assert fill_alone(model, number, num_beams=num_beams, **flat) == row


@KINDS
@pytest.mark.parametrize("num_beams", [1, 3])
def test_a_list_of_one_number_is_that_number(tiny_model, num_beams, block_position_encoding):
    model = tiny_model(block_position_encoding=block_position_encoding)
    one = fill(model, num_beams=num_beams, min_piece_length=2, max_piece_length=4)
    many = [[number] * len(row) for number in (2, 4) for row in SHORTEST]
    options = dict(min_piece_length=many[:3], max_piece_length=many[3:])
    assert fill(model, num_beams=num_beams, **options) == one
    tensor = torch.tensor([[4, 0, 0], [4, 4, 0], [4, 4, 4]])[:, :3]
    assert fill_alone(model, 2, num_beams=num_beams, max_piece_length=tensor[2:]) == fill_alone(
        model, 2, num_beams=num_beams, max_piece_length=4
    )


def test_no_limit_changes_nothing(tiny_model):
    model = tiny_model()
    free = fill(model)
    assert fill(model, min_piece_length=0) == free
    assert fill(model, min_piece_length=[[None], [0, None], [None] * 3]) == free
    assert fill(model, max_piece_length=[[12], [12, 12], [12, 12, 12]]) == free
    open_end = fill_alone(model, 1, max_piece_length=[12, None])
    assert open_end == fill_alone(model, 1, max_piece_length=[12, 64])
    assert any(len(piece) < 12 for row in free for piece in row), "the limit is not what ends them"


@pytest.mark.parametrize("options", [dict(prompt_lookup_num_tokens=3), dict(assistant=True)])
def test_an_assistant_heeds_the_lengths(tiny_model, options):
    model = tiny_model()
    steered = dict(min_piece_length=[4, 2, 3], max_piece_length=[4, 5, 3])
    expected = fill_alone(model, 2, **steered)
    if options.pop("assistant", False):
        options["assistant_model"] = tiny_model(hidden_size=16, num_layers=1)
    assert fill_alone(model, 2, **steered, **options) == expected
    assert [len(piece) for piece in expected][::2] == [4, 3]


def test_a_piece_that_is_there_counts(tiny_model):
    """The rest of a begun answer has the rest of its length, and later blanks have theirs."""
    model = tiny_model()
    ids = torch.tensor([[*PROMPTS[1], SOP, 60, 61]])
    with pytest.warns(UserWarning, match="pieces, which are continued"):
        row = model.generate(
            ids,
            min_piece_length=[3, 2],
            max_piece_length=[3, 2],
            max_new_tokens=20,
        )
    pieces = pieces_of(row[0, len(PROMPTS[1]) + 1 :].tolist())
    assert pieces[0][:2] == [60, 61] and [len(piece) for piece in pieces] == [3, 2]


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(min_piece_length=[1, 2]), "min_piece_length has 2 entries for prompt 0"),
        (dict(max_piece_length=[[3]]), "max_piece_length has 1 lists for 3 prompts"),
        (dict(max_piece_length=[[3], [3, 3], 3]), "max_piece_length has no list for prompt 2"),
        (dict(min_piece_length=[[1], [1, 1], [1, 1]]), "2 entries for prompt 2, which has 3"),
        (dict(min_piece_length=-1), "min_piece_length is -1; pass an integer from 0 on"),
        (dict(max_piece_length=[[3], [True, 3], [3] * 3]), "max_piece_length is True"),
        (
            dict(min_piece_length=[[1], [1, 4], [1] * 3], max_piece_length=3),
            "The answer to blank 1 of prompt 1 must have 4 tokens and has room for 3",
        ),
        (dict(min_piece_length=65), "must have 65 tokens and has room for 64"),
        (dict(min_piece_length=9, max_new_tokens=20), "take at least 30 tokens .* are 20 new"),
        (dict(min_piece_length=9, max_length=29), "take at least 30 tokens .* are 20 new"),
    ],
)
def test_lengths_that_no_answer_can_have(tiny_model, options, message):
    model = tiny_model()
    model.glm.forward = None  # whatever happens, no work is done
    ids, mask = padded(PROMPTS, "left")
    with pytest.raises(ValueError, match=message):
        model.generate(ids, attention_mask=mask, **options)
