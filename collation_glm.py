"""Batches of GLM from texts with answers, for `Trainer`, `Seq2SeqTrainer` and loops of one's own.

A row is a context, padded on the left, then its pieces, padded on the right:

    . [CLS] The answer is [MASK] <|endoftext|>   <|startofpiece|> yes             .
    .   .       .     .     .         .               yes        <|endofpiece|>   .      labels

So the pieces of all rows start in one column, where `generate` can cut the batch, and the model
reads the positions from ids and padding.

Shapes: B batch, C choices, S tokens of the contexts, G tokens of the pieces, T = S + G.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace

import torch
from transformers import BatchEncoding

from .blanks_glm import BlankLayout, SinglePositions, count_positions
from .tokenization_glm import IGNORED, GLMTokenizerFast


@dataclass
class Row:
    """One row: its context, its pieces, and what each token of the pieces has to say."""

    context: list[int]
    pieces: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)


@dataclass
class TextCollator:
    """What the collators share.

    Args:
        tokenizer: of the model.
        max_length: tokens of a context; a longer text is cut, never its masks.
        pad_to_multiple_of: make T a multiple of it.
    """

    tokenizer: GLMTokenizerFast
    max_length: int | None = None
    pad_to_multiple_of: int | None = None

    def encode_context(self, text: str) -> BatchEncoding:
        """What the tokenizer returns for a text with blanks."""
        if self.max_length is None:
            return self.tokenizer(text)
        return self.tokenizer(
            text,
            truncation=True,
            max_length=self.max_length,
        )

    def count_blanks(self, context: list[int]) -> int:
        """How many masks a context has: one at least, and no token that begins or ends a piece."""
        self.tokenizer.check_no_commands(context, "A text")
        masks = self.tokenizer.mask_token_ids
        blanks = sum(id in masks for id in context)
        if blanks == 0:
            surfaces = " or ".join(self.tokenizer.masks)
            raise ValueError(f"A text has no mask; write {surfaces} where the answer belongs.")
        return blanks

    def pad(self, rows: list[Row]) -> dict[str, torch.Tensor]:
        """Contexts padded on the left, pieces on the right.

        Returns:
            input_ids, attention_mask and labels, each (B, T).
        """
        width = max(len(row.context) for row in rows)  # S
        length = max(len(row.pieces) for row in rows)  # G
        multiple = self.pad_to_multiple_of or 1
        if length > 0:
            length += -(width + length) % multiple
        else:  # nothing may stand behind contexts that are to be continued
            width += -width % multiple
        ids, real, labels = [], [], []
        for row in rows:
            ids.append(
                framed(
                    row.context,
                    row.pieces,
                    width,
                    length,
                    padding=self.tokenizer.pad_token_id,
                )
            )
            real.append(
                framed(
                    [1] * len(row.context),
                    [1] * len(row.pieces),
                    width,
                    length,
                    padding=0,
                )
            )
            labels.append(
                framed(
                    [],
                    row.labels,
                    width,
                    length,
                    padding=IGNORED,
                )
            )
        return {
            "input_ids": torch.tensor(ids),
            "attention_mask": torch.tensor(real),
            "labels": torch.tensor(labels),
        }

    def layout(self, ids: torch.Tensor, real: torch.Tensor) -> BlankLayout:
        """The layout of rows (B, T) to learn from: these hold no end tokens."""
        tokens = SimpleNamespace(
            start_token_ids=[self.tokenizer.sop_token_id],
            end_token_ids=[],
            mask_token_ids=self.tokenizer.mask_token_ids,
        )
        return BlankLayout.of(ids, tokens, real.bool())


@dataclass
class GLMDataCollator(TextCollator):
    """Makes batches to learn answers from.

    A feature is one of these:

    * `{"text": "The answer is [MASK].", "target": "yes"}`; a list of answers where the text has
      several blanks, no `target` where there is nothing to learn from;
    * ids of a whole row, `{"input_ids": ..., "labels": ...}`, as `tokenize` makes them;
    * ids of a context and of its answers, `{"input_ids": ..., "labels": ...}`: `labels` holds the
      ids of the answer, or a list of them for several blanks, without special tokens.

    A batch holds input_ids (B, T), attention_mask (B, T), 0 for padding, and labels (B, T), aligned
    with the logits, -100 where there is nothing to say. Where no feature has answers, the contexts
    only, for `generate`.

    `Trainer` drops columns that the model does not know: pass `remove_unused_columns=False` with
    texts, or `dataset.map(collator.tokenize)`, which also tells the `length` that grouping needs.

    Args:
        tokenizer, max_length, pad_to_multiple_of: of `TextCollator`.
        max_target_length: tokens of an answer with its end; a longer one is cut and has no end, as
            in the original.
        raw_targets: take the answers as they are written, see the tokenizer's `encode_answers`.
        positions_per_blank: for a model without block positions: the positions that each blank
            reserves behind it, `max_piece_length` of `generate`. The batch then has position_ids
            (B, T).
        shift_labels: give the labels under this name too, which TRL takes for aligned ones.

    Raises:
        ValueError: for features of which no right batch can be made; it says which and why.
    """

    max_target_length: int | None = None
    raw_targets: bool = False
    positions_per_blank: int | None = None
    shift_labels: bool = False

    def __call__(self, features: list[dict]) -> BatchEncoding:
        rows = _of_each(self._row, features)
        answered = [bool(row.pieces) for row in rows]
        if any(answered) != all(answered):
            raise ValueError(
                f"Feature {answered.index(False)} has no answer, others have; give all or none one."
            )
        batch = self.pad(rows)
        if self.positions_per_blank is not None:
            batch["position_ids"] = self._positions(batch)
        if not any(answered):
            del batch["labels"]
        elif self.shift_labels:
            batch["shift_labels"] = batch["labels"]
        return BatchEncoding(batch)

    def tokenize(self, example: dict) -> dict[str, list[int] | int]:
        """The row of one example: input_ids and labels (T,), and its length."""
        row = self._row(example)
        ids = row.context + row.pieces
        tokenized: dict[str, list[int] | int] = {"input_ids": ids, "length": len(ids)}
        if row.pieces:
            tokenized["labels"] = [IGNORED] * len(row.context) + row.labels
        return tokenized

    def _row(self, feature: dict) -> Row:
        if "text" in feature:
            return self._row_of_text(feature["text"], feature.get("target"))
        if "input_ids" not in feature:
            names = ", ".join(feature)
            raise ValueError(
                f'A feature has the fields {names}; give it "text" and "target", or "input_ids" '
                'and "labels".'
            )
        ids = _plain(feature["input_ids"])
        labels = _plain(feature.get("labels"))
        mask = _plain(feature.get("attention_mask"))
        if labels is not None and self.tokenizer.sop_token_id in ids:
            return self._whole_row(ids, labels, mask)
        return self._row_of_ids(without_padding(ids, mask), labels)

    def _row_of_text(self, text: str, target: str | list[str] | None) -> Row:
        target = _plain(target)
        targets = target if isinstance(target, (list, tuple)) else [target]
        if not isinstance(text, str) or not (
            target is None or all(isinstance(one, str) for one in targets)
        ):
            raise ValueError(
                '"text" must be a text, and "target" one, or a list of them for several blanks.'
            )
        encoded = self.encode_context(text)
        context = encoded.input_ids
        if target is None:
            return self._row_of_ids(context, None)
        answers = self.tokenizer.encode_answers(
            context,
            targets,
            self.tokenizer.spaces_before_masks(encoded.encodings[0]),
            self.raw_targets,
        )
        return self._row_of_ids(context, answers)

    def _row_of_ids(self, context: list[int], answers: list | None) -> Row:
        """A context, and the ids of its answers."""
        blanks = self.count_blanks(context)
        if answers is None:
            return Row(context)
        if answers and isinstance(answers[0], int):
            answers = [answers]
        if len(answers) != blanks:
            raise ValueError(
                f"A text has {blanks} masks and {len(answers)} answers; give each mask an answer."
            )
        ended = [self._ended(answer) for answer in answers]
        read, labels = self.tokenizer.pieces(ended)
        return Row(context, read, labels)

    def _ended(self, answer: list[int]) -> list[int]:
        """The ids of an answer with its end, which is cut off with what is too long."""
        end = self.tokenizer.eop_token_id
        answer = [id for id in answer if id != IGNORED]  # which other collators pad with
        text = answer[:-1] if answer[-1:] == [end] else answer
        self.tokenizer.check_no_commands(text, "An answer", ends=True)
        return [*text, end][: self.max_target_length]

    def _whole_row(
        self,
        ids: list[int],
        labels: list[int],
        mask: list[int] | None,
    ) -> Row:
        """Context and pieces, with labels for both."""
        if len(labels) != len(ids):
            raise ValueError(
                f"A row has {len(ids)} input_ids and {len(labels)} labels; they are aligned, one "
                "label for each id."
            )
        ids = without_padding(ids, mask)
        labels = without_padding(labels, mask)
        sop = self.tokenizer.sop_token_id
        start = ids.index(sop)
        context = ids[:start]
        pieces = ids[start:]
        blanks = self.count_blanks(context)
        if pieces.count(sop) > blanks:
            raise ValueError(
                f"A row has {blanks} masks and {pieces.count(sop)} <|startofpiece|>; give every "
                "piece a mask."
            )
        if any(label != IGNORED for label in labels[:start]):
            raise ValueError(
                "There are labels in the context, which sees what it would have to say; set them "
                "to -100."
            )
        return Row(context, pieces, labels[start:])

    def _positions(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """(B, T) positions for a model without block positions, as `generate` counts them."""
        real = batch["attention_mask"]
        layout = self.layout(batch["input_ids"], real)
        positions = SinglePositions.position_ids(
            layout,
            count_positions(real),
            real.shape[1],
            self.positions_per_blank,
        )
        return positions * real


@dataclass
class GLMMultipleChoiceCollator(TextCollator):
    """Makes batches for `GLMForMultipleChoice`.

    A feature is `{"text": "The answer is [MASK].", "choices": [" yes", " no"], "label": 0}`; the
    choices are scored exactly as they are written, and without a label there is no loss. With
    several masks a choice answers the last one, as in the original.

    A batch holds input_ids, attention_mask and choice_ids, each (B, C, T), position_ids
    (B, C, 2, T), and labels (B,). Each choice has a row of its own behind its context; choice_ids
    are aligned with the logits, the id that each position has to say, -100 elsewhere. Where a text
    has fewer choices than another its last rows hold no choice.

    Args:
        tokenizer, max_length, pad_to_multiple_of: of `TextCollator`.

    Raises:
        ValueError: for features of which no right batch can be made; it says which and why.
    """

    def __call__(self, features: list[dict]) -> BatchEncoding:
        choices_of = _of_each(self._rows, features)
        most = max(map(len, choices_of))  # C
        rows = []
        for choices in choices_of:
            without_choice = Row(choices[0].context)
            rows += choices
            rows += [without_choice] * (most - len(choices))
        flat = self.pad(rows)  # (B * C, T) each
        flat["position_ids"] = self._positions(
            flat["input_ids"],
            flat["attention_mask"],
        )
        flat["choice_ids"] = flat.pop("labels")
        batch = {}
        for name, tensor in flat.items():
            batch[name] = tensor.unflatten(0, (len(features), most))
        labels = [feature.get("label", feature.get("labels")) for feature in features]
        if any(label is not None for label in labels):
            batch["labels"] = self._labels(labels, features)
        return BatchEncoding(batch)

    def _rows(self, feature: dict) -> list[Row]:
        """The row of each choice."""
        if "text" not in feature or "choices" not in feature:
            names = ", ".join(feature)
            raise ValueError(f'A feature has the fields {names}; give it "text" and "choices".')
        context = self.encode_context(feature["text"]).input_ids
        self.count_blanks(context)
        rows = []
        for choice in self.tokenizer.encode_choices(feature["choices"]):
            read, said = self.tokenizer.pieces([choice])
            rows.append(Row(context, read, said))
        return rows

    def _labels(self, labels: list, features: list[dict]) -> torch.Tensor:
        """(B,) the right choices."""
        for row, label in enumerate(labels):
            choices = len(features[row]["choices"])
            if label is None or not 0 <= int(label) < choices or int(label) != float(label):
                raise ValueError(
                    f"Feature {row} has {choices} choices and the label {label}; a label is the "
                    "number of a choice, counted from 0."
                )
        return torch.tensor([int(label) for label in labels])

    def _positions(
        self,
        ids: torch.Tensor,
        real: torch.Tensor,
    ) -> torch.Tensor:
        """(R, T) -> (R, 2, T): positions, those of the last mask for a choice; block positions."""
        layout = self.layout(ids, real)
        counted = count_positions(real)
        columns = torch.arange(ids.shape[1])
        last_mask = torch.where(layout.is_mask, columns, 0).max(-1, keepdim=True).values  # (R, 1)
        first = torch.where(layout.in_context, counted, counted.gather(1, last_mask))
        second = layout.block_positions(ids.shape[1])
        return torch.stack([first, second], dim=1) * real[:, None]


def framed(
    context: list[int],
    pieces: list[int],
    width: int,
    length: int,
    padding: int,
) -> list[int]:
    """(T,): a context that ends in column `width`, and `length` columns for pieces behind it."""
    left = [padding] * (width - len(context))
    right = [padding] * (length - len(pieces))
    return left + context + pieces + right


def without_padding(values: list[int], mask: list[int] | None) -> list[int]:
    """What stands where the mask is 1."""
    if mask is None:
        return values
    return [value for value, real in zip(values, mask, strict=True) if real]


def _of_each(make: Callable, features: list[dict]) -> list:
    """`make` of each feature; what it refuses is named by its number."""
    made = []
    for number, feature in enumerate(features):
        try:
            made.append(make(feature))
        except ValueError as error:
            raise ValueError(f"Feature {number}: {error}") from error
    return made


def _plain(values) -> list | None:
    """Lists of a tensor or an array."""
    return values.tolist() if hasattr(values, "tolist") else values
