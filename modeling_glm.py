"""GLM, the General Language Model: pretraining by autoregressive blank infilling (Du et al., 2022).

A sequence is a bidirectional context with blanks, then the pieces that fill them, each causal:

    [CLS] Ng is a professor at [MASK] . <|endoftext|>   <|startofpiece|> Stanford <|endofpiece|>

Here are the network and its heads; `blanks_glm.py` tells where context, blanks and pieces are, and
`generation_glm.py` fills blanks.

Shapes: B batch, T tokens in this call, N tokens so far, K keys, H hidden size, A heads, D head
size, V vocabulary rows, L layers, C choices.
"""

import inspect
import math
import os
import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from transformers import Cache, DynamicCache, EncoderDecoderCache, PreTrainedModel
from transformers.activations import ACT2FN
from transformers.masking_utils import create_causal_mask
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

from .blanks_glm import (
    BlankLayout,
    check_ids,
    check_positions,
    context_overlay,
    count_positions,
    is_any_of,
    is_context,
    position_scheme,
)
from .configuration_glm import GLMConfig
from .generation_glm import CACHE, NO_DECODER, GLMGenerationMixin
from .parallel_glm import HEAD_TP_PLAN
from .pipeline_glm import GLMText2TextGenerationPipeline  # noqa: F401 (it names its task)

# Never run: `save_pretrained` copies all shipped files for these lines; and 4.57 loads from the Hub
# those that are named here, not those that they need.
if TYPE_CHECKING:
    from .answers_glm import BestAnswersMixin  # noqa: F401
    from .collation_glm import GLMDataCollator  # noqa: F401
    from .parallel_glm import FSDP_PLAN  # noqa: F401
    from .steering_glm import Steering  # noqa: F401
    from .streaming_glm import PieceStreamer  # noqa: F401
    from .tokenization_glm import GLMTokenizerFast  # noqa: F401

NOT_A_TARGET = -100  # the label that torch's cross entropy ignores

# --- Where versions of Transformers differ --------------------------------------------------------
try:  # 5: initialisers that leave loaded weights alone
    from transformers import initialization as init
except ImportError:
    from torch.nn import init  # type: ignore[no-redef]

_CAUSAL_MASK = inspect.signature(create_causal_mask).parameters
_EMBEDS = "inputs_embeds" if "inputs_embeds" in _CAUSAL_MASK else "input_embeds"
# 4.57: masks and static caches are told at which columns the new tokens are.
_NEEDS_CACHE_POSITION = "cache_position" in _CAUSAL_MASK
# 5: what the causal mask lacks can be told as blocks of columns, without a function of each cell.
_HAS_BLOCKS = "block_sequence_ids" in _CAUSAL_MASK
_MASK_SIZES_TAKE_A_LENGTH = "query_length" in inspect.signature(Cache.get_mask_sizes).parameters


def given_cache(cache: Cache | None, past_key_values: Cache | None) -> Cache | None:
    """The one that was given; where the library has the new name, it wants the old one told of."""
    if isinstance(past_key_values, EncoderDecoderCache):  # peft's, for models that have a decoder
        raise ValueError(NO_DECODER)
    if past_key_values is None:
        return cache
    if CACHE == "cache" and not torch.compiler.is_compiling():
        message = "`past_key_values` is deprecated; pass the same object as `cache`."
        warnings.warn(message, FutureWarning, stacklevel=4)
    return past_key_values


def _attention_function(self: "GLMSelfAttention"):
    """The kernel in use. All versions look for these expressions, `self` included, before they
    allow another one."""
    if hasattr(ALL_ATTENTION_FUNCTIONS, "get_interface"):
        return ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
    if self.config._attn_implementation == "eager":
        return eager_attention_forward
    return ALL_ATTENTION_FUNCTIONS[self.config._attn_implementation]


def causal_mask(
    config: GLMConfig,
    inputs_embeds: torch.Tensor,
    attention_mask: torch.Tensor | None,
    cache: Cache | None,
    past: int | torch.Tensor,
    in_context: torch.Tensor | None,
) -> torch.Tensor | BlockMask | None:
    """The library's causal mask, in which the context (B, K), where there is one, is one block."""
    overlay: dict[str, Any] = {}
    if in_context is not None and _HAS_BLOCKS:
        overlay = {"block_sequence_ids": in_context.long() - 1}  # -1 is of no block
    elif in_context is not None:
        overlay = {"or_mask_function": context_overlay(in_context)}
    return create_causal_mask(
        config=config,
        attention_mask=attention_mask,
        **overlay,
        **{_EMBEDS: inputs_embeds, CACHE: cache},
        **cache_position(past, inputs_embeds),
    )


def cache_position(past: int | torch.Tensor, hidden_states: torch.Tensor) -> dict:
    """The columns (T,) of new tokens (B, T, H), where masks and caches ask for them."""
    if not _NEEDS_CACHE_POSITION:
        return {}
    columns = torch.arange(hidden_states.shape[1], device=hidden_states.device)
    return {"cache_position": columns + past}


def count_keys(cache: Cache | None, past: int | torch.Tensor, length: int) -> int:
    """K: how many keys `length` new tokens meet, the room of a cache of fixed length included."""
    if cache is None:
        return length
    if _MASK_SIZES_TAKE_A_LENGTH:
        return cache.get_mask_sizes(length, 0)[0]
    columns: Any = torch.arange(length) + past
    return cache.get_mask_sizes(columns, 0)[0]


# --- Network --------------------------------------------------------------------------------------


def eager_attention_forward(
    module: "GLMSelfAttention",
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention written out.

    Args:
        query (B, A, T, D), key and value (B, A, K, D).
        attention_mask (B, 1, T, K): added to the scores.

    Returns:
        The output (B, T, A, D), and the weights (B, A, T, K).
    """
    # attention_scale keeps half-precision products small; the softmax is at the full scale.
    query = query * (scaling / module.attention_scale)
    scores = torch.matmul(query, key.transpose(2, 3)).float()  # (B, A, T, K)
    if module.attention_scale != 1.0:
        scores *= module.attention_scale
    if attention_mask is not None:
        scores += attention_mask  # in place: the largest tensor of the network
    weights = scores.softmax(-1).to(value.dtype)
    weights = F.dropout(weights, p=dropout, training=module.training)
    output = torch.matmul(weights, value).transpose(1, 2)  # (B, A, T, D) -> (B, T, A, D)
    return output, weights


def residual_projection(in_features: int, out_features: int) -> nn.Linear:
    """A layer whose output is added to the residual stream: `_init_weights` starts it smaller."""
    linear = nn.Linear(in_features, out_features)
    linear.is_residual_projection = True  # type: ignore[assignment]
    return linear


class GLMSelfAttention(nn.Module):
    """Multi-head attention over one fused projection: all queries, all keys, all values."""

    def __init__(self, config: GLMConfig, layer_idx: int):
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.is_causal = False  # no mask means that every key is visible
        self.attention_scale: float = config.attention_scale
        self.attention_dropout = config.attention_dropout_prob
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.query_key_value = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.dense = residual_projection(config.hidden_size, config.hidden_size)

    def split_heads(self, projected: torch.Tensor) -> torch.Tensor:
        """(B, T, H) -> (B, A, T, D); with tensor parallelism these are the heads of one process."""
        return projected.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | BlockMask | None = None,
        cache_position: torch.Tensor | None = None,
        **kwargs,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        cache = kwargs.pop(CACHE, None)
        query, key, value = self.query_key_value(hidden_states).chunk(3, dim=-1)  # (B, T, H) each
        query = self.split_heads(query)
        key = self.split_heads(key)
        value = self.split_heads(value)
        if cache is not None:  # (B, A, T, D) -> (B, A, K, D)
            where = {"cache_position": cache_position}
            key, value = cache.update(key, value, self.layer_idx, where)
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
        output = output.flatten(2)  # (B, T, A, D) -> (B, T, H)
        return self.dense(output), weights


class GLMMLP(nn.Module):
    def __init__(self, config: GLMConfig):
        super().__init__()
        self.dense_h_to_4h = nn.Linear(config.hidden_size, 4 * config.hidden_size)
        self.activation = ACT2FN[config.hidden_act]
        self.dense_4h_to_h = residual_projection(4 * config.hidden_size, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        hidden_states = self.dense_h_to_4h(hidden_states)  # (B, T, H) -> (B, T, 4H)
        hidden_states = self.activation(hidden_states)
        return self.dense_4h_to_h(hidden_states)  # (B, T, 4H) -> (B, T, H)


class GLMLayer(GradientCheckpointingLayer):
    """One transformer layer; the layer norms come first (pre-LN)."""

    def __init__(self, config: GLMConfig, layer_idx: int):
        super().__init__()
        self.input_layernorm = nn.LayerNorm(config.hidden_size)  # eps 1e-5, as in the original
        self.attention = GLMSelfAttention(config, layer_idx)
        self.post_attention_layernorm = nn.LayerNorm(config.hidden_size)
        self.mlp = GLMMLP(config)
        self.dropout = nn.Dropout(config.output_dropout_prob)

    def forward(
        self, hidden_states: torch.Tensor, **kwargs
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        attended, weights = self.attention(self.input_layernorm(hidden_states), **kwargs)
        hidden_states = hidden_states + self.dropout(attended)
        transformed = self.mlp(self.post_attention_layernorm(hidden_states))
        hidden_states = hidden_states + self.dropout(transformed)
        return hidden_states, weights


class GLMTransformer(nn.Module):
    """Position tables, layers and final norm: what `transformer.` stands before in a checkpoint."""

    def __init__(self, config: GLMConfig):
        super().__init__()
        rows = config.position_rows
        self.position_embeddings = nn.Embedding(rows, config.hidden_size)
        if config.block_position_encoding:
            self.block_position_embeddings = nn.Embedding(rows, config.hidden_size)
        self.layers = nn.ModuleList(GLMLayer(config, i) for i in range(config.num_layers))
        self.final_layernorm = nn.LayerNorm(config.hidden_size)

    def embed_positions(self, position_ids: torch.Tensor) -> torch.Tensor:
        """(B, 2, T), or (B, T) without block positions -> (B, T, H)."""
        if position_ids.dim() == 2:
            return self.position_embeddings(position_ids)
        places, block_positions = position_ids.unbind(1)  # (B, T) each
        return self.position_embeddings(places) + self.block_position_embeddings(block_positions)


class GLMOutputHead(nn.Linear):
    """The output head, (..., H) -> (..., V), whose weight is the word embedding.

    A step of generation reads the whole table for a few rows. CPUs do that up to four times faster
    as the product of the table with 2 to 8 columns than as that of 1 to 8 rows with the table:
    benchmarks/decode.py measures it.
    """

    FEW_ROWS = 8

    def __init__(self, config: GLMConfig):
        super().__init__(config.hidden_size, config.vocab_size, bias=False)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        if self._is_faster_transposed(states):
            columns = states.reshape(-1, states.shape[-1])  # (R, H)
            rows = columns.shape[0]
            if rows == 1:
                columns = columns.repeat(2, 1)  # one column alone is slow again
            logits = F.linear(self.weight, columns).t()  # (V, R) -> (R, V)
            return logits[:rows].reshape(*states.shape[:-1], -1)
        return super().forward(states)

    def _is_faster_transposed(self, states: torch.Tensor) -> bool:
        if type(states) is not torch.Tensor:  # distributed: the library cuts its product
            return False
        if states.device.type != "cpu" or states.dtype != torch.float32:
            return False
        if torch.compiler.is_compiling():  # the number of rows is not known there
            return False
        rows = states.numel() // states.shape[-1]
        return 0 < rows <= self.FEW_ROWS


class GLMPreTrainedModel(PreTrainedModel):
    """Loading, saving and initialisation shared by every GLM class."""

    config: GLMConfig
    config_class = GLMConfig
    base_model_prefix = "glm"
    _input_embed_layer = "word_embeddings"
    supports_gradient_checkpointing = True
    _no_split_modules = ["GLMLayer"]
    _skip_keys_device_placement = [CACHE]
    _supports_sdpa = True  # flash attention is not: its kernels have no bidirectional context
    _supports_flex_attn = True
    _supports_context_parallel = False
    _can_compile_fullgraph = True

    def _init_weights(self, module: nn.Module):
        """The original's: N(0, 0.02), and 0.02 / sqrt(2 L) where a layer writes to its residual."""
        std = self.config.initializer_range
        if getattr(module, "is_residual_projection", False):
            std = std / math.sqrt(2 * self.config.num_layers)
        if isinstance(module, (nn.Linear, nn.Embedding)):
            init.normal_(module.weight, mean=0.0, std=std)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
        if isinstance(module, (nn.Linear, nn.LayerNorm)) and module.bias is not None:
            init.zeros_(module.bias)


class GLMModel(GLMPreTrainedModel):
    """The network without a head."""

    _auto_class: str | None = "AutoModel"

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
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        cache: Cache | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPast:
        """
        Args:
            input_ids (B, T), or inputs_embeds (B, T, H), or both: then the ids tell where context
                and blanks are, and the embeddings are read.
            attention_mask: told apart by its rank. None: nothing is padding. (B,) or (1,): lengths
                of the bidirectional contexts, counted from the first token of this call. (B, T), or
                (B, N) with a cache: 0 marks padding. (B, 1, T, K): explicit; integers and booleans
                mark what is visible, floats are added to the scores.
            position_ids (B, 2, T), or (B, T) without block positions. Derived from the ids when
                absent; with block positions (B, T) are those of the context, and the pieces take
                the positions of their blanks.
            past_key_values, or cache: keys and values of earlier tokens. Without position_ids they
                are those of virtual tokens, which stand in front of the context and are of it: the
                tokens of this call, a whole text, take the positions that follow.

        Returns:
            last_hidden_state (B, T, H) after the final norm; hidden_states: the embedding sum, then
            each layer's output.

        Raises:
            ValueError: for ids or positions outside their tables, for more pieces than blanks, and
                for embeddings whose blanks cannot be found.
        """
        given = given_cache(cache, past_key_values)
        is_whole_text = given is None or position_ids is None
        use_cache = self._uses_cache(use_cache)
        cache = DynamicCache(config=self.config) if use_cache and given is None else given
        ids, position_ids = self._read_inputs(
            input_ids, inputs_embeds, attention_mask, position_ids, cache
        )
        if is_whole_text and not torch.compiler.is_compiling():
            check_positions(position_ids, self.config)
            check_ids(ids if inputs_embeds is None else None, self.config)
            if self.training and torch.is_grad_enabled():
                check_precision(self)
        if inputs_embeds is None:
            inputs_embeds = self.word_embeddings(ids)  # (B, T) -> (B, T, H)
        in_context = self.find_context(ids, attention_mask, position_ids)  # (B, T)
        if not is_whole_text and rank_of(attention_mask) != 1 and in_context.shape[1] > 1:
            in_context = in_context & (given.get_seq_length() == 0)  # it is all in the cache
        hidden_states = inputs_embeds + self.transformer.embed_positions(position_ids)
        hidden_states, all_hidden_states, all_attentions = self._run_layers(
            self.embedding_dropout(hidden_states),
            self.scores_mask(attention_mask, in_context, inputs_embeds, cache),
            cache,
            output_attentions,
            output_hidden_states,
            **kwargs,
        )
        return BaseModelOutputWithPast(
            last_hidden_state=self.transformer.final_layernorm(hidden_states),
            hidden_states=all_hidden_states,
            attentions=all_attentions,
            **{CACHE: cache if use_cache else None},
        )

    def _uses_cache(self, use_cache: bool | None) -> bool:
        wanted = self.config.use_cache if use_cache is None else use_cache
        return wanted and not (self.gradient_checkpointing and self.training)

    def _read_inputs(
        self,
        input_ids: torch.Tensor | None,
        inputs_embeds: torch.Tensor | None,
        attention_mask: torch.Tensor | None,
        position_ids: torch.Tensor | None,
        cache: Cache | None,
    ) -> tuple[torch.Tensor | None, torch.Tensor]:
        """The ids (B, T), None where embeddings come with their positions, and the positions."""
        if input_ids is None and inputs_embeds is None:
            raise ValueError("Pass either input_ids or inputs_embeds, or both.")
        two_rows = self.config.block_position_encoding
        of_context = position_ids is None or (two_rows and position_ids.dim() == 2)
        if not of_context:
            # Block positions tell where the context is; one row of positions does not.
            if input_ids is None and not two_rows:
                input_ids = self.recognise_ids(inputs_embeds)
            return input_ids, position_ids
        ids = self.recognise_ids(inputs_embeds) if input_ids is None else input_ids
        past = cache.get_seq_length() if cache is not None else 0
        visible = find_visible(attention_mask, ids)  # (B, T)
        layout = BlankLayout.of(ids, self.config, visible)
        if past > 0 and (position_ids is not None or not layout.is_mask.any(-1).all()):
            raise ValueError(
                "New tokens alone do not tell their positions; with a filled cache pass "
                "position_ids. Only behind virtual tokens, a whole text with its masks has none."
            )
        self._check_layout(layout)
        context_positions = position_ids
        if position_ids is None:
            context_positions = count_positions(visible) + past
        position_ids = position_scheme(self.config).position_ids(
            layout, context_positions, layout.length
        )
        return layout.read(ids, self.config), position_ids

    def _check_layout(self, layout: BlankLayout):
        if torch.compiler.is_compiling():
            return
        if (layout.sops.sum(-1) > layout.is_mask.sum(-1)).any():
            raise ValueError(
                "A text has more <|startofpiece|> than mask tokens; give every piece a mask."
            )
        if not self.config.block_position_encoding and layout.sops.any():
            raise ValueError("Without block positions a text with pieces needs position_ids.")

    def recognise_ids(self, inputs_embeds: torch.Tensor, started: bool = True) -> torch.Tensor:
        """The ids of embeddings, as far as the layout of the blanks needs them.

        Args:
            inputs_embeds (B, T, H): rows of the word embedding; some may be none, as the virtual
                tokens of a prompt method are, where the text's own mask and start are there.
            started: whether a start is needed, or a mask alone tells enough.

        Returns:
            ids (B, T) of the mask, start and end tokens, -1 elsewhere.

        Raises:
            ValueError: if no mask and start are found, and some embeddings are of no token: it
                cannot be known then where they are.
        """
        table = self.word_embeddings.weight
        ids = self.known_ids(inputs_embeds)
        if torch.compiler.is_compiling():
            return ids
        layout = BlankLayout.of(ids, self.config)
        found = layout.is_mask.any(-1)  # (B,)
        if started:
            found = found & layout.sops.any(-1)
        if not found.all() and not is_row_of(inputs_embeds[~found], table).all():
            raise ValueError(
                "The blanks of inputs_embeds cannot be found: they are not the word embedding's "
                "rows. Pass input_ids beside them, or position_ids and the lengths of the "
                "contexts as attention_mask."
            )
        return ids

    def known_ids(self, inputs_embeds: torch.Tensor) -> torch.Tensor:
        """(B, T, H) -> (B, T): ids of the mask, start and end tokens, -1 elsewhere."""
        table = self.word_embeddings.weight
        ids = torch.full(inputs_embeds.shape[:2], -1, device=inputs_embeds.device)
        # Masks come last: in glm-10b-chinese [gMASK] and the end of piece share a row.
        for id in self.config.special_ids:
            ids[(inputs_embeds == table[id]).all(-1)] = id
        return ids

    def find_context(
        self,
        ids: torch.Tensor | None,
        attention_mask: torch.Tensor | None,
        position_ids: torch.Tensor | None,
    ) -> torch.Tensor:
        """(B, T): which tokens of this call are of the bidirectional context."""
        tokens = position_ids if ids is None else ids
        if rank_of(attention_mask) == 1:
            columns = torch.arange(tokens.shape[-1], device=tokens.device)
            in_context = columns < attention_mask[:, None]  # (B, T) or (1, T)
            return in_context.expand(tokens.shape[0], -1)
        if ids is None and self.config.block_position_encoding:  # 0 is the context's block position
            return position_ids[:, 1] == 0
        return is_context(ids, self.config, find_visible(attention_mask, ids))

    def scores_mask(
        self,
        attention_mask: torch.Tensor | None,
        in_context: torch.Tensor,
        inputs_embeds: torch.Tensor,
        cache: Cache | None = None,
    ) -> torch.Tensor | BlockMask | None:
        """What the kernel in use takes for: context keys are visible to all, the others to
        themselves and to what follows (paper, figure 2); padding to nobody.

        Args:
            attention_mask: as in `forward`. in_context (B, T). inputs_embeds (B, T, any).
        """
        rank = rank_of(attention_mask)
        length = inputs_embeds.shape[1]
        past = cache.get_seq_length() if cache is not None else 0
        fixed_length = cache is not None and cache.is_compileable
        if rank == 4:
            if not fixed_length and attention_mask.shape[-1] > past + length:
                attention_mask = attention_mask[..., -(past + length) :]
            return explicit_mask(attention_mask, inputs_embeds, self.config)
        if rank == 3:
            raise ValueError(
                "attention_mask has three dimensions; an explicit one is (batch, 1, tokens, keys)."
            )
        if rank == 2 and not fixed_length and attention_mask.shape[1] != past + length:
            raise ValueError(
                f"attention_mask has {attention_mask.shape[1]} columns for {past + length} tokens."
            )
        if rank == 1:
            attention_mask = None
        columns = None
        if length > 1:  # what came earlier is seen anyway; behind, a cache of fixed length has room
            room = count_keys(cache, past, length) - int(past) - length
            columns = F.pad(in_context, (int(past), room))  # (B, T) -> (B, K)
        return causal_mask(self.config, inputs_embeds, attention_mask, cache, past, columns)

    def _run_layers(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | BlockMask | None,
        cache: Cache | None,
        output_attentions: bool | None,
        output_hidden_states: bool | None,
        **kwargs,
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...] | None, tuple[torch.Tensor, ...] | None]:
        """The states (B, T, H) after the last layer; if asked for, those before, and attentions."""
        config = self.config
        if output_attentions is None:
            output_attentions = config.output_attentions
        if output_hidden_states is None:
            output_hidden_states = config.output_hidden_states
        all_hidden_states: tuple[torch.Tensor, ...] = (hidden_states,)
        all_attentions: tuple[torch.Tensor, ...] = ()
        past = cache.get_seq_length() if cache is not None else 0
        kwargs |= {CACHE: cache, **cache_position(past, hidden_states)}
        # Fewer layers than there are when a model assists itself by early exit.
        for layer in self.transformer.layers[: config.num_layers]:
            hidden_states, weights = layer(hidden_states, attention_mask=attention_mask, **kwargs)
            if output_hidden_states:
                all_hidden_states += (hidden_states,)
            if output_attentions:
                all_attentions += (weights,)
        return (
            hidden_states,
            all_hidden_states if output_hidden_states else None,
            all_attentions if output_attentions else None,
        )


# --- Masks ----------------------------------------------------------------------------------------


def rank_of(attention_mask: torch.Tensor | None) -> int:
    """Its number of dimensions, by which the meanings of a mask are told apart; 0 for none."""
    return 0 if attention_mask is None else len(attention_mask.shape)


def find_visible(attention_mask: torch.Tensor | None, ids: torch.Tensor) -> torch.Tensor:
    """(B, T): which tokens of this call are no padding, as far as the mask tells."""
    if rank_of(attention_mask) == 2:
        return attention_mask[:, -ids.shape[1] :].bool()
    return torch.ones_like(ids, dtype=torch.bool)


def is_row_of(states: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """(B, T, H), (V, H) -> (B, T): whether each state is a row of the table, bit by bit."""
    rows = table.float()
    # The nearest row r of a state s: |s - r|^2 is smallest where s r - |r|^2 / 2 is largest.
    nearness = states.float() @ rows.t() - rows.square().sum(-1) / 2  # (B, T, V)
    return (table[nearness.argmax(-1)] == states).all(-1)


def explicit_mask(
    attention_mask: torch.Tensor, inputs_embeds: torch.Tensor, config: GLMConfig
) -> torch.Tensor | BlockMask:
    """A mask (B, 1, T, K) of the caller's, in the form that the kernel in use takes."""
    if isinstance(attention_mask, BlockMask):  # made for a compiled step
        return attention_mask
    kernel = config._attn_implementation
    # Eager attention adds the mask to float32 scores; the fused kernels want their inputs' type.
    dtype = torch.float32 if kernel == "eager" else inputs_embeds.dtype
    lowest = torch.finfo(dtype).min
    if attention_mask.is_floating_point():
        if kernel == "flex_attention":
            raise ValueError(
                "flex_attention needs a boolean mask; pass one, or use eager or sdpa attention."
            )
        return attention_mask.to(dtype).clamp(min=lowest)  # a row of -inf would be NaN
    visible = attention_mask != 0
    if kernel == "flex_attention":
        visible = visible.expand(len(inputs_embeds), -1, -1, -1)
        batch, _, length, keys = visible.shape
        return create_block_mask(
            lambda b, _, q, k: visible[b, 0, q, k], batch, None, length, keys, visible.device
        )
    mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    return mask.masked_fill(~visible, lowest)


def check_precision(model: nn.Module):
    """Raise a ValueError where the weights that are trained are float16: their steps are lost."""
    if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":  # it keeps float32 weights beside them
        return
    trained = next((weight for weight in model.parameters() if weight.requires_grad), None)
    if trained is not None and trained.dtype == torch.float16:
        raise ValueError(
            "Weights in float16 cannot be trained; load them with dtype=torch.float32, and pass "
            "bf16=True or fp16=True to the Trainer for arithmetic in half precision."
        )


# --- Heads ----------------------------------------------------------------------------------------


def flatten_choices(tensors: dict[str, torch.Tensor | None]) -> dict[str, torch.Tensor]:
    """(B, C, ...) -> (B * C, ...); what is not given is left out."""
    given = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    return {name: tensor.flatten(0, 1) for name, tensor in given.items()}


def without_missing(scores: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
    """(R,) -> (R,): minus infinity for rows that are all padding, which hold no choice."""
    if rank_of(attention_mask) != 2:
        return scores
    return scores.masked_fill(~attention_mask.bool().any(-1), -torch.inf)


def stack_choices(rows: list[list[torch.Tensor]], padding: int) -> torch.Tensor:
    """A tensor for each row and choice -> (B, C, G)."""
    pad = nn.utils.rnn.pad_sequence
    flat = pad([choice for row in rows for choice in row], True, padding)  # (choices, G)
    of_rows = flat.split([len(row) for row in rows])
    return pad(of_rows, True, padding)


class GLMForConditionalGeneration(GLMPreTrainedModel, GLMGenerationMixin):
    """GLM with its output head, which is the word embedding itself."""

    _auto_class: str | None = "AutoModelForSeq2SeqLM"
    _tied_weights_keys = {"lm_head.weight": "glm.word_embeddings.weight"}
    _fsdp_plan = {"lm_head": "keep_full_weight"}
    _tp_plan = HEAD_TP_PLAN

    def __init__(self, config: GLMConfig):
        super().__init__(config)
        self.glm = GLMModel(config)
        self.lm_head = GLMOutputHead(config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        num_items_in_batch: int | torch.Tensor | None = None,
        skip_logits: bool | None = None,
        label_smoothing: float = 0.0,
        cache: Cache | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> CausalLMOutputWithPast:
        """Inputs as in `GLMModel.forward`.

        Args:
            labels (B, T): aligned with the logits (B, T, V), position t predicts labels[t] (no
                shift); -100 is ignored.
            logits_to_keep: compute only the last so many logits, or those at the given columns; 0
                keeps all.
            num_items_in_batch: what the sum of the losses is divided by, instead of the number of
                targets: the targets of all batches of a step.
            skip_logits: with labels, return the loss alone, whose logits are computed only where
                there is a target; most of a batch is context. By default so in training with
                `labels`: who gives `shift_labels` alone makes a loss of the logits.
            label_smoothing: share of the loss that all rows of the vocabulary get alike.

        Examples:
            >>> inputs = tokenizer("Ng is a professor at [MASK].", return_tensors="pt")
            >>> tokenizer.decode_pieces(model.generate(**inputs))
        """
        if skip_logits is None:
            skip_logits = self.training and labels is not None
        shift_labels = kwargs.pop("shift_labels", None)  # the library's word for aligned labels
        labels = labels if shift_labels is None else shift_labels
        self._check_kept(skip_logits, labels, logits_to_keep)
        cache = given_cache(cache, past_key_values)
        inputs = (input_ids, inputs_embeds, attention_mask, position_ids, cache)
        if labels is not None:
            self._check_labels(labels, *inputs)
        elif self.training and torch.is_grad_enabled():
            self._warn_of_no_answers(*inputs)
        elif cache is None and position_ids is None and not self.training:
            self._warn_of_no_blank(input_ids, attention_mask)
        outputs = self.glm(
            input_ids,
            attention_mask,
            position_ids,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **{CACHE: cache},
            **kwargs,
        )
        states = outputs.last_hidden_state  # (B, T, H)
        logits = loss = None
        if not skip_logits:
            from_end = isinstance(logits_to_keep, int)
            kept = slice(-logits_to_keep, None) if from_end else logits_to_keep  # -0 keeps all
            logits = self.lm_head(states[:, kept])  # (B, T or kept, V)
        if labels is not None:
            of_targets = self._at_targets(states, logits, labels)
            loss = self._loss(*of_targets, num_items_in_batch, label_smoothing)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            **{CACHE: getattr(outputs, CACHE)},
        )

    def _check_kept(
        self,
        skip_logits: bool,
        labels: torch.Tensor | None,
        logits_to_keep: int | torch.Tensor,
    ):
        """Raise a ValueError where nothing is asked for, or a loss of logits that are left out."""
        if skip_logits and labels is None:
            raise ValueError("skip_logits leaves nothing without labels; pass these too.")
        keeps_all = isinstance(logits_to_keep, int) and logits_to_keep == 0
        if labels is not None and not keeps_all:
            raise ValueError("The loss needs all logits; leave logits_to_keep out with labels.")

    def _at_targets(
        self,
        states: torch.Tensor,
        logits: torch.Tensor | None,
        labels: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits (R, V) and labels (R,) of the targets among (B, T, H), (B, T, V) and (B, T)."""
        labels = labels.to(states.device)  # the last of the devices that share the network
        if torch.compiler.is_compiling():  # a graph cannot count targets: all positions, -100 too
            logits = self.lm_head(states) if logits is None else logits
            return logits.flatten(0, 1), labels.flatten()
        is_target = labels != NOT_A_TARGET  # (B, T)
        logits = self.lm_head(states[is_target]) if logits is None else logits[is_target]
        return logits, labels[is_target]

    def _loss(
        self,
        logits: torch.Tensor,
        labels: torch.Tensor,
        num_items_in_batch: int | torch.Tensor | None,
        label_smoothing: float,
    ) -> torch.Tensor:
        """Cross entropy of logits (R, V) and labels (R,).

        The mean over the labels that are not -100, or their sum divided by `num_items_in_batch`.
        """
        if label_smoothing == 0:
            return self.loss_function(
                logits,
                labels=None,
                vocab_size=logits.shape[-1],
                num_items_in_batch=num_items_in_batch,
                shift_labels=labels,
            )
        count = num_items_in_batch
        if count is None:
            count = (labels != NOT_A_TARGET).sum()
        # torch's is the original's: (1 - e) nll - e mean of log p (FACTS section 8).
        loss = F.cross_entropy(
            logits.float(),
            labels,
            reduction="sum",
            label_smoothing=label_smoothing,
        )
        return loss / count

    def _check_labels(
        self,
        labels: torch.Tensor,
        input_ids: torch.Tensor | None,
        inputs_embeds: torch.Tensor | None,
        attention_mask: torch.Tensor | None,
        position_ids: torch.Tensor | None,
        cache: Cache | None,
    ):
        """Raise a ValueError for labels that would teach nonsense."""
        inputs = inputs_embeds if input_ids is None else input_ids
        if labels.shape != inputs.shape[:2]:
            raise ValueError(
                f"labels have shape {tuple(labels.shape)} and inputs {tuple(inputs.shape[:2])}: "
                "position t predicts labels[t]. GLMDataCollator makes both from texts and targets; "
                'virtual tokens of peft need task_type="CAUSAL_LM".'
            )
        if torch.compiler.is_compiling():
            return
        if position_ids is not None and cache is not None and cache.get_seq_length() > 0:
            raise ValueError(
                "With labels, a filled cache is that of virtual tokens: the model counts positions "
                "behind them itself, leave position_ids out."
            )
        in_context = self._context_of(input_ids, inputs_embeds, attention_mask, position_ids, cache)
        if in_context is not None and (in_context & (labels != NOT_A_TARGET)).any():
            raise ValueError(
                "Labels lie in the context, where the network sees the answer. Answers follow "
                "<|startofpiece|>, and only they have labels, -100 stands elsewhere: "
                "GLMDataCollator makes such batches, a collator for causal models does not."
            )

    def _warn_of_no_answers(self, *inputs: Any):
        """Warn where labels, which a trainer that smooths them keeps, must lie in a context.

        Args:
            inputs: of `_context_of`.
        """
        if torch.compiler.is_compiling():
            return
        in_context = self._context_of(*inputs)
        if in_context is not None and in_context.all():
            warnings.warn(
                "There is nothing to learn: no answer follows a <|startofpiece|>, and in its "
                "context the network sees what it would have to say. GLMDataCollator makes "
                "batches with answers, the library's collators do not.",
                stacklevel=2,
            )

    def _warn_of_no_blank(
        self,
        input_ids: torch.Tensor | None,
        attention_mask: torch.Tensor | None,
    ):
        """Warn where logits are asked for as of a causal model, whose text is without a blank."""
        if input_ids is None or rank_of(attention_mask) in (1, 4) or torch.compiler.is_compiling():
            return
        wanted = [*self.config.start_token_ids, *(self.config.mask_token_ids or [])]
        if wanted and not is_any_of(input_ids, wanted).any(-1).all():
            warnings.warn(
                "A text has neither a mask nor a <|startofpiece|>: each of its tokens sees all "
                "others, and its logits say nothing of what comes next. Write a mask where the "
                "answer belongs; to score texts, use glm_transformers.evaluation, or its model "
                "glm in lm-evaluation-harness.",
                stacklevel=2,
            )

    def _context_of(
        self,
        input_ids: torch.Tensor | None,
        inputs_embeds: torch.Tensor | None,
        attention_mask: torch.Tensor | None,
        position_ids: torch.Tensor | None,
        cache: Cache | None,
    ) -> torch.Tensor | None:
        """(B, T): which tokens are of the context; None where they alone do not tell."""
        # An explicit mask says itself who sees whom. A cache holds the context already, unless it
        # is that of virtual tokens.
        is_behind_context = cache is not None and position_ids is not None
        if rank_of(attention_mask) == 4 or is_behind_context:
            return None
        if input_ids is None and position_ids is None:
            input_ids = self.glm.recognise_ids(inputs_embeds)
        return self.glm.find_context(input_ids, attention_mask, position_ids)


class GLMForMultipleChoice(GLMPreTrainedModel):
    """Scores the answers that are offered for a blank by their log-probability."""

    _auto_class: str | None = "AutoModelForMultipleChoice"
    accepts_loss_kwargs = False  # a mean of rows: the Trainer divides it by its accumulation steps
    _tied_weights_keys = {"lm_head.weight": "glm.word_embeddings.weight"}
    _fsdp_plan = {"lm_head": "keep_full_weight"}
    _tp_plan = HEAD_TP_PLAN

    def __init__(self, config: GLMConfig):
        super().__init__(config)
        self.glm = GLMModel(config)
        self.lm_head = GLMOutputHead(config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        choice_ids: torch.Tensor | list[list[torch.Tensor]] | None = None,
        choice_indices: torch.Tensor | list[list[torch.Tensor]] | None = None,
        labels: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> MultipleChoiceModelOutput:
        """Inputs in one of two forms; a choice without a token is missing.

        Args:
            input_ids (B, T): all choices of a row behind one context, which is read once, as
                `GLMMultipleChoiceCollator` makes them, with an explicit attention_mask
                (B, 1, T, T) and position_ids (B, 2, T). choice_ids (B, C, G) holds the tokens of
                each choice, -100 for padding, and choice_indices (B, C, G) the columns that predict
                them. Or both are lists, a tensor for each row and choice, as the tokenizer's
                `build_inputs_for_multiple_choice` makes them.
            input_ids (B, C, T), or inputs_embeds (B, C, T, H): each choice behind a context of its
                own, with attention_mask (B, C, T). choice_ids (B, C, T) is the token that each
                position has to say, -100 elsewhere; without it, what follows `<|startofpiece|>` is
                the choice, whose last token is read and says nothing. position_ids (B, C, 2, T)
                are derived when absent.
            labels (B,): the right choice.

        Returns:
            logits (B, C): the log-probability of each choice, divided by its number of tokens to
            the power of `config.choice_length_penalty`; minus infinity for a missing one. With
            several masks a choice answers the last one (FACTS section 6). loss over the choices.

        Raises:
            ValueError: if the choices are missing, or are not of the inputs' form.
        """
        if input_ids is None and inputs_embeds is None:
            raise ValueError("Pass either input_ids or inputs_embeds, or both.")
        texts = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "position_ids": position_ids,
            "inputs_embeds": inputs_embeds,
        }
        shape = (inputs_embeds[..., 0] if input_ids is None else input_ids).shape
        if len(shape) == 3:
            texts = flatten_choices(texts)
            texts, choice_ids, choice_indices = self._read_rows(shape, texts, choice_ids)
        else:
            choice_ids, choice_indices = self._read_packed(shape, choice_ids, choice_indices)
        kwargs["use_cache"] = False
        outputs = self.glm(**texts, **kwargs)
        logits = self.score(outputs.last_hidden_state, choice_ids, choice_indices)
        logits = logits.view(shape[0], -1)  # (B * C, 1) -> (B, C)
        return MultipleChoiceModelOutput(
            loss=None if labels is None else F.cross_entropy(logits, labels),
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def _read_packed(
        self,
        shape: torch.Size,
        choice_ids: torch.Tensor | list[list[torch.Tensor]] | None,
        choice_indices: torch.Tensor | list[list[torch.Tensor]] | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """choice_ids and choice_indices (B, C, G) of inputs (B, T)."""
        if choice_ids is None or choice_indices is None:
            raise ValueError(
                f"Inputs of shape {tuple(shape)} need choice_ids and choice_indices; "
                "GLMMultipleChoiceCollator makes them."
            )
        if isinstance(choice_ids, (list, tuple)):
            choice_ids = stack_choices(choice_ids, padding=NOT_A_TARGET)
        if isinstance(choice_indices, (list, tuple)):
            choice_indices = stack_choices(choice_indices, padding=0)
        if choice_ids.shape != choice_indices.shape or choice_ids.shape[0] != shape[0]:
            raise ValueError(
                f"choice_ids have shape {tuple(choice_ids.shape)} and choice_indices "
                f"{tuple(choice_indices.shape)}; both are (batch, choices, tokens), with a row for "
                f"each of the {shape[0]} texts."
            )
        return choice_ids, choice_indices

    def _read_rows(
        self,
        shape: torch.Size,
        texts: dict[str, torch.Tensor],
        choice_ids: Any,
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor]:
        """Texts (B * C, T) with positions, then choice_ids and choice_indices (B * C, 1, T).

        Args:
            shape: (B, C, T). texts: flattened to B * C rows.
        """
        if choice_ids is not None and getattr(choice_ids, "shape", None) != shape:
            raise ValueError(
                f"Inputs of shape {tuple(shape)} need choice_ids of the same shape; "
                "GLMMultipleChoiceCollator makes batches of another form, which are faster."
            )
        ids = texts.get("input_ids")
        if choice_ids is None and ids is None:
            raise ValueError("inputs_embeds do not tell what is said; pass choice_ids with them.")
        if ids is not None:
            visible = find_visible(texts.get("attention_mask"), ids)
            layout = BlankLayout.of(ids, self.config, visible)
            if "position_ids" not in texts and self.config.block_position_encoding:
                texts["position_ids"] = position_scheme(self.config).position_ids(
                    layout.answering_the_last_mask(), count_positions(visible), layout.length
                )
            if choice_ids is None:
                choice_ids = self._read_pieces(ids, layout, visible)
        columns = torch.arange(shape[-1], device=choice_ids.device)
        said = choice_ids.reshape(-1, 1, shape[-1])  # (B * C, 1, T)
        return texts, said, columns.expand_as(said)

    def _read_pieces(
        self, ids: torch.Tensor, layout: BlankLayout, visible: torch.Tensor
    ) -> torch.Tensor:
        """(R, T): the next id at each token from the start on, but the last; -100 elsewhere."""
        if not torch.compiler.is_compiling() and not layout.sops.any(-1).all():
            raise ValueError(
                "A row has no <|startofpiece|>: put it, and the choice, behind each text, or pass "
                "choice_ids. GLMMultipleChoiceCollator makes batches from texts and choices."
            )
        speaks = ~layout.in_context[:, :-1] & visible[:, :-1] & visible[:, 1:]
        said = torch.where(speaks, ids[:, 1:], NOT_A_TARGET)
        return F.pad(said, (0, 1), value=NOT_A_TARGET)  # (R, T - 1) -> (R, T)

    def score(
        self,
        states: torch.Tensor,
        choice_ids: torch.Tensor,
        choice_indices: torch.Tensor,
    ) -> torch.Tensor:
        """(B, T, H), (B, C, G), (B, C, G) -> (B, C)."""
        # What was made of lists stays behind when a batch is moved to another device.
        choice_ids = choice_ids.to(states.device)
        choice_indices = choice_indices.to(states.device)
        is_token = choice_ids != NOT_A_TARGET
        # N tokens of all choices; the head need not read padding. A graph cannot count them.
        if torch.compiler.is_compiling():
            tokens = torch.arange(is_token.numel(), device=states.device)
        else:
            tokens = is_token.flatten().nonzero()[:, 0]
        row = tokens // is_token[0].numel()
        column = choice_indices.flatten()[tokens].clamp(min=0)
        said = choice_ids.flatten()[tokens].clamp(min=0)
        of_tokens = self.log_probs(states[row, column], said)  # (N,)
        log_probs = of_tokens.new_zeros(is_token.numel()).index_copy(0, tokens, of_tokens)
        log_probs = log_probs.view_as(choice_ids).masked_fill(~is_token, 0)  # (B, C, G)
        lengths = is_token.sum(-1)  # (B, C)
        scores = log_probs.sum(-1) / lengths.clamp(min=1) ** self.config.choice_length_penalty
        return scores.masked_fill(lengths == 0, -torch.inf)

    def log_probs(self, states: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """(R, H), (R,) -> (R,): the log-probability of each token after its state."""
        log_probs = self.lm_head(states).float().log_softmax(-1)  # (R, V)
        return log_probs.gather(1, tokens[:, None])[:, 0]


class GLMForSequenceClassification(GLMPreTrainedModel):
    """A pooled classifier: tanh of one position's state, dropout, a linear layer."""

    _auto_class: str | None = "AutoModelForSequenceClassification"
    accepts_loss_kwargs = False  # a mean of rows: the Trainer divides it by its accumulation steps

    def __init__(self, config: GLMConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.glm = GLMModel(config)
        self.pool_layer = nn.Linear(config.hidden_size, config.hidden_size)
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.multichoice_head = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def _init_weights(self, module: nn.Module):
        if module is self.pool_layer or module is self.multichoice_head:
            # The original leaves these to nn.Linear.
            bound = module.in_features**-0.5
            init.kaiming_uniform_(module.weight, a=math.sqrt(5))
            init.uniform_(module.bias, -bound, bound)
        else:
            super()._init_weights(module)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> SequenceClassifierOutput:
        """Inputs as in `GLMModel.forward`; positions count all tokens: this head reads no pieces.

        Args:
            input_ids (B, C, T), if num_labels is 1: each choice in a row of its own, which gets a
                score; other inputs then have a dimension more, too. A row that is all padding
                holds no choice.
            labels: (B,) classes, or numbers if num_labels is 1; (B, num_labels) for several labels
                at once; (B,) the right choices.

        Returns:
            logits (B, num_labels), or (B, C), minus infinity for a missing choice; loss.

        Raises:
            ValueError: if pool_token is "start" and nothing follows the context of a row, and for
                choices if num_labels is not 1.
        """
        if input_ids is None and inputs_embeds is None:
            raise ValueError("Pass either input_ids or inputs_embeds, or both.")
        texts = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "position_ids": position_ids,
            "inputs_embeds": inputs_embeds,
        }
        if labels is not None:
            self._warn_of_untrained_head()
        shape = (inputs_embeds[..., 0] if input_ids is None else input_ids).shape
        has_choices = len(shape) == 3
        if has_choices:
            self._check_one_score()
            texts = flatten_choices(texts)
        pooled, outputs = self._pool(**texts, **kwargs)
        logits = self.multichoice_head(pooled)  # (B, num_labels), or (B * C, 1)
        if has_choices:
            logits = without_missing(logits[:, 0], texts.get("attention_mask"))
            logits = logits.view(shape[0], -1)  # (B * C,) -> (B, C)
        loss = None
        if labels is not None and has_choices:
            loss = F.cross_entropy(logits.float(), labels)
        elif labels is not None:
            loss = self.loss_function(labels=labels, pooled_logits=logits, config=self.config)
        return SequenceClassifierOutput(
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def _check_one_score(self):
        if self.num_labels != 1:
            raise ValueError(
                f"Choices in rows of their own get a score each, but num_labels is "
                f"{self.num_labels}; load the model with num_labels=1."
            )

    def _pool(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        **kwargs,
    ) -> tuple[torch.Tensor, BaseModelOutputWithPast]:
        """What the head reads (B, H), and the network's output."""
        ids = self.glm.known_ids(inputs_embeds) if input_ids is None else input_ids
        visible = find_visible(attention_mask, ids)  # (B, T)
        if position_ids is None:
            position_ids = count_positions(visible)  # (B, T)
            if self.config.block_position_encoding:
                blocks = torch.zeros_like(position_ids)
                position_ids = torch.stack([position_ids, blocks], dim=1)  # (B, 2, T)
        kwargs["use_cache"] = False
        outputs = self.glm(
            ids,
            attention_mask,
            position_ids,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )
        in_context = self.glm.find_context(ids, attention_mask, position_ids)
        column = self.pooled_column(in_context, visible)  # (B,)
        rows = torch.arange(ids.shape[0], device=ids.device)
        pooled = outputs.last_hidden_state[rows, column]  # (B, T, H) -> (B, H)
        return self.dropout(torch.tanh(self.pool_layer(pooled))), outputs

    def _warn_of_untrained_head(self):
        """Warn where something is trained and the head stays as it is: random, if it is new."""
        head = [*self.pool_layer.parameters(), *self.multichoice_head.parameters()]
        is_trained = any(weight.requires_grad for weight in head)
        if self.training and torch.is_grad_enabled() and not is_trained:
            warnings.warn(
                "The classifier's head is not trained. For peft name it: "
                'modules_to_save=["pool_layer", "multichoice_head"].',
                stacklevel=3,
            )

    def pooled_column(self, in_context: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
        """(B, T), (B, T) -> (B,): the column of the token that is read."""
        length = in_context.shape[1]
        columns = torch.arange(length, device=in_context.device)
        of_text = in_context & visible
        if self.config.pool_token == "cls":
            return of_text.int().argmax(-1)  # the first
        if self.config.pool_token == "pad":
            return torch.where(of_text, columns, 0).amax(-1)  # the last
        start = in_context.sum(-1)
        has_none = (start == length) & visible.any(-1)
        if not torch.compiler.is_compiling() and has_none.any():
            raise ValueError('pool_token "start" reads <|startofpiece|>; append it to every text.')
        return start.clamp(max=length - 1)
