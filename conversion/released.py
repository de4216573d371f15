"""The ten released checkpoints: what their tensors cannot tell, and their sizes."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Released:
    """
    layers, hidden_size, num_attention_heads, positions, vocabulary: L, H, A, P, and V, padded to a
        multiple of 128. The tensors are the same for any number of heads that divides the hidden
        size.
    tokenizer: family of the vocabulary.
    task_mask: whether the model was trained with `[gMASK]` and `[sMASK]`.
    copied_rows: word embedding rows to copy, (from, to). glm-10b-chinese was trained with one id,
        50007, for the end of piece and for `[gMASK]`; the copy gives `[gMASK]` the id 50009 that it
        has in glm-large-chinese.
    """

    layers: int
    hidden_size: int
    num_attention_heads: int
    positions: int
    vocabulary: int
    tokenizer: str
    task_mask: bool = False
    copied_rows: tuple[tuple[int, int], ...] = ()

    @property
    def masks(self) -> list[str]:
        return ["[MASK]"] + ["[sMASK]", "[gMASK]"] * self.task_mask

    @property
    def parameters(self) -> int:
        """V H + 2 (P + 1) H + L (12 H^2 + 13 H) + 2 H; the output layer is the word embedding."""
        hidden = self.hidden_size
        embeddings = self.vocabulary * hidden + 2 * (self.positions + 1) * hidden
        return embeddings + self.layers * (12 * hidden**2 + 13 * hidden) + 2 * hidden


RELEASED = {
    "glm-base": Released(12, 768, 12, 512, 30592, "bert"),
    "glm-large": Released(24, 1024, 16, 512, 30592, "bert"),
    "glm-large-chinese": Released(24, 1024, 16, 1024, 50048, "chinese", task_mask=True),
    "glm-doc": Released(24, 1024, 16, 512, 30592, "bert"),
    "glm-410m": Released(30, 1024, 16, 512, 30592, "bert"),
    "glm-515m": Released(30, 1152, 18, 512, 30592, "bert"),
    "glm-roberta-large": Released(24, 1024, 16, 512, 50304, "roberta"),
    "glm-2b": Released(36, 2048, 32, 1024, 50304, "gpt2", task_mask=True),
    "glm-10b": Released(48, 4096, 64, 1024, 50304, "gpt2", task_mask=True),
    "glm-10b-chinese": Released(
        48,
        4096,
        64,
        1024,
        50048,
        "chinese",
        task_mask=True,
        copied_rows=((50007, 50009),),
    ),
}
