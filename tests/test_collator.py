"""Batches to learn answers from: what trainers of the library are fed."""

import copy

import pytest
import torch
from datasets import Dataset
from made import make_vocabulary
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments, Trainer, TrainingArguments
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from glm_transformers import (
    GLMDataCollator,
    GLMForConditionalGeneration,
    GLMTokenizerFast,
)
from glm_transformers.conversion.tokenizers import build_tokenizer, find_vocabulary

EXAMPLES = [
    {"text": "Ng is an adjunct professor at [MASK].", "target": "Stanford"},
    {"text": "[MASK] is located in [sMASK] now", "target": ["Tsinghua University", "Beijing."]},
    {"text": "The quick brown fox [gMASK]", "target": "jumps over the lazy dog"},
]


@pytest.fixture(scope="module")
def tokenizer(made_repository):
    return GLMTokenizerFast.from_pretrained(made_repository)


@pytest.fixture
def model(made_repository):
    return GLMForConditionalGeneration.from_pretrained(made_repository)


@pytest.fixture
def learner(tokenizer):
    """A network that learns three answers by heart in seconds."""
    torch.manual_seed(3)
    config = GLMForConditionalGeneration.config_class(
        vocab_size=512,
        hidden_size=64,
        num_layers=2,
        num_attention_heads=4,
        max_sequence_length=64,
        embedding_dropout_prob=0.0,
        attention_dropout_prob=0.0,
        output_dropout_prob=0.0,
        sop_token_id=tokenizer.sop_token_id,
        eop_token_id=tokenizer.eop_token_id,
        mask_token_ids=tokenizer.mask_token_ids,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = GLMForConditionalGeneration(config)
    model.generation_config.eos_token_id = [tokenizer.eop_token_id, tokenizer.eos_token_id]
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model


def words(tokenizer, text):
    return tokenizer(text, add_special_tokens=False).input_ids


def test_the_form_of_a_batch(tokenizer):
    batch = GLMDataCollator(tokenizer)(EXAMPLES)
    assert sorted(batch) == ["attention_mask", "input_ids", "labels"]
    contexts = tokenizer([example["text"] for example in EXAMPLES]).input_ids
    width = max(map(len, contexts))
    sop, eop = tokenizer.sop_token_id, tokenizer.eop_token_id
    stanford = words(tokenizer, " Stanford")
    university, beijing = words(tokenizer, "Tsinghua University"), words(tokenizer, " Beijing.")
    jumps = words(tokenizer, " jumps over the lazy dog")
    pieces = [
        ([sop, *stanford], [*stanford, eop]),
        ([sop, *university, sop, *beijing], [*university, eop, *beijing, eop]),
        ([sop, *jumps], [*jumps, eop]),
    ]
    assert (batch.input_ids[:, width] == sop).all(), "all pieces start in one column"
    for row, (context, (read, said)) in enumerate(zip(contexts, pieces, strict=True)):
        real = batch.attention_mask[row].bool()
        assert batch.input_ids[row][real].tolist() == context + read
        assert real[width - len(context) : width + len(read)].all()
        assert batch.labels[row, :width].tolist() == [-100] * width
        right = batch.labels.shape[1] - width - len(said)
        assert batch.labels[row, width:].tolist() == said + [-100] * right
    assert (batch.input_ids[batch.attention_mask == 0] == tokenizer.pad_token_id).all()


def test_a_batch_is_its_rows(tokenizer, model):
    """Logits of each row as if it stood alone, and those of the old port's form."""
    collator = GLMDataCollator(tokenizer)
    with torch.no_grad():
        batch = collator(EXAMPLES)
        logits = model(**batch).logits
        for row, example in enumerate(EXAMPLES):
            alone = collator([example])
            real = batch.attention_mask[row].bool()
            torch.testing.assert_close(logits[row][real], model(**alone).logits[0])
            target = example["target"]
            built = tokenizer.build_inputs_for_generation(
                tokenizer([example["text"]], return_tensors="pt"),
                targets=[target if isinstance(target, list) else [target]],
            )
            assert built.labels.tolist() == alone.labels.tolist()
            torch.testing.assert_close(model(**built).logits, model(**alone).logits)
            torch.testing.assert_close(model(**built).loss, model(**alone).loss)


@pytest.mark.parametrize("form", ["rows", "padded rows", "contexts and answers"])
def test_tokenized_features(tokenizer, form):
    collator = GLMDataCollator(tokenizer)
    expected = collator(EXAMPLES)
    features = [collator.tokenize(example) for example in EXAMPLES]
    assert [feature["length"] for feature in features] == [
        len(feature["input_ids"]) for feature in features
    ]
    if form == "padded rows":
        names = ("input_ids", "attention_mask", "labels")
        features = [{name: expected[name][row] for name in names} for row in range(len(EXAMPLES))]
    elif form == "contexts and answers":
        answers = [
            words(tokenizer, " Stanford"),
            [words(tokenizer, "Tsinghua University"), words(tokenizer, " Beijing.")],
            [*words(tokenizer, " jumps over the lazy dog"), tokenizer.eop_token_id],
        ]
        features = [
            {"input_ids": tokenizer(example["text"]).input_ids, "labels": answer}
            for example, answer in zip(EXAMPLES, answers, strict=True)
        ]
    batch = collator(features)
    assert {name: value.tolist() for name, value in batch.items()} == {
        name: value.tolist() for name, value in expected.items()
    }


def test_options(tokenizer):
    batch = GLMDataCollator(tokenizer, pad_to_multiple_of=16)(EXAMPLES)
    assert batch.input_ids.shape[1] % 16 == 0 == batch.labels.shape[1] % 16
    assert batch.attention_mask[:, -1].sum() == 0, "what is missing stands behind the pieces"
    cut = GLMDataCollator(tokenizer, max_target_length=2)(EXAMPLES[:1])
    assert cut.labels[0, -2:].tolist() == words(tokenizer, " Stanford")[:2], "and has no end"
    raw = GLMDataCollator(tokenizer, raw_targets=True)(EXAMPLES[:1])
    assert raw.labels[0].tolist()[-1 - len(words(tokenizer, "Stanford")) : -1] == words(
        tokenizer, "Stanford"
    )
    text = {"text": "[MASK] is located in Beijing. The quick brown fox.", "target": "It"}
    assert (GLMDataCollator(tokenizer, max_length=8)([text]).labels[0] == -100).sum() == 8
    shifted = GLMDataCollator(tokenizer, shift_labels=True)(EXAMPLES)
    assert torch.equal(shifted.shift_labels, shifted.labels)


def test_contexts_alone_are_filled(tokenizer, model):
    texts = [{"text": example["text"]} for example in EXAMPLES]
    batch = GLMDataCollator(tokenizer, pad_to_multiple_of=50)(texts)
    assert sorted(batch) == ["attention_mask", "input_ids"] and batch.input_ids.shape[1] == 50
    assert batch.attention_mask[:, -1].all(), "what is missing stands in front"
    options = {"max_new_tokens": 12, "max_piece_length": 4}
    filled = tokenizer.decode_pieces(model.generate(**batch, **options))
    for example, pieces in zip(EXAMPLES, filled, strict=True):
        alone = model.generate(**tokenizer(example["text"], return_tensors="pt"), **options)
        assert pieces == tokenizer.decode_pieces(alone)[0]


def test_positions_of_a_model_without_block_positions(tiny_model, tokenizer):
    """Trained on the positions that `generate` gives the same tokens."""
    ids = {
        "sop_token_id": tokenizer.sop_token_id,
        "eop_token_id": tokenizer.eop_token_id,
        "mask_token_ids": tokenizer.mask_token_ids,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    model = tiny_model(vocab_size=512, block_position_encoding=False, **ids)
    batch = GLMDataCollator(tokenizer, positions_per_blank=9)(EXAMPLES)
    assert batch.position_ids.shape == batch.input_ids.shape
    assert (batch.position_ids[batch.attention_mask == 0] == 0).all()
    step = model.prepare_inputs_for_generation(
        torch.where(batch.labels == tokenizer.eop_token_id, -1, batch.input_ids).clamp(min=0)[1:2],
        attention_mask=batch.attention_mask[1:2],
        max_piece_length=9,
    )
    answered = batch.attention_mask[1].bool() & (batch.input_ids[1] != tokenizer.sop_token_id)
    first = int((batch.input_ids[1] == tokenizer.sop_token_id).nonzero()[1])
    real = answered[:first].nonzero()[:, 0]
    assert torch.equal(step["position_ids"][0, real], batch.position_ids[1, real])
    masks = [
        int((batch.input_ids[1] == id).nonzero()[0])
        for id in (tokenizer.mask_token_id, tokenizer.smask_token_id)
    ]
    places = batch.position_ids[1, masks].tolist()
    assert places[1] - places[0] == masks[1] - masks[0] + 9, "the first blank reserves 9"
    assert batch.position_ids[1, first].item() == places[1]
    assert batch.position_ids[1, first + 1].item() == places[1] + 1


def test_labels_that_another_collator_padded(tokenizer):
    context = tokenizer("a [MASK]").input_ids
    collate = GLMDataCollator(tokenizer)
    expected = collate([{"input_ids": context, "labels": [5, 6]}])
    padded = collate([{"input_ids": context, "labels": [5, 6, -100, -100]}])
    assert torch.equal(padded["input_ids"], expected["input_ids"])
    assert torch.equal(padded["labels"], expected["labels"])


@pytest.mark.parametrize(
    "feature, message",
    [
        ({"text": "no blank", "target": "a"}, "Feature 2: A text has no mask"),
        ({"text": "a [MASK]", "target": ["b", "c"]}, "Feature 2: A text has 1 masks and 2 answers"),
        ({"text": "[MASK] a [MASK]", "target": "b"}, "Feature 2: A text has 2 masks and 1 answers"),
        ({"text": "a [MASK]", "target": []}, "Feature 2: A text has 1 masks and 0 answers"),
        ({"text": "a [MASK]", "target": 3}, 'Feature 2: "text" must be a text'),
        ({"text": "a [MASK]", "target": [["b"]]}, 'Feature 2: "text" must be a text'),
        ({"text": ["a [MASK]"], "target": "b"}, 'Feature 2: "text" must be a text'),
        ({"text": "a [MASK]"}, "Feature 2 has no answer"),
        ({"text": "a <|startofpiece|> [MASK]", "target": "b"}, r"A text holds <\|startofpiece\|>"),
        ({"text": "a [MASK]", "target": "b <|endofpiece|>"}, r"answer holds <\|endofpiece\|>"),
        ({"text": "a [MASK]", "target": "b<|endoftext|>"}, r"answer holds <\|endoftext\|>"),
        (
            {"question": "a [MASK]", "answer": "b"},
            'has the fields question, answer; give it "text"',
        ),
        ({"input_ids": [1, 402, 401, 2], "labels": [2, 3]}, "4 input_ids and 2 labels"),
        ({"input_ids": [1, 404, 401, 2], "labels": [1, -100, 2, 3]}, "labels in the context"),
        ({"input_ids": [404, 401, 401], "labels": [-100, 2, 3]}, "1 masks and 2 <.startofpiece.>"),
        ({"input_ids": [1, 2, 401, 2], "labels": [-100, -100, 2, 3]}, "has no mask"),
    ],
)
def test_features_of_which_no_right_batch_can_be_made(tokenizer, feature, message):
    assert tokenizer.sop_token_id == 401 and tokenizer.mask_token_id == 404
    with pytest.raises(ValueError, match=message):
        GLMDataCollator(tokenizer)([EXAMPLES[0], feature])


# --- The rule of the leading space ----------------------------------------------------------------


@pytest.mark.parametrize(
    "text, target, learnt",
    [
        ("located in [MASK].", "Beijing", " Beijing"),
        ("located in[MASK].", "Beijing", " Beijing"),  # to GLM the same text
        ("located in [MASK].", " Beijing", " Beijing"),
        ("[MASK] is located in Beijing", "Tsinghua", "Tsinghua"),
        ("at Stanford (formerly [MASK])", "associate", " associate"),
        ("at Stanford ([MASK] professor)", "associate", "associate"),
        ("We met [MASK] then", ", and talked,", ", and talked,"),
        ("Hello, [MASK]", "and", " and"),
        ('He said "[MASK]"', "yes", "yes"),
        ("the fox \n [MASK]", "jumps", " jumps"),
        ("为纪念[MASK]而建", "拿破仑", "拿破仑"),
        ("a [MASK]", "", ""),
    ],
)
@pytest.mark.parametrize("family", ["gpt2", "bert"])
def test_an_answer_is_learnt_with_the_space_that_its_mask_swallowed(
    text, target, learnt, family, tokenizer, tmp_path
):
    if family == "bert":
        files = find_vocabulary(family, make_vocabulary(tmp_path, family))
        tokenizer, learnt = build_tokenizer(family, files, task_mask=False), target
    ids = [*words(tokenizer, learnt), tokenizer.eop_token_id]
    batch = GLMDataCollator(tokenizer)([{"text": text, "target": target}])
    assert batch.labels[0].tolist()[-len(ids) :] == ids
    inputs = tokenizer([text], return_tensors="pt")
    built = tokenizer.build_inputs_for_generation(inputs, targets=[target])
    assert built.labels[0].tolist()[-len(ids) :] == ids
    raw = tokenizer.build_inputs_for_generation(inputs, targets=[target], raw_targets=True)
    ids = [*words(tokenizer, target), tokenizer.eop_token_id]
    assert raw.labels[0].tolist()[-len(ids) :] == ids


def test_where_only_ids_are_known_a_space_stood_before_each_mask(tokenizer):
    inputs = tokenizer(["[MASK] lives in [MASK]"], return_tensors="pt")
    bare = {"input_ids": inputs.input_ids, "attention_mask": inputs.attention_mask}
    built = tokenizer.build_inputs_for_generation(bare, targets=[["Ng", "Beijing"]])
    expected = tokenizer.build_inputs_for_generation(inputs, targets=[["Ng", "Beijing"]])
    assert built.labels.tolist() == expected.labels.tolist()


# --- Trainers -------------------------------------------------------------------------------------


def arguments(folder, cls=TrainingArguments, **options):
    defaults = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 3,
        "learning_rate": 3e-3,
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "save_strategy": "no",
        "seed": 1,
    }
    return cls(**{**defaults, **options})


@pytest.mark.parametrize("form", ["texts", "tokenized"])
def test_trainer_learns_the_answers(tokenizer, learner, tmp_path, form):
    collator = GLMDataCollator(tokenizer)
    data = Dataset.from_list([{**example, "target": answers(example)} for example in EXAMPLES])
    if form == "tokenized":
        data = data.map(collator.tokenize)
    options = arguments(tmp_path, max_steps=80, remove_unused_columns=form == "tokenized")
    Trainer(learner, options, train_dataset=data, data_collator=collator).train()
    learner.eval()
    for example in EXAMPLES:
        inputs = tokenizer(example["text"], return_tensors="pt")
        output = learner.generate(**inputs, max_new_tokens=24, max_piece_length=12)
        assert tokenizer.decode_pieces(output) == [answers(example)]


def answers(example):
    target = example["target"]
    return [target] if isinstance(target, str) else target


def test_accumulation_gives_the_gradient_of_the_whole_batch(tokenizer, learner, tmp_path):
    weights = []
    for size in (1, 3):
        model = copy.deepcopy(learner)
        options = arguments(
            tmp_path,
            max_steps=1,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=3 // size,
            remove_unused_columns=False,
            optim="sgd",
        )
        trainer = Trainer(
            model, options, train_dataset=EXAMPLES, data_collator=GLMDataCollator(tokenizer)
        )
        trainer.train()
        weights.append(torch.cat([parameter.flatten() for parameter in model.parameters()]))
    torch.testing.assert_close(*weights, atol=1e-6, rtol=1e-5)


def test_seq2seq_trainer_end_to_end(tokenizer, learner, tmp_path):
    """Evaluation by generation, label smoothing, grouping by length, the best model at the end."""
    collator = GLMDataCollator(tokenizer)
    data = Dataset.from_list([{**example, "target": answers(example)} for example in EXAMPLES])
    data = data.map(collator.tokenize, remove_columns=["text", "target"])
    expected = [answers(example) for example in EXAMPLES]
    seen = []

    def compute_metrics(prediction):
        said = tokenizer.decode_pieces(prediction.predictions)
        right = tokenizer.decode_pieces(prediction.label_ids)
        seen.append((said, right))
        return {"exact": sum(a == b for a, b in zip(said, right, strict=True)) / len(right)}

    grouping = (
        {"train_sampling_strategy": "group_by_length"}
        if "train_sampling_strategy" in TrainingArguments.__dataclass_fields__
        else {"group_by_length": True}
    )
    options = arguments(
        tmp_path,
        Seq2SeqTrainingArguments,
        max_steps=80,
        predict_with_generate=True,
        generation_max_length=64,
        label_smoothing_factor=0.1,
        eval_strategy="steps",
        save_strategy="steps",
        eval_steps=40,
        save_steps=40,
        save_total_limit=1,
        load_best_model_at_end=True,
        metric_for_best_model="exact",
        per_device_eval_batch_size=2,
        **grouping,
    )
    trainer = Seq2SeqTrainer(
        learner,
        options,
        train_dataset=data,
        eval_dataset=data,
        data_collator=collator,
        compute_metrics=compute_metrics,
        processing_class=tokenizer,
    )
    trainer.train()
    assert trainer.evaluate()["eval_exact"] == 1.0
    said, right = seen[-1]
    assert said == right and sorted(said) == sorted(expected), "in the order of their lengths"


def test_peft(tokenizer, model, tmp_path):
    import peft

    config = peft.LoraConfig(target_modules=["query_key_value"], r=4, task_type="SEQ_2_SEQ_LM")
    wrapped = peft.get_peft_model(model, config)
    options = arguments(tmp_path, num_train_epochs=3, remove_unused_columns=False)
    collator = GLMDataCollator(tokenizer)
    before = wrapped(**collator(EXAMPLES)).loss.item()
    Trainer(wrapped, options, train_dataset=EXAMPLES, data_collator=collator).train()
    assert wrapped.eval()(**collator(EXAMPLES)).loss.item() < before


def test_it_comes_along_in_a_repository(made_repository, tokenizer):
    cls = get_class_from_dynamic_module("collation_glm.GLMDataCollator", str(made_repository))
    batch = cls(tokenizer)(EXAMPLES)
    assert torch.equal(batch.labels, GLMDataCollator(tokenizer)(EXAMPLES).labels)
