"""LoRA for GLM, by peft: small matrices are trained beside the network's, which stay as they are.

What peft needs to be told of GLM is told here: the matrices, the heads, a rank that suits the size
of the model. The prompt methods of peft need nothing of it (docs/adapters.md).
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from torch import nn
from transformers import PreTrainedModel

from ..configuration_glm import LORA_TARGETS

# Share of the weights that is trained at most, heads apart.
LARGEST_SHARE = 0.02
# 4 to 8 is where more rank stops to help in the LoRA paper (Hu et al. 2022, section 7.2).
RANK = 8
# That of the original's own layers, and of the paper's GPT-2 (Hu et al. 2022, table 11).
DROPOUT = 0.1
# One parameter is the word embedding and the output head: a change of one of them, once merged,
# would change the other.
TIED = ("lm_head", "word_embeddings")
# New in a classifier, and trained whole.
HEADS = ("pool_layer", "multichoice_head")


def add_lora(
    model: PreTrainedModel,
    rank: int | None = None,
    alpha: int | None = None,
    dropout: float = DROPOUT,
    targets: Sequence[str] = LORA_TARGETS,
) -> PeftModel:
    """The model with LoRA, of which nothing else is trained but a classifier's head.

    Args:
        model: any GLM; it is changed in place.
        rank: of the added matrices; 8 by default, or less where that were more than 2 percent of
            the weights.
        alpha: alpha / rank is the scale of what is added; twice the rank by default, so that the
            scale, and with it the best learning rate, does not depend on the rank.
        dropout: on what the added matrices read.
        targets: names of the matrices; by default all four of a layer.

    Raises:
        ValueError: if a target is the word embedding, which is the output head too, or nothing in
            the model has its name.
    """
    check_targets(model, targets)
    rank = default_rank(model, targets) if rank is None else rank
    heads = [name for name in HEADS if hasattr(model, name)]
    config = LoraConfig(
        r=rank,
        lora_alpha=2 * rank if alpha is None else alpha,
        lora_dropout=dropout,
        target_modules=list(targets),
        modules_to_save=heads or None,
        task_type=task_type(model),
    )
    return get_peft_model(model, config)


def check_targets(model: nn.Module, targets: Sequence[str]) -> None:
    """Raise a ValueError for targets that cannot be adapted."""
    for target in targets:
        if target.rpartition(".")[-1] in TIED:
            raise ValueError(
                f"{target} is the word embedding and the output head at once, and cannot be "
                f"adapted; choose from {', '.join(LORA_TARGETS)}."
            )
        if not any(is_target(name, [target]) for name, _ in model.named_modules()):
            raise ValueError(
                f"The model has no {target} to adapt; choose from {', '.join(LORA_TARGETS)}."
            )


def is_target(name: str, targets: Sequence[str]) -> bool:
    """Whether the module of this name is one of the targets, as peft takes them."""
    return any(f".{name}".endswith(f".{target}") for target in targets)


def default_rank(model: nn.Module, targets: Sequence[str]) -> int:
    """The largest of 8, 4, 2, 1 with which no more than 2 percent of the weights are trained."""
    added = 0  # for each rank
    for name, module in model.named_modules():
        if is_target(name, targets) and isinstance(module, nn.Linear):
            added += module.in_features + module.out_features
    weights = sum(weight.numel() for weight in model.parameters())
    rank = RANK
    while rank > 1 and rank * added > LARGEST_SHARE * (weights + rank * added):
        rank //= 2
    return rank


def task_type(model: PreTrainedModel) -> TaskType | None:
    """What peft calls the model's task; it has no word for multiple choice."""
    if model.can_generate():
        return TaskType.CAUSAL_LM  # GLM has no decoder beside its network
    if hasattr(model, "multichoice_head"):
        return TaskType.SEQ_CLS
    return None


def save_adapter(
    model: PeftModel,
    folder: str | Path,
    base: str | None = None,
    weights: dict[str, torch.Tensor] | None = None,
) -> Path:
    """Write the adapter alone: its weights, and where the model is that it belongs to.

    Whoever has the folder loads both by
    `AutoPeftModelForCausalLM.from_pretrained(folder, trust_remote_code=True)`.

    Args:
        base: the converted repository of the model, by the name under which others find it; where
            the model was loaded from by default.
        weights: of the whole model, where it is spread over processes.

    Raises:
        ValueError: if it is not known where the model is.
    """
    for config in model.peft_config.values():
        config.base_model_name_or_path = base or config.base_model_name_or_path
        if not config.base_model_name_or_path:
            raise ValueError("The model was not loaded from a repository; pass its name as base.")
    # No embedding is adapted: peft need not ask the Hub whether one was made larger.
    model.save_pretrained(str(folder), save_embedding_layers=False, state_dict=weights)
    return Path(folder)


def merge(model: PeftModel) -> PreTrainedModel:
    """The GLM whose own weights hold what the adapter added; it is as fast as before.

    Raises:
        ValueError: for a prompt method, whose vectors are no part of a weight.
    """
    if model.active_peft_config.is_prompt_learning:
        raise ValueError(
            "Virtual tokens cannot be merged into weights; save them with save_adapter."
        )
    return model.merge_and_unload()
