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
from glm_transformers.conversion.tokenizers import build_tokenizer, find_vocabulary
from glm_transformers.demo import OPTIONS
from glm_transformers.training import BlankInfillingCollator

LENGTH, BATCH = 512, 8
BASE = {"vocab_size": 30592, "hidden_size": 768, "num_layers": 12, "num_attention_heads": 12}
SHORT_TEXTS, FEWEST, MOST = 32, 4, 80  # texts, and words of a text


def pretraining_step(kind: str) -> tuple[dict, dict, dict]:
    """Special ids, a small batch and the measured one, of the mode that `kind` names."""
    mode, where = kind.split()
    texts = torch.randint(200, BASE["vocab_size"], (BATCH, LENGTH)).numpy()
    texts[:, 0], texts[:, -1] = SPECIAL["[CLS]"], SPECIAL["[PAD]"]
    collator = BlankInfillingCollator(Vocabulary(), max_length=LENGTH)
    small = collator.collate([{"input_ids": text[:64].copy()} for text in texts[:1]], 0, mode)
    batch = collator.collate([{"input_ids": text} for text in texts], 1, mode)
    skip = {"skip_logits": where == "targets"}
    return {}, {**small, **skip}, {**batch, **skip}  # these batches tell positions and contexts


def packing_step(kind: str) -> tuple[dict, dict, dict]:
    """Special ids, a small batch and the measured one, of short texts with answers."""
    family = OPTIONS["tokenizer"]
    tokenizer = build_tokenizer(family, find_vocabulary(family, OPTIONS["vocab"]), task_mask=True)
    drawn = random.Random(0)
    texts = []
    for _ in range(SHORT_TEXTS):
        words = ["word"] * drawn.randint(FEWEST, MOST)
        texts.append({"text": " ".join([*words, "[MASK]"]), "target": "an answer"})
    collator_class = GLMPackingCollator if kind == "packed" else GLMDataCollator
    collate = collator_class(tokenizer)
    ids = {
        "sop_token_id": tokenizer.sop_token_id,
        "eop_token_id": tokenizer.eop_token_id,
        "mask_token_ids": tokenizer.mask_token_ids,
    }
    return ids, collate(texts[:1]), collate(texts)


def measure(make_step, kind: str, kernel: str, dropout: float) -> dict:
    """Seconds and MB of one pass, after one on another batch."""
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    ids, small, batch = make_step(kind)
    config = GLMConfig(
        **BASE,
        **ids,
        attention_dropout_prob=dropout,
        attn_implementation=kernel,
    )
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

    step(small)  # gradients exist and libraries are loaded
    before, start = peak(), time.perf_counter()
    step(batch)
    return {"seconds": time.perf_counter() - start, "MB": peak() - before}


def compare(kinds: tuple[str, str], repeats: int, dropout: float) -> dict[str, tuple[float, float]]:
    """Medians of both kinds, which take turns, for each unit."""
    found: dict[str, list[dict]] = {kind: [] for kind in kinds}
    for _ in range(repeats):
        for kind in kinds:
            run = subprocess.run(
                [sys.executable, __file__, "--measure", kind, "--attention-dropout", str(dropout)],
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
    parser.add_argument(
        "--attention-dropout",
        type=float,
        default=0.1,
        help="where it is not 0, a CPU has no fused attention",
    )
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        kind = arguments.measure
        make_step = packing_step if kind in ("packed", "alone") else pretraining_step
        kernel = "eager" if kind.endswith("everywhere") else "sdpa"
        print(json.dumps(measure(make_step, kind, kernel, arguments.attention_dropout)))
        return
    if arguments.packing:
        rows = [("short texts", ("packed", "alone"))]
    else:
        rows = [(mode, (f"{mode} targets", f"{mode} everywhere")) for mode in ("token", "document")]
    ours, theirs = ("packed", "alone") if arguments.packing else ("at targets", "everywhere, eager")
    print(f"| batch | | {ours} | {theirs} | ratio |")
    print("|---|---|---:|---:|---:|")
    for name, kinds in rows:
        found = compare(kinds, arguments.repeats, arguments.attention_dropout)
        for unit, (our, their) in found.items():
            print(f"| {name} | {unit} | {our:.2f} | {their:.2f} | {our / their:.2f} |")


if __name__ == "__main__":
    main()
