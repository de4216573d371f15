"""Writes safetensors files a few numbers at a time, and reads them back through the network layer by layer.

However large the model, memory holds no more than one layer of it. Reading goes on while what was read is worked on.
"""

import hashlib
import json
import os
import struct
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

import torch
from huggingface_hub import split_state_dict_into_shards_factory
from tqdm import tqdm

from .checkpoint import Parameter
from .errors import ConversionError
from .stored import SAFETENSORS_TYPES, read_safetensors
from .tensors import StoredTensor, memory

WEIGHTS, INDEX, PROMPT_WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "prompt_spell.safetensors",
)
WORD_EMBEDDINGS = "glm.word_embeddings.weight"
TYPE_NAMES = {dtype: name for name, dtype in SAFETENSORS_TYPES.items()}
READ_AHEAD = 16  # chunks that wait in memory


@contextmanager
def one_thread() -> Iterator[None]:
    """Lets torch compute on one thread: the others of its pool wait busily, and would take the processor from who reads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


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


def write_weights(
    folder: Path, parameters: dict[str, Parameter], max_shard_size: str
) -> dict[str, int]:
    """Write the parameters in shards, with an index if there is more than one.

    Returns:
        The `checksum` of each tensor.
    """
    sizes = {name: parameter.nbytes for name, parameter in parameters.items()}
    shards, checksums = plan_shards(sizes, max_shard_size), {}
    with tqdm(
        total=sum(sizes.values()), desc="Writing weights", unit="B", unit_scale=True, leave=False
    ) as progress:
        for file, names in shards.items():
            checksums |= write_safetensors(
                folder / file, {name: parameters[name] for name in names}, progress.update
            )
    if len(shards) > 1:
        weight_map = {name: file for file, names in shards.items() for name in names}
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map}
        (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
    return checksums


@one_thread()
def write_safetensors(
    file: Path, parameters: dict[str, Parameter], advance: Callable[[int], object]
) -> dict[str, int]:
    """Write one file: the header follows from the shapes, then what is read is written. Returns the checksums."""
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
    checksums = dict.fromkeys(parameters, 0)
    with open(file, "wb") as opened:
        opened.write(struct.pack("<Q", len(text)) + text)
        for name, numbers in read_ahead(
            (name, part) for name, parameter in ordered for part in parameter.chunks()
        ):
            opened.write(memory(numbers))
            checksums[name] = zlib.crc32(memory(numbers), checksums[name])
            advance(numbers.nbytes)
        opened.flush()
        os.fsync(opened.fileno())
    return checksums


def read_ahead(chunks: Iterator) -> Iterator:
    """The same chunks; the next ones are read while the caller works on one."""
    with ThreadPoolExecutor(1) as other:
        coming = deque(other.submit(next, chunks, None) for _ in range(READ_AHEAD))
        while (chunk := coming.popleft().result()) is not None:
            coming.append(other.submit(next, chunks, None))
            yield chunk


def checksum(tensor: Parameter | StoredTensor) -> int:
    """CRC-32 of a tensor's bytes. It finds accidents, not forgeries, and is faster than the disk."""
    value = 0
    for numbers in tensor.chunks():
        value = zlib.crc32(memory(numbers), value)
    return value


def fingerprint(tensors: dict[str, Parameter | StoredTensor], checksums: dict[str, int]) -> str:
    """One digest for all weights, whatever files they are in."""
    lines = [
        f"{name} {tensors[name].dtype} {list(tensors[name].shape)} {checksums[name]:08x}\n"
        for name in sorted(tensors)
    ]
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
        raise ConversionError(
            f"The checkpoint lacks {missing[0].removeprefix('glm.')}{more}; it is incomplete."
        )
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


@one_thread()
@torch.no_grad()
def verify_weights(model: torch.nn.Module, tensors: dict[str, StoredTensor]) -> dict[str, int]:
    """Read all weights once, in the order of the network, and run it on the way, with one layer in memory at a time.

    Args:
        model: a GLM with a head, on the meta device; it is there again afterwards.

    Returns:
        The `checksum` of each tensor.

    Raises:
        ConversionError: if names or shapes are not the model's, or the network's results are not finite.
    """
    check_names(model, tensors)
    names = [name for name in model.state_dict() if name != WORD_EMBEDDINGS] + [
        WORD_EMBEDDINGS
    ]  # the head comes last
    checksums = dict.fromkeys(names, 0)
    progress = tqdm(
        total=sum(tensor.nbytes for tensor in tensors.values()),
        desc="Verifying",
        unit="B",
        unit_scale=True,
        leave=False,
    )

    def read() -> Iterator[torch.Tensor]:
        for name in names:
            for numbers in tensors[name].chunks():
                checksums[name] = zlib.crc32(memory(numbers), checksums[name])
                progress.update(numbers.nbytes)
                yield numbers

    with progress, closing(read_ahead(read())) as chunks:
        if not run_layer_by_layer(model.eval(), tensors[WORD_EMBEDDINGS], chunks).isfinite().all():
            raise ConversionError(
                "The network's results on these weights are not finite; the checkpoint is damaged."
            )
    return checksums


def run_layer_by_layer(
    model: torch.nn.Module, embedding: StoredTensor, chunks: Iterator[torch.Tensor]
) -> torch.Tensor:
    """The network's results for the first ids: logits (1, T, V), or the classes' (1, C).

    Args:
        embedding: of the words, (V, H).
        chunks: the numbers of all parameters in the network's order, the word embedding's at the end.
    """
    transformer = model.glm.transformer
    places = {}  # of one layer's parameters, used again for the next: fresh memory takes longer than the arithmetic

    @contextmanager
    def loaded(module):
        state = {}
        for name, parameter in module.state_dict().items():
            # In single precision, in which half-precision weights can neither overflow nor lack a kernel.
            if (name, parameter.shape) not in places:
                places[name, parameter.shape] = torch.empty(parameter.shape, dtype=torch.float32)
            state[name] = places[name, parameter.shape]
            done = 0
            while done < parameter.numel():
                numbers = next(chunks)
                state[name].view(-1)[done : done + len(numbers)] = numbers
                done += len(numbers)
        module.load_state_dict(state, assign=True, strict=True)
        yield module
        module.to("meta")

    count = min(
        2, *embedding.shape[:1], model.config.position_rows
    )  # T: two see each other, and more take longer
    ids = torch.arange(count)[None]  # (1, T)
    with embedding.opened() as take:
        hidden = take(count * embedding.shape[1]).view(1, count, -1).float()  # (1, T, H)
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
            results = head(pooled)
        for _ in chunks:  # the word embedding is no head here, and is read all the same
            pass
        return results
    # The head is the word embedding, some rows at a time: (1, T, H) x (rows, H) -> (1, T, rows), together (1, T, V).
    place = torch.empty(0)  # used again for all rows
    rows = (
        place.resize_(numbers.shape).copy_(numbers).view(-1, hidden.shape[-1]) for numbers in chunks
    )
    return torch.cat([hidden @ part.T for part in rows], dim=-1)
