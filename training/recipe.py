"""What a model is pretrained with: how often each mode is, and what it masks.

Imports no library, so that `glm --help` is quick.
"""

import json
import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

Mode = Literal["token", "sentence", "document"]
MODES: tuple[Mode, ...] = get_args(Mode)
SHORTEST_TEXT = 4  # tokens, with [CLS] and <|endoftext|>
LONGEST_SPAN = 39  # where the original cuts the Poisson distribution of span lengths off


@dataclass(frozen=True)
class Recipe:
    """How a model was pretrained. Every `..._prob` and `..._share` is between 0 and 1.

    token, sentence, document: probability of each mode; they add up to 1.
    masked_share: of a text's tokens in token and sentence mode (paper, section 3.1: 15 percent).
    mean_span_length: of the Poisson distribution in token mode (paper: 3).
    single_span_prob: of a batch in token mode with one span in each text, drawn before the mode is.
    document_min_share: of the shortest text, the least that document mode masks.
    suffix_prob: in document mode, that the blank is the end of the text and not a span inside it.
    short_sequence_prob: of a batch whose texts are split into short ones.
    block_mask_prob: in token mode, that a token of a piece is hidden from the tokens after it by
        `[dBLOCK]`.
    shuffle_pieces: whether pieces come in random order; the masks always stay in text order.
    random_position: move all positions of a text by one random number, as far as there is room.
    block_positions: False gives every token of a piece the block position 1.
    """

    token: float = 1.0
    sentence: float = 0.0
    document: float = 0.0
    masked_share: float = 0.15
    mean_span_length: float = 3.0
    single_span_prob: float = 0.0
    document_min_share: float = 0.5
    suffix_prob: float = 0.5
    short_sequence_prob: float = 0.0
    block_mask_prob: float = 0.0
    shuffle_pieces: bool = True
    random_position: bool = False
    block_positions: bool = True

    def __post_init__(self):
        for field in fields(self):
            value, switch = getattr(self, field.name), isinstance(field.default, bool)
            if isinstance(value, bool) != switch or not isinstance(value, (int, float)):
                raise ValueError(
                    f"{field.name} is {value!r}; give {'true or false' if switch else 'a number'}."
                )
            if field.name != "mean_span_length" and not 0 <= value <= 1:
                raise ValueError(f"{field.name} is {value}; give a value between 0 and 1.")
        if not math.isclose(self.token + self.sentence + self.document, 1.0, abs_tol=1e-6):
            raise ValueError(
                "The probabilities of token, sentence and document mode must add up to 1."
            )
        if not 0 < self.mean_span_length <= LONGEST_SPAN:
            raise ValueError(
                f"mean_span_length is {self.mean_span_length}; "
                f"give more than 0 and at most {LONGEST_SPAN}."
            )


# What the released models were trained with; the original ships no recipe for glm-doc, glm-410m,
# glm-515m and glm-2b.
_LARGE: dict[str, Any] = dict(document_min_share=0.25, block_mask_prob=0.1)
RECIPES = {
    "glm-base": Recipe(),
    "glm-large": Recipe(),
    "glm-roberta-large": Recipe(),
    "glm-large-chinese": Recipe(0.4, 0.3, 0.3, short_sequence_prob=0.02, **_LARGE),
    "glm-10b": Recipe(0.5, 0.3, 0.2, short_sequence_prob=0.02, **_LARGE),
    "glm-10b-stage2": Recipe(
        0.4, 0.3, 0.3, short_sequence_prob=0.5, single_span_prob=0.05, **_LARGE
    ),
    "glm-10b-chinese": Recipe(0.5, 0.3, 0.2, short_sequence_prob=0.02, **_LARGE),
    "glm-10b-chinese-stage2": Recipe(0.5, 0.3, 0.2, short_sequence_prob=0.5, **_LARGE),
}


def read_recipe(recipe: str | Recipe) -> Recipe:
    """A recipe as it is given to a command.

    Args:
        recipe: the name of a released one, a JSON file with fields of `Recipe`, or a `Recipe`.

    Raises:
        ValueError: if it is none of these.
    """
    if isinstance(recipe, Recipe):
        return recipe
    if recipe in RECIPES:
        return RECIPES[recipe]
    if not Path(recipe).is_file():
        raise ValueError(
            f"There is no recipe {recipe}; pass a JSON file, or one of {', '.join(RECIPES)}."
        )
    try:
        values = dict(json.loads(Path(recipe).read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{recipe} is no JSON file with fields of Recipe: {error}.") from error
    unknown = set(values) - {field.name for field in fields(Recipe)}
    if unknown:
        raise ValueError(
            f"{recipe} has the unknown fields {', '.join(sorted(unknown))}; "
            "the fields are those of Recipe."
        )
    return Recipe(**values)
