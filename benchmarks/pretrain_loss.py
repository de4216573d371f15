"""Time and memory of a training step: the loss at the targets, and short texts in packed rows.

    python benchmarks/pretrain_loss.py --repeats 5
    python benchmarks/pretrain_loss.py --packing --repeats 5

with the package installed (pip install -e .). One forward and backward pass of a network of the
base shape. The first beside the same network with logits at all positions and eager attention, on
the batches that the token and document modes of pretraining make; the second on short texts with
answers, beside one text in a row. Each measurement runs in a process of its own, so that its peak
memory is its own (on a GPU the peak of the allocator, else of the process above what it held before
the pass); the two take turns.
"""

import argparse
import json
import random
import resource
import statistics
import subprocess
import sys
import time

import torch
from collate import SPECIAL, Vocabulary

from glm_transformers import (
    GLMConfig,
    GLMDataCollator,
    GLMForConditionalGeneration,
    GLMPackingCollator,
)
from glm_transformers.training import BlankInfillingCollator

LENGTH, BATCH = 512, 8
BASE = {"vocab_size": 30592, "hidden_size": 768, "num_layers": 12, "num_attention_heads": 12}
SHORT_TEXTS, SHORTEST, LONGEST = 64, 8, 128  # rows, and tokens of a context


def pretraining_step(kind: str) -> tuple[dict, dict]:
    """A small batch and the measured one, of the mode of pretraining that `kind` names."""
    mode, where = kind.split()
    texts = torch.randint(200, BASE["vocab_size"], (BATCH, LENGTH)).numpy()
    texts[:, 0], texts[:, -1] = SPECIAL["[CLS]"], SPECIAL["[PAD]"]
    collator = BlankInfillingCollator(Vocabulary(), max_length=LENGTH)
    small = collator.collate([{"input_ids": text[:64].copy()} for text in texts[:1]], 0, mode)
    batch = collator.collate([{"input_ids": text} for text in texts], 1, mode)
    skip = {"skip_logits": where == "targets"}
    return {**small, **skip}, {**batch, **skip}


def packing_step(kind: str) -> tuple[dict, dict]:
    """A small batch and the measured one, of short texts with answers."""
    drawn = random.Random(0)
    texts = []
    for _ in range(SHORT_TEXTS):
        length = drawn.randint(SHORTEST, LONGEST)
        context = [drawn.randrange(200, BASE["vocab_size"]) for _ in range(length)]
        context[length // 2] = SPECIAL["[MASK]"]
        answer = [drawn.randrange(200, BASE["vocab_size"]) for _ in range(4)]
        texts.append({"input_ids": context, "labels": answer})
    collator_class = GLMPackingCollator if kind == "packed" else GLMDataCollator
    collate = collator_class(Vocabulary())
    return collate(texts[:1]), collate(texts)


def measure(make_step, kind: str, kernel: str) -> dict:
    """Seconds and MB of one pass, after one on another batch."""
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    config = GLMConfig(**BASE, attn_implementation=kernel)
    model = GLMForConditionalGeneration(config).to(device).train()

    def step(batch: dict):
        moved = {
            name: value.to(device) if isinstance(value, torch.Tensor) else value
            for name, value in batch.items()
        }
        model(**moved).loss.backward()
        if device == "cuda":
            torch.cuda.synchronize()

    def peak() -> float:
        if device == "cuda":
            return torch.cuda.max_memory_allocated() / 2**20
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10

    small, batch = make_step(kind)
    step(small)  # gradients exist and libraries are loaded
    before, start = peak(), time.perf_counter()
    step(batch)
    return {"seconds": time.perf_counter() - start, "MB": peak() - before}


def compare(kinds: tuple[str, str], repeats: int) -> dict[str, tuple[float, float]]:
    """Medians of both kinds, which take turns, for each unit."""
    found: dict[str, list[dict]] = {kind: [] for kind in kinds}
    for _ in range(repeats):
        for kind in kinds:
            run = subprocess.run(
                [sys.executable, __file__, "--measure", kind],
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            )
            found[kind].append(json.loads(run.stdout.splitlines()[-1]))
    return {
        unit: tuple(statistics.median(entry[unit] for entry in found[kind]) for kind in kinds)
        for unit in ("seconds", "MB")
    }


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--packing", action="store_true", help="short texts, packed and alone")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        kind = arguments.measure
        make_step = packing_step if kind in ("packed", "alone") else pretraining_step
        kernel = "eager" if kind.endswith("everywhere") else "sdpa"
        print(json.dumps(measure(make_step, kind, kernel)))
        return
    if arguments.packing:
        rows = [("short texts", ("packed", "alone"))]
    else:
        rows = [(mode, (f"{mode} targets", f"{mode} everywhere")) for mode in ("token", "document")]
    ours, theirs = ("packed", "alone") if arguments.packing else ("at targets", "everywhere, eager")
    print(f"| batch | | {ours} | {theirs} | ratio |")
    print("|---|---|---:|---:|---:|")
    for name, kinds in rows:
        for unit, (our, their) in compare(kinds, arguments.repeats).items():
            print(f"| {name} | {unit} | {our:.2f} | {their:.2f} | {our / their:.2f} |")


if __name__ == "__main__":
    main()
