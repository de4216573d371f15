"""Fills blanks with ONNX Runtime: a step of generation, the cache in its graph.

    pip install onnx onnxruntime onnxscript
    python examples/onnx_steps.py glm-demo "Paris is the capital of [MASK]." --quantize int8

The prompt, once, is torch's; each step behind it is ONNX Runtime's. So `generate` is what it always
is, with beams and batches, and only what computes a step changes. On a CPU.
"""

import tempfile
from pathlib import Path
from typing import Annotated, Any, Literal

import onnxruntime
import torch
import typer
from onnxruntime.quantization import QuantType, quantize_dynamic
from transformers import AutoTokenizer, Cache, DynamicCache
from transformers.modeling_outputs import CausalLMOutputWithPast

from glm_transformers import GLMForConditionalGeneration
from glm_transformers.modeling_glm import CACHE

FREE = torch.export.Dim.DYNAMIC


class Step(torch.nn.Module):
    """One token (B, 1) behind keys and values (B, heads, T, head size) of each layer.

    Gives its logits (B, 1, V), and the keys and values with its own (B, heads, T + 1, head size).
    """

    def __init__(self, model: GLMForConditionalGeneration):
        super().__init__()
        self.model = model

    def forward(self, input_ids, attention_mask, position_ids, keys_and_values):
        cache = DynamicCache(config=self.model.config)
        for layer, (keys, values) in enumerate(keys_and_values):
            cache.update(keys, values, layer)
        options = {CACHE: cache, "use_cache": True}
        logits = self.model(input_ids, attention_mask, position_ids, **options).logits
        return logits, pairs_of(cache)


def pairs_of(cache: Cache) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(layer.keys, layer.values) for layer in cache.layers]


@torch.no_grad()
def write_graph(folder: str | Path, file: Path) -> None:
    """The step of the repository in `folder`, for any batch and any length behind it."""
    model = GLMForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    config = model.config
    head_size = config.hidden_size // config.num_attention_heads
    past = torch.zeros(2, config.num_attention_heads, 9, head_size)
    inputs = (
        torch.full((2, 1), config.sop_token_id),
        torch.ones(2, 10, dtype=torch.long),
        torch.ones(2, 2, 1, dtype=torch.long),  # both positions of the token
        [(past.clone(), past.clone()) for _ in range(config.num_layers)],
    )
    of_layers = [({0: FREE, 2: FREE}, {0: FREE, 2: FREE})] * config.num_layers
    program = torch.onnx.export(
        Step(model).eval(),
        inputs,
        dynamic_shapes=({0: FREE}, {0: FREE, 1: FREE}, {0: FREE}, of_layers),
        dynamo=True,
        verbose=False,
    )
    program.save(file, external_data=True)


class OnnxGLM(GLMForConditionalGeneration):
    """The same network; ONNX Runtime computes the steps behind a prompt."""

    session: onnxruntime.InferenceSession
    graph_bytes: int

    def forward(self, input_ids=None, attention_mask=None, position_ids=None, **options: Any):
        cache = options.get(CACHE)
        behind = 0 if cache is None else cache.get_seq_length()
        if behind == 0 or input_ids.shape[1] != 1:
            return super().forward(input_ids, attention_mask, position_ids, **options)
        if attention_mask is None:
            attention_mask = torch.ones(len(input_ids), behind + 1, dtype=torch.long)
        tensors = [input_ids, attention_mask, position_ids, *sum(pairs_of(cache), ())]
        names = [value.name for value in self.session.get_inputs()]
        inputs = {name: tensor.numpy() for name, tensor in zip(names, tensors, strict=True)}
        logits, *parts = map(torch.from_numpy, self.session.run(None, inputs))
        for layer, keys, values in zip(cache.layers, parts[::2], parts[1::2], strict=True):
            layer.keys, layer.values = keys, values
        return CausalLMOutputWithPast(logits=logits, **{CACHE: cache})


def with_onnx_steps(folder: str | Path, in_int8: bool) -> OnnxGLM:
    """The repository in `folder`, with as many threads as torch has.

    In int8 each column of a weight has its scale, and the inputs of a product are rounded, too. The
    weights take 7 of the 8 bits: a CPU without VNNI adds two products in 16, which more overflow.
    """
    model = OnnxGLM.from_pretrained(folder, dtype=torch.float32).eval()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as temporary:
        file = Path(temporary) / "step.onnx"
        write_graph(folder, file)
        if in_int8:
            whole, file = file, file.with_name("int8.onnx")
            quantize_dynamic(
                whole,
                file,
                op_types_to_quantize=["MatMul"],
                weight_type=QuantType.QInt8,
                per_channel=True,
                reduce_range=True,
            )
        model.session = onnxruntime.InferenceSession(file, options)
        model.graph_bytes = sum(part.stat().st_size for part in file.parent.glob(f"{file.name}*"))
    return model


def main(
    repository: Annotated[str, typer.Argument(help="A folder that `glm convert` wrote.")],
    text: Annotated[str, typer.Argument(help="A text with blanks.")],
    quantize: Annotated[Literal["int8"] | None, typer.Option(help="Round the weights.")] = None,
):
    """Print the answer to each blank."""
    tokenizer = AutoTokenizer.from_pretrained(repository, trust_remote_code=True)
    model = with_onnx_steps(repository, in_int8=quantize == "int8")
    ids = model.generate(**tokenizer(text, return_tensors="pt"))
    for answer in tokenizer.decode_pieces(ids)[0]:
        print(answer)


if __name__ == "__main__":
    typer.run(main)
