"""Writes the corpus of the demo model: documents, a vocabulary, and questions that are held out.

    python examples/corpus.py OUTPUT_FOLDER

A phrasing is one fact in the words of one template. Some phrasings are kept out of the documents,
so that a question about them can only be answered by a model that knows the fact from other
phrasings, and the template from other facts.
"""

import json
import random
import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Annotated

import typer
from facts import TOPICS, Relation, Topic
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from glm_transformers.conversion.tokenizers import build_tokenizer
from glm_transformers.hub_repository.repository import save_tokenizer

DOCUMENTS, VALIDATION_DOCUMENTS = 60_000, 600
VOCABULARY = 2000  # pieces: with these, a word of the corpus is one piece
LONGEST = 64  # tokens of a text; the documents have at most 50
HELD_OUT = 0.07
QUESTIONS = {"[MASK]": 200, "[sMASK]": 60, "[gMASK]": 60}

FIELD = re.compile(r"{(\w+)}")


def fields(template: str) -> set[str]:
    return set(FIELD.findall(template))


def says(template: str, row: dict[str, str]) -> bool:
    """Whether the row has what the template needs."""
    return fields(template) <= row.keys()


def fill(template: str, row: dict[str, str]) -> str:
    """The sentence: "a" before a vowel is "an", and the first letter is large."""
    sentence = re.sub(r"\b([Aa]) (?=[aeio])", r"\1n ", template.format(**row))
    return sentence[0].upper() + sentence[1:]


def blank(template: str, row: dict[str, str], field: str, mask: str) -> str:
    """The sentence with a mask for the value of one field; "a" or "an" is as the value wants it."""
    marker = "e\0" if row[field][0] in "aeio" else "\0"
    return (
        fill(template, {**row, field: marker}).replace(marker, mask).replace(marker.upper(), mask)
    )


def is_certain(topic: Topic, row: dict[str, str], given: set[str], wanted: str) -> bool:
    """Whether the given fields leave one value for the wanted one."""
    alike = [other for other in topic.rows if all(other.get(name) == row[name] for name in given)]
    return {other.get(wanted) for other in alike} == {row[wanted]}


def words(text: str) -> str:
    """The text without punctuation and capitals, between spaces."""
    return " " + " ".join(re.findall(r"\w+", text.lower())) + " "


def fits_only(text: str, mask: str, sentences: list[str]) -> bool:
    """Whether the text has one blank, and one sentence alone the words around it."""
    before, *between, after = text.split(mask)
    return (
        not between
        and sum(sentence.startswith(before) and sentence.endswith(after) for sentence in sentences)
        == 1
    )


class Corpus:
    """All phrasings, those that are held out, and the documents made of the others.

    held_out: the share of phrasings; a fact has at least three others.
    """

    def __init__(
        self,
        seed: int = 0,
        topics: tuple[Topic, ...] = TOPICS,
        held_out: float = HELD_OUT,
    ):
        self.topics = topics
        self.random = random.Random(seed)
        self.held_out: set[str] = set()  # sentences
        self.held_statements, self.held_questions = [], []  # (topic, relation, row, template)
        for topic, relation, row in self.facts():
            statements = [template for template in relation.statements if says(template, row)]
            for template in statements:
                if len(statements) > 3 and self.random.random() < held_out:
                    self.held_statements.append((topic, relation, row, template))
                    break  # one for each fact at most
            questions = [template for template in relation.questions if says(template, row)]
            if len(questions) > 1 and self.random.random() < 4 * held_out:
                self.held_questions.append((topic, relation, row, self.random.choice(questions)))
        for _, _, row, template in self.held_statements + self.held_questions:
            self.held_out.add(fill(template, row))
        # Of each fact the statements and the questions that may be trained on.
        self.relations = [
            (self.known(relation.statements, row), self.known(relation.questions, row))
            for _, relation, row in self.facts()
        ]
        # Of each subject the openings, and what may follow one, relation by relation.
        self.subjects = [
            (
                [fill(opening, row) for opening in topic.openings],
                [self.known(relation.followers, row) for relation in topic.relations],
            )
            for topic in topics
            if topic.subject
            for row in topic.rows
        ]

    def facts(self) -> Iterator[tuple[Topic, Relation, dict[str, str]]]:
        """Each relation with each row that has what it needs."""
        for topic in self.topics:
            for relation in topic.relations:
                for row in topic.rows:
                    if any(says(template, row) for template in relation.statements):
                        yield topic, relation, row

    def known(self, templates: tuple[str, ...], row: dict[str, str]) -> list[str]:
        """The sentences of these templates that may be trained on."""
        sentences = [fill(template, row) for template in templates if says(template, row)]
        return [sentence for sentence in sentences if sentence not in self.held_out]

    def document(self) -> str:
        kind = self.random.random()
        if kind < 0.7:
            return " ".join(self.statement() for _ in range(self.random.randint(1, 2)))
        if kind < 0.85:
            return self.question_and_answer()
        return self.passage()

    def statement(self) -> str:
        statements, _ = self.random.choice(self.relations)
        return self.random.choice(statements)

    def question_and_answer(self) -> str:
        while True:
            answers, questions = self.random.choice(self.relations)
            if questions:
                return f"{self.random.choice(questions)} {self.random.choice(answers)}"

    def passage(self) -> str:
        """Some facts about one subject, in any order."""
        openings, followers = self.random.choice(self.subjects)
        chosen = [self.random.choice(sentences) for sentences in followers if sentences]
        self.random.shuffle(chosen)
        opening = self.random.choice(openings)
        return " ".join([opening, *chosen[: self.random.randint(1, 3)]])

    def questions(self) -> Iterator[dict]:
        """Held-out phrasings with a blank whose answer is certain.

        `[MASK]` is a word inside a statement; `[sMASK]` the answer to a question, which must
        contain the word; `[gMASK]` the rest of a statement from that word on, or the answer to a
        question. A phrasing whose words a document can have inside another sentence is not asked
        for.
        """
        found = {mask: [] for mask in QUESTIONS}
        sentences = sorted(
            {
                fill(words, row)
                for _, relation, row in self.facts()
                for words in relation.statements
                if says(words, row)
            }
        )
        for _, _, row, template in self.held_statements:
            for field in sorted(fields(template)):
                answer = (
                    row[field][0].upper() + row[field][1:]
                    if template.startswith(f"{{{field}}}")
                    else row[field]
                )
                kind = (
                    "[gMASK]"
                    if template.endswith(f" {{{field}}}.") and self.random.random() < 0.3
                    else "[MASK]"
                )
                text = blank(template, row, field, kind)
                if fits_only(text, kind, sentences):
                    text = text.removesuffix(".") if kind == "[gMASK]" else text
                    found[kind].append((text, answer, fill(template, row)))
        for topic, relation, row, template in self.held_questions:
            said = set().union(*map(fields, relation.statements))
            for field in sorted(name for name in said - fields(template) if name in row):
                if is_certain(topic, row, fields(template), field):
                    kind = self.random.choice(["[sMASK]", "[gMASK]"])
                    found[kind].append(
                        (f"{fill(template, row)} {kind}", row[field], fill(template, row))
                    )
        known = [
            self.known(relation.statements + relation.followers + relation.questions, row)
            for _, relation, row in self.facts()
        ]
        openings = [openings for openings, _ in self.subjects]
        read = "|".join(map(words, chain.from_iterable([*known, *openings])))
        for mask, wanted in QUESTIONS.items():
            self.random.shuffle(found[mask])
            unread = [
                (text, answer)
                for text, answer, phrasing in found[mask]
                if words(phrasing) not in read
            ]
            for text, answer in unread[:wanted]:
                yield {"mask": mask, "text": text, "answer": answer}


def train_vocabulary(documents: list[str], folder: Path):
    """GPT-2's kind of vocabulary: byte-level pieces, in vocab.json and merges.txt."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - 1, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(documents, trainer)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.model.save(str(folder))
    pieces = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    pieces["<|endoftext|>"] = len(pieces)
    (folder / "vocab.json").write_text(json.dumps(pieces, ensure_ascii=False), encoding="utf-8")


def write(corpus: Corpus, output: Path) -> int:
    """The files that `main` names; the number of questions."""
    output.mkdir(parents=True, exist_ok=True)
    documents = [corpus.document() for _ in range(DOCUMENTS + VALIDATION_DOCUMENTS)]
    sentences = {
        sentence for document in documents for sentence in re.findall(r"[^.?]+[.?]", document)
    }
    if corpus.held_out & {sentence.strip() for sentence in sentences}:
        raise RuntimeError("A held-out phrasing is in the documents.")
    (output / "train.txt").write_text("\n".join(documents[:DOCUMENTS]) + "\n", encoding="utf-8")
    (output / "validation.txt").write_text(
        "\n".join(documents[DOCUMENTS:]) + "\n", encoding="utf-8"
    )
    questions = [json.dumps(question) for question in corpus.questions()]
    (output / "held_out.jsonl").write_text("\n".join(questions) + "\n", encoding="utf-8")
    train_vocabulary(documents[:DOCUMENTS], output / "vocabulary")
    files = [output / "vocabulary" / name for name in ("vocab.json", "merges.txt")]
    (output / "tokenizer").mkdir(exist_ok=True)
    save_tokenizer(
        build_tokenizer("gpt2", files, task_mask=True),
        output / "tokenizer",
        model_max_length=LONGEST,
    )
    return len(questions)


def main(output: Annotated[Path, typer.Argument(help="The folder to write.")]):
    """Write train.txt, validation.txt, held_out.jsonl, and the folders vocabulary and tokenizer."""
    questions = write(Corpus(), output)
    typer.echo(f"{DOCUMENTS} documents and {questions} held-out questions are in {output}.")


if __name__ == "__main__":
    typer.run(main)
