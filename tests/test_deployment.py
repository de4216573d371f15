"""How people deploy: compiled decoding, `torch.export` with fixed and free shapes, ONNX."""

import sys

import numpy
import onnxruntime
import pytest
import torch
from checkout import ROOT
from conftest import EOS, MASK, SOP, long
from test_invariants import PROMPTS, padded

from glm_transformers import (
    GLMForConditionalGeneration,
    GLMForMultipleChoice,
    GLMForSequenceClassification,
    GLMModel,
)

OTHERS = [GLMModel, GLMForMultipleChoice, GLMForSequenceClassification]

BATCH, LENGTH = torch.export.Dim("batch", min=2), torch.export.Dim("length", min=8, max=60)


def make_inputs(cls, batch: int, length: int) -> dict:
    """Texts (B, T) with a blank and a piece; the first is padded on the left."""
    generator = torch.Generator().manual_seed(length)
    ids = torch.randint(1, 80, (batch, length), generator=generator)
    ids[:, 3] = MASK
    ids[:, -4] = EOS
    ids[:, -3] = SOP
    mask = torch.ones_like(ids)
    mask[0, :2] = 0
    inputs = {"input_ids": ids, "attention_mask": mask}
    if cls is GLMForMultipleChoice:
        columns = torch.tensor([length - 3, length - 2])
        inputs["choice_ids"] = ids[:, None, -2:].contiguous()  # (B, 1, 2)
        inputs["choice_indices"] = columns.expand(batch, 1, 2).contiguous()
    return inputs


class Text(torch.nn.Module):
    """The model as a function of a text's tensors to one tensor."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_ids, attention_mask):
        return self.model(input_ids, attention_mask, use_cache=False)[0]


class TextAndChoices(Text):
    def forward(self, input_ids, attention_mask, choice_ids, choice_indices):
        choices = {"choice_ids": choice_ids, "choice_indices": choice_indices}
        return self.model(input_ids, attention_mask, **choices)[0]


def program_of(model) -> torch.nn.Module:
    return (TextAndChoices if isinstance(model, GLMForMultipleChoice) else Text)(model)


def free_shapes(cls) -> tuple:
    """The batch and the length may vary; the rows of choices are as many as they are."""
    if cls is GLMForMultipleChoice:
        return ({1: LENGTH}, {1: LENGTH}, None, None)
    return ({0: BATCH, 1: LENGTH}, {0: BATCH, 1: LENGTH})


def other_sizes(cls) -> list[tuple[int, int]]:
    return [(2, 12), (2, 30)] if cls is GLMForMultipleChoice else [(2, 12), (3, 30), (5, 9)]


@torch.no_grad()
@pytest.mark.parametrize(
    "cls, attention",
    [
        (GLMForConditionalGeneration, "sdpa"),
        (GLMForConditionalGeneration, "eager"),
        (GLMForMultipleChoice, "sdpa"),
        (GLMForSequenceClassification, "sdpa"),
        pytest.param(GLMModel, "sdpa", marks=long),  # a part of the others
        *[pytest.param(cls, "eager", marks=long) for cls in OTHERS],
    ],
)
def test_export_with_free_shapes(tiny_model, cls, attention):
    model = tiny_model(cls, attn_implementation=attention, num_layers=1)
    inputs = tuple(make_inputs(cls, batch=2, length=12).values())
    program = torch.export.export(
        program_of(model), inputs, dynamic_shapes=free_shapes(cls), strict=False
    ).module()
    for batch, length in other_sizes(cls):
        inputs = make_inputs(cls, batch, length)
        expected = model(**inputs)[0]
        torch.testing.assert_close(program(*inputs.values()), expected, atol=2e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize(
    "cls", [GLMForConditionalGeneration, *[pytest.param(cls, marks=long) for cls in OTHERS]]
)
def test_onnx_gives_the_same(tiny_model, tmp_path, cls):
    model = tiny_model(cls, num_layers=1)
    inputs = tuple(make_inputs(cls, batch=2, length=12).values())
    program = torch.onnx.export(
        program_of(model), inputs, dynamic_shapes=free_shapes(cls), dynamo=True, verbose=False
    )
    program.save(tmp_path / "glm.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "glm.onnx")
    names = [value.name for value in session.get_inputs()]
    for batch, length in other_sizes(cls):
        inputs = make_inputs(cls, batch, length)
        tensors = (tensor.numpy() for tensor in inputs.values())
        (actual,) = session.run(None, dict(zip(names, tensors, strict=True)))
        numpy.testing.assert_allclose(actual, model(**inputs)[0].numpy(), atol=2e-5)


@pytest.fixture(scope="module")
def onnx_steps():
    sys.path.insert(0, str(ROOT / "examples"))
    import onnx_steps

    sys.path.remove(str(ROOT / "examples"))
    return onnx_steps


def test_steps_of_onnx_runtime(tiny_model, tmp_path, onnx_steps):
    """`examples/onnx_steps.py`: the answers are torch's, in a padded batch and with beams."""
    model = tiny_model(num_layers=2)
    model.save_pretrained(tmp_path)
    ours = onnx_steps.with_onnx_steps(tmp_path, in_int8=False)
    steps = []
    forward = ours.session.run
    ours.session.run = lambda *arguments: steps.append(1) or forward(*arguments)
    ids, mask = padded(PROMPTS, "left")
    for beams in (1, 3):
        options = dict(attention_mask=mask, max_new_tokens=7, eos_token_id=None, num_beams=beams)
        assert torch.equal(ours.generate(ids, **options), model.generate(ids, **options))
    assert len(steps) == 2 * 6


@torch.no_grad()
def test_steps_of_onnx_runtime_in_int8(tiny_model, tmp_path, onnx_steps):
    model = tiny_model(num_layers=1)
    model.save_pretrained(tmp_path)
    ids, _ = padded(PROMPTS[:1], "left")
    logits = []
    for network in (model, onnx_steps.with_onnx_steps(tmp_path, in_int8=True)):
        cache = network(ids, use_cache=True)[onnx_steps.CACHE]
        behind = {onnx_steps.CACHE: cache, "position_ids": torch.tensor([[[3], [2]]])}
        logits.append(network(ids[:, -1:], **behind).logits)
    exact, rounded = logits
    assert 0 < (rounded - exact).abs().max() < 0.05 * exact.abs().max()


@torch.no_grad()
@pytest.mark.parametrize("batch", [1, 2])
def test_compiled_decoding_makes_two_graphs(tiny_model, batch):
    """One for the prompt and one for all steps, as the library's own models; also for one row."""
    model = tiny_model(attn_implementation="sdpa")
    ids, mask = padded(PROMPTS[:batch], "left")
    options = dict(attention_mask=mask, max_new_tokens=12, eos_token_id=None)
    expected = model.generate(ids, **options)
    torch._dynamo.reset()
    graphs = []

    def count(graph, example_inputs):
        graphs.append(graph)
        return graph.forward

    model.forward = torch.compile(model.forward, backend=count, dynamic=False, fullgraph=True)
    compiled = model.generate(ids, cache_implementation="static", disable_compile=True, **options)
    assert torch.equal(compiled, expected)
    assert len(graphs) == 2
