"""Autoregressive blank infilling (Du et al., ACL 2022, sections 2.1 and 2.2): GLM's training.

    text      [CLS] a b c d e f <|endoftext|>
    context   [CLS] a [MASK] d [MASK] f <|endoftext|>     bidirectional
    pieces    <|startofpiece|> e  <|startofpiece|> b c    each causal, in shuffled order, predicting
    labels    e <|endofpiece|>    b c <|endofpiece|>

One mode for a whole batch decides what is masked: short spans ("token"), whole sentences
("sentence"), or one long span that is most of the text ("document").

Shapes: B batch, T tokens of context and pieces, N tokens of a text, S tokens of its context,
K spans, G tokens of pieces, V ids of the vocabulary.
"""

import math
import warnings
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import get_worker_info

from ..tokenization_glm import IGNORED
from .recipe import LONGEST_SPAN, MODES, RECIPES, SHORTEST_TEXT, Recipe

SENTENCE_ENDS = set(".?!;:。？！；…\n")
MASK_TOKENS = {"token": "[MASK]", "sentence": "[sMASK]", "document": "[gMASK]"}
SHORTEST_PIECE = 32  # tokens of a text that is split into short sequences
MOST_DRAWS = 100  # for a batch in which no text can be masked; after these its texts will not do
MOST_WORKERS = 1024  # of a DataLoader


class NothingToMask(ValueError):
    """No text of a batch can be masked in the mode that is wanted."""


class Text(NamedTuple):
    """ids (N,); learned (N,): 0 for tokens that the suffix form of document mode must not learn."""

    ids: np.ndarray
    learned: np.ndarray


class Row(NamedTuple):
    """ids (T,), positions (2, T), labels (T,), and the length of the context."""

    ids: np.ndarray
    positions: np.ndarray
    labels: np.ndarray
    context: int


def sentence_end_table(tokenizer) -> np.ndarray:
    """(V,): whether each token ends a sentence: its piece, as it is written, has an end mark."""
    vocabulary = tokenizer.get_vocab()
    table = np.zeros(max(vocabulary.values()) + 1, dtype=bool)
    table[[id for piece, id in vocabulary.items() if not SENTENCE_ENDS.isdisjoint(piece)]] = True
    return table


def span_length_cdf(mean: float) -> np.ndarray:
    """(39,): probability of a span of at most 1, 2, ... tokens; Poisson's, without 0 and a tail."""
    lengths = np.arange(1, LONGEST_SPAN + 1)
    weights = np.exp(lengths * math.log(mean) - np.cumsum(np.log(lengths)))
    return np.cumsum(weights) / weights.sum()


class BlankInfillingCollator:
    """Makes model inputs of texts, for `Trainer` or any `DataLoader`.

    Args:
        tokenizer: a `GLMTokenizerFast`. One without `[sMASK]` and `[gMASK]` uses `[MASK]` always.
        recipe: a `Recipe`, or the name of a released one, a key of `RECIPES`.
        max_length: the longest text in tokens; random positions stay below it.
        seed: batches are a function of the seed, their number and their texts.
        rank, world_size: which of how many processes this is. No two share random numbers.
        first_batch: batches that this process made in a run that is continued.
        block_mask_id: id of `[dBLOCK]`; by default the first one that the tokenizer leaves free, as
            in the original.

    Called with a list of B texts, dicts with `input_ids` (N,): `[CLS]` text `<|endoftext|>`, one or
    several documents; `loss_mask` (N,), optional, is 0 for tokens that the suffix form of document
    mode must not learn.

    Returns:
        A dict of tensors: input_ids (B, T), position_ids (B, 2, T), attention_mask (B,), which is
        the lengths of the contexts, and labels (B, T), aligned with the logits, -100 where there is
        no target. Rows are padded on the right with zeros. B differs from the number of texts where
        they are split into short ones, or where one is left out.

    Raises:
        ValueError: for a text that does not begin with `[CLS]`, is too short or too long.
        NothingToMask: if no text can be masked.

    Where the original is peculiar, this does the following:
        * A text whose spans do not fit, or that has no sentence end in sentence mode, is left out
          of the batch. If that would leave none, mode and spans are drawn again, with a warning.
        * In sentence mode the first sentence of a later document includes that document's `[CLS]`,
          as in the original. What follows the last sentence end of a document is no sentence,
          unless the text was cut there.
        * A token ends a sentence if its piece, as it is written in the vocabulary, contains an end
          mark. (Byte-level vocabularies write a newline differently, so there it is none.)
        * The suffix form is all there is for a text of several documents. It ends with
          `<|endoftext|>`, not with `<|endofpiece|>`.
        * A short sequence takes consecutive tokens; a rest shorter than the others is not used.
    """

    def __init__(
        self,
        tokenizer,
        recipe: Recipe | str = "glm-base",
        max_length: int = 512,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        first_batch: int = 0,
        block_mask_id: int | None = None,
    ):
        if isinstance(recipe, str):
            if recipe not in RECIPES:
                names = ", ".join(RECIPES)
                raise ValueError(f"There is no recipe {recipe}; choose one of {names}.")
            recipe = RECIPES[recipe]
        if recipe.short_sequence_prob and max_length < SHORTEST_PIECE + 2:
            raise ValueError(f"Short sequences need a max_length of at least {SHORTEST_PIECE + 2}.")
        self.recipe = recipe
        self.max_length = max_length
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.first_batch = first_batch
        # Batches made so far by each worker, or by the process itself: shared, because a DataLoader
        # starts new workers for each epoch and these must not begin again.
        self.batches = torch.zeros(MOST_WORKERS, dtype=torch.int64).share_memory_()
        self.cls_id = tokenizer.cls_token_id
        self.eos_id = tokenizer.eos_token_id
        self.sop_id = tokenizer.sop_token_id
        self.eop_id = tokenizer.eop_token_id
        self.mask_ids = {
            mode: tokenizer.convert_tokens_to_ids(mask if mask in tokenizer.masks else "[MASK]")
            for mode, mask in MASK_TOKENS.items()
        }
        self.ends_sentence = sentence_end_table(tokenizer)  # (V,)
        self.block_mask_id = len(self.ends_sentence) if block_mask_id is None else block_mask_id
        self.length_cdf = span_length_cdf(recipe.mean_span_length)  # (39,)

    def __call__(self, samples: list[dict]) -> dict[str, torch.Tensor]:
        worker = get_worker_info()
        workers, this = (worker.num_workers, worker.id) if worker else (1, 0)
        # A DataLoader deals batches to its workers in turn: this counts those of this process...
        number = self.first_batch + int(self.batches[this]) * workers + this
        self.batches[this] += 1
        # ...and this those of all processes: no two batches of a training run share a number.
        return self.collate(samples, number * self.world_size + self.rank)

    def collate(
        self,
        samples: list[dict],
        number: int,
        mode: str | None = None,
    ) -> dict[str, torch.Tensor]:
        """The batch with this number, in the given mode or in one that is drawn."""
        random = np.random.default_rng([self.seed, number])
        texts = [self._read(sample) for sample in samples]
        for _ in range(MOST_DRAWS):
            drawn, rows = self._draw(texts, mode, random)
            if rows:
                return pad(rows)
            if mode is None:
                warnings.warn(
                    f"No text of a batch can be masked in {drawn} mode; "
                    "mode and spans are drawn again.",
                    stacklevel=2,
                )
        raise NothingToMask(
            f"No text of this batch can be masked in {drawn} mode; use longer documents, fewer of "
            "them in a text, or larger batches."
        )

    def _read(self, sample: dict) -> Text:
        ids = np.asarray(sample["input_ids"])
        if not SHORTEST_TEXT <= len(ids) <= self.max_length or ids[0] != self.cls_id:
            raise ValueError(
                f"A text of {len(ids)} tokens cannot be masked; it must begin with [CLS] and have "
                f"{SHORTEST_TEXT} to {self.max_length}."
            )
        return Text(ids, np.asarray(sample.get("loss_mask", np.ones(len(ids)))))

    def _draw(self, texts: list[Text], mode: str | None, random) -> tuple[str, list[Row]]:
        """The mode, and a row for each text that can be masked."""
        if random.random() < self.recipe.short_sequence_prob:
            texts = self._split(texts, random)
        single_span = False
        if mode is None:
            single_span = random.random() < self.recipe.single_span_prob
            mode = "token" if single_span else self._draw_mode(random)
        if mode == "document":
            return mode, self._document_rows(texts, random)
        rows = []
        for text in texts:
            if mode == "sentence":
                spans = self._sentences(text.ids, random)
            else:
                spans = self._short_spans(text.ids, random, single_span)
            rows.append((text, spans))
        return mode, [
            self._infill(text.ids, spans, mode, random) for text, spans in rows if len(spans)
        ]

    def _draw_mode(self, random) -> str:
        shares = np.array([self.recipe.token, self.recipe.sentence, self.recipe.document])
        return MODES[random.choice(len(MODES), p=shares / shares.sum())]

    def _split(self, texts: list[Text], random) -> list[Text]:
        """Short sequences: all texts cut to one random length, each with a `[CLS]` of its own."""
        length = random.integers(SHORTEST_PIECE, self.max_length - 1)
        kept = length - 1  # tokens of the text in each
        short = []
        for ids, learned in texts:
            count = max(1, (len(ids) - 1) // kept)
            for start in range(1, 1 + count * kept, kept):
                part = slice(start, start + kept)
                short.append(
                    Text(
                        np.concatenate([[self.cls_id], ids[part]]),
                        np.concatenate([[0], learned[part]]),
                    )
                )
        return short

    # --- What is masked: spans (K, 2) of starts and ends, in text order -------------------------

    def _short_spans(self, ids: np.ndarray, random, single_span: bool) -> np.ndarray:
        """Token mode: spans of Poisson lengths; none if they do not fit."""
        lengths = self._draw_lengths(1 if single_span else self._budget(len(ids)), random)
        documents = sorted(self._documents(ids), key=lambda places: places[1] - places[0])
        *others, (longest_start, longest_end) = documents
        spans = []
        for start, end in others:  # each document but the longest has its share at most
            share = int(self.recipe.masked_share * (end - start))
            taken = np.searchsorted(lengths.cumsum(), share, side="right")
            spans.append(place(lengths[:taken], start, end, random))
            lengths = lengths[taken:]
        if lengths.sum() + len(lengths) - 1 > longest_end - longest_start:
            return np.empty((0, 2), dtype=int)
        spans.append(place(lengths, longest_start, longest_end, random))
        return in_text_order(np.concatenate(spans))

    def _budget(self, length: int) -> int:
        """Tokens to mask in a text."""
        return max(1, int(self.recipe.masked_share * length))

    def _draw_lengths(self, budget: int, random) -> np.ndarray:
        """(K,): lengths of spans; they overshoot the budget by part of the last one drawn."""
        # As many as can be needed.
        lengths = 1 + np.searchsorted(self.length_cdf, random.random(budget))
        needed = 1 + np.searchsorted(lengths.cumsum(), budget)
        return random.permutation(lengths[:needed])

    def _documents(self, ids: np.ndarray) -> list[tuple[int, int]]:
        """Where masks may be in each document: not on its `[CLS]`, its end, the last token."""
        ends = [*np.flatnonzero(ids[:-1] == self.eos_id), len(ids) - 1]
        starts = [0, *(end + 1 for end in ends[:-1])]
        # A short sequence that begins with a document has two [CLS]; one that ends with a [CLS] has
        # nothing after it.
        return [
            (start + int(np.argmin(ids[start : end + 1] == self.cls_id)), end)
            for start, end in zip(starts, ends, strict=True)
        ]

    def _sentences(self, ids: np.ndarray, random) -> np.ndarray:
        """Sentence mode: whole sentences, in random order until their share is reached."""
        sentence_ends = 1 + np.flatnonzero(self.ends_sentence[ids])
        document_ends = 1 + np.flatnonzero(ids == self.eos_id)
        if ids[-1] != self.eos_id:  # the text was cut
            sentence_ends = np.union1d(sentence_ends, len(ids))
        boundaries = np.union1d(sentence_ends, document_ends)
        starts = np.concatenate([[1], boundaries[:-1]])
        sentences = np.stack([starts, boundaries], axis=1)[np.isin(boundaries, sentence_ends)]
        sentences = random.permutation(sentences[sentences[:, 0] < sentences[:, 1]])
        masked = np.diff(sentences)[:, 0].cumsum()
        enough = 1 + np.searchsorted(masked, int(self.recipe.masked_share * len(ids)))
        return in_text_order(sentences[:enough])

    def _document_rows(self, texts: list[Text], random) -> list[Row]:
        """Document mode: a long blank in each text, of one length for the batch where that fits."""
        sizes = [len(text.ids) for text in texts]
        longest = max(sizes) - 2
        shortest = min(int(self.recipe.document_min_share * min(sizes)), longest)
        blank = int(random.integers(max(1, shortest), longest + 1))
        rows = []
        for text in texts:
            length = min(blank, len(text.ids) - 2)
            several_documents = self.eos_id in text.ids[:-1]
            if several_documents or random.random() < self.recipe.suffix_prob:
                rows.append(self._continue(text, len(text.ids) - length, random))
            else:
                spans = place(np.array([length]), 1, len(text.ids) - 1, random)
                rows.append(self._infill(text.ids, spans, "document", random))
        return rows

    # --- The rows -------------------------------------------------------------------------------

    def _infill(self, ids: np.ndarray, spans: np.ndarray, mode: str, random) -> Row:
        """Blanks for the spans (K, 2), and a piece for each of them."""
        starts = spans[:, 0]  # (K,)
        lengths = spans[:, 1] - starts  # (K,)
        context, blanks = self._blank_out(ids, spans, self.mask_ids[mode])
        order = np.arange(len(spans))
        if self.recipe.shuffle_pieces:
            order = random.permutation(len(spans))
        sizes = lengths[order] + 1  # (K,): each piece has one token more than its span
        first = np.repeat(sizes.cumsum() - sizes, sizes)  # (G,)
        in_piece = np.arange(sizes.sum()) - first  # (G,): 0 at <|startofpiece|>
        # (G,): the token of the text that is predicted; behind a span the end of the piece is.
        source = np.repeat(starts[order], sizes) + in_piece
        is_last = in_piece == np.repeat(lengths[order], sizes)
        inputs = np.where(in_piece == 0, self.sop_id, ids[source - 1])
        labels = np.where(is_last, self.eop_id, ids[source.clip(max=len(ids) - 1)])
        if mode == "token" and self.recipe.block_mask_prob:
            hidden = (in_piece > 0) & (random.random(len(inputs)) < self.recipe.block_mask_prob)
            inputs = np.where(hidden, self.block_mask_id, inputs)
        positions = np.repeat(blanks[order], sizes)
        return self._row(context, inputs, labels, positions, in_piece + 1, random)

    def _blank_out(
        self,
        ids: np.ndarray,
        spans: np.ndarray,
        mask_id: int,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The context (S,), and the column of each mask in it (K,)."""
        starts = spans[:, 0]
        masked = np.concatenate([np.arange(start, end) for start, end in spans])
        context = ids.copy()
        context[starts] = mask_id
        kept = np.ones(len(ids), dtype=bool)
        kept[masked] = False
        kept[starts] = True
        return context[kept], kept.cumsum()[starts] - 1

    def _continue(self, text: Text, end: int, random) -> Row:
        """The suffix form: ids[:end] is the context, its blank is all the rest."""
        ids, learned = text
        context = np.append(ids[:end], self.mask_ids["document"])
        inputs = np.append(self.sop_id, ids[end:-1])
        labels = np.where(learned[end:] == 0, IGNORED, ids[end:])
        positions = np.full(len(inputs), end)
        return self._row(context, inputs, labels, positions, np.arange(len(inputs)) + 1, random)

    def _row(self, context, inputs, labels, positions, block_positions, random) -> Row:
        """Of a context (S,), and inputs, labels, positions, block positions (G,) of its pieces."""
        if not self.recipe.block_positions:
            block_positions = np.ones_like(block_positions)
        positions = np.concatenate([np.arange(len(context)), positions])
        if self.recipe.random_position and len(context) < self.max_length:
            positions = positions + random.integers(0, self.max_length - len(context) + 1)
        block_positions = np.concatenate([np.zeros(len(context), dtype=int), block_positions])
        return Row(
            ids=np.concatenate([context, inputs]),
            positions=np.stack([positions, block_positions]),
            labels=np.concatenate([np.full(len(context), IGNORED), labels]),
            context=len(context),
        )


def place(lengths: np.ndarray, start: int, end: int, random) -> np.ndarray:
    """Spans (K, 2) of the given lengths (K,) inside start:end, at least one token apart."""
    count = len(lengths)
    room = end - start - lengths.sum() - max(count - 1, 0)
    gaps = np.sort(random.integers(0, room + 1, count))  # in front of each, with those before it
    starts = start + gaps + lengths.cumsum() - lengths + np.arange(count)
    return np.stack([starts, starts + lengths], axis=1)


def in_text_order(spans: np.ndarray) -> np.ndarray:
    return spans[spans[:, 0].argsort()]


def pad(rows: list[Row]) -> dict[str, torch.Tensor]:
    """Rows as one batch, padded on the right."""
    length = max(len(row.ids) for row in rows)
    input_ids = np.zeros((len(rows), length), dtype=np.int64)
    position_ids = np.zeros((len(rows), 2, length), dtype=np.int64)
    labels = np.full((len(rows), length), IGNORED, dtype=np.int64)
    for number, row in enumerate(rows):
        input_ids[number, : len(row.ids)] = row.ids
        position_ids[number, :, : len(row.ids)] = row.positions
        labels[number, : len(row.ids)] = row.labels
    return {
        "input_ids": torch.from_numpy(input_ids),
        "position_ids": torch.from_numpy(position_ids),
        "labels": torch.from_numpy(labels),
        "attention_mask": torch.tensor([row.context for row in rows]),
    }
