"""Run as a program, once for each of two processes: a model that they share equals the whole one.

torchrun --nproc-per-node 2 parallel.py PLAN REPOSITORY
"""

import sys

import checkout  # noqa: F401 - makes the checkout importable
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor
from transformers.distributed import DistributedConfig

from glm_transformers import GLMForConditionalGeneration

MASK, SOP, EOP, EOS = 92, 90, 91, 95  # as in conftest.py
TEXTS = torch.tensor([[1, 17, MASK, 23, 5, EOS], [1, 9, 33, MASK, 7, EOS]])
BATCH = torch.cat([TEXTS, torch.tensor([[SOP, 60, 61], [SOP, 62, 63]])], dim=1)  # (B, T)
LABELS = torch.tensor([[-100] * 6 + [60, 61, EOP], [-100] * 6 + [62, 63, EOP]])


def whole(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


# Ways to generate, whose answers are those of the whole model.
WAYS = ({}, {"cache_implementation": "static"}, {"num_beams": 3}, {"use_cache": False})


def check_same(shared, single):
    """Logits, generation in several ways, the loss, every gradient, and a step of training."""
    with torch.no_grad():
        torch.testing.assert_close(shared(BATCH).logits, single(BATCH).logits, atol=2e-5, rtol=0)
        for way in WAYS:
            answers = [model.generate(TEXTS, max_new_tokens=6, **way) for model in (shared, single)]
            assert torch.equal(*answers), way
    losses = [model(BATCH, labels=LABELS).loss for model in (shared, single)]
    torch.testing.assert_close(*losses)
    for loss in losses:
        loss.backward()
    gradients = dict(shared.named_parameters())
    for name, parameter in single.named_parameters():
        message = f"gradient of {name}"
        actual = whole(gradients[name].grad)
        torch.testing.assert_close(actual, parameter.grad, atol=1e-5, rtol=1e-4, msg=message)
    for model in (shared, single):
        torch.optim.SGD(model.parameters(), lr=0.1).step()
    with torch.no_grad():
        torch.testing.assert_close(shared(BATCH).logits, single(BATCH).logits, atol=1e-4, rtol=0)


def tensor_parallel(repository: str, single):
    config = DistributedConfig(tp_size=2)
    shared = GLMForConditionalGeneration.from_pretrained(repository, distributed_config=config)
    attention = shared.glm.transformer.layers[0].attention
    local = attention.query_key_value.weight.to_local()
    rank, width = dist.get_rank(), single.config.hidden_size
    expected = single.glm.transformer.layers[0].attention.query_key_value.weight
    heads = expected.view(3, 2, width // 2, width)[:, rank].flatten(0, 1)  # [Q_r ; K_r ; V_r]
    assert torch.equal(local, heads), "each process has its own heads"
    table, head = shared.glm.word_embeddings.weight, shared.lm_head.weight
    assert table is head, "the parts of table and head are tied"
    rows = single.lm_head.weight.chunk(2)[rank]
    assert torch.equal(table.to_local(), rows), "each process has its rows of the vocabulary"
    parts = [part.to_local() if isinstance(part, DTensor) else part for part in shared.parameters()]
    share = sum(part.nbytes for part in parts) / sum(part.nbytes for part in single.parameters())
    # Positions, norms and biases behind a sum are whole in each, a fifth of this tiny network.
    assert share < 0.6, "memory falls with the number of processes"
    check_same(shared, single)


def fully_sharded(repository: str, single):
    config = DistributedConfig(fsdp_size=2)
    shared = GLMForConditionalGeneration.from_pretrained(repository, distributed_config=config)
    layers = shared.glm.transformer.layers
    assert all(type(layer).__name__.startswith("FSDP") for layer in layers), "a unit a layer"
    assert all(isinstance(parameter, DTensor) for parameter in shared.parameters())
    check_same(shared, single)


if __name__ == "__main__":
    plan, repository = sys.argv[1:]
    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    whole_model = GLMForConditionalGeneration.from_pretrained(repository)
    {"tp": tensor_parallel, "fsdp": fully_sharded}[plan](repository, whole_model.eval())
    dist.destroy_process_group()
    print("equal")
