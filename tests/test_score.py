"""`glm score`: choices, answers and texts of a file, with the numbers of the functions."""

import json
import math
import re

import pytest
from test_cli import invoke, words

from glm_transformers.evaluation import language_modeling as lm
from glm_transformers.evaluation import log_likelihood, score_choices
from glm_transformers.evaluation.model import load
from glm_transformers.evaluation.options import Scoring
from glm_transformers.evaluation.rows import score_rows
from glm_transformers.evaluation.score import score

CHOICES = [
    {
        "inputs_pretokenized": "Ng is an adjunct professor at [MASK].",
        "choices_pretokenized": [" Stanford", " Beijing", " the lazy dog"],
        "label": 0,
    },
    {
        "inputs_pretokenized": "Tsinghua University is located in [MASK]",
        "choices_pretokenized": [" Stanford", " Beijing"],
        "label": 1,
    },
]
ANSWERS = [
    {
        "inputs_pretokenized": "[MASK] is located in [MASK].",
        "targets_pretokenized": ["Tsinghua", " Beijing"],
    },
    {"inputs_pretokenized": "The lazy [MASK].", "targets_pretokenized": " dog"},
]
TEXTS = ["The quick brown fox jumps over the lazy dog.", "Ng is an adjunct professor."]


def write(file, lines) -> str:
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    file.write_text("\n".join(texts), encoding="utf-8")
    return str(file)


def column(lines: list[dict], name: str) -> list:
    return [line[name] for line in lines]


@pytest.mark.parametrize(
    "options",
    [
        {},
        dict(unidirectional=True),
        dict(length_penalty=1.0, end_token=True, length=24, batch_size=1),
    ],
)
def test_choices(made_repository, tmp_path, options):
    file = write(tmp_path / "choices.jsonl", CHOICES)
    scores = score(Scoring(file, str(made_repository), device="cpu", **options))
    named = {"max_length" if name == "length" else name: told for name, told in options.items()}
    expected = score_choices(
        *load(str(made_repository), device="cpu"),
        column(CHOICES, "inputs_pretokenized"),
        column(CHOICES, "choices_pretokenized"),
        **named,
    )
    for text, of_text in zip(scores.texts, expected, strict=True):
        assert text["scores"] == pytest.approx(of_text, abs=1e-4)
        assert text["prediction"] == of_text.index(max(of_text))
        assert text["score"] == max(text["scores"])
    right = [text["prediction"] == text["label"] for text in scores.texts]
    (accuracy,) = scores.measures
    assert accuracy.value == sum(right) / 2 and accuracy.count == 2


def test_choices_without_a_label(made_repository, tmp_path):
    unlabelled = [{**CHOICES[0], "label": None}, CHOICES[1]]
    file = write(tmp_path / "choices.jsonl", unlabelled)
    scores = score(Scoring(file, str(made_repository), device="cpu"))
    assert scores.measures[0].count == 1 and scores.measures[0].error is None


@pytest.mark.parametrize("end_token", [False, True])
def test_answers(made_repository, tmp_path, end_token):
    file = write(tmp_path / "answers.jsonl", ANSWERS)
    scores = score(Scoring(file, str(made_repository), device="cpu", end_token=end_token))
    expected = log_likelihood(
        *load(str(made_repository), device="cpu"),
        column(ANSWERS, "inputs_pretokenized"),
        column(ANSWERS, "targets_pretokenized"),
        end_token=end_token,
    )
    losses, tokens = 0.0, 0
    for text, of_text in zip(scores.texts, expected, strict=True):
        log_probs = [value for answer in of_text for value in answer.log_probs]
        assert text["score"] == pytest.approx(sum(log_probs), abs=1e-4)
        assert text["perplexity"] == pytest.approx(math.exp(-sum(log_probs) / len(log_probs)))
        losses, tokens = losses - sum(log_probs), tokens + len(log_probs)
    (measure,) = scores.measures
    assert measure.count == tokens
    assert measure.value == pytest.approx(math.exp(losses / tokens))


@pytest.mark.parametrize("unidirectional", [False, True])
def test_texts(made_repository, tmp_path, unidirectional):
    """A text's log-probability is the sum over the windows of the perplexity."""
    file = write(tmp_path / "texts.txt", [TEXTS[0], "", TEXTS[1]])
    options = dict(length=16, unidirectional=unidirectional)
    scores = score(Scoring(file, str(made_repository), device="cpu", **options))
    model, tokenizer = load(str(made_repository), device="cpu")
    for text, line in zip(scores.texts, TEXTS, strict=True):
        document = lm.encode(tokenizer, line)
        of_line = score_rows(
            model, tokenizer, lm.windows(tokenizer, document, 16, 8, unidirectional)
        )
        assert text["score"] == pytest.approx(sum(one.log_prob for one in of_line), abs=1e-4)
        loss = -text["score"] / (len(document) - 1)
        assert text["perplexity"] == pytest.approx(math.exp(loss))


def test_the_command(made_repository, tmp_path):
    file = write(tmp_path / "choices.jsonl", CHOICES)
    output = tmp_path / "scores.json"
    told = ("score", file, "--model", made_repository, "--device", "cpu", "--output", output)
    result = invoke(*told)
    assert result.exit_code == 0, result.output
    assert "accuracy" in result.output and "[MASK]" in result.output
    record = json.loads(output.read_text())
    assert len(record["texts"]) == 2 and record["results"][0]["metric"] == "accuracy"
    assert record["options"]["texts"] == file and file in record["sha256"]
    again = invoke(*told)
    assert again.exit_code == 1 and "exists already" in words(again.output)


@pytest.mark.parametrize("lines", [CHOICES, ANSWERS, TEXTS])
def test_a_killed_run_goes_on(made_repository, tmp_path, killed_run, lines):
    told = dict(model=str(made_repository), device="cpu", batch_size=1)
    file = write(tmp_path / "texts", lines)
    expected = score(Scoring(file, **told))
    told["output"] = str(tmp_path / "scores.json")
    finished = killed_run(lambda: score(Scoring(file, **told)))
    with pytest.raises(ValueError, match="with other options, files or versions"):
        score(Scoring(file, **{**told, "batch_size": 2}))
    assert score(Scoring(file, **told)) == expected
    assert len(finished) == len(lines), "no batch was scored twice"
    record = json.loads((tmp_path / "scores.json").read_text())
    assert record["texts"] == expected.texts
    assert {one.name for one in tmp_path.iterdir()} == {"texts", "scores.json"}


def test_several_processes_would_write_one_record(made_repository, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="scored by one process; start one"):
        score(Scoring(write(tmp_path / "texts", TEXTS), str(made_repository)))


def test_a_long_text_leaves_its_score_room(made_repository, tmp_path):
    """On a terminal of 80 columns."""
    text = f"{TEXTS[0]}\n" * 4 + CHOICES[1]["inputs_pretokenized"]
    file = write(tmp_path / "texts", [{**CHOICES[1], "inputs_pretokenized": text}])
    result = invoke("score", file, "--model", made_repository, "--device", "cpu")
    (row,) = [line for line in result.output.splitlines() if "quick" in line]
    assert re.search(r"…  ?│ (Stanford|Beijing) *│ +-\d+\.\d{4} │", row) and len(row) == 80


@pytest.mark.parametrize(
    "lines, options, message",
    [
        ([], {}, "is empty"),
        ([CHOICES[0], ANSWERS[0]], {}, "is of another kind"),
        ([CHOICES[0], "text"], {}, "Line 2 of"),
        ([{"inputs_pretokenized": "Ng [MASK]"}], {}, "is of no kind"),
        ([{**CHOICES[0], "choices_pretokenized": None}], {}, "is of no kind"),
        ([{**ANSWERS[0], "targets_pretokenized": None}], {}, "is of no kind"),
        (["[" + json.dumps(CHOICES[0]) + "]"], {}, "is of no kind"),
        (['{"inputs_pretokenized": "Ng'], {}, "Line 1 of"),
        (['{"inputs_pretokenized": "Ng'], {}, "is no JSON: Unterminated string"),
        ([{**CHOICES[0], "label": True}], {}, "has the label True"),
        ([TEXTS[0], "Ng <|endofpiece|>"], {}, "Text 2: A text holds <|endofpiece|>"),
        (["Ng is at [MASK]."], {}, "has a mask, and nothing that answers it"),
        (TEXTS, dict(length=65), "length is 65; this model takes 64 tokens"),
        (CHOICES, dict(length_penalty=float("nan")), "length_penalty is nan; give at least 0"),
        ([{**CHOICES[0], "label": 3}], {}, "has the label 3 and 3 choices"),
        (ANSWERS, dict(unidirectional=True), "leave unidirectional out"),
        (ANSWERS, dict(length_penalty=1.0), "A length penalty is of choices"),
        (TEXTS, dict(end_token=True), "leave end_token out"),
        (["a"], {}, "has one token"),
        ([], dict(output=__file__), "exists already"),
    ],
)
def test_what_cannot_be_scored_is_one_sentence(
    made_repository, tmp_path, monkeypatch, lines, options, message
):
    """Wrong options before a model is loaded."""
    if options:
        monkeypatch.setattr("glm_transformers.evaluation.score.load", None)
    file = write(tmp_path / "texts", lines)
    with pytest.raises(ValueError, match=re.escape(message)):
        score(Scoring(file, str(made_repository), device="cpu", **options))


def test_a_text_of_one_token_is_told_before_any_is_scored(made_repository, tmp_path, monkeypatch):
    def score_none(*args):
        raise AssertionError("scored")

    monkeypatch.setattr("glm_transformers.evaluation.score.score_rows", score_none)
    file = write(tmp_path / "texts", [*TEXTS, "a"])
    with pytest.raises(ValueError, match="Text 3 has one token"):
        score(Scoring(file, str(made_repository), device="cpu"))


def test_texts_of_other_programs(made_repository, tmp_path):
    """A byte order mark is no text, and bytes that are no text are told."""
    file = tmp_path / "marked.jsonl"
    file.write_text(json.dumps(CHOICES[0]), encoding="utf-8-sig")
    assert score(Scoring(str(file), str(made_repository), device="cpu")).measures[0].count == 1
    file.write_bytes(b"\xff\xfe\x00")
    for told in (
        ("score", file, "--model", made_repository),
        ("evaluate", made_repository, "--documents", file),
        ("evaluate", made_repository, "--wikitext", file),
        ("evaluate", made_repository, "--lambada", file),
    ):
        result = invoke(*told)
        assert result.exit_code == 1 and "marked.jsonl is no UTF-8 text" in words(result.output)


def test_a_repository_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    file = write(tmp_path / "texts", TEXTS)
    result = invoke("score", file, "--model", tmp_path)
    assert result.exit_code == 1 and "pass a converted repository" in words(result.output)
