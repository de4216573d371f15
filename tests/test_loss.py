"""The loss of training, whose logits are computed at the targets only, and packed rows."""

import pytest
import torch
from torch.nn import functional as F

from glm_transformers import (
    GLMDataCollator,
    GLMForConditionalGeneration,
    GLMPackingCollator,
    GLMTokenizerFast,
)

FEATURES = [
    {"text": "Ng is an adjunct professor at [MASK].", "target": "Stanford"},
    {"text": "[MASK] is located in [sMASK] now", "target": ["Tsinghua University", "Beijing."]},
    {"text": "The quick brown fox [gMASK]", "target": "jumps over the lazy dog"},
    {"text": "A [MASK] barks.", "target": "dog"},
    {"text": "[MASK]", "target": "The end"},
]


@pytest.fixture(scope="module")
def tokenizer(made_repository):
    return GLMTokenizerFast.from_pretrained(made_repository)


@pytest.fixture
def model(made_repository):
    """In training, without dropout."""
    dropouts = dict(embedding_dropout_prob=0.0, attention_dropout_prob=0.0, output_dropout_prob=0.0)
    return GLMForConditionalGeneration.from_pretrained(
        made_repository, dtype=torch.float32, **dropouts
    ).train()


def gradients(model, loss: torch.Tensor) -> list[torch.Tensor]:
    return torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)


def assert_same_training(model, loss: torch.Tensor, other: torch.Tensor):
    torch.testing.assert_close(loss, other, atol=1e-5, rtol=0)
    for ours, theirs in zip(gradients(model, loss), gradients(model, other), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


# --- At the targets only --------------------------------------------------------------------------


def test_training_returns_the_loss_alone_and_evaluation_the_logits(model, tokenizer):
    batch = GLMDataCollator(tokenizer)(FEATURES)
    assert model(**batch).logits is None
    assert model(**batch, skip_logits=False).logits.shape == (*batch["labels"].shape, 512)
    assert model.eval()(**batch).logits is not None
    assert model(**batch, skip_logits=True).logits is None
    assert model(input_ids=batch["input_ids"]).logits is not None
    with pytest.raises(ValueError, match="skip_logits leaves nothing without labels"):
        model(input_ids=batch["input_ids"], skip_logits=True)


def test_who_makes_a_loss_of_the_logits_gets_them(model, tokenizer):
    """The library's smoothing and a loss of one's own take `labels` out of a batch."""
    batch = GLMDataCollator(tokenizer, shift_labels=True)(FEATURES)
    assert model(**batch).logits is None
    labels = batch.pop("labels")
    assert model(**batch).logits.shape[:2] == labels.shape


def test_a_loss_of_logits_that_are_left_out(model, tokenizer):
    batch = GLMDataCollator(tokenizer)(FEATURES)
    with pytest.raises(ValueError, match="leave logits_to_keep out"):
        model(**batch, logits_to_keep=3)


def test_the_head_reads_only_targets(model, tokenizer):
    batch = GLMDataCollator(tokenizer)(FEATURES)
    rows = []
    model.lm_head.register_forward_pre_hook(lambda head, inputs: rows.append(len(inputs[0])))
    model(**batch)
    assert rows == [int((batch["labels"] != -100).sum())]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("count", [None, 7])
def test_the_loss_is_that_of_all_logits(model, tokenizer, smoothing, count):
    batch = GLMDataCollator(tokenizer)(FEATURES)
    labels = batch["labels"]
    logits = model(**batch, skip_logits=False).logits
    expected = F.cross_entropy(
        logits.flatten(0, 1), labels.flatten(), reduction="sum", label_smoothing=smoothing
    ) / (count or (labels != -100).sum())
    for skip in (True, False):
        loss = model(
            **batch,
            skip_logits=skip,
            num_items_in_batch=count,
            label_smoothing=smoothing,
        ).loss
        assert_same_training(model, loss, expected)


def test_a_compiled_step_has_no_graph_break(model, tokenizer):
    batch = GLMDataCollator(tokenizer)(FEATURES)
    step = torch.compile(model, backend="aot_eager", fullgraph=True)
    assert_same_training(model, step(**batch).loss, model(**batch).loss)


# --- Packed rows ----------------------------------------------------------------------------------


@pytest.mark.parametrize("row_length", [24, 40, 512])
def test_packed_texts_teach_what_they_teach_alone(model, tokenizer, row_length):
    packed = GLMPackingCollator(tokenizer, row_length=row_length)(FEATURES)
    assert packed["input_ids"].shape[0] < len(FEATURES)
    assert packed["input_ids"].shape[1] <= row_length
    alone = GLMDataCollator(tokenizer)(FEATURES)
    for kernel in ("eager", "sdpa"):
        model.set_attn_implementation(kernel)
        assert_same_training(model, model(**packed).loss, model(**alone).loss)


def test_packed_texts_are_not_generated_from(model, tokenizer):
    packed = GLMPackingCollator(tokenizer)(FEATURES)
    with pytest.raises(ValueError, match="holds several texts"):
        model.generate(**packed)


def test_a_text_longer_than_the_row_has_one_for_itself(tokenizer):
    packed = GLMPackingCollator(tokenizer, row_length=4, pad_to_multiple_of=8)(FEATURES)
    assert packed["input_ids"].shape[0] == len(FEATURES)
    assert packed["input_ids"].shape[1] % 8 == 0


def test_packing_for_a_model_without_block_positions(tiny_model, tokenizer):
    model = tiny_model(vocab_size=512, block_position_encoding=False, **ids_of(tokenizer)).eval()
    options = dict(positions_per_blank=8)
    packed = GLMPackingCollator(tokenizer, **options)(FEATURES)
    alone = GLMDataCollator(tokenizer, **options)(FEATURES)
    torch.testing.assert_close(model(**packed).loss, model(**alone).loss, atol=1e-5, rtol=0)


def ids_of(tokenizer) -> dict:
    return dict(
        sop_token_id=tokenizer.sop_token_id,
        eop_token_id=tokenizer.eop_token_id,
        mask_token_ids=tokenizer.mask_token_ids,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def test_what_has_no_answer_is_not_packed(tokenizer):
    with pytest.raises(ValueError, match="Feature 2: It has no answer"):
        GLMPackingCollator(tokenizer)([FEATURES[0], {"text": "A [MASK]."}])
