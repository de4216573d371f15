"""Measures the demo model on phrasings that it has never seen.

    python examples/evaluate_demo.py REPOSITORY

`[MASK]` answers must be exact; what replaces `[sMASK]` and `[gMASK]` must contain the word that is asked for. Everything is
asked one by one, in padded batches, two blanks at once, and through the pipeline.
"""

import json
import re
from pathlib import Path
from typing import Annotated

import torch
import typer
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, pipeline

HELD_OUT = Path(__file__).with_name("held_out.jsonl")
OPTIONS = dict(max_piece_length=24, max_new_tokens=50, do_sample=False)
BATCH = 50


def is_right(question: dict, piece: str) -> bool:
    if question["mask"] == "[MASK]":
        return piece.strip() == question["answer"]
    return re.search(rf"\b{re.escape(question['answer'])}\b", piece, flags=re.IGNORECASE) is not None


def fill_all(model, tokenizer, texts: list[str], batch: int) -> list[list[str]]:
    """The pieces for each text's blanks, `batch` texts in one call."""
    pieces = []
    for start in range(0, len(texts), batch):
        inputs = tokenizer(texts[start : start + batch], padding=True, return_tensors="pt")
        pieces += tokenizer.decode_pieces(model.generate(**inputs, **OPTIONS))
    return pieces


def main(
    repository: Annotated[Path, typer.Argument(help="The converted demo model.")],
    held_out: Annotated[Path, typer.Option(help="Questions, a JSON object on each line.")] = HELD_OUT,
    wrong: Annotated[bool, typer.Option("--wrong", help="Print the wrong answers.")] = False,
):
    """Print the demo model's accuracy; exit status 1 if a way of asking gives other answers than another."""
    torch.manual_seed(0)
    questions = [json.loads(line) for line in held_out.read_text(encoding="utf-8").splitlines()]
    texts = [question["text"] for question in questions]
    tokenizer = AutoTokenizer.from_pretrained(repository, trust_remote_code=True)
    model = AutoModelForSeq2SeqLM.from_pretrained(repository, trust_remote_code=True, dtype=torch.float32).eval()
    fill = pipeline("text2text-generation", model=str(repository), trust_remote_code=True, dtype=torch.float32)
    single = fill_all(model, tokenizer, texts, batch=1)

    print("| blank | questions | right |\n|---|---:|---:|")
    for mask in ("[MASK]", "[sMASK]", "[gMASK]"):
        asked = [(question, pieces[0]) for question, pieces in zip(questions, single) if question["mask"] == mask]
        right = sum(is_right(question, piece) for question, piece in asked)
        print(f"| `{mask}` | {len(asked)} | {right / len(asked):.1%} |")
        for question, piece in asked:
            if wrong and not is_right(question, piece):
                print(question["text"], "->", repr(piece), "not", question["answer"])

    masked = [question for question in questions if question["mask"] == "[MASK]"]
    pairs = list(zip(masked[::2], masked[1::2]))
    answers = fill_all(model, tokenizer, [f"{one['text']} {other['text']}" for one, other in pairs], BATCH)
    right = [is_right(question, piece) for pair, pieces in zip(pairs, answers) for question, piece in zip(pair, pieces)]
    print(f"| two `[MASK]` in one text | {2 * len(pairs)} | {sum(right) / (2 * len(pairs)):.1%} |\n")

    agree = {
        "in padded batches": fill_all(model, tokenizer, texts, BATCH) == single,
        "through the pipeline": [result["blanks"] for result in fill(texts, **OPTIONS)] == single,
    }
    for way, same in agree.items():
        print(f"The answers {way} are {'the same' if same else 'OTHERS'}.")
    if not all(agree.values()):
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
