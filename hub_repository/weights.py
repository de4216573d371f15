"""The weights of a repository: safetensors files, written, found and read back.

Shapes: B batch, T tokens, H hidden size. However large the model, memory holds one shard of it.
"""

import hashlib
import zlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from huggingface_hub import split_state_dict_into_shards_factory
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from tqdm import tqdm

from ..modeling_glm import GLMPreTrainedModel
from .errors import RepositoryError, library_errors
from .files import read_json, require_file, write_json

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
PROMPT_WEIGHTS = "prompt_spell.safetensors"
WORD_EMBEDDINGS = "glm.word_embeddings.weight"
THREADS = 2  # one waits for the disk while the other computes
# The names that safetensors has for the types of parameters, and of what is not one.
DTYPES_BY_NAME = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True)
class LazyTensor:
    """A tensor that is made when it is needed: `make` reads it, merges it, or changes its dtype.

    checksum: the `checksum` it has, where its file says so; `make` raises if it is another.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    make: Callable[[], torch.Tensor]
    checksum: int | None = None

    @property
    def nbytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize


# A tensor in memory serves as well as one that is made.
AnyTensor = LazyTensor | torch.Tensor


@contextmanager
def one_thread() -> Iterator[None]:
    """Lets torch compute on one thread.

    The others of its pool wait busily, and would take the processor from who reads.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def make(tensor: AnyTensor) -> torch.Tensor:
    """The tensor in memory, its numbers in their order."""
    if isinstance(tensor, LazyTensor):
        return tensor.make().contiguous()
    return tensor.detach().cpu().contiguous()


def raw_bytes(tensor: torch.Tensor) -> torch.Tensor:
    """The bytes of a contiguous tensor, (bytes,)."""
    return tensor.view(-1).view(torch.uint8)


def checksum(tensor: torch.Tensor) -> int:
    """CRC-32 of a contiguous tensor. It finds accidents, not forgeries, and outruns the disk."""
    return zlib.crc32(raw_bytes(tensor).numpy().data)


def same_bytes(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two contiguous tensors are the same to the bit; 0.0 and -0.0 are not."""
    return torch.equal(raw_bytes(one), raw_bytes(other))


def count_numbers(tensors: Mapping[str, AnyTensor]) -> int:
    return sum(torch.Size(tensor.shape).numel() for tensor in tensors.values())


def check_finite(name: str, tensor: torch.Tensor):
    # The extremes are not finite if one number is not, and finding them takes no memory.
    if tensor.numel() and not torch.stack(torch.aminmax(tensor)).isfinite().all():
        raise RepositoryError(
            f"{name} holds numbers that are not finite; use a checkpoint from before training "
            "diverged, or a wider --dtype."
        )


def fingerprint(tensors: Mapping[str, AnyTensor], checksums: Mapping[str, int]) -> str:
    """One digest for all weights, whatever files they are in."""
    lines = [
        f"{name} {tensors[name].dtype} {list(tensors[name].shape)} {checksums[name]:08x}\n"
        for name in sorted(tensors)
    ]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


# --- Writing --------------------------------------------------------------------------------------


def plan_shards(sizes: dict[str, int], max_shard_size: str) -> dict[str, list[str]]:
    """Which tensors go in which file, as `save_pretrained` would: {file name: tensor names}.

    Raises:
        RepositoryError: if max_shard_size is not a size.
    """
    try:
        plan = split_state_dict_into_shards_factory(
            sizes,
            get_storage_size=lambda size: size,
            filename_pattern="model{suffix}.safetensors",
            max_shard_size=max_shard_size,
        )
    except (ValueError, OverflowError) as error:
        raise RepositoryError(
            f"max_shard_size {max_shard_size} is not a size; pass one such as 5GB or 500MB."
        ) from error
    return plan.filename_to_tensors


def write_weights(
    folder: Path,
    tensors: Mapping[str, AnyTensor],
    max_shard_size: str,
) -> dict[str, int]:
    """Write the tensors in shards, with an index if there is more than one.

    Returns:
        The `checksum` of each tensor.
    """
    sizes = {name: tensor.nbytes for name, tensor in tensors.items()}
    shards = plan_shards(sizes, max_shard_size)
    checksums: dict[str, int] = {}
    with byte_progress("Writing weights", sum(sizes.values())) as progress:
        for file, names in shards.items():
            shard = {name: tensors[name] for name in names}
            checksums |= write_shard(folder / file, shard, progress.update)
    if len(shards) > 1:
        weight_map = {name: file for file, names in shards.items() for name in names}
        metadata = {"total_size": sum(sizes.values())}
        write_json(folder / INDEX, {"metadata": metadata, "weight_map": weight_map})
    return checksums


@one_thread()
def write_shard(
    file: Path,
    tensors: Mapping[str, AnyTensor],
    advance: Callable[[int], object] = lambda count: None,
) -> dict[str, int]:
    """Write one file; returns the checksums."""

    def read(name: str) -> tuple[torch.Tensor, int]:
        made, known = make(tensors[name]), getattr(tensors[name], "checksum", None)
        advance(made.nbytes)
        return made, checksum(made) if known is None else known

    with ThreadPoolExecutor(THREADS) as pool:
        results = dict(zip(tensors, pool.map(read, tensors), strict=True))
    made = {name: tensor for name, (tensor, _) in results.items()}
    checksums = {name: value for name, (_, value) in results.items()}
    with library_errors(f"{file.parent} cannot be used"):
        save_file(made, file, metadata={"format": "pt"})
    return checksums


def byte_progress(description: str, total: int) -> tqdm:
    """A progress bar in bytes, shown where the output is a terminal."""
    return tqdm(
        total=total,
        desc=description,
        unit="B",
        unit_scale=True,
        leave=False,
        disable=None,
    )


# --- Reading --------------------------------------------------------------------------------------


def read_safetensors(file: Path) -> dict[str, LazyTensor]:
    """The tensors of a safetensors file; none is read yet.

    Raises:
        RepositoryError: if it is damaged.
    """
    require_file(file)
    with library_errors(f"{file} is no complete safetensors file"):
        opened = safe_open(file, framework="pt")
        tensors = {}
        for name in opened.keys():  # noqa: SIM118, it is no dictionary
            part = opened.get_slice(name)
            dtype = DTYPES_BY_NAME.get(part.get_dtype())
            if dtype is None:
                raise RepositoryError(
                    f"{file} holds {name} as {part.get_dtype()}, which no GLM has; is it quantized?"
                )
            shape = tuple(part.get_shape())
            tensors[name] = LazyTensor(shape, dtype, partial(opened.get_tensor, name))
        return tensors


def find_weights(folder: Path) -> dict[str, LazyTensor]:
    """The tensors of a repository's safetensors files; none is read yet.

    Raises:
        RepositoryError: if a file is missing or damaged, or the index and the files contradict
            each other.
    """
    if not (folder / INDEX).is_file():
        if not (folder / WEIGHTS).exists():
            raise RepositoryError(f"{folder} holds neither {WEIGHTS} nor {INDEX}.")
        return read_safetensors(folder / WEIGHTS)
    weight_map = read_weight_map(folder / INDEX)
    tensors: dict[str, LazyTensor] = {}
    for name in sorted(set(weight_map.values())):
        tensors |= read_safetensors(folder / name)
    if set(tensors) != set(weight_map):
        name = min(set(tensors) ^ set(weight_map))
        raise RepositoryError(f"{folder / INDEX} and the files do not agree on {name}.")
    return tensors


def read_weight_map(index: Path) -> dict[str, str]:
    """Which file each tensor is in; the files lie beside the index, nowhere else."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise RepositoryError(f"{index} is no index of weights: it has no weight_map.")
    if not all(isinstance(name, str) and name == Path(name).name for name in weight_map.values()):
        raise RepositoryError(f"{index} names a file outside its folder; it is not to be trusted.")
    return weight_map


# --- Weights and network --------------------------------------------------------------------------


def expected_names(network: nn.Module) -> dict[str, tuple[int, ...]]:
    """Name and shape of each parameter that is stored; what is tied to another one is not."""
    tied = getattr(network, "_tied_weights_keys", None) or ()
    return {
        name: tuple(tensor.shape)
        for name, tensor in network.state_dict().items()
        if name not in tied
    }


def check_names(network: nn.Module, tensors: Mapping[str, AnyTensor]):
    """Raise if the tensors are not exactly the network's parameters, by name and shape."""
    expected = expected_names(network)
    missing = sorted(set(expected) - set(tensors))
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise RepositoryError(
            f"The checkpoint lacks {missing[0].removeprefix('glm.')}{more}; it is incomplete."
        )
    for name, tensor in tensors.items():
        released = name.removeprefix("glm.")
        if name not in expected:
            raise RepositoryError(
                f"The checkpoint holds {released}, for which the network has no place."
            )
        if tuple(tensor.shape) != expected[name]:
            raise RepositoryError(
                f"{released} has shape {list(tensor.shape)} where {list(expected[name])} is "
                "needed; are all model-parallel ranks there?"
            )


@one_thread()
def verify_weights(
    network: GLMPreTrainedModel,
    tensors: Mapping[str, LazyTensor],
) -> dict[str, int]:
    """Read all weights once, and run the network on them with one layer in memory at a time.

    Args:
        network: a GLM with a head, on the meta device; it is there again afterwards.

    Returns:
        The `checksum` of each tensor.

    Raises:
        RepositoryError: if names or shapes are not the network's, or a number is not finite.
    """
    check_names(network, tensors)
    total = sum(tensor.nbytes for tensor in tensors.values())
    with byte_progress("Verifying", total) as progress, ThreadPoolExecutor(THREADS) as pool:

        def read(name: str) -> int:
            made = make(tensors[name])
            check_finite(name, made)
            progress.update(made.nbytes)
            return checksum(made)

        checksums = dict(zip(tensors, pool.map(read, tensors), strict=True))
    if not run(network, tensors).isfinite().all():
        raise RepositoryError(
            "The network's results on these weights are not finite; the checkpoint is damaged."
        )
    return checksums


@torch.no_grad()
def run(network: GLMPreTrainedModel, tensors: Mapping[str, AnyTensor]) -> torch.Tensor:
    """The hidden states for the first ids, (1, T, H), by a network that is on the meta device.

    Each module gets its weights when it is called, and gives them back. They are in single
    precision, in which half-precision weights can neither overflow nor lack a kernel.
    """
    # Used again for the next layer: fresh memory takes longer than the arithmetic.
    places: dict[tuple, torch.Tensor] = {}

    def load(module: nn.Module, inputs: tuple, prefix: str):
        state = {}
        for name, parameter in module.named_parameters():
            state[name] = make(tensors[f"{prefix}.{name}"])
            # An embedding picks a few rows of a table as it is stored.
            if not isinstance(module, nn.Embedding):
                place = places.setdefault((name, parameter.shape), torch.empty(0))
                state[name] = place.resize_(parameter.shape).copy_(state[name])
        module.load_state_dict(state, assign=True)

    def give_back(module: nn.Module, inputs: tuple, output: torch.Tensor) -> torch.Tensor:
        module.to("meta")
        return output.float()

    base, config, hooks = network.base_model.eval(), network.config, []
    for name, module in base.named_modules():
        if list(module.named_parameters(recurse=False)):
            hooks.append(module.register_forward_pre_hook(partial(load, prefix=f"glm.{name}")))
            hooks.append(module.register_forward_hook(give_back))
    try:
        # T: two tokens see each other, and more take longer.
        count = min(2, config.vocab_size, config.position_rows)
        positions = torch.arange(count)[None]  # (1, T)
        if config.block_position_encoding:
            positions = torch.stack([positions, torch.zeros_like(positions)], dim=1)  # (1, 2, T)
        ids = torch.arange(count)[None]  # (1, T)
        return base(input_ids=ids, position_ids=positions, use_cache=False).last_hidden_state
    finally:
        for hook in hooks:
            hook.remove()
        base.to("meta")
