"""The ten released checkpoints: what their tensors cannot tell."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Released:
    """
    num_attention_heads: the tensors are the same for any number that divides the width.
    tokenizer: family of the vocabulary.
    task_mask: whether the model was trained with `[gMASK]` and `[sMASK]`.
    copied_rows: word embedding rows to copy, {from: to}. glm-10b-chinese was trained with one id, 50007, for the end of
        piece and for `[gMASK]`; the copy gives `[gMASK]` the id 50009 that it has in glm-large-chinese.
    """

    num_attention_heads: int
    tokenizer: str
    task_mask: bool = False
    copied_rows: tuple[tuple[int, int], ...] = ()


RELEASED = {
    "glm-base": Released(12, "bert"),
    "glm-large": Released(16, "bert"),
    "glm-large-chinese": Released(16, "chinese", task_mask=True),
    "glm-doc": Released(16, "bert"),
    "glm-410m": Released(16, "bert"),
    "glm-515m": Released(18, "bert"),
    "glm-roberta-large": Released(16, "roberta"),
    "glm-2b": Released(32, "gpt2", task_mask=True),
    "glm-10b": Released(64, "gpt2", task_mask=True),
    "glm-10b-chinese": Released(64, "chinese", task_mask=True, copied_rows=((50007, 50009),)),
}
