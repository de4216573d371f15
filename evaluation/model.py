"""The model that is evaluated."""

from typing import Any, NamedTuple

import torch

from ..hub_repository.config import DTYPES, read_config
from ..modeling_glm import GLMForConditionalGeneration, GLMForSequenceClassification
from ..tokenization_glm import GLMTokenizerFast
from ..training.repository import find_repository, load_tokenizer


class Loaded(NamedTuple):
    model: GLMForConditionalGeneration
    tokenizer: GLMTokenizerFast


def load(
    repository: str,
    dtype: str = "float32",
    device: str | torch.device | None = None,
) -> Loaded:
    """A repository's model, in evaluation mode, and its tokenizer; with this package's own code.

    Args:
        repository: a converted repository, a folder or a name on the Hub.
        dtype: of the arithmetic; the golden numbers are those of float32.
        device: by default the GPU, if there is one.

    Raises:
        ValueError: if there is no such repository, if it cannot fill blanks, or if weights of it
            are missing.
    """
    folder = find_repository(repository)
    if read_config(folder).architectures == [GLMForSequenceClassification.__name__]:
        raise ValueError(
            f"{repository} is a classifier and fills no blanks; give a model that does."
        )
    tokenizer = load_tokenizer(folder)
    loaded: Any = GLMForConditionalGeneration.from_pretrained(
        folder,
        dtype=DTYPES[dtype],
        output_loading_info=True,
    )
    model, report = loaded
    if report["missing_keys"]:
        raise ValueError(
            f"{repository} lacks {', '.join(sorted(report['missing_keys']))}; convert it again."
        )
    return Loaded(model.eval().to(device or default_device()), tokenizer)


def default_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"
