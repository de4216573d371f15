"""Speed of GLM beside `GPT2LMHeadModel` of the same size, and beside its matrix products alone.

    python benchmarks/decode.py --threads 2 --repeats 20

A decode step is one token with a filled cache; a prefill is a whole context with the logits of its
last token. Both models have random float32 weights. The floor multiplies as many rows by GLM's own
weight matrices and does nothing else: for one row that is the time to read the weights. The three
take turns; the table shows medians.
"""

import argparse
import importlib.util
import statistics
import sys
import time
from pathlib import Path

import torch
import transformers
from torch.nn import functional as F
from transformers import DynamicCache, GPT2Config, GPT2LMHeadModel

LAYERS, HIDDEN, HEADS, VOCABULARY, POSITIONS = 12, 768, 12, 50304, 1024
MASK, START, END = VOCABULARY - 1, VOCABULARY - 2, VOCABULARY - 3


def import_glm():
    """The package of this checkout, installed or not."""
    root = Path(__file__).resolve().parents[1]
    spec = importlib.util.spec_from_file_location("glm_transformers", root / "__init__.py")
    package = sys.modules["glm_transformers"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(package)
    return package


def build_models(attention: str):
    """GLM and GPT-2 with random weights."""
    package = import_glm()
    special = {"sop_token_id": START, "eop_token_id": END, "mask_token_ids": [MASK]}
    sizes = {"hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS}
    common = {
        "vocab_size": VOCABULARY,
        "max_position_embeddings": POSITIONS,
        "attn_implementation": attention,
        **sizes,
    }
    glm = package.GLMForConditionalGeneration(package.GLMConfig(**common, **special))
    return glm.eval(), GPT2LMHeadModel(GPT2Config(**common)).eval()


def make_prompt(batch: int, context: int) -> torch.LongTensor:
    """(B, context): random text with one blank in the middle, then the start of the piece."""
    ids = torch.randint(0, END, (batch, context))
    ids[:, context // 2] = MASK
    ids[:, -1] = START
    return ids


def prefill_calls(glm, gpt2, batch: int, context: int, padding: bool) -> list:
    """The three calls that are compared for a prefill."""
    mask = torch.ones(batch, context, dtype=torch.long) if padding else None
    inputs = {
        "input_ids": make_prompt(batch, context),
        "attention_mask": mask,
        "use_cache": True,
        "logits_to_keep": 1,
    }
    return [lambda: glm(**inputs), lambda: gpt2(**inputs), floor_call(glm, batch, context)]


def step_calls(glm, gpt2, batch: int, context: int, padding: bool) -> list:
    """The three calls that are compared for a decode step; caches are cropped after each."""
    from glm_transformers.modeling_glm import CACHE  # there since `import_glm`

    prompt, token = make_prompt(batch, context), torch.full((batch, 1), 7)
    mask = torch.ones(batch, context + 1, dtype=torch.long) if padding else None
    positions = torch.tensor([context // 2, 2]).expand(batch, 2)[
        ..., None
    ]  # (B, 2, 1): its blank, second of its piece

    def step_of(model, **inputs):
        cache = DynamicCache(config=model.config)
        filled = {CACHE: cache, "use_cache": True}
        model(prompt, **filled, logits_to_keep=1)

        def step():
            model(input_ids=token, attention_mask=mask, **filled, **inputs)
            cache.crop(-1)  # a negative number means "remove so many" on every version

        return step

    return [step_of(glm, position_ids=positions), step_of(gpt2), floor_call(glm, batch, 1)]


def floor_call(glm, batch: int, tokens: int):
    """All matrix products of one forward; the output head sees the last token only."""
    layers = glm.glm.modules()  # without the head, whose products are fewer
    weights = [module.weight for module in layers if isinstance(module, torch.nn.Linear)]
    products = [(torch.randn(batch * tokens, weight.shape[1]), weight) for weight in weights]
    products.append((torch.randn(batch, HIDDEN), glm.get_input_embeddings().weight))
    return lambda: [F.linear(row, weight) for row, weight in products]


CALLS = {"step": step_calls, "prefill": prefill_calls}


@torch.no_grad()
def measure(make_calls, *args, n: int) -> list[float]:
    """Median milliseconds of n calls in turn; the first two rounds are not counted."""
    calls = make_calls(*args)
    times = [[] for _ in calls]
    for _ in range(n + 2):
        for call, seconds in zip(calls, times, strict=True):
            start = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - start)
    return [1000 * statistics.median(seconds[2:]) for seconds in times]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument(
        "--repeats", type=int, default=20, help="measured rounds for each row of the table"
    )
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--context", type=int, nargs="+", default=[64, 256, 512])
    parser.add_argument(
        "--attention", choices=["eager", "sdpa"], default="eager", help="for both models"
    )
    parser.add_argument("--phase", nargs="+", choices=list(CALLS), default=list(CALLS))
    parser.add_argument(
        "--padding", action="store_true", help="give both an attention mask of ones"
    )
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    glm, gpt2 = build_models(args.attention)
    print(
        f"torch {torch.__version__}, transformers {transformers.__version__}, "
        f"{args.threads} threads, float32\n"
    )
    print("| | batch | context | GLM ms | GPT-2 ms | GLM / GPT-2 | floor ms | GLM / floor |")
    print("|---" + "|---:" * 7 + "|")
    for phase in args.phase:
        for batch in args.batch:
            for context in args.context:
                ours, theirs, floor = measure(
                    CALLS[phase], glm, gpt2, batch, context, args.padding, n=args.repeats
                )
                to_gpt2 = f"{ours:.1f} | {theirs:.1f} | {ours / theirs:.2f}"
                to_floor = f"{floor:.1f} | {ours / floor:.2f}"
                row = f"{phase} | {batch} | {context} | {to_gpt2} | {to_floor}"
                print(f"| {row} |", flush=True)


if __name__ == "__main__":
    main()
