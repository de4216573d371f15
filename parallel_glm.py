"""How several processes share a GLM: the library's tensor, data and pipeline parallelism.

Plans name the modules of the network without a head, the library adds what stands before them.
"""

from typing import Any

try:  # 5: styles that cut weights into distributed tensors
    from torch import nn
    from torch.distributed.tensor import distribute_tensor
    from torch.distributed.tensor.placement_types import _StridedShard
    from transformers.distributed.parallel_utils import ALL_PARALLEL_STYLES
    from transformers.distributed.tensor_parallel import PackedColwiseParallel
except ImportError:
    CAN_CUT_HEADS = False
else:
    CAN_CUT_HEADS = True

# Whole layers are gathered for their forward and backward, and freed behind them.
FSDP_PLAN = {
    "word_embeddings": "free_full_weight",
    "transformer.layers.*": "free_full_weight",
    "transformer.final_layernorm": "keep_full_weight",
}
# What each stage takes and gives, in their order.
PP_PLAN = {
    "word_embeddings": (["input_ids"], ["inputs_embeds"]),
    "transformer.position_embeddings": (["position_ids"], ["inputs_embeds"]),
    "transformer.block_position_embeddings": (["position_ids"], ["inputs_embeds"]),
    "transformer.layers": (["hidden_states", "attention_mask"], ["hidden_states"]),
    "transformer.final_layernorm": (["hidden_states"], ["hidden_states"]),
}
if not CAN_CUT_HEADS:
    # 4.57 knows no way to cut a fused projection in three: each process computes all heads. And it
    # takes every number in a name for that of a layer.
    TP_PLAN = {
        "transformer.layers.*.attention.query_key_value": "colwise_rep",
        "transformer.layers.*.attention.dense": "rowwise_rep",
        "transformer.layers.*.mlp.dense_h_to_*h": "colwise",
        "transformer.layers.*.mlp.dense_*h_to_h": "rowwise",
    }
    HEAD_TP_PLAN: dict[str, str] = {}
else:

    class PackedQueryKeyValue(PackedColwiseParallel):
        """Gives each process its heads of queries, keys and values, which lie one behind the other.

        [Q ; K ; V] -> [Q_r ; K_r ; V_r] for process r: the layout of the original's ranks. The
        library's style cuts weights like that, and a bias in one block.
        """

        def shard_param(self, module, param, mesh):
            whole = module._parameters.get(param)
            if whole is None:
                return
            heads = _StridedShard(dim=0, split_factor=self.split_factor)
            part = distribute_tensor(whole, mesh, [heads], src_data_rank=None)
            module._parameters[param] = nn.Parameter(part, requires_grad=whole.requires_grad)

    style: Any = PackedQueryKeyValue(split_factor=3)
    ALL_PARALLEL_STYLES.register("packed_query_key_value", style)
    TP_PLAN = {
        # The tied table and head are cut alike, by rows of the vocabulary: the library ties parts.
        "word_embeddings": "embedding_rowwise",
        "transformer.layers.*.attention.query_key_value": "packed_query_key_value",
        "transformer.layers.*.attention.dense": "rowwise",
        "transformer.layers.*.mlp.dense_h_to_4h": "colwise",
        "transformer.layers.*.mlp.dense_4h_to_h": "rowwise",
    }
    HEAD_TP_PLAN = {"lm_head": "colwise_gather_output"}
