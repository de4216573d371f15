"""GLM on a GPU: decoding, prefill, training and memory, beside GPT-2 and Llama of equal size.

    python benchmarks/gpu.py --minutes 8

with the package installed, on a machine with a CUDA device. Weights are random and in bfloat16.
The rows come in the order of their importance; what the time does not suffice for is named at the
end. Write what it prints into benchmarks/RESULTS.md.

A step of decoding is the time by which a `generate` with more tokens takes longer, divided by these
tokens: all that a step costs a user is in it. "Compiled" is `cache_implementation="static"`, for
which the library compiles the step and replays it as a CUDA graph. GB/s are the weights and the
keys and values that a step must read, by its time; the percentage is of the speed of copying memory
on the same card. A prefill is compared with the card's speed in a matrix product.
"""

import gc
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, NamedTuple

import torch
import transformers
import typer
from cost import forward_flops, step_bytes
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from glm_transformers import GLMConfig, GLMForConditionalGeneration
from glm_transformers.conversion.released import RELEASED, Released

CONTEXT = 256  # tokens of a prompt
FEW, MANY = 16, 80  # generated tokens, whose difference is timed
TRAINING_ROWS, TRAINING_LENGTH, TARGETS = 8, 512, 128
MASK, SOP, EOP, EOS = range(4)
GB = 1e9


class Row(NamedTuple):
    """A line of the table, and what measures it."""

    name: str
    measure: Callable[[], str]


# --- Networks of equal size -----------------------------------------------------------------------


def build_glm(shape: Released) -> torch.nn.Module:
    return GLMForConditionalGeneration(
        GLMConfig(
            vocab_size=shape.vocabulary,
            hidden_size=shape.hidden_size,
            num_layers=shape.layers,
            num_attention_heads=shape.num_attention_heads,
            max_sequence_length=shape.positions,
            sop_token_id=SOP,
            eop_token_id=EOP,
            mask_token_ids=[MASK],
            pad_token_id=EOS,
            eos_token_id=EOS,
        )
    )


def build_gpt2(shape: Released) -> torch.nn.Module:
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=shape.vocabulary,
            n_embd=shape.hidden_size,
            n_layer=shape.layers,
            n_head=shape.num_attention_heads,
            n_positions=shape.positions,
            bos_token_id=EOS,
            eos_token_id=EOS,
        )
    )


def build_llama(shape: Released) -> torch.nn.Module:
    """Its three matrices of 8/3 H by H are as large as GLM's two of 4 H by H."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=shape.vocabulary,
            hidden_size=shape.hidden_size,
            intermediate_size=8 * shape.hidden_size // 3,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.num_attention_heads,
            max_position_embeddings=shape.positions,
            tie_word_embeddings=True,
            bos_token_id=EOS,
            eos_token_id=EOS,
        )
    )


BUILDERS = {"GLM": build_glm, "GPT-2": build_gpt2, "Llama": build_llama}


def on_device(kind: str, shape: Released, device: str) -> torch.nn.Module:
    with torch.device(device):
        default = torch.get_default_dtype()
        torch.set_default_dtype(torch.bfloat16)
        try:
            return BUILDERS[kind](shape).eval()
        finally:
            torch.set_default_dtype(default)


def make_prompt(shape: Released, batch: int, device: str) -> torch.Tensor:
    """(B, CONTEXT): text with one blank in its middle; other models read it as text."""
    ids = torch.randint(EOS + 1, shape.vocabulary, (batch, CONTEXT), device=device)
    ids[:, CONTEXT // 2] = MASK
    return ids


# --- Speed of the card ----------------------------------------------------------------------------


def wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def seconds(call: Callable, device: str, repeats: int = 5) -> float:
    """The median, after two calls that do not count."""
    taken = []
    for _ in range(repeats + 2):
        wait(device)
        start = time.perf_counter()
        call()
        wait(device)
        taken.append(time.perf_counter() - start)
    return statistics.median(taken[2:])


def copy_speed(device: str, bytes: int = 2 * 10**9) -> float:
    """Bytes read a second while memory is copied; as many are written."""
    source = torch.empty(bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * bytes / seconds(lambda: target.copy_(source), device, 10)


def product_speed(device: str, size: int = 8192) -> float:
    """Operations a second in a product of two large matrices."""
    matrix = torch.randn(size, size, dtype=torch.bfloat16, device=device)
    return 2 * size**3 / seconds(lambda: matrix @ matrix, device, 10)


# --- What is measured -----------------------------------------------------------------------------


class Card:
    """The device, and how fast it copies and multiplies."""

    def __init__(self, device: str, copied: int, multiplied: int):
        self.device = device
        self.copy = copy_speed(device, copied)
        self.product = product_speed(device, multiplied)

    @torch.inference_mode()
    def decode(self, kind: str, shape: Released, batch: int, compiled: bool) -> str:
        model = on_device(kind, shape, self.device)
        prompt = make_prompt(shape, batch, self.device)
        options = {"cache_implementation": "static"} if compiled else {}

        def generate(tokens: int) -> float:
            return seconds(
                lambda: model.generate(
                    prompt,
                    attention_mask=torch.ones_like(prompt),
                    max_new_tokens=tokens,
                    min_new_tokens=tokens,
                    do_sample=False,
                    pad_token_id=EOS,
                    **options,
                ),
                self.device,
                3,
            )

        step = (generate(MANY) - generate(FEW)) / (MANY - FEW)
        read = step_bytes(shape, batch, CONTEXT + (FEW + MANY) // 2) / step
        return (
            f"{1000 * step:.2f} ms a step, {batch / step:,.0f} tokens/s, {read / GB:,.0f} GB/s, "
            f"{read / self.copy:.0%} of copying"
        )

    @torch.inference_mode()
    def prefill(self, kind: str, shape: Released, batch: int) -> str:
        model = on_device(kind, shape, self.device)
        prompt = make_prompt(shape, batch, self.device)
        taken = seconds(lambda: model(prompt, logits_to_keep=1, use_cache=True), self.device)
        flops = forward_flops(shape, batch * CONTEXT, CONTEXT, batch)
        return f"{1000 * taken:.1f} ms, {flops / taken / self.product:.0%} of the matrix peak"

    def train(self, kind: str, shape: Released, checkpointing: bool) -> str:
        model = on_device(kind, shape, self.device).train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        size = (TRAINING_ROWS, TRAINING_LENGTH)
        ids = torch.randint(EOS + 1, shape.vocabulary, size, device=self.device)
        start = TRAINING_LENGTH - TARGETS
        ids[:, start // 2], ids[:, start] = MASK, SOP
        labels = ids.clone()
        labels[:, :start] = -100

        def step():
            model(input_ids=ids, labels=labels).loss.backward()
            model.zero_grad()

        self._forget_peak()
        taken = seconds(step, self.device, 3)
        return f"{1000 * taken:.0f} ms, {ids.numel() / taken:,.0f} tokens/s, {self._peak()}"

    @torch.inference_mode()
    def fits(self, shape: Released, int8: bool) -> str:
        self._forget_peak()
        model = on_device("GLM", shape, self.device)
        if int8:
            from torchao.quantization import Int8WeightOnlyConfig, quantize_

            quantize_(model, Int8WeightOnlyConfig())
        prompt = make_prompt(shape, 1, self.device)
        model.generate(prompt, max_new_tokens=FEW, min_new_tokens=FEW)
        return f"runs, {self._peak()}"

    @torch.inference_mode()
    def waits(self, shape: Released) -> str:
        """Whether a step with a filled cache makes the host wait for the device."""
        model = on_device("GLM", shape, self.device)
        prompt = make_prompt(shape, 1, self.device)
        prompt[:, -1] = SOP
        output = model(prompt, use_cache=True, logits_to_keep=1)
        cache = output.get("cache", output.get("past_key_values"))
        token = torch.full((1, 1), EOS + 1, device=self.device)
        places = torch.tensor([[[CONTEXT // 2], [2]]], device=self.device)  # (1, 2, 1)
        step = {"position_ids": places, "use_cache": True}
        name = "cache" if "cache" in output else "past_key_values"
        model(token, **{name: cache}, **step)
        torch.cuda.set_sync_debug_mode("error")
        try:
            model(token, **{name: cache}, **step)
        except RuntimeError as error:
            return f"waits: {str(error).splitlines()[0]}"
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return "never waits"

    def _forget_peak(self) -> None:
        if self.device == "cuda":
            torch.cuda.reset_peak_memory_stats()

    def _peak(self) -> str:
        if self.device != "cuda":
            return "peak unknown"
        return f"peak {torch.cuda.max_memory_allocated() / GB:.1f} GB"


def rows(card: Card, shapes: dict[str, Released], largest: Released) -> Iterator[Row]:
    """The most important first."""
    small, large = shapes.items()
    for name, shape in (large, small):
        for compiled in (True, False):
            way = "compiled" if compiled else "eager"
            for kind in BUILDERS:
                yield Row(
                    f"{name}, {kind}, decode, {way}, batch 1",
                    lambda k=kind, s=shape, c=compiled: card.decode(k, s, 1, c),
                )
    if card.device == "cuda":
        yield Row(f"{large[0]}, GLM, a step", lambda: card.waits(large[1]))
        yield Row("glm-10b, bf16", lambda: card.fits(largest, False))
        yield Row("glm-10b, int8", lambda: card.fits(largest, True))
    for name, shape in (large, small):
        for kind in BUILDERS:
            yield Row(
                f"{name}, {kind}, prefill, batch 8 x {CONTEXT}",
                lambda k=kind, s=shape: card.prefill(k, s, 8),
            )
    for kind in BUILDERS:
        for checkpointing in (False, True):
            way = ", checkpointing" if checkpointing else ""
            yield Row(
                f"{small[0]}, {kind}, training, {TRAINING_ROWS} x {TRAINING_LENGTH}{way}",
                lambda k=kind, c=checkpointing: card.train(k, small[1], c),
            )
    for name, shape in (large, small):
        for batch in (8, 64):
            for compiled in (False, True):
                way = "compiled" if compiled else "eager"
                yield Row(
                    f"{name}, GLM, decode, {way}, batch {batch}",
                    lambda s=shape, b=batch, c=compiled: card.decode("GLM", s, b, c),
                )


def commit() -> str:
    command = ["git", "rev-parse", "--short", "HEAD"]
    folder = Path(__file__).parent
    found = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    return found.stdout.strip() or "unknown commit"


TINY = Released(2, 64, 4, 512, 512, "gpt2")


def main(
    minutes: Annotated[float, typer.Option(help="No row is begun after so many.")] = 8,
    tiny: Annotated[
        bool, typer.Option("--tiny", help="Try the program itself, with tiny networks on the CPU.")
    ] = False,
):
    """Print a table."""
    if not tiny and not torch.cuda.is_available():
        raise typer.BadParameter("There is no CUDA device here; --tiny tries the program itself.")
    start = time.monotonic()
    device = "cpu" if tiny else "cuda"
    card = Card(device, *((10**6, 256) if tiny else (2 * 10**9, 8192)))
    name = "CPU" if tiny else torch.cuda.get_device_name()
    print(
        f"{name}, torch {torch.__version__}, Transformers {transformers.__version__}, commit "
        f"{commit()}; copies {card.copy / GB:,.0f} GB/s, multiplies "
        f"{card.product / 1e12:,.0f} TFLOP/s\n\n| bfloat16 | |\n|---|---|"
    )
    shapes = {name: TINY if tiny else RELEASED[name] for name in ("glm-large", "glm-2b")}
    left = []
    for row in rows(card, shapes, TINY if tiny else RELEASED["glm-10b"]):
        if time.monotonic() - start > 60 * minutes:
            left.append(row.name)
            continue
        try:
            result = row.measure()
        except Exception as error:  # one row that fails must not cost the others
            result = f"failed: {type(error).__name__}: {str(error).splitlines()[0]}"
        print(f"| {row.name} | {result} |", flush=True)
        gc.collect()
        torch.compiler.reset()
        if device == "cuda":
            torch.cuda.empty_cache()
    if left:
        print(f"\nNot measured, for lack of time: {'; '.join(left)}.")


if __name__ == "__main__":
    typer.run(main)
