"""Writes a complete Hub repository: configuration, weights, tokenizer, the code that runs them, a model card."""

import hashlib
import json
import math
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import torch

from ..configuration_glm import GLMConfig
from ..modeling_glm import GLMForConditionalGeneration, GLMForSequenceClassification
from ..tokenization_glm import GLMTokenizerFast
from . import hub
from .checkpoint import Parameter, find_rank_files, read_checkpoint
from .errors import ConversionError
from .hub_port import HubPort, find_hub_port
from .model_card import model_card
from .output import new_folder, prepare, synchronize
from .released import RELEASED, Released
from .stored import read_safetensors
from .tokenizers import BUILDERS, build_tokenizer, find_vocabulary, save_tokenizer
from .weights import (
    PROMPT_WEIGHTS,
    check_names,
    checksum,
    find_weights,
    fingerprint,
    plan_shards,
    verify_weights,
    write_safetensors,
    write_weights,
)

PACKAGE = Path(__file__).resolve().parents[1]
SHIPPED_FILES = (
    "configuration_glm.py",
    "blanks_glm.py",
    "modeling_glm.py",
    "generation_glm.py",
    "tokenization_glm.py",
    "pipeline_glm.py",
)
HANDLER = Path(__file__).with_name("handler.py")
# What the weights, the tokenizer and the code were when they were converted: `glm verify` compares.
RECORD = "conversion.json"
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}

# Which class answers each of the library's Auto classes.
AUTO_MAP = {
    "AutoConfig": "configuration_glm.GLMConfig",
    "AutoModel": "modeling_glm.GLMModel",
    "AutoModelForSeq2SeqLM": "modeling_glm.GLMForConditionalGeneration",
    "AutoModelForCausalLM": "modeling_glm.GLMForConditionalGeneration",
    "AutoModelForMultipleChoice": "modeling_glm.GLMForMultipleChoice",
    "AutoModelForSequenceClassification": "modeling_glm.GLMForSequenceClassification",
}
PIPELINES = {
    "text2text-generation": {
        "impl": "pipeline_glm.GLMText2TextGenerationPipeline",
        "pt": ["AutoModelForSeq2SeqLM"],
        "type": "text",
    }
}
# Tokens that the original's interactive generation makes at most for one text.
DEFAULT_NEW_TOKENS = 512


# The original pads a vocabulary to a multiple of this.
VOCABULARY_MULTIPLE = 128


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
) -> Path:
    """Convert a checkpoint to a Hub repository that Transformers loads with `trust_remote_code=True`.

    The repository is written beside its final name, read back and run, and moved there when it is right.

    Args:
        checkpoint: a folder with a tracker file, an iteration folder, the file of the first model-parallel rank, or a
            repository of the old Hub port.
        output: the repository to write.
        model: name of the released checkpoint, which says what the tensors cannot; the arguments below win over it, and it
            over what a repository of the old port says.
        vocab: folder, file or Hub name of the vocabulary.
        num_attention_heads: heads of the network.
        tokenizer: "gpt2", "roberta", "bert", "chinese", or "none" for a repository without a tokenizer.
        task_mask: whether the model was trained with `[gMASK]` and `[sMASK]`.
        dtype: "float16", "bfloat16" or "float32"; that of the checkpoint by default.
        max_shard_size: largest file of weights.
        overwrite: replace an existing repository.
        push_to_hub: name on the Hub to upload the repository to.

    Returns:
        The path of the repository.

    Raises:
        ConversionError: one sentence; nothing is written then, or only the upload failed.
    """
    checkpoint, output = Path(checkpoint), Path(os.path.abspath(output))
    released = find_released(model)
    port = find_hub_port(checkpoint)
    family = first_of(tokenizer, released and released.tokenizer, port and port.family)
    heads = first_of(
        num_attention_heads,
        released and released.num_attention_heads,
        port and port.config.get("num_attention_heads"),
    )
    masks = first_of(task_mask, released and released.task_mask, port and port.task_mask, False)
    if not isinstance(heads, int):
        raise ConversionError(
            "The tensors do not tell the number of heads; pass --model or --num-attention-heads."
        )
    if family is None or family not in (*BUILDERS, "none"):
        raise ConversionError(
            f"Pass --model, or --tokenizer with one of {', '.join(BUILDERS)}, none."
        )
    if dtype is not None and dtype not in DTYPES:
        raise ConversionError(f"dtype {dtype} is unknown; choose {', '.join(DTYPES)}.")
    plan_shards({}, max_shard_size)
    if push_to_hub is not None:
        hub.check_upload(push_to_hub)
    # Whatever is missing is said before any work, and the source is never replaced.
    prepare(output, port.files if port else find_rank_files(checkpoint), overwrite)
    vocab = first_of(vocab, (port and port.family == family and port.folder) or None)
    glm_tokenizer = (
        None if family == "none" else build_tokenizer(family, find_vocabulary(family, vocab), masks)
    )
    if port and glm_tokenizer is not None:
        port.check_tokenizer(glm_tokenizer)

    parameters = port.read_parameters() if port else read_checkpoint(checkpoint)
    prompt = {name: parameters.pop(name) for name in list(parameters) if is_prompt(name)}
    config = read_config(parameters, heads, glm_tokenizer, port)
    if released and num_attention_heads is None:
        check_sizes(
            model, {"num_layers": released.layers, "hidden_size": released.hidden_size}, config
        )
    stored = {parameter.dtype for parameter in parameters.values()}
    if dtype is None and len(stored) > 1:
        names = ", ".join(sorted(str(kind).removeprefix("torch.") for kind in stored))
        raise ConversionError(
            f"The checkpoint's tensors have the dtypes {names}, and a network has one; pass --dtype."
        )
    copied_rows = (
        released.copied_rows if released and not port else ()
    )  # the port's repositories have the copy
    named = repository_names(parameters, copied_rows, DTYPES.get(dtype))
    write_repository(
        output,
        config,
        named,
        glm_tokenizer,
        prompt,
        copied_rows,
        max_shard_size,
        name=push_to_hub,
        released=model
        if released
        and (released.layers, released.hidden_size) == (config.num_layers, config.hidden_size)
        else None,
        language={"chinese": "zh", "none": None}.get(family, "en"),
    )
    if push_to_hub is not None:
        hub.push_to_hub(output, push_to_hub)
    return output


def fills_blanks(config: GLMConfig) -> bool:
    """Whether the network is the one that writes text, not a classifier."""
    return config.architectures == ["GLMForConditionalGeneration"]


def write_repository(
    output: Path,
    config: GLMConfig,
    parameters: dict[str, Parameter],
    tokenizer: GLMTokenizerFast | None,
    prompt: dict[str, Parameter] | None = None,
    copied_rows: tuple[tuple[int, int], ...] = (),
    max_shard_size: str = "5GB",
    name: str | None = None,
    released: str | None = None,
    language: str | None = None,
):
    """Write a repository beside its final name, read it back and run it, and give it its name when it is right.

    Args:
        output: an absolute path; what is there is replaced.
        parameters: those of the network, by their names there.
        prompt: the weights of a continuous prompt, which is no part of the network: they go into a file of their own.
        copied_rows: the rows of the word embeddings that `parameters` copy, for the record.
        name, released, language: for the model card, see `model_card`; the name is that of the folder by default.
    """
    prompt, network = prompt or {}, build_network(config)
    check_names(network, parameters)
    # In the network's order, so that a file does not depend on how the checkpoint was cut.
    parameters = {name: parameters[name] for name in network.state_dict()}
    with new_folder(
        output, sum(parameter.nbytes for parameter in (*parameters.values(), *prompt.values()))
    ) as folder:
        written = checksums = write_weights(folder, parameters, max_shard_size)
        if prompt:
            written = checksums | write_safetensors(
                folder / PROMPT_WEIGHTS, prompt, advance=lambda count: None
            )
        record = {"weights": fingerprint(parameters, checksums), "copied_rows": copied_rows}
        dtype, count = (
            parameters["glm.word_embeddings.weight"].dtype,
            sum(math.prod(parameter.shape) for parameter in parameters.values()),
        )
        write_files(
            folder,
            config,
            tokenizer,
            record,
            model_card(name or output.name, config, tokenizer, count, dtype, released, language),
        )
        read_back = verify_weights(network, find_weights(folder))
        if prompt:
            prompt_weights = read_safetensors(folder / PROMPT_WEIGHTS)
            read_back |= {name: checksum(tensor) for name, tensor in prompt_weights.items()}
        if read_back != written:
            raise ConversionError(
                f"What was read back from {output.parent} is not what was written; is the disk damaged?"
            )
        for file in folder.iterdir():
            synchronize(file)
        # config.json comes last, and whole: without it no library takes the folder for a model.
        write_config(folder / ".config.json", config, dtype)
        synchronize(folder / ".config.json")
        (folder / ".config.json").rename(folder / "config.json")
        synchronize(folder)


def first_of(*values):
    """The first value that is said."""
    return next((value for value in values if value is not None), None)


def find_released(model: str | None) -> Released | None:
    if model is not None and model not in RELEASED:
        raise ConversionError(
            f"{model} is not a released checkpoint; choose one of {', '.join(RELEASED)}."
        )
    return RELEASED[model] if model is not None else None


# --- What the tensors say ---------------------------------------------------------------------------------------------


def read_config(
    parameters: dict[str, Parameter],
    heads: int,
    tokenizer: GLMTokenizerFast | None,
    port: HubPort | None,
) -> GLMConfig:
    """The configuration: sizes from the tensors, special ids from the tokenizer, the rest from the old port's if there is one."""
    for table in ("word_embeddings.weight", "transformer.position_embeddings.weight"):
        if table not in parameters:
            raise ConversionError(f"The checkpoint lacks {table}; it is incomplete.")
        if len(parameters[table].shape) != 2 or 0 in parameters[table].shape:
            raise ConversionError(
                f"{table} has shape {list(parameters[table].shape)} where rows and columns are needed; is it a GLM checkpoint?"
            )
    vocabulary, hidden_size = parameters["word_embeddings.weight"].shape  # (V, H)
    if heads < 1 or hidden_size % heads:
        raise ConversionError(
            f"{heads} attention heads do not divide the hidden size {hidden_size}; pass --num-attention-heads."
        )
    block_positions = "transformer.block_position_embeddings.weight" in parameters
    rows = parameters["transformer.position_embeddings.weight"].shape[
        0
    ]  # P + 1 with block positions, else P
    layers = {
        int(match[1])
        for name in parameters
        if (match := re.match(r"transformer\.layers\.(\d+)\.", name))
    }
    absent = next((layer for layer in range(len(layers) or 1) if layer not in layers), None)
    if absent is not None:
        raise ConversionError(
            f"The checkpoint lacks transformer.layers.{absent}; it is incomplete."
        )
    options = dict(port.options) if port else {}
    options |= dict(architectures=["GLMForConditionalGeneration"])
    if any(name.startswith(("pool_layer.", "multichoice_head.")) for name in parameters):
        head = parameters.get("multichoice_head.weight")
        if head is None or not head.shape or head.shape[0] < 1:
            raise ConversionError(
                "The checkpoint lacks multichoice_head.weight, the last layer of its classifier; it is incomplete."
            )
        options |= dict(architectures=["GLMForSequenceClassification"], num_labels=head.shape[0])
        if len(options.get("id2label", ())) != head.shape[0]:  # not names of these labels
            options = {
                name: value
                for name, value in options.items()
                if name not in ("id2label", "label2id")
            }
    if tokenizer is not None:
        if not len(tokenizer) <= vocabulary < len(tokenizer) + VOCABULARY_MULTIPLE:
            raise ConversionError(
                f"The tokenizer has {len(tokenizer)} tokens and the checkpoint's vocabulary {vocabulary} rows, which do not belong "
                "together; pass the --model or --tokenizer of the checkpoint, or --tokenizer none."
            )
        options |= dict(
            sop_token_id=tokenizer.sop_token_id,
            eop_token_id=tokenizer.eop_token_id,
            mask_token_ids=tokenizer.mask_token_ids,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    sizes = {
        "vocab_size": vocabulary,
        "hidden_size": hidden_size,
        "num_layers": len(layers),
        "max_sequence_length": rows - 1 if block_positions else rows,
        "block_position_encoding": block_positions,
    }
    try:
        config = GLMConfig(
            **{
                **options,
                **sizes,
                "num_attention_heads": heads,
                "auto_map": AUTO_MAP,
                "custom_pipelines": PIPELINES,
            }
        )
    except (ValueError, TypeError) as error:
        raise ConversionError(f"No GLM can have this configuration: {error}") from error
    if port:
        check_sizes(
            str(port.folder / "config.json"),
            {name: port.config[name] for name in sizes if name in port.config},
            config,
        )
    return config


def read_repository_config(repository: Path) -> GLMConfig:
    """The configuration of a converted repository."""
    try:
        values = json.loads((repository / "config.json").read_text(encoding="utf-8"))
        if values.get("model_type") != GLMConfig.model_type:
            raise ConversionError(
                f'{repository} has model type "{values.get("model_type")}"; convert it first.'
            )
        return GLMConfig(**values)
    except OSError as error:
        raise ConversionError(
            f"{repository} is no repository: {error.strerror}: {error.filename}."
        ) from error
    except (ValueError, TypeError, AttributeError, ZeroDivisionError) as error:
        raise ConversionError(
            f"{repository / 'config.json'} is no configuration of GLM: {error}."
        ) from error


def check_sizes(source: str, sizes: dict[str, int], config: GLMConfig):
    """Raise if the tensors are of other sizes than `source` says."""
    for name, size in sizes.items():
        if getattr(config, name) != size:
            raise ConversionError(
                f"{source} says {name} {size} and the tensors {getattr(config, name)}; pass the --model it is, or --num-attention-heads "
                "for a model of your own."
            )


def is_prompt(name: str) -> bool:
    return name.startswith("prompt_spell.")


def repository_names(
    parameters: dict[str, Parameter],
    copied_rows: tuple[tuple[int, int], ...] = (),
    dtype: torch.dtype | None = None,
) -> dict[str, Parameter]:
    """The parameters as a repository has them: the network's named `glm.`, with copied rows, in `dtype` if it is given."""
    named = {}
    for name, parameter in parameters.items():
        rows = copied_rows if name == "word_embeddings.weight" else ()
        for source, target in rows:
            if parameter.shape[0] <= max(source, target):
                raise ConversionError(
                    f"Row {source} is to be copied to {target} and the checkpoint's vocabulary has {parameter.shape[0]} rows; pass the --model it is."
                )
        parameter = replace(parameter, copied_rows=rows, dtype=dtype or parameter.dtype)
        named[name if name.startswith(("pool_layer.", "multichoice_head.")) else f"glm.{name}"] = (
            parameter
        )
    return named


def build_network(config: GLMConfig) -> torch.nn.Module:
    """The network without memory for its weights: it knows their names, shapes and order."""
    classes = {
        network.__name__: network
        for network in (GLMForConditionalGeneration, GLMForSequenceClassification)
    }
    with torch.device("meta"):
        return classes[config.architectures[0]](config)


# --- What is written --------------------------------------------------------------------------------------------------


def write_files(
    folder: Path, config: GLMConfig, tokenizer: GLMTokenizerFast | None, record: dict, card: str
):
    """Write everything but the weights and config.json; `record` and the hashes of these files go into conversion.json."""
    # Without block positions each blank takes as many positions as it may have tokens, and the context needs some, too.
    longest = (
        config.max_sequence_length
        if config.block_position_encoding
        else config.max_sequence_length // 4
    )
    generation = {"max_new_tokens": min(DEFAULT_NEW_TOKENS, longest)}
    for file in SHIPPED_FILES:
        shutil.copyfile(PACKAGE / file, folder / file)
    record["files"] = {file: hash_file(folder / file) for file in SHIPPED_FILES}
    if tokenizer is not None:
        generation |= {
            "eos_token_id": [tokenizer.eop_token_id, tokenizer.eos_token_id],
            "pad_token_id": tokenizer.pad_token_id,
        }
        save_tokenizer(tokenizer, folder, model_max_length=config.max_sequence_length)
        if fills_blanks(config):
            shutil.copyfile(HANDLER, folder / HANDLER.name)
        record["files"]["tokenizer.json"] = hash_file(folder / "tokenizer.json")
    write_json(folder / "generation_config.json", generation)
    write_json(folder / RECORD, record)
    (folder / "requirements.txt").write_text("torch>=2.6\ntransformers>=4.57\n")
    (folder / "README.md").write_text(card, encoding="utf-8")


def write_config(file: Path, config: GLMConfig, dtype: torch.dtype):
    # `torch_dtype` is the name that both Transformers 5 and 4.57 read.
    values = {
        name: value
        for name, value in config.to_dict().items()
        if name not in ("dtype", "transformers_version")
    }
    write_json(file, {**values, "torch_dtype": str(dtype).removeprefix("torch.")})


def write_json(file: Path, content: dict):
    file.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


def hash_file(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
