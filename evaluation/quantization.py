"""Weights in int8: fewer bytes to read, which is what a step of generation takes its time for."""

import warnings
from typing import Any, Literal

import torch
from torch import nn

from ..training.options import check_choice

Quantized = Literal["int8"]


def check_quantization(
    quantize: str | None,
    dtype: str,
    device: str | torch.device,
    has_adapter: bool,
) -> None:
    """Look at what is asked for before a model is loaded.

    Raises:
        ValueError: for another type than int8, on a CPU for another dtype than float32, and for an
            adapter.
    """
    if quantize is None:
        return
    check_choice("quantize", quantize, ("int8",))
    if has_adapter:
        raise ValueError("An adapter stays as it is; merge it into its model to have that in int8.")
    if torch.device(device).type == "cpu" and dtype != "float32":
        raise ValueError(
            f"On a CPU int8 computes beside float32, and dtype is {dtype}; leave it out."
        )


def to_int8(model: Any) -> Any:
    """The same network, with the weights of its linear layers in int8, the output head's included.

    The tables of embeddings stay as they are: a step reads a few rows of them. Only what changes no
    weight is possible afterwards, no training and no saving.

    On a CPU each row of a matrix has its scale, and the activations are rounded, too, in each call
    with one scale for the whole batch (`torch.ao`): what a text gets depends a little on the others
    beside it. benchmarks/int8.py has other ways. On another device only weights are rounded
    (`torchao`).

    Args:
        model: of this package, in evaluation mode; it is changed.
    """
    if hasattr(model, "lm_head"):
        model.lm_head = untied_head(model.lm_head)
    if model.device.type == "cpu":
        dynamic_on_cpu(model)
    else:
        only_weights(model)
    return model


def untied_head(head: nn.Linear) -> nn.Linear:
    """A plain layer with the head's weight: another product than its own suits int8."""
    plain = nn.Linear(head.in_features, head.out_features, bias=False, device="meta")
    plain.weight = head.weight
    return plain


def dynamic_on_cpu(model: nn.Module) -> None:
    from torch.ao.quantization import per_channel_dynamic_qconfig, quantize_dynamic

    kinds: dict[Any, Any] = {nn.Linear: per_channel_dynamic_qconfig}
    with warnings.catch_warnings():  # it has been deprecated for long, without a successor as fast
        warnings.filterwarnings("ignore", "(?s).*deprecated")
        quantize_dynamic(model, kinds, inplace=True)


def only_weights(model: nn.Module) -> None:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    quantize_(model, Int8WeightOnlyConfig())
