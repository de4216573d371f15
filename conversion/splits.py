"""How each kind of parameter is cut over the model-parallel ranks: merging and cutting follow it.

Shapes: R rows, C columns, H hidden size, n ranks.
"""

import re
from dataclasses import dataclass

import torch

from ..hub_repository.errors import RepositoryError


@dataclass(frozen=True)
class Split:
    """A cut along `dimension`, which is made of `blocks` that are each cut in n."""

    dimension: int
    blocks: int = 1

    def merge(self, parts: list[torch.Tensor]) -> torch.Tensor:
        """The parameter whose parts these are.

        Rows:                 n of (R/n, ...)  -> (R, ...)
        Columns:              n of (R, C/n)    -> (R, C)
        Query, key and value: n of (3H/n, ...) -> (3, n H/n, ...) -> (3H, ...), for a rank has
                              [Q_r ; K_r ; V_r]
        """
        blocks = [part.unflatten(self.dimension, (self.blocks, -1)) for part in parts]
        merged = torch.cat(blocks, dim=self.dimension + 1)
        return merged.flatten(self.dimension, self.dimension + 1)

    def of_rank(self, merged: torch.Tensor, ranks: int, rank: int) -> torch.Tensor:
        """The part of a parameter that one rank holds: the inverse of `merge`."""
        cut = merged.unflatten(self.dimension, (self.blocks, ranks, -1))
        return cut.select(self.dimension + 1, rank).flatten(self.dimension, self.dimension + 1)

    def fits(self, shape: tuple[int, ...], ranks: int = 1) -> bool:
        """Whether a tensor of this shape can be cut over the ranks."""
        return len(shape) > self.dimension and shape[self.dimension] % (self.blocks * ranks) == 0

    def merged_shape(self, shape: tuple[int, ...], ranks: int) -> tuple[int, ...]:
        return tuple(
            size * ranks if at == self.dimension else size for at, size in enumerate(shape)
        )


ROWS, COLUMNS, QUERY_KEY_VALUE, COPIED = Split(0), Split(1), Split(0, blocks=3), None

SPLITS = {
    r"word_embeddings\.weight": ROWS,
    r"transformer\.(position|block_position)_embeddings\.weight": COPIED,
    r"transformer\.layers\.\d+\.(input|post_attention)_layernorm\.(weight|bias)": COPIED,
    r"transformer\.layers\.\d+\.attention\.query_key_value\.(weight|bias)": QUERY_KEY_VALUE,
    r"transformer\.layers\.\d+\.attention\.dense\.weight": COLUMNS,
    r"transformer\.layers\.\d+\.attention\.dense\.bias": COPIED,
    r"transformer\.layers\.\d+\.mlp\.dense_h_to_4h\.(weight|bias)": ROWS,
    r"transformer\.layers\.\d+\.mlp\.dense_4h_to_h\.weight": COLUMNS,
    r"transformer\.layers\.\d+\.mlp\.dense_4h_to_h\.bias": COPIED,
    r"transformer\.final_layernorm\.(weight|bias)": COPIED,
    r"(pool_layer|multichoice_head)\.(weight|bias)": COPIED,
    r"prompt_spell\..+": COPIED,
}


def find_split(name: str) -> Split | None:
    for pattern, split in SPLITS.items():
        if re.fullmatch(pattern, name):
            return split
    raise RepositoryError(
        f"The checkpoint holds {name}, which is no parameter of GLM; is it a GLM checkpoint?"
    )
