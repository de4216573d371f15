"""Reads a Megatron checkpoint: finds its files, loads them without running anything, merges the model-parallel ranks.

Shapes: V vocabulary rows, H hidden size, P positions, n ranks.
"""

import re
import zipfile
from pathlib import Path

import numpy
import torch

from .errors import ConversionError


# How each kind of parameter is cut over model-parallel ranks; this is all there is to merging.
ROWS, COLUMNS, COPIED, QUERY_KEY_VALUE = "rows", "columns", "copied", "query, key and value"
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
}

TRACKERS = ("latest_checkpointed_iteration.txt", "latest")
RANK_FILE = re.compile(r"mp_rank_(\d+)_model_states\.pt")

# Every checkpoint holds the state of numpy's random generator, a tuple with an array: the only thing in it besides tensors
# and plain Python values. Old files name the module as numpy 1 did.
SAFE_GLOBALS = [
    numpy.ndarray,
    numpy.dtype,
    numpy.dtypes.UInt32DType,
    (numpy.core.multiarray._reconstruct if not hasattr(numpy, "_core") else numpy._core.multiarray._reconstruct),
]
RENAMED_GLOBALS = [(SAFE_GLOBALS[-1], f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")]


def read_checkpoint(path: Path) -> dict[str, torch.Tensor]:
    """The parameters of a checkpoint, merged, under their released names.

    Args:
        path: a folder with a tracker file, an iteration folder, or the file of the first rank.

    Raises:
        ConversionError: if there is no checkpoint, or if it is incomplete or holds what no rule covers.
    """
    ranks = [load_rank(file) for file in find_rank_files(path)]
    if len({frozenset(rank) for rank in ranks}) > 1:
        name = sorted(set(ranks[0]).symmetric_difference(*ranks[1:]))[0]
        raise ConversionError(f"The model-parallel ranks of {path} disagree: {name} is not in all of them.")
    merged = {name: merge(name, [rank[name] for rank in ranks]) for name in ranks[0]}
    check_shapes(merged)
    return merged


def find_rank_files(path: Path) -> list[Path]:
    """The file of each rank, in order."""
    if not path.exists():
        raise ConversionError(f"{path} does not exist; pass a checkpoint folder or an mp_rank_00_model_states.pt file.")
    if path.is_file():
        folder = path.parent
        if not RANK_FILE.fullmatch(path.name):
            return [path]
    else:
        trackers = [path / name for name in TRACKERS if (path / name).is_file()]
        folder = path / trackers[0].read_text(errors="replace").strip() if trackers else path
    files = {int(match[1]): file for file in folder.glob("mp_rank_*") if (match := RANK_FILE.fullmatch(file.name))}
    if not files:
        raise ConversionError(f"{folder} holds no mp_rank_00_model_states.pt; pass the folder that does, or the one with its tracker file.")
    missing = sorted(set(range(max(files) + 1)) - set(files))
    if missing:
        raise ConversionError(f"{folder} lacks mp_rank_{missing[0]:02d}_model_states.pt; all model-parallel ranks are needed.")
    return [files[rank] for rank in sorted(files)]


def load_rank(file: Path) -> dict[str, torch.Tensor]:
    """The parameters in one file. Nothing in it is executed: only tensors and plain values are read."""
    try:
        with torch.serialization.safe_globals(SAFE_GLOBALS + RENAMED_GLOBALS):
            # Mapped, so that the optimizer's state is never read; files of the time before zip cannot be.
            content = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConversionError(f"{file} cannot be read as a checkpoint of tensors: {reason}") from error
    module = content.get("module", content) if isinstance(content, dict) else None
    if not isinstance(module, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in module.values()):
        raise ConversionError(f"{file} holds no `module` with parameters; is it a GLM checkpoint?")
    # The fast cloze wrapper and the classifier save the network as `model`.
    return {name.removeprefix("model."): tensor for name, tensor in module.items()}


def merge(name: str, parts: list[torch.Tensor]) -> torch.Tensor:
    """Put the ranks' parts of one parameter together."""
    if name.startswith("prompt_spell."):
        raise ConversionError(f"{name} belongs to a continuous prompt, which Transformers' GLM cannot hold; fine-tune without one.")
    kind = next((kind for pattern, kind in SPLITS.items() if re.fullmatch(pattern, name)), None)
    if kind is None:
        raise ConversionError(f"The checkpoint holds {name}, which is no parameter of GLM; is it a GLM checkpoint?")
    if len(parts) == 1:
        return parts[0]
    if kind == COPIED:
        if not all(torch.equal(part, parts[0]) for part in parts[1:]):
            raise ConversionError(f"{name} should be the same on all model-parallel ranks and is not; the ranks do not belong together.")
        return parts[0]
    try:
        if kind == COLUMNS:
            return torch.cat(parts, dim=1)
        if kind == ROWS:
            return torch.cat(parts, dim=0)
        # Each rank holds its heads' [Q_r ; K_r ; V_r], of 3H/n rows: [Q_0 K_0 V_0], [Q_1 K_1 V_1] -> [Q_0 Q_1 K_0 K_1 V_0 V_1].
        return torch.cat([torch.cat(third) for third in zip(*(part.chunk(3) for part in parts))])
    except RuntimeError as error:
        raise ConversionError(f"The parts of {name} do not fit together: {[list(part.shape) for part in parts]}.") from error


def check_shapes(parameters: dict[str, torch.Tensor]):
    """Raise if a parameter is missing or has a wrong shape, by the tables and the layers that are there."""
    tables = ("word_embeddings.weight", "transformer.position_embeddings.weight")
    shapes = {name: tuple(parameters[name].shape) if name in parameters else (0, 0) for name in tables}  # (V, H), (P + 1 or P, H)
    hidden = shapes["word_embeddings.weight"][-1]  # H
    shapes["transformer.position_embeddings.weight"] = (shapes["transformer.position_embeddings.weight"][0], hidden)
    if "transformer.block_position_embeddings.weight" in parameters:
        shapes["transformer.block_position_embeddings.weight"] = shapes["transformer.position_embeddings.weight"]
    modules = {"transformer.final_layernorm": (hidden,)}  # shape of the weight; the bias has its rows
    layers = [int(match[1]) for name in parameters if (match := re.match(r"transformer\.layers\.(\d+)\.", name))]
    for layer in range(max(layers, default=0) + 1):
        modules |= {
            f"transformer.layers.{layer}.input_layernorm": (hidden,),
            f"transformer.layers.{layer}.attention.query_key_value": (3 * hidden, hidden),
            f"transformer.layers.{layer}.attention.dense": (hidden, hidden),
            f"transformer.layers.{layer}.post_attention_layernorm": (hidden,),
            f"transformer.layers.{layer}.mlp.dense_h_to_4h": (4 * hidden, hidden),
            f"transformer.layers.{layer}.mlp.dense_4h_to_h": (hidden, 4 * hidden),
        }
    if any(name.startswith(("pool_layer", "multichoice_head")) for name in parameters):
        classes = len(parameters.get("multichoice_head.weight", ()))  # C
        modules |= {"pool_layer": (hidden, hidden), "multichoice_head": (classes, hidden)}
    for module, shape in modules.items():
        shapes |= {f"{module}.weight": shape, f"{module}.bias": shape[:1]}
    missing = sorted(set(shapes) - set(parameters))
    if missing:
        raise ConversionError(f"The checkpoint lacks {missing[0]}{f' and {len(missing) - 1} more' if len(missing) > 1 else ''}; it is incomplete.")
    for name, shape in shapes.items():
        if tuple(parameters[name].shape) != shape:
            raise ConversionError(
                f"{name} has shape {list(parameters[name].shape)} where {list(shape)} is needed; are all model-parallel ranks there?"
            )
