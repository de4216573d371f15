"""Counts what a step of generation makes: operations, tensors of Python's data, reads back.

    python benchmarks/step_operations.py

On a GPU a tensor made from Python's data is a copy from the host, and a read back waits for all
that was asked before. GLM stands beside `GPT2LMHeadModel` of the same size; what their layers make
is counted too. It needs the package: `pip install -e .`.
"""

from dataclasses import dataclass

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel

from glm_transformers import GLMConfig, GLMForConditionalGeneration

SIZES = {"hidden_size": 64, "num_attention_heads": 4, "vocab_size": 512}
LAYERS = 12
SOP, EOP, MASK, GMASK, SMASK, EOS, UNREACHED = range(500, 507)
PROMPT = torch.tensor([[1, 17, MASK, 23, 5, EOS]])
STEPS = 8


@dataclass
class Counter(TorchDispatchMode):
    """Counts the operators that reach a device while it is entered."""

    operations: int = 0
    from_python: int = 0
    reads: int = 0

    def __post_init__(self):
        super().__init__()

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        name = operator.name()
        self.operations += 1
        self.from_python += name.startswith("aten::lift_fresh")
        self.reads += name == "aten::_local_scalar_dense"
        return operator(*args, **(kwargs or {}))


def count(model: PreTrainedModel, steps: int) -> Counter:
    counter = Counter()
    with counter:
        model.generate(
            PROMPT,
            attention_mask=torch.ones_like(PROMPT),
            max_new_tokens=steps,
            eos_token_id=UNREACHED,  # so that all steps are made
            pad_token_id=EOS,
        )
    return counter


def glm() -> PreTrainedModel:
    config = GLMConfig(
        **SIZES,
        num_layers=LAYERS,
        sop_token_id=SOP,
        eop_token_id=EOP,
        mask_token_ids=[MASK, GMASK, SMASK],
        eos_token_id=EOS,
    )
    return GLMForConditionalGeneration._from_config(config, attn_implementation="sdpa").eval()


def gpt2() -> PreTrainedModel:
    config = GPT2Config(n_embd=64, n_head=4, n_layer=LAYERS, vocab_size=512)
    return GPT2LMHeadModel._from_config(config, attn_implementation="sdpa").eval()


def main():
    print("| one step of | operations | made from Python's data | reads back |")
    print("|---|---:|---:|---:|")
    for name, make in {"GLM": glm, "GPT-2": gpt2}.items():
        model = make()
        fewer, more = count(model, STEPS), count(model, STEPS + 1)
        differences = (
            getattr(more, figure) - getattr(fewer, figure)
            for figure in ("operations", "from_python", "reads")
        )
        print(f"| {name} | {' | '.join(map(str, differences))} |")


if __name__ == "__main__":
    main()
