"""Fine-tuning: each recipe learns, and its result loads; killed, spread over processes, refused."""

import json
import os
import random
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from made import make_checkpoint, make_parameters, make_vocabulary

from glm_transformers.conversion import convert_checkpoint
from glm_transformers.training.finetune import finetune
from glm_transformers.training.options import Finetuning

# Each is one token behind a space, and each answers the one before it.
WORDS = ["Ng", "Stanford", "Beijing", "Tsinghua", "fox", "dog", "General", "Language"]
NEXT = dict(zip(WORDS, [*WORDS[1:], WORDS[0]], strict=True))
DROPOUTS = ("embedding_dropout_prob", "attention_dropout_prob", "output_dropout_prob")

ANSWERS = {"kind": "answers", "context": ["{source}", "[MASK]"], "answers": " {target}"}
CHOICES = {
    "kind": "choices",
    "context": ["{source}", " It is", "[MASK]", "."],
    "answers": [" quick", " lazy"],
    "labels": ["quick", "lazy"],
    "one_token": False,
}


def write_lines(file: Path, rows: list[dict]) -> str:
    file.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return str(file)


def made_rows(count: int, seed: int) -> list[dict]:
    """A word in a sentence, the word that answers it, and of which half of the words it is."""
    random_ = random.Random(seed)
    rows = []
    for word in random_.choices(WORDS, k=count):
        other = random_.choice(WORDS)
        label = "quick" if WORDS.index(word) < len(WORDS) / 2 else "lazy"
        rows.append({"source": f"The {word} and {other}", "target": NEXT[word], "label": label})
    return rows


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A network so small that a run takes seconds, with dropout: random states matter."""
    folder = tmp_path_factory.mktemp("base")
    parameters = make_parameters(hidden=32, dtype=torch.float32)
    return convert_checkpoint(
        make_checkpoint(folder / "checkpoint", {name: w / 3 for name, w in parameters.items()}),
        folder / "repository",
        model="glm-2b",
        vocab=make_vocabulary(folder / "vocabulary"),
        num_attention_heads=4,
        dtype="float32",
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_lines(folder / "train.jsonl", made_rows(96, seed=1))
    write_lines(folder / "test.jsonl", made_rows(19, seed=2))
    (folder / "answers.json").write_text(json.dumps(ANSWERS))
    (folder / "choices.json").write_text(json.dumps(CHOICES))
    return folder


@pytest.fixture(scope="module")
def options(base, data) -> Finetuning:
    return Finetuning(
        task=str(data / "answers.json"),
        data=str(data / "train.jsonl"),
        output="",
        model=str(base),
        validation=str(data / "test.jsonl"),
        epochs=40,
        batch_size=8,
        learning_rate=1e-2,
        log_every=10,
        evaluate_every=120,
        seed=3,
    )


def reached(output: Path) -> dict[str, float]:
    results = ModelCard.load(output / "README.md").data.eval_results
    return {result.metric_type: result.metric_value for result in results}


RECIPES = {
    "answers": dict(task="answers.json"),
    "choices": dict(task="choices.json"),
    "pooled": dict(task="choices.json", pooled=True),
}


@pytest.fixture(scope="module")
def tuned(options, data, tmp_path_factory):
    """`tuned(recipe, lora)`: what a run of it left."""
    made = {}

    def run(recipe: str, lora: bool = False) -> Path:
        if (recipe, lora) not in made:
            output = tmp_path_factory.mktemp("runs") / f"{recipe}{'-lora' * lora}"
            changed = {**RECIPES[recipe], "task": str(data / RECIPES[recipe]["task"])}
            if lora:
                changed |= dict(lora=True, lora_rank=8, learning_rate=2e-2)
            made[recipe, lora] = finetune(replace(options, output=str(output), **changed))
        return made[recipe, lora]

    return run


@pytest.mark.parametrize("recipe", RECIPES)
def test_each_recipe_learns(tuned, recipe):
    assert min(reached(tuned(recipe)).values()) > 90
    # Of eight words one is right by chance, of two labels one.
    assert min(reached(tuned(recipe, lora=True)).values()) > (50 if recipe == "answers" else 90)


def test_the_code_of_each_card_runs_in_a_fresh_process(tuned, base, tmp_path):
    """It finds repositories and adapters by the names in the card, and answers as they learnt."""
    shutil.copytree(base, tmp_path / base.name)
    expected = {}
    for recipe, answer in {"answers": "dog", "choices": " lazy", "pooled": "lazy"}.items():
        for lora in (False, True):
            output = tuned(recipe, lora)
            shutil.copytree(output, tmp_path / output.name)
            card = (output / "README.md").read_text()
            (program,) = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
            assert "fox" not in card  # no text of the data
            file = tmp_path / f"{output.name}.py"
            file.write_text(program.replace('"..."', '"The fox and Ng"'))
            expected[file.name] = answer
    program = """
import runpy, sys
for file in sys.argv[1:]:
    print(file)
    runpy.run_path(file)
"""
    run = subprocess.run(
        [sys.executable, "-c", program, *expected],
        env={**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    lines = run.stdout.splitlines()
    assert lines[::2] == list(expected)
    for file, said in zip(lines[::2], lines[1::2], strict=True):
        if file != "answers-lora.py":  # which has not learnt all
            assert said in (expected[file], f"[['{expected[file]}']]"), file
