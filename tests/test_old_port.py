"""Code written for the old Hub port, line by line: it runs unchanged and gives right answers."""

import json

import pytest
import torch
from conftest import needs_full_reference
from transformers import AutoModelForMultipleChoice, AutoModelForSeq2SeqLM, AutoTokenizer

TEXTS = [
    "Ng is an adjunct professor at [MASK].",
    "Tsinghua University is located in [sMASK] now",
    "The fox [gMASK]",
]


@pytest.fixture(scope="module")
def tokenizer(made_repository):
    return AutoTokenizer.from_pretrained(made_repository, trust_remote_code=True)


@pytest.fixture(scope="module")
def model(made_repository):
    return AutoModelForSeq2SeqLM.from_pretrained(made_repository, trust_remote_code=True).eval()


@pytest.mark.parametrize("side", ["left", "right"])
def test_generation(model, tokenizer, side):
    inputs = tokenizer(TEXTS, return_tensors="pt", padding=True, padding_side=side)
    inputs = tokenizer.build_inputs_for_generation(inputs, max_gen_length=32)
    outputs = model.generate(**inputs, max_length=48, eos_token_id=tokenizer.eop_token_id)
    old = tokenizer.decode_pieces(outputs)
    for text, pieces in zip(TEXTS, old, strict=True):
        single = tokenizer(text, return_tensors="pt")
        room = outputs.shape[1] - inputs["input_ids"].shape[1]
        new = model.generate(**single, max_new_tokens=room, eos_token_id=tokenizer.eop_token_id)
        assert tokenizer.decode_pieces(new) == [pieces] and pieces[0]


def test_generation_gives_the_originals_answers(reference, repository):
    """Prompts with one blank, limited as in the golden run."""
    folder = repository("tiny-gpt2-fp16")
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    model = AutoModelForSeq2SeqLM.from_pretrained(
        folder, trust_remote_code=True, dtype=torch.float32
    ).eval()
    cases = json.loads((reference / "goldens/tiny-gpt2-fp16/generation.json").read_text())["cases"]
    checked = 0
    for case in cases.values() if isinstance(cases, dict) else cases:
        if len(case["blanks"]) != 1 or "MASK]" not in case["prompt"]:
            continue
        (blank,) = case["blanks"]
        answer = blank["generated"][1:]  # after <|startofpiece|>
        inputs = tokenizer(case["prompt"], return_tensors="pt")
        assert inputs["input_ids"][0].tolist() == case["context_ids"]
        length = inputs["input_ids"].shape[1] + 1 + len(answer)
        inputs = tokenizer.build_inputs_for_generation(inputs, max_gen_length=len(answer))
        outputs = model.generate(**inputs, max_length=length, eos_token_id=tokenizer.eop_token_id)
        assert outputs[0, len(case["context_ids"]) + 1 :].tolist()[: len(answer)] == answer
        checked += 1
    assert checked >= 4


@pytest.mark.parametrize("raw", [False, True], ids=["spaced", "as written"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_training_with_targets(model, tokenizer, side, raw):
    """The loss is that of each answer's tokens given what precedes them: not shifted twice.

    The port took answers as they were written, and so taught a first token that no text has: an
    answer that follows a space begins with it, as it did in pretraining.
    """
    answers = ["Stanford", "Beijing", "jumps over the lazy dog"]
    inputs = tokenizer(TEXTS, return_tensors="pt", padding=True, padding_side=side)
    inputs = tokenizer.build_inputs_for_generation(
        inputs,
        targets=answers,
        max_gen_length=16,
        padding=side == "right",
        raw_targets=raw,
    )
    outputs = model(**inputs)
    total, count = 0.0, 0
    for text, answer in zip(TEXTS, answers, strict=True):
        said = answer if raw else f" {answer}"
        ids = [*tokenizer(said, add_special_tokens=False).input_ids, tokenizer.eop_token_id]
        read = [*tokenizer(text).input_ids, tokenizer.sop_token_id]
        for id in ids:  # one token after the other, no batch, no labels
            log_probs = model(torch.tensor([read])).logits[0, -1].log_softmax(-1)
            total, count, read = total - log_probs[id].item(), count + 1, [*read, id]
    assert abs(outputs.loss.item() - total / count) < 1e-5
    assert int((inputs["labels"] != -100).sum()) == count
    outputs.loss.backward()
    assert model.glm.word_embeddings.weight.grad.abs().sum() > 0
    model.zero_grad()


def test_multiple_choice(made_repository, model, tokenizer):
    choices = [["Stanford", "MIT"], ["Beijing", "the dog", "fox"], ["jumps", "is lazy"]]
    chooser = AutoModelForMultipleChoice.from_pretrained(
        made_repository, trust_remote_code=True
    ).eval()
    inputs = tokenizer(TEXTS, return_tensors="pt", padding=True)
    outputs = chooser(**tokenizer.build_inputs_for_multiple_choice(inputs, choices))
    for row, (text, row_choices) in enumerate(zip(TEXTS, choices, strict=True)):
        for column, choice in enumerate(row_choices):
            ids, read = (
                tokenizer(choice, add_special_tokens=False).input_ids,
                tokenizer(text).input_ids,
            )
            read, score = [*read, tokenizer.sop_token_id], 0.0
            for id in ids:
                score, read = (
                    score + model(torch.tensor([read])).logits[0, -1].log_softmax(-1)[id].item(),
                    [*read, id],
                )
            assert abs(outputs.logits[row, column].item() - score) < 1e-4


@needs_full_reference("the scores are probabilities over every row of the vocabulary")
def test_multiple_choice_gives_the_originals_scores(reference, repository):
    folder = repository("tiny-gpt2-fp16")
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    chooser = AutoModelForMultipleChoice.from_pretrained(
        folder, trust_remote_code=True, dtype=torch.float32
    ).eval()
    cases = json.loads((reference / "goldens/tiny-gpt2-fp16/multiple_choice.json").read_text())
    cases = [
        case
        for case in cases
        if case["direction"] == "bi" and "[MASK]" in case["inputs_pretokenized"]
    ]
    assert cases
    for case in cases:
        inputs = tokenizer([case["inputs_pretokenized"]], return_tensors="pt")
        outputs = chooser(
            **tokenizer.build_inputs_for_multiple_choice(inputs, [case["choices_pretokenized"]])
        )
        torch.testing.assert_close(
            outputs.logits[0], torch.tensor(case["choice_logprob"]), atol=1e-4, rtol=0
        )
        assert outputs.logits.argmax(-1).item() == case["prediction"]
