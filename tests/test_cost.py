"""The cost model counts what torch counts."""

import sys

import pytest
import torch
from checkout import ROOT
from conftest import MASK
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache

from glm_transformers.conversion.released import Released

sys.path.insert(0, str(ROOT / "benchmarks"))
import cost

CONTEXT = 24
TINY = Released(3, 32, 4, 64, 99, "gpt2")


@pytest.fixture
def model(tiny_model):
    return tiny_model(num_layers=TINY.layers, hidden_size=TINY.hidden_size)


@pytest.mark.parametrize("targets", [1, CONTEXT])
def test_operations_of_a_context(model, targets):
    ids = torch.randint(0, 80, (2, CONTEXT))
    ids[:, 3] = MASK
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(ids, logits_to_keep=targets)
    counted = cost.forward_flops(TINY, 2 * CONTEXT, CONTEXT, 2 * targets)
    assert counter.get_total_flops() == counted


def test_bytes_of_a_cache(model):
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(torch.randint(0, 80, (1, CONTEXT)), **{cost.CACHE: cache})
    tensors = [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]
    held = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    assert held == cost.cache_bytes(TINY, CONTEXT, cost.FP32)
