"""Speed of GLM's tokenizer beside the bare `tokenizers` library on the same `tokenizer.json`.

    python benchmarks/tokenizer_speed.py my-glm-2b

Both turn the same texts with blanks into ids, taking turns; the table shows the median of each.
"""

import argparse
import random
import statistics
import time

import transformers
from tokenizers import Tokenizer
from transformers import AutoTokenizer

TEXT = (
    "the of model text blank answer word sentence 2022 University, language. pretraining (general) "
    "filled in by 清华大学 位于 北京 Über naïve"
)
WORDS = TEXT.split()


def make_texts(count: int, words: int, mask: str) -> list[str]:
    """Random texts, each with one blank in the middle."""
    generator = random.Random(0)
    texts = [generator.choices(WORDS, k=words) for _ in range(count)]
    return [" ".join([*text[: words // 2], mask, *text[words // 2 :]]) for text in texts]


def measure(calls: list, texts: list[str], repeats: int) -> list[float]:
    """Median seconds of each call; they take turns and the first round is not counted."""
    times = [[] for _ in calls]
    for _ in range(repeats + 1):
        for call, seconds in zip(calls, times, strict=True):
            start = time.perf_counter()
            call(texts)
            seconds.append(time.perf_counter() - start)
    return [statistics.median(seconds[1:]) for seconds in times]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("repository", help="a converted repository")
    parser.add_argument("--repeats", type=int, default=9)
    args = parser.parse_args()

    tokenizer = AutoTokenizer.from_pretrained(
        args.repository, trust_remote_code=True, model_max_length=10**6
    )
    bare = Tokenizer.from_file(f"{args.repository}/tokenizer.json")
    print(f"transformers {transformers.__version__}\n")
    print("| texts | words each | mask | bare, texts/s | GLM, texts/s | GLM / bare |")
    print("|---:|---:|---|---:|---:|---:|")
    for count, words in ((2000, 20), (2000, 100), (400, 500)):
        for mask in tokenizer.masks:
            if mask == "[sMASK]":  # as [MASK]
                continue
            texts = make_texts(count, words, mask)
            if mask == "[gMASK]":
                texts = [text.replace(mask, "").strip() + f" {mask}" for text in texts]
            theirs, ours = (
                count / seconds
                for seconds in measure(
                    [lambda batch: [one.ids for one in bare.encode_batch(batch)], tokenizer],
                    texts,
                    args.repeats,
                )
            )
            print(
                f"| {count} | {words} | {mask} | {theirs:.0f} | {ours:.0f} | {ours / theirs:.2f} |"
            )


if __name__ == "__main__":
    main()
