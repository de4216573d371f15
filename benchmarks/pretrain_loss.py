"""Time and memory of the pretraining loss: logits at the targets only, beside logits everywhere.

    python benchmarks/pretrain_loss.py --repeats 5

with the package installed (pip install -e .). One forward and backward pass of a shallow network
with the vocabulary of glm-10b, on the batches that the token and document modes of the collator
make. Each measurement runs in a process of its own, so that its peak memory is its own (on a GPU
the peak of the allocator, else of the process above what it held before the pass); the two take
turns.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time

import torch
from collate import SPECIAL, Vocabulary

from glm_transformers import GLMConfig, GLMForConditionalGeneration
from glm_transformers.training import BlankInfillingCollator
from glm_transformers.training.pretrain import GLMForBlankInfilling

LENGTH, BATCH, VOCABULARY, HIDDEN = 512, 8, 50304, 512


def measure(mode: str, only_targets: bool) -> dict:
    """Seconds and MB of one pass, after one on another batch."""
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    config = GLMConfig(
        vocab_size=VOCABULARY, hidden_size=HIDDEN, num_layers=2, num_attention_heads=8
    )
    kind = GLMForBlankInfilling if only_targets else GLMForConditionalGeneration
    model = kind(config).to(device).train()
    texts = torch.randint(200, 30522, (BATCH, LENGTH)).numpy()
    texts[:, 0], texts[:, -1] = SPECIAL["[CLS]"], SPECIAL["[PAD]"]
    collator = BlankInfillingCollator(Vocabulary(), max_length=LENGTH)

    def step(samples, number):
        batch = collator.collate([{"input_ids": text} for text in samples], number, mode)
        model(**{name: tensor.to(device) for name, tensor in batch.items()}).loss.backward()
        if device == "cuda":
            torch.cuda.synchronize()

    def peak() -> float:
        if device == "cuda":
            return torch.cuda.max_memory_allocated() / 2**20
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10

    step(texts[:1, :64].copy(), 0)  # gradients exist and libraries are loaded
    before, start = peak(), time.perf_counter()
    step(texts, 1)
    return {"seconds": time.perf_counter() - start, "MB": peak() - before}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        mode, kind = arguments.measure
        print(json.dumps(measure(mode, kind == "targets")))
        return
    print("| mode | | at targets | everywhere | everywhere / at targets |")
    print("|---|---|---:|---:|---:|")
    for mode in ("token", "document"):
        found = {"targets": [], "all": []}
        for _ in range(arguments.repeats):
            for kind in found:
                run = subprocess.run(
                    [sys.executable, __file__, "--measure", mode, kind],
                    stdout=subprocess.PIPE,
                    text=True,
                    check=True,
                )
                found[kind].append(json.loads(run.stdout.splitlines()[-1]))
        for unit in ("seconds", "MB"):
            targets, everything = (
                statistics.median(entry[unit] for entry in found[kind])
                for kind in ("targets", "all")
            )
            ratio = everything / targets
            print(f"| {mode} | {unit} | {targets:.2f} | {everything:.2f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
