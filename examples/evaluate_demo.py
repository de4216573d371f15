"""Measures the demo model on phrasings that it has never seen.

    python examples/evaluate_demo.py REPOSITORY

`[MASK]` answers must be exact; what replaces `[sMASK]` and `[gMASK]` must contain the word that is
asked for. Everything is asked one by one, in padded batches, two blanks at once, and through the
pipeline. Of the `[MASK]` questions the right answer is also scored: its perplexity, and whether it
is the best of the answers to all questions.
"""

import json
import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated

import torch
import typer
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, pipeline

from glm_transformers.evaluation.model import load
from glm_transformers.evaluation.options import Scoring
from glm_transformers.evaluation.record import Measure, write_record
from glm_transformers.evaluation.score import of_answers, of_choices

HELD_OUT = Path(__file__).with_name("held_out.jsonl")
OPTIONS = dict(max_piece_length=24, max_new_tokens=50, do_sample=False)
BATCH = 50


def is_right(question: dict, piece: str) -> bool:
    if question["mask"] == "[MASK]":
        return piece.strip() == question["answer"]
    return (
        re.search(rf"\b{re.escape(question['answer'])}\b", piece, flags=re.IGNORECASE) is not None
    )


def fill_all(model, tokenizer, texts: list[str], batch: int) -> list[list[str]]:
    """The pieces for each text's blanks, `batch` texts in one call."""
    pieces = []
    for start in range(0, len(texts), batch):
        inputs = tokenizer(texts[start : start + batch], padding=True, return_tensors="pt")
        pieces += tokenizer.decode_pieces(model.generate(**inputs, **OPTIONS))
    return pieces


def read_questions(held_out: Path = HELD_OUT) -> list[dict]:
    return [json.loads(line) for line in held_out.read_text(encoding="utf-8").splitlines()]


def ask_two_at_once(model, tokenizer, questions: list[dict]) -> list[bool]:
    """Whether each `[MASK]` question is answered right when the next one is in the same text."""
    masked = [question for question in questions if question["mask"] == "[MASK]"]
    pairs = list(zip(masked[::2], masked[1::2], strict=False))  # a last one is left over
    texts = [f"{one['text']} {other['text']}" for one, other in pairs]
    answers = fill_all(model, tokenizer, texts, BATCH)
    return [
        is_right(question, piece)
        for pair, pieces in zip(pairs, answers, strict=True)
        for question, piece in zip(pair, pieces, strict=True)
    ]


@dataclass
class Answers:
    """What the model answered to each question.

    agree: for each other way of asking, whether the answers were the same.
    """

    questions: list[dict]
    pieces: list[str]
    two_blanks: list[bool]
    agree: dict[str, bool]

    def right(self, mask: str) -> list[bool]:
        """Of the questions with this mask, which are answered right."""
        return [
            is_right(question, piece)
            for question, piece in zip(self.questions, self.pieces, strict=True)
            if question["mask"] == mask
        ]


def ask(repository: Path, held_out: Path = HELD_OUT) -> Answers:
    """Ask one by one, two blanks at once, in padded batches, and through the pipeline."""
    questions = read_questions(held_out)
    texts = [question["text"] for question in questions]
    tokenizer = AutoTokenizer.from_pretrained(repository, trust_remote_code=True)
    model = AutoModelForSeq2SeqLM.from_pretrained(
        repository, trust_remote_code=True, dtype=torch.float32
    ).eval()
    fill = pipeline(
        "text2text-generation", model=str(repository), trust_remote_code=True, dtype=torch.float32
    )
    single = fill_all(model, tokenizer, texts, batch=1)
    in_batches = fill_all(model, tokenizer, texts, BATCH)
    in_the_pipeline = [result["blanks"] for result in fill(texts, **OPTIONS)]
    return Answers(
        questions=questions,
        pieces=[pieces[0] for pieces in single],
        two_blanks=ask_two_at_once(model, tokenizer, questions),
        agree={
            "in padded batches": in_batches == single,
            "through the pipeline": in_the_pipeline == single,
        },
    )


def measure(repository: Path, held_out: Path = HELD_OUT) -> list[Measure]:
    """What the model's card shows of the `[MASK]` questions."""
    questions = [question for question in read_questions(held_out) if question["mask"] == "[MASK]"]
    answers = sorted({question["answer"] for question in questions})
    lines = []
    for question in questions:
        # A blank swallows the space before it, which the answer brings.
        space = "" if question["text"].startswith("[MASK]") else " "
        lines.append(
            {
                "inputs_pretokenized": question["text"],
                "targets_pretokenized": space + question["answer"],
                "choices_pretokenized": [space + answer for answer in answers],
                "label": answers.index(question["answer"]),
            }
        )
    loaded = load(str(repository))
    options = Scoring(str(held_out), end_token=True)
    measures = [
        *of_choices(loaded, lines, options).measures,
        *of_answers(loaded, lines, options).measures,
    ]
    return [replace(measure, task=f"held-out [MASK], {measure.task}") for measure in measures]


def main(
    repository: Annotated[Path, typer.Argument(help="The converted demo model.")],
    held_out: Annotated[
        Path, typer.Option(help="Questions, a JSON object on each line.")
    ] = HELD_OUT,
    wrong: Annotated[bool, typer.Option("--wrong", help="Print the wrong answers.")] = False,
    output: Annotated[
        Path | None, typer.Option(help="File for the numbers of the model card.")
    ] = None,
):
    """Print the demo model's accuracy.

    Exit status 1 if a way of asking gives other answers than another.
    """
    answers = ask(repository, held_out)
    rows = {f"`{mask}`": answers.right(mask) for mask in ("[MASK]", "[sMASK]", "[gMASK]")}
    print("| blank | questions | right |\n|---|---:|---:|")
    for name, right in {**rows, "two `[MASK]` in one text": answers.two_blanks}.items():
        print(f"| {name} | {len(right)} | {sum(right) / len(right):.1%} |")
    print()
    for way, same in answers.agree.items():
        print(f"The answers {way} are {'the same' if same else 'OTHERS'}.")
    measures = measure(repository, held_out)
    print()
    for one in measures:
        print(f"{one.task}: {one.metric} {one.value:.4f} ({one.count} {one.of})")
    if output is not None:
        write_record(output, {"results": [asdict(one) for one in measures]})
    if wrong:
        for question, piece in zip(answers.questions, answers.pieces, strict=True):
            if not is_right(question, piece):
                print(f"{question['text']} -> {piece!r}, not {question['answer']!r}")
    if not all(answers.agree.values()):
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
