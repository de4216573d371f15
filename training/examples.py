"""Examples of a task: read from files or the Hub, in the words of the task's patterns.

A benchmark names its columns as it likes; the patterns of the table know `text_a`, `text_b`, and
what else the original calls them. `OFFICIAL` says what becomes what. Data whose columns have the
task's own names are taken as they are.
"""

import csv
import json
import random
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .templates import Example, plain_quotes

if TYPE_CHECKING:
    from .tasks import Task

FORMATS = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".source")
CANDIDATES = 10  # choices of an example of ReCoRD or WSC that is learnt from, in the original
SHUFFLE_SEED = 42  # of the candidates that are taken, in the original


def read_examples(
    task: "Task",
    source: str | Path,
    split: str = "train",
    text_column: str | None = None,
    target_column: str | None = None,
) -> list[Example]:
    """The examples of a task.

    Args:
        source: a JSON lines, CSV, TSV or parquet file; a `.source` file with a text on each line,
            beside which a `.target` file may have the answers; a folder with the files of a
            benchmark, of which that of the split is taken; or the name of a dataset on the Hub,
            which may be followed by that of its configuration: `super_glue/boolq`.
        split: "train", "validation" or "test". What is learnt from is expanded as in the original,
            by the task's `expand`.
        text_column, target_column: columns that are taken for `source` and `target`, or for
            `text_a` and the label of a task with choices.

    Raises:
        ValueError: one sentence, for data that cannot be read, or that hold no example.
    """
    rows = read_rows(source, split, task.name)
    names = ("source", "target") if task.kind == "answers" else ("text_a", task.label)
    renamed = {
        column: name
        for column, name in zip((text_column, target_column), names, strict=True)
        if column is not None
    }
    official = OFFICIAL.get(task.name)
    examples: list[Example] = []
    for row in rows:
        for column in renamed:
            if column not in row:
                raise ValueError(
                    f"{source} has no column {column}; its columns are {', '.join(row)}."
                )
        row = {renamed.get(column, column): value for column, value in row.items()}
        examples += [row] if official is None or renamed else official(row)
    if not examples:
        raise ValueError(f"{source} holds no examples; check the data.")
    if split == "train" and task.expand is not None:
        return task.expand(examples)
    return examples


# --- Files ----------------------------------------------------------------------------------------


def read_rows(source: str | Path, split: str, task: str) -> Iterable[dict[str, Any]]:
    """The rows of a file, of a split's file in a folder, or of a dataset on the Hub."""
    path = Path(source)
    if path.is_dir():
        path = file_of_split(path, split)
    if not path.exists():
        return read_hub(str(source), split)
    if path.suffix not in FORMATS:
        raise ValueError(f"{path} has no ending that is known; give one of {', '.join(FORMATS)}.")
    try:
        if path.suffix == ".source":
            return read_pairs(path)
        if path.suffix == ".tsv":
            return read_table(path, task, delimiter="\t")
        if path.suffix == ".csv":
            return read_table(path, task, delimiter=",")
        if path.suffix == ".parquet":
            from datasets import load_dataset

            return load_dataset("parquet", data_files=str(path), split="train")
        return read_json(path)
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read: {error}.") from error


# What benchmarks call the file of a split.
SPLIT_FILES = {
    "train": ("train",),
    "validation": ("validation", "val", "dev", "dev_matched"),
    "test": ("test", "test_matched"),
}


def file_of_split(folder: Path, split: str) -> Path:
    for name in SPLIT_FILES[split]:
        for suffix in FORMATS:
            if (folder / f"{name}{suffix}").is_file():
                return folder / f"{name}{suffix}"
    names = " or ".join(SPLIT_FILES[split])
    raise ValueError(f"{folder} has no file {names} with an ending of {', '.join(FORMATS)}.")


def read_json(file: Path) -> list[dict[str, Any]]:
    """An object on each line, or one list of objects."""
    text = file.read_text(encoding="utf-8")
    rows: list[Any]
    if text.lstrip().startswith("["):
        rows = parse_json(file, text, 1)
    else:
        rows = [
            parse_json(file, line, number)
            for number, line in enumerate(text.split("\n"), start=1)
            if line.strip()
        ]
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise ValueError(f"Entry {number} of {file} is no object with columns.")
    return rows


def parse_json(file: Path, text: str, line: int) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"Line {line} of {file} is no JSON: {error}.") from error


def read_table(file: Path, task: str, delimiter: str) -> list[dict[str, str]]:
    """Rows with the names of the first line; some benchmarks have no such line."""
    columns = WITHOUT_NAMES.get((task, file.suffix))
    quoting = csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL
    with open(file, encoding="utf-8-sig", newline="") as lines:
        return list(csv.DictReader(lines, columns, delimiter=delimiter, quoting=quoting))


def read_pairs(source: Path) -> list[dict[str, str]]:
    """Lines of a `.source` file and, if there is one, of the `.target` file beside it."""
    texts = source.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    target = source.with_suffix(".target")
    if not target.exists():
        return [{"source": text} for text in texts]
    answers = target.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    if len(texts) != len(answers):
        raise ValueError(
            f"{source} has {len(texts)} lines and {target} {len(answers)}; give each its answer."
        )
    return [{"source": text, "target": answer} for text, answer in zip(texts, answers, strict=True)]


def read_hub(name: str, split: str) -> Iterable[dict[str, Any]]:
    from datasets import load_dataset

    dataset, _, configuration = name.partition("/")
    tries = [(name, None)] + [(dataset, configuration)] * bool(configuration)
    problem: Exception | None = None
    for path, part in tries:
        try:
            return load_dataset(path, part, split=split)
        except Exception as error:  # the library has a dozen kinds; the first says what it is
            problem = problem or error
    raise ValueError(
        f"{name} is neither a file or folder nor a dataset that the Hub gives: {problem}"
    ) from problem


# --- The words of the benchmarks ------------------------------------------------------------------


def renamed(**names: str) -> Callable[[Example], list[Example]]:
    """Makes an example of a row: our names for the benchmark's columns, quotes as in ASCII."""

    def official(row: Example) -> list[Example]:
        example: Example = {}
        for column, value in row.items():
            if column == "target" and isinstance(value, dict):  # the spans of WSC and CLUEWSC
                example |= value
            else:
                example[column] = value
        for ours, column in names.items():
            if column in example:
                example[ours] = example.pop(column)
        for text in ("text_a", "text_b"):
            if isinstance(example.get(text), str):
                example[text] = plain_quotes(example[text])
        return [example]

    return official


def copa_row(row: Example) -> list[Example]:
    """The quotes of COPA stay as they are, as in the original."""
    example = dict(row)
    if "premise" in example:
        example["text_a"] = example.pop("premise")
    return [example]


def multirc_rows(row: Example) -> list[Example]:
    """Each answer of each question of a passage."""
    if not isinstance(row.get("passage"), dict):
        (example,) = renamed(text_a="paragraph", text_b="question")(row)
        if isinstance(example.get("idx"), dict):  # of the Hub
            example["question_idx"] = example["idx"]["question"]
        return [example]
    examples = []
    for question in row["passage"]["questions"]:
        for answer in question["answers"]:
            place = [row.get("idx"), question.get("idx"), answer.get("idx")]
            examples.append(
                {
                    "text_a": plain_quotes(row["passage"]["text"]),
                    "text_b": plain_quotes(question["question"]),
                    "answer": plain_quotes(answer["text"]),
                    "label": answer.get("label"),
                    "passage_idx": place[0],
                    "question_idx": place[1],
                    "answer_idx": place[2],
                    "idx": place,
                }
            )
    return examples


def record_rows(row: Example) -> list[Example]:
    """Each query about a passage, with all its entities as candidates."""
    if "qas" not in row:
        if "passage" not in row:
            return [row]
        entities = sorted({plain_quotes(entity) for entity in row["entities"]})
        queries = [{"query": row["query"], "answers": row["answers"], "idx": row.get("idx")}]
        text = plain_quotes(row["passage"])
    else:
        text = plain_quotes(row["passage"]["text"])
        spans = row["passage"]["entities"]
        entities = sorted({text[span["start"] : span["end"] + 1] for span in spans})
        queries = row["qas"]
    examples = []
    for query in queries:
        answers = [
            answer["text"] if isinstance(answer, dict) else answer
            for answer in query.get("answers") or ()
        ]
        examples.append(
            {
                # As the paper of GPT-3 has the highlights, which the original follows.
                "text_a": text.replace("@highlight\n", "- "),
                "text_b": plain_quotes(query["query"]),
                "candidates": entities,
                "answers": list(dict.fromkeys(map(plain_quotes, answers))),
                "passage_idx": row.get("idx"),
                "question_idx": query.get("idx"),
                "idx": query.get("idx"),
            }
        )
    return examples


def wsc_row(row: Example) -> list[Example]:
    """With the place of the pronoun as it is: the data has some off by one word."""
    (example,) = renamed(text_a="text")(row)
    if "candidates" in example:
        texts = [one["text"] if isinstance(one, dict) else one for one in example["candidates"]]
        example["candidates"] = list(dict.fromkeys(texts))
    words, pronoun = example["text_a"].split(), example["span2_text"]
    place = example["span2_index"]
    for near in (place, place - 1, place + 1):
        if 0 <= near < len(words) and words[near] == pronoun:
            break
    else:
        near = place
        if not 0 <= near < len(words) or not words[near].startswith(pronoun):
            raise ValueError(
                f"The pronoun {pronoun!r} of a WSC example is not at its span2_index {place}."
            )
        words[near : near + 1] = [pronoun, words[near][len(pronoun) :]]
    return [{**example, "text_a": " ".join(words), "span2_index": near}]


def race_rows(row: Example) -> list[Example]:
    """Each question about an article, without its line breaks."""
    if "article" not in row:
        return [row]
    article = re.sub(r"\s+", " ", row["article"])
    for _ in range(3):  # as often as in the original
        article = article.replace(" . ", ". ")
    if "questions" not in row:
        asked = [(row["question"], row["options"], row.get("answer"))]
    else:
        answers = row.get("answers") or [None] * len(row["questions"])
        asked = list(zip(row["questions"], row["options"], answers, strict=True))
    return [
        {"text_a": article, "text_b": question, "choices": choices, "label": answer}
        for question, choices, answer in asked
    ]


def squad_rows(row: Example) -> list[Example]:
    """A question about a context, with its first answer; an article of the official file, all."""
    if "paragraphs" in row:
        return [
            example
            for paragraph in row["paragraphs"]
            for question in paragraph["qas"]
            for example in squad_rows({"context": paragraph["context"], **question})
        ]
    if "context" not in row:
        return [row]
    answers = row["answers"]
    texts = answers["text"] if isinstance(answers, dict) else [one["text"] for one in answers]
    return [
        {
            "source": row["context"],
            "question": row["question"],
            "answer": texts[0] if texts else None,
            "answers": texts,
            "id": row.get("id"),
        }
    ]


def with_two_texts(official: Callable[[Example], list[Example]]) -> Callable:
    """The second text may be missing, or in one column with the first."""

    def rows(row: Example) -> list[Example]:
        return [{"text_b": "", **example} for example in official(row)]

    return rows


SENTENCES = renamed(text_a="sentence1", text_b="sentence2")
PREMISE = renamed(text_a="premise", text_b="hypothesis")
SENTENCE = renamed(text_a="sentence")
TEXT = renamed(text_a="text")
OFFICIAL: dict[str, Callable[[Example], list[Example]]] = {
    "boolq": renamed(text_a="passage", text_b="question"),
    "cb": PREMISE,
    "rte": PREMISE,
    "axg": PREMISE,
    "axb": SENTENCES,
    "copa": copa_row,
    "multirc": multirc_rows,
    "record": record_rows,
    "wic": SENTENCES,
    "wsc": wsc_row,
    "wsc_generative": wsc_row,
    "race": race_rows,
    "agnews": with_two_texts(TEXT),
    "yahoo": with_two_texts(renamed(text_a="question_title", text_b="question_content")),
    "yelp-polarity": TEXT,
    "yelp-full": TEXT,
    "mnli": PREMISE,
    "mnli-mm": PREMISE,
    "qnli": renamed(text_a="question", text_b="sentence"),
    "sst2": SENTENCE,
    "cola": SENTENCE,
    "mrpc": SENTENCES,
    "qqp": renamed(text_a="question1", text_b="question2"),
    "tnews": with_two_texts(renamed(text_a="sentence", text_b="keywords")),
    "afqmc": SENTENCES,
    "cluewsc": TEXT,
    "squad": squad_rows,
    "squad_v1": squad_rows,
    "squad_generation": squad_rows,
    "cmrc": squad_rows,
}
# Tables whose first line is an example already.
WITHOUT_NAMES = {
    ("cola", ".tsv"): ["origin", "label", "mark", "sentence"],
    ("agnews", ".csv"): ["label", "text_a", "text_b"],
    ("yahoo", ".csv"): ["label", "text_a", "text_b", "answer"],
    ("yelp-polarity", ".csv"): ["label", "text_a"],
    ("yelp-full", ".csv"): ["label", "text_a"],
}


# --- What is learnt from --------------------------------------------------------------------------


def mirror_copa(examples: list[Example]) -> list[Example]:
    """COPA is learnt from each example, and then from all with their choices exchanged."""
    mirrored = [
        {
            **example,
            "choice1": example["choice2"],
            "choice2": example["choice1"],
            "label": 1 - int(example["label"]),
        }
        for example in examples
    ]
    return [*examples, *mirrored]


def record_answers(examples: list[Example]) -> list[Example]:
    """An example of ReCoRD for each answer that is right, among candidates that are wrong."""
    shuffler = random.Random(SHUFFLE_SEED)
    learnt = []
    for example in examples:
        wrong = [entity for entity in example["candidates"] if entity not in example["answers"]]
        for answer in example["answers"]:
            others = list(wrong)
            if len(others) > CANDIDATES - 1:
                shuffler.shuffle(others)
                others = others[: CANDIDATES - 1]
            learnt.append(
                {**example, "candidates": [answer, *others], "answers": [answer], "label": 0}
            )
    return learnt


def wsc_positives(examples: list[Example]) -> list[Example]:
    """The examples of WSC whose span is right, with at most 9 candidates beside it each."""
    learnt = []
    for example in examples:
        if example.get("label") not in ("True", True):  # 1 is True, too
            continue
        candidates = example.get("candidates", [])
        for part in parts_of(candidates, CANDIDATES - 1):
            learnt.append({**example, "candidates": part})
    return learnt


def parts_of(candidates: list[str], size: int) -> Iterator[list[str]]:
    """Parts of this size, the last filled up from the front; all at once where there are fewer."""
    if len(candidates) <= size:
        yield candidates
        return
    for start in range(0, len(candidates), size):
        part = candidates[start : start + size]
        yield part + candidates[: size - len(part)]
