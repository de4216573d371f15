"""Autoregressive blank infilling (Du et al., ACL 2022, sections 2.1 and 2.2): from text to what GLM is trained on.

    text      [CLS] a b c d e f <|endoftext|>
    context   [CLS] a [MASK] d [MASK] f <|endoftext|>         bidirectional
    pieces    <|startofpiece|> e  <|startofpiece|> b c        each causal, in shuffled order, predicting
    labels    e <|endofpiece|>    b c <|endofpiece|>

One mode for a whole batch decides what is masked: short spans ("token"), whole sentences ("sentence"), or one long span
that is most of the text ("document").

Shapes: B batch, T tokens of context and pieces, N tokens of a text, S tokens of its context, K spans, G tokens of pieces.
"""

import math
import warnings

import numpy as np
import torch
from torch.utils.data import get_worker_info

from .recipe import LONGEST_SPAN, MODES, RECIPES, SHORTEST_TEXT, Recipe

SENTENCE_ENDS = set(".?!;:。？！；…\n")
SHORTEST_PIECE = 32  # of a text that is split into short sequences
NOT_A_TARGET = -100  # the label that cross entropy ignores
MOST_DRAWS = 100  # for a batch in which no text can be masked; after these its texts will not do
MOST_WORKERS = 1024  # of a DataLoader


class NothingToMask(ValueError):
    """No text of a batch can be masked in the mode that is wanted."""


def sentence_end_table(tokenizer) -> np.ndarray:
    """(V,): whether each token ends a sentence: its piece, as the vocabulary writes it, contains an end mark."""
    vocabulary = tokenizer.get_vocab()
    table = np.zeros(max(vocabulary.values()) + 1, dtype=bool)
    table[[id for piece, id in vocabulary.items() if not SENTENCE_ENDS.isdisjoint(piece)]] = True
    return table


class BlankInfillingCollator:
    """Makes model inputs of texts, for `Trainer` or any `DataLoader`.

    Args:
        tokenizer: a `GLMTokenizerFast`. One without `[sMASK]` and `[gMASK]` uses `[MASK]` in every mode.
        recipe: a `Recipe`, or the name of a released one, a key of `RECIPES`.
        max_length: the longest text in tokens; random positions stay below it.
        seed: batches are a function of the seed, their number and their texts.
        rank, world_size: which of how many processes this is. No two of them share random numbers.
        first_batch: batches that this process made in a run that is continued.
        block_mask_id: id of `[dBLOCK]`; by default the first one that the tokenizer leaves free, as in the original.

    Called with a list of B texts, dicts with `input_ids` (N,): `[CLS]` text `<|endoftext|>`, one or several documents;
    `loss_mask` (N,), optional, is 0 for tokens that the suffix form of document mode must not learn.

    Returns:
        A dict of tensors: input_ids (B, T), position_ids (B, 2, T), attention_mask (B,), the lengths of the contexts, and
        labels (B, T), aligned with the logits, -100 where there is no target. Rows are padded on the right with zeros.
        B differs from the number of texts where they are split into short ones, or where one is left out.

    Raises:
        ValueError: for a text that does not begin with `[CLS]`, is too short or too long; `NothingToMask` if no text can
            be masked.

    Where the original is peculiar, this does the following:
        * A text whose spans do not fit, or that has no sentence end in sentence mode, is left out of the batch. If that
          would leave none, mode and spans are drawn again, with a warning.
        * In sentence mode the first sentence of a later document includes that document's `[CLS]`, as in the original.
          What follows the last sentence end of a document is no sentence, unless the text was cut there.
        * A token ends a sentence if its piece, as it is written in the vocabulary, contains an end mark. (Byte-level
          vocabularies write a newline differently, so there it is none.)
        * The suffix form is all there is for a text of several documents. It ends with `<|endoftext|>`, not with
          `<|endofpiece|>`.
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
        if isinstance(recipe, str) and recipe not in RECIPES:
            raise ValueError(f"There is no recipe {recipe}; choose one of {', '.join(RECIPES)}.")
        self.recipe = RECIPES[recipe] if isinstance(recipe, str) else recipe
        if self.recipe.short_sequence_prob and max_length < SHORTEST_PIECE + 2:
            raise ValueError(f"Short sequences need a max_length of at least {SHORTEST_PIECE + 2}.")
        self.max_length, self.seed, self.rank, self.world_size = max_length, seed, rank, world_size
        # Batches made so far by each worker, or by the process itself: shared, because a DataLoader starts new workers for
        # each epoch and these must not begin again.
        self.first_batch, self.batches = (
            first_batch,
            torch.zeros(MOST_WORKERS, dtype=torch.int64).share_memory_(),
        )
        self.cls_id, self.eos_id = tokenizer.cls_token_id, tokenizer.eos_token_id
        self.sop_id, self.eop_id = tokenizer.sop_token_id, tokenizer.eop_token_id
        mask_tokens = {"token": "[MASK]", "sentence": "[sMASK]", "document": "[gMASK]"}
        self.mask_ids = {
            mode: tokenizer.convert_tokens_to_ids(mask if mask in tokenizer.masks else "[MASK]")
            for mode, mask in mask_tokens.items()
        }
        vocabulary = tokenizer.get_vocab()
        self.block_mask_id = (
            max(vocabulary.values()) + 1 if block_mask_id is None else block_mask_id
        )
        self.ends_sentence = sentence_end_table(tokenizer)
        lengths = np.arange(1, LONGEST_SPAN + 1)
        log_poisson = lengths * math.log(self.recipe.mean_span_length) - np.cumsum(np.log(lengths))
        self.length_cdf = np.cumsum(np.exp(log_poisson)) / np.exp(log_poisson).sum()  # (39,)

    def __call__(self, samples: list[dict]) -> dict[str, torch.Tensor]:
        worker = get_worker_info()
        workers, this = (worker.num_workers, worker.id) if worker else (1, 0)
        # A DataLoader deals batches to its workers in turn, so this counts the batches of this process...
        number = self.first_batch + self.batches[this].item() * workers + this
        self.batches[this] += 1
        # ...and this those of all processes together: no two batches of a training run share a number.
        return self.collate(samples, number * self.world_size + self.rank)

    def collate(
        self, samples: list[dict], number: int, mode: str | None = None
    ) -> dict[str, torch.Tensor]:
        """The batch with this number, in the given mode or in one that is drawn."""
        random = np.random.default_rng([self.seed, number])
        texts = [self._check(np.asarray(sample["input_ids"])) for sample in samples]
        masks = [
            np.asarray(sample.get("loss_mask", np.ones(len(text))))
            for sample, text in zip(samples, texts)
        ]
        for _ in range(MOST_DRAWS):
            drawn, rows = self._draw(texts, masks, mode, random)
            if rows:
                return self._pad(rows)
            if mode is None:
                warnings.warn(
                    f"No text of a batch can be masked in {drawn} mode; mode and spans are drawn again."
                )
        raise NothingToMask(
            f"No text of this batch can be masked in {drawn} mode; use longer documents, fewer of them in a text, or larger "
            "batches."
        )

    def _draw(self, texts: list, masks: list, mode: str | None, random) -> tuple[str, list[tuple]]:
        """The mode, and a row for each text that can be masked."""
        if random.random() < self.recipe.short_sequence_prob:
            texts, masks = self._split(texts, masks, random)
        single_span = False
        if mode is None:
            single_span = random.random() < self.recipe.single_span_prob
            shares = (self.recipe.token, self.recipe.sentence, self.recipe.document)
            mode = (
                "token"
                if single_span
                else MODES[random.choice(3, p=np.array(shares) / sum(shares))]
            )
        if mode == "document":
            return mode, self._document_rows(texts, masks, random)
        find = self._sentences if mode == "sentence" else self._short_spans
        spans = [find(text, random, *([single_span] if mode == "token" else [])) for text in texts]
        return mode, [
            self._infill(text, found, mode, random)
            for text, found in zip(texts, spans)
            if len(found)
        ]

    def _check(self, text: np.ndarray) -> np.ndarray:
        if not SHORTEST_TEXT <= len(text) <= self.max_length or text[0] != self.cls_id:
            raise ValueError(
                f"A text of {len(text)} tokens cannot be masked; it must begin with [CLS] and have {SHORTEST_TEXT} to "
                f"{self.max_length}."
            )
        return text

    def _split(self, texts: list, masks: list, random) -> tuple[list, list]:
        """Short sequences: all texts cut into pieces of one random length, each with a `[CLS]` of its own."""
        length = random.integers(SHORTEST_PIECE, self.max_length - 1)
        short_texts, short_masks = [], []
        for text, mask in zip(texts, masks):
            pieces = max(1, (len(text) - 1) // (length - 1))
            for start in range(1, 1 + pieces * (length - 1), length - 1):
                part = slice(start, start + length - 1)
                short_texts.append(np.concatenate([[self.cls_id], text[part]]))
                short_masks.append(np.concatenate([[0], mask[part]]))
        return short_texts, short_masks

    # --- What is masked: spans (K, 2) of starts and ends, in text order ---

    def _short_spans(self, text: np.ndarray, random, single_span: bool) -> np.ndarray:
        """Token mode: spans of Poisson lengths. They overshoot the wanted share by part of the last one."""
        budget = 1 if single_span else max(1, int(self.recipe.masked_share * len(text)))
        lengths = 1 + np.searchsorted(
            self.length_cdf, random.random(budget)
        )  # as many as can be needed
        lengths = random.permutation(lengths[: 1 + np.searchsorted(lengths.cumsum(), budget)])
        *others, (longest_start, longest_end) = sorted(
            self._documents(text), key=lambda places: places[1] - places[0]
        )
        spans = []
        for start, end in others:  # each document but the longest has its share at most
            taken = np.searchsorted(
                lengths.cumsum(), int(self.recipe.masked_share * (end - start)), side="right"
            )
            spans.append(self._place(lengths[:taken], start, end, random))
            lengths = lengths[taken:]
        if lengths.sum() + len(lengths) - 1 > longest_end - longest_start:
            return np.empty((0, 2), dtype=int)
        spans.append(self._place(lengths, longest_start, longest_end, random))
        spans = np.concatenate(spans)
        return spans[spans[:, 0].argsort()]

    def _documents(self, text: np.ndarray) -> list[tuple[int, int]]:
        """Where masks may be in each document: not on its `[CLS]`, not on its end, not on the last token of all."""
        ends = [*np.flatnonzero(text[:-1] == self.eos_id), len(text) - 1]
        starts = [0, *(end + 1 for end in ends[:-1])]
        # A short sequence that begins with a document has two [CLS]; one that ends with a [CLS] has nothing after it.
        return [
            (start + int(np.argmin(text[start : end + 1] == self.cls_id)), end)
            for start, end in zip(starts, ends)
        ]

    def _place(self, lengths: np.ndarray, start: int, end: int, random) -> np.ndarray:
        """Spans of the given lengths (K,) inside start:end, at least one token apart."""
        count = len(lengths)
        room = end - start - lengths.sum() - max(count - 1, 0)
        starts = (
            start
            + np.sort(random.integers(0, room + 1, count))
            + np.cumsum(lengths)
            - lengths
            + np.arange(count)
        )
        return np.stack([starts, starts + lengths], axis=1)  # (K, 2)

    def _sentences(self, text: np.ndarray, random) -> np.ndarray:
        """Sentence mode: whole sentences, in random order until their share is reached."""
        sentence_ends = 1 + np.flatnonzero(self.ends_sentence[text])
        document_ends = 1 + np.flatnonzero(text == self.eos_id)
        if text[-1] != self.eos_id:  # the text was cut
            sentence_ends = np.union1d(sentence_ends, len(text))
        boundaries = np.union1d(sentence_ends, document_ends)
        starts = np.concatenate([[1], boundaries[:-1]])
        sentences = np.stack([starts, boundaries], axis=1)[np.isin(boundaries, sentence_ends)]
        sentences = random.permutation(sentences[sentences[:, 0] < sentences[:, 1]])
        masked = np.diff(sentences)[:, 0].cumsum()
        enough = 1 + np.searchsorted(masked, int(self.recipe.masked_share * len(text)))
        chosen = sentences[:enough]
        return chosen[chosen[:, 0].argsort()]

    def _document_rows(self, texts: list, masks: list, random) -> list[tuple]:
        """Document mode: one long blank in each text, of one length for the whole batch as far as texts allow."""
        lengths = [len(text) for text in texts]
        shortest, longest = int(self.recipe.document_min_share * min(lengths)), max(lengths) - 2
        blank = int(random.integers(max(1, min(shortest, longest)), longest + 1))
        rows = []
        for text, mask in zip(texts, masks):
            length = min(blank, len(text) - 2)
            several_documents = self.eos_id in text[:-1]
            if several_documents or random.random() < self.recipe.suffix_prob:
                rows.append(self._continue(text, mask, len(text) - length, random))
            else:
                spans = self._place(np.array([length]), 1, len(text) - 1, random)
                rows.append(self._infill(text, spans, "document", random))
        return rows

    # --- The rows: context (S,), then for the pieces inputs, labels, positions, block positions (G,) each ---

    def _infill(self, text: np.ndarray, spans: np.ndarray, mode: str, random) -> tuple:
        """Blanks for the spans (K, 2), and a piece for each of them."""
        starts, lengths = spans[:, 0], spans[:, 1] - spans[:, 0]  # (K,)
        masked = np.concatenate([np.arange(start, end) for start, end in spans])
        context = text.copy()
        context[starts] = self.mask_ids[mode]
        kept = np.ones(len(text), dtype=bool)
        kept[masked] = False
        kept[starts] = True
        blanks = kept.cumsum()[starts] - 1  # (K,): column of each mask in the context

        order = (
            random.permutation(len(spans)) if self.recipe.shuffle_pieces else np.arange(len(spans))
        )
        sizes = lengths[order] + 1  # (K,): each piece has one token more than its span
        first = np.repeat(sizes.cumsum() - sizes, sizes)  # (G,)
        in_piece = np.arange(sizes.sum()) - first  # (G,): 0 at <|startofpiece|>
        source = (
            np.repeat(starts[order], sizes) + in_piece
        )  # (G,): the token of the text that is predicted
        inputs = np.where(in_piece == 0, self.sop_id, text[source - 1])
        labels = np.where(
            in_piece == np.repeat(lengths[order], sizes),
            self.eop_id,
            text[source.clip(max=len(text) - 1)],
        )
        if mode == "token" and self.recipe.block_mask_prob:
            hidden = (in_piece > 0) & (random.random(len(inputs)) < self.recipe.block_mask_prob)
            inputs = np.where(hidden, self.block_mask_id, inputs)
        return self._row(
            context[kept], inputs, labels, np.repeat(blanks[order], sizes), in_piece + 1, random
        )

    def _continue(self, text: np.ndarray, mask: np.ndarray, end: int, random) -> tuple:
        """The suffix form: text[:end] is the context, its blank is all the rest."""
        context = np.append(text[:end], self.mask_ids["document"])
        inputs = np.append(self.sop_id, text[end:-1])
        labels = np.where(mask[end:] == 0, NOT_A_TARGET, text[end:])
        return self._row(
            context, inputs, labels, np.full(len(inputs), end), np.arange(len(inputs)) + 1, random
        )

    def _row(self, context, inputs, labels, positions, block_positions, random) -> tuple:
        """ids (T,), positions (2, T), labels (T,), length of the context."""
        if not self.recipe.block_positions:
            block_positions = np.ones_like(block_positions)
        positions = np.concatenate([np.arange(len(context)), positions])
        if self.recipe.random_position and len(context) < self.max_length:
            positions = positions + random.integers(0, self.max_length - len(context) + 1)
        block_positions = np.concatenate([np.zeros(len(context), dtype=int), block_positions])
        labels = np.concatenate([np.full(len(context), NOT_A_TARGET), labels])
        return (
            np.concatenate([context, inputs]),
            np.stack([positions, block_positions]),
            labels,
            len(context),
        )

    def _pad(self, rows: list[tuple]) -> dict[str, torch.Tensor]:
        length = max(len(ids) for ids, *_ in rows)
        input_ids = np.zeros((len(rows), length), dtype=np.int64)
        position_ids = np.zeros((len(rows), 2, length), dtype=np.int64)
        labels = np.full((len(rows), length), NOT_A_TARGET, dtype=np.int64)
        for row, (ids, positions, targets, _) in enumerate(rows):
            input_ids[row, : len(ids)] = ids
            position_ids[row, :, : len(ids)] = positions
            labels[row, : len(ids)] = targets
        batch = {"input_ids": input_ids, "position_ids": position_ids, "labels": labels}
        batch["attention_mask"] = np.array([context for *_, context in rows])
        return {name: torch.from_numpy(array) for name, array in batch.items()}
