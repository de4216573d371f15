"""Adapters: LoRA and IA3 by peft, and TRL's trainer, with every class of GLM."""

import copy
import importlib.util
import json
import shutil
import warnings

import pytest
import torch
from checkout import ROOT
from safetensors.torch import save_file
from test_readme import python_blocks
from transformers import Trainer, TrainingArguments

from glm_transformers import (
    GLMConfig,
    GLMDataCollator,
    GLMForConditionalGeneration,
    GLMForMultipleChoice,
    GLMForSequenceClassification,
    GLMModel,
    GLMMultipleChoiceCollator,
    GLMText2TextGenerationPipeline,
    GLMTokenizerFast,
)

peft = pytest.importorskip("peft")

from glm_transformers.training.adapters import (  # noqa: E402 (it needs peft)
    add_lora,
    merge,
    save_adapter,
)
from glm_transformers.training.prompts import ContinuousPrompt  # noqa: E402

MATRICES = {"query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"}
HEADS = ["pool_layer", "multichoice_head"]
CLASSES = [
    GLMModel,
    GLMForConditionalGeneration,
    GLMForMultipleChoice,
    GLMForSequenceClassification,
]
EXAMPLES = [
    {"text": "Tsinghua University is located in [MASK].", "target": "Beijing"},
    {"text": "Ng is at [MASK] (formerly [MASK]).", "target": ["Stanford", "professor"]},
    {"text": "The quick [MASK] fox", "target": "brown"},
]
PROMPT = "Tsinghua University is located in [MASK]."
ADAPTERS = {
    "LoRA": lambda: peft.LoraConfig(r=2, task_type="CAUSAL_LM"),
    "IA3": lambda: peft.IA3Config(task_type="CAUSAL_LM"),
}


@pytest.fixture(scope="module")
def tokenizer(made_repository):
    return GLMTokenizerFast.from_pretrained(made_repository)


@pytest.fixture
def model(made_repository):
    return load(GLMForConditionalGeneration, made_repository)


def load(cls, repository, **options):
    torch.manual_seed(5)
    quiet = dict(
        embedding_dropout_prob=0.0,
        attention_dropout_prob=0.0,
        output_dropout_prob=0.0,
        classifier_dropout=0.0,
    )
    return cls.from_pretrained(repository, **quiet, **options).eval()


def train(model, batch, steps=8):
    """A few steps; returns the losses."""
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.Adam(weights, lr=0.02)
    model.train()
    losses = []
    for _ in range(steps):
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    model.eval()
    return losses


def same(one, other, atol=1e-5):
    torch.testing.assert_close(one, other, atol=atol, rtol=0)


# --- What peft is told of GLM ---------------------------------------------------------------------


@pytest.mark.parametrize("cls", CLASSES)
def test_peft_knows_the_matrices(tiny_model, cls):
    lora = peft.get_peft_model(tiny_model(cls), peft.LoraConfig(r=2))
    assert lora.active_peft_config.target_modules == MATRICES
    layers = lora.base_model.config.num_layers
    assert len(lora.base_model.targeted_module_names) == 4 * layers
    ia3 = peft.get_peft_model(tiny_model(cls), peft.IA3Config())
    assert ia3.active_peft_config.target_modules == {"query_key_value", "dense_4h_to_h"}
    assert ia3.active_peft_config.feedforward_modules == {"dense_4h_to_h"}


def test_all_linear_leaves_the_tied_head_out(tiny_model):
    config = peft.LoraConfig(r=2, target_modules="all-linear")
    for cls in (GLMForConditionalGeneration, GLMForMultipleChoice):
        wrapped = peft.get_peft_model(tiny_model(cls), copy.deepcopy(config))
        assert not [name for name in wrapped.base_model.targeted_module_names if "head" in name]


# --- The defaults of LoRA -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "layers, hidden, rank", [(2, 32, 2), (4, 128, 2), (6, 512, 8), (12, 768, 8)]
)
def test_less_than_two_percent_are_trained(layers, hidden, rank):
    config = GLMConfig(
        vocab_size=2048, num_layers=layers, hidden_size=hidden, num_attention_heads=4
    )
    with torch.device("meta"):
        wrapped = add_lora(GLMForConditionalGeneration(config))
    trained, total = wrapped.get_nb_trainable_parameters()
    lora = wrapped.active_peft_config
    assert (lora.r, lora.lora_alpha, lora.target_modules) == (rank, 2 * rank, MATRICES)
    assert trained < 0.02 * total


def test_the_head_of_a_classifier_is_trained_whole(tiny_model):
    wrapped = add_lora(tiny_model(GLMForSequenceClassification))
    trained = {name for name, weight in wrapped.named_parameters() if weight.requires_grad}
    for head in HEADS:
        assert any(f".{head}.modules_to_save." in name for name in trained)


def test_the_tied_head_is_refused(tiny_model):
    for target in ("lm_head", "word_embeddings", "glm.word_embeddings"):
        with pytest.raises(ValueError, match="output head at once"):
            add_lora(tiny_model(), targets=["dense", target])
    with pytest.raises(ValueError, match="has no q_proj to adapt"):
        add_lora(tiny_model(), targets=["q_proj"])


def test_a_classifier_whose_head_stays_random(tiny_model):
    model = tiny_model(GLMForSequenceClassification)
    batch = {"input_ids": torch.tensor([[1, 2, 3]]), "labels": torch.tensor([1])}
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=2, task_type="SEQ_CLS")).train()
    with pytest.warns(UserWarning, match="head is not trained"):
        wrapped(**batch)
    with warnings.catch_warnings(record=True) as caught:
        add_lora(tiny_model(GLMForSequenceClassification)).train()(**batch)
    assert not [warning for warning in caught if "head" in str(warning.message)]


# --- Train, save, load, merge ---------------------------------------------------------------------


@pytest.mark.parametrize("kind", ADAPTERS)
def test_train_save_load_merge(model, made_repository, tokenizer, tmp_path, kind):
    batch = GLMDataCollator(tokenizer)(EXAMPLES)
    before = copy.deepcopy(model.state_dict())
    wrapped = peft.get_peft_model(model, ADAPTERS[kind]())
    losses = train(wrapped, batch)
    assert losses[-1] < losses[0]
    adapted = wrapped(**batch).logits
    inputs = tokenizer(PROMPT, return_tensors="pt")
    said = wrapped.generate(**inputs, max_new_tokens=8)

    save_adapter(wrapped, tmp_path / "adapter")
    base = load(GLMForConditionalGeneration, made_repository)
    loaded = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    same(loaded(**batch).logits, adapted)
    assert torch.equal(loaded.generate(**inputs, max_new_tokens=8), said)
    with wrapped.disable_adapter():
        same(wrapped(**batch).logits, load(type(model), made_repository)(**batch).logits)

    merged = merge(wrapped)
    assert isinstance(merged, GLMForConditionalGeneration)
    same(merged(**batch).logits, adapted)
    for name in ("glm.word_embeddings.weight", "lm_head.weight"):
        assert torch.equal(merged.state_dict()[name], before[name])
    merged.save_pretrained(tmp_path / "merged")
    same(load(GLMForConditionalGeneration, tmp_path / "merged")(**batch).logits, adapted)


def test_the_pipeline_on_top(model, tokenizer):
    fill = GLMText2TextGenerationPipeline(model=model, tokenizer=tokenizer)
    before = fill(PROMPT, max_new_tokens=8)[0]["blanks"]
    wrapped = add_lora(model)
    train(wrapped, GLMDataCollator(tokenizer)(EXAMPLES))
    inputs = tokenizer(PROMPT, return_tensors="pt")
    (said,) = tokenizer.decode_pieces(wrapped.generate(**inputs, max_new_tokens=8))
    fill = GLMText2TextGenerationPipeline(model=wrapped, tokenizer=tokenizer)
    assert fill(PROMPT, max_new_tokens=8)[0]["blanks"] == said != before


def test_a_classifier(made_repository, tokenizer, tmp_path):
    texts = tokenizer(["Ng is here", "The quick fox", "Beijing"], padding=True, return_tensors="pt")
    batch = {**texts, "labels": torch.tensor([0, 1, 2])}
    wrapped = add_lora(load(GLMForSequenceClassification, made_repository, num_labels=3))
    losses = train(wrapped, batch)
    assert losses[-1] < losses[0]
    adapted = wrapped(**batch).logits
    save_adapter(wrapped, tmp_path)
    base = load(GLMForSequenceClassification, made_repository, num_labels=3)
    same(peft.PeftModel.from_pretrained(base, tmp_path).eval()(**batch).logits, adapted)
    same(merge(wrapped)(**batch).logits, adapted)


def test_multiple_choice(made_repository, tokenizer, tmp_path):
    batch = GLMMultipleChoiceCollator(tokenizer)(
        [
            {"text": "Ng is at [MASK].", "choices": [" Stanford", " Beijing"], "label": 1},
            {"text": "The [MASK] fox", "choices": [" brown", " lazy dog"], "label": 0},
        ]
    )
    wrapped = add_lora(load(GLMForMultipleChoice, made_repository))
    losses = train(wrapped, batch)
    assert losses[-1] < losses[0]
    adapted = wrapped(**batch).logits
    save_adapter(wrapped, tmp_path)
    base = load(GLMForMultipleChoice, made_repository)
    same(peft.PeftModel.from_pretrained(base, tmp_path).eval()(**batch).logits, adapted)
    same(merge(wrapped)(**batch).logits, adapted, atol=1e-4)  # sums of log-probabilities


def test_gradient_checkpointing(model, tokenizer):
    batch = GLMDataCollator(tokenizer)(EXAMPLES)
    wrapped = add_lora(model, dropout=0.0).train()
    gradients = []
    for checkpointed in (False, True):
        if checkpointed:
            wrapped.gradient_checkpointing_enable({"use_reentrant": False})
            wrapped.enable_input_require_grads()
        wrapped(**batch).loss.backward()
        gradients.append(
            {
                name: weight.grad.clone()
                for name, weight in wrapped.named_parameters()
                if weight.requires_grad
            }
        )
        wrapped.zero_grad()
    assert any(gradient.any() for gradient in gradients[0].values())
    for name, gradient in gradients[0].items():
        same(gradients[1][name], gradient)


def test_an_adapter_says_where_its_model_is(model, tiny_model, made_repository, tmp_path):
    wrapped = add_lora(model)
    save_adapter(wrapped, tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(made_repository)
    save_adapter(wrapped, tmp_path, base="me/my-glm")
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "me/my-glm"
    with pytest.raises(ValueError, match="pass its name as base"):
        save_adapter(add_lora(tiny_model()), tmp_path)


def test_virtual_tokens_cannot_be_merged(tiny_model):
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    with pytest.raises(ValueError, match="cannot be merged"):
        merge(peft.get_peft_model(tiny_model(), config))


STRANGER = """
import json, sys
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer
from transformers.dynamic_module_utils import get_class_from_dynamic_module

repository, prompt, *adapters = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(repository, trust_remote_code=True)
Pipeline = get_class_from_dynamic_module(
    "pipeline_glm.GLMText2TextGenerationPipeline", repository
)

def load():
    return AutoModelForSeq2SeqLM.from_pretrained(repository, trust_remote_code=True)

first = load()
assert "peft" not in sys.modules
import peft
targets = peft.get_peft_model(first, peft.LoraConfig()).active_peft_config.target_modules
answers = {"targets": sorted(targets)}
for adapter in adapters:
    models = [
        peft.PeftModel.from_pretrained(load(), adapter),
        peft.AutoPeftModelForCausalLM.from_pretrained(adapter, trust_remote_code=True),
    ]
    if adapter.endswith("LoRA"):
        models.append(load())
        models[-1].load_adapter(adapter)
    fill = [Pipeline(model=model.eval(), tokenizer=tokenizer) for model in models]
    answers[adapter] = [one(prompt, max_new_tokens=8)[0]["blanks"] for one in fill]
print(json.dumps(answers))
"""


def test_a_stranger_loads_adapters(made_repository, tokenizer, stranger, tmp_path):
    """In a process without the package, by the repository's code, before peft is imported."""
    of_prompts = dict(task_type="CAUSAL_LM", num_virtual_tokens=4)
    configs = {
        "LoRA": peft.LoraConfig(r=4, task_type="CAUSAL_LM"),
        "prefix": peft.PrefixTuningConfig(**of_prompts),
        "prompt": peft.PromptTuningConfig(**of_prompts),
    }
    expected = {}
    for kind, config in configs.items():
        model = load(GLMForConditionalGeneration, made_repository)
        wrapped = peft.get_peft_model(model, config)
        train(wrapped, GLMDataCollator(tokenizer)(EXAMPLES), steps=10)
        adapter = save_adapter(wrapped, tmp_path / kind)
        fill = GLMText2TextGenerationPipeline(model=wrapped, tokenizer=tokenizer)
        expected[str(adapter)] = fill(PROMPT, max_new_tokens=8)[0]["blanks"]
    printed = stranger.output(STRANGER, made_repository, PROMPT, *expected, folder=tmp_path)
    answers = json.loads(printed.splitlines()[-1])
    assert answers.pop("targets") == sorted(MATRICES)
    for adapter, said in answers.items():
        assert said == [expected[adapter]] * len(said), adapter
    assert answers.keys() == expected.keys()


# --- TRL ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["full", "LoRA"])
@pytest.mark.parametrize("accumulation", [1, 3])
def test_trl_gives_the_losses_of_the_trainer(
    made_repository, tokenizer, tmp_path, kind, accumulation
):
    trl = pytest.importorskip("trl", reason="TRL is not installed")
    datasets = pytest.importorskip("datasets")
    collator = GLMDataCollator(tokenizer, shift_labels=True)
    rows = datasets.Dataset.from_list([collator.tokenize(example) for example in EXAMPLES * 2])

    def losses(trainer_class, arguments_class, **options):
        torch.manual_seed(0)
        model = load(GLMForConditionalGeneration, made_repository)
        model = add_lora(model, dropout=0.0) if kind == "LoRA" else model
        arguments = arguments_class(
            output_dir=str(tmp_path),
            per_device_train_batch_size=2,
            gradient_accumulation_steps=accumulation,
            num_train_epochs=2,
            learning_rate=1e-2,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            use_cpu=True,
            **options,
        )
        trainer = trainer_class(
            model,
            arguments,
            train_dataset=rows,
            data_collator=collator,
            processing_class=tokenizer,
        )
        trainer.train()
        return torch.tensor([log["loss"] for log in trainer.state.log_history if "loss" in log])

    prepared = {"skip_prepare_dataset": True}
    with_trl = losses(
        trl.SFTTrainer,
        trl.SFTConfig,
        dataset_kwargs=prepared,
        gradient_checkpointing=False,
        bf16=False,
    )
    same(with_trl, losses(Trainer, TrainingArguments), atol=2e-4)  # 4.57 logs four decimals


# --- Docs -----------------------------------------------------------------------------------------


def test_python_blocks_of_the_docs(made_repository, colleague, tmp_path):
    """In a fresh process, which has the package; the blocks of TRL where it is installed."""
    blocks = python_blocks(ROOT / "docs" / "adapters.md")
    assert len(blocks) >= 7
    if importlib.util.find_spec("trl") is None:
        blocks = [block for block in blocks if "trl" not in block]
    (tmp_path / "my-glm-2b").symlink_to(made_repository)
    prompted = tmp_path / "my-prompted-glm"
    shutil.copytree(made_repository, prompted)
    weights = ContinuousPrompt(4, 16).state_dict()
    save_file(
        {f"prompt_spell.{name}": tensor for name, tensor in weights.items()},
        prompted / "prompt_spell.safetensors",
    )
    colleague.output("\n".join(blocks), folder=tmp_path)
