"""LAMBADA and perplexities are the original's: rows, losses and scores, from the raw text."""

import json

import pytest
import torch
from conftest import needs_full_reference

from glm_transformers import GLMForConditionalGeneration, GLMTokenizerFast
from glm_transformers.evaluation import (
    evaluate_documents,
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


# --- Every rule, on made data ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(made_repository):
    model = GLMForConditionalGeneration.from_pretrained(made_repository, dtype=torch.float32)
    return model.eval(), GLMTokenizerFast.from_pretrained(made_repository)


TEXT = "The quick brown fox jumps over the lazy dog and Ng is an adjunct professor at Stanford"


def test_a_last_word_and_what_precedes_it(made):
    _, tokenizer = made
    row = lm.lambada_row(tokenizer, f"{TEXT}  \n")
    word = tokenizer(" Stanford", add_special_tokens=False).input_ids
    before = tokenizer(TEXT.removesuffix(" Stanford"), add_special_tokens=False).input_ids
    gmask, eos = tokenizer.gmask_token_id, tokenizer.eos_token_id
    assert row.context == [tokenizer.cls_token_id, *before, gmask, eos]
    assert row.answer == word and row.first == 0 and row.context[row.blank] == gmask
    twice = lm.lambada_row(tokenizer, "dog a dog")
    assert twice.context[1:-2] == tokenizer("dog a", add_special_tokens=False).input_ids
    alone = lm.lambada_row(tokenizer, "Stanford")
    assert alone.context == [tokenizer.cls_token_id, gmask, eos] and alone.answer == word
    one_way = lm.lambada_row(tokenizer, TEXT, unidirectional=True)
    assert one_way.context == [tokenizer.cls_token_id, before[0], gmask, eos]
    assert one_way.answer == before[1:] + word and one_way.scored == len(word)


@pytest.mark.parametrize("unidirectional", [False, True])
def test_what_is_too_long_is_dropped_from_the_left(made, unidirectional):
    _, tokenizer = made
    whole = lm.lambada_row(tokenizer, TEXT, 512, unidirectional)
    read = [*whole.context[1:-2], *whole.answer]
    for length in range(whole.scored + 3, len(whole) + 2):
        row = lm.lambada_row(tokenizer, TEXT, length, unidirectional)
        assert len(row) == min(length, len(whole))
        assert row.scored == whole.scored and row.context[row.blank] == tokenizer.gmask_token_id
        kept = [*row.context[1:-2], *row.answer]
        assert kept == read[len(read) - len(kept) :]
    with pytest.raises(ValueError, match=r"'Stanford', has .* tokens"):
        lm.lambada_row(tokenizer, TEXT, whole.scored + 2)
    with pytest.raises(ValueError, match="no words"):
        lm.lambada_row(tokenizer, " \n")


@pytest.mark.parametrize("unidirectional", [False, True])
@pytest.mark.parametrize(
    "tokens, length, stride", [(50, 17, 4), (50, 17, 16), (16, 17, 5), (2, 9, 1)]
)
def test_windows_score_each_token_but_the_first_once(made, unidirectional, tokens, length, stride):
    _, tokenizer = made
    document = list(range(100, 100 + tokens))
    rows = lm.windows(tokenizer, document, length, stride, unidirectional)
    scored = [token for row in rows for token in row.answer[row.first :]]
    # Where nothing is read twice, the token that a unidirectional window reads is not scored.
    unscored = document[::stride] if unidirectional and stride == length - 1 else document[:1]
    assert scored == [token for token in document if token not in unscored]
    for number, row in enumerate(rows):
        assert (
            row.context[0] == tokenizer.cls_token_id and row.context[-1] == row.context[row.blank]
        )
        assert row.context[row.blank] == tokenizer.gmask_token_id
        read = 1 if unidirectional or number == 0 else length - 1 - stride
        assert len(row.context) == read + 2 and len(row) <= length + 1
        seen = row.context[1:-1] + row.answer
        assert seen == document[number * stride :][: length - 1]


def test_windows_that_do_not_overlap_have_nothing_to_read(made):
    _, tokenizer = made
    rows = lm.windows(tokenizer, list(range(100, 120)), 9, None)
    assert [len(row.context) for row in rows] == [3, 2, 2]
    for stride in (0, 9):
        with pytest.raises(ValueError, match="between 1 and 8"):
            lm.windows(tokenizer, [1, 2, 3], 9, stride)


def test_documents_are_read_one_by_one(made):
    model, tokenizer = made
    lines = [f"{TEXT}\n", "Tsinghua University is located in Beijing.\n", "\n", "Ng\n"]
    options = dict(length=24, stride=8)
    together = evaluate_documents(model, tokenizer, lines, batch_size=3, **options)
    alone = [
        evaluate_documents(model, tokenizer, [line], batch_size=1, **options) for line in lines[:2]
    ]
    last = score_rows(model, tokenizer, lm.windows(tokenizer, lm.encode(tokenizer, "Ng"), 24, 8))
    losses = [*(result.loss for result in alone), *(-score.log_prob for score in last)]
    assert together.loss == pytest.approx(sum(losses), abs=1e-4)
    # The original counts an empty line as a word, too.
    assert together.words == len(TEXT.split()) + 6 + 1 + 1
    tokens = sum(len(lm.encode(tokenizer, line.strip())) for line in lines)
    assert together.tokens == tokens
    assert together.perplexity == pytest.approx(lm.capped_exp(together.loss / (tokens - 1)))


def test_wikitext_is_detokenized_and_counts_the_words_of_the_file(made):
    model, tokenizer = made
    raw = " = Stanford = \n Ng , a professor @-@ at Stanford . \n"
    result = evaluate_wikitext(model, tokenizer, raw, length=24, stride=8)
    assert result.tokens == len(
        lm.encode(tokenizer, " = Stanford =\nNg, a professor-at Stanford.\n")
    )
    assert result.words == len(raw.strip().split(" "))


def test_a_hopeless_model_has_a_finite_perplexity():
    result = lm.Perplexity(loss=1e6, tokens=11, words=6, windows=1, loss_error=None)
    assert result.perplexity == result.word_perplexity == pytest.approx(4.85165195e8)
    assert result.standard_error is None


def test_the_spread_of_a_sample():
    assert lm.Accuracy(right=3, count=4).accuracy == 0.75
    assert lm.Accuracy(right=3, count=4).standard_error == pytest.approx(0.25)
    assert lm.Accuracy(right=1, count=1).standard_error is None


@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_scores_do_not_depend_on_the_batch(made, batch_size):
    model, tokenizer = made
    texts = [" ".join(TEXT.split()[:words]) for words in (3, 9, 16, 2, 5)]
    rows = [lm.lambada_row(tokenizer, text) for text in texts]
    scores = score_rows(model, tokenizer, rows, batch_size)
    for row, score in zip(rows, scores, strict=True):
        (alone,) = score_rows(model, tokenizer, [row])
        assert score.log_prob == pytest.approx(alone.log_prob, abs=1e-4)
        assert score.is_greedy == alone.is_greedy


def test_a_model_without_block_positions(tiny_model, made):
    _, tokenizer = made
    with pytest.raises(ValueError, match="no block positions"):
        score_rows(tiny_model(block_position_encoding=False), tokenizer, [])


def test_what_is_read_of_files(tmp_path):
    file = tmp_path / "lambada.jsonl"
    file.write_text('{"text": "A dog."}\n\n{"text": "Ein Hündchen."}\n', encoding="utf-8")
    assert lm.read_lambada(file) == ["A dog.", "Ein Hündchen."]
    file.write_text('{"text": "A dog."}\nA dog.\n')
    with pytest.raises(ValueError, match="Line 2 of"):
        lm.read_lambada(file)
    text = tmp_path / "text.txt"
    text.write_bytes(b"one\r\ntwo \n")
    assert lm.read_wikitext(text) == "one\r\ntwo \n"
    assert lm.read_documents(text) == ["one\n", "two \n"]
