"""Tokenizer of GLM: text with blanks in, answers out.

What a text becomes (`[CLS] text with masks <|endoftext|>`), how it is cut into pieces and how ids become text again is
all in `tokenizer.json`; here is what GLM adds to a tokenizer of the library.

Shapes: B batch, S tokens of context, G tokens of the answers, T = S + G, N tokens of a generated row.
"""

import re
import unicodedata

import torch
from torch.nn.utils.rnn import pad_sequence
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
# What no space precedes: closing punctuation, and an apostrophe unless it opens a quotation.
GLUED_TO_THE_LEFT = re.compile(r"[.,;:!?)\]}%’”…]|'(?!\w)|'(?:s|t|re|ve|ll|d|m)\b", re.IGNORECASE)


class GLMTokenizerFast(PreTrainedTokenizerFast):
    """The tokenizer of every GLM family: GPT-2, RoBERTa, BERT, Chinese SentencePiece.

    Attributes:
        sop_token, eop_token, gmask_token, smask_token, and the same with `_id`. Asking for a mask that the model was not
            trained with is an AttributeError that names the masks it has.
        mask_token_ids: ids of the masks that the model knows.
    """

    model_input_names = ["input_ids", "attention_mask"]
    padding_side = "left"

    def __getattr__(self, name):
        surface = GLM_TOKENS.get(name.removesuffix("_id"))
        if surface is None:
            return super().__getattr__(name)
        id = self._tokenizer.token_to_id(surface)
        if id is None:
            raise AttributeError(
                f"This model has no {surface}; the masks it was trained with: {', '.join(self.masks)}."
            )
        return id if name.endswith("_id") else surface

    @property
    def masks(self) -> list[str]:
        """The masks that the model knows, as they are written in a text."""
        return [mask for mask in MASKS if self._tokenizer.token_to_id(mask) is not None]

    @property
    def mask_token_ids(self) -> list[int]:
        return [self._tokenizer.token_to_id(mask) for mask in self.masks]

    # --- Encoding -----------------------------------------------------------------------------------------------------

    # Transformers 5 and 4.57 differ in the method through which every text goes.
    if hasattr(PreTrainedTokenizerFast, "_batch_encode_plus"):

        def _batch_encode_plus(self, batch_text_or_text_pairs, **kwargs):
            return self._encode_blanks(
                super()._batch_encode_plus, batch_text_or_text_pairs, **kwargs
            )
    else:

        def _encode_plus(self, text, text_pair=None, **kwargs):
            return self._encode_blanks(super()._encode_plus, text, text_pair=text_pair, **kwargs)

        @property
        def add_prefix_space(self) -> bool:
            """Whether each text gets a space in front. As in 4.57, GPT-2's and RoBERTa's way of cutting heeds it."""
            return self._add_prefix_space

        @add_prefix_space.setter
        def add_prefix_space(self, value: bool):
            self._add_prefix_space = value
            if hasattr(self._tokenizer.pre_tokenizer, "add_prefix_space"):
                self._tokenizer.pre_tokenizer.add_prefix_space = value

    def _encode_blanks(self, encode, texts, **kwargs) -> BatchEncoding:
        """The library's encoding, with two rules of GLM.

        A text that ends with `[gMASK]` is to be continued: no end of text follows it, as in the original. And truncation
        may not cut a mask away.
        """
        words = kwargs.get("is_split_into_words", False)
        single = isinstance(texts, str) or (
            words and not (texts and isinstance(texts[0], (list, tuple)))
        )
        rows = [texts] if single else texts
        ends = [
            row[-1] if words and row else row for row in rows
        ]  # a pair is a tuple: it has no blank to be continued
        continued = [isinstance(end, str) and end.endswith("[gMASK]") for end in ends]
        if kwargs.get("text_pair") is not None or not kwargs.get("add_special_tokens", True):
            continued = []
        if not any(continued) or "[gMASK]" not in self.masks:
            encoded = encode(texts, **kwargs)
            self._check_truncation(encoded, **kwargs)
            return encoded
        tensors = kwargs.pop("return_tensors", None)
        strategy = kwargs.pop("padding_strategy", PaddingStrategy.DO_NOT_PAD)
        padding = {name: kwargs.pop(name, None) for name in ("pad_to_multiple_of", "padding_side")}
        encoded = encode(list(rows), **kwargs)
        self._check_truncation(encoded, **kwargs)
        texts_of_rows = encoded.get("overflow_to_sample_mapping", range(len(rows)))
        open_end = [self.gmask_token_id, self.eos_token_id]
        ids = encoded["input_ids"]
        open_rows = [
            row
            for row, text in enumerate(texts_of_rows)
            if continued[text] and ids[row][-2:] == open_end
        ]
        for name, values in encoded.items():
            for row in open_rows if name != "overflow_to_sample_mapping" else ():
                values[row] = values[row][:-1] if isinstance(values[row], list) else values[row] - 1
        if single and tensors is None and not kwargs.get("return_overflowing_tokens"):
            encoded = {name: values[0] for name, values in encoded.items()}
        if strategy == PaddingStrategy.DO_NOT_PAD:
            return BatchEncoding(dict(encoded), tensor_type=tensors)
        padding |= {
            "padding": strategy,
            "max_length": kwargs.get("max_length"),
            "return_tensors": tensors,
        }
        return self.pad(encoded, return_attention_mask="attention_mask" in encoded, **padding)

    def _check_truncation(
        self, encoded, truncation_strategy=None, return_overflowing_tokens=False, **kwargs
    ):
        if truncation_strategy == TruncationStrategy.DO_NOT_TRUNCATE or return_overflowing_tokens:
            return  # nothing is cut away
        masks = set(self.mask_token_ids)
        for encoding in encoded.encodings:
            # What overflowed of a pair, or with a stride, repeats what is kept.
            if _places(masks, encoding.overflowing) - _places(masks, [encoding]):
                raise ValueError(
                    "Truncation would cut a mask away; raise max_length, shorten the text, or set truncation_side to the "
                    "side without masks."
                )

    def train_new_from_iterator(
        self,
        text_iterator,
        vocab_size,
        length=None,
        new_special_tokens=None,
        special_tokens_map=None,
        **kwargs,
    ):
        """The library's, for SentencePiece too: its `<unk>` is a piece of the old vocabulary, `[UNK]` takes over."""
        unknown, renamed = (
            getattr(self._tokenizer.model, "unk_token", None),
            special_tokens_map or {},
        )
        if unknown is not None and unknown not in self.get_added_vocab():
            special_tokens_map = {unknown: renamed.get(self.unk_token, self.unk_token), **renamed}
        return super().train_new_from_iterator(
            text_iterator, vocab_size, length, new_special_tokens, special_tokens_map, **kwargs
        )

    # --- Model inputs -------------------------------------------------------------------------------------------------

    def build_inputs_for_generation(
        self,
        inputs: BatchEncoding,
        max_gen_length: int = 512,
        targets: str | list[str] | list[list[str]] | None = None,
        padding: bool = False,
    ) -> BatchEncoding:
        """Contexts with a started piece, or with answers to learn from, in the form of the old Hub port.

        Args:
            inputs: what the tokenizer returns for texts with masks, input_ids (B, S), padded on either side.
            max_gen_length: tokens to leave room for, or to cut each answer to.
            targets: the answer of each row; a list of answers where a row has several blanks.
            padding: with targets, pad the answers to `max_gen_length` and not only to the longest row.

        Returns:
            Without targets input_ids (B, S + 1), position_ids (B, 2, S + max_gen_length) and generation_attention_mask
            (B, 1, S + max_gen_length, S + max_gen_length). With targets input_ids (B, T), position_ids (B, 2, T),
            attention_mask (B, 1, T, T) and labels (B, T), aligned with the logits: position t predicts labels[t].

        Raises:
            ValueError: for a row without a mask, or with more answers than masks.
        """
        context, real = self._context(inputs)  # (B, S)
        if targets is None:
            answers = [[[self.sop_token_id] * max_gen_length]] * len(
                context
            )  # only positions and mask matter
        else:
            targets = [targets] if isinstance(targets, str) else targets
            if len(targets) != len(context):
                raise ValueError(
                    f"There are {len(targets)} targets for {len(context)} texts; pass one for each."
                )
            rows = [[target] if isinstance(target, str) else target for target in targets]
            answers = [[self._answer(answer)[:max_gen_length] for answer in row] for row in rows]
        longest = max(sum(map(len, row)) for row in answers)
        length = max(longest, max_gen_length) if padding and targets is not None else longest

        ids, labels, positions = [], [], []
        for row, row_answers in enumerate(answers):
            of_token, masks = self._context_positions(context[row], real[row])
            if len(row_answers) > len(masks):
                raise ValueError(
                    f"Text {row} has {len(masks)} masks and {len(row_answers)} answers; give each answer a mask."
                )
            read = [token for answer in row_answers for token in [self.sop_token_id, *answer[:-1]]]
            missing = length - len(read)
            ids.append(read + [self.pad_token_id] * missing)
            labels.append([token for answer in row_answers for token in answer] + [-100] * missing)
            of_blank = [of_token[mask] for mask, answer in zip(masks, row_answers) for _ in answer]
            in_block = [i + 1 for answer in row_answers for i in range(len(answer))]
            positions.append(
                [
                    of_token + of_blank + [0] * missing,
                    [0] * len(of_token) + in_block + [0] * missing,
                ]
            )
        answer_ids, position_ids = torch.tensor(ids), torch.tensor(positions)  # (B, G), (B, 2, T)
        causal = (
            torch.ones(length, length, dtype=torch.long).tril().expand(len(context), -1, -1)
        )  # (B, G, G)
        nothing = torch.zeros(len(context), context.shape[1], length, dtype=torch.long)
        from_context = torch.cat(
            [real[:, None].expand(-1, context.shape[1], -1), nothing], dim=2
        )  # (B, S, T)
        from_answers = torch.cat([real[:, None].expand(-1, length, -1), causal], dim=2)  # (B, G, T)
        mask = torch.cat([from_context, from_answers], dim=1)[:, None]  # (B, 1, T, T)
        if targets is None:
            ids = torch.cat([context, answer_ids[:, :1]], dim=1)
            return BatchEncoding(
                {"input_ids": ids, "position_ids": position_ids, "generation_attention_mask": mask}
            )
        labels = torch.cat([torch.full_like(context, -100), torch.tensor(labels)], dim=1)
        ids = torch.cat([context, answer_ids], dim=1)
        return BatchEncoding(
            {
                "input_ids": ids,
                "position_ids": position_ids,
                "attention_mask": mask,
                "labels": labels,
            }
        )

    def build_inputs_for_multiple_choice(
        self, inputs: BatchEncoding, choices: list[list[str]]
    ) -> BatchEncoding:
        """Every choice of a row behind its context; each sees the context and itself.

        A choice is scored as it is encoded, without an end token; with several masks it answers the last one, as in the
        original.

        Args:
            inputs: what the tokenizer returns for texts with a mask, input_ids (B, S).
            choices: the choices of each row.

        Returns:
            input_ids (B, T), position_ids (B, 2, T), attention_mask (B, 1, T, T); choice_ids, for each row and choice its
            tokens, and choice_indices, the columns of the logits that predict them.

        Raises:
            ValueError: for a row without a mask or without choices, and for a choice that is no token.
        """
        context, real = self._context(inputs)  # (B, S)
        if len(choices) != len(context):
            raise ValueError(
                f"There are {len(choices)} lists of choices for {len(context)} texts; pass one for each."
            )
        built = {
            "input_ids": [],
            "position_ids": [],
            "attention_mask": [],
            "choice_ids": [],
            "choice_indices": [],
        }
        for row, row_choices in enumerate(choices):
            tokens = [self(choice, add_special_tokens=False).input_ids for choice in row_choices]
            if not tokens or not all(tokens):
                raise ValueError(
                    f"Text {row} has no choices or an empty one; give every choice some text."
                )
            of_token, masks = self._context_positions(context[row], real[row])
            ids = context[row].tolist() + [
                id for choice in tokens for id in [self.sop_token_id, *choice[:-1]]
            ]
            of_blank = [of_token[masks[-1]]] * (len(ids) - len(of_token))
            in_block = [i + 1 for choice in tokens for i in range(len(choice))]
            lengths = [len(choice) for choice in tokens]
            visible = torch.block_diag(
                real.new_zeros(len(of_token), len(of_token)),
                *(real.new_ones(length, length).tril() for length in lengths),
            )  # (T, T)
            visible[:, : len(of_token)] = real[row]
            built["input_ids"].append(torch.tensor(ids))
            built["position_ids"].append(
                torch.tensor([of_token + of_blank, [0] * len(of_token) + in_block]).T
            )
            built["attention_mask"].append(visible)
            built["choice_ids"].append([torch.tensor(choice) for choice in tokens])
            built["choice_indices"].append(
                list(torch.arange(len(of_token), len(ids)).split(lengths))
            )
        length = max(len(ids) for ids in built["input_ids"])
        built["attention_mask"] = torch.stack(
            [
                torch.nn.functional.pad(mask, (0, length - len(mask), 0, length - len(mask)))
                for mask in built["attention_mask"]
            ]
        )[:, None]  # (B, 1, T, T)
        built["input_ids"] = pad_sequence(
            built["input_ids"], batch_first=True, padding_value=self.pad_token_id
        )
        built["position_ids"] = pad_sequence(built["position_ids"], batch_first=True).transpose(
            1, 2
        )  # (B, 2, T)
        return BatchEncoding(built)

    def _answer(self, text: str) -> list[int]:
        return self(text, add_special_tokens=False).input_ids + [self.eop_token_id]

    def _context(self, inputs: BatchEncoding) -> tuple[torch.LongTensor, torch.LongTensor]:
        """ids (B, S), and 1 for real tokens, 0 for padding (B, S)."""
        context = torch.as_tensor(inputs["input_ids"])
        context = context[None] if context.dim() == 1 else context
        real = (
            torch.as_tensor(inputs["attention_mask"])
            if "attention_mask" in inputs
            else torch.ones_like(context)
        )
        return context, real.view_as(context)

    def _context_positions(
        self, ids: torch.LongTensor, real: torch.LongTensor
    ) -> tuple[list[int], list[int]]:
        """(S,) positions that do not count padding, and the columns of the masks."""
        masks = torch.isin(ids, torch.tensor(self.mask_token_ids)).nonzero()[:, 0].tolist()
        if not masks:
            raise ValueError(
                f"A text has no mask; write {' or '.join(self.masks)} where the answer belongs."
            )
        return (real.cumsum(0) - 1).clamp(min=0).tolist(), masks

    # --- Answers ------------------------------------------------------------------------------------------------------

    def decode_pieces(self, sequences) -> list[list[str]]:
        """The answers of each generated row, in the order of the blanks.

        Args:
            sequences: ids (B, N) as `generate` returns them, a tensor, an array or lists: context, `<|startofpiece|>`,
                then the pieces, each with its end token. The end of the last piece may be missing.

        Returns:
            For each row the text of its pieces, at most one for each mask of its context.
        """
        sequences = (
            sequences.tolist() if hasattr(sequences, "tolist") else [list(row) for row in sequences]
        )
        sequences = [sequences] if sequences and isinstance(sequences[0], int) else sequences
        masks, ends = set(self.mask_token_ids), {self.eop_token_id, self.eos_token_id}
        answers = []
        for row in sequences:
            start = row.index(self.sop_token_id) if self.sop_token_id in row else -1
            blanks = sum(id in masks for id in row[: max(start, 0)]) or len(row)
            pieces, piece = [], []
            for id in row[start + 1 :]:
                if len(pieces) == blanks:
                    break
                if id in ends:
                    pieces.append(piece)
                    piece = []
                else:
                    piece.append(id)
            if piece:
                pieces.append(piece)
            answers.append([self.decode(piece).strip() for piece in pieces])
        return answers

    def fill(self, text: str, pieces: list[str]) -> str:
        """The text with its blanks filled in order, spaced as a person would write it.

        Masks take no space of their own: "a [MASK]." and "a[MASK]." mean the same to GLM. Blanks for which there is no
        piece stay as they are.

        Raises:
            ValueError: if there are more pieces than masks.
        """
        blanks = list(re.finditer("|".join(map(re.escape, self.masks)), text))
        if len(pieces) > len(blanks):
            raise ValueError(
                f"There are {len(pieces)} pieces for {len(blanks)} masks; pass at most one for each mask."
            )
        filled, end = "", 0
        for blank, piece in zip(blanks, pieces):
            filled, piece = _join(filled, text[end : blank.start()], own_space=True), piece.strip()
            filled = _join(filled, piece) if piece else filled.rstrip(" ")
            end = blank.end()
        return _join(filled, text[end:], own_space=True)


def _places(ids: set[int], encodings: list) -> set[tuple]:
    """Where these tokens are: text of a pair, word, and characters."""
    return {
        (text, word, characters)
        for encoding in encodings
        for id, text, word, characters in zip(
            encoding.ids, encoding.sequence_ids, encoding.word_ids, encoding.offsets
        )
        if id in ids
    }


def _join(left: str, right: str, own_space: bool = False) -> str:
    """Put two stretches of text side by side; `own_space` keeps the space that `right` begins with."""
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


def _is_wide(character: str) -> bool:
    """Whether it is a character of Chinese, Japanese or Korean writing."""
    return bool(character) and unicodedata.east_asian_width(character) in "WF"


def _is_unspaced(character: str) -> bool:
    """Whether words of its writing are not spaced: Chinese and Japanese, not Korean."""
    return _is_wide(character) and not unicodedata.name(character, "").startswith("HANGUL")
