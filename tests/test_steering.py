"""Answers that people steer: how long they are, which are allowed, which words must not occur."""

import math
import warnings
from itertools import pairwise

import pytest
import torch
from conftest import CONVERSIONS, EOP, EOS, GMASK, MASK, SMASK, SOP
from test_invariants import KINDS, PROMPTS, answer, padded
from transformers import StoppingCriteria, StoppingCriteriaList

from glm_transformers import (
    GLMForConditionalGeneration,
    GLMText2TextGenerationPipeline,
    GLMTokenizerFast,
    generation_glm,
)
from glm_transformers.blanks_glm import BlankLayout, position_scheme
from glm_transformers.evaluation import log_likelihood
from glm_transformers.steering_glm import AllowedAnswers

FAMILIES = [name for name, options in CONVERSIONS.items() if "model" in options]

# One, two and three blanks.
SHORTEST = [[2], [0, 3], [4, 1, 2]]
LONGEST = [[2], [1, 5], [6, 1, None]]
WAYS = pytest.mark.parametrize(
    "way",
    [{}, {"num_beams": 3}, {"do_sample": True, "num_beams": 2}, {"do_sample": True, "top_k": 5}],
    ids=["greedy", "beams", "sampled beams", "sampling"],
)
# What follows needs no end to come by itself, and may not run out of tokens.
ROOM = dict(max_new_tokens=30, max_piece_length=8)


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


def lean(token: int, by: float):
    """A processor that makes a token likelier, or less likely; what is forbidden stays so."""

    def process(input_ids, scores):
        wanted = torch.zeros_like(scores)
        wanted[:, token] = by
        return scores + wanted

    return process


@KINDS
@WAYS
def test_each_answer_has_the_length_of_its_blank(tiny_model, way, block_position_encoding):
    """The shortest of a model that would end at once, the longest of one that never would."""
    model = tiny_model(block_position_encoding=block_position_encoding, max_sequence_length=128)
    longest = [[most or 7 for most in row] for row in LONGEST]
    options = dict(min_piece_length=SHORTEST, max_piece_length=longest, suppress_tokens=[EOS])
    for by, expected in ((300.0, SHORTEST), (-300.0, longest)):
        rows = fill(model, logits_processor=[lean(EOP, by)], **options, **way)
        assert [[len(piece) for piece in row] for row in rows] == expected


@KINDS
@pytest.mark.parametrize("side, num_beams", [("left", 3), ("right", 1)])
def test_a_row_of_a_batch_is_steered_as_it_is_alone(
    tiny_model, side, num_beams, block_position_encoding
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


def test_a_limit_holds_where_nobody_said_how_many_tokens_there_may_be(tiny_model):
    """Some versions of the library have a length of their own then, of less than this prompt."""
    model = tiny_model()
    model.generation_config.max_new_tokens = None
    ids = torch.tensor([[*[7] * 30, MASK, EOS]])
    alone = model.generate(ids, max_piece_length=3, min_piece_length=3)
    assert [len(piece) for piece in pieces_of(behind_start(alone[0].tolist()))] == [3]


def behind_start(row: list[int]) -> list[int]:
    return row[row.index(SOP) + 1 :]


def test_a_full_piece_ends_whatever_forbids_it(tiny_model):
    """Or nothing could be said: the library would write id 0."""
    options = dict(max_piece_length=2, cut_pieces=False, min_new_tokens=6, max_new_tokens=9)
    (piece,) = fill_alone(tiny_model(), 0, **options)
    assert len(piece) == 2


def test_no_limit_changes_nothing(tiny_model):
    model = tiny_model()
    free = fill(model)
    assert fill(model, min_piece_length=0) == free
    assert fill(model, min_piece_length=[[None], [0, None], [None] * 3]) == free
    assert fill(model, max_piece_length=[[8], [8, 8], [8, 8, 8]]) == free
    open_end = fill_alone(model, 1, max_piece_length=[8, None])
    assert open_end == fill_alone(model, 1, max_piece_length=[8, 64])


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
        (dict(min_piece_length=[1, 2]), "min_piece_length has 2 entries for prompt 1"),
        (dict(max_piece_length=[[3]]), "max_piece_length has 1 lists for 3 prompts"),
        (dict(max_piece_length=[[3], [3, 3], 3]), "max_piece_length has no list for prompt 3"),
        (dict(min_piece_length=[[1], [1, 1], [1, 1]]), "2 entries for prompt 3, which has 3"),
        (dict(min_piece_length=-1), "min_piece_length is -1; pass an integer from 0 on"),
        (dict(max_piece_length=[[3], [True, 3], [3] * 3]), "max_piece_length is True"),
        (
            dict(min_piece_length=[[1], [1, 4], [1] * 3], max_piece_length=3),
            "The answer to blank 2 of prompt 2 must have 4 tokens and has room for 3",
        ),
        (dict(min_piece_length=65), "must have 65 tokens and has room for 64"),
        (dict(min_piece_length=9, max_new_tokens=20), "take at least 30 tokens .* are 20 new"),
        (dict(min_piece_length=9, max_length=29), "take at least 30 tokens .* are 19 new"),
    ],
)
def test_lengths_that_no_answer_can_have(tiny_model, options, message):
    model = tiny_model()
    model.glm.forward = None  # whatever happens, no work is done
    ids, mask = padded(PROMPTS, "left")
    with pytest.raises(ValueError, match=message):
        model.generate(ids, attention_mask=mask, **options)


def test_the_shortest_answers_have_just_the_length_that_there_is(tiny_model):
    """The prompt's width, its start, and three answers with their ends."""
    model = tiny_model()
    ids, mask = padded(PROMPTS, "left")
    just = ids.shape[1] + 1 + 30
    options = dict(attention_mask=mask, min_piece_length=9, max_piece_length=9)
    rows = model.generate(ids, max_length=just, **options)
    assert [len(piece) for piece in pieces_of(behind_start(rows[2].tolist()))] == [9, 9, 9]
    with pytest.raises(ValueError, match="there are 29 new tokens"):
        model.generate(ids, max_length=just - 1, **options)


@KINDS
@pytest.mark.parametrize("longest", [3, [[3], [2, 7], [1, 4, 7]]], ids=["one", "for each blank"])
def test_nothing_is_hidden_before_a_piece_can_be_full(
    tiny_model, monkeypatch, longest, block_position_encoding
):
    """The shortest limit is not passed: until then a step costs what it costs without limits."""
    model = tiny_model(block_position_encoding=block_position_encoding, max_sequence_length=128)
    lengths = []

    def note(layout, *arguments):
        lengths.append(layout.length)
        return hide(layout, *arguments)

    hide = generation_glm.hide_overfull
    monkeypatch.setattr(generation_glm, "hide_overfull", note)
    ids, mask = padded(PROMPTS, "left")
    least = longest if isinstance(longest, int) else min(map(min, longest))
    options = dict(max_piece_length=longest, suppress_tokens=[EOP, EOS], max_new_tokens=20)
    model.generate(ids, attention_mask=mask, **options)
    # Then a token that is over the limit may be read, not when it is written.
    assert min(lengths) == ids.shape[1] + least + 1
    lengths.clear()
    model.generate(ids, attention_mask=mask, **{**options, "max_new_tokens": least})
    assert lengths == []


# --- Allowed answers ------------------------------------------------------------------------------

# Beginnings of each other, of other lengths, one empty; a blank that is free; one answer for a row.
ALLOWED = [
    [[[60], [60, 61], [60, 61, 62], []]],
    [None, [[17, 17, 17, 17], [23]]],
    [[[50]], [[51, 52], [52, 51]], [[53, 54, 55]]],
]


def log_prob(
    model,
    prompt: list[int],
    pieces: list[list[int]],
    room: int | None = None,
    end: int = EOP,
) -> float:
    """Of the last piece and its end, from one plain forward in the layout of training."""
    read = [id for piece in pieces for id in (SOP, *piece)]
    ids = torch.tensor([[*prompt, *read]])
    layout = BlankLayout.of(ids, model.config)
    places = torch.arange(ids.shape[1])[None]
    scheme = position_scheme(model.config)
    positions = scheme.position_ids(layout, places, ids.shape[1], room)
    said = [*pieces[-1], end]
    with torch.no_grad():
        logits = model(ids, position_ids=positions).logits[0, -len(said) :]  # (G, V)
    return logits.log_softmax(-1)[range(len(said)), said].sum().item()


@KINDS
@WAYS
def test_only_allowed_answers_are_given(tiny_model, way, block_position_encoding):
    model = tiny_model(block_position_encoding=block_position_encoding, max_sequence_length=128)
    rows = fill(model, allowed_answers=ALLOWED, max_piece_length=6, **way)
    for row, allowed in zip(rows, ALLOWED, strict=True):
        assert len(row) == len(allowed)
        for piece, answers in zip(row, allowed, strict=True):
            assert answers is None or piece in answers


@KINDS
@pytest.mark.parametrize("side, num_beams", [("left", 1), ("right", 3)])
def test_allowed_answers_of_a_row_are_its_own(tiny_model, side, num_beams, block_position_encoding):
    model = tiny_model(block_position_encoding=block_position_encoding)
    options = dict(num_beams=num_beams, max_piece_length=4)
    rows = fill(model, side, allowed_answers=ALLOWED, **options)
    for number, row in enumerate(rows):
        assert fill_alone(model, number, allowed_answers=[ALLOWED[number]], **options) == row


@KINDS
def test_beams_find_the_allowed_answer_that_is_likeliest(tiny_model, block_position_encoding):
    """Each with its end, though the longest is as long as any may be, where others are cut."""
    model = tiny_model(block_position_encoding=block_position_encoding)
    answers = [[id, id + 1, id + 2][:length] for id in range(40, 60, 3) for length in (1, 2, 3)]
    room = 3
    options = dict(max_piece_length=room, num_beams=len(answers), length_penalty=0.0)
    for prompt in PROMPTS[:1]:
        (piece,) = fill_alone(model, 0, allowed_answers=[[answers]], **options)
        scores = [log_prob(model, prompt, [answer], room) for answer in answers]
        assert piece == answers[max(range(len(scores)), key=scores.__getitem__)]


def test_allowed_answers_win_over_what_else_forbids_tokens(tiny_model):
    model = tiny_model()
    for options in (dict(min_new_tokens=5), dict(suppress_tokens=[60])):
        for way in ({}, {"do_sample": True}, {"num_beams": 2}):
            pieces = fill_alone(model, 0, allowed_answers=[[[[60]]]], **options, **way)
            assert pieces == [[60]]


def test_an_assistant_heeds_the_allowed_answers(tiny_model):
    model, assistant = tiny_model(), tiny_model(hidden_size=16, num_layers=1)
    options = dict(allowed_answers=[ALLOWED[2]])
    expected = fill_alone(model, 2, **options)
    assert fill_alone(model, 2, assistant_model=assistant, **options) == expected
    assert fill_alone(model, 2, prompt_lookup_num_tokens=2, **options) == expected


def test_allowed_answers_are_read_back_once_in_a_step(tiny_model, monkeypatch):
    config, read = tiny_model().config, []
    process = AllowedAnswers(ALLOWED, config)
    ids = torch.tensor([[*prompt[:2], MASK, SOP, 60] for prompt in PROMPTS for _ in range(2)])
    tolist = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda self: read.append(1) or tolist(self))
    process(ids, torch.zeros(len(ids), config.vocab_size))
    assert len(read) == 1


def test_a_begun_answer_is_the_beginning_of_an_allowed_one(tiny_model):
    """Else it could only be ended."""
    model = tiny_model()
    prompt = PROMPTS[1]

    def go_on(*behind):
        ids = torch.tensor([[*prompt, SOP, *behind]])
        allowed = [[[[60, 61], [60, 62, 63]], [[23]]]]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pieces that are continued
            row = model.generate(ids, allowed_answers=allowed, max_new_tokens=9)
        return pieces_of(behind_start(row[0].tolist()))

    for beginning in ([], [60], [60, 62], [60, 61]):
        first, second = go_on(*beginning)
        assert first[: len(beginning)] == beginning and first in ([60, 61], [60, 62, 63])
        assert second == [23]
    assert go_on(5, EOP) == [[5], [23]]  # an ended one is the caller's
    model.glm.forward = None  # whatever happens, no work is done
    for beginning, message in {
        (61,): "The answer to blank 1 of prompt 1 begins with the ids \\[61\\]",
        (60, 61, 62): "blank 1 of prompt 1 begins with the ids \\[60, 61, 62\\]",
        (60, 61, EOP, 24): "blank 2 of prompt 1 begins with the ids \\[24\\]",
    }.items():
        with pytest.raises(ValueError, match=message):
            go_on(*beginning)


@pytest.mark.parametrize(
    "allowed, options, message",
    [
        ([[None]], {}, "allowed_answers has 1 lists for 3 prompts"),
        ([[None], [None], [None] * 3], {}, "1 entries for prompt 2, which has 2 blanks"),
        ([[None], [None, []], [None] * 3], {}, "no answer for blank 2 of prompt 2; pass None"),
        ([[[5]], [None] * 2, [None] * 3], {}, "is 5; pass a list of its token ids"),
        ([[[[99]]], [None] * 2, [None] * 3], {}, "has the ids \\[99\\]; pass ids of text"),
        ([[[[5, EOP]]], [None] * 2, [None] * 3], {}, "without the end of the answer"),
        (
            [[[[5, 6], [5]]], [None] * 2, [None] * 3],
            dict(max_piece_length=1),
            "has 2 tokens, but answers have from 0 to 1 there",
        ),
        (
            [[[[5, 6], [5]]], [None] * 2, [None] * 3],
            dict(min_piece_length=2),
            "has 1 tokens, but answers have from 2 to 64|from 2 to 63",
        ),
        (
            [[[[5, 6, 7]]], [None] * 2, [None] * 3],
            dict(bad_words_ids=[[4], [6, 7]]),
            "Answer 1 of those allowed for blank 1 of prompt 1 holds a bad word",
        ),
        ([[[[5] * 30]], [None] * 2, [None] * 3], dict(max_new_tokens=30), "at least 31 tokens"),
    ],
)
def test_allowed_answers_that_cannot_be(tiny_model, allowed, options, message):
    model = tiny_model()
    model.glm.forward = None  # whatever happens, no work is done
    ids, mask = padded(PROMPTS, "left")
    for fills in (model.generate, model.best_answers):
        if fills == model.best_answers:
            options.pop("max_new_tokens", None)
            if "at least" in message:
                continue  # there each blank has its own budget
        with pytest.raises(ValueError, match=message):
            fills(ids, attention_mask=mask, allowed_answers=allowed, **options)


# --- Words that must not occur --------------------------------------------------------------------


@WAYS
def test_a_bad_word_is_in_no_answer_and_may_be_in_the_text(tiny_model, way):
    """Of one token, and of several, which may stand apart, and at the end of one blank and the
    beginning of the next."""
    model = tiny_model()

    def prefer(input_ids, scores):
        wanted = torch.zeros_like(scores)
        wanted[:, [50, 51, 54]] = torch.tensor([300.0, 250.0, 200.0])
        return scores + wanted  # what is forbidden stays so

    bad = [[50], [51, 51], [54, 51]]
    options = dict(logits_processor=[prefer], min_piece_length=3, max_piece_length=3)
    rows = fill(model, bad_words_ids=bad, **options, **way)
    for row in rows:
        for piece in row:
            assert 50 not in piece and set(piece) == {51, 54}
            assert (51, 51) not in pairwise(piece)
            assert (54, 51) not in pairwise(piece)
        ends = pairwise(row)
        assert all((piece[-1], later[0]) == (54, 51) for piece, later in ends)


# --- The best answers -----------------------------------------------------------------------------


@KINDS
@pytest.mark.parametrize("side", ["left", "right"])
def test_best_answers_have_the_probabilities_of_a_plain_forward(
    tiny_model, side, block_position_encoding
):
    """In a batch of rows with other numbers of blanks, however each is padded."""
    model = tiny_model(block_position_encoding=block_position_encoding)
    ids, mask = padded(PROMPTS, side)
    room = 2
    best = model.best_answers(ids, mask, k=3, max_piece_length=room)
    assert torch.equal(best.sequences[:, : ids.shape[1]], ids)
    for prompt, blanks, row in zip(PROMPTS, best.answers, best.sequences.tolist(), strict=True):
        assert len(blanks) == sum(id in (MASK, GMASK, SMASK) for id in prompt)
        earlier = []
        for answers in blanks:
            assert 1 <= len(answers) <= 3
            for one in answers:
                expected = log_prob(model, prompt, [*earlier, one.ids], room)
                assert one.log_prob == pytest.approx(expected, abs=1e-4)
            scores = [answer.log_prob for answer in answers]
            assert scores == sorted(scores, reverse=True)
            assert len({tuple(answer.ids) for answer in answers}) == len(answers)
            earlier.append(answers[0].ids)
        assert pieces_of(row[ids.shape[1] + 1 :])[: len(blanks)] == earlier


@KINDS
def test_a_wide_search_finds_the_best_of_all(tiny_model, block_position_encoding):
    """Of every answer of one token, and the empty one, which ends with the text, too.

    Where there is no room for more, there is no other end than that of the answer.
    """
    model = tiny_model(block_position_encoding=block_position_encoding)
    every = [[]] + [[id] for id in range(99) if id not in (EOP, EOS)]
    scores = {tuple(answer): log_prob(model, PROMPTS[0], [answer], 1) for answer in every}
    scores[()] = max(log_prob(model, PROMPTS[0], [[]], 1, end) for end in (EOP, EOS))
    expected = sorted(scores, key=scores.get, reverse=True)[:6]
    options = dict(k=6, num_beams=98, max_piece_length=1)
    ((found,),) = model.best_answers(torch.tensor(PROMPTS[:1]), **options).answers
    assert [tuple(answer.ids) for answer in found] == expected


@KINDS
@pytest.mark.parametrize("side", ["left", "right"])
def test_best_answers_are_steered(tiny_model, side, block_position_encoding):
    model = tiny_model(block_position_encoding=block_position_encoding)
    ids, mask = padded(PROMPTS, side)
    options = dict(max_piece_length=4, allowed_answers=ALLOWED, bad_words_ids=[[45], [39, 39]])
    best = model.best_answers(ids, mask, k=4, min_piece_length=[[0], [2, 0], [1] * 3], **options)
    for prompt, blanks, row in zip(PROMPTS, best.answers, ALLOWED, strict=True):
        earlier = []
        for answers, allowed in zip(blanks, row, strict=True):
            found = [answer.ids for answer in answers]
            if allowed is None:
                assert all(2 <= len(piece) <= 4 and 45 not in piece for piece in found)
            else:
                assert sorted(found) == sorted(allowed), "all of them, for they are so few"
            for one in answers:  # forbidding others makes none likelier
                expected = log_prob(model, prompt, [*earlier, one.ids], 4)
                assert one.log_prob == pytest.approx(expected, abs=1e-4)
            earlier.append(found[0])


def test_best_answers_are_the_models_whatever_its_generation_config_asks_for(tiny_model):
    model = tiny_model()
    options = dict(k=3, max_new_tokens=5)
    expected = model.best_answers(torch.tensor([PROMPTS[1]]), **options).answers
    model.generation_config.min_new_tokens = 10
    model.generation_config.no_repeat_ngram_size = 1
    model.generation_config.encoder_repetition_penalty = 3.0
    model.generation_config.exponential_decay_length_penalty = (1, 2.0)
    assert model.best_answers(torch.tensor([PROMPTS[1]]), **options).answers == expected


def test_best_answers_of_many_blanks_take_no_positions_of_the_context(tiny_model):
    """Pieces have the positions of their blanks, however long they are."""
    model = tiny_model(max_sequence_length=24)
    ids = torch.tensor([[1, MASK, 2, MASK, 3, MASK, EOS]])
    lengths = dict(min_piece_length=8, max_piece_length=9)
    (blanks,) = model.best_answers(ids, k=1, num_beams=2, **lengths).answers
    assert len(blanks) == 3


def test_a_search_that_is_stopped(tiny_model):
    class AtOnce(StoppingCriteria):
        def __call__(self, input_ids, scores, **kwargs):
            return torch.ones(len(input_ids), dtype=torch.bool)

    stopped = dict(stopping_criteria=StoppingCriteriaList([AtOnce()]), min_piece_length=3)
    (blanks,) = tiny_model().best_answers(torch.tensor([PROMPTS[1]]), k=1, **stopped).answers
    assert blanks == [[], []]


def test_best_answers_of_a_row_do_not_depend_on_the_batch(tiny_model):
    model = tiny_model()
    ids, mask = padded(PROMPTS, "left")
    together = model.best_answers(ids, mask, k=2, max_piece_length=3).answers
    for prompt, blanks in zip(PROMPTS, together, strict=True):
        (alone,) = model.best_answers(torch.tensor([prompt]), k=2, max_piece_length=3).answers
        assert [[answer.ids for answer in answers] for answers in alone] == [
            [answer.ids for answer in answers] for answers in blanks
        ]


@pytest.mark.parametrize(
    "ids, options, message",
    [
        ([1, 2, EOS], {}, "Prompt 1 has no mask token"),
        ([1, MASK, EOS, SOP], {}, "holds <.startofpiece.>; pass contexts alone"),
        ([1, MASK, EOS], dict(k=0), "k is 0 and num_beams 4; pass 1 <= k <= num_beams"),
        ([1, MASK, EOS], dict(k=5, num_beams=4), "k is 5 and num_beams 4"),
        ([1, MASK, EOS], dict(k=1, num_beams=1), "2 beams at least"),
        ([1, MASK, EOS], dict(max_new_tokens=1), "max_new_tokens is 1; an answer and its end"),
        ([1, MASK, EOS], dict(max_piece_length=[3, 3]), "2 entries for prompt 1"),
        ([1, MASK, EOS], dict(min_piece_length=64), "must have 64 tokens and has room for 63"),
    ],
)
def test_best_answers_that_cannot_be(tiny_model, ids, options, message):
    model = tiny_model()
    model.glm.forward = None
    with pytest.raises(ValueError, match=message):
        model.best_answers(torch.tensor([ids]), **options)


# --- Strings: the tokenizer and the pipeline ------------------------------------------------------

TEXT = "Ng is a professor at [MASK]. He lives in [MASK] now"
ALLOWED_TEXTS = [["Stanford", "Tsinghua University"], ["Beijing", "the brown fox", "Stanford"]]


@pytest.fixture(scope="module")
def fill_text(made_repository):
    return GLMText2TextGenerationPipeline(
        model=GLMForConditionalGeneration.from_pretrained(made_repository).eval(),
        tokenizer=GLMTokenizerFast.from_pretrained(made_repository),
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_allowed_answers_are_encoded_as_targets_are(repository, family):
    """With the space that each has in its text, and no end."""
    tokenizer = GLMTokenizerFast.from_pretrained(repository(family))
    texts = ["Ng is at [MASK] (formerly [MASK]).", "[MASK] is in China", "北京[MASK]"]
    allowed = [[["Stanford", "New York", ""], None], [["Beijing"]], [["大学", "Oxford"]]]
    inputs = tokenizer(texts, padding=True, return_tensors="pt")
    encoded = tokenizer.encode_allowed_answers(inputs, allowed)
    assert encoded[0][1] is None
    for number, text in enumerate(texts):
        alone = tokenizer(text)
        spaces = tokenizer.spaces_before_masks(alone.encodings[0])
        for answers, ids in zip(allowed[number][:1], encoded[number], strict=False):
            for text_of_answer, of_answer in zip(answers, ids, strict=True):
                (whole,) = tokenizer.encode_answers(alone.input_ids, [text_of_answer], spaces)
                assert [*of_answer, tokenizer.eop_token_id] == whole
    with pytest.raises(ValueError, match="2 entries for 3 texts"):
        tokenizer.encode_allowed_answers(inputs, allowed[:2])
    with pytest.raises(ValueError, match="one entry for each mask of a text, of which there are 2"):
        tokenizer.encode_allowed_answers(inputs, [[None], *allowed[1:]])
    with pytest.raises(ValueError, match="has 'Beijing' where a list of texts belongs"):
        tokenizer.encode_allowed_answers(inputs, [allowed[0], ["Beijing"], allowed[2]])


@pytest.mark.parametrize("family", FAMILIES)
def test_bad_words_are_forbidden_with_and_without_a_space(repository, family):
    """Wherever a word stands in an answer, its tokens there are among the forbidden ones."""
    tokenizer = GLMTokenizerFast.from_pretrained(repository(family))
    for word in ("Paris", "New York", "北京"):
        bad = tokenizer.encode_bad_words([word])
        spaced = "" if word == "北京" else " "
        for said in (word, f" {word}", f"in {word}", f"in{spaced}{word}, now", f"({word})"):
            ids = tokenizer(said, add_special_tokens=False).input_ids
            held = [ids[start : start + len(one)] for one in bad for start in range(len(ids))]
            assert any(one in held for one in bad), said
    assert tokenizer.encode_bad_words(["Paris", " Paris "]) == tokenizer.encode_bad_words(["Paris"])
    for words, message in (([" "], "bad_words has ' '"), ("a", "'a' where"), ([], "empty list")):
        with pytest.raises(ValueError, match=message):
            tokenizer.encode_bad_words(words)
    with pytest.raises(ValueError, match="A bad word holds"):
        tokenizer.encode_bad_words(["<|endofpiece|>"])


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_steered_in_a_batch_and_with_beams(repository, family):
    folder = repository(family)
    fill = GLMText2TextGenerationPipeline(
        model=GLMForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval(),
        tokenizer=GLMTokenizerFast.from_pretrained(folder),
    )
    texts = ["[MASK] lies in [MASK].", "a long text on [MASK] and on the old [MASK] of the town"]
    allowed = [["paris", "new york"], ["the north", "china"]]
    ends = (fill.tokenizer.eop_token_id, fill.tokenizer.eos_token_id)
    for way in ({}, {"num_beams": 3}, {"alternatives": 2}):
        options = dict(allowed_answers=allowed, **way)
        together = fill(texts, batch_size=2, **options)
        for text, result in zip(texts, together, strict=True):
            assert all(map(list.__contains__, allowed, result["blanks"]))
            assert result["blanks"] == fill(text, **options)[0]["blanks"]
            for best, answers in zip(result.get("alternatives", []), allowed, strict=False):
                assert sorted(one["answer"] for one in best) == sorted(answers)
        lengths = dict(min_piece_length=[2, 1], max_piece_length=[2, 3], return_tensors=True)
        for result in fill(texts, batch_size=2, **lengths, **way):
            ids = result["generated_token_ids"].tolist()
            first, second = [place for place, id in enumerate(ids) if id in ends][:2]
            assert first - 1 == 2 and 1 <= second - first - 1 <= 3


@pytest.mark.parametrize("batch_size", [1, 3])
def test_lists_for_the_blanks_of_a_text(fill_text, batch_size):
    texts = [TEXT, "", "[MASK] is the brown [MASK]."]
    options = dict(max_new_tokens=20, batch_size=batch_size, return_tensors=True)
    results = fill_text(texts, min_piece_length=[3, 0], max_piece_length=[3, 1], **options)
    for result in (results[0], results[2]):
        pieces = result["generated_token_ids"].tolist()
        ends = [place for place, id in enumerate(pieces) if id == fill_text.tokenizer.eop_token_id]
        assert ends[0] == 1 + 3 and ends[1] - ends[0] - 1 <= 1
    assert results[1]["blanks"] == []
    results = fill_text(texts, allowed_answers=ALLOWED_TEXTS, **options)
    for result in (results[0], results[2]):
        for piece, allowed in zip(result["blanks"], ALLOWED_TEXTS, strict=True):
            assert piece in allowed
    assert results[1]["blanks"] == []


def test_options_that_the_pipeline_was_made_with(fill_text):
    options = dict(max_piece_length=2, allowed_answers=[["Beijing"], None], bad_words=["fox"])
    made = GLMText2TextGenerationPipeline(
        model=fill_text.model, tokenizer=fill_text.tokenizer, max_new_tokens=12, **options
    )
    options["allowed_answers"] = [["Stanford"], None]
    more = dict(max_piece_length=[9, 2], allowed_answers=options["allowed_answers"])
    expected = fill_text(TEXT, max_new_tokens=12, **{**options, **more})
    assert made(TEXT, **more) == expected and expected[0]["blanks"][0] == "Stanford"


def test_a_bad_word_of_the_pipeline(fill_text):
    """What an answer begins with, then what the next one begins with, and so on, is forbidden."""
    words = []
    for _ in range(3):
        options = dict(bad_words=words) if words else {}
        options |= dict(max_piece_length=3, max_new_tokens=4, return_tensors=True)
        (result,) = fill_text("It is [MASK]", **options)
        ids = result["generated_token_ids"].tolist()[1:-1]
        forbidden = fill_text.tokenizer.encode_bad_words(words) if words else []
        assert not any(
            bad == ids[start : start + len(bad)] for bad in forbidden for start in (0, 1, 2)
        )
        words.append(fill_text.tokenizer.decode(ids[:1]).strip())
        assert ids[:1] in fill_text.tokenizer.encode_bad_words(words)


@pytest.mark.parametrize("batch_size", [1, 2])
def test_alternatives_have_the_probabilities_that_score_gives(fill_text, batch_size):
    texts = [TEXT, "It is in [MASK] or [MASK]."]
    results = fill_text(
        texts,
        alternatives=2,
        allowed_answers=ALLOWED_TEXTS,
        batch_size=batch_size,
        max_new_tokens=9,
    )
    for text, result in zip(texts, results, strict=True):
        earlier = []
        for answers, allowed in zip(result["alternatives"], ALLOWED_TEXTS, strict=True):
            assert len(answers) == 2 and {one["answer"] for one in answers} <= set(allowed)
            for one in answers:
                said = [*earlier, f" {one['answer']}".rstrip()]
                later = ["x"] * (2 - len(said))  # which changes nothing for earlier ones
                ((*scores,),) = log_likelihood(
                    fill_text.model,
                    fill_text.tokenizer,
                    [text],
                    [said + later],
                    end_token=True,
                )
                expected = scores[len(said) - 1].log_prob
                assert math.log(one["probability"]) == pytest.approx(expected, abs=1e-4)
            probabilities = [one["probability"] for one in answers]
            assert probabilities == sorted(probabilities, reverse=True)
            earlier.append(f" {answers[0]['answer']}".rstrip())
        assert result["blanks"] == [answers[0]["answer"] for answers in result["alternatives"]]
        assert result["filled_text"] == fill_text.tokenizer.fill(text, result["blanks"])


def test_alternatives_are_distinct_texts(fill_text):
    (result,) = fill_text(TEXT, alternatives=5, max_piece_length=2)
    for answers in result["alternatives"]:
        assert 1 <= len({one["answer"] for one in answers}) == len(answers) <= 5
    (continued,) = fill_text("The quick brown", alternatives=1, max_piece_length=[2])
    assert len(continued["alternatives"]) == 1


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(max_piece_length=[3]), "max_piece_length has 1 entries, but there are 2 blanks"),
        (dict(min_piece_length="2"), "min_piece_length has '2', but there are 2 blanks"),
        (
            dict(min_piece_length=[4, 1], max_piece_length=2),
            "must have 4 tokens and has room for 2",
        ),
        (dict(allowed_answers=["a", "b"]), "has 'a' where a list of texts belongs"),
        (dict(allowed_answers=[None, []]), "allowed_answers has an empty list"),
        (
            dict(allowed_answers=[["Stanford"], None], max_piece_length=1),
            "answers have from 0 to 1",
        ),
        (dict(allowed_answers=[["fox"], None], bad_words=["fox"]), "holds a bad word"),
        (dict(bad_words=[""]), "bad_words has ''"),
        (dict(alternatives=0), "alternatives is 0; pass an integer from 1 on"),
        (dict(alternatives=2, do_sample=True), "without do_sample; leave one of them out"),
    ],
)
def test_what_the_pipeline_cannot_do(fill_text, monkeypatch, options, message):
    monkeypatch.setattr(fill_text.model.glm, "forward", None)  # no work is done
    for texts in (TEXT, [TEXT, TEXT]):
        with pytest.raises(ValueError, match=message):
            fill_text(texts, **options)
    if "1 entries" in message:  # found out before the first text is worked on
        with pytest.raises(ValueError, match=message):
            fill_text(["One [MASK]", TEXT], **options)
