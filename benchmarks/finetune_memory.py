"""Memory of a fine-tuning step: counted for every released model, measured beside it.

    python benchmarks/finetune_memory.py --model glm-base --model glm-2b --measure glm-base

with the package and peft installed. Everything is float32 with the library's sdpa attention.

Counted are the weights, and of those that are trained the gradients and AdamW's two moments; and
what autograd keeps for the backward pass, by the hooks that autograd has for it: on one and on two
layers of the true width, since every further layer keeps as much as the second. With checkpointing
a layer keeps its input, and one layer at a time is computed again. Measured is the peak of a
process above what it held before the network was made, in a process of its own.
"""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import torch
import typer
from peft import LoraConfig, get_peft_model

from glm_transformers import GLMConfig, GLMForConditionalGeneration
from glm_transformers.conversion.released import RELEASED, Released

BATCH, CONTEXT, ANSWER = 1, 448, 64  # rows, and tokens of each
FLOAT = 4  # bytes
LORA = LoraConfig(
    r=8,
    target_modules=["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"],
)
METHODS = ("full", "full, checkpointing", "LoRA", "LoRA, checkpointing")
EOS, SOP, EOP, MASK = range(4)
GB = 1e9

Model = Annotated[list[str], typer.Option(help="Released models to count.")]


def build(model: Released, layers: int, method: str) -> torch.nn.Module:
    """A network of the released width with so many layers, ready to train."""
    config = GLMConfig(
        vocab_size=model.vocabulary,
        hidden_size=model.hidden_size,
        num_layers=layers,
        num_attention_heads=model.num_attention_heads,
        max_sequence_length=model.positions,
        sop_token_id=SOP,
        eop_token_id=EOP,
        mask_token_ids=[MASK],
        pad_token_id=EOS,
        eos_token_id=EOS,
    )
    network = GLMForConditionalGeneration(config).train()
    if "checkpointing" in method:
        network.gradient_checkpointing_enable({"use_reentrant": False})
    return get_peft_model(network, LORA) if "LoRA" in method else network


def make_batch() -> dict[str, torch.Tensor]:
    """input_ids and labels (B, T) of contexts with one blank and its answer."""
    ids = torch.randint(10, 1000, (BATCH, CONTEXT + ANSWER))
    ids[:, 1] = MASK
    ids[:, CONTEXT] = SOP
    labels = ids.clone()
    labels[:, :CONTEXT] = -100
    return {"input_ids": ids, "labels": labels}


def count_kept(network: torch.nn.Module) -> int:
    """Bytes that autograd keeps of one forward pass, the network's own weights apart."""
    own = {weight.untyped_storage().data_ptr() for weight in network.parameters()}
    kept = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = network(**make_batch()).loss
    assert loss.isfinite()
    return sum(kept.values())


def count(model: Released, method: str) -> dict[str, float]:
    """GB of the weights, of gradients and optimiser, and of what autograd keeps."""
    network = build(model, 1, method)
    trained_of_one = count_trained(network)
    one = count_kept(network)
    network = build(model, 2, method)
    per_layer = count_kept(network) - one
    trained_per_layer = count_trained(network) - trained_of_one
    kept = one + per_layer * (model.layers - 1)
    if "checkpointing" in method:  # one layer at a time keeps what it keeps without
        plain = method.removesuffix(", checkpointing")
        whole = [count_kept(build(model, layers, plain)) for layers in (1, 2)]
        kept += whole[1] - whole[0]
    trained = trained_of_one + trained_per_layer * (model.layers - 1)
    adapters = trained if "LoRA" in method else 0
    return {
        "weights": FLOAT * (model.parameters + adapters) / GB,
        "gradients, optimiser": 3 * FLOAT * trained / GB,
        "activations": kept / GB,
        "trained": trained / (model.parameters + adapters),
    }


def count_trained(network: torch.nn.Module) -> int:
    return sum(weight.numel() for weight in network.parameters() if weight.requires_grad)


def peak() -> float:
    """GB of this process at most so far; getrusage would count its parent's too."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024 / GB


def measure_here(model: Released, method: str) -> float:
    """GB by which this process grows at most in two steps."""
    before = peak()
    network = build(model, model.layers, method)
    trained = [weight for weight in network.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained)
    for _ in range(2):  # the moments are made by the first
        network(**make_batch()).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return peak() - before


def measure(name: str, method: str) -> float:
    command = [sys.executable, __file__, "--here", name, "--method", method]
    return json.loads(subprocess.run(command, capture_output=True, check=True, text=True).stdout)


def main(
    model: Model = ["glm-base", "glm-large", "glm-2b", "glm-10b"],  # noqa: B006 (Typer's way)
    measured: Annotated[
        list[str], typer.Option("--measure", help="Of these, those to measure too.")
    ] = [],  # noqa: B006
    here: Annotated[str | None, typer.Option(hidden=True)] = None,
    method: Annotated[str, typer.Option(hidden=True)] = "",
):
    """Print a row for each model and method."""
    if here is not None:
        print(json.dumps(measure_here(RELEASED[here], method)))
        return
    print(f"{BATCH} x {CONTEXT + ANSWER} tokens, float32, torch {torch.__version__}\n")
    print("| model | method | trained | weights | gradients, optimiser | activations | all, GB |")
    print("|---|---|---:|---:|---:|---:|---:|")
    for name in model:
        for way in METHODS:
            row = count(RELEASED[name], way)
            trained = row.pop("trained")
            total = f"{sum(row.values()):.1f}"
            if name in measured:
                total += f" (measured {measure(name, way):.1f})"
            parts = " | ".join(f"{part:.1f}" for part in row.values())
            print(f"| {name} | {way} | {trained:.1%} | {parts} | {total} |", flush=True)


if __name__ == "__main__":
    typer.run(main)
