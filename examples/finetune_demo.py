"""Fine-tunes the demo model by each recipe on made data; prints a table of before and after.

    python examples/finetune_demo.py REPOSITORY --seed 0 --seed 1 --seed 2

The data are those of `finetuning_data.py`; every seed holds other examples out. "before" is the
same evaluation after one step with the learning rate 0.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from huggingface_hub import ModelCard

from glm_transformers.training.finetune import finetune
from glm_transformers.training.options import Finetuning

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Recipe:
    """task: a file of `finetuning_data.py`. data: whose examples. options: of `glm finetune`."""

    name: str
    task: str
    data: str
    options: dict

    @property
    def metric(self) -> str:
        return "exact_match" if self.data == "rivers" else "accuracy"


RATE = {"learning_rate": 3e-4}
# An adapter starts at nothing and learns at a higher rate, as in the LoRA paper.
LORA = {"lora": True, "learning_rate": 5e-3}
POOLED = {"pooled": True}
SEVERAL = "topics-several-tokens"
RECIPES = [
    Recipe("answers", "rivers", "rivers", {"epochs": 60, **RATE}),
    Recipe("answers, LoRA", "rivers", "rivers", {"epochs": 120, **LORA}),
    Recipe("choices of one token", "topics", "topics", {"epochs": 6, **RATE}),
    Recipe("choices of one token, LoRA", "topics", "topics", {"epochs": 6, **LORA}),
    Recipe("choices of several tokens", SEVERAL, "topics", {"epochs": 6, **RATE}),
    Recipe("choices of several tokens, LoRA", SEVERAL, "topics", {"epochs": 6, **LORA}),
    Recipe("pooled classifier", "topics", "topics", {"epochs": 6, **POOLED, **RATE}),
    Recipe("pooled classifier, LoRA", "topics", "topics", {"epochs": 6, **POOLED, **LORA}),
]


def run(recipe: Recipe, repository: Path, data: Path, output: Path, **others) -> float:
    """Percent that is right of the examples that are held out."""
    options = {
        "task": str(data / f"{recipe.task}.json"),
        "data": str(data / f"{recipe.data}.train.jsonl"),
        "validation": str(data / f"{recipe.data}.test.jsonl"),
        "output": str(output),
        "model": str(repository),
        "batch_size": 8,
        **recipe.options,
        **others,
    }
    written = finetune(Finetuning(**options))
    results = ModelCard.load(written / "README.md").data.eval_results
    (value,) = [one.metric_value for one in results if one.metric_type == recipe.metric]
    return value


def measure(recipe: Recipe, repository: Path, seed: int) -> tuple[float, float, float]:
    """Percent before, percent after, seconds of training."""
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder, "data")
        make = [sys.executable, HERE / "finetuning_data.py", data, "--seed", str(seed)]
        subprocess.run(make, check=True)
        untrained = {"learning_rate": 0.0, "epochs": None, "steps": 1}
        before = run(recipe, repository, data, Path(folder, "before"), seed=seed, **untrained)
        start = time.perf_counter()
        after = run(recipe, repository, data, Path(folder, "after"), seed=seed)
        return before, after, time.perf_counter() - start


def main(
    repository: Annotated[Path, typer.Argument(help="The converted demo model.")],
    seed: Annotated[list[int], typer.Option(help="Which examples are held out.")] = [0],  # noqa: B006
):
    """Print a row for each recipe: the mean of the seeds, and the lowest of them."""
    lines = [
        "| recipe | before | after | lowest of the seeds | seconds |",
        "|---|---:|---:|---:|---:|",
    ]
    for recipe in RECIPES:
        runs = [measure(recipe, repository, one) for one in seed]
        before, after, seconds = zip(*runs, strict=True)
        means = [f"{statistics.mean(column):.1f}" for column in (before, after)]
        cells = [recipe.name, *means, f"{min(after):.1f}", f"{statistics.mean(seconds):.0f}"]
        lines.append(f"| {' | '.join(cells)} |")
    print(*lines, sep="\n")  # behind what the training prints


if __name__ == "__main__":
    typer.run(main)
