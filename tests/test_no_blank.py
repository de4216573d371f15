"""Logits of a text without a blank are told of: a causal model's habits give nonsense here."""

import warnings

import pytest
import torch
from conftest import EOP, GMASK, MASK, SOP

from glm_transformers.generation_glm import CACHE

WITHOUT_BLANK = torch.tensor([[3, 4, 5], [6, 7, 8]])
WITH_BLANKS = torch.tensor([[3, MASK, 5], [6, 7, GMASK]])
WARNING = "neither a mask nor a <|startofpiece|>"


@torch.no_grad()
def forward(model, ids, **inputs):
    return model(input_ids=ids, **inputs)


@pytest.mark.parametrize("mask", [None, torch.ones(2, 3, dtype=torch.long)])
def test_a_text_without_a_blank(tiny_model, mask):
    with pytest.warns(UserWarning, match=WARNING):
        forward(tiny_model(), WITHOUT_BLANK, attention_mask=mask)


def test_one_of_several_texts(tiny_model):
    ids = torch.stack([WITH_BLANKS[0], WITHOUT_BLANK[0]])
    with pytest.warns(UserWarning, match=WARNING):
        forward(tiny_model(), ids)


def test_said_once(tiny_model):
    """A text after the other, as a harness asks."""
    model = tiny_model()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("default")
        for _ in range(3):
            forward(model, WITHOUT_BLANK)
    assert len(told) == 1


def test_silent_where_the_caller_knows(tiny_model):
    """Blanks, explicit positions, contexts or masks, a filled cache, labels, training, compiling,
    generating: none of these is a causal model's habit."""
    model = tiny_model()
    positions = torch.zeros(2, 2, 3, dtype=torch.long)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        forward(model, WITH_BLANKS)
        forward(model, torch.tensor([[3, MASK, SOP, 5]]))
        forward(model, WITHOUT_BLANK, position_ids=positions)
        forward(model, WITHOUT_BLANK, attention_mask=torch.tensor([2, 1]))
        forward(model, WITHOUT_BLANK, attention_mask=torch.ones(2, 1, 3, 3, dtype=torch.bool))
        known = {CACHE: getattr(forward(model, WITH_BLANKS, use_cache=True), CACHE)}
        forward(model, WITHOUT_BLANK, position_ids=positions, **known)
        labels = torch.full((2, 4), -100)
        labels[:, -1] = EOP
        started = torch.tensor([[3, MASK, 5, SOP]]).repeat(2, 1)
        forward(model, started, labels=labels)
        model.generate(WITH_BLANKS, max_new_tokens=4)
        model.generate(WITH_BLANKS, max_new_tokens=4, use_cache=False)
        forward(torch.compile(model, backend="eager"), WITHOUT_BLANK)
        forward(model.train(), WITHOUT_BLANK)


def test_a_model_without_ids(tiny_model):
    """It cannot know what a blank is."""
    model = tiny_model(mask_token_ids=None, sop_token_id=None)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        forward(model, WITHOUT_BLANK)
