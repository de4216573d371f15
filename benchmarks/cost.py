"""What the released models cost, by counting: arithmetic, bytes, memory and communication.

    python benchmarks/cost.py
    python benchmarks/cost.py --check

The first prints the tables of docs/scaling.md, which need no measurement. The second counts the
operations of a small network with torch's own counter, and predicts from this machine's speed at
one matrix product, and at reading memory, how long a prefill, a step of generation and a step of
training take; beside each prediction stands what was measured.

Symbols: L layers, H hidden size, V vocabulary rows, N parameters, B texts, K keys that a token
meets, n processes.
"""

import statistics
import time
from typing import Annotated

import torch
import typer
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache

from glm_transformers import GLMConfig, GLMForConditionalGeneration
from glm_transformers.conversion.released import RELEASED, Released
from glm_transformers.modeling_glm import CACHE

GB = 1e9
BF16, FP32, INT8 = 2, 4, 1  # bytes of a number
STATE = 16  # bytes a parameter in training: weight, gradient and AdamW's two moments in float32
FORWARD_AND_BACKWARD = 3  # the backward pass has two products for each one of the forward pass
BASE = RELEASED["glm-base"]


# --- Counting -------------------------------------------------------------------------------------


def matrices(model: Released) -> int:
    """Weights that each token is multiplied with: 12 H^2 a layer, without the output head."""
    return 12 * model.layers * model.hidden_size**2


def head(model: Released) -> int:
    return model.vocabulary * model.hidden_size


def forward_flops(model: Released, tokens: int, keys: float, targets: int) -> float:
    """Of `tokens` tokens that meet so many keys, of which `targets` have logits.

    A product with a weight takes two operations; scores and their use take 2 H each for each key.
    """
    products = 2 * matrices(model) * tokens
    attention = 4 * model.layers * model.hidden_size * keys * tokens
    return products + attention + 2 * head(model) * targets


def cache_bytes(model: Released, tokens: int, number: int = BF16) -> int:
    """Keys and values of a text."""
    return 2 * model.layers * model.hidden_size * tokens * number


def step_bytes(model: Released, batch: int, keys: int, number: int = BF16) -> int:
    """What a step of generation reads: all matrices once, and the keys and values of each text."""
    weights = (matrices(model) + head(model)) * number
    return weights + batch * cache_bytes(model, keys, number)


def activation_bytes(model: Released, tokens: int, checkpointing: bool) -> float:
    """What is kept for the backward pass of `tokens` tokens in half precision.

    34 H bytes a token and layer (Korthikanti et al., 2022, section 4.1, without the scores, which
    fused attention does not keep); with checkpointing a layer keeps its input, and one layer is
    computed again at a time.
    """
    of_layer = 34 * model.hidden_size * tokens
    if not checkpointing:
        return model.layers * of_layer
    return model.layers * BF16 * model.hidden_size * tokens + of_layer


def sent_bytes(model: Released, way: str, processes: int, tokens: int) -> float:
    """What each process sends in a training step with `tokens` tokens, in half precision.

    A ring sends (n - 1) / n of a tensor to sum its parts or to gather them, and both to give the
    sum to all.
    """
    once = (processes - 1) / processes
    states = tokens * model.hidden_size * BF16
    weights = model.parameters * BF16
    return {
        "DDP": 2 * once * weights,  # gradients, summed for all
        "ZeRO-2": 2 * once * weights,  # gradients summed to their owner, weights gathered
        "ZeRO-3, FSDP": 3 * once * weights,  # weights gathered twice, gradients summed
        "tensor parallel": 4 * 2 * once * model.layers * states,  # 2 sums a layer, there and back
        "pipeline": 2 * states,  # to the next stage, and back
    }[way]


# --- Tables ---------------------------------------------------------------------------------------


def table(*columns: str) -> None:
    print("\n| " + " | ".join(columns) + " |")
    print("|---" + "|---:" * (len(columns) - 1) + "|")


def row(*cells: str | float) -> None:
    shown = [cell if isinstance(cell, str) else f"{cell:,.1f}" for cell in cells]
    print("| " + " | ".join(shown) + " |", flush=True)


def show_arithmetic() -> None:
    """Of a token of the longest context, of one that is generated behind it, and of training."""
    table(
        "model",
        "parameters, M",
        "GFLOP a context token",
        "GFLOP a token of training",
        "GB read a step, bf16",
        "int8",
        "cache of a text, MB",
    )
    for name, model in RELEASED.items():
        longest = model.positions
        context = forward_flops(model, 1, longest, 0)
        row(
            name,
            model.parameters / 1e6,
            context / 1e9,
            FORWARD_AND_BACKWARD * context / 1e9,
            step_bytes(model, 1, longest) / GB,
            step_bytes(model, 1, 0, INT8) / GB + cache_bytes(model, longest) / GB,
            cache_bytes(model, longest) / 1e6,
        )


def show_memory() -> None:
    """GB on each device; a text of the longest context."""
    table(
        "model",
        "bf16",
        "int8",
        "LoRA, bf16 weights",
        "full, one device",
        "full, ZeRO-2 on 8",
        "full, ZeRO-3 or FSDP on 8",
    )
    for name, model in RELEASED.items():
        longest = model.positions
        weights = model.parameters * BF16
        small = weights - matrices(model) * (BF16 - INT8)
        cache = cache_bytes(model, longest)
        kept = activation_bytes(model, longest, checkpointing=True)
        state = model.parameters * STATE
        own = model.parameters * FP32  # weights, that ZeRO-2 leaves on every device
        row(
            name,
            (weights + cache) / GB,
            (small + cache) / GB,
            (weights + kept) / GB,
            (state + kept) / GB,
            (own + (state - own) / 8 + kept) / GB,
            (state / 8 + kept) / GB,
        )


def show_communication() -> None:
    ways = ("DDP", "ZeRO-2", "ZeRO-3, FSDP", "tensor parallel", "pipeline")
    table("GB that each of 8 processes sends a step, 4,096 tokens each", *ways)
    for name in ("glm-large", "glm-2b", "glm-10b"):
        row(name, *(sent_bytes(RELEASED[name], way, 8, 4096) / GB for way in ways))


# Of an A100 with 80 GB: what its maker gives for dense bfloat16, and for one network card each.
PEAK, NETWORK = 312e12, 25e9
REACHED = 0.45  # of the peak, in the products; what well-tuned training of this size reaches
DEVICES, NODE = 1024, 8
TEXTS_EACH = 4


def show_pretraining() -> None:
    """glm-10b anew on 1,024 devices: sharded within a node, replicas between nodes."""
    model = RELEASED["glm-10b"]
    tokens = TEXTS_EACH * model.positions
    flops = FORWARD_AND_BACKWARD * forward_flops(model, tokens, model.positions, tokens // 2)
    again = forward_flops(model, tokens, model.positions, 0)  # checkpointing's second forward
    compute = (flops + again) / (PEAK * REACHED)
    replicas = DEVICES // NODE
    between = 2 * (replicas - 1) / replicas * model.parameters / NODE * FP32
    state = model.parameters * STATE / NODE
    kept = activation_bytes(model, tokens, checkpointing=True)
    logits = 2 * tokens // 2 * model.vocabulary * FP32
    table("glm-10b on 1,024 devices", "")
    row("texts of 1,024 tokens a step", f"{DEVICES * TEXTS_EACH:,}")
    row("memory of a device, GB: state, activations, logits", (state + kept + logits) / GB)
    row("PFLOP of a device a step, with what is computed again", (flops + again) / 1e15)
    row("s a step for arithmetic", f"{compute:.2f}")
    row("GB between nodes a step and device", between / GB)
    row("s a step for it, if nothing hides it", f"{between / NETWORK:.2f}")
    slowest = compute + between / NETWORK
    row("million tokens a second, if nothing hides it", DEVICES * tokens / slowest / 1e6)
    row("days for 300 billion tokens", 300e9 / (DEVICES * tokens / slowest) / 86400)
    row("checkpoint, GB: weights and moments in float32", model.parameters * 3 * FP32 / GB)


# --- Beside measurements --------------------------------------------------------------------------

CONTEXT, BATCH, TARGETS = 256, 4, 64  # tokens, texts, and targets of a text
MASK, SOP, EOP, EOS = range(4)


def seconds(call, repeats: int) -> float:
    """The median, after one call that does not count."""
    taken = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken[1:])


def machine_speed(repeats: int) -> tuple[float, float]:
    """Operations a second in a product of the model's size; bytes a second of a step's products."""
    rows = torch.randn(CONTEXT, BASE.hidden_size)
    weight = torch.randn(4 * BASE.hidden_size, BASE.hidden_size)
    product = seconds(lambda: F.linear(rows, weight), 20 * repeats)
    many = torch.randn(64, *weight.shape)  # 0.6 GB, beyond every cache
    reading = seconds(lambda: [F.linear(rows[:1], matrix) for matrix in many], repeats)
    return 2 * CONTEXT * weight.numel() / product, many.numel() * FP32 / reading


def build() -> GLMForConditionalGeneration:
    return GLMForConditionalGeneration(
        GLMConfig(
            vocab_size=BASE.vocabulary,
            hidden_size=BASE.hidden_size,
            num_layers=BASE.layers,
            num_attention_heads=BASE.num_attention_heads,
            max_sequence_length=BASE.positions,
            sop_token_id=SOP,
            eop_token_id=EOP,
            mask_token_ids=[MASK],
            pad_token_id=EOS,
            eos_token_id=EOS,
        )
    )


def make_batch() -> dict[str, torch.Tensor]:
    ids = torch.randint(10, 1000, (BATCH, CONTEXT))
    start = CONTEXT - TARGETS
    ids[:, 1], ids[:, start] = MASK, SOP
    labels = ids.clone()
    labels[:, :start] = -100
    return {"input_ids": ids, "labels": labels}


def check(repeats: int) -> None:
    """Counted and measured operations, predicted and measured seconds."""
    model = build().eval()
    batch = make_batch()
    prompt = {"input_ids": batch["input_ids"][:1], "logits_to_keep": 1, "use_cache": True}
    cache = DynamicCache(config=model.config)
    filled = {CACHE: cache, "use_cache": True}
    token = torch.full((1, 1), 7)
    position = torch.tensor([[[1], [2]]])  # (1, 2, 1): of its blank, second of its piece

    def prefill():
        with torch.no_grad():
            model(**prompt)

    def step():
        with torch.no_grad():
            model(input_ids=token, position_ids=position, **filled)
        cache.crop(-1)  # a negative number means "remove so many" on every version

    def train():
        model.train()(**batch).loss.backward()
        model.zero_grad()

    with torch.no_grad():
        model(**{**prompt, **filled})
    speed, bandwidth = machine_speed(repeats)
    print(f"\n{speed / 1e9:.0f} GFLOP/s in a product, {bandwidth / GB:.1f} GB/s in reading weights")
    texts = BATCH * CONTEXT
    training = FORWARD_AND_BACKWARD * forward_flops(BASE, texts, CONTEXT, BATCH * TARGETS)
    counted = {
        "prefill": (prefill, forward_flops(BASE, CONTEXT, CONTEXT, 1)),
        "training step": (train, training),
    }
    table("glm-base, float32", "GFLOP counted", "by torch", "s predicted", "measured", "ratio")
    for name, (call, flops) in counted.items():
        with FlopCounterMode(display=False) as counter:
            call()
        measured = seconds(call, repeats)
        predicted = flops / speed
        row(
            name,
            flops / 1e9,
            counter.get_total_flops() / 1e9,
            f"{predicted:.3f}",
            f"{measured:.3f}",
            f"{measured / predicted:.2f}",
        )
        model.eval()
    predicted = step_bytes(BASE, 1, CONTEXT, FP32) / bandwidth
    measured = seconds(step, 5 * repeats)
    ratio = f"{measured / predicted:.2f}"
    row("step of generation", "", "", f"{predicted:.3f}", f"{measured:.3f}", ratio)
    held = sum(
        t.numel() * t.element_size() for layer in cache.layers for t in (layer.keys, layer.values)
    )
    print(f"\ncache: {cache_bytes(BASE, CONTEXT, FP32):,} bytes counted, {held:,} held")


def main(
    check_here: Annotated[
        bool, typer.Option("--check", help="Measure on this machine what is predicted for it.")
    ] = False,
    repeats: Annotated[int, typer.Option(help="Measurements, of which the median counts.")] = 5,
):
    """Print the tables."""
    if check_here:
        check(repeats)
        return
    show_arithmetic()
    show_memory()
    show_communication()
    show_pretraining()


if __name__ == "__main__":
    typer.run(main)
