"""One pretraining example, as a person can read it: a table of its tokens, and a picture of who sees whom.

Shapes: T tokens of context and pieces, S tokens of the context.
"""

import unicodedata
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.table import Table
from rich.text import Text

from ..blanks_glm import sees
from .blank_infilling import NOT_A_TARGET, BlankInfillingCollator
from .options import Preview
from .recipe import read_recipe
from .repository import load_tokenizer

# Of the context, then of the pieces in turn: each is told from its neighbours by people who see no red or no green, too.
COLORS = ["#9aa5b1", "#e69f00", "#0072b2", "#009e73", "#cc79a7", "#d55e00", "#56b4e9"]
HIDDEN = "#f3f4f6"
CELL = 0.24  # inches of a cell of the picture
CHINESE_FONTS = [
    "Noto Sans CJK SC",
    "Source Han Sans SC",
    "PingFang SC",
    "Microsoft YaHei",
    "WenQuanYi Zen Hei",
]


@dataclass
class Example:
    """A row of a batch.

    tokens, labels: T texts each; the label of a token without a target is empty.
    positions, block_positions: (T,).
    pieces: (T,): k for the k-th blank of the text and for the tokens of its piece, 0 for the rest of the context.
    context: S.
    sees: (T, T): whether the token of the row sees the token of the column.
    """

    tokens: list[str]
    labels: list[str]
    positions: np.ndarray
    block_positions: np.ndarray
    pieces: np.ndarray
    context: int
    sees: np.ndarray

    @property
    def parts(self) -> list[str]:
        """T names of what the tokens belong to."""
        names = [f"blank {piece}" if piece else "context" for piece in self.pieces[: self.context]]
        return names + [f"piece {piece}" for piece in self.pieces[self.context :]]

    @property
    def colors(self) -> list[str]:
        return [
            COLORS[1 + (piece - 1) % (len(COLORS) - 1)] if piece else COLORS[0]
            for piece in self.pieces
        ]


def make_example(options: Preview) -> Example:
    """What the collator makes of a text, or of a packed sample of documents.

    Raises:
        ValueError: one sentence on what is wrong with the options.
    """
    if (options.text is None) == (options.data is None):
        raise ValueError("Pass either --text with a text of your own, or --data with documents.")
    tokenizer = load_tokenizer(options.repository)
    recipe = read_recipe(options.recipe)
    collator = BlankInfillingCollator(tokenizer, recipe, options.length, options.seed)
    if options.data is not None:
        ids = _first_sample(options.data, tokenizer, options.length, options.seed)
    else:
        ids = tokenizer(options.text).input_ids
    if len(ids) > options.length:
        raise ValueError(
            f"The text has {len(ids)} tokens; shorten it, or pass --length {len(ids)}."
        )
    return read_example(collator.collate([{"input_ids": ids}], 0, options.mode), tokenizer)


def _first_sample(data: str, tokenizer, length: int, seed: int) -> list[int]:
    from .data import load_documents, pack_documents  # not needed for a text, and slow to import

    documents = load_documents(
        data, streaming=True
    )  # only as many as can meet in one sample are read
    sample = next(iter(pack_documents(documents, tokenizer, length, seed=seed)), None)
    if sample is None:
        raise ValueError(f"{data} begins with documents without text; check the data.")
    return sample["input_ids"]


def read_example(batch: dict[str, torch.Tensor], tokenizer) -> Example:
    """The first row of a batch of the collator."""
    ids, labels = batch["input_ids"][0].tolist(), batch["labels"][0].tolist()
    positions, block_positions = batch["position_ids"][0].numpy()
    context = int(batch["attention_mask"][0])
    length = context + int((block_positions > 0).sum())  # the rest is padding
    # The tokens of a piece have the position of its blank, which no other token has.
    pieces = np.zeros(length, dtype=int)
    for piece, blank in enumerate(np.unique(positions[context:length]), start=1):
        pieces[positions[:length] == blank] = piece
    return Example(
        tokens=[token_text(id, tokenizer) for id in ids[:length]],
        labels=["" if id == NOT_A_TARGET else token_text(id, tokenizer) for id in labels[:length]],
        positions=positions[:length],
        block_positions=block_positions[:length],
        pieces=pieces,
        context=context,
        sees=who_sees_whom(context, length),
    )


def token_text(id: int, tokenizer) -> str:
    """A token as one can read it."""
    piece = tokenizer.convert_ids_to_tokens(id)
    if piece is None:
        return "[dBLOCK]"  # the only id of the collator that the vocabulary does not have
    text = tokenizer.decode([id])
    if "\ufffd" in text:  # some bytes of a character
        return piece
    text = text.strip(" ") or "␣" * len(text)
    return text if text.isprintable() else repr(text)[1:-1]


def who_sees_whom(context: int, length: int) -> np.ndarray:
    """(T, T): which tokens of a row of `length` are visible to which, by the model's own rule."""
    in_context = torch.arange(length) < context  # (T,)
    return sees(in_context[None])[0].numpy()


# --- In a terminal ----------------------------------------------------------------------------------------------------


def make_table(example: Example) -> Table:
    """One row for each token."""
    table = Table("token", "position", "block position", "label", "part")
    for name in ("position", "block position"):
        next(column for column in table.columns if column.header == name).justify = "right"
    columns = (
        example.tokens,
        example.positions,
        example.block_positions,
        example.labels,
        example.parts,
    )
    for color, *cells in zip(example.colors, *columns, strict=True):
        table.add_row(*(Text(str(cell)) for cell in cells), style=color)
    return table


def make_picture(example: Example) -> Text:
    """Who sees whom: a filled block where the token of the row sees the token of the column, in that one's colour.

    A line of text holds two rows, so that blocks are square.
    """
    hidden = np.zeros_like(example.sees[:1])
    rows = np.concatenate([example.sees, hidden])  # an odd number of rows ends with half a line
    picture = Text(no_wrap=True)
    for upper, lower in zip(rows[::2], rows[1::2]):
        for color, *seen in zip(example.colors, upper, lower):
            picture.append(" ▄▀█"[2 * seen[0] + seen[1]], style=color)
        picture.append("\n")
    return picture


# --- As a file --------------------------------------------------------------------------------------------------------


def draw(example: Example, file: str | Path):
    """Write who sees whom as a PNG: a column for each token with its positions, a row with what it predicts."""
    from matplotlib.colors import to_rgb
    from matplotlib.figure import Figure
    from matplotlib.font_manager import get_font_names

    size = len(example.tokens)
    # One axis is the whole figure and its unit is a cell: the mask is at 0 to T, the positions are above it.
    margins = {
        name: 1.5 + max(map(text_width, texts))
        for name, texts in (("left", example.tokens), ("right", example.labels))
    }
    margins["left"] = max(margins["left"], 1 + text_width("block position"))
    margins["top"] = margins["left"] + 2.5
    width, height = margins["left"] + size + margins["right"], margins["top"] + size + 0.5
    figure = Figure(figsize=(width * CELL, height * CELL), dpi=150)
    axis = figure.add_axes(
        (0, 0, 1, 1),
        xlim=(-margins["left"], size + margins["right"]),
        ylim=(size + 0.5, -margins["top"]),
    )
    axis.set_axis_off()

    colors = np.array([to_rgb(color) for color in example.colors])  # (T, 3)
    cells = np.where(example.sees[..., None], colors, to_rgb(HIDDEN))  # (T, T, 3)
    axis.imshow(cells, extent=(0, size, size, 0), interpolation="nearest", aspect="auto")
    axis.imshow(
        np.stack([colors, colors]),
        extent=(0, size, -0.5, -2.5),
        interpolation="nearest",
        aspect="auto",
        alpha=0.3,
    )
    lines = np.arange(size + 1)
    axis.hlines([-1.5, *lines], 0, size, color="white", linewidth=1)
    axis.vlines(lines, -2.5, size, color="white", linewidth=1)
    axis.hlines(example.context, 0, size, color="black", linewidth=0.8)
    axis.vlines(example.context, 0, size, color="black", linewidth=0.8)

    fonts = ["DejaVu Sans", *(font for font in CHINESE_FONTS if font in get_font_names())]
    style = dict(fontsize=8, family=fonts, parse_math=False)
    for name, row, values in (
        ("position", -2, example.positions),
        ("block position", -1, example.block_positions),
    ):
        axis.text(-0.5, row, name, ha="right", va="center", color="#6b7280", **style)
        for column, value in enumerate(values):
            axis.text(
                column + 0.5, row, str(value), ha="center", va="center", **(style | {"fontsize": 7})
            )
    for place, (token, label, color) in enumerate(
        zip(example.tokens, example.labels, example.colors), start=0
    ):
        axis.text(-0.5, place + 0.5, token, ha="right", va="center", color=color, **style)
        axis.text(
            place + 0.5, -3, token, ha="center", va="bottom", rotation=90, color=color, **style
        )
        axis.text(size + 0.5, place + 0.5, label, ha="left", va="center", color=color, **style)
    figure.savefig(file, format="png")


def text_width(text: str) -> float:
    """Width of a text in cells, a little more than it takes."""
    return 0.3 * sum(1 + (unicodedata.east_asian_width(character) in "WF") for character in text)
