"""Metrics of the tasks, each a function of predictions and references, in percent.

`METRICS` has them by name. Labels are compared with labels, and a text with all the texts that are
right for it. What a table of the literature means by a name is kept: the normalisation is that of
the official SQuAD and ReCoRD scripts, ROUGE and BLEU are those of `rouge-score` and `sacrebleu`.
"""

import importlib
import re
import string
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Sequence
from types import ModuleType
from typing import Any

from .official import NO_ANSWER

Labels = Sequence[Hashable]
Texts = Sequence[str]
References = Sequence[Sequence[str]]  # the right texts of each prediction

ARTICLES = re.compile(r"\b(a|an|the)\b")
NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
# Written without spaces: each character counts as a word, as in the metrics of CMRC 2018.
IDEOGRAPH = re.compile(r"([\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff])")
# Modules whose packages have another name.
PACKAGES = {"rouge_score": "rouge-score", "sklearn": "scikit-learn"}


def library(name: str) -> ModuleType:
    """A library of the extra.

    Raises:
        ValueError: if it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        module = name.partition(".")[0]
        package = PACKAGES.get(module, module)
        raise ValueError(
            f'{package} is not installed; install it with pip install ".[train]".'
        ) from error


def mean(scores: Sequence[float]) -> float:
    """In percent."""
    return 100 * sum(scores) / len(scores)


# --- Labels ---------------------------------------------------------------------------------------


def accuracy(predictions: Labels, references: Labels) -> float:
    """Share of the predictions that are right."""
    return mean([given == right for given, right in zip(predictions, references, strict=True)])


def f1(predictions: Labels, references: Labels) -> float:
    """F1 of the label 1.

    Raises:
        ValueError: for more labels than two.
    """
    scores = library("sklearn.metrics")
    if not {*predictions, *references} <= {0, 1}:
        raise ValueError("The metric f1 is for two labels; take f1_macro for more.")
    return 100 * float(scores.f1_score(references, predictions, zero_division=0))


def macro_f1(predictions: Labels, references: Labels) -> float:
    """The mean of the F1 of each label."""
    scores = library("sklearn.metrics")
    return 100 * float(scores.f1_score(references, predictions, average="macro", zero_division=0))


def question_exact_match(predictions: Labels, references: Labels, questions: Labels) -> float:
    """Share of the questions all of whose answers were judged right: the EM of MultiRC.

    Args:
        questions: of which question each prediction is.
    """
    is_right: dict[Hashable, bool] = defaultdict(lambda: True)
    for given, right, question in zip(predictions, references, questions, strict=True):
        is_right[question] = is_right[question] and given == right
    return mean(list(is_right.values()))


# --- Answers --------------------------------------------------------------------------------------


def normalized(text: str) -> str:
    """Lower case, without punctuation, articles and superfluous spaces (official for SQuAD)."""
    without_punctuation = text.lower().translate(NO_PUNCTUATION)
    return " ".join(ARTICLES.sub(" ", without_punctuation).split())


def words(text: str) -> list[str]:
    """Of a normalized text; an ideograph is a word of its own."""
    return IDEOGRAPH.sub(r" \1 ", normalized(text)).split()


def answer_f1(prediction: str, reference: str) -> float:
    """F1 of the words of two texts, from 0 to 1."""
    given, right = Counter(words(prediction)), Counter(words(reference))
    if not given or not right:  # both empty is a match
        return float(given == right)
    shared = (given & right).total()
    return 2 * shared / (given.total() + right.total())


def best(score: Callable[[str, str], float], predictions: Texts, references: References) -> float:
    """The mean of each prediction's score with the reference that suits it best."""
    return mean(
        [
            max(score(prediction, reference) for reference in right)
            for prediction, right in zip(predictions, references, strict=True)
        ]
    )


def exact_match(predictions: Texts, references: References) -> float:
    """Share of the predictions that are a reference, letter by letter."""
    return best(lambda given, right: given.strip() == right.strip(), predictions, references)


def normalized_match(predictions: Texts, references: References) -> float:
    """Share of the predictions that are a reference once normalized: the EM of SQuAD, ReCoRD."""
    return best(
        lambda given, right: normalized(given) == normalized(right),
        predictions,
        references,
    )


def token_f1(predictions: Texts, references: References) -> float:
    """F1 of the words: that of SQuAD and ReCoRD."""
    return best(answer_f1, predictions, references)


def first_answers(predictions: Texts, questions: Labels) -> dict[Hashable, str]:
    """One answer for each question: of the parts of its text, the first that gave one.

    A long text is asked in parts, most of which hold no answer: the original's rule for SQuAD.

    Args:
        predictions: of each part.
        questions: of which question each part is.
    """
    answers: dict[Hashable, str] = {}
    for prediction, question in zip(predictions, questions, strict=True):
        is_answer = prediction.replace(" ", "").lower() != NO_ANSWER.lower()
        if answers.get(question, NO_ANSWER) == NO_ANSWER:
            answers[question] = prediction if is_answer else NO_ANSWER
    return answers


# --- Generated texts ------------------------------------------------------------------------------


class WordsAndIdeographs:
    """The words that `rouge-score` finds, which are none in Chinese, and each ideograph."""

    def __init__(self):
        self.stemmer = library("nltk.stem.porter").PorterStemmer()

    def tokenize(self, text: str) -> list[str]:
        tokenize = library("rouge_score.tokenize").tokenize
        tokens: list[str] = []
        for part in IDEOGRAPH.split(text):
            tokens += [part] if IDEOGRAPH.fullmatch(part) else tokenize(part, self.stemmer)
        return tokens


def rouge(kind: str, predictions: Texts, references: References) -> float:
    """The mean F of one kind of ROUGE, after stemming, with the best reference."""
    scorer = library("rouge_score.rouge_scorer").RougeScorer([kind], tokenizer=WordsAndIdeographs())
    scores = []
    for prediction, right in zip(predictions, references, strict=True):
        scores.append(scorer.score_multi(right, prediction)[kind].fmeasure)
    return mean(scores)


def rouge_1(predictions: Texts, references: References) -> float:
    return rouge("rouge1", predictions, references)


def rouge_2(predictions: Texts, references: References) -> float:
    return rouge("rouge2", predictions, references)


def rouge_l(predictions: Texts, references: References) -> float:
    """ROUGE-L of summaries, whose sentences are lines."""
    return rouge("rougeLsum", predictions, references)


def bleu(predictions: Texts, references: References) -> float:
    """BLEU of the corpus; Chinese is cut into characters."""
    is_chinese = any(IDEOGRAPH.search(text) for right in references for text in right)
    most = max(map(len, references))
    streams = [[right[i] if i < len(right) else None for right in references] for i in range(most)]
    score = library("sacrebleu").corpus_bleu(
        list(predictions),
        streams,
        tokenize="zh" if is_chinese else "13a",
    )
    return score.score


METRICS: dict[str, Callable[..., float]] = {
    "accuracy": accuracy,
    "f1": f1,
    "f1_macro": macro_f1,
    "question_exact_match": question_exact_match,
    "exact_match": exact_match,
    "normalized_match": normalized_match,
    "token_f1": token_f1,
    "rouge1": rouge_1,
    "rouge2": rouge_2,
    "rougeL": rouge_l,
    "bleu": bleu,
}
# Those that compare labels; the others compare texts.
OF_LABELS = {"accuracy", "f1", "f1_macro", "question_exact_match"}
# Those that need to know which predictions belong together.
GROUPED = {"question_exact_match"}


def compute_metrics(
    names: Sequence[str],
    predictions: Sequence[Any],
    references: Sequence[Any],
    groups: Labels | None = None,
) -> dict[str, float]:
    """The metrics of these names.

    Args:
        predictions, references: labels, or texts with the texts that are right for each.
        groups: which predictions belong together, for the metrics that ask.

    Raises:
        ValueError: for an unknown name, and if there is nothing to measure.
    """
    unknown = sorted(set(names) - set(METRICS))
    if unknown:
        raise ValueError(f"There is no metric {unknown[0]}; choose from {', '.join(METRICS)}.")
    if not predictions:
        raise ValueError("There are no predictions to measure; check the validation data.")
    results = {}
    for name in names:
        of_groups = (groups,) if name in GROUPED else ()
        results[name] = METRICS[name](predictions, references, *of_groups)
    return results
