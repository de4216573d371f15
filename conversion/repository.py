"""Writes a complete Hub repository: configuration, weights, tokenizer, the code that runs them, a model card."""

import json
import shutil
import tempfile
from pathlib import Path

import torch
from huggingface_hub import save_torch_state_dict, split_torch_state_dict_into_shards
from tqdm import tqdm

from ..configuration_glm import GLMConfig
from .checkpoint import find_rank_files, read_checkpoint
from .errors import ConversionError
from .released import RELEASED, Released
from .tokenizers import BUILDERS, build_tokenizer, find_vocabulary, save_tokenizer


PACKAGE = Path(__file__).resolve().parents[1]
SHIPPED_FILES = ("configuration_glm.py", "modeling_glm.py", "tokenization_glm.py", "pipeline_glm.py")
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
    """Convert a Megatron checkpoint to a Hub repository that Transformers loads with `trust_remote_code=True`.

    Args:
        checkpoint: a folder with a tracker file, an iteration folder, or the file of the first model-parallel rank.
        output: the repository to write.
        model: name of the released checkpoint, which says what the tensors cannot; the arguments below win over it.
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
    checkpoint, output = Path(checkpoint), Path(output)
    released = find_released(model)
    family = tokenizer if tokenizer is not None else released and released.tokenizer
    heads = num_attention_heads if num_attention_heads is not None else released and released.num_attention_heads
    masks = task_mask if task_mask is not None else bool(released and released.task_mask)
    if heads is None:
        raise ConversionError("The tensors do not tell the number of heads; pass --model or --num-attention-heads.")
    if family is None or family not in (*BUILDERS, "none"):
        raise ConversionError(f"Pass --model, or --tokenizer with one of {', '.join(BUILDERS)}, none.")
    if dtype is not None and dtype not in DTYPES:
        raise ConversionError(f"dtype {dtype} is unknown; choose {', '.join(DTYPES)}.")
    if output.exists() and not overwrite:
        raise ConversionError(f"{output} exists already; choose another place, or pass --overwrite.")
    try:
        split_torch_state_dict_into_shards({}, max_shard_size=max_shard_size)
    except ValueError as error:
        raise ConversionError(f"max_shard_size {max_shard_size} is not a size; pass one such as 5GB or 500MB.") from error
    # Whatever is missing is said before any work, and the source is never replaced.
    if any(file.resolve().is_relative_to(output.resolve()) for file in find_rank_files(checkpoint)):
        raise ConversionError(f"{output} holds the checkpoint itself; choose another place.")
    glm_tokenizer = None if family == "none" else build_tokenizer(family, find_vocabulary(family, vocab), masks)

    parameters = read_checkpoint(checkpoint)
    for source, target in released.copied_rows if released else ():
        rows = parameters["word_embeddings.weight"].clone()  # (V, H)
        if len(rows) <= max(source, target):
            raise ConversionError(f"{model} copies row {source} to {target} and the checkpoint's vocabulary has {len(rows)} rows; pass the --model it is.")
        rows[target] = rows[source]
        parameters["word_embeddings.weight"] = rows
    if dtype is not None:
        parameters = {name: tensor.to(DTYPES[dtype]) for name, tensor in parameters.items()}
    config = read_config(parameters, heads, glm_tokenizer)

    output.parent.mkdir(parents=True, exist_ok=True)
    # Written beside its final name and moved there when complete: there is never half a repository.
    with tempfile.TemporaryDirectory(prefix=f".{output.name}-", dir=output.parent) as temporary:
        unfinished = Path(temporary) / output.name
        unfinished.mkdir()
        write_repository(unfinished, config, parameters, glm_tokenizer, max_shard_size)
        if output.exists():
            output.rename(Path(temporary) / "replaced")
        unfinished.rename(output)
    return output


def find_released(model: str | None) -> Released | None:
    if model is not None and model not in RELEASED:
        raise ConversionError(f"{model} is not a released checkpoint; choose one of {', '.join(RELEASED)}.")
    return RELEASED[model] if model is not None else None


def read_config(parameters: dict[str, torch.Tensor], heads: int, tokenizer) -> GLMConfig:
    """The configuration: sizes from the tensors, special ids from the tokenizer."""
    vocabulary, hidden_size = parameters["word_embeddings.weight"].shape  # (V, H)
    if heads < 1 or hidden_size % heads:
        raise ConversionError(f"{heads} attention heads do not divide the hidden size {hidden_size}; pass --num-attention-heads.")
    block_positions = "transformer.block_position_embeddings.weight" in parameters
    rows = len(parameters["transformer.position_embeddings.weight"])  # P + 1 with block positions, else P
    layers = {name.split(".")[2] for name in parameters if name.startswith("transformer.layers.")}
    options = {}
    if "multichoice_head.weight" in parameters:
        options = dict(num_labels=len(parameters["multichoice_head.weight"]), architectures=["GLMForSequenceClassification"])
    if tokenizer is not None:
        if len(tokenizer) > vocabulary:
            raise ConversionError(
                f"The tokenizer has {len(tokenizer)} tokens and the checkpoint's vocabulary {vocabulary} rows; pass the "
                "--model or --tokenizer that belongs to the checkpoint."
            )
        options |= dict(
            sop_token_id=tokenizer.sop_token_id,
            eop_token_id=tokenizer.eop_token_id,
            mask_token_ids=tokenizer.mask_token_ids,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    return GLMConfig(
        **{
            "architectures": ["GLMForConditionalGeneration"],
            "vocab_size": vocabulary,
            "hidden_size": hidden_size,
            "num_layers": len(layers),
            "num_attention_heads": heads,
            "max_sequence_length": rows - 1 if block_positions else rows,
            "block_position_encoding": block_positions,
            "auto_map": AUTO_MAP,
            "custom_pipelines": PIPELINES,
            **options,
        }
    )


def write_repository(folder: Path, config: GLMConfig, parameters: dict, tokenizer, max_shard_size: str):
    dtype = str(parameters["word_embeddings.weight"].dtype).removeprefix("torch.")
    # `torch_dtype` is the name that both Transformers 5 and 4.57 read.
    values = {name: value for name, value in config.to_dict().items() if name not in ("dtype", "transformers_version")}
    write_json(folder / "config.json", {**values, "torch_dtype": dtype})
    generation = {"max_new_tokens": min(DEFAULT_NEW_TOKENS, config.max_sequence_length)}
    if tokenizer is not None:
        generation |= {
            "eos_token_id": [tokenizer.eop_token_id, tokenizer.eos_token_id],
            "pad_token_id": tokenizer.pad_token_id,
        }
        save_tokenizer(tokenizer, folder, model_max_length=config.max_sequence_length)
    write_json(folder / "generation_config.json", generation)
    for file in SHIPPED_FILES:
        shutil.copyfile(PACKAGE / file, folder / file)
    (folder / "requirements.txt").write_text("torch>=2.6\ntransformers>=4.57\n")
    (folder / "README.md").write_text(model_card(config, tokenizer))

    heads = ("pool_layer", "multichoice_head")
    named = {name if name.startswith(heads) else f"glm.{name}": tensor for name, tensor in sorted(parameters.items())}
    owned = {name: own_storage(tensor) for name, tensor in tqdm(named.items(), desc="Writing weights", leave=False)}
    save_torch_state_dict(owned, folder, max_shard_size=max_shard_size, metadata={"format": "pt"})


def own_storage(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor alone in its memory: DeepSpeed may save views of one flat buffer, which cannot be sharded."""
    tensor = tensor.contiguous()
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()


def write_json(file: Path, content: dict):
    file.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


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
