"""Batches of GLM from texts with answers, for `Trainer`, `Seq2SeqTrainer` and loops of one's own.

A row is a context, padded on the left, then its pieces, padded on the right:

    . [CLS] The answer is [MASK] <|endoftext|>   <|startofpiece|> yes             .
    .   .       .     .     .         .               yes        <|endofpiece|>   .      labels

So the pieces of all rows start in one column, where `generate` can cut the batch, and the model
reads the positions from ids and padding.

Shapes: B batch, R rows of packed texts, C choices, S tokens of the contexts, G tokens of the
pieces, T = S + G.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace

import torch
from torch.nn import functional as F
from transformers import BatchEncoding

from .blanks_glm import BlankLayout, BlockPositions, SinglePositions, count_positions, sees
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

    def room(self, rows: Sequence[Row]) -> tuple[int, int]:
        """S and G: the columns of the contexts and of the pieces."""
        width = max(len(row.context) for row in rows)
        length = max(len(row.pieces) for row in rows)
        multiple = self.pad_to_multiple_of or 1
        if length > 0:
            length += -(width + length) % multiple
        else:  # nothing may stand behind contexts that are to be continued
            width += -width % multiple
        return width, length

    def pad(self, rows: Sequence[Row]) -> dict[str, torch.Tensor]:
        """Contexts padded on the left, pieces on the right.

        Returns:
            input_ids, attention_mask and labels, each (B, T).
        """
        width, length = self.room(rows)
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
                f"Feature {answered.index(False) + 1} has no answer, others have; give all or none "
                "one."
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
class GLMPackingCollator(GLMDataCollator):
    """Makes batches to learn answers from, with several short texts in each row; for training only.

        [CLS] It is [MASK] <|endoftext|> <|startofpiece|> wet   [CLS] So [MASK] it ...

    A token sees its own text alone and has the positions that it has there, so the loss is that of
    `GLMDataCollator` on the same features, in fewer rows and with less padding.

    A batch holds input_ids (R, T), attention_mask (R, 1, T, T), position_ids (R, 2, T), or (R, T)
    with `positions_per_blank`, and labels (R, T), of R rows.

    Args:
        row_length: tokens of a row at most; a longer text has a row for itself.
        others: of `GLMDataCollator`; every feature has its answers.
    """

    row_length: int = 512  # the longest text of most released models

    def __call__(self, features: list[dict]) -> BatchEncoding:
        texts = [self._alone(row) for row in _of_each(self._answered_row, features)]
        lengths = [text["input_ids"].shape[-1] for text in texts]
        bins = first_fit(lengths, self.row_length)
        longest = max(sum(lengths[number] for number in bin) for bin in bins)
        longest += -longest % (self.pad_to_multiple_of or 1)
        rows = [self._together([texts[number] for number in bin], longest) for bin in bins]
        return BatchEncoding({name: torch.stack([row[name] for row in rows]) for name in rows[0]})

    def _answered_row(self, feature: dict) -> Row:
        row = self._row(feature)
        if not row.pieces:
            raise ValueError("It has no answer, and only what is to be learnt can be packed.")
        return row

    def _alone(self, row: Row) -> dict[str, torch.Tensor]:
        """What the tokens of a text are: ids, labels and in_context (T,), position_ids (2, T)."""
        ids = torch.tensor([row.context + row.pieces])  # (1, T)
        real = torch.ones_like(ids)
        layout = self.layout(ids, real)
        if self.positions_per_blank is None:
            positions = BlockPositions.position_ids(layout, count_positions(real), layout.length)
        else:
            positions = self._positions({"input_ids": ids, "attention_mask": real})
        return {
            "input_ids": ids[0],
            "labels": torch.tensor([IGNORED] * len(row.context) + row.labels),
            "position_ids": positions[0],
            "in_context": layout.in_context[0],
        }

    def _together(self, texts: list[dict[str, torch.Tensor]], length: int) -> dict:
        """One row of T = `length` columns: ids and labels (T,), mask (1, T, T), positions."""

        def padded(parts: list[torch.Tensor], padding: int) -> torch.Tensor:
            joined = torch.cat(parts, -1)
            return F.pad(joined, (0, length - joined.shape[-1]), value=padding)

        def join(name: str, padding: int) -> torch.Tensor:
            return padded([text[name] for text in texts], padding)

        numbers = [torch.full_like(text["labels"], number) for number, text in enumerate(texts)]
        of_text = padded(numbers, -1)  # (T,): the text that each token is of
        same_text = of_text[:, None] == of_text  # (T, T)
        row = {
            "input_ids": join("input_ids", self.tokenizer.pad_token_id),
            "attention_mask": same_text & sees(join("in_context", 0)[None]),  # (1, T, T)
            "position_ids": join("position_ids", 0),
            "labels": join("labels", IGNORED),
        }
        if self.shift_labels:
            row["shift_labels"] = row["labels"]
        return row


@dataclass
class Packed(Row):
    """The row of a text and its choices, which share its context and their start.

    pieces: `<|startofpiece|>`, what all choices begin with, then of each choice all but its last
        token.
    branches: of each token of the pieces the choice, from 0, whose token it is; -1 for the start.
    blocks: of each token of the pieces its block position, which goes on from the start.
    choices: the tokens of each choice.
    predictors: of each token of each choice its predictor, counted from the start.
    """

    branches: list[int] = field(default_factory=list)
    blocks: list[int] = field(default_factory=list)
    choices: list[list[int]] = field(default_factory=list)
    predictors: list[list[int]] = field(default_factory=list)


@dataclass
class GLMMultipleChoiceCollator(TextCollator):
    """Makes batches for `GLMForMultipleChoice`: the choices of a text behind one context.

        [CLS] Is it [MASK] <|endoftext|>   <|startofpiece|>   Bei    Shang
                                                 Bei          jing    hai       choice_ids
                                                Shang

    All choices begin at one start; each token sees the context, the start, and its own choice up to
    itself. So a context is read once, and a choice of one token takes no column.

    A feature is one of these; without a label there is no loss:

    * `{"text": "The answer is [MASK].", "choices": [" yes", " no"], "label": 0}`; the choices are
      scored exactly as they are written;
    * ids, `{"context": ..., "answers": [..., ...], "label": 0}`: the context with its special
      tokens, and each choice as it is scored; `"begun"` may hold ids that every choice begins with
      and that are read but not scored.

    With several masks a choice answers the last one, as in the original.

    A batch holds input_ids (B, T), attention_mask (B, 1, T, T), position_ids (B, 2, T), choice_ids
    (B, C, G), the tokens of each choice, -100 for padding and where a text has fewer choices than
    another, choice_indices (B, C, G), the columns that predict them, and labels (B,).

    Args:
        tokenizer, max_length, pad_to_multiple_of: of `TextCollator`.
        end_token: score the end of a choice that is given as text, too; the original's tuning on
            choices of several tokens does, its scoring does not.

    Raises:
        ValueError: for features of which no right batch can be made; it says which and why.
    """

    end_token: bool = False

    def __call__(self, features: list[dict]) -> BatchEncoding:
        rows = _of_each(self._row, features)
        batch = self.pad(rows)
        ids = batch["input_ids"]
        real = batch["attention_mask"].bool()
        width, length = self.room(rows)
        branches = []
        blocks = []
        for row in rows:
            branches.append(framed([], row.branches, width, length, padding=-2))
            blocks.append(framed([], row.blocks, width, length, padding=0))
        packed = {
            "input_ids": ids,
            "attention_mask": self._visible(real, torch.tensor(branches), width)[:, None],
            "position_ids": self._positions(ids, real, torch.tensor(blocks)),
            "choice_ids": padded_choices([row.choices for row in rows], padding=IGNORED),
            "choice_indices": width + padded_choices([row.predictors for row in rows], padding=0),
        }
        labels = [feature.get("label", feature.get("labels")) for feature in features]
        if any(label is not None for label in labels):
            packed["labels"] = choice_labels(labels, [len(row.choices) for row in rows])
        return BatchEncoding(packed)

    def _row(self, feature: dict) -> Packed:
        if "text" in feature and "choices" in feature:
            context = self.encode_context(feature["text"]).input_ids
            choices = self.tokenizer.encode_choices(feature["choices"])
            if self.end_token:
                choices = [[*choice, self.tokenizer.eop_token_id] for choice in choices]
        elif "context" in feature and "answers" in feature:
            context = _plain(feature["context"])
            choices = [_plain(choice) for choice in _plain(feature["answers"])]
            self._check_choices(choices)
        else:
            names = ", ".join(feature)
            raise ValueError(
                f'A feature has the fields {names}; give it "text" and "choices", or the ids '
                '"context" and "answers".'
            )
        self.count_blanks(context)
        return self._pack(context, _plain(feature.get("begun")) or [], choices)

    def _check_choices(self, choices: list[list[int]]):
        """Raise a ValueError for choices that are no ids of an answer."""
        if not choices or not all(choices):
            raise ValueError("A text has no choices or an empty one; give every choice a token.")
        for choice in choices:
            last = choice[-1:] == [self.tokenizer.eop_token_id]
            self.tokenizer.check_no_commands(choice[:-1] if last else choice, "A choice", ends=True)

    def _pack(self, context: list[int], begun: list[int], choices: list[list[int]]) -> Packed:
        start = [self.tokenizer.sop_token_id, *begun]
        next_block = len(start) + 1
        row = Packed(
            context,
            pieces=list(start),
            branches=[-1] * len(start),
            blocks=list(range(1, next_block)),
            choices=choices,
        )
        for number, choice in enumerate(choices):
            first = len(row.pieces)
            read = choice[:-1]
            row.predictors.append([len(start) - 1, *range(first, first + len(read))])
            row.pieces += read
            row.branches += [number] * len(read)
            row.blocks += range(next_block, next_block + len(read))
        return row

    def _visible(
        self,
        real: torch.Tensor,
        branches: torch.Tensor,
        width: int,
    ) -> torch.Tensor:
        """(B, T), (B, T) -> (B, T, T): whether the token of the row sees that of the column."""
        columns = torch.arange(real.shape[1])
        causal = columns <= columns[:, None]  # (T, T)
        is_start = branches == -1
        same_choice = branches[:, :, None] == branches[:, None]  # (B, T, T)
        visible = (columns < width) | (causal & (is_start[:, None] | same_choice))
        return visible & real[:, None]

    def _positions(
        self,
        ids: torch.Tensor,
        real: torch.Tensor,
        blocks: torch.Tensor,
    ) -> torch.Tensor:
        """(B, T) each -> (B, 2, T): positions, those of the last mask for a choice; blocks."""
        layout = self.layout(ids, real).answering_the_last_mask()
        counted = count_positions(real)
        of_mask = counted.gather(1, layout.is_mask.int().argmax(-1, keepdim=True))  # (B, 1)
        places = torch.where(layout.in_context, counted, of_mask) * real
        return torch.stack([places, blocks], dim=1)


@dataclass
class GLMPooledChoiceCollator:
    """Makes batches of choices for `GLMForSequenceClassification` with one label.

    A feature is one of these; without a label there is no loss:

    * `{"text": "It rains.", "choices": ["So it is wet.", "So it is dry."], "label": 0}`: each row
      is the pair of the text and a choice;
    * ids, `{"input_ids": [..., ...], "label": 0}`: the whole row of each choice.

    A batch holds input_ids and attention_mask (B, C, T), padded on the side of the tokenizer, and
    labels (B,). Where a text has fewer choices than another its last rows are all padding.

    Args:
        tokenizer: of the model.
        max_length: tokens of a pair; a longer one is cut.
        pad_to_multiple_of: make T a multiple of it.

    Raises:
        ValueError: for features of which no right batch can be made; it says which and why.
    """

    tokenizer: GLMTokenizerFast
    max_length: int | None = None
    pad_to_multiple_of: int | None = None

    def __call__(self, features: list[dict]) -> BatchEncoding:
        choices_of = _of_each(self._rows, features)
        most = max(map(len, choices_of))  # C
        rows = []
        for choices in choices_of:
            rows += choices
            rows += [[]] * (most - len(choices))
        flat = self.tokenizer.pad(
            {"input_ids": rows},
            pad_to_multiple_of=self.pad_to_multiple_of,
            return_tensors="pt",
        )  # (B * C, T) each
        batch = {}
        for name in ("input_ids", "attention_mask"):
            batch[name] = flat[name].unflatten(0, (len(features), most))
        labels = [feature.get("label", feature.get("labels")) for feature in features]
        if any(label is not None for label in labels):
            batch["labels"] = choice_labels(labels, list(map(len, choices_of)))
        return BatchEncoding(batch)

    def _rows(self, feature: dict) -> list[list[int]]:
        """The ids of each choice's row."""
        if "text" in feature and "choices" in feature:
            self.tokenizer.encode_choices(feature["choices"])  # says what is wrong with them
            options = {}
            if self.max_length is not None:
                options = {"truncation": True, "max_length": self.max_length}
            texts = [feature["text"]] * len(feature["choices"])
            return self.tokenizer(texts, feature["choices"], **options).input_ids
        if "input_ids" in feature:
            rows = [_plain(row) for row in _plain(feature["input_ids"])]
            if not rows or not all(isinstance(row, list) and row for row in rows):
                raise ValueError('"input_ids" is a list with the ids of each choice; give it one.')
            return rows
        names = ", ".join(feature)
        raise ValueError(
            f'A feature has the fields {names}; give it "text" and "choices", or "input_ids".'
        )


def first_fit(lengths: list[int], room: int) -> list[list[int]]:
    """Which of these lengths share a row: the longest first, each into the first with room."""
    bins: list[list[int]] = []
    left: list[int] = []
    for number in sorted(range(len(lengths)), key=lambda n: -lengths[n]):
        length = lengths[number]
        bin = next((bin for bin, space in enumerate(left) if space >= length), len(bins))
        if bin == len(bins):
            bins.append([])
            left.append(max(room, length))
        bins[bin].append(number)
        left[bin] -= length
    return bins


def choice_labels(labels: list, counts: list[int]) -> torch.Tensor:
    """(B,): the right choices of rows that have so many choices."""
    for row, (label, count) in enumerate(zip(labels, counts, strict=True), start=1):
        if label is None or not 0 <= int(label) < count or int(label) != float(label):
            raise ValueError(
                f"Feature {row} has {count} choices and the label {label}; a label is the number "
                "of a choice, counted from 0."
            )
    return torch.tensor([int(label) for label in labels])


def padded_choices(rows: list[list[list[int]]], padding: int) -> torch.Tensor:
    """(B, C, G), of the values of each token of each choice of each row."""
    most = max(map(len, rows))  # C
    longest = max(len(choice) for row in rows for choice in row)  # G
    padded = []
    for row in rows:
        choices = [*row, *[[]] * (most - len(row))]
        padded.append([choice + [padding] * (longest - len(choice)) for choice in choices])
    return torch.tensor(padded)


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
    for number, feature in enumerate(features, start=1):
        try:
            made.append(make(feature))
        except ValueError as error:
            raise ValueError(f"Feature {number}: {error}") from error
    return made


def _plain(values) -> list | None:
    """Lists of a tensor or an array."""
    return values.tolist() if hasattr(values, "tolist") else values
