"""Converts a checkpoint, or a repository of the old Hub port, to a complete Hub repository."""

import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from ..configuration_glm import AUTO_MAP, PIPELINES, GLMConfig
from ..hub_repository import upload
from ..hub_repository.config import (
    VOCABULARY_MULTIPLE,
    build_config,
    find_dtype,
)
from ..hub_repository.errors import RepositoryError
from ..hub_repository.files import read_json
from ..hub_repository.origin import RELEASED_ORIGINS, Origin
from ..hub_repository.output import clear_errors, prepare
from ..hub_repository.repository import (
    check_replaceable,
    check_text_vocabulary,
    write_repository,
)
from ..hub_repository.weights import LazyTensor, plan_shards
from ..tokenization_glm import GLMTokenizerFast
from .checkpoint import converted, dtype_name, find_rank_files, read_checkpoint
from .hub_port import HubPort, find_hub_port
from .released import RELEASED, Released
from .tokenizers import BUILDERS, build_tokenizer, find_vocabulary

logger = logging.getLogger(__name__)

HEADS = ("pool_layer.", "multichoice_head.")


def convert_checkpoint(
    checkpoint: str | Path,
    output: str | Path,
    *,
    model: str | None = None,
    vocab: str | Path | None = None,
    num_attention_heads: int | None = None,
    tokenizer: str | None = None,
    task_mask: bool | None = None,
    dtype: str | None = None,
    max_shard_size: str = "5GB",
    overwrite: bool = False,
    push_to_hub: str | None = None,
    results: str | Path | None = None,
    space: bool = False,
    origin: Origin | None = None,
) -> Path:
    """Convert a checkpoint to a Hub repository, which loads with `trust_remote_code=True`.

    The repository is written beside its final name, read back and run, and moved there when it is
    right.

    Args:
        checkpoint: a folder with a tracker file, an iteration folder, the file of the first
            model-parallel rank, or a repository of the old Hub port.
        output: the repository to write.
        model: name of the released checkpoint, which says what the tensors cannot; the arguments
            below win over it, and it over what a repository of the old port says.
        vocab: folder, file or Hub name of the vocabulary.
        num_attention_heads: heads of the network.
        tokenizer: "gpt2", "roberta", "bert", "chinese", or "none" for a repository without one.
        task_mask: whether the model was trained with `[gMASK]` and `[sMASK]`.
        dtype: "float16", "bfloat16" or "float32"; that of the checkpoint by default.
        max_shard_size: largest file of weights.
        overwrite: replace a repository that this program wrote.
        push_to_hub: name on the Hub to upload the repository to.
        results: a record of `glm evaluate` or `glm score`, whose numbers the model card shows.
        space: add `app.py`, the page that the Hub shows where the repository is a Space.
        origin: what the model card says of a model that is not a released one.

    Returns:
        The path of the repository.

    Raises:
        ConversionError: one sentence; nothing is written then, or only the upload failed.
    """
    output = Path(os.path.abspath(output))
    source = find_source(Path(checkpoint), model, num_attention_heads, tokenizer, task_mask)
    wanted = find_dtype(dtype)
    plan_shards({}, max_shard_size)
    measured = read_results(Path(results)) if results is not None else []
    if push_to_hub is not None:
        upload.check_upload(push_to_hub)
    vocab = first_of(vocab, source.own_vocabulary)
    files = [] if source.family is None else find_vocabulary(source.family, vocab)
    make_place(output, source, vocab, files, overwrite)

    glm_tokenizer = source.build_tokenizer(files)
    parameters = source.read_parameters()
    prompt = {name: parameters.pop(name) for name in list(parameters) if is_prompt(name)}
    config = config_of(parameters, source.heads, glm_tokenizer, source.port)
    if num_attention_heads is None:  # who gives them has a model of another size
        source.check_sizes(config)
    check_one_dtype(parameters, wanted)
    write_repository(
        output,
        config,
        repository_names(parameters, source.copied_rows, wanted),
        glm_tokenizer,
        prompt,
        source.copied_rows,
        max_shard_size,
        name=push_to_hub,
        origin=first_of(source.origin(config), origin),
        language=source.language,
        results=measured,
        space=space,
    )
    if push_to_hub is not None:
        upload.push_to_hub(output, push_to_hub)
    return output


# --- What the tensors do not tell -----------------------------------------------------------------


@dataclass(frozen=True)
class Source:
    """What is converted, and what its tensors do not tell.

    port: the old repository that it is, if it is one.
    model, released: the name of a released checkpoint, and what is known of it.
    family: of the tokenizer; None for a repository without one.
    heads, task_mask: of the network, and of its training.
    """

    checkpoint: Path
    port: HubPort | None
    model: str | None
    released: Released | None
    family: str | None
    heads: int
    task_mask: bool

    @property
    def files(self) -> list[Path]:
        return self.port.files if self.port else find_rank_files(self.checkpoint)

    @property
    def own_vocabulary(self) -> Path | None:
        """Where the vocabulary is if nobody says it: an old repository has it."""
        if self.port is None or self.family != self.port.family or self.family is None:
            return None
        return self.port.folder

    @property
    def copied_rows(self) -> tuple[tuple[int, int], ...]:
        """Rows of the word embeddings that are copied; an old repository has the copies."""
        return self.released.copied_rows if self.released and not self.port else ()

    @property
    def language(self) -> str | None:
        if self.family is None:
            return None
        return "zh" if self.family == "chinese" else "en"

    def build_tokenizer(self, files: list[Path]) -> GLMTokenizerFast | None:
        if self.family is None:
            return None
        tokenizer = build_tokenizer(self.family, files, self.task_mask)
        if self.port:
            self.port.check_tokenizer(tokenizer)
        return tokenizer

    def read_parameters(self) -> dict[str, LazyTensor]:
        return self.port.read_parameters() if self.port else read_checkpoint(self.checkpoint)

    def check_sizes(self, config: GLMConfig):
        """Raise if the tensors are of other sizes than the released checkpoint's."""
        if self.model and self.released:
            sizes = {"num_layers": self.released.layers, "hidden_size": self.released.hidden_size}
            check_same_sizes(self.model, sizes, config)

    def origin(self, config: GLMConfig) -> Origin | None:
        """What the model card says of a released checkpoint; None for one that is shaped after."""
        shape = (config.num_layers, config.hidden_size)
        if not self.model or not self.released:
            return None
        is_released = (self.released.layers, self.released.hidden_size) == shape
        return RELEASED_ORIGINS[self.model] if is_released else None


def find_source(
    checkpoint: Path,
    model: str | None,
    num_attention_heads: int | None,
    tokenizer: str | None,
    task_mask: bool | None,
) -> Source:
    """What is converted; arguments of `convert_checkpoint`, whose order says which one wins.

    Raises:
        RepositoryError: if a name is not known, or nobody tells the heads or the tokenizer.
    """
    released = find_released(model)
    port = find_hub_port(checkpoint)
    family = first_of(tokenizer, released and released.tokenizer, port and port.family)
    heads = first_of(
        num_attention_heads,
        released and released.num_attention_heads,
        port and port.config.get("num_attention_heads"),
    )
    masks = first_of(task_mask, released and released.task_mask, port and port.task_mask, False)
    if type(heads) is not int:
        raise RepositoryError(
            "The tensors do not tell the number of heads; pass --model or --num-attention-heads."
        )
    if family is None or family not in (*BUILDERS, "none"):
        raise RepositoryError(
            f"Pass --model, or --tokenizer with one of {', '.join(BUILDERS)}, none."
        )
    return Source(
        checkpoint,
        port,
        model,
        released,
        None if family == "none" else family,
        heads,
        masks,
    )


def make_place(
    output: Path,
    source: Source,
    vocab: str | Path | None,
    files: list[Path],
    overwrite: bool,
):
    """Raise, before any work, if the repository cannot be written: what is read is never replaced.

    Args:
        vocab: what the `files` of the vocabulary were found in.
    """
    read = [*source.files, *files]
    if vocab is not None and os.path.exists(vocab):
        read.append(Path(vocab))
    prepare(output, read, overwrite, "choose another place, or pass --overwrite")
    with clear_errors(output):
        check_replaceable(output)


def first_of(*values):
    """The first value that is said."""
    return next((value for value in values if value is not None), None)


def find_released(model: str | None) -> Released | None:
    if model is not None and model not in RELEASED:
        raise RepositoryError(
            f"{model} is not a released checkpoint; choose one of {', '.join(RELEASED)}."
        )
    return RELEASED[model] if model is not None else None


def read_results(record: Path) -> list[dict]:
    """What was measured, of a record of `glm evaluate` or `glm score`."""
    results = read_json(record).get("results")
    fields = {"task", "metric", "value", "error", "count", "of"}
    if not isinstance(results, list) or not all(
        isinstance(measure, dict) and measure.keys() >= fields for measure in results
    ):
        raise RepositoryError(f"{record} is no record of glm evaluate or glm score.")
    return results


def is_prompt(name: str) -> bool:
    return name.startswith("prompt_spell.")


# --- What the tensors say -------------------------------------------------------------------------


def check_one_dtype(parameters: Mapping[str, LazyTensor], wanted: torch.dtype | None):
    """Raise if the tensors have several, and nobody says which one the network is to have."""
    stored = {parameter.dtype for parameter in parameters.values()}
    if wanted is None and len(stored) > 1:
        names = ", ".join(sorted(map(dtype_name, stored)))
        raise RepositoryError(
            f"The checkpoint's tensors have the dtypes {names}; a network has one: pass --dtype."
        )


def config_of(
    parameters: Mapping[str, LazyTensor],
    heads: int,
    tokenizer: GLMTokenizerFast | None,
    port: HubPort | None,
) -> GLMConfig:
    """The configuration: sizes from the tensors, special ids from the tokenizer.

    The rest is the old port's, if there is one.
    """
    sizes = sizes_of(parameters, heads)
    options = (port.options if port else {}) | {"architectures": ["GLMForConditionalGeneration"]}
    if any(name.startswith(HEADS) for name in parameters):
        labels = count_labels(parameters)
        options |= {"architectures": ["GLMForSequenceClassification"], "num_labels": labels}
        if len(options.get("id2label", ())) != labels:  # not names of these labels
            options.pop("id2label", None)
            options.pop("label2id", None)
    if tokenizer is not None:
        check_vocabulary(tokenizer, sizes["vocab_size"])
        if note := check_text_vocabulary(tokenizer, sizes["vocab_size"]):
            logger.warning("A remark on the tokenizer: %s.", note)
        options |= {
            "sop_token_id": tokenizer.sop_token_id,
            "eop_token_id": tokenizer.eop_token_id,
            "mask_token_ids": tokenizer.mask_token_ids,
            "pad_token_id": tokenizer.pad_token_id,
            "eos_token_id": tokenizer.eos_token_id,
        }
    source = str(port.folder / "config.json") if port else "The checkpoint"
    config = build_config(
        {
            **options,
            **sizes,
            "num_attention_heads": heads,
            "auto_map": AUTO_MAP,
            "custom_pipelines": PIPELINES,
        },
        source,
    )
    if port:
        said = {name: port.config[name] for name in sizes if name in port.config}
        check_same_sizes(source, said, config)
    return config


def sizes_of(parameters: Mapping[str, LazyTensor], heads: int) -> dict[str, int | bool]:
    """The sizes that the tensors have."""
    for table in ("word_embeddings.weight", "transformer.position_embeddings.weight"):
        if table not in parameters:
            raise RepositoryError(f"The checkpoint lacks {table}; it is incomplete.")
        if len(parameters[table].shape) != 2 or 0 in parameters[table].shape:
            raise RepositoryError(
                f"{table} has shape {list(parameters[table].shape)} where rows and columns are "
                "needed; is it a GLM checkpoint?"
            )
    vocabulary, hidden_size = parameters["word_embeddings.weight"].shape  # (V, H)
    if heads < 1 or hidden_size % heads:
        raise RepositoryError(
            f"{heads} attention heads do not divide the hidden size {hidden_size}; pass "
            "--num-attention-heads."
        )
    block_positions = "transformer.block_position_embeddings.weight" in parameters
    # P + 1 with block positions, else P
    rows = parameters["transformer.position_embeddings.weight"].shape[0]
    layers = {
        int(match[1])
        for name in parameters
        if (match := re.match(r"transformer\.layers\.(\d{1,9})\.", name))
    }
    absent = next((layer for layer in range(len(layers) or 1) if layer not in layers), None)
    if absent is not None:
        raise RepositoryError(
            f"The checkpoint lacks transformer.layers.{absent}; it is incomplete."
        )
    return {
        "vocab_size": vocabulary,
        "hidden_size": hidden_size,
        "num_layers": len(layers),
        "max_sequence_length": rows - 1 if block_positions else rows,
        "block_position_encoding": block_positions,
    }


def count_labels(parameters: Mapping[str, LazyTensor]) -> int:
    head = parameters.get("multichoice_head.weight")
    if head is None or not head.shape or head.shape[0] < 1:
        raise RepositoryError(
            "The checkpoint lacks multichoice_head.weight, the last layer of its classifier; it "
            "is incomplete."
        )
    return head.shape[0]


def check_vocabulary(tokenizer: GLMTokenizerFast, rows: int):
    """Raise if the tokenizer's ids, padded as the original does, are not the embedding's rows."""
    if not len(tokenizer) <= rows < len(tokenizer) + VOCABULARY_MULTIPLE:
        raise RepositoryError(
            f"The tokenizer has {len(tokenizer)} tokens and the checkpoint's vocabulary {rows} "
            "rows, which do not belong together; pass the --model or --tokenizer of the "
            "checkpoint, or --tokenizer none."
        )


def check_same_sizes(source: str, sizes: Mapping[str, int], config: GLMConfig):
    """Raise if the tensors are of other sizes than `source` says."""
    for name, size in sizes.items():
        if getattr(config, name) != size:
            raise RepositoryError(
                f"{source} says {name} {size} and the tensors {getattr(config, name)}; pass the "
                "--model it is, or --num-attention-heads for a model of your own."
            )


def repository_names(
    parameters: Mapping[str, LazyTensor],
    copied_rows: tuple[tuple[int, int], ...] = (),
    dtype: torch.dtype | None = None,
) -> dict[str, LazyTensor]:
    """The parameters as a repository has them.

    The network's are named `glm.`, rows are copied, and all are in `dtype` if it is given.
    """
    named = {}
    for name, parameter in parameters.items():
        rows = copied_rows if name == "word_embeddings.weight" else ()
        for source, target in rows:
            if parameter.shape[0] <= max(source, target):
                raise RepositoryError(
                    f"Row {source} is to be copied to {target} and the checkpoint's vocabulary "
                    f"has {parameter.shape[0]} rows; pass the --model it is."
                )
        stored_name = name if name.startswith(HEADS) else f"glm.{name}"
        named[stored_name] = converted(name, parameter, dtype or parameter.dtype, rows)
    return named
