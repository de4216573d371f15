"""Metrics: the numbers that tables of the literature mean by their names."""

import random
import sys
import warnings

import pytest

from glm_transformers.training import TASKS
from glm_transformers.training.cloze import Choices
from glm_transformers.training.metrics import METRICS, compute_metrics, first_answers, normalized
from glm_transformers.training.options import Finetuning


def measure(name, predictions, references, groups=None) -> float:
    return compute_metrics([name], predictions, references, groups)[name]


def test_labels():
    given, right = [1, 1, 0, 2, 0, 1], [1, 0, 0, 2, 1, 1]
    assert measure("accuracy", given, right) == pytest.approx(100 * 4 / 6)
    # Of the label 1: two of three found are right, two of three right ones are found; of 0: one of
    # two, twice; of 2: all.
    assert measure("f1_macro", given, right) == pytest.approx(100 * (2 / 3 + 1 / 2 + 1) / 3)
    assert measure("f1", [1, 1, 0, 0], [1, 0, 1, 0]) == pytest.approx(50)
    assert measure("f1", [0, 0], [0, 0]) == 0
    with pytest.raises(ValueError, match="The metric f1 is for two labels; take f1_macro"):
        measure("f1", given, right)


def test_a_question_is_right_if_all_of_its_answers_are():
    given, right = [1, 0, 1, 0, 1], [1, 0, 1, 1, 1]
    questions = ["a", "a", "b", "b", "c"]
    assert measure("question_exact_match", given, right, questions) == pytest.approx(100 * 2 / 3)
    # MultiRC's answers to one question need not stand together.
    mixed = random.Random(0).sample(list(zip(given, right, questions, strict=True)), 5)
    assert measure("question_exact_match", *zip(*mixed, strict=True)) == pytest.approx(100 * 2 / 3)


@pytest.mark.parametrize(
    "text, expected",
    [
        ("The  Eiffel Tower, in Paris!", "eiffel tower in paris"),
        ("A theatre and an anthem", "theatre and anthem"),  # articles are whole words
        ("U.S.A.", "usa"),
        ("the-end", "theend"),  # punctuation goes first, then no article is left
        ("  ", ""),
    ],
)
def test_normalisation_is_the_official_one(text, expected):
    assert normalized(text) == expected


def test_answers():
    given = ["the Eiffel tower", "Paris, France", "nothing"]
    right = [["Eiffel Tower!", "tower"], ["Lyon", "Paris"], ["something else"]]
    assert measure("normalized_match", given, right) == pytest.approx(100 / 3)
    # The best reference counts: one word of two is in "Paris", so 2/3.
    assert measure("token_f1", given, right) == pytest.approx(100 * (1 + 2 / 3 + 0) / 3)
    assert measure("exact_match", given, right) == 0
    assert measure("exact_match", [" tower\n"], [["Eiffel Tower!", "tower"]]) == 100


def test_repeated_words_count_as_often_as_they_are_in_both():
    assert measure("token_f1", ["x x x y"], [["x y z"]]) == pytest.approx(100 * 2 * 2 / (4 + 3))


def test_an_ideograph_is_a_word():
    """Chinese has no spaces: as one word each of these would have no part in the other."""
    assert measure("token_f1", ["北京大学"], [["北京"]]) == pytest.approx(100 * 2 * 2 / (4 + 2))
    assert measure("rouge1", ["北京大学"], [["北京"]]) == pytest.approx(100 * 2 * 2 / (4 + 2))
    assert measure("bleu", ["清华大学位于北京市"], [["清华大学位于北京市"]]) == pytest.approx(100)
    assert 0 < measure("bleu", ["清华大学位于北京市"], [["清华大学位于北京城"]]) < 100


def test_the_first_part_that_gives_an_answer_answers():
    parts = ["N/A", "Paris", "Lyon", "n / a", "N/A"]
    assert first_answers(parts, [7, 7, 7, 8, 8]) == {7: "Paris", 8: "N/A"}


def test_rouge_is_that_of_the_library():
    from rouge_score.rouge_scorer import RougeScorer

    given = ["The cats were running.\nA dog sat.", "Police killed the gunman"]
    right = [["A cat was running.\nThe dog sat."], ["the gunman kill police", "police shot him"]]
    kinds = {"rouge1": "rouge1", "rouge2": "rouge2", "rougeL": "rougeLsum"}
    for name, kind in kinds.items():
        scorer = RougeScorer([kind], use_stemmer=True)
        scores = [
            max(scorer.score(text, one)[kind].fmeasure for text in texts)
            for one, texts in zip(given, right, strict=True)
        ]
        assert measure(name, given, right) == pytest.approx(100 * sum(scores) / 2), name
    assert measure("rouge2", given[1:], right[1:]) < measure("rouge1", given[1:], right[1:])


def test_bleu_is_that_of_the_library():
    from sacrebleu import corpus_bleu

    given = ["the dog bit the man .", "it was not surprising , the man had bitten him ."]
    right = [["the dog bit the man ."], ["it was not unexpected .", "no one was surprised ."]]
    expected = corpus_bleu(given, [[texts[0] for texts in right], [None, right[1][1]]]).score
    assert measure("bleu", given, right) == pytest.approx(expected)
    assert 0 < expected < 100


@pytest.mark.parametrize("name", METRICS)
def test_all_right_is_a_hundred(name):
    is_of_labels = name in ("accuracy", "f1", "f1_macro", "question_exact_match")
    texts = ["the quick brown fox jumps", "over the very lazy dog"]
    given, right = ([0, 1], [0, 1]) if is_of_labels else (texts, [[text] for text in texts])
    assert measure(name, given, right, [0, 1]) == pytest.approx(100)


def test_what_cannot_be_measured_is_one_clear_sentence(monkeypatch):
    with pytest.raises(ValueError, match="no metric f2; choose from accuracy"):
        compute_metrics(["f2"], [1], [1])
    with pytest.raises(ValueError, match="no predictions"):
        compute_metrics(["accuracy"], [], [])
    for module, package, metric in (
        ("sacrebleu", "sacrebleu", "bleu"),
        ("sklearn", "scikit", "f1"),
    ):
        monkeypatch.setitem(sys.modules, module, None)  # as if it were not installed
        monkeypatch.delitem(sys.modules, f"{module}.metrics", raising=False)
        with pytest.raises(ValueError, match=rf'{package}.* is not installed.*".\[train\]"'):
            compute_metrics([metric], ["1"], [["1"]])


def test_a_choice_without_others_is_told_of():
    """It wins whatever the model thinks, so that a metric would say nothing."""
    recipe = Choices(TASKS["wsc"], Finetuning("wsc", "data", "output"), tokenizer=None)
    example = {"text_a": "Ng left", "span1_text": "Ng", "span2_text": "left", "span2_index": 1}
    with pytest.warns(UserWarning, match="1 validation examples have one choice alone"):
        recipe.warn_of_lone_choices([{**example, "label": False}])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        recipe.warn_of_lone_choices([{**example, "label": False, "candidates": ["he"]}])
