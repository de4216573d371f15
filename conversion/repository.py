"""Writes a complete Hub repository: configuration, weights, tokenizer, the code that runs them, a model card."""

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
from dataclasses import replace
from pathlib import Path

import torch

from ..configuration_glm import GLMConfig
from ..modeling_glm import GLMForConditionalGeneration, GLMForSequenceClassification
from .checkpoint import Parameter, find_rank_files, read_checkpoint
from .errors import ConversionError
from .hub_port import HubPort, find_hub_port
from .released import RELEASED, Released
from .tokenizers import BUILDERS, build_tokenizer, find_vocabulary, save_tokenizer
from .weights import PROMPT_WEIGHTS, check_names, find_weights, fingerprint, plan_shards, verify_weights, write_safetensors, write_weights


PACKAGE = Path(__file__).resolve().parents[1]
SHIPPED_FILES = ("configuration_glm.py", "modeling_glm.py", "tokenization_glm.py", "pipeline_glm.py")
# What the weights and the tokenizer were when they were converted, see `glm verify`.
FINGERPRINTS = "conversion.json"
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

    Returns:
        The path of the repository.

    Raises:
        ConversionError: one sentence; nothing is written then.
    """
    checkpoint, output = Path(checkpoint), Path(os.path.abspath(output))
    released = find_released(model)
    port = find_hub_port(checkpoint)
    family = first_of(tokenizer, released and released.tokenizer, port and port.family)
    heads = first_of(num_attention_heads, released and released.num_attention_heads, port and port.config.get("num_attention_heads"))
    masks = first_of(task_mask, released and released.task_mask, port and port.task_mask, False)
    if not isinstance(heads, int):
        raise ConversionError("The tensors do not tell the number of heads; pass --model or --num-attention-heads.")
    if family is None or family not in (*BUILDERS, "none"):
        raise ConversionError(f"Pass --model, or --tokenizer with one of {', '.join(BUILDERS)}, none.")
    if dtype is not None and dtype not in DTYPES:
        raise ConversionError(f"dtype {dtype} is unknown; choose {', '.join(DTYPES)}.")
    plan_shards({}, max_shard_size)
    try:
        clean_leftovers(output)
        if os.path.lexists(output) and not overwrite:
            raise ConversionError(f"{output} exists already; choose another place, or pass --overwrite.")
        # Whatever is missing is said before any work, and the source is never replaced.
        sources = port.files if port else find_rank_files(checkpoint)
        if any(file.resolve().is_relative_to(output.resolve()) for file in sources):
            raise ConversionError(f"{output} holds the checkpoint itself; choose another place.")
        vocab = first_of(vocab, port and port.family == family and port.folder or None)
        glm_tokenizer = None if family == "none" else build_tokenizer(family, find_vocabulary(family, vocab), masks)
        if port and glm_tokenizer is not None:
            port.check_tokenizer(glm_tokenizer)

        parameters = port.read_parameters() if port else read_checkpoint(checkpoint)
        prompt = {name: parameters.pop(name) for name in list(parameters) if name.startswith("prompt_spell.")}
        config = read_config(parameters, heads, glm_tokenizer, port)
        if released and num_attention_heads is None:
            check_sizes(model, {"num_layers": released.layers, "hidden_size": released.hidden_size}, config)
        network = build_network(config)
        named = {name if name.startswith(("pool_layer", "multichoice_head")) else f"glm.{name}": p for name, p in parameters.items()}
        check_names(network, named)
        # In the network's order, so that a file does not depend on how the checkpoint was cut.
        named = {name: named[name] for name in network.state_dict()}
        if released and not port:  # the port's repositories have the copy
            named["glm.word_embeddings.weight"] = copy_rows(named["glm.word_embeddings.weight"], model, released)
        if dtype is not None:
            named = {name: replace(parameter, dtype=DTYPES[dtype]) for name, parameter in named.items()}

        output.parent.mkdir(parents=True, exist_ok=True)
        needed, free = sum(parameter.nbytes for parameter in named.values()), shutil.disk_usage(output.parent).free
        if needed > free:
            raise ConversionError(f"{output.parent} has {free / 1e9:.1f} GB free and the weights take {needed / 1e9:.1f} GB; make room or choose another place.")
        unfinished = output.with_name(f"{incomplete_prefix(output)}{secrets.token_hex(4)}")
        try:
            unfinished.mkdir()
            write_repository(unfinished, config, network, named, prompt, glm_tokenizer, max_shard_size)
            take_name(unfinished, output)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise ConversionError(f"The disk of {output.parent} is full; make room or choose another place.") from error
        raise ConversionError(f"{error.filename or output} cannot be used: {error.strerror or error}.") from error
    return output


def first_of(*values):
    """The first value that is said."""
    return next((value for value in values if value is not None), None)


def find_released(model: str | None) -> Released | None:
    if model is not None and model not in RELEASED:
        raise ConversionError(f"{model} is not a released checkpoint; choose one of {', '.join(RELEASED)}.")
    return RELEASED[model] if model is not None else None


# --- What the tensors say ---------------------------------------------------------------------------------------------


def read_config(parameters: dict[str, Parameter], heads: int, tokenizer, port: HubPort | None) -> GLMConfig:
    """The configuration: sizes from the tensors, special ids from the tokenizer, the rest from the old port's if there is one."""
    for table in ("word_embeddings.weight", "transformer.position_embeddings.weight"):
        if table not in parameters:
            raise ConversionError(f"The checkpoint lacks {table}; it is incomplete.")
        if len(parameters[table].shape) != 2 or 0 in parameters[table].shape:
            raise ConversionError(f"{table} has shape {list(parameters[table].shape)} where rows and columns are needed; is it a GLM checkpoint?")
    vocabulary, hidden_size = parameters["word_embeddings.weight"].shape  # (V, H)
    if heads < 1 or hidden_size % heads:
        raise ConversionError(f"{heads} attention heads do not divide the hidden size {hidden_size}; pass --num-attention-heads.")
    block_positions = "transformer.block_position_embeddings.weight" in parameters
    rows = parameters["transformer.position_embeddings.weight"].shape[0]  # P + 1 with block positions, else P
    layers = {int(match[1]) for name in parameters if (match := re.match(r"transformer\.layers\.(\d+)\.", name))}
    absent = next((layer for layer in range(len(layers) or 1) if layer not in layers), None)
    if absent is not None:
        raise ConversionError(f"The checkpoint lacks transformer.layers.{absent}; it is incomplete.")
    options = dict(port.options) if port else {}
    options |= dict(architectures=["GLMForConditionalGeneration"])
    if any(name.startswith(("pool_layer.", "multichoice_head.")) for name in parameters):
        head = parameters.get("multichoice_head.weight")
        if head is None or not head.shape or head.shape[0] < 1:
            raise ConversionError("The checkpoint lacks multichoice_head.weight, the last layer of its classifier; it is incomplete.")
        options |= dict(architectures=["GLMForSequenceClassification"], num_labels=head.shape[0])
        if len(options.get("id2label", ())) != head.shape[0]:  # not names of these labels
            options = {name: value for name, value in options.items() if name not in ("id2label", "label2id")}
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
        config = GLMConfig(**{**options, **sizes, "num_attention_heads": heads, "auto_map": AUTO_MAP, "custom_pipelines": PIPELINES})
    except (ValueError, TypeError) as error:
        raise ConversionError(f"No GLM can have this configuration: {error}") from error
    if port:
        check_sizes(str(port.folder / "config.json"), {name: port.config[name] for name in sizes if name in port.config}, config)
    return config


def check_sizes(source: str, sizes: dict[str, int], config: GLMConfig):
    """Raise if the tensors are of other sizes than `source` says."""
    for name, size in sizes.items():
        if getattr(config, name) != size:
            raise ConversionError(
                f"{source} says {name} {size} and the tensors {getattr(config, name)}; pass the --model it is, or --num-attention-heads "
                "for a model of your own."
            )


def copy_rows(embeddings: Parameter, model: str, released: Released) -> Parameter:
    for rows in released.copied_rows:
        if embeddings.shape[0] <= max(rows):
            raise ConversionError(
                f"{model} copies row {rows[0]} to {rows[1]} and the checkpoint's vocabulary has {embeddings.shape[0]} rows; pass the --model it is."
            )
    return replace(embeddings, copied_rows=released.copied_rows)


def build_network(config: GLMConfig) -> torch.nn.Module:
    """The network without memory for its weights: it knows their names, shapes and order."""
    classes = {network.__name__: network for network in (GLMForConditionalGeneration, GLMForSequenceClassification)}
    with torch.device("meta"):
        return classes[config.architectures[0]](config)


# --- What is written --------------------------------------------------------------------------------------------------


def write_repository(folder: Path, config: GLMConfig, network, parameters: dict, prompt: dict, tokenizer, max_shard_size: str):
    """Write all files and read the weights back. config.json comes last: without it no library takes the folder for a model."""
    digests = write_weights(folder, parameters, max_shard_size)
    if prompt:  # a continuous prompt is no part of Transformers' GLM; its weights are kept
        write_safetensors(folder / PROMPT_WEIGHTS, prompt, advance=lambda count: None)
    generation = {"max_new_tokens": min(DEFAULT_NEW_TOKENS, config.max_sequence_length)}
    fingerprints = {"weights": fingerprint(parameters, digests)}
    if tokenizer is not None:
        generation |= {
            "eos_token_id": [tokenizer.eop_token_id, tokenizer.eos_token_id],
            "pad_token_id": tokenizer.pad_token_id,
        }
        save_tokenizer(tokenizer, folder, model_max_length=config.max_sequence_length)
        fingerprints["tokenizer"] = hash_file(folder / "tokenizer.json")
    write_json(folder / "generation_config.json", generation)
    write_json(folder / FINGERPRINTS, fingerprints)
    for file in SHIPPED_FILES:
        shutil.copyfile(PACKAGE / file, folder / file)
    (folder / "requirements.txt").write_text("torch>=2.6\ntransformers>=4.57\n")
    (folder / "README.md").write_text(model_card(config, tokenizer))

    written = find_weights(folder)
    if verify_weights(network, written) != digests:
        raise ConversionError(f"What was read back from {folder.parent} is not what was written; is the disk damaged?")
    # `torch_dtype` is the name that both Transformers 5 and 4.57 read.
    dtype = str(parameters["glm.word_embeddings.weight"].dtype).removeprefix("torch.")
    values = {name: value for name, value in config.to_dict().items() if name not in ("dtype", "transformers_version")}
    for file in folder.iterdir():
        synchronize(file)
    write_json(folder / "config.json", {**values, "torch_dtype": dtype})
    synchronize(folder / "config.json")
    synchronize(folder)


def write_json(file: Path, content: dict):
    file.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


def hash_file(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def synchronize(path: Path):
    """Wait until the disk has it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def incomplete_prefix(output: Path) -> str:
    return f".{output.name}.incomplete-"


def aside(output: Path) -> Path:
    """Where an existing repository is while a new one takes its name."""
    return output.with_name(f".{output.name}.replaced")


def take_name(unfinished: Path, output: Path):
    """Give a complete repository its name; what has that name is kept if that fails."""
    if os.path.lexists(output):
        output.rename(aside(output))
    try:
        unfinished.rename(output)
    except OSError:
        if os.path.lexists(aside(output)):
            aside(output).rename(output)
        raise
    synchronize(output.parent)
    remove(aside(output))


def clean_leftovers(output: Path):
    """Remove what killed runs left beside `output`, and undo a replacement that did not come to its end."""
    if os.path.lexists(aside(output)) and not os.path.lexists(output):
        aside(output).rename(output)
    remove(aside(output))
    if output.parent.is_dir():
        for leftover in output.parent.iterdir():
            if leftover.name.startswith(incomplete_prefix(output)):
                remove(leftover)


def remove(path: Path):
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def model_card(config: GLMConfig, tokenizer) -> str:
    masks = ", ".join(f"`{mask}`" for mask in tokenizer.masks) if tokenizer is not None else "unknown: no tokenizer was converted"
    return f"""---
library_name: transformers
pipeline_tag: text2text-generation
tags:
- glm
- custom_code
---

# GLM

A General Language Model (Du et al., ACL 2022), pretrained by autoregressive blank infilling: it fills the blanks of a text.
{config.num_layers} layers, hidden size {config.hidden_size}, {config.num_attention_heads} heads; its masks: {masks}.

```python
from transformers import pipeline

fill = pipeline("text2text-generation", model="PATH-OR-NAME-OF-THIS-REPOSITORY", trust_remote_code=True)
print(fill("Ng is an adjunct professor at [MASK].")[0]["filled_text"])
```
"""
