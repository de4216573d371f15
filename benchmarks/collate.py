"""Samples that the blank-infilling collator makes in a second, beside those the base model reads.

    python benchmarks/collate.py --threads 2 --repeats 10

with the package installed (pip install -e .). Texts of 512 random tokens, batches of 16, one
process. The collator and one forward pass of a network with the sizes of glm-base, without
gradients, take turns; the table shows medians. The collator is no bottleneck while its ratio is
well above 1; a training step costs about three forward passes, and a GPU is faster than the CPU
this runs on.
"""

import argparse
import statistics
import time

import torch

from glm_transformers import GLMConfig, GLMModel
from glm_transformers.training import RECIPES, BlankInfillingCollator

LENGTH, BATCH, VOCABULARY = 512, 16, 30592
SPECIAL = {
    "[CLS]": 101,
    "[MASK]": 103,
    "[PAD]": 0,
    "<|startofpiece|>": 30522,
    "<|endofpiece|>": 30523,
    "[gMASK]": 30524,
    "[sMASK]": 30525,
}


class Vocabulary:
    """What the collator asks of a tokenizer; 5 percent of the tokens end a sentence."""

    cls_token_id, eos_token_id = SPECIAL["[CLS]"], SPECIAL["[PAD]"]
    sop_token_id, eop_token_id = SPECIAL["<|startofpiece|>"], SPECIAL["<|endofpiece|>"]
    masks = ("[MASK]", "[gMASK]", "[sMASK]")

    def get_vocab(self):
        return {("." if id % 20 == 0 else "t") + str(id): id for id in range(200, 30522)} | SPECIAL

    def convert_tokens_to_ids(self, token):
        return SPECIAL[token]


def samples_each_second(call, batch) -> float:
    start = time.perf_counter()
    call(batch)
    return BATCH / (time.perf_counter() - start)


@torch.no_grad()
def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=10)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    config = GLMConfig(
        vocab_size=VOCABULARY, hidden_size=768, num_layers=12, num_attention_heads=12
    )
    model = GLMModel(config).eval()
    texts = torch.randint(200, 30522, (BATCH, LENGTH)).numpy()
    texts[:, 0], texts[:, -1] = Vocabulary.cls_token_id, Vocabulary.eos_token_id
    samples = [{"input_ids": text} for text in texts]
    print("| recipe | collator, samples/s | model, samples/s | collator / model |")
    print("|---|---:|---:|---:|")
    for name in RECIPES:
        collator = BlankInfillingCollator(Vocabulary(), name, max_length=LENGTH)
        collated, read = [], []
        for _ in range(arguments.repeats):
            collated.append(samples_each_second(collator, samples))
            batch = collator.collate(samples, len(collated), mode="token")
            del batch["labels"]
            read.append(samples_each_second(lambda inputs: model(**inputs), batch))
        collated, read = statistics.median(collated), statistics.median(read)
        print(f"| {name} | {collated:.0f} | {read:.1f} | {collated / read:.0f} |")


if __name__ == "__main__":
    main()
