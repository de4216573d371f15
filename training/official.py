"""The files that benchmarks publish their data in, and the Hub's copies of them, as examples.

Each record, a line or a row, becomes a few flat examples with the words of the original's patterns:
text_a, text_b, label, and what else a task reads.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from .templates import Example, plain_quotes

Record = dict[str, Any]
JSON_LINES = {"train": "train.jsonl", "validation": "val.jsonl", "test": "test.jsonl"}
CLUE = {"train": "train.json", "validation": "dev.json", "test": "test.json"}
TSV = {"train": "train.tsv", "validation": "dev.tsv", "test": "test.tsv"}
CSV = {"train": "train.csv", "validation": "test.csv"}


@dataclass(frozen=True)
class Official:
    """How published data is read.

    files: for each split the name, or a glob pattern, of its files in the benchmark's folder.
    header: columns of files whose first line is data already.
    fields: for each field of an example the columns it may be in, in files and on the Hub. The
        first is needed; others that are missing are left out.
    lines: whether each line of a .txt file is a text, in a column of this name.
    clean: what is done to the text of each field but the label.
    records: instead of `fields`, where a record becomes several examples.
    """

    files: dict[str, str]
    header: tuple[str, ...] = ()
    fields: dict[str, tuple[str, ...]] = field(default_factory=dict)
    lines: bool = False
    clean: Callable[[str], str] = str
    records: Callable[[Record], list[Example]] | None = None

    @property
    def is_pair(self) -> bool:
        """Whether texts and what to write lie in two files, a line for each."""
        return all(name.endswith(".source") for name in self.files.values())

    def examples(self, record: Record) -> list[Example]:
        """What a record becomes.

        Raises:
            KeyError: if it lacks the first of the fields.
        """
        if self.records is not None:
            return self.records(record)
        example = {}
        for name, columns in self.fields.items():
            column = next((column for column in columns if column in record), None)
            if column is not None:
                value = record[column]
                is_text = isinstance(value, str) and name not in ("label", "idx")
                example[name] = self.clean(value) if is_text else value
            elif not example:
                raise KeyError(columns[0])
        return [example]


def texts(
    files: dict[str, str],
    first: tuple[str, ...],
    second: tuple[str, ...] = (),
    label: tuple[str, ...] = ("label",),
    clean: Callable[[str], str] = plain_quotes,
    header: tuple[str, ...] = (),
    **others: tuple[str, ...],
) -> Official:
    """One text or two, in columns of these names."""
    fields = {"text_a": first, "label": label, "idx": ("idx", "id"), **others}
    if second:
        fields["text_b"] = second
    return Official(files, header, fields, clean=clean)


# --- SuperGLUE ------------------------------------------------------------------------------------


def multirc(record: Record) -> list[Example]:
    """An example for each answer; the Hub has a row for each."""
    if "paragraph" in record:
        place = record["idx"]
        return [
            {
                "text_a": plain_quotes(record["paragraph"]),
                "text_b": plain_quotes(record["question"]),
                "answer": plain_quotes(record["answer"]),
                "label": record.get("label"),
                "passage_idx": place["paragraph"],
                "question_idx": place["question"],
                "answer_idx": place["answer"],
            }
        ]
    passage = record["passage"]
    return [
        {
            "text_a": plain_quotes(passage["text"]),
            "text_b": plain_quotes(question["question"]),
            "answer": plain_quotes(answer["text"]),
            "label": answer.get("label"),
            "passage_idx": record["idx"],
            "question_idx": question["idx"],
            "answer_idx": answer["idx"],
        }
        for question in passage["questions"]
        for answer in question["answers"]
    ]


def record(record: Record) -> list[Example]:
    """ReCoRD: an example for each query, with all entities of the passage as its candidates."""
    passage = record["passage"]
    if isinstance(passage, str):  # the Hub's rows
        text = plain_quotes(passage)
        entities = record["entities"]
        queries = [{**record, "idx": record["idx"]["query"]}]
    else:
        text = plain_quotes(passage["text"])
        entities = [text[entity["start"] : entity["end"] + 1] for entity in passage["entities"]]
        queries = record["qas"]
    # The highlights become a list, as in GPT-3's paper.
    text = text.replace("@highlight\n", "- ")
    return [
        {
            "text_a": text,
            "text_b": plain_quotes(query["query"]),
            "candidates": sorted({plain_quotes(entity) for entity in entities}),
            "answers": distinct(
                plain_quotes(answer if isinstance(answer, str) else answer["text"])
                for answer in query.get("answers", [])
            ),
            "idx": query["idx"],
        }
        for query in queries
    ]


def wsc(record: Record) -> list[Example]:
    """WSC: the published places of spans are off by one word here and there, which is mended."""
    target = record.get("target", record)  # the Hub's rows are flat
    text = plain_quotes(record["text"])
    words = text.split()
    lower = text.lower().split()
    span = near(lower, target["span1_text"].lower().split(), target["span1_index"])
    place = near(words, [target["span2_text"]], target["span2_index"])
    pronoun = target["span2_text"]
    if place < len(words) and words[place] != pronoun and words[place].startswith(pronoun):
        # What is glued to the pronoun, a comma, becomes a word of its own.
        words[place : place + 1] = [pronoun, words[place][len(pronoun) :]]
    if not 0 <= place < len(words) or words[place] != pronoun:
        raise ValueError(f"The pronoun {pronoun!r} is not word {place} of the WSC text {text!r}.")
    example = {
        "text_a": " ".join(words),
        "span1_text": target["span1_text"],
        "span2_text": pronoun,
        "span1_index": span,
        "span2_index": place,
        "label": record.get("label"),
        "idx": record.get("idx"),
    }
    if "candidates" in record:
        example["candidates"] = distinct(candidate["text"] for candidate in record["candidates"])
    return [example]


def near(words: list[str], span: list[str], place: int) -> int:
    """The place of a span of words: the one that is given, or the one beside it that has them."""
    for offset in (0, -1, 1):
        start = place + offset
        if start >= 0 and words[start : start + len(span)] == span:
            return start
    return place


def distinct(items) -> list:
    return list(dict.fromkeys(items))


BOOLQ = texts(JSON_LINES, ("passage",), ("question",))
RTE = texts(JSON_LINES, ("premise",), ("hypothesis",))
AXG = texts({"test": "AX-g.jsonl"}, ("premise",), ("hypothesis",))
AXB = texts({"test": "AX-b.jsonl"}, ("sentence1",), ("sentence2",))
WIC = texts(JSON_LINES, ("sentence1",), ("sentence2",), word=("word",))
COPA = texts(
    JSON_LINES,
    ("premise",),
    clean=str,
    choice1=("choice1",),
    choice2=("choice2",),
    question=("question",),
)
MULTIRC = Official(JSON_LINES, records=multirc)
RECORD = Official(JSON_LINES, records=record)
WSC = Official(JSON_LINES, records=wsc)

# --- RACE, GLUE, reviews and topics ---------------------------------------------------------------


def race(record: Record) -> list[Example]:
    """An example for each question; the Hub has a row for each."""
    article = one_line(record["article"])
    if "questions" not in record:
        return [
            {
                "text_a": article,
                "text_b": record["question"],
                "choices": record["options"],
                "label": record.get("answer"),
                "idx": record.get("example_id"),
            }
        ]
    columns = [record[name] for name in ("questions", "options", "answers")]
    if len(set(map(len, columns))) > 1:
        raise ValueError("An article of RACE needs as many options and answers as questions.")
    questions = zip(*columns, strict=True)
    return [
        {"text_a": article, "text_b": question, "choices": options, "label": answer, "idx": idx}
        for idx, (question, options, answer) in enumerate(questions)
    ]


def one_line(text: str) -> str:
    """Without breaks and double spaces, and without a space in front of a full stop."""
    text = re.sub(r"\s+", " ", text)
    for _ in range(3):  # as often as the original
        text = text.replace(" . ", ". ")
    return text


def without_backslashes(text: str) -> str:
    """Reviews and topics have their breaks as \\n, in two characters."""
    return plain_quotes(text.replace("\\n", " ").replace("\\", " "))


def yahoo(record: Record) -> list[Example]:
    question = [record["question_title"], record.get("question_content", "")]
    return [
        {
            "text_a": without_backslashes(" ".join(question)),
            "text_b": without_backslashes(record["best_answer"]),
            "label": record.get("label", record.get("topic")),
        }
    ]


def agnews(record: Record) -> list[Example]:
    """The Hub has headline and body as one text."""
    texts = [record["text"], ""] if "text" in record else [record["title"], record["body"]]
    first, second = (plain_quotes(text.replace("\\", " ")) for text in texts)
    return [{"text_a": first, "text_b": second, "label": record.get("label")}]


RACE = Official(
    {
        "train": "train/*/*.txt",
        "validation": "dev/*/*.txt",
        "test": "test/*/*.txt",
    },
    records=race,
)
MNLI = texts(
    {"train": "train.tsv", "validation": "dev_matched.tsv", "test": "test_matched.tsv"},
    ("sentence1", "premise"),
    ("sentence2", "hypothesis"),
    ("gold_label", "label"),
)
MNLI_MISMATCHED = texts(
    {"train": "train.tsv", "validation": "dev_mismatched.tsv", "test": "test_mismatched.tsv"},
    ("sentence1", "premise"),
    ("sentence2", "hypothesis"),
    ("gold_label", "label"),
)
QNLI = texts(TSV, ("question",), ("sentence",))
SST2 = texts(TSV, ("sentence",))
COLA = texts(TSV, ("sentence",), header=("source", "label", "mark", "sentence"))
MRPC = texts(
    TSV,
    ("#1 String", "sentence1"),
    ("#2 String", "sentence2"),
    ("Quality", "label"),
)
QQP = texts(TSV, ("question1",), ("question2",), ("is_duplicate", "label"))
AGNEWS = Official(CSV, ("label", "title", "body"), records=agnews)
YAHOO = Official(
    CSV,
    ("label", "question_title", "question_content", "best_answer"),
    records=yahoo,
)
YELP = texts(CSV, ("text",), clean=without_backslashes, header=("label", "text"))

# --- Chinese --------------------------------------------------------------------------------------


def cluewsc(record: Record) -> list[Example]:
    target = record["target"]
    return [
        {
            "text_a": record["text"],
            "label": record.get("label"),
            "idx": record.get("id", record.get("idx")),
            **{
                name: target[name]
                for name in ("span1_text", "span2_text", "span1_index", "span2_index")
            },
        }
    ]


TNEWS = texts(CLUE, ("sentence",), ("keywords",), clean=str)
AFQMC = texts(CLUE, ("sentence1",), ("sentence2",), clean=str)
CLUEWSC = Official(CLUE, records=cluewsc)

# --- Answers --------------------------------------------------------------------------------------

SQUAD_FILES = {"train": "train-v2.0.json", "validation": "dev-v2.0.json"}
SQUAD_V1_FILES = {"train": "train-v1.1.json", "validation": "dev-v1.1.json"}
NO_ANSWER = "N/A"  # how the original writes that a text does not tell

# What the Penn Treebank writes for brackets, and what cnn_dm and gigaword files have beside it.
BRACKETS = {"lrb": "(", "rrb": ")", "lsb": "[", "rsb": "]", "lcb": "{", "rcb": "}"}


def questions(document: Record) -> list[Example]:
    """SQuAD and CMRC: an example for each question, with all its answers."""
    if "context" in document:  # a row of the Hub
        answers = distinct(document["answers"]["text"]) or [NO_ANSWER]
        return [
            {
                "source": document["context"],
                "question": document["question"],
                "answers": answers,
                "answer": answers[0],
                "idx": document["id"],
            }
        ]
    examples = []
    for article in document["data"]:
        for paragraph in article["paragraphs"]:
            for asked in paragraph["qas"]:
                texts = [answer["text"] for answer in asked.get("answers", [])]
                answers = distinct(texts) or [NO_ANSWER]
                examples.append(
                    {
                        "source": paragraph["context"],
                        "question": asked["question"],
                        "answers": answers,
                        "answer": answers[0],
                        "idx": asked.get("id"),
                    }
                )
    return examples


def questions_to_write(document: Record) -> list[Example]:
    """An example for each answer: what was asked for it."""
    return [
        {"source": one["source"], "question": one["question"], "answer": answer}
        for one in questions(document)
        for answer in one["answers"]
    ]


def gigaword_text(text: str) -> str:
    text = plain_quotes(text.strip()).replace("UNK", "[UNK]").replace("<unk>", "[UNK]")
    for name, bracket in BRACKETS.items():
        text = text.replace(f"-{name}-", bracket)
    return text.replace("&amp;", "&").replace("&lt;", "<").replace("&gt;", ">")


def news_text(text: str) -> str:
    """cnn_dm: brackets, quotes and clitics as people write them."""
    for name, bracket in BRACKETS.items():
        text = text.replace(f"-{name.upper()}-", bracket)
    text = text.replace("''", '"').replace("``", '"').replace("`", "'")
    for clitic in ("n't", "'s", "'d", "'ll"):
        text = text.replace(f" {clitic}", clitic)
    return text


def pairs(
    clean: Callable[[str], str],
    source: str = "document",
    target: str = "summary",
) -> Official:
    """A text and what to write: two files for each split, or two columns."""
    return Official(
        {"train": "train.source", "validation": "val.source", "test": "test.source"},
        fields={"source": ("source", source), "target": ("target", target)},
        clean=clean,
    )


def cnn_dm(record: Record) -> list[Example]:
    """Sentences of a summary are parted by `[SEP]`; in the text their mark is left out."""
    # Without either, the name under which the Hub has it is what is missing.
    source = record["source"] if "source" in record else record["article"]
    target = record["target"] if "target" in record else record["highlights"]
    return [
        {
            "source": news_text(plain_line(source).replace("<S_SEP>", "")),
            "target": news_text(plain_line(target).replace("<S_SEP>", "[SEP]")),
        }
    ]


def plain_line(text: str) -> str:
    return plain_quotes(text.strip())


GIGAWORD = pairs(gigaword_text)
CNN_DM_ORIGINAL = pairs(plain_line, "article", "highlights")
CNN_DM = Official(CNN_DM_ORIGINAL.files, records=cnn_dm)
PAIRS = pairs(str.strip)
SQUAD = Official(SQUAD_FILES, records=questions)
SQUAD_V1 = Official(SQUAD_V1_FILES, records=questions)
SQUAD_GENERATION = Official(CLUE, records=questions_to_write)
CMRC = Official(CLUE, records=questions)


def blank_line(text: str) -> str:
    return text.strip().replace("_UNK", "[UNK]").replace("<blank>", "[MASK]")


BLANK = Official(
    {"train": "train.txt", "validation": "valid.txt", "test": "test.txt"},
    fields={"source": ("text", "source"), "target": ("target",), "answers": ("answers",)},
    lines=True,
    clean=blank_line,
)
