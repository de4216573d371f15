"""Promises that a change could break unnoticed by other tests; each has failed once, on purpose."""

import pytest
import torch
from conftest import EOP, EOS, MASK, SOP
from made import make_checkpoint, make_parameters
from safetensors.torch import load_file
from transformers import DynamicCache

from glm_transformers import GLMForConditionalGeneration
from glm_transformers.conversion import convert_checkpoint

PROMPT = [1, 17, MASK, 23, 5, EOS]


@torch.no_grad()
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_sees_something(tiny_model, attention, side):
    """A row that sees no key is an average of all of them at best, and NaN in some kernels."""
    model = tiny_model(attn_implementation=attention)
    pad, zeros = [EOS] * 3, [0] * 3
    text, ones = [*PROMPT, SOP, 60], [1] * (len(PROMPT) + 2)
    ids, mask = (pad + text, zeros + ones) if side == "left" else (text + pad, ones + zeros)
    ids, mask = torch.tensor([ids]), torch.tensor([mask])
    weights = tiny_model()(ids, attention_mask=mask, output_attentions=True).attentions
    padding = mask[0] == 0
    for layer in weights:  # (1, A, T, K)
        seen = layer[0, :, padding] > 0
        assert seen.any(-1).all(), "a row of padding sees a key"
        assert not seen.all(-1).any(), "and not simply all of them"
        others = layer[0][:, ~padding][..., padding]
        assert (others == 0).all(), "no token of the text sees padding"
    logits = model(ids, attention_mask=mask).logits
    assert torch.isfinite(logits).all()
    # What stands in the padding changes nothing for the text.
    other = ids.masked_fill(mask == 0, 7)
    torch.testing.assert_close(
        model(other, attention_mask=mask).logits[:, ~padding],
        logits[:, ~padding],
        atol=1e-5,
        rtol=0,
    )


@torch.no_grad()
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_row_of_nothing_but_padding(tiny_model, attention):
    """Batches of one size for all processes hold such rows; these harm no other."""
    model = tiny_model(attn_implementation=attention)
    ids = torch.tensor([PROMPT, [EOS] * len(PROMPT)])
    mask = torch.tensor([[1] * len(PROMPT), [0] * len(PROMPT)])
    logits = model(ids, attention_mask=mask).logits
    assert torch.isfinite(logits).all()
    torch.testing.assert_close(logits[:1], model(ids[:1]).logits, atol=1e-5, rtol=0)


# The end tokens cannot be chosen: generation goes on until a limit stops it.
ENDLESS = dict(suppress_tokens=[EOP, EOS])


def test_max_length_of_the_caller_wins_over_a_configured_number_of_new_tokens(tiny_model):
    """The released generation_config.json has max_new_tokens, to which the library gives way."""
    model = tiny_model()
    ids = torch.tensor([PROMPT])
    model.generation_config.max_new_tokens = 5
    assert model.generate(ids, **ENDLESS).shape[1] == len(PROMPT) + 1 + 5
    for length in (9, 20):
        assert model.generate(ids, max_length=length, **ENDLESS).shape[1] == length
    both = model.generate(ids, max_length=20, max_new_tokens=3, **ENDLESS)
    assert both.shape[1] == len(PROMPT) + 1 + 3  # as in the library, of two that the caller gives


class Unmoved(DynamicCache):
    """A cache that must stay where it is."""

    def to(self, *args, **kwargs):
        raise AssertionError("the cache was moved to another device")


@pytest.mark.parametrize("name", ["past_key_values", "cache"])
def test_a_model_spread_over_devices_leaves_the_cache_where_it_is(tiny_model, tmp_path, name):
    """Its layers write into one cache, which the hooks that move a layer's inputs do not touch."""
    model = tiny_model()
    model.save_pretrained(tmp_path)
    spread = GLMForConditionalGeneration.from_pretrained(
        tmp_path,
        device_map={
            "glm.word_embeddings": "cpu",
            "glm.embedding_dropout": "cpu",
            "glm.transformer": "disk",
            "lm_head": "cpu",
        },
        offload_folder=tmp_path / "offload",
    ).eval()
    ids = torch.tensor([PROMPT])
    cache = Unmoved()
    generated = spread.generate(ids, **{name: cache}, max_new_tokens=6)
    assert torch.equal(generated, model.generate(ids, max_new_tokens=6))
    assert cache.get_seq_length() == generated.shape[1] - 1


@pytest.mark.parametrize(
    "shapes, file",
    [
        (
            {
                "pool_layer.weight": (16, 16),
                "pool_layer.bias": (16,),
                "multichoice_head.weight": (4, 16),
                "multichoice_head.bias": (4,),
            },
            "model.safetensors",
        ),
        (
            {
                "prompt_spell.spell_embeddings.weight": (4, 16),
                "prompt_spell.mlp_head.0.weight": (16, 16),
            },
            "prompt_spell.safetensors",
        ),
    ],
    ids=["classifier", "prompt"],
)
def test_what_wrappers_add_is_whole_on_every_rank(tmp_path, shapes, file):
    """Only the network is cut over the ranks; every size here could be cut, too."""
    generator = torch.Generator().manual_seed(1)
    added = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    parameters = make_parameters(dtype=torch.float32) | added
    checkpoint = make_checkpoint(tmp_path / "checkpoint", parameters, ranks=2)
    options = dict(tokenizer="none", num_attention_heads=4)
    repository = convert_checkpoint(checkpoint, tmp_path / "repository", **options)
    tensors = load_file(repository / file)
    for name, tensor in added.items():
        assert torch.equal(tensors[name], tensor), name
