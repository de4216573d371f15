"""The configuration of a repository: read with care, and written for both versions."""

import math
import re
from collections.abc import Mapping
from pathlib import Path

import torch

from ..configuration_glm import GLMConfig
from ..modeling_glm import (
    GLMForConditionalGeneration,
    GLMForMultipleChoice,
    GLMForSequenceClassification,
    GLMPreTrainedModel,
)
from .errors import RepositoryError, library_errors
from .files import read_json, write_json

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}

# What a repository may hold; the first two are what conversion writes.
NETWORKS: tuple[type[GLMPreTrainedModel], ...] = (
    GLMForConditionalGeneration,
    GLMForSequenceClassification,
    GLMForMultipleChoice,
)

# The original pads a vocabulary to a multiple of this.
VOCABULARY_MULTIPLE = 128

# The largest value of each size: far beyond any GLM, and small enough to be built without weights.
LARGEST = {
    "vocab_size": 2**24,
    "hidden_size": 2**17,
    "num_layers": 2**12,
    "num_attention_heads": 2**14,
    "max_sequence_length": 2**24,
    "num_labels": 2**16,
}
OTHER_NAMES = {"num_hidden_layers": "num_layers", "max_position_embeddings": "max_sequence_length"}
SHARES = (
    "embedding_dropout_prob",
    "attention_dropout_prob",
    "output_dropout_prob",
    "classifier_dropout",
)
NOT_NEGATIVE = ("initializer_range", "choice_length_penalty")
IDS = ("sop_token_id", "eop_token_id", "pad_token_id", "bos_token_id")
# Any other name of a kernel is that of a repository on the Hub, whose code would be run.
KERNELS = (None, "eager", "sdpa", "flex_attention")


def fills_blanks(config: GLMConfig) -> bool:
    """Whether the network is the one that writes text, not a classifier."""
    return config.architectures == ["GLMForConditionalGeneration"]


def read_config(repository: Path) -> GLMConfig:
    """The configuration of a repository.

    Raises:
        RepositoryError: if there is none, it is of another model, or no GLM can have it.
    """
    file = repository / "config.json"
    if not file.exists():
        raise RepositoryError(f"{repository} is no repository: it holds no config.json.")
    values = read_json(file)
    if "model_type" not in values:
        raise RepositoryError(f"{file} names no model_type; is it the config.json of a model?")
    if values["model_type"] != GLMConfig.model_type:
        raise RepositoryError(
            f'{repository} has model type "{values["model_type"]}"; convert it first.'
        )
    return build_config(values, str(file))


def build_config(values: dict, source: str) -> GLMConfig:
    """The configuration with these values, which may be a stranger's.

    Raises:
        RepositoryError: if no GLM can have them; the sentence names `source`.
    """
    check_values(values, source)
    with library_errors(f"{source} is no configuration of GLM"):
        # A stranger's value may have the name of a method.
        clash = next((name for name in values if callable(getattr(GLMConfig, name, None))), None)
        if clash is not None:
            raise ValueError(f"{clash} is no field of it")
        return GLMConfig(**values)


def check_values(values: dict, source: str):
    """Raise if a value has another type than GLM needs, or no sense."""

    def refuse(name: str, needed: str):
        said = repr(values[name])
        said = said if len(said) <= 60 else f"{said[:60]}..."
        raise RepositoryError(f"{source} says {name} {said}, where {needed} is needed.")

    def is_integer(value, lowest: int, highest: float) -> bool:
        return type(value) is int and lowest <= value <= highest

    def is_number(value) -> bool:
        return type(value) in (int, float) and math.isfinite(value)

    for name, value in values.items():
        largest = LARGEST.get(OTHER_NAMES.get(name, name))
        if largest is not None and not is_integer(value, 1, largest):
            refuse(name, f"an integer from 1 to {largest}")
        if name == "attention_scale" and not (is_number(value) and value > 0):
            refuse(name, "a positive number")
        if name in NOT_NEGATIVE and not (is_number(value) and value >= 0):
            refuse(name, "a number that is not negative")
        if name in SHARES and not (is_number(value) and 0 <= value <= 1):
            refuse(name, "a number from 0 to 1")
        if name in IDS and value is not None and not is_integer(value, 0, 2**31):
            refuse(name, "an id")
        if name in ("mask_token_ids", "eos_token_id") and value is not None:
            ids = value if isinstance(value, list) else [value]
            one_will_do = name == "eos_token_id" or isinstance(value, list)
            if not one_will_do or not all(is_integer(id, 0, 2**31) for id in ids):
                refuse(name, "a list of ids")
        if name in ("block_position_encoding", "use_cache") and type(value) is not bool:
            refuse(name, "true or false")
        if name == "tie_word_embeddings" and value is not True:
            refuse(name, "true: the output head is the word embedding itself")
        if name == "architectures" and not (
            value is None
            or (isinstance(value, list) and all(isinstance(one, str) for one in value))
        ):
            refuse(name, "a list of names")
        if name in ("id2label", "label2id") and not (
            isinstance(value, dict) and len(value) <= LARGEST["num_labels"]
        ):
            refuse(name, "an object with a field for each label")
        if "_implementation" in name and value not in KERNELS:
            refuse(name, f"one of {', '.join(map(str, KERNELS))}")
        if name in ("hidden_act", "pool_token") and not isinstance(value, str):
            refuse(name, "a name")
    heads, hidden = values.get("num_attention_heads"), values.get("hidden_size")
    if heads and hidden and hidden % heads:
        raise RepositoryError(
            f"{source}: {heads} attention heads do not divide the hidden size {hidden}; pass the "
            "right number with --num-attention-heads."
        )


def check_sizes(config: GLMConfig, shapes: Mapping[str, tuple[int, ...]], source: str):
    """Raise if the tensors are of other sizes than the configuration, before a network is built.

    Args:
        shapes: of the tensors of a repository, by their names.
        source: what the configuration was read from.
    """
    layers = {
        int(match[1])
        for name in shapes
        if (match := re.match(r"glm\.transformer\.layers\.(\d{1,9})\.", name))
    }
    sizes = {
        "num_layers": (config.num_layers, max(layers, default=-1) + 1),
        "vocab_size": (config.vocab_size, _rows(shapes, "glm.word_embeddings.weight")),
        "hidden_size": (config.hidden_size, _rows(shapes, "glm.transformer.final_layernorm.bias")),
        "max_sequence_length": (
            config.max_sequence_length,
            _rows(shapes, "glm.transformer.position_embeddings.weight")
            - config.block_position_encoding,
        ),
    }
    for name, (said, found) in sizes.items():
        if said != found:
            raise RepositoryError(
                f"{source} says {name} {said} and the weights have {found}; they do not belong "
                "together, or one of them is damaged."
            )
    # Each layer has 12 tensors: more layers than tensors would be built for nothing.
    if len(layers) < config.num_layers:
        raise RepositoryError("The weights lack a layer; they are incomplete.")


def _rows(shapes: Mapping[str, tuple[int, ...]], name: str) -> int:
    if not shapes.get(name):
        raise RepositoryError(f"The weights lack {name.removeprefix('glm.')}; they are incomplete.")
    return shapes[name][0]


def build_network(config: GLMConfig) -> GLMPreTrainedModel:
    """The network without memory for its weights: it knows their names, shapes and order."""
    classes = {network.__name__: network for network in NETWORKS}
    names = config.architectures or []
    if len(names) != 1 or names[0] not in classes:
        raise RepositoryError(
            f"The configuration names the architectures {', '.join(names) or 'none'}; a "
            f"repository has {' or '.join(classes)}."
        )
    with torch.device("meta"), library_errors("No GLM can have this configuration"):
        return classes[names[0]](config)


def write_config(file: Path, config: GLMConfig, dtype: torch.dtype):
    # `torch_dtype` is the name that both Transformers 5 and 4.57 read.
    values = {
        name: value
        for name, value in config.to_dict().items()
        if name not in ("dtype", "transformers_version")
    }
    write_json(file, {**values, "torch_dtype": str(dtype).removeprefix("torch.")})
