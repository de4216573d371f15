"""Reads a Megatron checkpoint: finds its files, and says how the model-parallel ranks make up each parameter.

Shapes: V vocabulary rows, H hidden size, n ranks.
"""

import math
import re
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch

from .errors import ConversionError
from .stored import PickledTensor, TorchFile, read_torch_file
from .tensors import CHUNK, HeldTensor, StoredTensor, chunk_sizes, same_bytes, step_sizes


@dataclass(frozen=True)
class Split:
    """How a parameter is cut over the ranks: along `dimension`, which is made of `blocks` that are each cut in n."""

    dimension: int
    blocks: int = 1

    def of_rank(self, merged: torch.Tensor, ranks: int, rank: int) -> torch.Tensor:
        """The view of a merged parameter that one rank holds; it has the rank's numbers in their order.

        Rows:                 (R, ...)  -> (1, n, R/n, ...) -> (1, R/n, ...)
        Columns:              (R, C)    -> (R, 1, n, C/n)   -> (R, 1, C/n)
        Query, key and value: (3H, ...) -> (3, n, H/n, ...) -> (3, H/n, ...), for a rank has [Q_r ; K_r ; V_r]
        """
        return merged.unflatten(self.dimension, (self.blocks, ranks, -1)).select(
            self.dimension + 1, rank
        )

    def shape(self, shape: tuple[int, ...], factor: int) -> tuple[int, ...]:
        return tuple(
            size * factor if at == self.dimension else size for at, size in enumerate(shape)
        )


ROWS, COLUMNS, QUERY_KEY_VALUE, COPIED = Split(0), Split(1), Split(0, blocks=3), None

# How each kind of parameter is cut over model-parallel ranks; merging and cutting both follow this table.
SPLITS = {
    r"word_embeddings\.weight": ROWS,
    r"transformer\.(position|block_position)_embeddings\.weight": COPIED,
    r"transformer\.layers\.\d+\.(input|post_attention)_layernorm\.(weight|bias)": COPIED,
    r"transformer\.layers\.\d+\.attention\.query_key_value\.(weight|bias)": QUERY_KEY_VALUE,
    r"transformer\.layers\.\d+\.attention\.dense\.weight": COLUMNS,
    r"transformer\.layers\.\d+\.attention\.dense\.bias": COPIED,
    r"transformer\.layers\.\d+\.mlp\.dense_h_to_4h\.(weight|bias)": ROWS,
    r"transformer\.layers\.\d+\.mlp\.dense_4h_to_h\.weight": COLUMNS,
    r"transformer\.layers\.\d+\.mlp\.dense_4h_to_h\.bias": COPIED,
    r"transformer\.final_layernorm\.(weight|bias)": COPIED,
    r"(pool_layer|multichoice_head)\.(weight|bias)": COPIED,
    r"prompt_spell\..+": COPIED,
}

TRACKERS = ("latest_checkpointed_iteration.txt", "latest")
RANK_FILE = re.compile(r"mp_rank_(\d{2,4})_model_states\.pt")
# Under these names a file keeps its parameters, one inside the other; a file may also be nothing but the parameters.
WRAPPERS = ("module", "model", "state_dict")
# What wrappers put before the names: the fast cloze wrapper and the classifier `model.`, data parallelism `module.`, the Hub
# port `glm.`.
PREFIXES = re.compile(r"^((module|model|glm)\.)+")
# What all ranks of one checkpoint say alike.
SHARED_ENTRIES = ("iteration", "global_steps", "mp_world_size")


@dataclass(frozen=True)
class Parameter:
    """One parameter, to be put together from the ranks' parts when it is read.

    copied_rows: pairs (from, to) of rows, copied after merging.
    """

    name: str
    parts: tuple[StoredTensor, ...]
    dtype: torch.dtype
    copied_rows: tuple[tuple[int, int], ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        split, shape = find_split(self.name), self.parts[0].shape
        return shape if split is COPIED else split.shape(shape, len(self.parts))

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def read(self) -> torch.Tensor:
        """The merged tensor; raises as `chunks` does."""
        merged, done = torch.empty(self.shape, dtype=self.dtype), 0
        for numbers in self._converted():
            merged.view(-1)[done : done + len(numbers)] = numbers
            done += len(numbers)
        for source, target in self.copied_rows:
            merged[target] = merged[source]
        return merged

    def chunks(self) -> Iterator[torch.Tensor]:
        """The merged tensor's numbers in their order, a few at a time.

        Raises:
            ConversionError: if copies differ between the ranks, or a number is not finite.
        """
        return HeldTensor(self.read()).chunks() if self.copied_rows else self._converted()

    def _converted(self) -> Iterator[torch.Tensor]:
        for numbers in self._merged():
            check_finite(self.name, numbers)
            if numbers.dtype != self.dtype:
                numbers = numbers.to(self.dtype)
                check_finite(f"{self.name} as {str(self.dtype).removeprefix('torch.')}", numbers)
            yield numbers
        for part in self.parts:
            part.forget()

    def _merged(self) -> Iterator[torch.Tensor]:
        part, split, ranks = self.parts[0], find_split(self.name), len(self.parts)
        with ExitStack() as stack:
            takes = [stack.enter_context(part.opened()) for part in self.parts]
            if split is COPIED or ranks == 1:
                for count in chunk_sizes(part):
                    numbers, *copies = (take(count) for take in takes)
                    if not all(same_bytes(copy, numbers) for copy in copies):
                        raise ConversionError(
                            f"{self.name} should be the same on all model-parallel ranks and is not; the ranks do not belong together."
                        )
                    yield numbers
                return
            # The merged tensor is (outer, n, inner), and each rank's part (outer, inner): all are read from start to end.
            outer = math.prod(part.shape[: split.dimension]) * split.blocks
            inner = math.prod(part.shape) // max(1, outer)
            few = CHUNK // part.dtype.itemsize
            if inner > few:
                for _ in range(outer):
                    for take in takes:
                        yield from map(take, step_sizes(inner, few))
            else:
                for count in step_sizes(outer, max(1, few // max(1, ranks * inner))):
                    rows = [take(count * inner).view(count, inner) for take in takes]
                    yield torch.stack(rows, dim=1).view(
                        -1
                    )  # (count, n, inner) -> (count * n * inner,)


def check_finite(name: str, tensor: torch.Tensor):
    # The extremes are not finite if one number is not, and finding them takes no memory.
    if tensor.numel() and not torch.stack(torch.aminmax(tensor)).isfinite().all():
        raise ConversionError(
            f"{name} holds numbers that are not finite; use a checkpoint from before training diverged, or a wider --dtype."
        )


def find_split(name: str) -> Split | None:
    for pattern, split in SPLITS.items():
        if re.fullmatch(pattern, name):
            return split
    raise ConversionError(
        f"The checkpoint holds {name}, which is no parameter of GLM; is it a GLM checkpoint?"
    )


def read_checkpoint(path: Path) -> dict[str, Parameter]:
    """The parameters of a checkpoint under their released names; no tensor is read yet.

    Args:
        path: a folder with a tracker file, an iteration folder, or the file of the first rank.

    Raises:
        ConversionError: if there is no checkpoint, or its ranks do not belong together, or it holds what no rule covers.
    """
    files = find_rank_files(path)
    ranks = [read_torch_file(file) for file in files]
    check_entries(path, ranks)
    return merge_ranks([find_module(rank) for rank in ranks])


def find_rank_files(path: Path) -> list[Path]:
    """The file of each rank, in order."""
    if not path.exists():
        raise ConversionError(
            f"{path} does not exist; pass a checkpoint folder or an mp_rank_00_model_states.pt file."
        )
    if path.is_file():
        folder = path.parent
        if not RANK_FILE.fullmatch(path.name):
            return [path]
    else:
        folder = path / read_tracker(path)
    try:
        files = {
            int(match[1]): file
            for file in folder.iterdir()
            if (match := RANK_FILE.fullmatch(file.name))
        }
    except OSError as error:
        raise ConversionError(
            f"{folder}, which the tracker file of {path} names, cannot be opened: {error.strerror}."
        ) from error
    if not files:
        raise ConversionError(
            f"{folder} holds no mp_rank_00_model_states.pt; pass the folder that does, or the one with its tracker file."
        )
    missing = next((rank for rank in range(len(files)) if rank not in files), None)
    if missing is not None:
        raise ConversionError(
            f"{folder} lacks mp_rank_{missing:02d}_model_states.pt; all model-parallel ranks are needed."
        )
    return [files[rank] for rank in sorted(files)]


def read_tracker(folder: Path) -> str:
    """The name of the iteration folder, "." if there is no tracker file."""
    for tracker in (folder / name for name in TRACKERS):
        if tracker.is_file():
            with open(tracker, errors="replace") as file:
                tag = file.read(256).strip()  # longer than any file name
            if tag in ("", ".", "..") or "/" in tag or "\\" in tag or "\0" in tag:
                raise ConversionError(
                    f"{tracker} should name a folder beside it and says {tag!r}; correct it, or pass the iteration folder."
                )
            return tag
    return "."


def check_entries(path: Path, ranks: list[TorchFile]):
    """Raise if the files are not the ranks of one checkpoint, all of them and in their order."""
    contents = [rank.content if isinstance(rank.content, dict) else {} for rank in ranks]
    for entry in SHARED_ENTRIES:
        values = [content.get(entry) for content in contents]
        if any(value != values[0] for value in values):
            raise ConversionError(
                f"The model-parallel ranks of {path} disagree: their {entry} are {', '.join(map(str, values))}."
            )
    size = contents[0].get("mp_world_size")
    if isinstance(size, int) and size != len(ranks):
        raise ConversionError(
            f"{path} has {len(ranks)} rank files and was written by {size} model-parallel ranks; all are needed, and no more."
        )
    for rank in ranks:
        # torch keeps the name that a file had when it was written.
        written = rank.name and RANK_FILE.fullmatch(f"{rank.name}.pt")
        if written and RANK_FILE.fullmatch(rank.file.name) and written[0] != rank.file.name:
            raise ConversionError(
                f"{rank.file} was written as {written[0]}; give the ranks their own names back."
            )


def find_module(rank: TorchFile) -> dict[str, StoredTensor]:
    """The parameters in one file, without the prefixes of wrappers."""
    module = rank.content
    while isinstance(module, dict) and (
        inner := next((module[key] for key in WRAPPERS if isinstance(module.get(key), dict)), None)
    ):
        module = inner
    if (
        not isinstance(module, dict)
        or not module
        or not all(isinstance(name, str) for name in module)
    ):
        raise ConversionError(
            f"{rank.file} holds no `module` with parameters; is it a GLM checkpoint?"
        )
    found = {}
    for name, tensor in module.items():
        if not isinstance(tensor, PickledTensor):
            raise ConversionError(
                f"{rank.file} holds {name} among its parameters, which is no tensor; is it a GLM checkpoint?"
            )
        add_parameter(found, name, rank.locate(tensor))
    return found


def add_parameter(found: dict[str, StoredTensor], name: str, tensor: StoredTensor):
    released = PREFIXES.sub("", name)
    if released in found:
        raise ConversionError(
            f"The checkpoint holds {released} twice, with and without a prefix; keep one."
        )
    if not tensor.dtype.is_floating_point:
        raise ConversionError(
            f"{name} has dtype {str(tensor.dtype).removeprefix('torch.')}, but parameters are floating point; is it quantized?"
        )
    found[released] = tensor


def merge_ranks(ranks: list[dict[str, StoredTensor]]) -> dict[str, Parameter]:
    """The parameters that the ranks' tensors make up; raises if the tensors do not fit together."""
    everywhere = set(ranks[0]).intersection(*ranks)
    for rank in ranks:
        for name in rank:
            if name not in everywhere:
                raise ConversionError(
                    f"The model-parallel ranks disagree: {name} is not in all of them."
                )
    parameters = {}
    for name in ranks[0]:
        parts, split = tuple(rank[name] for rank in ranks), find_split(name)
        if len({part.dtype for part in parts}) > 1:
            raise ConversionError(
                f"The parts of {name} have different dtypes on the model-parallel ranks; the ranks do not belong together."
            )
        shape = parts[0].shape
        fits = split is COPIED or (
            len(shape) > split.dimension and shape[split.dimension] % split.blocks == 0
        )
        if not fits or any(part.shape != shape for part in parts):
            raise ConversionError(
                f"The parts of {name} do not fit together: {[list(part.shape) for part in parts]}."
            )
        parameters[name] = Parameter(name, parts, parts[0].dtype)
    return parameters
