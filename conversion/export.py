"""Cuts a Hub repository into a Megatron checkpoint of any number of ranks: conversion backwards."""

import os
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch

from ..hub_repository.config import build_network, check_sizes, find_dtype, read_config
from ..hub_repository.errors import RepositoryError
from ..hub_repository.output import new_folder, prepare, synchronize
from ..hub_repository.weights import (
    PROMPT_WEIGHTS,
    LazyTensor,
    byte_progress,
    check_names,
    expected_names,
    find_weights,
    make,
    read_safetensors,
)
from .checkpoint import converted
from .splits import COPIED, find_split

# The tracker's word for a checkpoint that training does not continue from.
TAG = "release"


def export_checkpoint(
    repository: str | Path,
    output: str | Path,
    *,
    model_parallel_size: int = 1,
    dtype: str | None = None,
) -> Path:
    """Write the weights of a repository as the original code's checkpoint.

    That is a tracker file and an iteration folder. Memory holds the file of one rank. Row 50009 of
    glm-10b-chinese stays the copy that conversion made: what it was before is nowhere in the
    repository.

    Args:
        repository: a converted repository.
        output: the checkpoint folder to write.
        model_parallel_size: number of ranks, n.
        dtype: "float16", "bfloat16" or "float32"; that of the repository by default.

    Returns:
        The path of the checkpoint.

    Raises:
        ConversionError: one sentence; nothing is written then.
    """
    repository, output = Path(repository), Path(os.path.abspath(output))
    wanted = find_dtype(dtype)
    prepare(output, [repository])
    config = read_config(repository)
    heads = config.num_attention_heads
    if model_parallel_size < 1 or heads % model_parallel_size:
        raise RepositoryError(
            f"{heads} attention heads cannot be shared by {model_parallel_size} model-parallel "
            "ranks; choose a divisor."
        )
    stored = find_weights(repository)
    shapes = {name: tensor.shape for name, tensor in stored.items()}
    check_sizes(config, shapes, str(repository / "config.json"))
    network = build_network(config)
    check_names(network, stored)
    tensors = {name: stored[name] for name in expected_names(network)}
    if (repository / PROMPT_WEIGHTS).is_file():
        tensors |= read_safetensors(repository / PROMPT_WEIGHTS)
    # The wrapper of a classifier saves the network as `model`.
    prefix = "model." if hasattr(network, "pool_layer") else ""
    parameters = {}
    for name, tensor in tensors.items():
        released = name.removeprefix("glm.")
        check_cut(released, tensor, model_parallel_size)
        key = f"{prefix}{released}" if name.startswith("glm.") else name
        parameters[key] = converted(released, tensor, wanted or tensor.dtype)
    write_ranks(output, parameters, prefix, model_parallel_size)
    return output


def check_cut(name: str, tensor: LazyTensor, ranks: int):
    split = find_split(name)
    if split is not COPIED and not split.fits(tensor.shape, ranks):
        raise RepositoryError(
            f"{name}, of shape {list(tensor.shape)}, cannot be cut over {ranks} model-parallel "
            "ranks; choose fewer."
        )


def write_ranks(output: Path, parameters: dict[str, LazyTensor], prefix: str, ranks: int):
    """Write the checkpoint's folder, rank by rank.

    Args:
        prefix: in front of the parameters' names.
    """
    size = sum(parameter.nbytes for parameter in parameters.values())
    with new_folder(output, size) as folder, byte_progress("Writing ranks", size) as progress:
        (folder / TAG).mkdir()
        for rank in range(ranks):
            module = OrderedDict()
            for key, parameter in parameters.items():
                module[key] = part_of_rank(key.removeprefix(prefix), parameter, ranks, rank)
                progress.update(parameter.nbytes // ranks)
            # The entries that the original reads, of a checkpoint that holds nothing else.
            state: dict[str, Any] = {
                "module": module,
                "optimizer": None,
                "lr_scheduler": None,
                "csr_tensor_module_names": set(),
                "skipped_steps": 0,
                "global_steps": 0,
                "global_samples": 0,
                "dp_world_size": 1,
                "mp_world_size": ranks,
                "iteration": 0,
                "client_lr_scheduler": None,
            }
            file = folder / TAG / f"mp_rank_{rank:02d}_model_states.pt"
            torch.save(state, file)
            synchronize(file)
        # The tracker comes last: without it the folder is no checkpoint.
        for tracker in ("latest", "latest_checkpointed_iteration.txt"):
            (folder / tracker).write_text(TAG)
            synchronize(folder / tracker)


def part_of_rank(name: str, parameter: LazyTensor, ranks: int, rank: int) -> torch.Tensor:
    """What one rank holds, in memory of its own: torch saves the whole of what a view looks at."""
    merged, split = make(parameter), find_split(name)
    if split is COPIED or ranks == 1:
        return merged
    return split.of_rank(merged, ranks, rank).clone(memory_format=torch.contiguous_format)
