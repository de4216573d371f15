"""The configuration of a repository: read with care, and written for both versions."""

import math
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

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
LARGEST_ID = 2**31
# Any other name of a kernel is that of a repository on the Hub, whose code would be run.
KERNELS = (None, "eager", "sdpa", "flex_attention")


# --- What a value of a stranger must be -----------------------------------------------------------


class Rule(NamedTuple):
    """Whether a value fits, and in words what is needed."""

    fits: Callable[[Any], bool]
    needed: str


def is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def is_id(value: Any) -> bool:
    return type(value) is int and 0 <= value <= LARGEST_ID


def is_list_of(kind: Callable[[Any], bool], value: Any) -> bool:
    return isinstance(value, list) and all(map(kind, value))


def is_name(value: Any) -> bool:
    return isinstance(value, str)


def size_up_to(largest: int) -> Rule:
    return Rule(
        lambda value: type(value) is int and 1 <= value <= largest,
        f"an integer from 1 to {largest}",
    )


def or_none(rule: Rule) -> Rule:
    return Rule(lambda value: value is None or rule.fits(value), rule.needed)


POSITIVE = Rule(lambda value: is_number(value) and value > 0, "a positive number")
NOT_NEGATIVE = Rule(lambda value: is_number(value) and value >= 0, "a number that is not negative")
SHARE = Rule(lambda value: is_number(value) and 0 <= value <= 1, "a number from 0 to 1")
ID = or_none(Rule(is_id, "an id"))
IDS = or_none(Rule(partial(is_list_of, is_id), "a list of ids"))
ID_OR_IDS = Rule(lambda value: is_id(value) or IDS.fits(value), IDS.needed)
SWITCH = Rule(lambda value: type(value) is bool, "true or false")
NAME = Rule(is_name, "a name")
NAMES = or_none(Rule(partial(is_list_of, is_name), "a list of names"))
LABELS = Rule(
    lambda value: isinstance(value, dict) and len(value) <= LARGEST["num_labels"],
    "an object with a field for each label",
)
KERNEL = Rule(lambda value: value in KERNELS, f"one of {', '.join(map(str, KERNELS))}")
RULES = {
    **{name: size_up_to(largest) for name, largest in LARGEST.items()},
    **{name: size_up_to(LARGEST[ours]) for name, ours in GLMConfig.attribute_map.items()},
    "attention_scale": POSITIVE,
    "initializer_range": NOT_NEGATIVE,
    "choice_length_penalty": NOT_NEGATIVE,
    "embedding_dropout_prob": SHARE,
    "attention_dropout_prob": SHARE,
    "output_dropout_prob": SHARE,
    "classifier_dropout": SHARE,
    "sop_token_id": ID,
    "eop_token_id": ID,
    "pad_token_id": ID,
    "bos_token_id": ID,
    "eos_token_id": ID_OR_IDS,
    "mask_token_ids": IDS,
    "block_position_encoding": SWITCH,
    "use_cache": SWITCH,
    "tie_word_embeddings": Rule(
        lambda value: value is True,
        "true: the output head is the word embedding itself",
    ),
    "hidden_act": NAME,
    "pool_token": NAME,
    "architectures": NAMES,
    "id2label": LABELS,
    "label2id": LABELS,
}


def check_values(values: dict, source: str):
    """Raise if a value has another type than GLM needs, or no sense."""
    for name, value in values.items():
        rule = KERNEL if "_implementation" in name else RULES.get(name)
        if rule is not None and not rule.fits(value):
            said = repr(value)
            said = said if len(said) <= 60 else f"{said[:60]}..."
            raise RepositoryError(f"{source} says {name} {said}, where {rule.needed} is needed.")
    heads, hidden = values.get("num_attention_heads"), values.get("hidden_size")
    if heads and hidden and hidden % heads:
        raise RepositoryError(
            f"{source}: {heads} attention heads do not divide the hidden size {hidden}; pass the "
            "right number with --num-attention-heads."
        )


# --- Configurations and networks ------------------------------------------------------------------


def find_dtype(name: str | None) -> torch.dtype | None:
    """The type of this name; None if nobody asks for one.

    Raises:
        RepositoryError: for a name that weights cannot have.
    """
    if name is not None and name not in DTYPES:
        raise RepositoryError(f"dtype {name} is unknown; choose {', '.join(DTYPES)}.")
    return None if name is None else DTYPES[name]


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
