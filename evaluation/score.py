"""`glm score`: how likely choices, answers or whole texts of a file are.

A line of the file is one of these; all lines are of one kind:

    {"inputs_pretokenized": "The answer is [MASK].", "choices_pretokenized": [" yes", " no"],
     "label": 0}
    {"inputs_pretokenized": "The answer is [MASK].", "targets_pretokenized": [" yes"]}
    A text without blanks.

The names are those of GLM-130B's evaluation files; without a label, nothing is counted as right.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from rich.table import Column, Table
from rich.text import Text

from ..hub_repository.files import read_text
from ..training.processes import world_size
from .batches import Finished
from .language_modeling import Accuracy, windows
from .model import Loaded, check_length, find, load
from .options import Scoring
from .record import FinishedParts, Measure, check_new, depends_on
from .rows import score_rows, standard_error
from .scoring import AnswerScore, encode, log_likelihood, named, score_choices

TEXT, CHOICES, ANSWERS, LABEL = (
    "inputs_pretokenized",
    "choices_pretokenized",
    "targets_pretokenized",
    "label",
)
FORMS = f'give each line "{TEXT}", and "{CHOICES}" or "{ANSWERS}", or write plain texts'
JSON = ("{", "[{")  # how a line begins that is no plain text
Kind = Literal["choices", "answers", "texts"]
ROWS_SHOWN = 20  # of a table on the terminal


@dataclass(frozen=True)
class Scores:
    """
    texts: for each line what the record says of it, with the text as "text", what was said or
        chosen as "said", and its "score".
    measures: of all lines together.
    """

    texts: list[dict[str, Any]]
    measures: list[Measure]


def score(options: Scoring) -> Scores:
    """Score the file that the options name; with `output`, the record is written.

    Raises:
        ValueError: for a file that cannot be scored, an output that exists, and several processes.
    """
    if world_size() > 1:
        raise ValueError("A file is scored by one process; start one.")
    if options.output is not None:
        check_new(options.output)
    kind, lines = read_texts(options.texts)
    if kind == "texts" and options.end_token:
        raise ValueError("A text without blanks has no end to score; leave end_token out.")
    if kind != "choices" and options.length_penalty:
        raise ValueError("A length penalty is of choices; leave it out.")
    if kind == "answers" and options.unidirectional:
        raise ValueError("Answers to blanks are read with both sides; leave unidirectional out.")
    found = find(options.model)
    check_length(options.length, found.config)
    key: dict[str, Any] = {}
    finished = Finished()
    if options.output is not None:
        key = depends_on(options, found.folders, [options.texts])
        finished = FinishedParts(options.output, key)
    loaded = load(options.model, options.dtype, options.device, options.quantize)
    scores = RUNS[kind](loaded, lines, options, finished)
    results = [asdict(measure) for measure in scores.measures]
    finished.complete({"results": results, "texts": scores.texts, **key})
    return scores


def read_texts(file: str) -> tuple[Kind, list[Any]]:
    """The kind of the lines, and the lines: JSON objects, or texts.

    Raises:
        ValueError: for a file that is missing or empty, and for lines of another kind than the
            first.
    """
    if not Path(file).is_file():
        raise ValueError(f"{file} is no file; pass one with texts.")
    numbered = enumerate(read_text(Path(file), largest=None).split("\n"), start=1)
    written = [(number, line) for number, line in numbered if line.strip()]
    if not written:
        raise ValueError(f"{file} is empty; write texts into it.")
    if not written[0][1].lstrip().startswith(JSON):
        return "texts", [line for _, line in written]
    lines: list[Any] = []
    kinds: list[Kind] = []
    for number, line in written:
        try:
            lines.append(json.loads(line))
        except ValueError as error:
            raise ValueError(f"Line {number} of {file} is no JSON: {error}.") from error
        try:
            kinds.append(kind_of(lines[-1]))
        except ValueError as error:
            raise ValueError(f"Line {number} of {file} is of no kind; {FORMS}.") from error
        if kinds[-1] != kinds[0]:
            raise ValueError(f"Line {number} of {file} is of another kind than the first.")
    return kinds[0], lines


def kind_of(line: Any) -> Kind:
    if isinstance(line, dict) and TEXT in line:
        if isinstance(line.get(CHOICES), list):
            return "choices"
        if isinstance(line.get(ANSWERS), (list, str)):
            return "answers"
    raise ValueError("neither choices nor answers")


# --- The kinds ------------------------------------------------------------------------------------


def of_choices(
    loaded: Loaded,
    lines: list[dict],
    options: Scoring,
    finished: Finished | None = None,
) -> Scores:
    """The best of the choices for a blank, and how often it is the right one."""
    labels = [check_label(number, line) for number, line in enumerate(lines, start=1)]
    scores = score_choices(
        *loaded,
        [line[TEXT] for line in lines],
        [line[CHOICES] for line in lines],
        unidirectional=options.unidirectional,
        length_penalty=options.length_penalty,
        end_token=options.end_token,
        max_length=options.length,
        batch_size=options.batch_size,
        finished=finished,
    )
    texts = [choices_of_text(*row) for row in zip(lines, scores, labels, strict=True)]
    right = [text["prediction"] == text["label"] for text in texts if text["label"] is not None]
    return Scores(texts, [of_accuracy(right)] if right else [])


def choices_of_text(line: dict, scores: list[float], label: int | None) -> dict[str, Any]:
    """What the record says of the choices for a blank."""
    best = scores.index(max(scores))
    return {
        "text": line[TEXT],
        "said": line[CHOICES][best],
        "score": scores[best],
        "scores": scores,
        "prediction": best,
        "label": label,
    }


def of_accuracy(right: list[bool]) -> Measure:
    result = Accuracy(sum(right), len(right))
    return Measure(
        "choices",
        "accuracy",
        result.accuracy,
        result.standard_error,
        result.count,
        "texts",
    )


def check_label(number: int, line: dict) -> int | None:
    """The label of a line, which may have none."""
    label, choices = line.get(LABEL), line[CHOICES]
    if label is None:
        return None
    if type(label) is not int or not 0 <= label < len(choices):
        raise ValueError(
            f"Text {number} has the label {label!r} and {len(choices)} choices; a label is the "
            "number of a choice, counted from 0."
        )
    return label


def of_answers(
    loaded: Loaded,
    lines: list[dict],
    options: Scoring,
    finished: Finished | None = None,
) -> Scores:
    """The log-probability of the answer to each blank, token by token."""
    scores = log_likelihood(
        *loaded,
        [line[TEXT] for line in lines],
        [line[ANSWERS] for line in lines],
        end_token=options.end_token,
        batch_size=options.batch_size,
        finished=finished,
    )
    texts = [answers_of_text(*pair) for pair in zip(lines, scores, strict=True)]
    losses = [-text["score"] for text in texts]
    counts = [sum(len(answer.tokens) for answer in of_text) for of_text in scores]
    return Scores(texts, [of_perplexity("answers", losses, counts)])


def answers_of_text(line: dict, scores: Sequence[AnswerScore]) -> dict[str, Any]:
    """What the record says of the answers to the blanks of a text."""
    log_probs = [value for score in scores for value in score.log_probs]
    total = math.fsum(log_probs)
    said = line[ANSWERS]
    return {
        "text": line[TEXT],
        "said": said if isinstance(said, str) else ", ".join(map(str.strip, said)),
        "score": total,
        "answers": [score._asdict() for score in scores],
        "perplexity": math.exp(-total / len(log_probs)),
    }


def of_texts(
    loaded: Loaded,
    lines: list[str],
    options: Scoring,
    finished: Finished | None = None,
) -> Scores:
    """The log-probability of each text but its first token, by the windows of the perplexity."""
    model, tokenizer = loaded
    length = options.length or model.config.max_sequence_length
    stride = length // 2
    rows_of = []
    for number, line in enumerate(lines, start=1):
        with named(f"Text {number}"):
            ids = encode(tokenizer, line.strip())
        if any(id in tokenizer.mask_token_ids for id in ids):
            raise ValueError(
                f"Text {number} has a mask, and nothing that answers it; give its line as JSON, "
                f'with "{TEXT}" and "{CHOICES}" or "{ANSWERS}".'
            )
        of_line = windows(tokenizer, ids, length, stride, options.unidirectional)
        if not any(row.scored for row in of_line):
            raise ValueError(f"Text {number} has one token; there is nothing to score behind it.")
        rows_of.append(of_line)
    rows = [row for of_line in rows_of for row in of_line]
    scores = iter(score_rows(model, tokenizer, rows, options.batch_size, finished=finished))
    texts, losses, counts = [], [], []
    for number, of_line in enumerate(rows_of):
        tokens = sum(row.scored for row in of_line)
        loss = -math.fsum(next(scores).log_prob for _ in of_line)
        texts.append(
            {
                "text": lines[number],
                "said": "",
                "score": -loss,
                "perplexity": math.exp(loss / tokens),
            }
        )
        losses.append(loss)
        counts.append(tokens)
    return Scores(texts, [of_perplexity("texts", losses, counts)])


def of_perplexity(task: str, losses: list[float], counts: list[int]) -> Measure:
    """e to the mean loss of all tokens; its error takes the texts for the sample."""
    tokens = sum(counts)
    mean = math.fsum(losses) / tokens
    spread = standard_error(loss - mean * count for loss, count in zip(losses, counts, strict=True))
    value = math.exp(mean)
    error = None if spread is None else value * spread / tokens
    return Measure(task, "perplexity of tokens", value, error, tokens, "tokens")


RUNS: dict[Kind, Callable[[Loaded, list, Scoring, Finished], Scores]] = {
    "choices": of_choices,
    "answers": of_answers,
    "texts": of_texts,
}


# --- On the terminal ------------------------------------------------------------------------------


def make_table_of_texts(scores: Scores) -> Table:
    """A row for each of the first lines."""
    table = Table(
        "text",
        "answer",
        Column("log-probability", justify="right", no_wrap=True),
    )
    for text in scores.texts[:ROWS_SHOWN]:
        table.add_row(
            one_line(text["text"]),
            one_line(text["said"]),
            f"{text['score']:.4f}",
        )
    if len(scores.texts) > ROWS_SHOWN:
        table.caption = f"the first {ROWS_SHOWN} of {len(scores.texts)}"
    return table


def one_line(text: str) -> Text:
    """What fits of a text: a column of such cells is narrowed before those that do not wrap."""
    return Text(" ".join(text.split()), no_wrap=True, overflow="ellipsis")
