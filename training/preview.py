"""One example, as a person can read it: a table of tokens, a picture of who sees whom.

It is one of pretraining, or of a fine-tuning task.

Shapes: T tokens of context and pieces, S tokens of the context.
"""

import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from rich.table import Table
from rich.text import Text

from ..blanks_glm import BlockPositions, sees
from ..collation_glm import GLMDataCollator, GLMMultipleChoiceCollator
from ..tokenization_glm import IGNORED
from .blank_infilling import BlankInfillingCollator
from .options import Preview
from .recipe import read_recipe
from .repository import load_tokenizer

if TYPE_CHECKING:
    from .tasks import Task

# Of the context, then of the pieces in turn: each is told from its neighbours by people who see no
# red or no green, too.
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
    pieces: (T,): k for the k-th blank of the text and for the tokens of its piece, or for those of
        the k-th choice; 0 for the rest.
    context: S.
    sees: (T, T): whether the token of the row sees the token of the column.
    of_choices: whether choices follow the context, and not pieces.
    """

    tokens: list[str]
    labels: list[str]
    positions: np.ndarray
    block_positions: np.ndarray
    pieces: np.ndarray
    context: int
    sees: np.ndarray
    of_choices: bool = False

    @property
    def parts(self) -> list[str]:
        """T names of what the tokens belong to."""
        names = [f"blank {piece}" if piece else "context" for piece in self.pieces[: self.context]]
        behind = "choice" if self.of_choices else "piece"
        for piece in self.pieces[self.context :]:
            names.append(f"{behind} {piece}" if piece else "all choices")
        return names

    @property
    def colors(self) -> list[str]:
        return [
            COLORS[1 + (piece - 1) % (len(COLORS) - 1)] if piece else COLORS[0]
            for piece in self.pieces
        ]


def make_example(options: Preview) -> Example:
    """What the collator makes of a text, of a packed sample of documents, or of a task's example.

    Raises:
        ValueError: one sentence on what is wrong with the options.
    """
    if options.png is not None:
        check_picture_name(options.png)
    if options.task is not None:
        return make_example_of_task(options.task, options, load_tokenizer(options.repository))
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

    # Only as many as can meet in one sample are read.
    documents = load_documents(data, streaming=True)
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
        labels=["" if id == IGNORED else token_text(id, tokenizer) for id in labels[:length]],
        positions=positions[:length],
        block_positions=block_positions[:length],
        pieces=pieces,
        context=context,
        sees=who_sees_whom(context, length),
    )


# --- Of a fine-tuning task ------------------------------------------------------------------------


def make_example_of_task(name: str, options: Preview, tokenizer) -> Example:
    """The first example of the data; without data, one whose fields hold their own names."""
    from .examples import read_examples  # slow to import, like the next two
    from .own_tasks import read_task
    from .tasks import encode, row_to_learn

    if options.text is not None:
        raise ValueError("A task is shown on examples; pass --data with some, or leave --text out.")
    task = read_task(name)
    if options.data is None:
        example = placeholders(task)
    else:
        example = read_examples(task, options.data, "train")[0]
    encoded = encode(task, example, tokenizer)
    if task.kind == "choices":
        row = {"context": encoded.context, "answers": encoded.answers}
        return read_choices(GLMMultipleChoiceCollator(tokenizer)([row]), tokenizer)
    collator = GLMDataCollator(tokenizer)
    batch = collator([row_to_learn(encoded, tokenizer)])
    layout = collator.layout(batch["input_ids"], batch["attention_mask"])
    tokens = layout.length
    return read_example(
        {
            "input_ids": batch["input_ids"],
            "labels": batch["labels"],
            "attention_mask": layout.in_context.sum(-1),  # (B,)
            "position_ids": BlockPositions.position_ids(
                layout,
                torch.arange(tokens)[None],
                tokens,
            ),
        },
        tokenizer,
    )


def placeholders(task: "Task") -> dict[str, str]:
    """An example whose fields hold their own names."""
    from .templates import parse

    if task.prepare is not None:
        raise ValueError(f"The task {task.name} needs examples to show; pass --data with some.")
    pattern = task.patterns[task.pattern]
    parts = [*pattern.context, *pattern.second, *pattern.answers]
    if isinstance(pattern.context, str):
        parts = [pattern.context, *pattern.answers]
    texts = [part if isinstance(part, str) else part.text for part in parts]
    names = {name for text in texts for _, name, _ in parse(text) if name is not None}
    return {name: name.replace("_", " ") for name in names}


def read_choices(batch: Mapping[str, torch.Tensor], tokenizer) -> Example:
    """The first row of a batch of choices."""
    ids = batch["input_ids"][0].tolist()
    context = ids.index(tokenizer.sop_token_id)
    labels: list[list[str]] = [[] for _ in ids]
    pieces = np.zeros(len(ids), dtype=int)
    choices = zip(
        batch["choice_ids"][0].tolist(),
        batch["choice_indices"][0].tolist(),
        strict=True,
    )
    for number, (said, predictors) in enumerate(choices, start=1):
        real = [column for id, column in zip(said, predictors, strict=True) if id != IGNORED]
        pieces[real[1:]] = number  # the first token of each choice is predicted by the start
        for id, column in zip(said, real, strict=False):
            labels[column].append(token_text(id, tokenizer))
    positions, block_positions = batch["position_ids"][0].numpy()
    return Example(
        tokens=[token_text(id, tokenizer) for id in ids],
        labels=[" | ".join(of_token) for of_token in labels],
        positions=positions,
        block_positions=block_positions,
        pieces=pieces,
        context=context,
        sees=batch["attention_mask"][0, 0].bool().numpy(),
        of_choices=True,
    )


# --- Tokens ---------------------------------------------------------------------------------------


def token_text(id: int, tokenizer) -> str:
    """A token as one can read it."""
    if tokenizer.convert_ids_to_tokens(id) is None:
        return "[dBLOCK]"  # the only id of the collator that the vocabulary does not have
    return tokenizer.token_text(id)


def who_sees_whom(context: int, length: int) -> np.ndarray:
    """(T, T): which tokens of a row of `length` are visible to which, by the model's own rule."""
    in_context = torch.arange(length) < context  # (T,)
    return sees(in_context[None])[0].numpy()


# --- In a terminal --------------------------------------------------------------------------------


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
    """Who sees whom: a filled block where the token of the row sees the token of the column.

    It has that one's colour. A line of text holds two rows, so that blocks are square.
    """
    hidden = np.zeros_like(example.sees[:1])
    rows = np.concatenate([example.sees, hidden])  # an odd number of rows ends with half a line
    rows = rows[: len(rows) // 2 * 2]
    picture = Text(no_wrap=True)
    for upper, lower in zip(rows[::2], rows[1::2], strict=True):
        for color, *seen in zip(example.colors, upper, lower, strict=True):
            picture.append(" ▄▀█"[2 * seen[0] + seen[1]], style=color)
        picture.append("\n")
    return picture


# --- As a file ------------------------------------------------------------------------------------


def check_picture_name(file: str | Path):
    """Raise a ValueError if the name is not that of a PNG."""
    if Path(file).suffix.lower() != ".png":
        raise ValueError(f"{file} is no name of a picture; give one that ends with .png.")


def draw(example: Example, file: str | Path):
    """Write who sees whom as a PNG: a column for each token, a row with what it predicts.

    Raises:
        ValueError: if the name of the file does not end with .png.
    """
    check_picture_name(file)
    from matplotlib.figure import Figure

    # One axis is the whole figure and its unit is a cell: the mask is at 0 to T, the positions are
    # above it.
    size = len(example.tokens)
    left = max(1.5 + widest(example.tokens), 1 + text_width("block position"))
    right = 1.5 + widest(example.labels)
    top = left + 2.5  # the tokens again, and two rows of positions
    bottom = 0.5
    width, height = left + size + right, top + size + bottom
    figure = Figure(figsize=(width * CELL, height * CELL), dpi=150)
    axis = figure.add_axes((0, 0, 1, 1), xlim=(-left, size + right), ylim=(size + bottom, -top))
    axis.set_axis_off()
    draw_cells(axis, example)
    draw_texts(axis, example)
    figure.savefig(file, format="png")


def draw_cells(axis, example: Example):
    """The mask, the colours of the columns above it, and lines between them."""
    from matplotlib.colors import to_rgb

    size = len(example.tokens)
    colors = np.array([to_rgb(color) for color in example.colors])  # (T, 3)
    cells = np.where(example.sees[..., None], colors, to_rgb(HIDDEN))  # (T, T, 3)
    style = dict(interpolation="nearest", aspect="auto")
    axis.imshow(cells, extent=(0, size, size, 0), **style)
    header = np.stack([colors, colors])  # (2, T, 3)
    axis.imshow(header, extent=(0, size, -0.5, -2.5), alpha=0.3, **style)
    lines = np.arange(size + 1)
    axis.hlines([-1.5, *lines], 0, size, color="white", linewidth=1)
    axis.vlines(lines, -2.5, size, color="white", linewidth=1)
    axis.hlines(example.context, 0, size, color="black", linewidth=0.8)
    axis.vlines(example.context, 0, size, color="black", linewidth=0.8)


def draw_texts(axis, example: Example):
    """Tokens on the left and on top, labels on the right, positions above the mask."""
    from matplotlib.font_manager import get_font_names

    fonts = ["DejaVu Sans", *(font for font in CHINESE_FONTS if font in get_font_names())]
    style = dict(family=fonts, parse_math=False)
    small, large = style | {"fontsize": 7}, style | {"fontsize": 8}
    rows = {"position": (-2, example.positions), "block position": (-1, example.block_positions)}
    for name, (row, values) in rows.items():
        axis.text(-0.5, row, name, ha="right", va="center", color="#6b7280", **large)
        for column, value in enumerate(values):
            axis.text(column + 0.5, row, str(value), ha="center", va="center", **small)
    end = len(example.tokens) + 0.5
    texts = zip(example.tokens, example.labels, example.colors, strict=True)
    for index, (token, label, color) in enumerate(texts):
        middle = index + 0.5
        axis.text(-0.5, middle, token, ha="right", va="center", color=color, **large)
        axis.text(middle, -3, token, ha="center", va="bottom", rotation=90, color=color, **large)
        axis.text(end, middle, label, ha="left", va="center", color=color, **large)


def widest(texts: list[str]) -> float:
    """Width of the widest text in cells."""
    return max(map(text_width, texts))


def text_width(text: str) -> float:
    """Width of a text in cells, a little more than it takes."""
    return 0.3 * sum(1 + (unicodedata.east_asian_width(character) in "WF") for character in text)
