"""The network as a model of the library: declarations, initialisation, masks, losses, refusals."""

import json
import warnings

import pytest
import torch
import transformers
from conftest import EOP, EOS, GMASK, MASK, SMASK, SOP, long, tiny_config
from safetensors import safe_open
from torch.nn import functional as F

from glm_transformers import (
    GLMConfig,
    GLMForConditionalGeneration,
    GLMForMultipleChoice,
    GLMForSequenceClassification,
    GLMModel,
)

TEXT = torch.tensor([[1, 17, MASK, 23, 5, EOS, SOP, 60, 61]])
LABELS = torch.tensor([[-100] * 6 + [60, 61, EOP]])  # what <|startofpiece|> 60 61 have to predict

# The ten released checkpoints: layers, width, heads, P, vocabulary rows; parameters in all.
RELEASED = {
    "glm-base": (12, 768, 12, 512, 30592, 109_338_624),
    "glm-large": (24, 1024, 16, 512, 30592, 334_688_256),
    "glm-large-chinese": (24, 1024, 16, 1024, 50048, 355_659_776),
    "glm-doc": (24, 1024, 16, 512, 30592, 334_688_256),
    "glm-410m": (30, 1024, 16, 512, 30592, 410_265_600),
    "glm-515m": (30, 1152, 18, 512, 30592, 514_632_960),
    "glm-roberta-large": (24, 1024, 16, 512, 50304, 354_873_344),
    "glm-2b": (36, 2048, 32, 1024, 50304, 1_920_122_880),
    "glm-10b": (48, 4096, 64, 1024, 50304, 9_880_682_496),
    "glm-10b-chinese": (48, 4096, 64, 1024, 50048, 9_879_633_920),
}


@pytest.mark.parametrize("name", RELEASED)
def test_parameter_counts_of_the_released_checkpoints(name):
    layers, width, heads, length, rows, count = RELEASED[name]
    config = GLMConfig(
        num_layers=layers,
        hidden_size=width,
        num_attention_heads=heads,
        max_sequence_length=length,
        vocab_size=rows,
    )
    with torch.device("meta"):
        model = GLMForConditionalGeneration(config)
    assert sum(parameter.numel() for parameter in model.parameters()) == count


def test_state_dict_names_are_the_released_ones(tiny_model):
    names = set(tiny_model().state_dict())
    assert "glm.word_embeddings.weight" in names and "glm.transformer.final_layernorm.bias" in names
    layer = {
        name.removeprefix("glm.transformer.layers.1.") for name in names if ".layers.1." in name
    }
    modules = ["input_layernorm", "attention.query_key_value", "attention.dense"]
    modules += ["post_attention_layernorm", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h"]
    assert layer == {f"{module}.{kind}" for module in modules for kind in ("weight", "bias")}


def test_initialisation_statistics():
    torch.manual_seed(0)
    model = GLMForSequenceClassification(
        tiny_config(hidden_size=128, num_layers=8, vocab_size=2000, num_labels=64)
    )
    for name, parameter in model.named_parameters():
        if name.startswith("pool_layer") or name.startswith("multichoice_head"):
            assert abs(parameter.std() - 1 / (3 * 128) ** 0.5) < 0.01, (
                name
            )  # uniform in +-1/sqrt(H)
        elif parameter.dim() == 2:
            residual = "attention.dense" in name or "dense_4h_to_h" in name
            expected = 0.02 / (2 * 8) ** 0.5 if residual else 0.02
            assert abs(parameter.std() / expected - 1) < 0.05, name
        else:
            assert torch.all(parameter == float("layernorm.weight" in name)), name


def test_initialisation_equals_the_original(reference):
    """Each parameter's mean and standard deviation straight after the original's initialisation."""
    for golden in json.loads((reference / "goldens/init_statistics.json").read_text()):
        config = GLMConfig(
            vocab_size=2048,
            max_sequence_length=256,
            num_layers=golden["num_layers"],
            hidden_size=golden["hidden_size"],
        )
        torch.manual_seed(1)
        parameters = dict(GLMModel(config).named_parameters())
        assert set(parameters) == set(golden["stats"])
        for name, expected in golden["stats"].items():
            parameter = parameters[name]
            assert list(parameter.shape) == expected["shape"], name
            # Six standard errors of the difference of two samples of this size.
            noise = 6 * 2**0.5 * expected["std"] / parameter.numel() ** 0.5
            assert abs(parameter.mean().item() - expected["mean"]) <= noise, name
            assert abs(parameter.std(unbiased=False).item() - expected["std"]) <= noise / 2**0.5, (
                name
            )


def test_attention_mask_meaning_goes_by_rank(tiny_model):
    model = tiny_model()
    length = TEXT.shape[1]
    rows, columns = torch.arange(length)[:, None], torch.arange(length)
    explicit = ((columns <= rows) | (columns < 6))[None, None]  # (1, 1, T, T)
    derived = model(TEXT).logits
    for mask in (
        torch.tensor([6]),
        torch.ones_like(TEXT),
        explicit,
        explicit.long(),
        torch.zeros(1, 1, length, length).masked_fill(~explicit, -1e9),
    ):
        torch.testing.assert_close(
            model(TEXT, attention_mask=mask).logits, derived, atol=1e-5, rtol=0
        )
    two = TEXT.repeat(2, 1)
    lengths = model(two, attention_mask=torch.tensor([6, 2])).logits
    torch.testing.assert_close(lengths[0], derived[0], atol=1e-5, rtol=0)
    assert not torch.allclose(lengths[1], derived[0], atol=1e-2)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_row_of_minus_infinity_is_not_nan(tiny_model, attention):
    mask = torch.zeros(1, 1, 9, 9)
    mask[0, 0, 4] = -torch.inf
    hidden = torch.ones(1, 1, 9, 9, dtype=torch.bool)
    hidden[0, 0, 4] = False
    model = tiny_model(attn_implementation=attention)
    expected = model(TEXT, attention_mask=hidden).logits
    torch.testing.assert_close(model(TEXT, attention_mask=mask).logits, expected, atol=1e-5, rtol=0)


def test_a_row_that_sees_nothing_averages_all_keys(tiny_model):
    model = tiny_model(GLMModel, num_layers=1)
    mask = torch.ones(1, 1, 9, 9, dtype=torch.bool)
    mask[0, 0, 4] = False
    output = model(TEXT, attention_mask=mask, output_attentions=True)
    torch.testing.assert_close(output.attentions[0][0, :, 4], torch.full((4, 9), 1 / 9))


def test_labels_are_aligned_with_the_logits(tiny_model):
    model = tiny_model()
    output = model(TEXT, labels=LABELS)
    expected = F.cross_entropy(output.logits[0, -3:], LABELS[0, -3:])
    torch.testing.assert_close(output.loss, expected)
    torch.testing.assert_close(model(TEXT, labels=LABELS, num_items_in_batch=6).loss, expected / 2)


@pytest.mark.parametrize(
    "labels, message",
    [
        (TEXT, "Labels lie in the context"),  # what a collator for causal models gives
        (torch.tensor([[60, 61, EOP] + [-100] * 6]), "Labels lie in the context"),
        (LABELS[:, -3:], r"labels have shape \(1, 3\) and inputs \(1, 9\)"),
        (LABELS.repeat(2, 1), r"labels have shape \(2, 9\)"),
    ],
    ids=["the inputs themselves", "target beside source", "another length", "another batch"],
)
def test_labels_that_would_teach_nonsense(tiny_model, labels, message):
    for name in ("labels", "shift_labels"):
        with pytest.raises(ValueError, match=message):
            tiny_model()(TEXT, **{name: labels})


def test_labels_in_a_context_that_an_explicit_mask_hides(tiny_model):
    """The way to train what the positions do not say: a mask of one's own, or no context."""
    model, causal = tiny_model(), torch.ones(1, 1, 9, 9).tril().long()
    expected = F.cross_entropy(model(TEXT, attention_mask=causal).logits[0], TEXT[0])
    torch.testing.assert_close(model(TEXT, causal, labels=TEXT).loss, expected)
    torch.testing.assert_close(model(TEXT, torch.tensor([0]), labels=TEXT).loss, expected)


def test_half_precision_weights_are_not_trained(tiny_model):
    model = tiny_model().half().train()
    with pytest.raises(ValueError, match=r"load them with dtype=torch\.float32"):
        model(TEXT, labels=LABELS)
    with torch.no_grad():
        assert model(TEXT, labels=LABELS).loss.isfinite()
    assert model.eval()(TEXT, labels=LABELS).loss.isfinite()
    model.train().requires_grad_(False)  # adapters in float32 on frozen weights
    model.glm.word_embeddings.float().requires_grad_(True)
    tiny_model().bfloat16().train()(TEXT, labels=LABELS).loss.backward()


def test_labels_by_either_name(tiny_model):
    model = tiny_model()
    expected = model(TEXT, labels=LABELS).loss
    assert torch.equal(model(TEXT, shift_labels=LABELS).loss, expected)
    assert torch.equal(model(TEXT, labels=LABELS, shift_labels=None).loss, expected)


@pytest.mark.parametrize("cls", [GLMForMultipleChoice, GLMForSequenceClassification])
def test_no_inputs(tiny_model, cls):
    with pytest.raises(ValueError, match="Pass either input_ids or inputs_embeds"):
        tiny_model(cls)()


def test_a_batch_without_answers_is_told_where_the_loss_is_computed_elsewhere(tiny_model):
    model = tiny_model().train()
    with pytest.warns(UserWarning, match="There is nothing to learn"):
        model(TEXT[:, :4])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(TEXT)
        with torch.no_grad():
            model(TEXT[:, :4])


def test_logits_to_keep(tiny_model):
    model = tiny_model()
    everything = model(TEXT).logits
    torch.testing.assert_close(model(TEXT, logits_to_keep=2).logits, everything[:, -2:])
    torch.testing.assert_close(
        model(TEXT, logits_to_keep=torch.tensor([1, 7])).logits, everything[:, [1, 7]]
    )


CLASSES = [
    GLMModel,
    GLMForConditionalGeneration,
    GLMForMultipleChoice,
    GLMForSequenceClassification,
]


def inputs_of(cls):
    if cls is not GLMForMultipleChoice:
        return {}
    return {
        "choice_ids": torch.tensor([[[60, 61], [62, 63]]]),
        "choice_indices": torch.tensor([[[6, 7], [6, 7]]]),
    }


@pytest.mark.parametrize("cls", CLASSES)
def test_half_precision_is_refused_where_the_loss_is_computed_elsewhere(tiny_model, cls):
    """As `Trainer` does where it smooths the labels."""
    model = tiny_model(cls).half().train()
    with pytest.raises(ValueError, match=r"load them with dtype=torch\.float32"):
        model(TEXT, **inputs_of(cls))


@pytest.mark.parametrize("cls", CLASSES)
def test_inputs_embeds_equal_input_ids(tiny_model, cls):
    model = tiny_model(cls)
    embeds = model.get_input_embeddings()(TEXT)
    torch.testing.assert_close(
        model(inputs_embeds=embeds, **inputs_of(cls))[0], model(TEXT, **inputs_of(cls))[0]
    )


def to_compile(cls) -> dict:
    """A model's inputs that go through its whole forward."""
    mask = torch.ones_like(TEXT)
    return dict(input_ids=TEXT, attention_mask=mask, use_cache=False, **inputs_of(cls))


# The bare network is a part of the others.
@pytest.mark.parametrize("cls", [pytest.param(GLMModel, marks=long), *CLASSES[1:]])
def test_every_class_compiles_whole(tiny_model, cls):
    """No branch of a forward hangs on a value of its tensors."""
    model = tiny_model(cls, attn_implementation="sdpa", num_layers=1)
    expected = model(**to_compile(cls))[0]
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(**to_compile(cls))[0], expected)


@pytest.mark.parametrize(
    "cls",
    [
        GLMForConditionalGeneration,
        *[
            pytest.param(cls, marks=long)
            for cls in (GLMModel, GLMForMultipleChoice, GLMForSequenceClassification)
        ],
    ],
)
def test_what_compiles_whole_exports(tiny_model, cls):
    """Traced as for compiling; test_deployment.py exports every class in the other way."""
    model = tiny_model(cls, attn_implementation="sdpa", num_layers=1)
    exported = torch.export.export(model, (), to_compile(cls), strict=True).module()
    torch.testing.assert_close(exported(**to_compile(cls))[0], model(**to_compile(cls))[0])


def test_hidden_states_attentions_and_tuples(tiny_model):
    model = tiny_model(GLMModel)
    output = model(TEXT, output_hidden_states=True, output_attentions=True)
    assert [states.shape for states in output.hidden_states] == [(1, 9, 32)] * 3
    assert [weights.shape for weights in output.attentions] == [(1, 4, 9, 9)] * 2
    final = model.transformer.final_layernorm(output.hidden_states[-1])
    torch.testing.assert_close(final, output.last_hidden_state)
    as_tuple = model(TEXT, return_dict=False)
    assert isinstance(as_tuple, tuple) and torch.equal(as_tuple[0], output.last_hidden_state)


def test_gradient_checkpointing_really_checkpoints(tiny_model):
    plain, checkpointed = tiny_model(), tiny_model()
    dropouts = ("embedding_dropout_prob", "attention_dropout_prob", "output_dropout_prob")
    plain, checkpointed = (tiny_model(**dict.fromkeys(dropouts, 0.0)).train() for _ in range(2))
    checkpointed.gradient_checkpointing_enable()
    calls = []
    hook = lambda *_: calls.append(1)  # noqa: E731
    for model in (plain, checkpointed):
        model.glm.transformer.layers[0].input_layernorm.register_forward_hook(hook)
    losses, runs = [], []
    for model in (plain, checkpointed):
        calls.clear()
        loss = model(TEXT, labels=LABELS).loss
        loss.backward()
        losses.append(loss.detach())
        runs.append(len(calls))
    assert runs == [1, 2], "a checkpointed layer is run again in the backward pass"
    torch.testing.assert_close(*losses)
    for (name, expected), (_, actual) in zip(
        plain.named_parameters(), checkpointed.named_parameters(), strict=True
    ):
        torch.testing.assert_close(actual.grad, expected.grad, msg=name)


def test_dropout_is_applied_in_its_three_places(tiny_model):
    for name in ("embedding_dropout_prob", "attention_dropout_prob", "output_dropout_prob"):
        off = dict.fromkeys(
            ("embedding_dropout_prob", "attention_dropout_prob", "output_dropout_prob"), 0.0
        )
        model = tiny_model(**off).train()
        assert torch.equal(model(TEXT).logits, model(TEXT).logits)
        model = tiny_model(**{**off, name: 0.5}).train()
        assert not torch.equal(model(TEXT).logits, model(TEXT).logits), name


def test_resize_token_embeddings(tiny_model):
    model = tiny_model()
    before = model(TEXT).logits
    model.resize_token_embeddings(110)
    assert model.config.vocab_size == 110 and model(TEXT).logits.shape[-1] == 110
    torch.testing.assert_close(model(TEXT).logits[..., :99], before)
    embedding = torch.nn.Embedding(110, 32)
    model.set_input_embeddings(embedding)
    assert model.get_input_embeddings() is embedding and model.glm.word_embeddings is embedding


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_half_precision(tiny_model, tmp_path, dtype, attention):
    model = tiny_model()
    expected = model(TEXT).logits
    model.save_pretrained(tmp_path)
    half = GLMForConditionalGeneration.from_pretrained(
        tmp_path, dtype=dtype, attn_implementation=attention
    ).eval()
    logits = half(TEXT).logits
    assert logits.dtype == dtype
    torch.testing.assert_close(logits.float(), expected, atol=0.4, rtol=0.1)
    left_padded = torch.cat([torch.full((1, 3), EOS), TEXT], dim=1)
    mask = torch.tensor([[0] * 3 + [1] * 9])
    padded = half(left_padded, attention_mask=mask).logits[:, 3:]
    torch.testing.assert_close(padded.float(), logits.float(), atol=0.4, rtol=0.1)


def test_device_map_and_meta_loading(tiny_model, tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path)
    loaded = GLMForConditionalGeneration.from_pretrained(tmp_path, device_map="auto").eval()
    assert all(parameter.device.type == "cpu" for parameter in loaded.parameters())
    torch.testing.assert_close(loaded(TEXT).logits, model(TEXT).logits)


def test_offloaded_weights(tiny_model, tmp_path):
    """The head's weight is the embedding's, wherever that is."""
    # 4.57 looks for a tied head in the file when it is on disk, of the library's own models too.
    table = "disk" if hasattr(transformers, "initialization") else "cpu"
    model = tiny_model()
    model.save_pretrained(tmp_path)
    loaded = GLMForConditionalGeneration.from_pretrained(
        tmp_path,
        device_map={
            "glm.word_embeddings": table,
            "glm.embedding_dropout": "cpu",
            "glm.transformer": "disk",
            "lm_head": table,
        },
        offload_folder=tmp_path / "offload",
    ).eval()
    assert all(parameter.device.type == "meta" for parameter in loaded.glm.transformer.parameters())
    with torch.no_grad():
        torch.testing.assert_close(loaded(TEXT).logits, model(TEXT).logits)
    assert torch.equal(
        loaded.generate(TEXT[:, :6], max_new_tokens=5),
        model.generate(TEXT[:, :6], max_new_tokens=5),
    )


def test_a_memory_that_holds_a_part(tiny_model, tmp_path):
    """`device_map="auto"` leaves on the disk what `max_memory` has no room for."""
    model = tiny_model()
    model.save_pretrained(tmp_path)
    loaded = GLMForConditionalGeneration.from_pretrained(
        tmp_path,
        device_map="auto",
        max_memory={"cpu": 80_000},  # bytes; the two layers have 102,000
        offload_folder=tmp_path / "offload",
    ).eval()
    assert {"cpu", "disk"} == set(map(str, loaded.hf_device_map.values()))
    options = {"max_new_tokens": 5}
    ids = TEXT[:, :6]
    assert torch.equal(loaded.generate(ids, **options), model.generate(ids, **options))


def test_the_head_is_the_word_embedding(tiny_model, tmp_path):
    """As the library sees it: found, tied, resized with the table, not written twice."""
    model = tiny_model()
    head = model.get_output_embeddings()
    assert isinstance(head, torch.nn.Linear) and head is model.lm_head and head.bias is None
    assert head.weight is model.glm.word_embeddings.weight
    model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert set(file.keys()) == {f"glm.{name}" for name in model.glm.state_dict()}
    loaded, info = GLMForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert loaded.lm_head.weight is loaded.glm.word_embeddings.weight
    loaded.resize_token_embeddings(120)
    assert loaded.lm_head.weight.shape[0] == 120
    assert loaded.lm_head.weight is loaded.glm.word_embeddings.weight


def test_the_head_gives_few_rows_the_logits_of_many(tiny_model):
    """On a CPU it reads few rows in another order than many."""
    head = tiny_model().lm_head
    states = torch.randn(20, 32)
    for rows in (0, 1, 2, 7, 8, 9):
        torch.testing.assert_close(head(states[:rows]), F.linear(states[:rows], head.weight))
    torch.testing.assert_close(head(states[:6].view(2, 3, 32)), head(states)[:6].view(2, 3, 99))


@pytest.mark.parametrize("prefix", ["", "glm."])
def test_old_pytorch_model_bin_loads_with_and_without_prefix(tiny_model, tmp_path, prefix):
    model = tiny_model()
    state = {prefix + name: tensor for name, tensor in model.glm.state_dict().items()}
    torch.save(state, tmp_path / "pytorch_model.bin")
    old_config = {**model.config.to_dict(), "model_type": "glm", "architectures": ["GLMModel"]}
    old_config |= {
        "relative_encoding": False,
        "spell_length": None,
        "parallel_output": True,
        "checkpoint_num_layers": 1,
    }
    (tmp_path / "config.json").write_text(json.dumps(old_config))
    for cls in (GLMForConditionalGeneration, GLMModel):
        loaded, info = cls.from_pretrained(tmp_path, output_loading_info=True, dtype=torch.float32)
        assert not info["missing_keys"] and not info["unexpected_keys"]
        base = loaded.eval() if cls is GLMModel else loaded.glm.eval()
        torch.testing.assert_close(base(TEXT).last_hidden_state, model.glm(TEXT).last_hidden_state)
    assert GLMConfig.from_pretrained(tmp_path).model_type == "glm-blank-infilling"


def test_attention_scale_changes_nothing_but_the_range(tiny_model):
    torch.testing.assert_close(
        tiny_model(attention_scale=8.0)(TEXT).logits, tiny_model()(TEXT).logits, atol=1e-5, rtol=0
    )


def test_erf_gelu_can_be_asked_for(tiny_model):
    assert not torch.allclose(
        tiny_model(hidden_act="gelu")(TEXT).logits, tiny_model()(TEXT).logits, atol=1e-4
    )


def test_multiple_choice_reads_each_answer_on_its_own(tiny_model):
    """Choices packed behind one context score as each would alone; missing choices never win."""
    model = tiny_model(GLMForMultipleChoice)
    context, answers = [1, 17, MASK, 23, EOS], [[60, 61], [62], [63, 64, 65]]
    expected = []
    for answer in answers:
        ids = torch.tensor([[*context, SOP, *answer[:-1]]])
        states = model.glm(ids).last_hidden_state
        log_probs = F.linear(states, model.glm.word_embeddings.weight).log_softmax(-1)[
            0, len(context) :
        ]
        expected.append(log_probs.gather(1, torch.tensor(answer)[:, None]).sum())
    ids, positions, starts = list(context), [list(range(5)), [0] * 5], []
    for answer in answers:
        starts.append(len(ids))
        ids += [SOP, *answer[:-1]]
        positions = [
            positions[0] + [2] * len(answer),
            positions[1] + list(range(1, len(answer) + 1)),
        ]
    visible = torch.zeros(len(ids), len(ids), dtype=torch.bool)
    visible[:, :5] = True
    for start, answer in zip(starts, answers, strict=True):
        visible[start : start + len(answer), start : start + len(answer)] = (
            torch.ones(len(answer), len(answer)).tril().bool()
        )
    indices = [
        torch.arange(start, start + len(answer))
        for start, answer in zip(starts, answers, strict=True)
    ]
    output = model(
        torch.tensor([ids] * 2),
        attention_mask=visible[None, None],
        position_ids=torch.tensor([positions] * 2),
        choice_ids=[[torch.tensor(answer) for answer in answers], [torch.tensor(answers[0])]],
        choice_indices=[indices, indices[:1]],
        labels=torch.tensor([1, 0]),
    )
    torch.testing.assert_close(output.logits[0], torch.stack(expected), atol=1e-4, rtol=0)
    assert output.logits[1, 1:].tolist() == [-torch.inf] * 2
    torch.testing.assert_close(output.loss, F.cross_entropy(output.logits, torch.tensor([1, 0])))


def rows_of_choices():
    """Two texts with three and two choices, each choice behind a context of its own (B, C, T)."""
    context, texts = [1, 17, MASK, 23, EOS], [[[60, 61], [62], [63, 64, 65]], [[66, 67], [68]]]
    rows, masks, positions, said = [], [], [], []
    for choices in texts:
        for choice in [*choices, []][:3]:
            tokens = [SOP, *choice[:-1]] if choice else []
            row = context + tokens
            missing = 8 - len(row)
            rows.append(row + [EOS] * missing)
            masks.append([1] * len(row) + [0] * missing)
            blocks = list(range(1, len(tokens) + 1))
            positions.append([[*range(5), *[2] * len(tokens)], [0] * 5 + blocks])
            positions[-1] = [line + [0] * missing for line in positions[-1]]
            said.append([-100] * 5 + choice + [-100] * missing)
    tensors = (torch.tensor(values) for values in (rows, masks, positions, said))
    names = ("input_ids", "attention_mask", "position_ids", "choice_ids")
    return {name: t.unflatten(0, (2, 3)) for name, t in zip(names, tensors, strict=True)}


def test_choices_in_rows_of_their_own(tiny_model):
    model, batch = tiny_model(GLMForMultipleChoice), rows_of_choices()
    output = model(**batch, labels=torch.tensor([2, 0]))
    assert output.logits.shape == (2, 3) and output.logits[1, 2] == -torch.inf
    for row in range(2):
        for choice in range(3 - row):
            one = {name: tensor[row, choice][None] for name, tensor in batch.items()}
            states = model.glm(
                one["input_ids"], one["attention_mask"], one["position_ids"]
            ).last_hidden_state
            log_probs = F.linear(states, model.glm.word_embeddings.weight).log_softmax(-1)
            said = one["choice_ids"]
            expected = sum(log_probs[0, t, said[0, t]] for t in (said[0] >= 0).nonzero()[:, 0])
            torch.testing.assert_close(output.logits[row, choice], expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(output.loss, F.cross_entropy(output.logits, torch.tensor([2, 0])))
    output.loss.backward()
    embeds = model.get_input_embeddings()(batch["input_ids"])
    of_embeds = model(inputs_embeds=embeds, **{**batch, "input_ids": None})
    torch.testing.assert_close(of_embeds.logits, output.logits)


def test_embeddings_whose_blanks_cannot_be_found(tiny_model):
    """Noise hides the masks: said, not answered wrongly. What tells where they are is taken."""
    model = tiny_model()
    embeds = model.get_input_embeddings()(TEXT)
    expected = model(TEXT).logits
    noisy = embeds + 1e-6
    noisy[..., 0] = embeds[..., 0]  # one number that agrees is not enough
    with pytest.raises(ValueError, match="Pass input_ids beside them"):
        model(inputs_embeds=noisy)
    close = dict(atol=1e-3, rtol=0)
    beside = model(TEXT, inputs_embeds=noisy).logits
    torch.testing.assert_close(beside, expected, **close)
    positions = torch.tensor([[[0, 1, 2, 3, 4, 5, 2, 2, 2], [0] * 6 + [1, 2, 3]]])
    explicit = model(inputs_embeds=noisy, position_ids=positions).logits
    torch.testing.assert_close(explicit, expected, **close)
    lengths = model(inputs_embeds=noisy, position_ids=positions, attention_mask=torch.tensor([6]))
    torch.testing.assert_close(lengths.logits, expected, **close)
    with pytest.raises(ValueError, match="Pass input_ids beside them"):
        model.generate(inputs_embeds=noisy[:, :6])
    # One row that is found does not vouch for another.
    with pytest.raises(ValueError, match="Pass input_ids beside them"):
        model(inputs_embeds=torch.cat([embeds, noisy]))
    # Virtual tokens in front, the text's own mask and start behind them.
    virtual = torch.randn(1, 2, 32)
    padded = F.pad(TEXT, (2, 0), value=5)
    prompted = torch.cat([virtual, embeds], dim=1)
    torch.testing.assert_close(
        model(inputs_embeds=prompted).logits, model(padded, inputs_embeds=prompted).logits
    )


def test_embeddings_with_one_row_of_positions(tiny_model):
    """Positions without blocks do not tell where the context is: the embeddings have to."""
    model = tiny_model(block_position_encoding=False)
    embeds = model.get_input_embeddings()(TEXT)
    positions = torch.tensor([[0, 1, 2, 3, 4, 5, 2, 3, 4]])
    expected = model(TEXT, position_ids=positions).logits
    actual = model(inputs_embeds=embeds, position_ids=positions).logits
    torch.testing.assert_close(actual, expected)
    with pytest.raises(ValueError, match="Pass input_ids beside them"):
        model(inputs_embeds=embeds + 1e-6, position_ids=positions)


def test_a_classifier_reads_embeddings_of_no_token(tiny_model):
    """As prompt methods put them before a text: it has no blanks to find."""
    model = tiny_model(GLMForSequenceClassification)
    text = model.get_input_embeddings()(TEXT[:, :6])
    virtual = torch.randn(1, 2, 32)
    assert model(inputs_embeds=torch.cat([virtual, text], dim=1)).logits.isfinite().all()


def test_the_first_and_the_last_id_are_of_the_vocabulary(tiny_model):
    assert tiny_model()(torch.tensor([[0, 98, 0]])).logits.isfinite().all()


def test_masks_are_told_from_ends_that_share_their_row(tiny_model):
    """As [gMASK] and the end of piece do in glm-10b-chinese."""
    model = tiny_model()
    with torch.no_grad():
        model.glm.word_embeddings.weight[GMASK] = model.glm.word_embeddings.weight[EOP]
    ids = torch.tensor([[1, 17, GMASK, 23, EOS, SOP, 60]])
    embeds = model.get_input_embeddings()(ids)
    torch.testing.assert_close(model(inputs_embeds=embeds).logits, model(ids).logits)


@pytest.mark.parametrize("pool_token, column", [("cls", 0), ("pad", 5), ("start", 6)])
def test_classifier_pools_where_it_says(tiny_model, pool_token, column):
    model = tiny_model(GLMForSequenceClassification, num_labels=3, pool_token=pool_token)
    positions = torch.stack([torch.arange(9), torch.zeros(9, dtype=torch.long)])[None]
    state = model.glm(TEXT, position_ids=positions).last_hidden_state[:, column]
    expected = model.multichoice_head(torch.tanh(model.pool_layer(state)))
    torch.testing.assert_close(model(TEXT).logits, expected)
    for pads in ((3, 0), (0, 3)):
        mask = F.pad(torch.ones_like(TEXT), pads)
        torch.testing.assert_close(
            model(F.pad(TEXT, pads, value=EOS), mask).logits, expected, atol=1e-5, rtol=0
        )
    torch.testing.assert_close(
        model(TEXT, attention_mask=torch.tensor([6])).logits, expected, atol=1e-5, rtol=0
    )


@pytest.mark.parametrize(
    "num_labels, labels, loss",
    [
        (3, torch.tensor([2]), F.cross_entropy),
        (3, torch.tensor([[1.0, 0.0, 1.0]]), F.binary_cross_entropy_with_logits),
        (1, torch.tensor([0.7]), lambda logits, labels: F.mse_loss(logits[:, 0], labels)),
    ],
    ids=["one label", "several labels", "a number"],
)
def test_classifier_losses(tiny_model, num_labels, labels, loss):
    model = tiny_model(GLMForSequenceClassification, num_labels=num_labels)
    output = model(TEXT, labels=labels)
    torch.testing.assert_close(output.loss, loss(output.logits, labels))


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda m: m(torch.tensor([[1, 99]])), "vocabulary is 0 to 98"),
        (lambda m: m(torch.tensor([[-1, 5]])), "vocabulary is 0 to 98"),
        (
            lambda m: m(torch.ones(1, 66, dtype=torch.long)),
            "takes 66 positions, but this model has 65",
        ),
        (
            lambda m: m(torch.tensor([[1, MASK, SOP, 5, SOP]])),
            r"more <\|startofpiece\|> than mask tokens",
        ),
        (
            lambda m: m(TEXT, position_ids=torch.zeros(1, 3, 9, dtype=torch.long)),
            r"needs \(batch, 2, tokens\)",
        ),
        (lambda m: m(), "either input_ids or inputs_embeds"),
        (
            lambda m: m(TEXT[:, -1:], past_key_values=m(TEXT).past_key_values),
            "filled cache pass position_ids",
        ),
        (
            lambda m: m(TEXT, position_ids=torch.full((1, 2, 9), -1)),
            "position_ids hold -1; they start at 0",
        ),
        (
            lambda m: m(TEXT, attention_mask=torch.ones(1, 12)),
            "attention_mask has 12 columns for 9 tokens",
        ),
        (
            lambda m: m(TEXT, attention_mask=torch.ones(1, 9, 9)),
            r"an explicit one is \(batch, 1, tokens, keys\)",
        ),
        (
            lambda m: m(
                torch.tensor([[62]]),
                attention_mask=torch.ones(1, 1),
                position_ids=torch.tensor([[[2], [4]]]),
                past_key_values=m(TEXT).past_key_values,
            ),
            "attention_mask has 1 columns for 10 tokens",
        ),
    ],
)
def test_wrong_input_is_told_before_any_work(tiny_model, call, message):
    with pytest.raises(ValueError, match=message):
        call(tiny_model())


def test_start_pooling_without_a_start(tiny_model):
    with pytest.raises(ValueError, match="append it to every text"):
        tiny_model(GLMForSequenceClassification, pool_token="start")(TEXT[:, :6])


def test_no_block_positions_needs_explicit_ones_for_pieces(tiny_model):
    with pytest.raises(ValueError, match="needs position_ids"):
        tiny_model(block_position_encoding=False)(TEXT)


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(num_attention_heads=5), "not a multiple of num_attention_heads 5"),
        (dict(pool_token="mean"), 'pool_token is "mean"'),
        (dict(relative_encoding=True), "relative_encoding is not supported"),
        (dict(encoder_decoder=True), "encoder_decoder is not supported"),
        (dict(is_encoder_decoder=True), "is_encoder_decoder is not supported"),
        (dict(sentinel_token=True), "sentinel_token is not supported"),
        (dict(performer=True), "performer is not supported"),
    ],
)
def test_wrong_configurations(options, message):
    with pytest.raises(ValueError, match=message):
        tiny_config(**options)


def test_standard_and_released_names_are_one_field():
    config = GLMConfig(num_hidden_layers=7, max_position_embeddings=99)
    assert (config.num_layers, config.max_sequence_length) == (7, 99)
    assert GLMConfig(num_layers=7).num_hidden_layers == 7
    assert "num_hidden_layers" not in config.to_dict()


def test_special_ids_can_be_given_to_from_pretrained(tiny_model, tmp_path):
    model = tiny_model(
        sop_token_id=None,
        eop_token_id=None,
        mask_token_ids=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="pass sop_token_id, eop_token_id, mask_token_ids"):
        model.generate(TEXT[:, :6])
    ids = dict(
        sop_token_id=SOP, eop_token_id=EOP, mask_token_ids=[MASK, GMASK, SMASK], eos_token_id=EOS
    )
    loaded = GLMForConditionalGeneration.from_pretrained(tmp_path, **ids).eval()
    assert loaded.generate(TEXT[:, :6], max_new_tokens=3).shape[1] > 6
