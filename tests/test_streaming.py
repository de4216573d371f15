"""Answers piece by piece: what a streamer hands on is what `decode_pieces` gives, and when."""

import random
from queue import Empty
from threading import Thread

import pytest
import torch
from conftest import CONVERSIONS
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from glm_transformers import (
    GLMForConditionalGeneration,
    GLMTokenizerFast,
    PieceChunk,
    PieceIteratorStreamer,
    PieceStreamer,
)

FAMILIES = [name for name, options in CONVERSIONS.items() if "model" in options]
BYTES = (
    "tiny-gpt2-fp16",
    "tiny-roberta-fp16",
)  # whose tokens are bytes: the others have no such emoji
TEXT = "[MASK] is located in [MASK] now, and [MASK]."
LIMITS = dict(max_new_tokens=20, max_piece_length=5)
SAID = [
    "naïve 😀 cafés 北京, 天安门。",
    "Ng 's \U0001f469‍\U0001f680 \n fine",
    "  spaced  out  ",
    "é",
]


@pytest.fixture(scope="module")
def model(made_repository):
    return GLMForConditionalGeneration.from_pretrained(made_repository).eval()


@pytest.fixture(scope="module")
def tokenizer(made_repository):
    return GLMTokenizerFast.from_pretrained(made_repository)


def joined(chunks: list[PieceChunk]) -> list[str]:
    """The answers that chunks make up, which come in the order of the blanks."""
    assert [chunk.blank for chunk in chunks] == sorted(chunk.blank for chunk in chunks)
    answers: dict[int, str] = {}
    for chunk in chunks:
        answers[chunk.blank] = answers.get(chunk.blank, "") + chunk.text
    ends = [chunk.blank for chunk in chunks if chunk.ended]
    assert ends == list(answers), "each ends once"
    last = {chunk.blank: chunk for chunk in chunks}
    assert all(chunk.ended for chunk in last.values()), "and with its last chunk"
    return list(answers.values())


def stream(tokenizer, prompt: list[int], said: list[int]) -> list[PieceChunk]:
    """The chunks of a prompt and tokens that come one by one."""
    chunks: list[PieceChunk] = []
    streamer = PieceStreamer(tokenizer, chunks.append)
    streamer.put(torch.tensor([[*prompt, tokenizer.sop_token_id]]))
    for id in said:
        streamer.put(torch.tensor([id]))
    streamer.end()
    return chunks


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_of_every_family(repository, family):
    """Of texts with characters of several tokens, and of tokens in no order."""
    tokenizer = GLMTokenizerFast.from_pretrained(repository(family))
    context = tokenizer(TEXT).input_ids
    number = random.Random(3)
    answers = tokenizer.encode_answers(context, SAID[:3])
    answers += [[*(number.randrange(9000) for _ in range(9)), tokenizer.eop_token_id] for _ in "12"]
    for first in range(3):
        said = [id for answer in answers[first : first + 3] for id in answer]
        chunks = stream(tokenizer, context, said)
        row = [*context, tokenizer.sop_token_id, *said]
        assert [joined(chunks)] == tokenizer.decode_pieces([row])
        if first == 0 and family in BYTES:
            assert any(chunk.text.endswith("😀") for chunk in chunks)
            assert not any("\ufffd" in chunk.text for chunk in chunks)
            assert len(chunks) > 10


def test_generation_is_streamed_blank_by_blank(model, tokenizer):
    inputs = tokenizer(TEXT, return_tensors="pt")
    chunks: list[PieceChunk] = []
    streamer = PieceStreamer(tokenizer, chunks.append)
    for options in ({}, {"prompt_lookup_num_tokens": 2}, {"max_new_tokens": 8}):
        chunks.clear()  # one streamer serves them all
        output = model.generate(**inputs, **{**LIMITS, **options}, streamer=streamer)
        (expected,) = tokenizer.decode_pieces(output)
        assert joined(chunks) == expected[: chunks[-1].blank + 1]
        assert not any(expected[chunks[-1].blank + 1 :])


def test_pieces_that_are_there_already_are_streamed_too(model, tokenizer):
    inputs = tokenizer(TEXT, return_tensors="pt")
    whole = model.generate(**inputs, **LIMITS)
    start = inputs.input_ids.shape[1]
    chunks: list[PieceChunk] = []
    streamer = PieceStreamer(tokenizer, chunks.append)
    ends = (whole[0] == tokenizer.eop_token_id).nonzero()[:, 0]
    begun = whole[:, : int(ends[ends > start][0]) + 1]  # up to the end of the first answer
    output = model.generate(begun, **LIMITS, streamer=streamer)
    assert torch.equal(output, whole)
    assert [joined(chunks)] == tokenizer.decode_pieces(whole)


def test_an_iterator_over_the_chunks_of_a_thread(model, tokenizer):
    inputs = tokenizer(TEXT, return_tensors="pt")
    (expected,) = tokenizer.decode_pieces(model.generate(**inputs, **LIMITS))
    streamer = PieceIteratorStreamer(tokenizer, timeout=60)
    for _ in range(2):
        thread = Thread(target=model.generate, kwargs={**inputs, **LIMITS, "streamer": streamer})
        thread.start()
        assert joined(list(streamer)) == expected
        thread.join()


def test_an_iterator_waits_no_longer_than_it_should(tokenizer):
    with pytest.raises(Empty):
        list(PieceIteratorStreamer(tokenizer, timeout=0.01))
    streamer = PieceIteratorStreamer(tokenizer)
    streamer.end()  # as one does where generate fails
    assert list(streamer) == []


def test_a_batch_is_refused(model, tokenizer):
    inputs = tokenizer([TEXT, TEXT], return_tensors="pt")
    with pytest.raises(ValueError, match="shows one text"):
        model.generate(**inputs, **LIMITS, streamer=PieceStreamer(tokenizer, print))


def test_a_repository_has_it(made_repository, model, tokenizer):
    cls = get_class_from_dynamic_module("streaming_glm.PieceStreamer", str(made_repository))
    assert cls is not PieceStreamer
    chunks: list[tuple] = []
    inputs = tokenizer(TEXT, return_tensors="pt")
    output = model.generate(**inputs, **LIMITS, streamer=cls(tokenizer, chunks.append))
    assert joined(chunks) == tokenizer.decode_pieces(output)[0][: chunks[-1].blank + 1]


def test_a_generation_that_failed_leaves_nothing_behind(model, tokenizer):
    chunks: list[PieceChunk] = []
    streamer = PieceStreamer(tokenizer, chunks.append)
    inputs = tokenizer(TEXT, return_tensors="pt")

    def fail(input_ids, scores):
        raise RuntimeError

    with pytest.raises(RuntimeError):
        model.generate(**inputs, **LIMITS, streamer=streamer, logits_processor=[fail])
    output = model.generate(**inputs, **LIMITS, streamer=streamer)
    assert joined(chunks) == tokenizer.decode_pieces(output)[0]
