"""The pipeline of a repository, made of this package's own classes."""

from typing import Any

import torch

from ..evaluation.model import load
from ..pipeline_glm import GLMText2TextGenerationPipeline


def open_pipeline(
    repository: str,
    dtype: str = "float32",
    device: str | torch.device | None = None,
    quantize: str | None = None,
    tensor_parallel: bool = False,
) -> GLMText2TextGenerationPipeline:
    """What fills blanks with a repository; no code that lies in the repository is run.

    Args:
        repository: a converted repository, a folder or a name on the Hub.
        dtype: of the weights and the arithmetic.
        device: by default the GPU, if there is one.
        quantize: "int8" for weights in fewer bytes.
        tensor_parallel: the processes of `torchrun` share one model.

    Raises:
        ValueError: as `evaluation.model.load`.
    """
    loaded: dict[str, Any] = load(
        repository,
        dtype,
        device,
        quantize,
        tensor_parallel,
    )._asdict()
    return GLMText2TextGenerationPipeline(**loaded)
