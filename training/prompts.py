"""The original's continuous prompts: vectors that are read in place of words of the context.

Conversion keeps their weights in `prompt_spell.safetensors` of the repository. The prompt methods
of peft are others: their vectors stand in front of the context, and take positions of their own.

Shapes: K vectors, B batch, T tokens, H hidden size.
"""

from collections.abc import Mapping

import torch
from torch import nn

from ..hub_repository.weights import PROMPT_WEIGHTS, make, read_safetensors
from .repository import find_repository

PREFIX = "prompt_spell."
LSTM_LAYERS = 2  # of the original


class ContinuousPrompt(nn.Module):
    """K learnt vectors (FACTS section 1, "continuous prompts").

    Args:
        length, hidden_size: K, H.
        has_lstm, has_mlp: what the vectors of the table go through, as the original trained them:
            a bidirectional LSTM, two matrices with a ReLU between.

    Example:
        >>> prompt = ContinuousPrompt.from_pretrained("my-glm")
        >>> embeds = model.get_input_embeddings()(inputs.input_ids)  # (B, T, H)
        >>> embeds = prompt.fill(embeds, columns)  # (B, K) columns of the context
        >>> model(**inputs, inputs_embeds=embeds)
    """

    def __init__(self, length: int, hidden_size: int, has_lstm: bool = True, has_mlp: bool = True):
        super().__init__()
        self.spell_embeddings = nn.Embedding(length, hidden_size)
        width = hidden_size
        if has_lstm:
            self.lstm_head = nn.LSTM(
                input_size=hidden_size,
                hidden_size=hidden_size,
                num_layers=LSTM_LAYERS,
                bidirectional=True,
                batch_first=True,
            )
            width = 2 * hidden_size  # both directions
        if has_mlp:
            self.mlp_head = nn.Sequential(
                nn.Linear(width, hidden_size),
                nn.ReLU(),
                nn.Linear(hidden_size, hidden_size),
            )

    @classmethod
    def from_pretrained(cls, repository: str) -> "ContinuousPrompt":
        """The prompt of a converted repository, in float32.

        Raises:
            ValueError: if the repository has none, or it is not one of the original's.
        """
        file = find_repository(repository) / PROMPT_WEIGHTS
        if not file.is_file():
            raise ValueError(
                f"{repository} has no {PROMPT_WEIGHTS}; convert a checkpoint that was tuned with "
                "continuous prompts."
            )
        stored = read_safetensors(file)
        return cls.of({name.removeprefix(PREFIX): make(stored[name]) for name in stored})

    @classmethod
    def of(cls, weights: Mapping[str, torch.Tensor]) -> "ContinuousPrompt":
        """The prompt with these weights, by the original's names without `prompt_spell.`."""
        table = weights.get("spell_embeddings.weight")
        if table is None or table.dim() != 2:
            raise ValueError("A continuous prompt needs spell_embeddings.weight (K, H).")
        length, hidden_size = table.shape
        prompt = cls(
            length,
            hidden_size,
            has_lstm=any(name.startswith("lstm_head.") for name in weights),
            has_mlp=any(name.startswith("mlp_head.") for name in weights),
        )
        try:
            prompt.load_state_dict(dict(weights))
        except RuntimeError as error:
            raise ValueError(f"This is no continuous prompt of the original: {error}") from error
        return prompt

    def forward(self) -> torch.Tensor:
        """The vectors (K, H)."""
        vectors = self.spell_embeddings.weight  # (K, H)
        if hasattr(self, "lstm_head"):
            vectors, _ = self.lstm_head(vectors)  # (K, H) -> (K, 2H)
        if hasattr(self, "mlp_head"):
            vectors = self.mlp_head(vectors)  # (K, H or 2H) -> (K, H)
        return vectors

    def fill(self, inputs_embeds: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        """Word embeddings with the vectors in their place.

        Args:
            inputs_embeds (B, T, H); columns (B, K): where the vectors stand, in their order.

        Returns:
            (B, T, H); the argument stays as it is.

        Raises:
            ValueError: if the shapes are not these, or a column is outside the text.
        """
        vectors = self().to(inputs_embeds)  # (K, H)
        batch, length, hidden_size = inputs_embeds.shape
        if columns.shape != (batch, len(vectors)) or hidden_size != vectors.shape[1]:
            raise ValueError(
                f"inputs_embeds {tuple(inputs_embeds.shape)} and columns {tuple(columns.shape)} do "
                f"not fit a prompt {tuple(vectors.shape)}; give (B, T, H) and (B, K)."
            )
        if columns.amin() < 0 or columns.amax() >= length:
            raise ValueError(f"A column is outside the {length} tokens of the text.")
        where = columns[..., None].expand(-1, -1, hidden_size)  # (B, K, H)
        return inputs_embeds.scatter(1, where, vectors.expand(batch, -1, -1))
