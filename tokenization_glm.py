"""Tokenizer of GLM: text with blanks in, answers out.

What a text becomes (`[CLS] text with masks <|endoftext|>`), how it is cut into pieces and how ids
become text again is all in `tokenizer.json`; here is what GLM adds to a tokenizer of the library.

Shapes: B batch, S tokens of context, G tokens of the answers, T = S + G, N tokens of a generated
row.
"""

import copy
import json
import re
import unicodedata
from collections.abc import Sequence
from typing import cast

import torch
from tokenizers import AddedToken, Encoding, Tokenizer, pre_tokenizers, processors
from transformers import BatchEncoding, PreTrainedTokenizerFast
from transformers.tokenization_utils_base import PaddingStrategy, TruncationStrategy

# Tokens that only GLM has, by the name of the attribute; with `_id` it is the id.
GLM_TOKENS = {
    "sop_token": "<|startofpiece|>",
    "eop_token": "<|endofpiece|>",
    "gmask_token": "[gMASK]",
    "smask_token": "[sMASK]",
}
MASKS = ("[MASK]", "[gMASK]", "[sMASK]")
IGNORED = -100  # the label that a loss leaves out
# What no space precedes: closing punctuation, and an apostrophe unless it opens a quotation.
GLUED_TO_THE_LEFT = re.compile(r"[.,;:!?)\]}%’”…]|'(?!\w)|'(?:s|t|re|ve|ll|d|m)\b", re.IGNORECASE)

# --- Where versions of Transformers differ --------------------------------------------------------
# 4.57 sends every text through `_batch_encode_plus`, 5 through `_encode_plus`.
ENCODES_BATCHES = hasattr(PreTrainedTokenizerFast, "_batch_encode_plus")
# 4.57 calls tokens without a name so, 5 calls them `extra_special_tokens`.
UNNAMED_TOKENS = "additional_special_tokens"
READS_UNNAMED_TOKENS = UNNAMED_TOKENS in PreTrainedTokenizerFast.SPECIAL_TOKENS_ATTRIBUTES


class VersionedTokenizer(PreTrainedTokenizerFast):
    """The library's tokenizer, the same in each version of it.

    A class of its own, because 5 does not read `tokenizer.json` into a class that itself defines
    `__init__`.
    """

    _tokenizer: Tokenizer

    def __init__(self, *args, **kwargs):
        if READS_UNNAMED_TOKENS and isinstance(kwargs.get("extra_special_tokens"), list):
            kwargs[UNNAMED_TOKENS] = kwargs.pop("extra_special_tokens")
        super().__init__(*args, **kwargs)
        # The library names tokens by a dictionary, `extra_special_tokens`. What 5 saves of it 4.57
        # does not read, and repositories made before have none: the vocabulary always knows.
        named = self.special_tokens_map
        unnamed: dict[str, str | AddedToken] = {
            name: token
            for name, token in GLM_TOKENS.items()
            if name not in named and self._tokenizer.token_to_id(token) is not None
        }
        self._set_model_specific_special_tokens(unnamed)

    if ENCODES_BATCHES:

        def _batch_encode_plus(self, batch_text_or_text_pairs, **kwargs):
            return self._encode_texts(batch_text_or_text_pairs, **kwargs)

        def _library_encode(self, texts, **kwargs) -> BatchEncoding:
            # 5, whose types are looked at, has no such method.
            return super()._batch_encode_plus(texts, **kwargs)  # type: ignore[misc]

    else:

        def _encode_plus(self, text, text_pair=None, **kwargs):
            return self._encode_texts(text, text_pair=text_pair, **kwargs)

        def _library_encode(self, texts, **kwargs) -> BatchEncoding:
            return super()._encode_plus(texts, **kwargs)

        @property
        def add_prefix_space(self) -> bool:
            """Whether each text gets a space in front.

            As in 4.57, the way of cutting of the GPT-2 and RoBERTa families heeds it.
            """
            return self._add_prefix_space

        @add_prefix_space.setter
        def add_prefix_space(self, value: bool):
            self._add_prefix_space = value
            if hasattr(self._tokenizer.pre_tokenizer, "add_prefix_space"):
                self._tokenizer.pre_tokenizer.add_prefix_space = value


class GLMTokenizerFast(VersionedTokenizer):
    """The tokenizer of every GLM family: GPT-2, RoBERTa, BERT, Chinese SentencePiece.

    Attributes:
        sop_token, eop_token, gmask_token, smask_token, and the same with `_id`. Asking for a mask
            that the model was not trained with is an AttributeError that names the masks it has.
        mask_token_ids: ids of the masks that the model knows.
        continuation_mask, continuation_mask_id: the one that the original appends to a text.
    """

    model_input_names = ["input_ids", "attention_mask"]
    padding_side = "left"
    _auto_class = "AutoTokenizer"  # so that the code is saved beside the files

    def __getattr__(self, name):
        token = GLM_TOKENS.get(name.removesuffix("_id"))
        if token is not None and self._tokenizer.token_to_id(token) is None:
            masks = ", ".join(self.masks)
            raise AttributeError(
                f"This model has no {token}; the masks it was trained with: {masks}."
            )
        return super().__getattr__(name)

    @property
    def masks(self) -> list[str]:
        """The masks that the model knows, as they are written in a text."""
        return [mask for mask in MASKS if self._tokenizer.token_to_id(mask) is not None]

    @property
    def mask_token_ids(self) -> list[int]:
        return [self._tokenizer.token_to_id(mask) for mask in self.masks]

    @property
    def continuation_mask(self) -> str:
        """The mask that continues a text: `[gMASK]`, or `[MASK]` for a model that has none."""
        gmask = GLM_TOKENS["gmask_token"]
        return gmask if gmask in self.masks else MASKS[0]

    @property
    def continuation_mask_id(self) -> int:
        return self._tokenizer.token_to_id(self.continuation_mask)

    # --- Encoding ---------------------------------------------------------------------------------

    def _encode_texts(self, texts, **kwargs) -> BatchEncoding:
        """The library's encoding, with two rules of GLM.

        A text that ends with `[gMASK]` is to be continued: no end of text follows it, as in the
        original. And truncation may not cut a mask away.
        """
        words = kwargs.get("is_split_into_words", False)
        single = isinstance(texts, str) or (
            words and not (texts and isinstance(texts[0], (list, tuple)))
        )
        rows = [texts] if single else texts
        continued = self._are_continued(rows, **kwargs)
        if not any(continued):
            encoded = self._library_encode(texts, **kwargs)
        elif all(continued) and not kwargs.get("return_overflowing_tokens"):
            encoded = self._without_ends()._library_encode(texts, **kwargs)
        else:
            encoded = self._encode_each_end(rows, continued, **kwargs)
        self._check_truncation(encoded, **kwargs)
        return encoded

    def _are_continued(
        self,
        rows,
        text_pair=None,
        add_special_tokens=True,
        is_split_into_words=False,
        split_special_tokens=None,
        **kwargs,
    ) -> list[bool]:
        """Whether each text ends with `[gMASK]`; a pair of texts never does."""
        if split_special_tokens is None:
            split_special_tokens = self.split_special_tokens
        if split_special_tokens or "[gMASK]" not in self.masks:
            return []  # it is text
        if not add_special_tokens or text_pair is not None:
            return []
        if self._tokenizer.post_processor is None:
            return []  # nothing is put behind a text
        ends = [row[-1] if is_split_into_words and row else row for row in rows]
        return [isinstance(end, str) and end.endswith("[gMASK]") for end in ends]

    def _without_ends(self) -> "GLMTokenizerFast":
        """This tokenizer, but that it puts no end behind a text; both share the vocabulary."""
        backend = self._tokenizer
        added = sorted(backend.get_added_tokens_decoder().items())  # in the order of their ids
        twin = Tokenizer(backend.model)
        twin.normalizer = backend.normalizer
        twin.pre_tokenizer = backend.pre_tokenizer
        twin.add_tokens([token for _, token in added])
        twin.post_processor = _without_end(backend.post_processor)
        without_ends = copy.copy(self)
        without_ends._tokenizer = twin
        return without_ends

    def _encode_each_end(
        self,
        rows,
        continued: list[bool],
        return_tensors=None,
        return_overflowing_tokens=False,
        **options,
    ) -> BatchEncoding:
        """What the library returns for these arguments, but for the end of some rows.

        The library cuts the texts into pieces; truncation, special tokens and padding follow here,
        where each row has its own end.
        """
        encodings, texts = [], []
        for text, windows in enumerate(
            self._end_rows(
                self._cut(rows, **options),
                continued,
                windows=return_overflowing_tokens,
                **options,
            )
        ):
            windows = windows if return_overflowing_tokens else windows[:1]
            encodings += windows
            texts += [text] * len(windows)
        self._pad_encodings(encodings, **options)
        data = self._read_encodings(encodings, **options)
        if return_overflowing_tokens:
            data["overflow_to_sample_mapping"] = texts
        return BatchEncoding(data, encodings, tensor_type=return_tensors)

    def _cut(
        self,
        rows,
        is_split_into_words=False,
        split_special_tokens=None,
        **options,
    ) -> list[Encoding]:
        """The pieces of each text, without special tokens, truncation and padding."""
        options = {"is_split_into_words": is_split_into_words, "verbose": False}
        if split_special_tokens is not None:
            options["split_special_tokens"] = split_special_tokens
        return self._library_encode(list(rows), add_special_tokens=False, **options).encodings

    def _end_rows(
        self,
        encodings: list[Encoding],
        continued: list[bool],
        windows: bool,
        truncation_strategy=TruncationStrategy.DO_NOT_TRUNCATE,
        max_length=None,
        stride=0,
        **options,
    ) -> list[list[Encoding]]:
        """For each row the windows into which truncation cuts it, with their special tokens."""
        closed = self._tokenizer.post_processor
        without_end = _without_end(closed)
        gmask = self.gmask_token_id
        ended = []
        for encoding, is_open in zip(encodings, continued, strict=True):
            if truncation_strategy != TruncationStrategy.DO_NOT_TRUNCATE:
                special = (without_end if is_open else closed).num_special_tokens_to_add(False)
                if windows and len(encoding) + special > max_length:
                    # All but the last end as other texts do: they need the room.
                    special = closed.num_special_tokens_to_add(False)
                _truncate(
                    encoding,
                    max_length - special,
                    stride,
                    self.truncation_side,
                )
            row = []
            for part in (encoding, *encoding.overflowing):
                is_last = is_open and part.ids[-1:] == [gmask]
                processor = without_end if is_last else closed
                row.append(processor.process(part))
            ended.append(row)
        return ended

    def _pad_encodings(
        self,
        encodings: list[Encoding],
        padding_strategy=PaddingStrategy.DO_NOT_PAD,
        max_length=None,
        pad_to_multiple_of=None,
        padding_side=None,
        **options,
    ):
        """Pad in place, as the library does it."""
        if padding_strategy == PaddingStrategy.DO_NOT_PAD:
            return
        length = max(map(len, encodings))
        if padding_strategy == PaddingStrategy.MAX_LENGTH:
            length = max_length
        if pad_to_multiple_of:
            length += -length % pad_to_multiple_of
        for encoding in encodings:
            encoding.pad(
                length,
                direction=padding_side or self.padding_side,
                pad_id=self.pad_token_id,
                pad_type_id=self.pad_token_type_id,
                pad_token=self.pad_token,
            )

    def _read_encodings(
        self,
        encodings: list[Encoding],
        max_length=None,
        verbose=True,
        **options,
    ) -> dict[str, list]:
        """The fields that were asked for, a value for each encoding."""
        asked = {name: value for name, value in options.items() if name.startswith("return_")}
        fields: dict[str, list] = {}
        for encoding in encodings:
            read, _ = self._convert_encoding(encoding, **asked)
            for name, (value,) in read.items():
                fields.setdefault(name, []).append(value)
            self._eventual_warn_about_too_long_sequence(encoding.ids, max_length, verbose)
        return fields

    def _check_truncation(
        self,
        encoded,
        truncation_strategy=None,
        return_overflowing_tokens=False,
        **kwargs,
    ):
        if truncation_strategy == TruncationStrategy.DO_NOT_TRUNCATE or return_overflowing_tokens:
            return  # nothing is cut away
        masks = set(self.mask_token_ids)
        for encoding in encoded.encodings:
            # What overflowed of a pair, or with a stride, repeats what is kept.
            if _places(masks, encoding.overflowing) - _places(masks, [encoding]):
                raise ValueError(
                    "Truncation would cut a mask away; raise max_length, shorten the text, or set "
                    "truncation_side to the side without masks."
                )

    def build_inputs_with_special_tokens(
        self,
        token_ids_0: list[int],
        token_ids_1: list[int] | None = None,
    ) -> list[int]:
        """`[CLS]` and the end of text around ids, as encoding puts them.

        4.57's `prepare_for_model` asks for it, and code written for the old Hub port.
        """
        ids = [*token_ids_0, *(token_ids_1 or [])]
        is_continued = token_ids_1 is None and ids[-1:] == [self._tokenizer.token_to_id("[gMASK]")]
        end = [] if is_continued else [self.eos_token_id]
        return [self.cls_token_id, *ids, *end]

    def train_new_from_iterator(
        self,
        text_iterator,
        vocab_size,
        length=None,
        new_special_tokens=None,
        special_tokens_map=None,
        **kwargs,
    ):
        """The library's, for SentencePiece too.

        There `<unk>` is a piece of the old vocabulary: `[UNK]` takes over.
        """
        unknown = getattr(self._tokenizer.model, "unk_token", None)
        renamed = special_tokens_map or {}
        if unknown is not None and unknown not in self.get_added_vocab():
            special_tokens_map = {unknown: renamed.get(self.unk_token, self.unk_token), **renamed}
        return super().train_new_from_iterator(
            text_iterator, vocab_size, length, new_special_tokens, special_tokens_map, **kwargs
        )

    # --- Model inputs -----------------------------------------------------------------------------

    def build_inputs_for_generation(
        self,
        inputs: BatchEncoding,
        max_gen_length: int = 512,
        targets: str | list[str] | list[list[str]] | None = None,
        padding: bool = False,
        raw_targets: bool = False,
    ) -> BatchEncoding:
        """Contexts with a started piece, or with answers to learn from, as the old port had them.

        Args:
            inputs: what the tokenizer returns for texts with masks, input_ids (B, S), padded on
                either side.
            max_gen_length: tokens to leave room for, or to cut each answer to.
            targets: the answer of each row; a list of answers where a row has several blanks.
            padding: with targets, pad the answers to `max_gen_length` and not only to the longest.
            raw_targets: take the answers as they are written, see `encode_answers`.

        Returns:
            Without targets input_ids (B, S + 1), position_ids (B, 2, S + max_gen_length) and
            generation_attention_mask (B, 1, S + max_gen_length, S + max_gen_length). With targets
            input_ids (B, T), position_ids (B, 2, T), attention_mask (B, 1, T, T) and labels (B, T),
            aligned with the logits: position t predicts labels[t].

        Raises:
            ValueError: for a row without a mask, or with more answers than masks.
        """
        context, real = self._context(inputs)  # (B, S)
        if targets is None:
            # Only positions and mask matter of what is to come.
            answers = [[[self.sop_token_id] * max_gen_length]] * len(context)
        else:
            answers = self._answers(inputs, context, real, targets, raw_targets)
            answers = [[answer[:max_gen_length] for answer in row] for row in answers]
        length = max(sum(map(len, row)) for row in answers)
        if padding and targets is not None:
            length = max(length, max_gen_length)

        pieces = [self.pieces(row, length) for row in answers]
        read = torch.tensor([ids for ids, _ in pieces])  # (B, G)
        labels = torch.tensor([labels for _, labels in pieces])  # (B, G)
        position_ids = torch.tensor(
            [
                self._positions(context[row], real[row], answers[row], length)
                for row in range(len(context))
            ]
        )  # (B, 2, T)
        mask = _prefix_mask(real, length)
        if targets is None:
            return BatchEncoding(
                {
                    "input_ids": torch.cat([context, read[:, :1]], dim=1),
                    "position_ids": position_ids,
                    "generation_attention_mask": mask,
                }
            )
        return BatchEncoding(
            {
                "input_ids": torch.cat([context, read], dim=1),
                "position_ids": position_ids,
                "attention_mask": mask,
                "labels": torch.cat([torch.full_like(context, IGNORED), labels], dim=1),
            }
        )

    def encode_answers(
        self,
        context: list[int],
        answers: Sequence[str],
        spaces: list[bool] | None = None,
        raw: bool = False,
    ) -> list[list[int]]:
        """The ids of the answers of one text, each with its end token.

        In the families of GPT-2 and RoBERTa a space belongs to the word behind it, and a mask
        swallows the space on its left. So the answer begins with that space: behind "located in
        [MASK]" the model was trained to say " Beijing", not "Beijing". An answer gets the space
        that `fill` would put in front of it; one that begins with white space stays as it is. In
        the other families a word has no space of its own, and nothing is added.

        Args:
            context: ids of the text, without padding.
            answers: at most one for each mask.
            spaces: whether white space stood in front of each mask, see `spaces_before_masks`; by
                default it is taken to have stood before all but a mask that begins the text.
            raw: take the answers as they are written.

        Raises:
            ValueError: for a text without a mask, with more answers than masks, and for an answer
                that holds a token which begins or ends answers.
        """
        columns = self._mask_columns(context)
        if len(answers) > len(columns):
            raise ValueError(
                f"A text has {len(columns)} masks and {len(answers)} answers; give each answer a "
                "mask."
            )
        spaces = [None] * len(columns) if spaces is None else spaces
        return [
            [*self._encode_answer(context[:column], answer, spaced, raw), self.eop_token_id]
            for column, spaced, answer in zip(columns, spaces, answers, strict=False)
        ]

    def _encode_answer(
        self,
        before: list[int],
        answer: str,
        spaced: bool | None,
        raw: bool = False,
    ) -> list[int]:
        """The ids of an answer, without its end, behind the ids that stand before its mask.

        `spaced` and `raw` are those of `encode_answers`.
        """
        if not raw and isinstance(self._tokenizer.pre_tokenizer, pre_tokenizers.ByteLevel):
            if spaced is None:
                spaced = len(before) > 1  # than [CLS]
            text = cast(str, self.decode(before, skip_special_tokens=True))
            answer = _spaced_answer(text + " " * spaced, answer)
        ids = self(answer, add_special_tokens=False).input_ids
        self.check_no_commands(ids, "An answer", ends=True)
        return ids

    def encode_allowed_answers(
        self,
        inputs: BatchEncoding,
        allowed: Sequence[Sequence[Sequence[str] | None]],
    ) -> list[list[list[list[int]] | None]]:
        """The `allowed_answers` of `generate`, from strings.

        Args:
            inputs: what the tokenizer returns for texts with masks, input_ids (B, S), padded on
                either side.
            allowed: for each text a list with an entry for each of its masks: a list of answers,
                or None where all are allowed. An answer gets the space that it has in the text, as
                in `encode_answers`.

        Returns:
            The same with the ids of each answer, without its end.

        Raises:
            ValueError: for a list of another length, and for what is no list of texts.
        """
        context, real = self._context(inputs)  # (B, S)
        if isinstance(allowed, str) or len(allowed) != len(context):
            raise ValueError(
                f"allowed_answers has {len(allowed)} entries for {len(context)} texts; pass a list "
                "for each text."
            )
        encodings = getattr(inputs, "encodings", None) or [None] * len(context)
        rows = []
        for ids, visible, encoding, of_text in zip(
            context, real.bool(), encodings, allowed, strict=True
        ):
            text = ids[visible].tolist()
            spaces = None if encoding is None else self.spaces_before_masks(encoding)
            rows.append(self._encode_allowed(text, of_text, spaces))
        return rows

    def _encode_allowed(
        self,
        context: list[int],
        allowed: Sequence[Sequence[str] | None],
        spaces: list[bool] | None,
    ) -> list[list[list[int]] | None]:
        """Those of one text, from the ids of its context."""
        columns = self._mask_columns(context)
        if not isinstance(allowed, (list, tuple)) or len(allowed) != len(columns):
            raise ValueError(
                f"allowed_answers needs a list with one entry for each mask of a text, of which "
                f"there are {len(columns)}: a list of answers, or None."
            )
        spaces = [None] * len(columns) if spaces is None else spaces
        blanks: list[list[list[int]] | None] = []
        for column, spaced, answers in zip(columns, spaces, allowed, strict=True):
            if answers is None:
                blanks.append(None)
                continue
            check_texts("allowed_answers", answers)
            blanks.append(
                [self._encode_answer(context[:column], answer, spaced) for answer in answers]
            )
        return blanks

    def encode_bad_words(self, words: Sequence[str]) -> list[list[int]]:
        """The `bad_words_ids` of `generate`, from strings.

        A word is forbidden in the tokens in which the tokenizer writes it, behind a space and where
        there is none; and so is a longer word that begins with these tokens. That a model puts it
        together of other tokens, as one of random numbers does, is not prevented.

        Raises:
            ValueError: for what is no list of texts, and for an empty one among them.
        """
        check_texts("bad_words", words)
        variants: dict[tuple[int, ...], None] = {}  # without repetitions, in their order
        for word in words:
            if not word.strip():
                raise ValueError(f"bad_words has {word!r}; pass words with something in them.")
            for ids in self._spaced_and_not(word.strip()):
                self.check_no_commands(ids, "A bad word", ends=True)
                variants[tuple(ids)] = None
        return [list(ids) for ids in variants]

    def _spaced_and_not(self, word: str) -> list[list[int]]:
        """The ids of a word with a space before it and without, where these differ."""
        backend = self._tokenizer
        texts = [word]
        if isinstance(backend.pre_tokenizer, pre_tokenizers.ByteLevel):
            texts.append(f" {word}")
        variants = [self(text, add_special_tokens=False).input_ids for text in texts]
        if isinstance(backend.pre_tokenizer, pre_tokenizers.Metaspace):  # a text begins with one
            unspaced = pre_tokenizers.Metaspace(prepend_scheme="never")
            normal = backend.normalizer.normalize_str(word) if backend.normalizer else word
            parts = [part for part, _ in unspaced.pre_tokenize_str(normal)]
            variants.append([token.id for part in parts for token in backend.model.tokenize(part)])
        return variants

    def spaces_before_masks(self, encoding: Encoding) -> list[bool]:
        """Whether white space stood in front of each mask of a text, which the mask swallowed."""
        masks = dict(zip(self.mask_token_ids, self.masks, strict=True))
        return [
            end - start > len(masks[id])
            for id, (start, end) in zip(encoding.ids, encoding.offsets, strict=True)
            if id in masks
        ]

    def check_no_commands(self, ids: list[int], what: str, ends: bool = False):
        """Raise a ValueError if ids of a text hold a token that begins or ends an answer.

        Args:
            what: the beginning of the message.
            ends: whether the end of text is one too: it is in an answer.
        """
        commands = ["sop_token", "eop_token"] + ["eos_token"] * ends
        for name in commands:
            if getattr(self, f"{name}_id") in ids:
                raise ValueError(
                    f"{what} holds {getattr(self, name)}, which GLM takes for a command and not "
                    "for text; leave it out."
                )

    def pieces(self, answers: list[list[int]], length: int = 0) -> tuple[list[int], list[int]]:
        """What is read of the answers of one text, and what is to be said at each of its tokens.

        Args:
            answers: their ids, each with its end token.
            length: pad to so many tokens.

        Returns:
            ids (G,) and labels (G,): an answer is read as `<|startofpiece|>` and all but its last
            token.
        """
        read, labels = [], []
        for answer in answers:
            read += [self.sop_token_id, *answer[:-1]]
            labels += answer
        missing = length - len(read)
        return read + [self.pad_token_id] * missing, labels + [IGNORED] * missing

    def build_inputs_for_multiple_choice(
        self, inputs: BatchEncoding, choices: list[list[str]]
    ) -> BatchEncoding:
        """Every choice of a row behind its context; each sees the context and itself.

        A choice is scored as it is encoded, without an end token; with several masks it answers the
        last one, as in the original.

        Args:
            inputs: what the tokenizer returns for texts with a mask, input_ids (B, S).
            choices: the choices of each row.

        Returns:
            input_ids (B, T), position_ids (B, 2, T), attention_mask (B, 1, T, T); choice_ids, for
            each row and choice its tokens, and choice_indices, the columns of the logits that
            predict them.

        Raises:
            ValueError: for a row without a mask or without choices, and for a choice that is no
                token.
        """
        context, real = self._context(inputs)  # (B, S)
        if len(choices) != len(context):
            raise ValueError(
                f"There are {len(choices)} lists of choices for {len(context)} texts; pass one for "
                "each."
            )
        tokens = [self.encode_choices(row) for row in choices]
        width = context.shape[1]
        length = width + max(sum(map(len, row)) for row in tokens)
        ids, positions, masks, columns = [], [], [], []
        for row, row_tokens in enumerate(tokens):
            lengths = list(map(len, row_tokens))
            read, _ = self.pieces(row_tokens, length - width)
            ids.append([*context[row].tolist(), *read])
            last_mask = self._mask_columns(context[row].tolist())[-1]
            positions.append(
                self._positions(
                    context[row],
                    real[row],
                    row_tokens,
                    length - width,
                    blanks=[last_mask] * len(row_tokens),
                )
            )
            masks.append(_choices_mask(real[row], lengths, length))
            columns.append(list(torch.arange(width, width + sum(lengths)).split(lengths)))
        return BatchEncoding(
            {
                "input_ids": torch.tensor(ids),  # (B, T)
                "position_ids": torch.tensor(positions),  # (B, 2, T)
                "attention_mask": torch.stack(masks)[:, None],  # (B, 1, T, T)
                "choice_ids": [[torch.tensor(choice) for choice in row] for row in tokens],
                "choice_indices": columns,
            }
        )

    def encode_choices(self, choices: Sequence[str]) -> list[list[int]]:
        """The ids of the choices of one text, exactly as they are written."""
        if isinstance(choices, str) or not all(isinstance(choice, str) for choice in choices):
            raise ValueError("The choices of a text are no list of texts; pass one.")
        tokens = []
        if choices:
            tokens = self(list(choices), add_special_tokens=False, verbose=False).input_ids
        for ids in tokens:
            self.check_no_commands(ids, "A choice", ends=True)
        if not tokens or not all(tokens):
            raise ValueError("A text has no choices or an empty one; give every choice some text.")
        return tokens

    def _context(self, inputs: BatchEncoding) -> tuple[torch.Tensor, torch.Tensor]:
        """ids (B, S), and 1 for real tokens, 0 for padding (B, S)."""
        context = torch.as_tensor(inputs["input_ids"])
        context = context[None] if context.dim() == 1 else context
        if "attention_mask" not in inputs:
            return context, torch.ones_like(context)
        return context, torch.as_tensor(inputs["attention_mask"]).view_as(context)

    def _answers(
        self,
        inputs: BatchEncoding,
        context: torch.Tensor,
        real: torch.Tensor,
        targets: str | list[str] | list[list[str]],
        raw: bool,
    ) -> list[list[list[int]]]:
        """The ids of the answers of each row."""
        targets = [targets] if isinstance(targets, str) else targets
        if len(targets) != len(context):
            raise ValueError(
                f"There are {len(targets)} targets for {len(context)} texts; pass one for each."
            )
        encodings = getattr(inputs, "encodings", None) or [None] * len(context)
        answers = []
        for row, target in enumerate(targets):
            spaces = None if encodings[row] is None else self.spaces_before_masks(encodings[row])
            ids = context[row][real[row].bool()].tolist()
            target = [target] if isinstance(target, str) else target
            answers.append(self.encode_answers(ids, target, spaces, raw))
        return answers

    def _mask_columns(self, ids: list[int]) -> list[int]:
        """Where the masks of a text are."""
        masks = set(self.mask_token_ids)
        columns = [column for column, id in enumerate(ids) if id in masks]
        if not columns:
            raise ValueError(
                f"A text has no mask; write {' or '.join(self.masks)} where the answer belongs."
            )
        return columns

    def _positions(
        self,
        context: torch.Tensor,
        real: torch.Tensor,
        pieces: list[list[int]],
        length: int,
        blanks: list[int] | None = None,
    ) -> list[list[int]]:
        """Positions and block positions of one row (2, T): its context, then pieces and padding.

        Padding does not count. The pieces answer the masks in their order, or those in the columns
        `blanks`.
        """
        of_token = (real.cumsum(0) - 1).clamp(min=0).tolist()  # (S,)
        blanks = self._mask_columns(context.tolist()) if blanks is None else blanks
        first = [
            of_token[blank] for blank, piece in zip(blanks, pieces, strict=False) for _ in piece
        ]
        second = [step + 1 for piece in pieces for step in range(len(piece))]
        padding = [0] * (length - len(second))
        return [of_token + first + padding, [0] * len(of_token) + second + padding]

    # --- Answers ----------------------------------------------------------------------------------

    def decode_pieces(self, sequences, **decode_options) -> list[list[str]]:
        """The answers of each generated row, in the order of the blanks.

        Args:
            sequences: ids (B, N) as `generate` returns them, a tensor, an array or lists: context,
                `<|startofpiece|>`, then the pieces, each with its end token. The end of the last
                piece may be missing. Negative ids, which trainers pad with, do not count. Labels,
                or other rows without a context, are pieces only.
            decode_options: of `decode`.

        Returns:
            For each row the text of its pieces, one for each mask of its context: an empty string
            where the row ends before its blank. Without a context, as many as there are.
        """
        if hasattr(sequences, "tolist"):
            sequences = sequences.tolist()
        # Rows may be tensors in a list, or one row a list of numpy's integers.
        sequences = [row.tolist() if hasattr(row, "tolist") else row for row in sequences]
        if len(sequences) and isinstance(sequences[0], int):
            sequences = [sequences]
        return [
            [
                cast(str, self.decode(piece, **decode_options)).strip()
                for piece in self._split_pieces(row)
            ]
            for row in sequences
        ]

    def _split_pieces(self, row: list[int]) -> list[list[int]]:
        """The ids of the pieces of a row, without their ends."""
        row = [id for id in row if id >= 0]
        ends = {self.eop_token_id, self.eos_token_id}
        blanks = None
        if self.sop_token_id in row:
            start = row.index(self.sop_token_id)
            masks = set(self.mask_token_ids)
            blanks = sum(id in masks for id in row[:start]) or None
            row = row[start + 1 :]
        else:  # a piece without a token ends with the end of piece: the rest is padding
            while row and row[0] == self.pad_token_id:
                row = row[1:]
            while row and row[-1] == self.pad_token_id:
                row = row[:-1]
        pieces: list[list[int]] = [[]]
        for id in row:
            if id in ends:
                pieces.append([])
            else:
                pieces[-1].append(id)
        if not pieces[-1]:
            pieces.pop()  # nothing follows the last end
        if blanks is None:
            return pieces
        return pieces[:blanks] + [[]] * (blanks - len(pieces))

    def fill(self, text: str, pieces: list[str]) -> str:
        """The text with its blanks filled in order, spaced as a person would write it.

        Masks take no space of their own: "a [MASK]." and "a[MASK]." mean the same to GLM. Blanks
        for which there is no piece stay as they are.

        Raises:
            ValueError: if there are more pieces than masks.
        """
        blanks = list(re.finditer("|".join(map(re.escape, self.masks)), text))
        if len(pieces) > len(blanks):
            raise ValueError(
                f"There are {len(pieces)} pieces for {len(blanks)} masks; pass at most one for "
                "each mask."
            )
        filled, end = "", 0
        for blank, piece in zip(blanks, pieces, strict=False):
            filled = _join(filled, text[end : blank.start()], own_space=True)
            piece = piece.strip()
            filled = _join(filled, piece) if piece else filled.rstrip(" ")
            end = blank.end()
        return _join(filled, text[end:], own_space=True)

    def token_text(self, id: int) -> str:
        """A token as a person can read it."""
        piece, text = cast(str, self.convert_ids_to_tokens(id)), cast(str, self.decode([id]))
        if "\ufffd" in text:  # some bytes of a character
            return piece
        text = text.strip(" ") or "␣" * len(text)
        return text if text.isprintable() else repr(text)[1:-1]

    def answer_spans(self, text: str, pieces: list[str]) -> list[tuple[int, int]]:
        """Start and end of each piece in `fill(text, pieces)`, to show them in colour."""
        blanks = re.finditer("|".join(map(re.escape, self.masks)), text)
        spans = []
        for number, (blank, piece) in enumerate(zip(blanks, pieces, strict=False), start=1):
            end = len(self.fill(text[: blank.end()], pieces[:number]))
            spans.append((end - len(piece.strip()), end))
        return spans


def check_texts(name: str, texts):
    """Raise a ValueError for what is no list of texts."""
    if not isinstance(texts, (list, tuple)) or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{name} has {texts!r} where a list of texts belongs; pass one.")
    if not texts:
        raise ValueError(f"{name} has an empty list; leave it out, or write a text into it.")


def _prefix_mask(real: torch.Tensor, length: int) -> torch.Tensor:
    """(B, S), 1 where the context is real -> what is visible to it and to `length` tokens behind.

    Returns:
        (B, 1, T, T): 1 for the context, and for the tokens behind it up to the one that sees.
    """
    batch, width = real.shape
    total = width + length
    visible = torch.ones(total, total, dtype=torch.long).tril().repeat(batch, 1, 1)  # (B, T, T)
    visible[:, :, :width] = real[:, None]
    return visible[:, None]


def _choices_mask(
    real: torch.Tensor,
    lengths: list[int],
    total: int,
) -> torch.Tensor:
    """(S,), 1 where the context is real, and the choices behind it -> what is visible, (T, T)."""
    width = len(real)
    used = width + sum(lengths)
    visible = real.new_zeros(total, total)
    visible[width:used, width:used] = torch.block_diag(
        *(real.new_ones(length, length).tril() for length in lengths)
    )
    visible[:used, :width] = real
    return visible


def _without_end(processor: processors.PostProcessor) -> processors.PostProcessor:
    """The same, but that it puts no end behind a text."""
    state = json.loads(processor.__getstate__())
    if state["type"] != "TemplateProcessing" or "SpecialToken" not in state["single"][-1]:
        return processor
    state["single"].pop()
    without = processors.TemplateProcessing()
    without.__setstate__(json.dumps(state).encode())
    return without


def _truncate(encoding: Encoding, limit: int, stride: int, side: str):
    """Cut in place; what is cut away is in `overflowing`."""
    if len(encoding) <= limit:
        return
    if limit <= stride:
        raise ValueError(
            f"There is room for {max(limit, 0)} tokens of a text and stride is {stride}; raise "
            "max_length or lower stride."
        )
    encoding.truncate(limit, stride=stride, direction=side)


def _places(ids: set[int], encodings: list[Encoding]) -> set[tuple]:
    """Where these tokens are: text of a pair, word, and characters."""
    return {
        (text, word, characters)
        for encoding in encodings
        for id, text, word, characters in zip(
            encoding.ids,
            encoding.sequence_ids,
            encoding.word_ids,
            encoding.offsets,
            strict=True,
        )
        if id in ids
    }


def _join(left: str, right: str, own_space: bool = False) -> str:
    """Put two stretches of text side by side; `own_space` keeps the space that begins `right`."""
    if not left or not right:
        return left + right
    if own_space and right[0].isspace():
        return left.rstrip(" ") + right
    before, after = left.rstrip(" ")[-1:], right[0]
    if GLUED_TO_THE_LEFT.match(right) or (_is_unspaced(before) and _is_unspaced(after)):
        return left.rstrip(" ") + right
    if left[-1].isalnum() and after.isalnum() and not _is_wide(left[-1]) and not _is_wide(after):
        return f"{left} {right}"
    return left + right


def _spaced_answer(before: str, answer: str) -> str:
    """The answer with the space that `_join` puts between it and the text before it."""
    if not answer or answer[0].isspace():
        return answer
    return _join(before, answer)[len(before.rstrip(" ")) :]


def _is_wide(character: str) -> bool:
    """Whether it is a character of Chinese, Japanese or Korean writing."""
    return bool(character) and unicodedata.east_asian_width(character) in "WF"


def _is_unspaced(character: str) -> bool:
    """Whether words of its writing are not spaced: Chinese and Japanese, not Korean."""
    return _is_wide(character) and not unicodedata.name(character, "").startswith("HANGUL")
