"""Writes safetensors files tensor by tensor, and reads them back through the network layer by layer.

However large the model, memory holds two tensors while writing and one layer while reading. Disk and digests, which are what
takes time, work side by side.
"""

import hashlib
import json
import os
import struct
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import torch
from huggingface_hub import split_state_dict_into_shards_factory
from tqdm import tqdm

from .checkpoint import Parameter
from .errors import ConversionError
from .stored import SAFETENSORS_TYPES, StoredTensor, read_safetensors


WEIGHTS, INDEX, PROMPT_WEIGHTS = "model.safetensors", "model.safetensors.index.json", "prompt_spell.safetensors"
TYPE_NAMES = {dtype: name for name, dtype in SAFETENSORS_TYPES.items()}


def plan_shards(sizes: dict[str, int], max_shard_size: str) -> dict[str, list[str]]:
    """Which tensors go in which file, as `save_pretrained` would: {file name: tensor names}.

    Raises:
        ConversionError: if max_shard_size is not a size.
    """
    try:
        plan = split_state_dict_into_shards_factory(
            sizes,
            get_storage_size=lambda size: size,
            filename_pattern="model{suffix}.safetensors",
            max_shard_size=max_shard_size,
        )
    except (ValueError, OverflowError) as error:
        raise ConversionError(
            f"max_shard_size {max_shard_size} is not a size; pass one such as 5GB or 500MB."
        ) from error
    return plan.filename_to_tensors


def write_weights(folder: Path, parameters: dict[str, Parameter], max_shard_size: str) -> dict[str, str]:
    """Write the parameters in shards, with an index if there is more than one.

    Returns:
        The digest of each tensor, see `digest`.
    """
    sizes = {name: parameter.nbytes for name, parameter in parameters.items()}
    shards, digests = plan_shards(sizes, max_shard_size), {}
    with tqdm(total=sum(sizes.values()), desc="Writing weights", unit="B", unit_scale=True, leave=False) as progress:
        for file, names in shards.items():
            digests |= write_safetensors(folder / file, {name: parameters[name] for name in names}, progress.update)
    if len(shards) > 1:
        weight_map = {name: file for file, names in shards.items() for name in names}
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map}
        (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
    return digests


def write_safetensors(file: Path, parameters: dict[str, Parameter], advance: Callable[[int], object]) -> dict[str, str]:
    """Write one file: the header follows from the shapes, then each tensor is read and written."""
    header, end = {"__metadata__": {"format": "pt"}}, 0
    # Wide numbers first, so that each tensor starts at a multiple of its number's size.
    ordered = sorted(parameters.items(), key=lambda item: -item[1].dtype.itemsize)
    for name, parameter in ordered:
        start, end = end, end + parameter.nbytes
        header[name] = {
            "dtype": TYPE_NAMES[parameter.dtype],
            "shape": list(parameter.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    digests = {}
    with open(file, "wb") as opened, ThreadPoolExecutor(1) as other:
        opened.write(struct.pack("<Q", len(text)) + text)
        for name, tensor in read_ahead(ordered):
            digesting = other.submit(digest, tensor)
            opened.write(memory(tensor))
            digests[name] = digesting.result()
            advance(tensor.nbytes)
        opened.flush()
        os.fsync(opened.fileno())
    return digests


def read_ahead(parameters: Iterable[tuple[str, Parameter]]) -> Iterator[tuple[str, torch.Tensor]]:
    """Each parameter's tensor; the next one is read while the caller works on it."""
    with ThreadPoolExecutor(1) as other:
        coming: tuple[str, Future] | None = None
        for name, parameter in parameters:
            ready, coming = coming, (name, other.submit(parameter.read))
            if ready is not None:
                yield ready[0], ready[1].result()
        if coming is not None:
            yield coming[0], coming[1].result()


def memory(tensor: torch.Tensor) -> memoryview:
    """The bytes of a contiguous tensor."""
    return memoryview(tensor.reshape(-1).view(torch.uint8).numpy())


def digest(tensor: torch.Tensor) -> str:
    return hashlib.sha256(memory(tensor)).hexdigest()


def fingerprint(tensors: dict[str, Parameter | StoredTensor], digests: dict[str, str]) -> str:
    """One digest for all weights, whatever files they are in."""
    lines = [f"{name} {tensors[name].dtype} {list(tensors[name].shape)} {digests[name]}\n" for name in sorted(tensors)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def find_weights(folder: Path) -> dict[str, StoredTensor]:
    """The tensors of a repository's safetensors files.

    Raises:
        ConversionError: if a file is missing or damaged, or the index and the files contradict each other.
    """
    if not (folder / INDEX).is_file():
        if not (folder / WEIGHTS).is_file():
            raise ConversionError(f"{folder} holds neither {WEIGHTS} nor {INDEX}.")
        return read_safetensors(folder / WEIGHTS)
    weight_map = read_weight_map(folder / INDEX)
    tensors = {}
    for name in sorted(set(weight_map.values())):
        tensors |= read_safetensors(folder / name)
    if set(tensors) != set(weight_map):
        name = min(set(tensors) ^ set(weight_map))
        raise ConversionError(f"{folder / INDEX} and the files do not agree on {name}.")
    return tensors


def read_weight_map(index: Path) -> dict[str, str]:
    """Which file each tensor is in; the files lie beside the index, nowhere else."""
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        inside = all(name == Path(name).name for name in weight_map.values())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConversionError(f"{index} is no index of weights: {error}.") from error
    if not inside:
        raise ConversionError(f"{index} names a file outside its folder; it is not to be trusted.")
    return weight_map


def check_names(model: torch.nn.Module, tensors: dict[str, Parameter | StoredTensor]):
    """Raise if the tensors are not exactly the model's parameters, by name and shape."""
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    missing = sorted(set(expected) - set(tensors))
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ConversionError(f"The checkpoint lacks {missing[0].removeprefix('glm.')}{more}; it is incomplete.")
    for name, tensor in tensors.items():
        if name not in expected:
            raise ConversionError(
                f"The checkpoint holds {name.removeprefix('glm.')}, for which the network has no place."
            )
        if tensor.shape != expected[name]:
            raise ConversionError(
                f"{name.removeprefix('glm.')} has shape {list(tensor.shape)} where {list(expected[name])} is needed; "
                "are all model-parallel ranks there?"
            )


@torch.no_grad()
def run_layer_by_layer(model: torch.nn.Module, read: Callable[[str], torch.Tensor]) -> torch.Tensor:
    """The network's results for a few ids, with one layer in memory at a time: logits (1, T, V), or the classes' (1, C).

    Args:
        model: a GLM with a head, on the meta device; it is there again afterwards.
        read: gives the tensor of a name; each is read once, the word embeddings twice.
    """
    transformer = model.glm.transformer
    prefixes = {module: name for name, module in model.named_modules()}
    places = {}  # of one layer's parameters, used again for the next: fresh memory takes longer than the arithmetic

    @contextmanager
    def loaded(module):
        state = {}
        for name, parameter in module.state_dict().items():
            # In single precision, in which half-precision weights can neither overflow nor lack a kernel.
            place = places.setdefault((name, parameter.shape), torch.empty(parameter.shape, dtype=torch.float32))
            state[name] = place.copy_(read(f"{prefixes[module]}.{name}"))
        module.load_state_dict(state, assign=True, strict=True)
        yield module
        module.to("meta")

    ids = torch.arange(min(4, model.config.vocab_size, model.config.position_rows))[None]  # (1, T)
    hidden = read("glm.word_embeddings.weight")[ids].float()  # (1, T, H)
    for name in ("position_embeddings", "block_position_embeddings"):
        if hasattr(transformer, name):
            with loaded(getattr(transformer, name)) as table:
                hidden = hidden + table(ids)
    for layer in transformer.layers:
        with loaded(layer):
            hidden, _ = layer(hidden)
    with loaded(transformer.final_layernorm) as norm:
        hidden = norm(hidden)
    if hasattr(model, "pool_layer"):
        with loaded(model.pool_layer) as pool_layer:
            pooled = torch.tanh(pool_layer(hidden[:, 0]))  # (1, H)
        with loaded(model.multichoice_head) as head:
            return head(pooled)
    # The head is the word embedding: (1, T, H) x (rows, H) -> (1, T, rows), a few rows at a time -> (1, T, V).
    rows = read("glm.word_embeddings.weight").split(4096)
    return torch.cat([hidden @ part.float().T for part in rows], dim=-1)


def verify_weights(model: torch.nn.Module, tensors: dict[str, StoredTensor]) -> dict[str, str]:
    """Read all weights once, through the network.

    Returns:
        The digest of each tensor.

    Raises:
        ConversionError: if names or shapes are not the model's, or the network's results are not finite.
    """
    check_names(model, tensors)
    digests: dict[str, Future] = {}
    size = sum(tensor.nbytes for tensor in tensors.values())
    progress = tqdm(total=size, desc="Verifying", unit="B", unit_scale=True, leave=False)
    with progress, ThreadPoolExecutor(1) as other:
        waiting = []

        def read(name):
            tensor = tensors[name].read()
            if name not in digests:
                while waiting:  # only one tensor at a time waits for its digest
                    waiting.pop().result()
                digests[name] = other.submit(digest, tensor)
                waiting.append(digests[name])
                progress.update(tensor.nbytes)
            return tensor

        if not run_layer_by_layer(model.eval(), read).isfinite().all():
            raise ConversionError("The network's results on these weights are not finite; the checkpoint is damaged.")
    return {name: digesting.result() for name, digesting in digests.items()}
