"""What a training command reads of a converted repository, and the one that it writes."""

from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download

from ..configuration_glm import AUTO_MAP, PIPELINES, GLMConfig
from ..hub_repository.repository import write_repository
from ..modeling_glm import GLMPreTrainedModel
from ..tokenization_glm import GLMTokenizerFast


def find_repository(name: str) -> Path:
    """The folder of a converted repository, which is downloaded if it is not here but on the Hub.

    Raises:
        ValueError: if it is in neither place, or is no converted repository.
    """
    folder = find_folder(name)
    if not (folder / "config.json").is_file():
        raise ValueError(f"{name} holds no config.json; pass a converted repository.")
    return folder


def find_folder(name: str) -> Path:
    """The folder of a repository of any kind, see `find_repository`."""
    if Path(name).is_dir():
        return Path(name)
    try:
        return Path(snapshot_download(name))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{name} is neither a folder nor a repository that the Hub gives; "
            "pass a converted repository."
        ) from error


def load_tokenizer(folder: str | Path) -> GLMTokenizerFast:
    """The tokenizer of a converted repository, or of another folder that has one.

    Raises:
        ValueError: if there is none, or none of GLM.
    """
    if not Path(folder, "tokenizer.json").is_file():
        raise ValueError(
            f"{folder} is no folder with a tokenizer.json; pass a converted repository."
        )
    try:
        tokenizer = GLMTokenizerFast.from_pretrained(folder)
        ids = tokenizer.sop_token_id, tokenizer.eop_token_id
    except Exception as error:  # the library has no error of its own for a damaged file
        raise ValueError(f"{folder} holds no tokenizer of GLM: {error}") from error
    if None in ids:
        raise ValueError(f"{folder} holds no tokenizer of GLM: it has no <|startofpiece|>.")
    return tokenizer


def write_network(
    output: Path,
    model: GLMPreTrainedModel,
    weights: dict[str, torch.Tensor],
    architecture: str,
    tokenizer: GLMTokenizerFast,
    **others: Any,
) -> None:
    """The complete repository of a network that was trained, as conversion writes it.

    Args:
        weights: of the whole model, which may hold a part of them.
        architecture: the class that the repository is of.
        others: of `write_repository`.
    """
    of_every_repository = {
        "architectures": [architecture],
        "auto_map": AUTO_MAP,
        "custom_pipelines": PIPELINES,
    }
    # The `Trainer` turned the cache off; the path is of this machine.
    not_of_this_run = {"use_cache": True, "_name_or_path": ""}
    values = {**model.config.to_dict(), **not_of_this_run, **of_every_repository}
    write_repository(
        output,
        GLMConfig(**values),
        weights,
        tokenizer,
        **others,
    )
