"""Configuration of GLM, the General Language Model (Du et al., ACL 2022)."""

import math
import sys
from copy import deepcopy
from typing import TYPE_CHECKING, Any, ClassVar

from transformers import PretrainedConfig

from .parallel_glm import FSDP_PLAN, PP_PLAN, TP_PLAN

# What the original code could also do and no released checkpoint does, with the value that means
# "not asked for".
UNSUPPORTED_OPTIONS = {
    "relative_encoding": False,
    "performer": False,
    "sentinel_token": False,
    "encoder_decoder": False,
    "is_encoder_decoder": False,
    "spell_length": None,
}
# Which class answers each of the library's Auto classes.
AUTO_MAP = {
    "AutoConfig": "configuration_glm.GLMConfig",
    "AutoModel": "modeling_glm.GLMModel",
    "AutoModelForSeq2SeqLM": "modeling_glm.GLMForConditionalGeneration",
    "AutoModelForCausalLM": "modeling_glm.GLMForConditionalGeneration",
    "AutoModelForMultipleChoice": "modeling_glm.GLMForMultipleChoice",
    "AutoModelForSequenceClassification": "modeling_glm.GLMForSequenceClassification",
}
PIPELINES = {
    "text2text-generation": {
        "impl": "pipeline_glm.GLMText2TextGenerationPipeline",
        "pt": ["AutoModelForSeq2SeqLM"],
        "type": "text",
    }
}
# Which modules peft adapts where nobody names them, in its tables by model type: for LoRA all
# matrices of a layer, for IA3 those whose outputs its paper scales (keys and values, which are one
# matrix with the queries here; what leaves the activation).
LORA_TARGETS = ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h")
PEFT_TABLES = {
    "TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING": LORA_TARGETS,
    "TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING": ("query_key_value", "dense_4h_to_h"),
    "TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING": ("dense_4h_to_h",),
}
# Ids that a configuration has, None where they are not known.
TOKEN_IDS = (
    "sop_token_id",
    "eop_token_id",
    "mask_token_ids",
    "pad_token_id",
    "eos_token_id",
    "bos_token_id",
)


class GLMConfig(PretrainedConfig):
    """Shape and special ids of a GLM network, under the names of the released configurations.

    Args:
        vocab_size: V, padded to a multiple of 128 in the released models.
        hidden_size, num_attention_heads: H, A.
        num_layers: L (`num_hidden_layers` is the same field).
        max_sequence_length: P, see `position_rows` (`max_position_embeddings` is the same field).
        block_position_encoding: whether there is a second table for the position within a piece.
        attention_scale: keeps half-precision scores small before the softmax; it does not change
            the result.
        embedding_dropout_prob, attention_dropout_prob, output_dropout_prob: dropout on the
            embedding sum, on the attention probabilities, and on the two outputs that each layer
            adds to the residual stream.
        classifier_dropout: dropout of the pooled classifier.
        initializer_range: standard deviation of the initial matrices.
        hidden_act: "gelu_pytorch_tanh" is what GLM was trained with; "gelu" is the erf form.
        choice_length_penalty: a choice's score is divided by its number of tokens to this power.
        pool_token: what the classifier reads: "cls" the first token, "start" `<|startofpiece|>`,
            "pad" the one before.
        sop_token_id, eop_token_id, mask_token_ids: `<|startofpiece|>`, `<|endofpiece|>`, and the
            masks the model knows. Positions and the bidirectional context are derived from them.
        pad_token_id, eos_token_id, bos_token_id: as everywhere in Transformers; `<|endoftext|>`
            also ends a piece.

    Raises:
        ValueError: for sizes that contradict each other and for options that no released checkpoint
            uses.
    """

    # Not "glm": Transformers uses that name for GLM-4 and would load it silently.
    model_type = "glm-blank-infilling"
    _auto_class = "AutoConfig"  # so that the code is saved beside the configuration
    keys_to_ignore_at_inference = ["past_key_values", "cache"]
    if TYPE_CHECKING:  # set from TOKEN_IDS
        sop_token_id: int | None
        eop_token_id: int | None
        mask_token_ids: list[int] | None
        pad_token_id: int | None
        eos_token_id: int | list[int] | None
        bos_token_id: int | None
    base_model_tp_plan = TP_PLAN
    base_model_fsdp_plan = FSDP_PLAN
    base_model_pp_plan: ClassVar[Any] = PP_PLAN
    attribute_map = {
        "num_hidden_layers": "num_layers",
        "max_position_embeddings": "max_sequence_length",
    }

    def __init__(
        self,
        vocab_size: int = 50304,
        hidden_size: int = 1024,
        num_layers: int = 24,
        num_attention_heads: int = 16,
        max_sequence_length: int = 512,
        block_position_encoding: bool = True,
        attention_scale: float = 1.0,
        embedding_dropout_prob: float = 0.1,
        attention_dropout_prob: float = 0.1,
        output_dropout_prob: float = 0.1,
        classifier_dropout: float = 0.1,
        initializer_range: float = 0.02,
        hidden_act: str = "gelu_pytorch_tanh",
        choice_length_penalty: float = 0.0,
        pool_token: str = "cls",
        use_cache: bool = True,
        **kwargs,
    ):
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.num_attention_heads = num_attention_heads
        self.max_sequence_length = max_sequence_length
        self.block_position_encoding = block_position_encoding
        self.attention_scale = attention_scale
        self.embedding_dropout_prob = embedding_dropout_prob
        self.attention_dropout_prob = attention_dropout_prob
        self.output_dropout_prob = output_dropout_prob
        self.classifier_dropout = classifier_dropout
        self.initializer_range = initializer_range
        self.hidden_act = hidden_act
        self.choice_length_penalty = choice_length_penalty
        self.pool_token = pool_token
        self.use_cache = use_cache

        refuse_unsupported(kwargs)
        kwargs.setdefault("tie_word_embeddings", True)  # the output head is the word embedding
        kwargs.setdefault("auto_map", dict(AUTO_MAP))
        kwargs.setdefault("custom_pipelines", deepcopy(PIPELINES))  # the library writes into it
        for name in TOKEN_IDS:  # Transformers 5 leaves its own to the model's class
            kwargs.setdefault(name, None)
        super().__init__(**kwargs)
        self.check()

    def check(self):
        """Raise a ValueError for values that contradict each other."""
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads "
                f"{self.num_attention_heads}; set num_attention_heads to the number the model was "
                "trained with."
            )
        if self.pool_token not in ("cls", "start", "pad"):
            raise ValueError(f'pool_token is "{self.pool_token}"; choose "cls", "start" or "pad".')
        if not 0 < self.attention_scale < math.inf:
            raise ValueError(
                f"attention_scale is {self.attention_scale}; it divides scores, so pass a number "
                "above 0."
            )

    def to_dict(self) -> dict[str, Any]:
        """The library's, without the names that it makes up for labels which nobody named.

        peft asks for it before it looks a model up in its tables.
        """
        tell_peft(self.model_type)
        values = super().to_dict()
        count = len(values.get("id2label") or {})
        if values.get("id2label") == {label: f"LABEL_{label}" for label in range(count)}:
            del values["id2label"], values["label2id"]
            if count != 2:  # the library's default
                values["num_labels"] = count
        return values

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path, **kwargs):
        """Read a `config.json`; the old Hub port's model type "glm" is read as ours."""
        config_dict, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        if config_dict.get("model_type") == "glm":
            config_dict["model_type"] = cls.model_type
        return config_dict, kwargs

    @property
    def position_rows(self) -> int:
        """Rows of the position tables: P + 1 with block positions, P without, as trained."""
        return self.max_sequence_length + int(self.block_position_encoding)

    @property
    def start_token_ids(self) -> list[int]:
        return [] if self.sop_token_id is None else [self.sop_token_id]

    @property
    def end_token_ids(self) -> list[int]:
        """The ids that end a piece: end of piece, end of text. None at all may be written as -1."""
        eos = self.eos_token_id
        ends = eos if isinstance(eos, (list, tuple)) else [eos]
        return [id for id in (self.eop_token_id, *ends) if id is not None and id >= 0]

    @property
    def special_ids(self) -> list[int]:
        """Ends, start and masks, in this order."""
        return [*self.end_token_ids, *self.start_token_ids, *(self.mask_token_ids or [])]


def tell_peft(model_type: str):
    """Enter the model in peft's tables, if peft is there.

    A model cannot bring its entries along in another way, and without them its users would have to
    name every module.
    """
    peft = sys.modules.get("peft.utils")
    for table, modules in PEFT_TABLES.items():
        getattr(peft, table, {}).setdefault(model_type, list(modules))


def refuse_unsupported(options: dict):
    """Take out the options that no released checkpoint uses; raise a ValueError if one is on."""
    for option, default in UNSUPPORTED_OPTIONS.items():
        if options.pop(option, default) != default:
            raise ValueError(
                f"{option} is not supported, no released GLM uses it; remove it from the config."
            )
