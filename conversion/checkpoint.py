"""Reads a Megatron checkpoint: finds its files, and puts each parameter together from the ranks."""

import re
from functools import partial
from pathlib import Path

import torch

from ..hub_repository.errors import RepositoryError
from ..hub_repository.weights import LazyTensor, check_finite, make, same_bytes
from .splits import COPIED, find_split
from .torch_file import PickledTensor, TorchFile, read_torch_file

TRACKERS = ("latest_checkpointed_iteration.txt", "latest")
RANK_FILE = re.compile(r"mp_rank_(\d{2,4})_model_states\.pt")
# Where ZeRO's third stage has the parameters' names, but not the parameters.
ZERO3_FILE = re.compile(r"zero_pp_rank_\d+_mp_rank_\d+_model_states\.pt")
# Under these names a file keeps its parameters, one inside the other; a file may also be nothing
# but the parameters.
WRAPPERS = ("module", "model", "state_dict")
DEEPEST_WRAPPING = 8
# What wrappers put before the names: the fast cloze wrapper and the classifier `model.`, data
# parallelism `module.`, the Hub port `glm.`.
PREFIXES = re.compile(r"^((module|model|glm)\.)+")
# What torch.compile, deepspeed, FSDP and gradient checkpointing put there, or before one layer's.
WRAPPED = re.compile(
    r"\b(_orig_mod|_forward_module|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
)
# What all ranks of one checkpoint say alike.
SHARED_ENTRIES = ("iteration", "global_steps", "mp_world_size")


def read_checkpoint(path: Path) -> dict[str, LazyTensor]:
    """The parameters of a checkpoint under their released names; no tensor is read yet.

    Args:
        path: a folder with a tracker file, an iteration folder, or the file of the first rank.

    Raises:
        RepositoryError: if there is no checkpoint, or its ranks do not belong together, or it
            holds what no rule covers.
    """
    files = find_rank_files(path)
    ranks = [read_torch_file(file) for file in files]
    check_entries(path, ranks)
    return merge_ranks([find_module(rank) for rank in ranks])


def find_rank_files(path: Path) -> list[Path]:
    """The file of each rank, in order."""
    if not path.exists():
        raise RepositoryError(
            f"{path} does not exist; pass a checkpoint folder or an mp_rank_00_model_states.pt "
            "file."
        )
    if not path.is_dir():
        folder = path.parent
        if not RANK_FILE.fullmatch(path.name):
            return [path]
    else:
        folder = path / read_tracker(path)
    try:
        names = sorted(file.name for file in folder.iterdir())
    except OSError as error:
        raise RepositoryError(
            f"{folder}, which the tracker file of {path} names, cannot be opened: {error.strerror}."
        ) from error
    files: dict[int, Path] = {}
    for name in names:
        if match := RANK_FILE.fullmatch(name):
            if int(match[1]) in files:
                raise RepositoryError(
                    f"{folder} holds {files[int(match[1])].name} and {name}, both for rank "
                    f"{int(match[1])}; move one of them away."
                )
            files[int(match[1])] = folder / name
    if not files and any(ZERO3_FILE.fullmatch(name) for name in names):
        raise needs_gathering(folder)
    if not files:
        raise RepositoryError(
            f"{folder} holds no mp_rank_00_model_states.pt; pass the folder that does, or the one "
            "with its tracker file."
        )
    missing = next((rank for rank in range(len(files)) if rank not in files), None)
    if missing is not None:
        raise RepositoryError(
            f"{folder} lacks mp_rank_{missing:02d}_model_states.pt; all model-parallel ranks are "
            "needed."
        )
    return [files[rank] for rank in sorted(files)]


def needs_gathering(place: Path) -> RepositoryError:
    return RepositoryError(
        f"{place} holds parts of a ZeRO-3 run without their weights; gather them with the "
        "zero_to_fp32.py that deepspeed left beside them, and convert what it writes."
    )


def read_tracker(folder: Path) -> str:
    """The name of the iteration folder, "." if there is no tracker file."""
    for tracker in (folder / name for name in TRACKERS):
        if tracker.is_file():
            with open(tracker, errors="replace") as file:
                tag = file.read(256).strip()  # longer than any file name
            if tag in ("", ".", "..") or "/" in tag or "\\" in tag or "\0" in tag:
                raise RepositoryError(
                    f"{tracker} should name a folder beside it and says {tag!r}; correct it, or "
                    "pass the iteration folder."
                )
            return tag
    return "."


def check_entries(path: Path, ranks: list[TorchFile]):
    """Raise if the files are not the ranks of one checkpoint, all of them and in their order."""
    contents = [rank.content if isinstance(rank.content, dict) else {} for rank in ranks]
    for entry in SHARED_ENTRIES:
        values = [plain(content.get(entry)) for content in contents]
        if any(value != values[0] for value in values):
            raise RepositoryError(
                f"The model-parallel ranks of {path} disagree: their {entry} are "
                f"{', '.join(map(str, values))}."
            )
    size = plain(contents[0].get("mp_world_size"))
    if isinstance(size, int) and size != len(ranks):
        raise RepositoryError(
            f"{path} has {len(ranks)} rank files and was written by {size} model-parallel ranks; "
            "all are needed, and no more."
        )
    for rank in ranks:
        # torch keeps the name that a file had when it was written.
        written = rank.name and RANK_FILE.fullmatch(f"{rank.name}.pt")
        if written and RANK_FILE.fullmatch(rank.file.name) and written[0] != rank.file.name:
            raise RepositoryError(
                f"{rank.file} was written as {written[0]}; give the ranks their own names back."
            )


def plain(value) -> int | str | None:
    """A count or a name of reasonable length; what else an entry may be says nothing."""
    if type(value) is int and value.bit_length() < 64:
        return value
    return value if type(value) is str and len(value) < 64 else None


def find_module(rank: TorchFile) -> dict[str, LazyTensor]:
    """The parameters in one file, without the prefixes of wrappers."""
    module = rank.content
    for _ in range(DEEPEST_WRAPPING):  # a dictionary may hold itself
        if not isinstance(module, dict):
            break
        inner = [module[key] for key in WRAPPERS if isinstance(module.get(key), dict)]
        if not inner:
            break
        module = inner[0]
    if (
        not isinstance(module, dict)
        or not module
        or not all(isinstance(name, str) for name in module)
    ):
        raise RepositoryError(
            f"{rank.file} holds no `module` with parameters; is it a GLM checkpoint?"
        )
    found: dict[str, LazyTensor] = {}
    for name, tensor in module.items():
        if not isinstance(tensor, PickledTensor):
            raise RepositoryError(
                f"{rank.file} holds {name} among its parameters, which is no tensor; is it a GLM "
                "checkpoint?"
            )
        add_parameter(found, name, rank.lazy(tensor))
    if all(tensor.nbytes == 0 for tensor in found.values()):
        raise needs_gathering(rank.file)
    return found


def add_parameter(found: dict[str, LazyTensor], name: str, tensor: LazyTensor):
    released = PREFIXES.sub("", WRAPPED.sub("", name))
    if released in found:
        raise RepositoryError(
            f"The checkpoint holds {released} twice, with and without a prefix; keep one."
        )
    if not tensor.dtype.is_floating_point:
        raise RepositoryError(
            f"{name} has dtype {dtype_name(tensor.dtype)}, but parameters are floating point; is "
            "it quantized?"
        )
    found[released] = tensor


def merge_ranks(ranks: list[dict[str, LazyTensor]]) -> dict[str, LazyTensor]:
    """The parameters that the ranks' tensors make up; raises if they do not fit together."""
    everywhere = set(ranks[0]).intersection(*ranks)
    for rank in ranks:
        for name in rank:
            if name not in everywhere:
                raise RepositoryError(
                    f"The model-parallel ranks disagree: {name} is not in all of them."
                )
    return {name: merged_parameter(name, [rank[name] for rank in ranks]) for name in ranks[0]}


def merged_parameter(name: str, parts: list[LazyTensor]) -> LazyTensor:
    split, shape, dtype = find_split(name), parts[0].shape, parts[0].dtype
    if any(part.dtype != dtype for part in parts):
        raise RepositoryError(
            f"The parts of {name} have different dtypes on the model-parallel ranks; the ranks do "
            "not belong together."
        )
    if any(part.shape != shape for part in parts) or not (split is COPIED or split.fits(shape)):
        raise RepositoryError(
            f"The parts of {name} do not fit together: {[list(part.shape) for part in parts]}."
        )
    read = partial(merge, name, parts)
    if split is COPIED or len(parts) == 1:
        return LazyTensor(shape, dtype, read, parts[0].checksum)
    return LazyTensor(split.merged_shape(shape, len(parts)), dtype, read)


def merge(name: str, parts: list[LazyTensor]) -> torch.Tensor:
    """
    Raises:
        RepositoryError: if copies differ between the ranks, or a number is not finite.
    """
    split, tensors = find_split(name), [make(part) for part in parts]
    for tensor in tensors:
        check_finite(name, tensor)
    if len(tensors) > 1 and split is not COPIED:
        return split.merge(tensors)
    if not all(same_bytes(tensor, tensors[0]) for tensor in tensors[1:]):
        raise RepositoryError(
            f"{name} should be the same on all model-parallel ranks and is not; the ranks do not "
            "belong together."
        )
    return tensors[0]


def converted(
    name: str,
    tensor: LazyTensor,
    dtype: torch.dtype,
    copied_rows: tuple[tuple[int, int], ...] = (),
) -> LazyTensor:
    """The parameter in another dtype, and with rows copied: pairs (from, to)."""
    if dtype == tensor.dtype and not copied_rows:
        return tensor

    def build() -> torch.Tensor:
        built = make(tensor).to(dtype)
        if dtype != tensor.dtype:
            check_finite(f"{name} as {dtype_name(dtype)}", built)
        if copied_rows:
            built = built.clone()
            for source, target in copied_rows:
                built[target] = built[source]
        return built

    return LazyTensor(tensor.shape, dtype, build)


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
