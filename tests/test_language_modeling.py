"""LAMBADA and perplexities are the original's: rows, losses and scores, from the raw text."""

import json

import pytest
import torch
from conftest import needs_full_reference

from glm_transformers import GLMForConditionalGeneration, GLMTokenizerFast
from glm_transformers.evaluation import (
    evaluate_lambada,
    evaluate_wikitext,
)
from glm_transformers.evaluation import language_modeling as lm
from glm_transformers.evaluation.rows import make_batch, score_rows

CHECKPOINTS = ("tiny-gpt2-fp16", "tiny-bert-fp16")


def golden(reference, dataset: str, name: str) -> list[dict]:
    data = json.loads((reference / "goldens" / "lm_eval.json").read_text(encoding="utf-8"))
    cases = [case for case in data["cases"] if case["dataset"] == dataset]
    return [case for case in cases if case["checkpoint"] == name]


@pytest.fixture(scope="module")
def load(repository):
    """`load(name)`: the golden checkpoint's model in float32, and its tokenizer."""
    loaded = {}

    def of(name: str):
        if name not in loaded:
            folder = repository(name)
            model = GLMForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
            loaded[name] = model, GLMTokenizerFast.from_pretrained(folder)
        return loaded[name]

    return of


def assert_is_sample(row, sample: dict, tokenizer):
    """The row is what the original reads, whose padding is on the right."""
    batch = {name: tensor[0].tolist() for name, tensor in make_batch([row], tokenizer).items()}
    length = len(row)
    assert batch["input_ids"] == sample["text"][:length]
    assert batch["position_ids"] == [part[:length] for part in sample["position_id"]]
    assert batch["attention_mask"] == sample["attention_mask"]
    assert sum(sample["loss_mask"]) == row.scored
    labels = [
        target if scored else -100
        for target, scored in zip(sample["target"], sample["loss_mask"], strict=True)
    ]
    assert batch["labels"] == labels[:length]


@needs_full_reference("the language-model cases")
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_lambada(reference, load, name):
    model, tokenizer = load(name)
    for case in golden(reference, "lambada", name):
        options = dict(length=case["seq_length"], unidirectional=case["unidirectional"])
        row = lm.lambada_row(tokenizer, case["text"], **options)
        assert_is_sample(row, case["sample"], tokenizer)
        (score,) = score_rows(model, tokenizer, [row])
        assert -score.log_prob == pytest.approx(case["loss_sum"], abs=1e-4)
        result = evaluate_lambada(model, tokenizer, [case["text"]], **options)
        assert (result.right, result.count) == (case["correct"], 1)


@needs_full_reference("the language-model cases")
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_wikitext(reference, load, name):
    model, tokenizer = load(name)
    for case in golden(reference, "wikitext", name):
        length, stride = case["seq_length"], case["overlapping_eval"]
        document = lm.encode(tokenizer, lm.detokenize(case["raw_text"]))
        rows = lm.windows(tokenizer, document, length, stride, case["unidirectional"])
        assert len(rows) == case["num_sequences"] == len(case["samples"])
        for row, sample in zip(rows, case["samples"], strict=True):
            assert_is_sample(row, sample, tokenizer)
        result = evaluate_wikitext(
            model,
            tokenizer,
            case["raw_text"],
            length=length,
            stride=stride,
            unidirectional=case["unidirectional"],
            batch_size=5,
        )
        assert result.tokens == case["num_tokenized_tokens"]
        assert result.words == case["num_original_tokens"]
        assert result.loss == pytest.approx(case["total_loss"], abs=1e-4 * result.tokens)
        assert result.loss / (result.tokens - 1) == pytest.approx(case["avg_loss"], abs=1e-4)
        assert result.perplexity == pytest.approx(case["ppl"], rel=1e-4)
        assert result.word_perplexity == pytest.approx(case["adjusted_ppl"], rel=1e-4)
        assert result.standard_error > 0


@needs_full_reference("the pairs of the detokeniser")
def test_detokenizer(reference):
    data = json.loads((reference / "goldens" / "lm_eval.json").read_text(encoding="utf-8"))
    for pair in data["wikitext_detokenizer"]:
        assert lm.detokenize(pair["raw"]) == pair["detokenized"]
