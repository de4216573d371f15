"""Cuts a Hub repository into a Megatron checkpoint of any number of model-parallel ranks: the inverse of conversion."""

import io
import os
import pickle
import zipfile
from collections import OrderedDict
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from .checkpoint import COPIED, Parameter, find_split
from .errors import ConversionError
from .output import new_folder, prepare, synchronize
from .repository import DTYPES, build_network, read_repository_config
from .stored import STORAGE_TYPES, read_safetensors
from .tensors import memory
from .weights import PROMPT_WEIGHTS, check_names, find_weights

# The tracker's word for a checkpoint that training does not continue from.
TAG = "release"
STORAGE_NAMES = {dtype: name for name, dtype in STORAGE_TYPES.items()}


@dataclass(frozen=True)
class Pickled:
    """What a pickle says in place of a tensor: its bytes are the file's record `key`."""

    key: str
    dtype: torch.dtype
    shape: tuple[int, ...]


class Storage:
    """What a pickle says in place of a tensor's memory."""

    def __init__(self, tensor: Pickled):
        self.identifier = (
            "storage",
            getattr(torch, STORAGE_NAMES[tensor.dtype]),
            tensor.key,
            "cpu",
            torch.Size(tensor.shape).numel(),
        )


class Pickler(pickle.Pickler):
    """Writes a `Pickled` as torch writes a tensor."""

    def persistent_id(self, value):
        return value.identifier if isinstance(value, Storage) else None

    def reducer_override(self, value):
        if isinstance(value, Pickled):
            stride = torch.empty(value.shape, device="meta").stride()
            return torch._utils._rebuild_tensor_v2, (
                Storage(value),
                0,
                value.shape,
                stride,
                False,
                OrderedDict(),
            )
        return NotImplemented


def export_checkpoint(
    repository: str | Path,
    output: str | Path,
    *,
    model_parallel_size: int = 1,
    dtype: str | None = None,
) -> Path:
    """Write the weights of a repository as the original code's checkpoint: a tracker file and an iteration folder.

    Row 50009 of glm-10b-chinese stays the copy that conversion made: what it was before is nowhere in the repository.

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
    if dtype is not None and dtype not in DTYPES:
        raise ConversionError(f"dtype {dtype} is unknown; choose {', '.join(DTYPES)}.")
    if os.path.lexists(output):
        raise ConversionError(f"{output} exists already; choose another place.")
    prepare(output, [repository / "config.json"])
    config = read_repository_config(repository)
    if model_parallel_size < 1 or config.num_attention_heads % model_parallel_size:
        raise ConversionError(
            f"{config.num_attention_heads} attention heads cannot be shared by {model_parallel_size} model-parallel ranks; "
            "choose a divisor."
        )
    tensors, network = find_weights(repository), build_network(config)
    check_names(network, tensors)
    tensors = {name: tensors[name] for name in network.state_dict()}
    if (repository / PROMPT_WEIGHTS).is_file():
        tensors |= read_safetensors(repository / PROMPT_WEIGHTS)
    # The wrapper of a classifier saves the network as `model`.
    prefix = "model." if hasattr(network, "pool_layer") else ""
    parameters, module = {}, OrderedDict()
    for key, (name, tensor) in enumerate(tensors.items()):
        released = name.removeprefix("glm.")
        parameters[key] = parameter = Parameter(
            released, (tensor,), DTYPES.get(dtype, tensor.dtype)
        )
        shape = rank_shape(parameter, model_parallel_size)
        module[f"{prefix}{released}" if name.startswith("glm.") else name] = Pickled(
            str(key), parameter.dtype, shape
        )
    entries = {
        **dict(module=module, optimizer=None, lr_scheduler=None, csr_tensor_module_names=set()),
        **dict(
            skipped_steps=0,
            global_steps=0,
            global_samples=0,
            dp_world_size=1,
            mp_world_size=model_parallel_size,
        ),
        **dict(iteration=0, client_lr_scheduler=None),
    }
    size = sum(parameter.nbytes for parameter in parameters.values())
    with new_folder(output, size) as folder, ExitStack() as opened:
        (folder / TAG).mkdir()
        archives = []
        for rank in range(model_parallel_size):
            root = f"mp_rank_{rank:02d}_model_states"
            archive = opened.enter_context(
                zipfile.ZipFile(folder / TAG / f"{root}.pt", "w", zipfile.ZIP_STORED)
            )
            archives.append((archive, root))
            stream = io.BytesIO()
            Pickler(stream, protocol=2).dump(entries)
            archive.writestr(zipfile.ZipInfo(f"{root}/data.pkl"), stream.getvalue())
            archive.writestr(zipfile.ZipInfo(f"{root}/byteorder"), "little")
        with tqdm(
            total=size, desc="Writing ranks", unit="B", unit_scale=True, leave=False
        ) as progress:
            for key, parameter in parameters.items():
                write_parts(archives, key, parameter)
                progress.update(parameter.nbytes)
        for archive, root in archives:
            archive.writestr(
                zipfile.ZipInfo(f"{root}/version"), "3\n"
            )  # of the format, as torch 1.6 to today write it
        opened.close()
        for file in (folder / TAG).iterdir():
            synchronize(file)
        # The tracker comes last: without it the folder is no checkpoint.
        for tracker in ("latest", "latest_checkpointed_iteration.txt"):
            (folder / tracker).write_text(TAG)
            synchronize(folder / tracker)
    return output


def rank_shape(parameter: Parameter, ranks: int) -> tuple[int, ...]:
    """The shape of one rank's part."""
    split, shape = find_split(parameter.name), parameter.shape
    if split is COPIED:
        return shape
    if shape[split.dimension] % (split.blocks * ranks):
        raise ConversionError(
            f"{parameter.name}, of shape {list(shape)}, cannot be cut over {ranks} model-parallel ranks; choose fewer."
        )
    return tuple(size // ranks if at == split.dimension else size for at, size in enumerate(shape))


def write_parts(archives: list[tuple[zipfile.ZipFile, str]], key: int, parameter: Parameter):
    """Write each rank's part of one parameter to its file."""
    merged, split = parameter.read(), find_split(parameter.name)
    for rank, (archive, root) in enumerate(archives):
        part = (
            merged if split is COPIED else split.of_rank(merged, len(archives), rank).contiguous()
        )
        record = zipfile.ZipInfo(f"{root}/data/{key}")
        with archive.open(
            record, "w", force_zip64=part.nbytes >= zipfile.ZIP64_LIMIT // 2
        ) as opened:
            opened.write(memory(part))
