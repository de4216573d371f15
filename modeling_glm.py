"""GLM, the General Language Model: pretraining by autoregressive blank infilling (Du et al., ACL 2022).

A sequence is a bidirectional context with blanks, then the pieces that fill them, each causal:

    [CLS] Ng is a professor at [MASK] . <|endoftext|>   <|startofpiece|> Stanford <|endofpiece|>

Shapes: B batch, T tokens in this call, N tokens so far, S tokens of the prompt, K keys, H hidden size, A heads, D head
size, V vocabulary rows, L layers, P longest position, C choices.
"""

import inspect
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from transformers import (
    Cache,
    DynamicCache,
    GenerationMixin,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
)
from transformers.activations import ACT2FN
from transformers.generation import EosTokenCriteria
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import (
    BaseModelOutputWithPast,
    CausalLMOutputWithPast,
    MultipleChoiceModelOutput,
    SequenceClassifierOutput,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple

from .configuration_glm import GLMConfig

if TYPE_CHECKING:  # never run: these lines make `save_pretrained` copy the other shipped files
    from .pipeline_glm import GLMText2TextGenerationPipeline  # noqa: F401
    from .tokenization_glm import GLMTokenizerFast  # noqa: F401

# --- Where versions of Transformers differ ----------------------------------------------------------------------------
try:  # 5: initialisers that leave loaded weights alone
    from transformers import initialization as init
except ImportError:
    from torch.nn import init

# The cache's name: `cache` from 5.24 on, `past_key_values` before. Models take both, layers the one that is looked for.
CACHE = "cache" if "cache" in BaseModelOutputWithPast.__dataclass_fields__ else "past_key_values"
# What versions or trainers hand to prepare_inputs_for_generation and a step does not take.
STEP_ARGUMENTS = [
    "cache_position",
    "next_sequence_length",
    "is_first_iteration",
    "position_ids",
    "token_type_ids",
    "labels",
]
_MASK_SIZES_TAKE_A_LENGTH = "query_length" in inspect.signature(Cache.get_mask_sizes).parameters


def _attention_function(self: "GLMSelfAttention"):
    """The kernel in use. Both versions look for these expressions, `self` included, before they allow another one."""
    if hasattr(ALL_ATTENTION_FUNCTIONS, "get_interface"):
        return ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
    if self.config._attn_implementation == "eager":
        return eager_attention_forward
    return ALL_ATTENTION_FUNCTIONS[self.config._attn_implementation]


# --- Blanks, pieces and positions: a pure function of the ids ---------------------------------------------------------


def is_any_of(ids: torch.LongTensor, wanted: list[int]) -> torch.BoolTensor:
    """(B, N) -> (B, N): whether each id is one of `wanted`."""
    return (ids[..., None] == torch.tensor(wanted, dtype=ids.dtype, device=ids.device)).any(-1)


@dataclass
class BlankLayout:
    """Where the context, the blanks and the pieces of each sequence are; each field is (B, N).

    in_context is the bidirectional part, everything before the first `<|startofpiece|>`; is_mask the blanks in it; sops
    the `<|startofpiece|>` tokens; starts the first token of each piece. An end token starts the next piece: GLM never
    reads end tokens, what it reads in their place is the `<|startofpiece|>` of the next blank.
    """

    in_context: torch.BoolTensor
    is_mask: torch.BoolTensor
    sops: torch.BoolTensor
    starts: torch.BoolTensor

    @classmethod
    def of(
        cls,
        ids: torch.LongTensor,
        config,
        visible: torch.BoolTensor | bool = True,
        generated: bool = False,
    ):
        """Read the layout from `ids` (B, N), padding hidden by `visible` (B, N).

        In training every `<|startofpiece|>` starts a piece. When `generated`, only the first one does: a later one was
        chosen by the model and is a token of its answer, as in the original.
        """
        sops = is_any_of(ids, config.start_token_ids) & visible
        in_context = sops.cumsum(-1) == 0
        is_mask = is_any_of(ids, config.mask_token_ids or []) & in_context
        ends = is_any_of(ids, config.end_token_ids) & ~in_context & visible
        if generated:
            sops = sops & (sops.cumsum(-1) == 1)
        return cls(in_context, is_mask, sops, starts=sops | ends)

    def block_positions(self) -> torch.LongTensor:
        """(B, N): 0 in the context, 1, 2, ... from the start of each piece (paper, section 2.2)."""
        columns = torch.arange(self.starts.shape[1], device=self.starts.device)
        latest_start = torch.where(self.starts, columns, 0).cummax(-1).values
        return torch.where(self.in_context, 0, columns - latest_start + 1)

    def mask_columns(self) -> torch.LongTensor:
        """(B, N): for each token of a piece the column of its blank: the k-th piece answers the k-th mask."""
        length = self.is_mask.shape[1]
        columns = torch.arange(length, device=self.is_mask.device)
        in_text_order = torch.where(self.is_mask, columns, length).sort(-1).values  # (B, N)
        last_blank = (self.is_mask.sum(-1, keepdim=True) - 1).clamp(min=0)  # (B, 1)
        piece = (self.starts.cumsum(-1) - 1).clamp(min=0).minimum(last_blank)  # (B, N)
        return in_text_order.gather(1, piece).clamp(max=length - 1)

    def positions(self, context_positions: torch.LongTensor) -> torch.LongTensor:
        """(B, N) positions of the context -> (B, 2, N): position of the token, or of its blank; block position."""
        of_blank = context_positions.gather(1, self.mask_columns())
        return torch.stack(
            [torch.where(self.in_context, context_positions, of_blank), self.block_positions()],
            dim=1,
        )


def count_positions(visible: torch.Tensor) -> torch.LongTensor:
    """(B, N): 0, 1, 2, ... over the tokens that are not padding."""
    return (visible.bool().cumsum(-1) - 1).clamp(min=0)


# --- Network ----------------------------------------------------------------------------------------------------------


def eager_attention_forward(
    module, query, key, value, attention_mask, scaling, dropout=0.0, **kwargs
):
    """Attention written out. query (B, A, T, D), key and value (B, A, K, D), mask added to the scores (B, 1, T, K)."""
    # attention_scale keeps half-precision products small; the softmax runs in float32 at the full scale.
    scores = torch.matmul(
        query * (scaling / module.attention_scale), key.transpose(2, 3)
    ).float()  # (B, A, T, K)
    if module.attention_scale != 1.0:
        scores *= module.attention_scale
    if attention_mask is not None:
        scores += attention_mask  # in place: the largest tensor of the network
    weights = F.dropout(scores.softmax(-1).to(value.dtype), p=dropout, training=module.training)
    return torch.matmul(weights, value).transpose(1, 2), weights  # (B, T, A, D)


class GLMResidualProjection(nn.Linear):
    """A linear layer whose output is added to the residual stream: it starts smaller, see `_init_weights`."""


class GLMSelfAttention(nn.Module):
    """Multi-head attention over one fused projection: all queries, all keys, all values."""

    def __init__(self, config: GLMConfig, layer_idx: int):
        super().__init__()
        self.config, self.layer_idx = config, layer_idx
        self.is_causal = False  # no mask means that every key is visible
        self.attention_scale, self.attention_dropout = (
            config.attention_scale,
            config.attention_dropout_prob,
        )
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.query_key_value = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.dense = GLMResidualProjection(config.hidden_size, config.hidden_size)

    def forward(self, hidden_states, attention_mask=None, cache_position=None, **kwargs):
        cache = kwargs.pop(CACHE, None)
        query, key, value = (
            projected.unflatten(-1, (-1, self.head_dim)).transpose(
                1, 2
            )  # (B, T, H) -> (B, A, T, D)
            for projected in self.query_key_value(hidden_states).chunk(3, dim=-1)
        )
        if cache is not None:  # (B, A, T, D) -> (B, A, K, D)
            key, value = cache.update(
                key, value, self.layer_idx, {"cache_position": cache_position}
            )
        output, weights = _attention_function(self)(
            self,
            query,
            key,
            value,
            attention_mask,
            scaling=self.head_dim**-0.5,
            dropout=self.attention_dropout if self.training else 0.0,
            **kwargs,
        )
        return self.dense(output.flatten(2)), weights  # (B, T, A, D) -> (B, T, H)


class GLMMLP(nn.Module):
    def __init__(self, config: GLMConfig):
        super().__init__()
        self.dense_h_to_4h = nn.Linear(config.hidden_size, 4 * config.hidden_size)
        self.activation = ACT2FN[config.hidden_act]
        self.dense_4h_to_h = GLMResidualProjection(4 * config.hidden_size, config.hidden_size)

    def forward(self, hidden_states):
        return self.dense_4h_to_h(self.activation(self.dense_h_to_4h(hidden_states)))


class GLMLayer(GradientCheckpointingLayer):
    """One transformer layer; the layer norms come first (pre-LN)."""

    def __init__(self, config: GLMConfig, layer_idx: int):
        super().__init__()
        self.input_layernorm = nn.LayerNorm(config.hidden_size)  # eps 1e-5, as in the original
        self.attention = GLMSelfAttention(config, layer_idx)
        self.post_attention_layernorm = nn.LayerNorm(config.hidden_size)
        self.mlp = GLMMLP(config)
        self.dropout = nn.Dropout(config.output_dropout_prob)

    def forward(self, hidden_states, **kwargs):
        attended, weights = self.attention(self.input_layernorm(hidden_states), **kwargs)
        hidden_states = hidden_states + self.dropout(attended)
        hidden_states = hidden_states + self.dropout(
            self.mlp(self.post_attention_layernorm(hidden_states))
        )
        return hidden_states, weights


class GLMTransformer(nn.Module):
    """Position tables, layers and final norm: the part whose names start with `transformer.` in a checkpoint."""

    def __init__(self, config: GLMConfig):
        super().__init__()
        self.position_embeddings = nn.Embedding(config.position_rows, config.hidden_size)
        if config.block_position_encoding:
            self.block_position_embeddings = nn.Embedding(config.position_rows, config.hidden_size)
        self.layers = nn.ModuleList(
            GLMLayer(config, layer_idx) for layer_idx in range(config.num_layers)
        )
        self.final_layernorm = nn.LayerNorm(config.hidden_size)

    def embed_positions(self, position_ids: torch.LongTensor) -> torch.Tensor:
        """(B, 2, T), or (B, T) without block positions -> (B, T, H)."""
        if position_ids.dim() == 2:
            return self.position_embeddings(position_ids)
        return self.position_embeddings(position_ids[:, 0]) + self.block_position_embeddings(
            position_ids[:, 1]
        )


class GLMPreTrainedModel(PreTrainedModel):
    """Loading, saving and initialisation shared by every GLM class."""

    config: GLMConfig
    config_class = GLMConfig
    base_model_prefix = "glm"
    _input_embed_layer = "word_embeddings"
    supports_gradient_checkpointing = True
    _no_split_modules = ["GLMLayer"]
    _skip_keys_device_placement = [CACHE]
    _supports_sdpa = (
        True  # flash attention is not: its kernels have no mask for a bidirectional context
    )
    _supports_flex_attn = True
    _supports_context_parallel = False
    _can_compile_fullgraph = True

    def _init_weights(self, module):
        """The original's: N(0, 0.02), and 0.02 / sqrt(2 L) where a layer writes to the residual stream."""
        std = self.config.initializer_range
        if isinstance(module, GLMResidualProjection):
            std = std / math.sqrt(2 * self.config.num_layers)
        if isinstance(module, (nn.Linear, nn.Embedding)):
            init.normal_(module.weight, mean=0.0, std=std)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
        if isinstance(module, (nn.Linear, nn.LayerNorm)) and module.bias is not None:
            init.zeros_(module.bias)


class GLMModel(GLMPreTrainedModel):
    """The network without a head."""

    def __init__(self, config: GLMConfig):
        super().__init__(config)
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.embedding_dropout = nn.Dropout(config.embedding_dropout_prob)
        self.transformer = GLMTransformer(config)
        self.gradient_checkpointing = False
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        use_cache: bool | None = None,
        cache: Cache | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPast:
        """
        Args:
            input_ids (B, T), or inputs_embeds (B, T, H). past_key_values, or cache: keys and values of earlier tokens.
            attention_mask: told apart by its rank. None: nothing is padding. (B,) or (1,): lengths of the bidirectional
                contexts, counted from the first token of this call. (B, T), or (B, N) with a cache: 0 marks padding.
                (B, 1, T, K): explicit; integers and booleans mark what is visible, floats are added to the scores.
            position_ids (B, 2, T), or (B, T) without block positions. Derived from the ids when absent; with block
                positions (B, T) are those of the context, and the pieces take the positions of their blanks.

        Returns:
            last_hidden_state (B, T, H) after the final norm; hidden_states: the embedding sum, each layer's output.

        Raises:
            ValueError: for ids or positions outside their tables, and for more pieces than blanks.
        """
        config = self.config
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Pass either input_ids or inputs_embeds.")
        cache = cache if past_key_values is None else past_key_values
        use_cache = config.use_cache if use_cache is None else use_cache
        use_cache = use_cache and not (self.gradient_checkpointing and self.training)
        cache = DynamicCache(config=config) if use_cache and cache is None else cache

        ids = input_ids if input_ids is not None else self.recognise_ids(inputs_embeds)  # (B, T)
        length = ids.shape[1]
        past = cache.get_seq_length() if cache is not None else 0
        cache_position = torch.arange(length, device=ids.device) + past  # (T,)
        rank = 0 if attention_mask is None else attention_mask.dim()
        visible = (
            attention_mask[:, -length:].bool()
            if rank == 2
            else torch.ones_like(ids, dtype=torch.bool)
        )
        layout = BlankLayout.of(ids, config, visible)
        if position_ids is None or (position_ids.dim() == 2 and config.block_position_encoding):
            if past > 0:
                raise ValueError(
                    "New tokens alone do not tell their positions; with a filled cache pass position_ids."
                )
            if (
                not torch.compiler.is_compiling()
                and (layout.sops.sum(-1) > layout.is_mask.sum(-1)).any()
            ):
                raise ValueError(
                    "A text has more <|startofpiece|> than mask tokens; give every piece a mask."
                )
            position_ids = layout.positions(
                count_positions(visible) if position_ids is None else position_ids
            )
            if not config.block_position_encoding:
                if layout.sops.any():
                    raise ValueError(
                        "Without block positions a text with pieces needs position_ids."
                    )
                position_ids = position_ids[:, 0]
            if input_ids is not None:
                input_ids = torch.where(layout.starts, config.sop_token_id or 0, input_ids)
        if not torch.compiler.is_compiling():
            config.check_inputs(input_ids, position_ids)

        if inputs_embeds is None:
            inputs_embeds = self.word_embeddings(input_ids)  # (B, T, H)
        mask = self.scores_mask(
            attention_mask, layout.in_context, inputs_embeds, cache_position, cache
        )
        hidden_states = self.embedding_dropout(
            inputs_embeds + self.transformer.embed_positions(position_ids)
        )
        keep_states = (
            config.output_hidden_states if output_hidden_states is None else output_hidden_states
        )
        keep_attentions = (
            config.output_attentions if output_attentions is None else output_attentions
        )
        all_hidden_states, all_attentions = (hidden_states,), ()
        kwargs |= {"attention_mask": mask, CACHE: cache, "cache_position": cache_position}
        for layer in self.transformer.layers[
            : config.num_layers
        ]:  # fewer when a model assists itself by early exit
            hidden_states, weights = layer(hidden_states, **kwargs)
            all_hidden_states += (hidden_states,) if keep_states else ()
            all_attentions += (weights,) if keep_attentions else ()
        return BaseModelOutputWithPast(
            self.transformer.final_layernorm(hidden_states),
            cache if use_cache else None,
            all_hidden_states if keep_states else None,
            all_attentions if keep_attentions else None,
        )

    def recognise_ids(self, inputs_embeds: torch.FloatTensor) -> torch.LongTensor:
        """(B, T, H) -> (B, T): ids of the mask, start and end tokens, known by their embedding; -1 elsewhere."""
        ids = torch.full(inputs_embeds.shape[:2], -1, device=inputs_embeds.device)
        for id in (
            self.config.special_ids
        ):  # masks last: in glm-10b-chinese [gMASK] and the end of piece share a row
            ids[(inputs_embeds == self.word_embeddings.weight[id]).all(-1)] = id
        return ids

    def scores_mask(
        self,
        attention_mask: torch.Tensor | None,
        in_context: torch.BoolTensor,
        inputs_embeds: torch.Tensor,
        cache_position: torch.LongTensor,
        cache: Cache | None = None,
    ) -> torch.Tensor | BlockMask | None:
        """What is added to the attention scores, (B, 1, T, K): 0 where a key is visible, the lowest number elsewhere.

        Context keys are visible to all, the others to themselves and to what follows (paper, figure 2). `in_context` is
        (B, T). None where every key is visible; flex attention has a form of its own.
        """
        length, kernel = len(cache_position), self.config._attn_implementation
        keys, fixed_length = length, cache is not None and cache.is_compileable
        if cache is not None:
            keys = cache.get_mask_sizes(length if _MASK_SIZES_TAKE_A_LENGTH else cache_position, 0)[
                0
            ]
        rank = 0 if attention_mask is None else attention_mask.dim()
        if rank == 3:
            raise ValueError(
                "attention_mask has three dimensions; an explicit one is (batch, 1, tokens, keys)."
            )
        if rank == 0 and length == 1 and not fixed_length:
            return None  # one new token sees all keys
        # Eager attention adds the mask to float32 scores; the fused kernels want the type of their inputs.
        dtype = torch.float32 if kernel == "eager" else inputs_embeds.dtype
        if rank == 4:
            attention_mask = attention_mask[..., -keys:]
            if attention_mask.is_floating_point():
                if kernel == "flex_attention":
                    raise ValueError(
                        "flex_attention needs a boolean mask; pass one, or use eager or sdpa attention."
                    )
                return attention_mask.to(dtype).clamp(
                    min=torch.finfo(dtype).min
                )  # a row of -inf would be NaN
            visible = attention_mask != 0
        else:
            columns = torch.arange(keys, device=cache_position.device)  # (K,)
            visible = (columns <= cache_position[:, None])[None, None]  # (1, 1, T, K)
            if rank == 1:  # context lengths count from the first token of this call
                visible = (
                    visible | (columns - cache_position[0] < attention_mask[:, None])[:, None, None]
                )
            elif length > 1:
                in_context = F.pad(
                    in_context & (cache_position[0] == 0), (0, keys - length)
                )  # (B, K)
                visible = visible | in_context[:, None, None]
            if rank == 2:
                if attention_mask.shape[1] > keys or (
                    attention_mask.shape[1] < keys and not fixed_length
                ):
                    raise ValueError(
                        f"attention_mask has {attention_mask.shape[1]} columns for {keys} tokens."
                    )
                not_padding = F.pad(
                    attention_mask.bool(), (0, keys - attention_mask.shape[1])
                )  # (B, K)
                itself = (
                    columns == cache_position[:, None]
                )  # (T, K): padding sees itself, not nothing
                visible = visible & not_padding[:, None, None] | itself
        if kernel == "flex_attention":
            seen = visible.expand(len(inputs_embeds), 1, length, keys)
            return create_block_mask(
                lambda b, _, q, k: seen[b, 0, q, k], len(seen), None, length, keys, seen.device
            )
        mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
        return mask.masked_fill(~visible, torch.finfo(dtype).min)


# --- Heads ------------------------------------------------------------------------------------------------------------


def project_to_vocabulary(states: torch.Tensor, embedding: nn.Embedding) -> torch.Tensor:
    """Logits: states (..., H) -> (..., V)."""
    hook = getattr(
        embedding, "_hf_hook", None
    )  # with a device_map: the table is on another device, or offloaded
    if hook is not None:
        (states,), _ = hook.pre_forward(embedding, states)
    rows = states.reshape(-1, states.shape[-1])  # (R, H)
    # A step of generation reads the whole table for a few rows. CPUs do that up to four times faster as the product of
    # the table with 2 to 8 columns than as that of 1 to 8 rows with the table: see benchmarks/decode.py.
    if states.device.type == "cpu" and states.dtype == torch.float32 and 0 < len(rows) <= 8:
        columns = rows if len(rows) > 1 else rows.repeat(2, 1)  # copied: a row of stride 0 is slow
        logits = (
            F.linear(embedding.weight, columns)[:, : len(rows)].t().reshape(*states.shape[:-1], -1)
        )
    else:
        logits = F.linear(states, embedding.weight)
    return logits if hook is None else hook.post_forward(embedding, logits)


class AllBlanksFilled(EosTokenCriteria):
    """Stops a row when it has as many ends as blanks. Generation looks for the library's criterion or a subclass."""

    def __init__(self, eos_token_id: torch.Tensor, config):
        super().__init__(eos_token_id)
        self.config, ends = config, set(eos_token_id.tolist())
        self.stop_at_once = sorted(ends - set(config.end_token_ids))  # ids that the caller added
        self.stop_at_ends = not ends.isdisjoint(config.end_token_ids)

    def __call__(self, input_ids, scores, **kwargs):
        layout = BlankLayout.of(input_ids, self.config, generated=True)
        filled = (layout.starts & ~layout.sops).sum(-1) >= layout.is_mask.sum(-1)  # (B,)
        return is_any_of(input_ids[:, -1], self.stop_at_once) | (filled & self.stop_at_ends)


class PieceLength(LogitsProcessor):
    """Ends a piece that has reached `max_piece_length` tokens."""

    def __init__(self, max_piece_length: int, config):
        self.max_piece_length, self.config = max_piece_length, config

    def __call__(self, input_ids, scores):
        layout = BlankLayout.of(input_ids, self.config, generated=True)
        full = (
            layout.block_positions()[:, -1] > self.max_piece_length
        )  # (B,): <|startofpiece|> is at 1
        ended = torch.full_like(scores, -torch.inf)
        ended[:, self.config.eop_token_id] = 0.0
        return torch.where(full[:, None], ended, scores)


class GLMForConditionalGeneration(GLMPreTrainedModel, GenerationMixin):
    """GLM with its output head, which is the word embedding itself."""

    def __init__(self, config: GLMConfig):
        super().__init__(config)
        self.glm = GLMModel(config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        num_items_in_batch: int | torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> CausalLMOutputWithPast:
        """Inputs as in `GLMModel.forward`.

        Args:
            labels (B, T): aligned with the logits (B, T, V), position t predicts labels[t] (no shift); -100 is ignored.
            logits_to_keep: compute only the last so many logits, or those at the given columns; 0 keeps all.

        Example:
            >>> tokenizer.decode_pieces(model.generate(**tokenizer("Ng is a professor at [MASK].", return_tensors="pt")))
        """
        labels = kwargs.pop(
            "shift_labels", labels
        )  # what the library calls labels that are aligned
        outputs = self.glm(
            input_ids,
            attention_mask,
            position_ids,
            past_key_values,
            inputs_embeds,
            use_cache,
            **kwargs,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        states = outputs.last_hidden_state[:, kept]  # (B, T or kept, H)
        logits = project_to_vocabulary(states, self.glm.word_embeddings)  # (B, T or kept, V)
        options = {"num_items_in_batch": num_items_in_batch, "shift_labels": labels}
        loss = (
            None
            if labels is None
            else self.loss_function(logits, None, logits.shape[-1], **options)
        )
        return CausalLMOutputWithPast(
            loss, logits, getattr(outputs, CACHE), outputs.hidden_states, outputs.attentions
        )

    # --- Generation: nothing of GLM travels from step to step, all is read from the ids ---

    @torch.no_grad()
    def generate(
        self,
        inputs: torch.LongTensor | None = None,
        generation_config=None,
        logits_processor: LogitsProcessorList | None = None,
        *args,
        max_piece_length: int | None = None,
        position_ids: torch.LongTensor | None = None,
        generation_attention_mask: torch.Tensor | None = None,
        **kwargs,
    ):
        """Fill every blank of every row: the library's `generate`, for prompts that hold mask tokens.

        Args:
            inputs (B, S): contexts padded on either side, as the tokenizer makes them. Pieces that are there already
                follow one `<|startofpiece|>`, each with its end token, as in what this method returns.
            max_piece_length: the most tokens for one blank; by default as many as there are block positions.
            position_ids (B, 2, S or more): positions of the context where they are not 0, 1, 2, ...
            generation_attention_mask (B, 1, N, N): the padding, in the form of the old Hub port.

        Returns:
            ids (B, N): prompt, `<|startofpiece|>`, then the pieces, each with its end token; the tokenizer's
            `decode_pieces` makes text of them. With `return_dict_in_generate`, the library's output object.

        Raises:
            ValueError: if a prompt has no blank to fill or is too long, and for ways of generating that would read the
                bidirectional context in parts.
        """
        kwargs = {
            CACHE if name in ("cache", "past_key_values") else name: value
            for name, value in kwargs.items()
        }
        config, embeds = self.config, kwargs.get("inputs_embeds")
        settings = generation_config if generation_config is not None else self.generation_config
        if (
            kwargs.get("prefill_chunk_size", getattr(settings, "prefill_chunk_size", None))
            is not None
        ):
            raise ValueError("prefill_chunk_size cuts the bidirectional context; leave it out.")
        if kwargs.get("cache_implementation", settings.cache_implementation) == "paged":
            raise ValueError(
                'cache_implementation="paged" is causal only; use "dynamic" or "static".'
            )
        ids = inputs if inputs is not None else kwargs.pop("input_ids", None)
        if ids is None and embeds is None:
            raise ValueError("There is no prompt; pass input_ids with a mask token to fill.")
        ids, no_ids = self.glm.recognise_ids(embeds) if ids is None else ids, ids is None
        mask = kwargs.pop("attention_mask", None)
        if (
            generation_attention_mask is not None
        ):  # the row of <|startofpiece|> shows what of the context is real
            mask = generation_attention_mask[:, 0, ids.shape[1] - 1, : ids.shape[1]]
        mask = torch.ones_like(ids) if mask is None else mask
        if mask.shape != ids.shape:
            raise ValueError(
                f"attention_mask has shape {tuple(mask.shape)}; generation needs {tuple(ids.shape)}."
            )
        context_positions = kwargs.pop("context_positions", position_ids)
        if context_positions is not None:  # (B, 2, N) or (B, N) -> (B, S)
            context_positions = context_positions.view(len(ids), -1, context_positions.shape[-1])[
                :, 0, : ids.shape[1]
            ]
        if (
            kwargs.get("max_length") is not None
        ):  # the caller's limit wins over the one in generation_config.json
            kwargs.setdefault("max_new_tokens", None)
        stop_ids = kwargs.get("eos_token_id", settings.eos_token_id)
        stop_ids = stop_ids if isinstance(stop_ids, (list, tuple)) else [stop_ids]
        self._check_prompt(
            ids, mask.bool(), stops_at_ends=not set(config.end_token_ids).isdisjoint(stop_ids)
        )
        positions = count_positions(mask) if context_positions is None else context_positions
        if config.block_position_encoding:
            max_piece_length = min(
                max_piece_length or config.max_sequence_length, config.max_sequence_length
            )
            config.check_inputs(None, torch.stack([positions, torch.zeros_like(positions)], dim=1))
        else:  # each blank reserves max_piece_length positions behind it, as the original does
            max_piece_length = max_piece_length or kwargs.get(
                "max_new_tokens", settings.max_new_tokens
            )
            if max_piece_length is None:
                raise ValueError("A model without block positions needs max_piece_length.")
            blanks = BlankLayout.of(ids, config).is_mask.sum(-1, keepdim=True)  # (B, 1)
            config.check_inputs(None, positions + max_piece_length * blanks)

        if not (ids == config.sop_token_id).any():
            ids, mask = F.pad(ids, (0, 1), value=config.sop_token_id), F.pad(mask, (0, 1), value=1)
            if embeds is not None:
                sop = self.glm.word_embeddings.weight[config.sop_token_id].expand(
                    len(embeds), 1, -1
                )
                kwargs["inputs_embeds"] = torch.cat([embeds, sop.to(embeds)], dim=1)
        processors = LogitsProcessorList(
            [*(logits_processor or []), PieceLength(max_piece_length, config)]
        )
        kwargs |= {"max_piece_length": max_piece_length, "context_positions": context_positions}
        output = super().generate(
            ids, generation_config, processors, *args, attention_mask=mask, **kwargs
        )
        prompt = (
            ids.shape[1] if no_ids else 0
        )  # as everywhere in Transformers, embeddings are not returned
        if torch.is_tensor(output):
            return output[:, prompt:]
        output.sequences = output.sequences[:, prompt:]
        return output

    def _check_prompt(self, ids: torch.LongTensor, visible: torch.BoolTensor, stops_at_ends: bool):
        """Raise a ValueError for a prompt (B, S) that cannot be filled."""
        config = self.config
        if None in (config.sop_token_id, config.eop_token_id) or not config.mask_token_ids:
            raise ValueError(
                "Ids are unknown; pass sop_token_id, eop_token_id, mask_token_ids to from_pretrained."
            )
        layout = BlankLayout.of(ids, config, visible, generated=True)
        blanks, started = layout.is_mask.sum(-1), layout.sops.any(-1)  # (B,)
        if (blanks == 0).any():
            raise ValueError(
                f"Prompt {int(blanks.argmin())} has no mask token; write one where text is missing."
            )
        if stops_at_ends and (layout.starts.sum(-1) > blanks).any():
            raise ValueError(
                "A prompt has as many pieces as masks already; there is nothing left to generate."
            )
        if started.any() != started.all():
            raise ValueError(
                "Some prompts contain <|startofpiece|>, others do not; append it to all or to none."
            )
        if (~layout.in_context & ~visible).any():
            raise ValueError(
                "There is padding after <|startofpiece|>; pad prompts with a piece on the left."
            )

    def prepare_inputs_for_generation(
        self,
        input_ids: torch.LongTensor,
        past_key_values: Cache | None = None,
        cache: Cache | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        max_piece_length: int | None = None,
        context_positions: torch.LongTensor | None = None,
        **kwargs,
    ) -> dict:
        """The inputs of one step, from all ids so far (B, N)."""
        config, length = self.config, input_ids.shape[1]
        layout = BlankLayout.of(input_ids, config, generated=True)
        real, given = (
            torch.ones_like(input_ids) if attention_mask is None else attention_mask,
            context_positions,
        )
        context_positions = (
            count_positions(real) if given is None else F.pad(given, (0, length - given.shape[1]))
        )
        if not config.block_position_encoding:
            masks_before = layout.is_mask.cumsum(-1) - layout.is_mask.long()  # (B, N)
            context_positions = context_positions + max_piece_length * masks_before
        positions = layout.positions(context_positions)  # (B, 2, N)
        if max_piece_length is not None and length > max_piece_length:
            # The original never reads the last token of a piece that reached its limit: hide it from all that follows.
            attention_mask = real.masked_fill(positions[:, 1] > max_piece_length, 0)
            positions = positions.clamp(max=config.position_rows - 1)
        if not config.block_position_encoding:
            positions = torch.where(
                layout.in_context, positions[:, 0], positions[:, 0] + positions[:, 1] - 1
            )  # (B, N)

        cache = cache if past_key_values is None else past_key_values
        past = int(cache.get_seq_length()) if cache is not None else 0
        if past and length - past > 1 and layout.in_context[:, past:].any():
            raise ValueError(
                "The cache holds only a part of the bidirectional context; leave it out."
            )
        if cache is not None and cache.is_compileable:  # a fixed shape for the compiled forward
            columns = torch.arange(past, length, device=input_ids.device)  # (T,)
            like = torch.empty(
                len(input_ids), length - past, 0, dtype=self.dtype, device=input_ids.device
            )  # (B, T, 0)
            attention_mask = self.glm.scores_mask(
                attention_mask, layout.in_context[:, past:], like, columns, cache
            )
        model_inputs = {
            "input_ids": torch.where(layout.starts, config.sop_token_id, input_ids)[
                :, past:
            ].contiguous(),
            "position_ids": positions[..., past:].contiguous(),
            "attention_mask": attention_mask,
            CACHE: cache,
        }
        if inputs_embeds is not None and inputs_embeds.shape[1] == length:  # the prompt itself
            model_inputs |= {"input_ids": None, "inputs_embeds": inputs_embeds[:, past:]}
        return {
            **{name: value for name, value in kwargs.items() if name not in STEP_ARGUMENTS},
            **model_inputs,
        }

    def _prepare_position_ids_for_generation(self, inputs_tensor, model_kwargs):
        return None  # the library would count 0, 1, 2, ...

    def _get_stopping_criteria(self, *args, **kwargs):
        criteria = super()._get_stopping_criteria(*args, **kwargs)
        for i, criterion in enumerate(criteria):
            if isinstance(criterion, EosTokenCriteria):
                criteria[i] = AllBlanksFilled(criterion.eos_token_id, self.config)
        return criteria

    def generate_batch(self, *args, **kwargs):
        raise NotImplementedError("Continuous batching is causal only; use generate.")

    init_continuous_batching = continuous_batching_context_manager = generate_batch


class GLMForMultipleChoice(GLMPreTrainedModel):
    """Scores the answers that are offered for a blank by their log-probability."""

    def __init__(self, config: GLMConfig):
        super().__init__(config)
        self.glm = GLMModel(config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        choice_ids: list[list[torch.LongTensor]] = (),
        choice_indices: list[list[torch.LongTensor]] = (),
        labels: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> MultipleChoiceModelOutput:
        """Inputs as `build_inputs_for_multiple_choice` of the tokenizer makes them.

        Args:
            choice_ids, choice_indices: for each row and choice its tokens, and the columns that predict them.
            labels (B,): the right choice.

        Returns:
            logits (B, C): log-probability of each choice, minus infinity where a row has fewer; loss over the choices.
        """
        kwargs |= {"inputs_embeds": inputs_embeds, "use_cache": False}
        outputs = self.glm(input_ids, attention_mask, position_ids, **kwargs)
        if not len(outputs.last_hidden_state) == len(choice_ids) == len(choice_indices):
            raise ValueError(
                "Pass a list of choice_ids and a list of choice_indices for every row."
            )
        rows = []
        for states, choices, columns in zip(outputs.last_hidden_state, choice_ids, choice_indices):
            states = states[torch.cat(tuple(columns))]  # (R, H), R tokens of all choices
            logits = project_to_vocabulary(states, self.glm.word_embeddings).float()  # (R, V)
            targets = torch.cat(tuple(choices)).to(
                logits.device
            )  # lists stay behind when a batch is moved
            log_probs = logits.log_softmax(-1).gather(1, targets[:, None])[:, 0]
            rows.append(
                torch.stack(
                    [
                        choice.sum()
                        for choice in log_probs.split([len(choice) for choice in choices])
                    ]
                )
            )
        logits = nn.utils.rnn.pad_sequence(
            rows, batch_first=True, padding_value=-torch.inf
        )  # (B, C)
        loss = None if labels is None else F.cross_entropy(logits, labels)
        return MultipleChoiceModelOutput(loss, logits, outputs.hidden_states, outputs.attentions)


class GLMForSequenceClassification(GLMPreTrainedModel):
    """A pooled classifier: tanh of one position's state, dropout, a linear layer."""

    def __init__(self, config: GLMConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.glm = GLMModel(config)
        self.pool_layer = nn.Linear(config.hidden_size, config.hidden_size)
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.multichoice_head = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def _init_weights(self, module):
        if (
            module is self.pool_layer or module is self.multichoice_head
        ):  # the original leaves these to nn.Linear
            init.kaiming_uniform_(module.weight, a=math.sqrt(5))
            init.uniform_(module.bias, -(module.in_features**-0.5), module.in_features**-0.5)
        else:
            super()._init_weights(module)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> SequenceClassifierOutput:
        """Inputs as in `GLMModel.forward`; positions count all tokens, for this head reads no pieces.

        Args:
            labels: (B,) classes, or numbers if num_labels is 1; (B, num_labels) for several labels at once.

        Raises:
            ValueError: if pool_token is "start" and nothing follows the context of a row.
        """
        ids = input_ids if input_ids is not None else self.glm.recognise_ids(inputs_embeds)
        rank = 0 if attention_mask is None else attention_mask.dim()
        visible = attention_mask.bool() if rank == 2 else torch.ones_like(ids, dtype=torch.bool)
        if position_ids is None:
            position_ids = count_positions(visible)  # (B, T)
            if self.config.block_position_encoding:
                position_ids = torch.stack(
                    [position_ids, torch.zeros_like(position_ids)], dim=1
                )  # (B, 2, T)
        kwargs |= {"inputs_embeds": inputs_embeds, "use_cache": False}
        outputs = self.glm(input_ids, attention_mask, position_ids, **kwargs)
        columns = torch.arange(ids.shape[1], device=ids.device)
        in_context = BlankLayout.of(ids, self.config, visible).in_context  # (B, T)
        if rank == 1:
            in_context = (columns < attention_mask[:, None]).expand_as(ids)
        first = (in_context & visible).int().argmax(-1)  # (B,)
        last = torch.where(in_context & visible, columns, 0).max(-1).values  # (B,)
        pooled_column = {"cls": first, "start": in_context.sum(-1), "pad": last}[
            self.config.pool_token
        ]
        if not torch.compiler.is_compiling() and (pooled_column == ids.shape[1]).any():
            raise ValueError('pool_token "start" reads <|startofpiece|>; append it to every text.')
        pooled = outputs.last_hidden_state[
            torch.arange(len(ids), device=ids.device), pooled_column
        ]  # (B, H)
        logits = self.multichoice_head(
            self.dropout(torch.tanh(self.pool_layer(pooled)))
        )  # (B, num_labels)
        loss = (
            None
            if labels is None
            else self.loss_function(labels=labels, pooled_logits=logits, config=self.config)
        )
        return SequenceClassifierOutput(loss, logits, outputs.hidden_states, outputs.attentions)
