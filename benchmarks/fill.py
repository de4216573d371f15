"""`glm fill --data` beside plain loops over the pipeline: texts a second, with the demo model.

    python benchmarks/fill.py --texts 512 --batch-size 16 --repeats 5

with the package installed (pip install -e .). Texts of 4 to 50 words in random order, a blank in
each. All ways fill the same texts with the same model; loading it counts nowhere. They take turns,
and the table shows medians, and the time of the processor, which another program cannot take.

* alone: a loop that gives the pipeline one text at a time.
* in batches: the pipeline over all texts, in batches as they come.
* fill --data: batches of texts of like length, each part written to its file.
"""

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import torch

from glm_transformers.apps import fill_files
from glm_transformers.apps.options import Filling
from glm_transformers.apps.pipeline import open_pipeline
from glm_transformers.conversion import convert_checkpoint
from glm_transformers.demo import CHECKPOINT, OPTIONS

TOKENS = 8  # of an answer, at most
WORDS = ("Paris", "is", "the", "capital", "of", "France", "and", "a", "dog", "has", "four", "legs")


def make_texts(count: int) -> list[str]:
    chosen = random.Random(0)
    texts = []
    for _ in range(count):
        words = chosen.choices(WORDS, k=chosen.randint(4, 50))
        words[chosen.randrange(len(words))] = "[MASK]"
        texts.append(" ".join(words))
    return texts


def seconds(call: Callable[[], object]) -> tuple[float, float]:
    """Of the clock, and of the processor."""
    start = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - start[0], time.process_time() - start[1]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--texts", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    texts = make_texts(arguments.texts)
    with tempfile.TemporaryDirectory() as folder:
        repository = convert_checkpoint(CHECKPOINT, Path(folder, "glm-demo"), **OPTIONS)
        fill = open_pipeline(str(repository))
        data = Path(folder, "texts.jsonl")
        data.write_text("".join(f"{json.dumps({'text': text})}\n" for text in texts))
        options = Filling(
            str(repository),
            data=str(data),
            output=str(Path(folder, "filled.jsonl")),
            batch_size=arguments.batch_size,
            max_new_tokens=TOKENS,
        )
        plain = {"max_new_tokens": TOKENS}
        ways = {
            "alone": lambda: [fill(text, **plain) for text in texts],
            "in batches": lambda: fill(texts, batch_size=arguments.batch_size, **plain),
            "fill --data": lambda: fill_files.fill_file(options),
        }
        taken: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
        with mock.patch.object(fill_files, "open_pipeline", lambda *_: fill):
            for round in range(1 + arguments.repeats):
                for name, way in ways.items():
                    measured = seconds(way)
                    if round:  # the first warms up
                        taken[name].append(measured)
                Path(options.output).unlink()
        print("| way | texts/s | ms of the processor a text |\n|---|---:|---:|")
        for name, rounds in taken.items():
            clock, processor = map(statistics.median, zip(*rounds, strict=True))
            speed, cost = len(texts) / clock, 1000 * processor / len(texts)
            print(f"| {name} | {speed:.1f} | {cost:.1f} |")


if __name__ == "__main__":
    main()
