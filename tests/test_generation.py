"""Ways of generating, the old Hub port's calls, and prompts that cannot be filled."""

import pytest
import torch
from conftest import EOP, EOS, GMASK, MASK, SMASK, SOP
from test_invariants import LIMITS, PROMPTS, answer, padded, split
from torch.nn import functional as F
from transformers import DynamicCache, GenerationConfig
from transformers.generation import stopping_criteria
from transformers.generation.streamers import BaseStreamer

ONE = torch.tensor([PROMPTS[0]])
TWO = torch.tensor([PROMPTS[1]])


def test_assisted_and_prompt_lookup_decoding_give_the_greedy_answer(tiny_model):
    model = tiny_model()
    for prompt in PROMPTS:
        ids = torch.tensor([prompt])
        expected = answer(model, ids)
        assert answer(model, ids, prompt_lookup_num_tokens=3) == expected
        assert answer(model, ids, assistant_model=tiny_model()) == expected


def test_an_assistant_that_guesses_wrong_changes_nothing(tiny_model):
    model, assistant = tiny_model(), tiny_model(hidden_size=16, num_layers=1)
    for prompt in PROMPTS:
        ids = torch.tensor([prompt])
        assert answer(model, ids, assistant_model=assistant) == answer(model, ids)


def test_a_model_that_assists_itself_by_its_first_layer(tiny_model):
    model = tiny_model()
    expected = answer(model, TWO)
    assert answer(model, TWO, assistant_early_exit=1) == expected


def test_labels_in_the_inputs_change_nothing(tiny_model):
    """Seq2SeqTrainer hands whole training batches to generate."""
    model = tiny_model()
    labels = torch.full((1, 3), 5)
    assert torch.equal(model.generate(TWO, labels=labels, **LIMITS), model.generate(TWO, **LIMITS))


@pytest.mark.parametrize(
    "name", ["past_key_values", "cache"]
)  # before Transformers 5.24, and since
def test_a_cache_of_the_whole_context_or_none(tiny_model, name):
    model, assistant = tiny_model(), tiny_model(hidden_size=16, num_layers=1)
    cache, another, part = DynamicCache(), DynamicCache(), DynamicCache()
    model(TWO, **{"past_key_values": None, "cache": None, name: cache})
    assert cache.get_seq_length() == TWO.shape[1]
    generated = model.generate(TWO, **{name: cache}, **LIMITS)
    assert torch.equal(generated, model.generate(TWO, **LIMITS))
    assert cache.get_seq_length() == generated.shape[1] - 1  # nothing reads the last token
    model(TWO, **{name: another})
    assert torch.equal(
        model.generate(TWO, **{name: another}, assistant_model=assistant, **LIMITS), generated
    )
    with pytest.raises(ValueError, match="cache_implementation"):
        model.generate(TWO, **{name: another}, cache_implementation="static", **LIMITS)
    model(TWO[:, :4], **{name: part})
    with pytest.raises(ValueError, match="holds only a part of the bidirectional context"):
        model.generate(TWO, **{name: part}, **LIMITS)


def test_an_answer_of_many_tokens_is_not_warned_of(tiny_model, monkeypatch):
    """It has as many as the model has positions, and takes none of the context's."""
    told = []
    monkeypatch.setattr(stopping_criteria.logger, "warning_once", told.append)
    model = tiny_model(max_sequence_length=16)
    rows = model.generate(ONE, min_piece_length=14, max_piece_length=14, max_new_tokens=15)
    assert rows.shape[1] > 16 + 1
    assert told == []


def test_sampling_and_num_return_sequences(tiny_model):
    model = tiny_model()
    ids, mask = padded(PROMPTS, "left")
    torch.manual_seed(3)
    options = dict(do_sample=True, temperature=2.0, top_k=40, num_return_sequences=4, **LIMITS)
    rows = model.generate(ids, attention_mask=mask, **options)
    assert rows.shape[0] == 12 and torch.equal(rows[:, : ids.shape[1]], ids.repeat_interleave(4, 0))
    assert len({tuple(row) for row in rows[8:].tolist()}) > 1
    torch.manual_seed(3)
    assert torch.equal(model.generate(ids, attention_mask=mask, **options), rows)


def test_beams_are_deterministic_and_find_at_least_the_greedy_score(tiny_model):
    model = tiny_model()
    options = dict(return_dict_in_generate=True, output_scores=True, length_penalty=0.0, **LIMITS)
    first = model.generate(ONE, num_beams=8, **options)
    assert torch.equal(first.sequences, model.generate(ONE, num_beams=8, **options).sequences)
    greedy = model.generate(ONE, **options)
    score = torch.stack(greedy.scores, dim=1)[0].log_softmax(-1)
    taken = greedy.sequences[0, ONE.shape[1] + 1 :]
    forced = (
        len(taken) == LIMITS["max_piece_length"] + 1
    )  # the end that the limit puts has no score
    taken = taken[:-1] if forced else taken
    assert first.sequences_scores[0] >= score[torch.arange(len(taken)), taken].sum() - 1e-4
    returned = model.generate(TWO, num_beams=4, num_return_sequences=3, **LIMITS)
    assert returned.shape[0] == 3 and len({tuple(row) for row in returned.tolist()}) == 3


class Collect(BaseStreamer):
    def __init__(self):
        self.tokens, self.ended = [], False

    def put(self, value):
        self.tokens += value.flatten().tolist()

    def end(self):
        self.ended = True


def test_streamers_see_the_prompt_and_every_token(tiny_model):
    streamer = Collect()
    sequences = tiny_model().generate(TWO, streamer=streamer, **LIMITS)
    assert streamer.tokens == sequences[0].tolist() and streamer.ended


def test_return_dict_holds_scores_of_the_sequence(tiny_model):
    output = tiny_model().generate(
        TWO, return_dict_in_generate=True, output_scores=True, output_logits=True, **LIMITS
    )
    new = output.sequences.shape[1] - TWO.shape[1] - 1
    assert len(output.scores) == len(output.logits) == new
    assert (
        torch.stack(output.scores)[:, 0].argmax(-1).tolist() == output.sequences[0, -new:].tolist()
    )


def test_max_piece_length_limits_each_blank(tiny_model):
    model = tiny_model()
    ids = torch.tensor([PROMPTS[2]])
    for limit in (1, 2, 7):
        pieces = split(answer(model, ids, max_piece_length=limit, max_new_tokens=60)[0])[:-1]
        assert len(pieces) == 3 and max(map(len, pieces)) == limit
    # A piece cannot be longer than there are block positions.
    config = tiny_model(max_sequence_length=16)
    pieces = split(
        answer(config, torch.tensor([PROMPTS[2]]), max_new_tokens=300, max_piece_length=None)[0]
    )[:-1]
    assert len(pieces) == 3 and max(map(len, pieces)) <= 16


def test_the_last_token_of_a_full_piece_is_never_read(tiny_model):
    """What follows does not depend on it: the original goes on without feeding it."""
    model = tiny_model()
    prompt = PROMPTS[1] + [SOP, 60, 61, 62]
    # Two prompts whose first piece, of three tokens, differs in its last.
    rows = [[*prompt, EOP], [*prompt[:-1], 63, EOP]]
    first, second = (
        model.generate(
            torch.tensor([row]),
            max_piece_length=3,
            max_new_tokens=8,
            output_logits=True,
            return_dict_in_generate=True,
        )
        for row in rows
    )
    torch.testing.assert_close(
        torch.stack(first.logits), torch.stack(second.logits), atol=1e-5, rtol=0
    )
    free = [
        model.generate(
            torch.tensor([row]),
            max_piece_length=9,
            max_new_tokens=8,
            output_logits=True,
            return_dict_in_generate=True,
        )
        for row in rows
    ]
    assert not torch.allclose(free[0].logits[0], free[1].logits[0], atol=1e-3)


def test_a_start_that_the_model_chooses_is_a_token_of_its_answer(tiny_model):
    """Only ends separate pieces; a chosen <|startofpiece|> is read at the next block position."""
    model = tiny_model()
    ids = torch.tensor([PROMPTS[1] + [SOP, 60, SOP, 61]])
    inputs = model.prepare_inputs_for_generation(ids)
    assert inputs["position_ids"][0, 0, 8:].tolist() == [1] * 4
    assert inputs["position_ids"][0, 1, 8:].tolist() == [1, 2, 3, 4]


def test_steps_feed_starts_in_place_of_ends(tiny_model):
    ids = torch.tensor([PROMPTS[1] + [SOP, 60, 61, EOP, 62, EOS]])
    inputs = tiny_model().prepare_inputs_for_generation(ids)
    assert inputs["input_ids"][0, 8:].tolist() == [SOP, 60, 61, SOP, 62, SOP]
    assert inputs["position_ids"][0].tolist() == [
        [*range(8), 1, 1, 1, 5, 5, 5],
        [0] * 8 + [1, 2, 3, 1, 2, 1],
    ]


def test_unknown_keyword_arguments_reach_forward(tiny_model):
    assert tiny_model().prepare_inputs_for_generation(ONE, something=3)["something"] == 3


def test_generation_continues_a_begun_piece(tiny_model):
    model = tiny_model()
    whole = model.generate(TWO, **LIMITS)
    for cut in range(TWO.shape[1] + 1, whole.shape[1]):
        rest = model.generate(
            whole[:, :cut], max_piece_length=5, max_new_tokens=LIMITS["max_new_tokens"]
        )
        assert torch.equal(rest, whole)


def test_old_port_inputs_give_the_answers_of_the_new_ones(tiny_model):
    """Its inputs had a start in the ids, positions and a mask to the full length."""
    model = tiny_model()
    for side in ("left", "right"):
        ids, mask = padded(PROMPTS, side)
        rows, width, room = *ids.shape, 30
        started = torch.cat([ids, torch.full((rows, 1), SOP)], dim=1)
        counted = (mask.cumsum(-1) - 1).clamp(min=0)
        first_mask = (
            torch.isin(ids, torch.tensor([MASK, GMASK, SMASK])).int().argmax(-1, keepdim=True)
        )
        position_ids = torch.stack(
            [
                torch.cat([counted, counted.gather(1, first_mask).expand(-1, room)], dim=1),
                torch.cat(
                    [torch.zeros_like(ids), torch.arange(1, room + 1).expand(rows, -1)], dim=1
                ),
            ],
            dim=1,
        )
        context = mask[:, None].expand(-1, width + room, -1)
        answers = (
            torch.cat([torch.zeros(width, room), torch.ones(room, room).tril()])
            .long()
            .expand(rows, -1, -1)
        )
        old = model.generate(
            input_ids=started,
            position_ids=position_ids,
            generation_attention_mask=torch.cat([context, answers], dim=2)[:, None],
            max_length=width + room,
            eos_token_id=EOP,
        )
        new = model.generate(ids, attention_mask=mask, max_length=width + room)
        assert torch.equal(old, new)


def test_given_context_positions_are_kept(tiny_model):
    """Shifted as in pretraining with random offsets: another answer, the same with a cache."""
    model = tiny_model()
    shifted = torch.stack([torch.arange(8) + 20, torch.zeros(8, dtype=torch.long)])[None]
    options = dict(position_ids=shifted, output_logits=True, return_dict_in_generate=True, **LIMITS)
    cached, uncached = (
        model.generate(TWO, **options),
        model.generate(TWO, use_cache=False, **options),
    )
    assert torch.equal(cached.sequences, uncached.sequences)
    plain = model.generate(TWO, output_logits=True, return_dict_in_generate=True, **LIMITS)
    assert not torch.allclose(cached.logits[0], plain.logits[0], atol=1e-3)


def test_inputs_embeds_generate_the_same(tiny_model):
    model = tiny_model()
    ids, mask = padded(PROMPTS, "left")
    expected = model.generate(ids, attention_mask=mask, **LIMITS)
    embeds = model.get_input_embeddings()(ids)
    assert torch.equal(
        model.generate(ids, attention_mask=mask, inputs_embeds=embeds, **LIMITS), expected
    )
    alone = model.generate(inputs_embeds=embeds, attention_mask=mask, **LIMITS)
    assert torch.equal(alone, expected[:, ids.shape[1] + 1 :])


def test_minus_one_is_no_end(tiny_model):
    """As people write it who want answers that never end; embeddings show which ids are taken."""
    model = tiny_model(eop_token_id=-1, eos_token_id=-1)
    model.generation_config.eos_token_id = -1
    begun = F.pad(ONE, (0, 1), value=SOP)
    begun = F.pad(begun, (0, 2), value=60)
    embeds = model.get_input_embeddings()(begun)
    with pytest.warns(UserWarning, match="pieces, which are continued"):
        answers = model.generate(begun, max_new_tokens=6)[:, begun.shape[1] :]
        assert torch.equal(model.generate(inputs_embeds=embeds, max_new_tokens=6), answers)
    assert answers.shape == (1, 6)


@pytest.mark.parametrize(
    "ids, options, message",
    [
        ([1, 2, 3, EOS], {}, "Prompt 1 has no mask token"),
        ([1, MASK, 3, EOS, SOP, 5, EOP], {}, "nothing left to generate"),
        ([1, MASK] * 40, {}, "takes 80 positions, but this model has 65"),
        (
            [1, MASK, EOS],
            dict(prefill_chunk_size=2),
            "prefill_chunk_size cuts the bidirectional context",
        ),
        ([1, MASK, EOS], dict(cache_implementation="paged"), "causal only"),
        (
            [1, MASK, EOS],
            dict(
                generation_config=GenerationConfig(
                    cache_implementation="static", prefill_chunk_size=2
                )
            ),
            "cuts",
        ),
        *(
            ([1, MASK, EOS], dict(max_piece_length=length), "max_piece_length is .*from 1 on")
            for length in (0, -1, 2.5, "2")
        ),
        ([1, MASK, EOS], dict(attention_mask=torch.tensor([2])), "generation needs \\(1, 3\\)"),
    ],
)
def test_prompts_that_cannot_be_filled(tiny_model, ids, options, message):
    model = tiny_model()
    model.glm.forward = None  # whatever happens, no work is done
    with pytest.raises(ValueError, match=message):
        model.generate(torch.tensor([ids]), **options)


ANSWERS = [[60, 61], [62, 63, 64]]


def training_batch(form: str) -> dict:
    """Two contexts with answers and labels, padded, with each form of mask that batches have."""
    contexts = [[1, 17, MASK, 23, 5, EOS], [1, 9, MASK, EOS]]
    sides = {"left": lambda row, pads: pads + row, "right": lambda row, pads: row + pads}
    side = "right" if form == "lengths" else "left"
    rows, masks, labels = [], [], []
    for context, piece in zip(contexts, ANSWERS, strict=True):
        row = [*context, SOP, *piece]
        pads = [EOS] * (10 - len(row))
        rows.append(sides[side](row, pads))
        masks.append(sides[side]([1] * len(row), [0] * len(pads)))
        labels.append(sides[side]([-100] * len(context) + [*piece, EOP], [-100] * len(pads)))
    batch = {"input_ids": torch.tensor(rows), "labels": torch.tensor(labels)}
    visible = torch.tensor(masks)
    if form == "padding":
        batch["attention_mask"] = visible
    elif form == "explicit":
        batch["attention_mask"] = visible[:, None, None].repeat(1, 1, 10, 1)
        batch["attention_mask"][:, :, -1] = 0  # the starts tell, not the last token
    else:
        batch["attention_mask"] = torch.tensor([len(context) for context in contexts])
    return batch


@pytest.mark.parametrize("form", ["padding", "explicit", "lengths"])
@pytest.mark.parametrize("name", ["labels", "shift_labels"])
def test_a_batch_with_answers_is_cut_before_them(tiny_model, form, name):
    """Seq2SeqTrainer evaluates on the batches that it trains on."""
    model, batch = tiny_model(), training_batch(form)
    batch[name] = batch.pop("labels")
    ids, mask = padded([[1, 17, MASK, 23, 5, EOS], [1, 9, MASK, EOS]], "left")
    expected = model.generate(ids, attention_mask=mask, **LIMITS)
    assert torch.equal(model.generate(**batch, **LIMITS), expected)
    positions = torch.arange(10).flip(0).expand(2, 2, -1)  # of the caller's, cut like the ids
    backwards = model.generate(**batch, position_ids=positions, **LIMITS)
    assert torch.equal(backwards[:, :7], expected[:, :7])
    assert not torch.equal(backwards, expected)


def test_embeddings_of_a_batch_with_answers_are_cut_too(tiny_model):
    model, batch = tiny_model(), training_batch("padding")
    embeds = model.get_input_embeddings()(batch["input_ids"])
    expected = model.generate(**batch, **LIMITS)
    assert torch.equal(model.generate(**batch, inputs_embeds=embeds, **LIMITS), expected)


def test_a_start_that_the_model_chooses_counts_for_the_length_of_its_piece(tiny_model):
    model = tiny_model()

    def prefer_starts(input_ids, scores):
        wanted = torch.zeros_like(scores)
        wanted[:, SOP] = 2000.0
        return scores + wanted

    generated = model.generate(
        ONE, logits_processor=[prefer_starts], max_new_tokens=9, max_piece_length=3
    )
    assert generated[0, ONE.shape[1] :].tolist() == [SOP, SOP, SOP, SOP, EOP]


def test_without_labels_a_prompt_with_pieces_is_continued(tiny_model):
    model, batch = tiny_model(), training_batch("padding")
    with pytest.warns(UserWarning, match="If they are answers to learn from"):
        generated = model.generate(batch["input_ids"][:1], max_new_tokens=3)
    assert generated[0, :10].tolist() == batch["input_ids"][0].tolist()


def test_guidance_is_refused_by_name(tiny_model):
    with pytest.raises(ValueError, match="guidance_scale"):
        tiny_model().generate(ONE, guidance_scale=2.0)
    tiny_model().generate(ONE, guidance_scale=1.0, **LIMITS)


@pytest.mark.parametrize("num_beams", [1, 3])
def test_repetitions_are_counted_within_a_piece(tiny_model, num_beams):
    """Neither the context nor the other answer forbids a token; the piece itself does."""
    model = tiny_model()
    ids = torch.tensor([[1, 17, MASK, 23, 17, MASK, EOS]])

    def prefer_17(input_ids, scores):
        wanted = torch.zeros_like(scores)
        wanted[:, 17], wanted[:, EOP] = 2000.0, 1000.0
        return scores + wanted  # what is forbidden stays so

    options = dict(max_new_tokens=8, max_piece_length=3, num_beams=num_beams)
    if num_beams > 1:
        options["length_penalty"] = 0.0  # which would rather have one answer than two
    generated = model.generate(ids, logits_processor=[prefer_17], no_repeat_ngram_size=1, **options)
    assert generated[0, 7:].tolist() == [SOP, 17, EOP, 17, EOP]


def test_one_prompt_without_a_mask_among_others(tiny_model):
    ids = torch.tensor([[1, MASK, 5, EOS], [1, 7, 5, EOS]])
    with pytest.raises(ValueError, match="Prompt 2 has no mask token"):
        tiny_model().generate(ids)


def test_rows_must_all_have_begun_or_none(tiny_model):
    ids = torch.tensor([[1, MASK, 5, SOP], [1, MASK, 5, 6]])
    with pytest.raises(ValueError, match="append it to all or to none"):
        tiny_model().generate(ids)
    begun = torch.tensor([[1, MASK, SOP, 5, EOS]])
    with pytest.raises(ValueError, match="on the left"):
        tiny_model().generate(begun, attention_mask=torch.tensor([[1, 1, 1, 1, 0]]))


def test_no_prompt(tiny_model):
    with pytest.raises(ValueError, match="There is no prompt"):
        tiny_model().generate(max_new_tokens=3)


def test_room_for_each_blank_without_block_positions(tiny_model):
    model = tiny_model(block_position_encoding=False)
    with pytest.raises(ValueError, match="but this model has 64"):
        model.generate(torch.tensor([PROMPTS[2]]), max_new_tokens=30)
    model.generation_config.max_new_tokens = None
    with pytest.raises(ValueError, match="needs max_piece_length"):
        model.generate(torch.tensor([PROMPTS[2]]), max_length=40)


def test_continuous_batching_is_refused(tiny_model):
    with pytest.raises(NotImplementedError, match="Continuous batching"):
        tiny_model().generate_batch([PROMPTS[0]])
