"""Filling blanks: `generate` for prompts that hold mask tokens.

A prompt is a context with blanks. `<|startofpiece|>` is put behind it, then every blank is filled
in turn: the end token of a piece is followed by the next piece, until each mask has its answer.
Nothing of GLM travels from step to step: positions, and who sees whom, are read from the ids.

Shapes: B batch, S tokens of the prompt, N tokens so far, T new tokens, K keys, H hidden size, V
vocabulary rows.
"""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F
from transformers import (
    Cache,
    GenerationConfig,
    GenerationMixin,
    LogitsProcessor,
    LogitsProcessorList,
    NoRepeatNGramLogitsProcessor,
)
from transformers.generation import EosTokenCriteria, MaxLengthCriteria
from transformers.modeling_outputs import BaseModelOutputWithPast

from .answers_glm import BestAnswersMixin
from .blanks_glm import (
    BlankLayout,
    check_ids,
    check_range,
    count_positions,
    is_any_of,
    position_scheme,
)
from .steering_glm import (
    AllowedAnswers,
    MaxPieceLength,
    MinPieceLength,
    Steering,
    Table,
    as_limit,
)

# --- Where versions of Transformers differ --------------------------------------------------------
# The cache is called `cache` from 5.24 on, `past_key_values` before. Models take both names, layers
# and results have the one that the library looks for.
CACHE = "cache" if "cache" in BaseModelOutputWithPast.__dataclass_fields__ else "past_key_values"
# What a version or a trainer hands to prepare_inputs_for_generation and a step does not take.
NOT_OF_A_STEP = (
    "cache_position",
    "next_sequence_length",
    "is_first_iteration",
    "position_ids",
    "token_type_ids",
    "labels",
    "shift_labels",
    "skip_logits",
)
# 4.57 has a length where nobody gave one, and means new tokens by it: no answer is bounded by it.
DEFAULT_MAX_LENGTH = GenerationConfig().max_length
NO_DECODER = (
    "GLM has no decoder beside its network; give the prompt method's configuration "
    'task_type="CAUSAL_LM".'
)


# --- What stops a row, and what a processor sees --------------------------------------------------


class AllBlanksFilled(EosTokenCriteria):
    """Stops a row when it has as many ends as blanks.

    It is a subclass because generation looks for the library's criterion.
    """

    def __init__(self, eos_token_id: torch.Tensor, config):
        super().__init__(eos_token_id)
        self.config = config
        ends = set(eos_token_id.tolist())
        self.stops_at_ends = not ends.isdisjoint(config.end_token_ids)
        self.stops_at_once = sorted(ends - set(config.end_token_ids))  # ids that the caller added

    def __call__(self, input_ids: torch.Tensor, scores, **kwargs) -> torch.Tensor:
        stops = is_any_of(input_ids[:, -1], self.stops_at_once)  # (B,)
        if self.stops_at_ends:
            layout = BlankLayout.of(input_ids, self.config, generated=True)
            ends = layout.starts & ~layout.sops  # (B, N)
            stops = stops | (ends.sum(-1) >= layout.is_mask.sum(-1))
        return stops


class WithinPiece(LogitsProcessor):
    """Lets a processor see of each row the tokens of its current piece, and nothing before them.

    What is repeated from the context, or from another answer, is no repetition: the original's
    filters see one answer at a time.
    """

    def __init__(self, processor: LogitsProcessor, config):
        self.processor = processor
        self.config = config

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        layout = BlankLayout.of(input_ids, self.config, generated=True)
        lengths = layout.block_positions(1)[:, 0] - 1  # (B,), less the start
        starts = (input_ids.shape[1] - lengths).tolist()
        rows = []
        for ids, row, start in zip(input_ids, scores, starts, strict=True):
            of_piece = ids[None, start:]  # (1, tokens of the piece)
            rows.append(self.processor(of_piece, row[None]))
        return torch.cat(rows)  # (B, V)


# --- Prompts --------------------------------------------------------------------------------------


@dataclass
class Prompt:
    """Contexts with blanks, and the pieces that are there already.

    Attributes:
        ids (B, S).
        visible (B, S): 1 for tokens, 0 for padding.
        positions (B, S): of the context, where they are not 0, 1, 2, ...
        embeds (B, S, H): what is read in place of the ids.
        has_ids: whether the caller gave the ids, or only their embeddings.
        virtual: columns in front that stand for no token, but for what a prompt method has learnt.
    """

    ids: torch.Tensor
    visible: torch.Tensor
    positions: torch.Tensor | None = None
    embeds: torch.Tensor | None = None
    has_ids: bool = True
    virtual: int = 0

    def __len__(self) -> int:
        return self.ids.shape[0]

    @property
    def context_positions(self) -> torch.Tensor:
        return count_positions(self.visible) if self.positions is None else self.positions

    def cut_before_pieces(self, config) -> "Prompt":
        """The contexts alone, padded on the left: for batches that hold answers to learn from."""
        visible = self.visible.bool()
        layout = BlankLayout.of(self.ids, config, visible)
        kept = layout.in_context & visible  # (B, S)
        length = int(kept.sum(-1).amax())
        # Sorted stably, the kept columns come last and stay in their order.
        columns = kept.long().argsort(dim=-1, stable=True)
        columns = columns[:, -length:]  # (B, length)
        ids = self.ids.masked_fill(~kept, config.pad_token_id or 0)
        positions = self.positions
        if positions is not None:
            positions = positions.gather(1, columns)
        embeds = self.embeds
        if embeds is not None:
            of_states = columns[..., None].expand(-1, -1, embeds.shape[-1])  # (B, length, H)
            embeds = embeds.gather(1, of_states)
        return replace(
            self,
            ids=ids.gather(1, columns),
            visible=kept.long().gather(1, columns),
            positions=positions,
            embeds=embeds,
        )

    def is_started(self, sop_token_id: int) -> bool:
        return bool((self.ids == sop_token_id).any())

    def start(self, sop_token_id: int, word_embeddings: torch.nn.Embedding) -> "Prompt":
        """With `<|startofpiece|>` at its end, unless it is there."""
        if self.is_started(sop_token_id):
            return self
        embeds = self.embeds
        if embeds is not None:
            sop = word_embeddings.weight[sop_token_id].to(embeds)  # (H,)
            sop = sop.expand(len(self), 1, -1)  # (H,) -> (B, 1, H)
            embeds = torch.cat([embeds, sop], dim=1)
        return replace(
            self,
            ids=F.pad(self.ids, (0, 1), value=sop_token_id),
            visible=F.pad(self.visible, (0, 1), value=1),
            embeds=embeds,
        )

    def behind(self, virtual: int, config) -> "Prompt":
        """With so many columns of context in front, whose ids are of no importance."""
        positions = self.positions
        if positions is not None:
            in_front = torch.arange(virtual, device=positions.device).expand(len(self), -1)
            positions = torch.cat([in_front, positions + virtual], dim=1)
        return replace(
            self,
            ids=F.pad(self.ids, (virtual, 0), value=config.pad_token_id or 0),
            visible=F.pad(self.visible, (virtual, 0), value=1),
            positions=positions,
            virtual=virtual,
        )

    def without_virtual(self, output):
        """What `generate` returns, less the columns in front; the prompt's too where the caller
        has no ids of it, as everywhere in Transformers."""
        hidden = self.virtual if self.has_ids else self.ids.shape[1]
        return output if hidden == 0 else without_columns(output, hidden)


@dataclass(frozen=True)
class Cut:
    """Where a piece is cut that has so many tokens.

    Attributes:
        limit: the tokens: a number, or (B, M), one for each blank.
        longest: with so many ids in a row, context included, no piece can be longer than that.
        is_hidden: whether the last token of such a piece is not read, as in the original.
    """

    limit: int | torch.Tensor
    longest: int
    is_hidden: bool


def find_padding(
    attention_mask: torch.Tensor | None,
    ids: torch.Tensor,
    config,
    holds_answers: bool,
) -> torch.Tensor:
    """The padding of prompts, from any form that a mask has.

    Args:
        attention_mask: as in the model's `forward`.
        ids (B, S): contexts, with pieces or without.
        holds_answers: whether the pieces are answers to learn from, which no prompt has. Only then
            the lengths (B,) of the contexts tell enough.

    Returns:
        1 for tokens, 0 for padding (B, S).

    Raises:
        ValueError: for a mask of another shape.
    """
    if attention_mask is None:
        return torch.ones_like(ids)
    if attention_mask.dim() == 1 and holds_answers:
        columns = torch.arange(ids.shape[1], device=ids.device)
        visible = columns < attention_mask[:, None]  # (B, S) or (1, S)
        return visible.expand_as(ids).long()
    if attention_mask.dim() == 4 and attention_mask.shape[-1] >= ids.shape[1]:
        return padding_of_explicit(attention_mask, ids, config)
    if attention_mask.shape != ids.shape:
        raise ValueError(
            f"attention_mask has shape {tuple(attention_mask.shape)}; "
            f"generation needs {tuple(ids.shape)}."
        )
    return attention_mask


def padding_of_explicit(
    attention_mask: torch.Tensor,
    ids: torch.Tensor,
    config,
) -> torch.Tensor:
    """(B, 1, N, N), (B, S) -> (B, S): what the first `<|startofpiece|>` sees, or the last token.

    That is all of the context that is no padding.
    """
    batch, length = ids.shape
    is_start = is_any_of(ids, config.start_token_ids)  # (B, S)
    first = is_start.long().argmax(-1)  # (B,)
    first = torch.where(is_start.any(-1), first, length - 1)
    seen_by = attention_mask[:, 0].expand(batch, -1, -1)  # (B, N, N)
    rows = torch.arange(batch, device=ids.device)
    seen = seen_by[rows, first, :length]  # (B, S)
    is_added = seen.is_floating_point()  # to the scores
    visible = seen >= 0 if is_added else seen != 0
    in_context = BlankLayout.of(ids, config).in_context
    of_start = seen_by[rows, :length, first]  # (B, S): what is seen of the start
    sees_start = of_start >= 0 if is_added else of_start != 0
    if (~in_context & ~sees_start & is_any_of(ids, config.mask_token_ids or [])).any():
        raise ValueError(
            "A row holds several texts, of which only the first would be filled; to generate, make "
            "batches with GLMDataCollator."
        )
    return (visible | ~in_context).long()


# --- Generation -----------------------------------------------------------------------------------


class GLMGenerationMixin(BestAnswersMixin, GenerationMixin):
    """The library's generation, for a model whose `glm` is the network without a head."""

    if TYPE_CHECKING:  # what the model has
        config: Any
        glm: Any

    @torch.no_grad()
    def generate(
        self,
        inputs: torch.Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        logits_processor: LogitsProcessorList | None = None,
        *args,
        min_piece_length: int | Table | None = None,
        max_piece_length: int | Table | None = None,
        allowed_answers: Table | None = None,
        cut_pieces: bool = True,
        position_ids: torch.Tensor | None = None,
        generation_attention_mask: torch.Tensor | None = None,
        **kwargs,
    ):
        """Fill every blank of every row: the library's `generate`, for prompts with mask tokens.

        Args:
            inputs (B, S): contexts padded on either side, as the tokenizer makes them. Pieces that
                are there already follow one `<|startofpiece|>`, each with its end token, as in what
                this method returns: they are continued. Of a batch with labels only the contexts
                are read.
            min_piece_length, max_piece_length: the fewest and the most tokens of an answer, its end
                not counted. One number for every blank; or a list with one for each blank, the same
                for all rows: [2, 5]; or a list of B such lists, one for each row: [[2, 5], [3]].
                None in a list leaves a blank free. By default an answer may be empty, and has as
                many tokens as there are block positions.
            allowed_answers: the answers that a blank may have, for each row a list with an entry
                for each of its blanks: a list of answers, each a list of token ids without its end,
                or None where all are allowed. The tokenizer's `encode_allowed_answers` makes it of
                strings.
            cut_pieces: whether a piece that reaches `max_piece_length` is cut, as in the original:
                its end costs nothing in a search with beams, and its last token is not read again.
                Otherwise it must end there, at what the model makes of that, and what follows reads
                all of it.
            position_ids (B, 2, S or more): positions of the context where they are not 0, 1, ...
            generation_attention_mask (B, 1, N, N): the padding, in the form of the old Hub port.

        Returns:
            ids (B, N): prompt, `<|startofpiece|>`, then the pieces, each with its end token; the
            tokenizer's `decode_pieces` makes text of them. With `return_dict_in_generate`, the
            library's output object.

        Raises:
            ValueError: if a prompt has no blank to fill or is too long, and for ways of generating
                that would read the bidirectional context in parts.
        """
        kwargs = with_known_names(kwargs)
        prompt_method = self._take_prompt_method()
        settings = self.generation_config if generation_config is None else generation_config

        def asked(name: str):
            return kwargs.get(name, getattr(settings, name, None))

        refuse_what_cannot_be(asked)
        if generation_attention_mask is not None:
            kwargs["attention_mask"] = generation_attention_mask != 0
        prompt = self._read_prompt(inputs, position_ids, kwargs)
        self._check_prompt(prompt, asked("eos_token_id"))
        self._tell_of_pieces(prompt, kwargs.get(CACHE))
        steering = self._read_steering(
            prompt,
            self._room_of_a_piece(asked("max_new_tokens"), cut_pieces),
            min_piece_length,
            max_piece_length,
            allowed_answers,
            asked("bad_words_ids"),
        )
        budget = self._new_tokens(prompt, asked)
        self._check_steering(prompt, steering, budget)
        if prompt_method is not None:
            prompt = self._put_behind(prompt_method, prompt, asked, kwargs)
        room = as_limit(steering.longest, prompt.ids.device)
        self._check_length(prompt, room)
        prompt = prompt.start(self.config.sop_token_id, self.glm.word_embeddings)
        cut = self._find_cut(prompt, steering, budget, cut_pieces)
        forbidding = self._forbidding(steering, cut, prompt.ids.device)
        if prompt.embeds is not None:
            kwargs["inputs_embeds"] = prompt.embeds
        output = super().generate(
            prompt.ids,
            generation_config,
            LogitsProcessorList([*(logits_processor or []), *forbidding]),
            *args,
            attention_mask=prompt.visible,
            max_piece_length=None if self.config.block_position_encoding else room,
            cut=cut,
            context_positions=prompt.positions,
            **kwargs,
        )
        return prompt.without_virtual(output)

    def _take_prompt_method(self) -> Any:
        """The model of peft around this one that puts virtual tokens in front of a text, or None.

        While it generates it has its own method in place of ours to prepare a step, which cannot
        know of blanks; after each `generate` it puts ours back, and so do we at once.
        """
        prepare = self.__dict__.get("prepare_inputs_for_generation")
        around: Any = getattr(prepare, "__self__", self)
        if not hasattr(around, "get_prompt"):
            return None
        del self.prepare_inputs_for_generation
        if around.active_peft_config.task_type == "SEQ_2_SEQ_LM":
            raise ValueError(NO_DECODER)
        return around

    def _put_behind(
        self,
        prompt_method: Any,
        prompt: Prompt,
        asked: Callable[[str], Any],
        kwargs: dict,
    ) -> Prompt:
        """The prompt behind virtual tokens, which are of its context and take positions there.

        Args:
            prompt_method: what has them: their embeddings, or a cache with keys and values.
            kwargs: of `generate`; a cache goes there, and lengths are those of the longer prompt.
        """
        copies = max(asked("num_beams") or 1, asked("num_return_sequences") or 1)
        virtual = prompt_method.get_prompt(len(prompt) * copies)
        if isinstance(virtual, Cache) and asked("use_cache") is False:
            raise ValueError("The prefix is in the cache; leave use_cache=False out.")
        if isinstance(virtual, Cache):
            tokens = virtual.get_seq_length()
            kwargs |= {CACHE: virtual, "virtual_tokens": tokens}
        else:
            tokens = virtual.shape[1]
            embeds = prompt.embeds
            if embeds is None:
                visible = prompt.visible.bool()
                layout = BlankLayout.of(prompt.ids, self.config, visible, generated=True)
                embeds = self.glm.word_embeddings(layout.read(prompt.ids, self.config))
            virtual = virtual[: len(prompt)].to(embeds)  # all rows are the same
            prompt = replace(prompt, embeds=torch.cat([virtual, embeds], dim=1))
        for name in ("max_length", "min_length"):  # of tokens, among which these do not count
            if kwargs.get(name) is not None:
                kwargs[name] += tokens
        return prompt.behind(tokens, self.config)

    def _read_prompt(
        self,
        inputs: torch.Tensor | None,
        position_ids: torch.Tensor | None,
        kwargs: dict,
    ) -> Prompt:
        """The prompt in `generate`'s arguments; those that only it needs are taken out of them."""
        ids = kwargs.pop("input_ids", None) if inputs is None else inputs
        embeds = kwargs.pop("inputs_embeds", None)
        if ids is None and embeds is None:
            raise ValueError("There is no prompt; pass input_ids with a mask token to fill.")
        has_ids = ids is not None
        if not has_ids:
            ids = self.glm.recognise_ids(embeds, started=False)
        kwargs.pop("cut", None)  # an assistant gets it with the limits of whom it assists
        positions = kwargs.pop("context_positions", position_ids)
        if positions is not None:
            if positions.dim() == 3:  # (B, 2, N) -> (B, N)
                positions = positions[:, 0]
            positions = positions[:, : ids.shape[1]]  # (B, N) -> (B, S)
        labels = [kwargs.pop(name, None) for name in ("labels", "shift_labels")]
        has_labels = any(label is not None for label in labels)
        is_start = is_any_of(ids, self.config.start_token_ids)
        holds_answers = has_labels and bool(is_start.any())
        attention_mask = kwargs.pop("attention_mask", None)
        visible = find_padding(attention_mask, ids, self.config, holds_answers)
        prompt = Prompt(ids, visible, positions, embeds, has_ids)
        if holds_answers:
            prompt = prompt.cut_before_pieces(self.config)
        return prompt

    def _check_prompt(self, prompt: Prompt, stop_ids: int | list[int] | None):
        """Raise a ValueError for a prompt that cannot be filled."""
        config = self.config
        if None in (config.sop_token_id, config.eop_token_id) or not config.mask_token_ids:
            raise ValueError(
                "Ids are unknown; pass sop_token_id, eop_token_id, mask_token_ids to "
                "from_pretrained."
            )
        visible = prompt.visible.bool()
        layout = BlankLayout.of(prompt.ids, config, visible, generated=True)
        blanks = layout.is_mask.sum(-1)  # (B,)
        if (blanks == 0).any():
            raise ValueError(
                f"Prompt {int(blanks.argmin()) + 1} has no mask token; write one where text is "
                "missing."
            )
        stop_ids = stop_ids if isinstance(stop_ids, (list, tuple)) else [stop_ids]
        stops_at_ends = not set(config.end_token_ids).isdisjoint(stop_ids)
        if stops_at_ends and (layout.starts.sum(-1) > blanks).any():
            raise ValueError(
                "A prompt has as many pieces as masks already; there is nothing left to generate."
            )
        is_started = layout.sops.any(-1)  # (B,)
        if is_started.any() != is_started.all():
            raise ValueError(
                "Some prompts contain <|startofpiece|>, others do not; append it to all or to none."
            )
        if (~layout.in_context & ~visible).any():
            raise ValueError(
                "There is padding after <|startofpiece|>; pad prompts with a piece on the left."
            )
        if prompt.embeds is None:
            check_ids(prompt.ids, config)

    def _tell_of_pieces(self, prompt: Prompt, cache: Cache | None):
        """Warn where pieces are continued that may be answers: a test on these looks perfect."""
        if cache is not None:  # of a generation that goes on
            return
        layout = BlankLayout.of(prompt.ids, self.config, prompt.visible.bool(), generated=True)
        # Ended pieces are of a generation, too: in what one learns from, starts part them.
        in_a_piece = ~layout.in_context[:, -1] & ~layout.starts[:, -1]  # (B,)
        if in_a_piece.any():
            warnings.warn(
                "The prompts hold pieces, which are continued. If they are answers to learn from, "
                "pass their labels too: then the contexts alone are read.",
                stacklevel=4,
            )

    def _read_steering(self, prompt: Prompt, room: int | None, *options: Any) -> Steering:
        """What the answers may be.

        Args:
            room: the most tokens of one blank, where it has no limit of its own.
            options: those of `Steering.read`.

        Raises:
            ValueError: for what no answer can be.
        """
        layout = BlankLayout.of(prompt.ids, self.config, prompt.visible.bool(), generated=True)
        blanks = layout.is_mask.sum(-1).tolist()  # (B,)
        return Steering.read(blanks, room, self.config, *options)

    def _room_of_a_piece(self, max_new_tokens: int | None, cut_pieces: bool) -> int | None:
        """The most tokens of one blank, where it has no limit of its own."""
        if not self.config.block_position_encoding:
            return max_new_tokens
        # The start has the first block position; a last token that is not read needs none.
        return self.config.max_sequence_length - (not cut_pieces)

    def _new_tokens(self, prompt: Prompt, asked: Callable[[str], Any]) -> int | None:
        """The most tokens that all answers of a prompt together can have, if it was said."""
        budget, length = asked("max_new_tokens"), asked("max_length")
        if budget is None and length not in (None, DEFAULT_MAX_LENGTH):
            lacks_start = not prompt.is_started(self.config.sop_token_id)
            budget = length - prompt.ids.shape[1] - lacks_start
        return budget

    def _check_steering(self, prompt: Prompt, steering: Steering, budget: int | None):
        """Raise a ValueError for answers that have begun otherwise, or are longer than all may be.

        Args:
            budget: tokens of all answers of a prompt together, at most.
        """
        if prompt.is_started(self.config.sop_token_id):
            if steering.has_allowed:
                steering.check_begun(prompt.ids, self.config)
            return
        has_least = any(map(any, steering.least()))
        if budget is not None and has_least and steering.tokens_needed() > budget:
            raise ValueError(
                f"The answers of a prompt take at least {steering.tokens_needed()} tokens with "
                f"their ends, but there are {budget} new tokens; raise max_new_tokens."
            )

    def _check_length(self, prompt: Prompt, room: int | torch.Tensor):
        """Raise a ValueError for positions that have no row in their tables."""
        layout = BlankLayout.of(prompt.ids, self.config)
        scheme = position_scheme(self.config)
        check_range(scheme.highest(layout, prompt.context_positions, room), self.config)

    def _find_cut(
        self,
        prompt: Prompt,
        steering: Steering,
        budget: int | None,
        is_hidden: bool,
    ) -> Cut | None:
        """Where pieces are cut; None if all must end before any can have so many tokens."""
        in_context = BlankLayout.of(prompt.ids, self.config).in_context
        first_start = int(in_context.sum(-1).amin())
        longest = first_start + min(map(min, steering.longest))
        if budget is not None and prompt.ids.shape[1] + budget <= longest:
            return None
        return Cut(as_limit(steering.cuts(), prompt.ids.device), longest, is_hidden)

    def _forbidding(
        self,
        steering: Steering,
        cut: Cut | None,
        device: torch.device,
    ) -> Iterator[LogitsProcessor]:
        """What forbids tokens, and nothing that never would."""
        if any(map(any, steering.shortest)):
            yield MinPieceLength(as_limit(steering.shortest, device), self.config)
        if cut is not None:
            yield MaxPieceLength(cut.limit, self.config, is_free=cut.is_hidden)
        if steering.has_allowed:
            yield AllowedAnswers(steering.allowed, self.config)

    def prepare_inputs_for_generation(
        self,
        input_ids: torch.Tensor,
        past_key_values: Cache | None = None,
        cache: Cache | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        max_piece_length: int | torch.Tensor | None = None,
        cut: Cut | None = None,
        context_positions: torch.Tensor | None = None,
        virtual_tokens: int = 0,
        **kwargs,
    ) -> dict:
        """The inputs of one step, from all ids so far (B, N)."""
        cache = cache if past_key_values is None else past_key_values
        length = input_ids.shape[1]
        tokens = count_new_tokens(length, cache, **kwargs)  # T
        layout = BlankLayout.of(input_ids, self.config, generated=True)
        in_context = layout.in_context[:, -tokens:]  # (B, T)
        in_parts = 1 < tokens < length and bool(in_context.any())
        if in_parts and length - tokens != virtual_tokens:
            raise ValueError(
                "The cache holds only a part of the bidirectional context; leave it out."
            )
        positions = self._positions_so_far(input_ids, attention_mask, context_positions)
        position_ids = position_scheme(self.config).position_ids(
            layout,
            positions,
            tokens,
            max_piece_length,
        )
        if cut is not None and length > cut.longest:
            if cut.is_hidden:
                attention_mask = hide_overfull(layout, attention_mask, cut.limit)
            position_ids = position_ids.clamp(max=self.config.position_rows - 1)
        # A fixed shape for the compiled forward; or a context behind virtual tokens in the cache.
        if cache is not None and (cache.is_compileable or in_parts):
            like = input_ids.new_empty(*in_context.shape, 0, dtype=self.glm.dtype)
            attention_mask = self.glm.scores_mask(attention_mask, in_context, like, cache)
        read = layout.read(input_ids, self.config)[:, -tokens:]
        step = {name: value for name, value in kwargs.items() if name not in NOT_OF_A_STEP}
        step["input_ids"] = with_own_strides(read)
        step["position_ids"] = with_own_strides(position_ids)
        step["attention_mask"] = attention_mask
        step[CACHE] = cache
        if inputs_embeds is not None and inputs_embeds.shape[1] == length:  # the prompt itself
            step["inputs_embeds"] = inputs_embeds[:, -tokens:]
        return step

    def _positions_so_far(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None,
        context_positions: torch.Tensor | None,
    ) -> torch.Tensor:
        """(B, N): positions of the context; what stands behind it does not matter."""
        if context_positions is not None:
            missing = input_ids.shape[1] - context_positions.shape[1]
            return F.pad(context_positions, (0, missing))
        return count_positions(
            torch.ones_like(input_ids) if attention_mask is None else attention_mask
        )

    def _prepare_position_ids_for_generation(self, inputs_tensor, model_kwargs):
        return None  # the library would count 0, 1, 2, ...

    def _get_stopping_criteria(self, *args, **kwargs):
        parent: Any = super()
        criteria = parent._get_stopping_criteria(*args, **kwargs)
        for i, criterion in enumerate(criteria):
            if isinstance(criterion, EosTokenCriteria):
                criteria[i] = AllBlanksFilled(criterion.eos_token_id, self.config)
            elif isinstance(criterion, MaxLengthCriteria):
                # It would warn of positions by the length; pieces have those of their blanks.
                criterion.max_position_embeddings = None
        return criteria

    def _get_logits_processor(self, *args, **kwargs):
        parent: Any = super()
        processors = parent._get_logits_processor(*args, **kwargs)
        for i, processor in enumerate(processors):
            if isinstance(processor, NoRepeatNGramLogitsProcessor):
                processors[i] = WithinPiece(processor, self.config)
        return processors

    def _update_finished_beams(self, **beams) -> tuple[torch.Tensor, ...]:
        """The library's, with a score that is divided by the length of the answers, without their
        ends, as the original divides it."""
        prompt_length, length = beams["decoder_prompt_len"], beams["cur_len"] + 1
        written = beams["topk_running_sequences"][:, :, prompt_length:length]  # (B, beams, G)
        ends = is_any_of(written, self.config.end_token_ids).sum(-1)  # (B, beams)
        counted = (written.shape[-1] - ends).clamp(min=1)
        # The library divides by this length to the power of the penalty.
        share = (written.shape[-1] / counted) ** beams["length_penalty"]
        beams["topk_log_probs"] = beams["topk_log_probs"] * share
        return super()._update_finished_beams(**beams)

    def generate_batch(self, *args, **kwargs):
        raise NotImplementedError("Continuous batching is causal only; use generate.")

    init_continuous_batching = generate_batch
    continuous_batching_context_manager = generate_batch


def with_known_names(kwargs: dict) -> dict:
    """The arguments as the library reads them.

    The cache has the name that the library looks for, and a length that the caller gives wins over
    the one in generation_config.json.
    """
    known = {}
    for name, value in kwargs.items():
        is_cache = name in ("cache", "past_key_values")
        known[CACHE if is_cache else name] = value
    if known.get("max_length") is not None:
        known.setdefault("max_new_tokens", None)
    return known


def refuse_what_cannot_be(asked: Callable[[str], Any]):
    """Raise a ValueError for options that would read the bidirectional context wrongly."""
    if asked("prefill_chunk_size") is not None:
        raise ValueError("prefill_chunk_size cuts the bidirectional context; leave it out.")
    if asked("cache_implementation") == "paged":
        raise ValueError('cache_implementation="paged" is causal only; use "dynamic" or "static".')
    if asked("guidance_scale") not in (None, 1):
        raise ValueError(
            "guidance_scale compares with a prompt of one token, which has no blank; leave it out."
        )


def without_columns(output, length: int):
    """What `generate` returns, less the first tokens of its sequences."""
    if torch.is_tensor(output):
        return output[:, length:]
    output.sequences = output.sequences[:, length:]
    return output


def count_new_tokens(
    length: int,
    cache: Cache | None,
    next_sequence_length: int | None = None,
    cache_position: torch.Tensor | None = None,
    **kwargs,
) -> int:
    """How many of the N ids are no keys yet: 5 tells it, or 4.57 where they are."""
    if next_sequence_length is not None:
        return next_sequence_length
    if cache_position is not None:
        return cache_position.shape[0]
    return length if cache is None else length - int(cache.get_seq_length())


def hide_overfull(
    layout: BlankLayout,
    attention_mask: torch.Tensor | None,
    limit: int | torch.Tensor,
) -> torch.Tensor:
    """The mask (B, N), without the tokens that reached their piece's limit.

    The original never reads the last token of a piece that reached it: nothing that follows may
    see it here.
    """
    most = layout.limits(limit, layout.length)
    overfull = layout.block_positions(layout.length) > most  # (B, N)
    visible = torch.ones_like(overfull) if attention_mask is None else attention_mask
    return visible.masked_fill(overfull, 0)


def with_own_strides(tensor: torch.Tensor) -> torch.Tensor:
    """A copy whose strides do not grow with the sequence: a compiled step would be made anew."""
    return tensor.clone(memory_format=torch.contiguous_format)
