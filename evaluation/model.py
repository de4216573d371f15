"""The model that is evaluated: a repository's, or one with an adapter."""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers.distributed import DistributedConfig

from ..configuration_glm import GLMConfig
from ..hub_repository.config import DTYPES, read_config
from ..hub_repository.files import read_json
from ..modeling_glm import (
    GLMForConditionalGeneration,
    GLMForSequenceClassification,
    GLMPreTrainedModel,
)
from ..parallel_glm import CAN_CUT_HEADS
from ..tokenization_glm import GLMTokenizerFast
from ..training.processes import world_size
from ..training.repository import find_folder, find_repository, load_tokenizer
from .quantization import check_quantization, to_int8

ADAPTER = "adapter_config.json"  # where peft says what an adapter is


class Loaded(NamedTuple):
    model: GLMForConditionalGeneration
    tokenizer: GLMTokenizerFast


class Found(NamedTuple):
    """
    repository: the folder of the whole model.
    adapter: that of an adapter beside it.
    """

    repository: Path
    adapter: Path | None

    @property
    def folders(self) -> list[Path]:
        return [folder for folder in self if folder is not None]

    @property
    def is_classifier(self) -> bool:
        """Whether the model names classes, and fills no blanks."""
        if self.adapter is not None:
            trained = read_json(self.adapter / ADAPTER).get("modules_to_save") or []
            return "multichoice_head" in trained
        return self.config.architectures == [GLMForSequenceClassification.__name__]

    @property
    def config(self) -> GLMConfig:
        """That of the whole model."""
        return read_config(self.repository)


def find(name: str) -> Found:
    """The folders of a converted repository, or of an adapter and the repository it belongs to.

    Raises:
        ValueError: if it is neither a folder nor on the Hub, or is of another kind.
    """
    folder = find_folder(name)
    if not (folder / ADAPTER).is_file():
        return Found(find_repository(name), None)
    base = str(read_json(folder / ADAPTER).get("base_model_name_or_path"))
    try:
        return Found(find_repository(base), folder)
    except ValueError as error:
        raise ValueError(
            f"The adapter {name} is of the model {base}, which is not here; run this where it is, "
            f"or write where it is into {folder / ADAPTER}, as base_model_name_or_path."
        ) from error


def load(
    repository: str,
    dtype: str = "float32",
    device: str | torch.device | None = None,
    quantize: str | None = None,
    tensor_parallel: bool = False,
) -> Loaded:
    """A repository's model, in evaluation mode, and its tokenizer; with this package's own code.

    Args:
        repository: a converted repository or an adapter, a folder or a name on the Hub.
        dtype: of the arithmetic; the golden numbers are those of float32.
        device: by default the GPU, if there is one.
        quantize: "int8" for weights in fewer bytes, see `quantization.to_int8`.
        tensor_parallel: each process of `torchrun` gets its part of the model, and reads no more;
            they call it together, with the same inputs, and get the same results.

    Raises:
        ValueError: if there is no such repository, if it cannot fill blanks, if weights of it are
            missing, or if it cannot be quantised or shared so.
    """
    found = find(repository)
    if found.is_classifier:
        raise ValueError(
            f"{repository} is a classifier and fills no blanks; give a model that does."
        )
    parts = in_parts(found, device, quantize) if tensor_parallel else {}
    device = check_device(device)
    tokenizer = load_tokenizer(found.repository)
    model: Any = load_network(GLMForConditionalGeneration, found, dtype, device, quantize, **parts)
    return Loaded(model, tokenizer)


def in_parts(
    found: Found,
    device: str | torch.device | None,
    quantize: str | None,
) -> dict[str, DistributedConfig]:
    """The argument of `from_pretrained` with which each process loads its part of a model.

    Raises:
        ValueError: for what cannot be shared, or not by so many processes.
    """
    if not CAN_CUT_HEADS:
        raise ValueError("This version of Transformers cannot share a model; install version 5.")
    for name, value in {"device": device, "quantize": quantize}.items():
        if value is not None:
            raise ValueError(f"{name} is for a model in one process; leave out tensor_parallel.")
    if found.adapter is not None:
        raise ValueError("An adapter stays whole; merge it into its model to share that.")
    processes, heads = world_size(), found.config.num_attention_heads
    if processes == 1:
        raise ValueError(
            "There is one process, which shares the model with nobody; start several with "
            "torchrun --nproc-per-node."
        )
    if heads % processes:
        raise ValueError(
            f"{processes} processes cannot share {heads} heads; start as many as divide them."
        )
    return {"distributed_config": DistributedConfig(tp_size=processes)}


def load_network(
    kind: type[GLMPreTrainedModel],
    found: Found,
    dtype: str,
    device: str | torch.device,
    quantize: str | None = None,
    **config: Any,
) -> torch.nn.Module:
    """The network of this class, with the adapter if there is one, in evaluation mode.

    Args:
        config: of `from_pretrained`; fields of the configuration that are not as the repository
            has them.

    Raises:
        ValueError: if weights are missing, if an adapter does not fit, or if they cannot be
            quantised so.
    """
    check_quantization(quantize, dtype, device, has_adapter=found.adapter is not None)
    loaded: Any = kind.from_pretrained(
        found.repository,
        dtype=DTYPES[dtype],
        output_loading_info=True,
        **config,
    )
    model, report = loaded
    if found.adapter is None:
        if report["missing_keys"]:
            missing = ", ".join(sorted(report["missing_keys"]))
            raise ValueError(f"{found.repository} lacks {missing}; convert it again.")
    else:
        from peft import PeftModel

        try:
            model = PeftModel.from_pretrained(model, str(found.adapter))
        except (RuntimeError, ValueError) as error:  # sizes, or names of layers
            raise ValueError(
                f"The adapter {found.adapter} does not fit {found.repository}: {error}"
            ) from error
        settings = found.adapter / "generation_config.json"
        if settings.is_file():
            model.generation_config = type(model.generation_config).from_pretrained(found.adapter)
    model = model.eval().to(device)
    return model if quantize is None else to_int8(model)


def check_length(asked: int | None, config: GLMConfig) -> None:
    """Raise a ValueError for rows of more tokens than the model takes."""
    longest = config.max_sequence_length
    if asked is not None and asked > longest:
        raise ValueError(
            f"length is {asked}; this model takes {longest} tokens: ask for {longest} or less."
        )


def check_device(device: str | torch.device | None) -> str | torch.device:
    """The device, by default the GPU, if there is one.

    Raises:
        ValueError: if this machine has no such device.
    """
    if device is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0].partition(". ")[0]
        raise ValueError(f"There is no device {device} here: {reason}") from error
    return device
