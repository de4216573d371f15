"""Choices: read behind one context, scored each on its own, learned by the library's Trainer."""

import json

import pytest
import torch
from conftest import EOS, MASK, SOP, tiny_config
from datasets import Dataset
from transformers import (
    DataCollatorForMultipleChoice,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
    pipeline,
)

from glm_transformers import (
    GLMConfig,
    GLMForConditionalGeneration,
    GLMForMultipleChoice,
    GLMForSequenceClassification,
    GLMMultipleChoiceCollator,
    GLMPooledChoiceCollator,
    GLMTokenizerFast,
)

CHOICES = [
    {"text": "Ng is at [MASK].", "choices": [" Stanford", " Beijing", " the dog"], "label": 0},
    {"text": "[MASK] is located in [MASK] now", "choices": ["Beijing", " Tsinghua Un"], "label": 1},
]


@pytest.fixture(scope="module")
def tokenizer(made_repository):
    return GLMTokenizerFast.from_pretrained(made_repository)


@pytest.fixture
def chooser(made_repository):
    return GLMForMultipleChoice.from_pretrained(made_repository).eval()


@pytest.fixture(scope="module")
def expected(made_repository, tokenizer) -> torch.Tensor:
    """(2, 3): the choices scored one by one, from the paper's definition."""
    model = GLMForConditionalGeneration.from_pretrained(made_repository).eval()
    scores = torch.full((2, 3), -torch.inf)
    for row, example in enumerate(CHOICES):
        for number, choice in enumerate(example["choices"]):
            scores[row, number] = score_alone(model, tokenizer, example["text"], choice)
    return scores


@torch.no_grad()
def score_alone(model, tokenizer, text: str, choice: str) -> torch.Tensor:
    context = tokenizer(text).input_ids
    said = tokenizer(choice, add_special_tokens=False).input_ids
    masks = [column for column, id in enumerate(context) if id == tokenizer.mask_token_id]
    read = [*context, tokenizer.sop_token_id, *said[:-1]]
    places = [*range(len(context)), *[masks[-1]] * len(said)]
    blocks = [0] * len(context) + list(range(1, len(said) + 1))
    logits = model(torch.tensor([read]), position_ids=torch.tensor([[places, blocks]])).logits
    log_probs = logits[0, len(context) :].log_softmax(-1)
    return log_probs.gather(1, torch.tensor(said)[:, None]).sum()


# --- The packed form ------------------------------------------------------------------------------


def test_each_token_of_a_choice_sees_the_context_the_start_and_its_own_choice(tokenizer):
    batch = GLMMultipleChoiceCollator(tokenizer)(CHOICES)
    rows, length = batch.input_ids.shape
    assert batch.labels.tolist() == [0, 1]
    assert batch.attention_mask.shape == (rows, 1, length, length)
    assert batch.position_ids.shape == (rows, 2, length)
    assert batch.choice_ids.shape == batch.choice_indices.shape
    for row, example in enumerate(CHOICES):
        context = tokenizer(example["text"]).input_ids
        last_mask = max(at for at, id in enumerate(context) if id == tokenizer.mask_token_id)
        end = batch.choice_indices[row, 0, 0]  # the start is behind the context
        for column in range(end - len(context), end):
            assert batch.input_ids[row][batch.attention_mask[row, 0, column]].tolist() == context
        for number, choice in enumerate(example["choices"]):
            said = tokenizer(choice, add_special_tokens=False).input_ids
            is_token = batch.choice_ids[row, number] != -100
            assert batch.choice_ids[row, number][is_token].tolist() == said, "as it is written"
            for step, column in enumerate(batch.choice_indices[row, number][is_token].tolist()):
                seen = batch.attention_mask[row, 0, column]
                read = [*context, tokenizer.sop_token_id, *said[:step]]
                assert batch.input_ids[row][seen].tolist() == read
                places, blocks = batch.position_ids[row][:, seen].tolist()
                assert places == [*range(len(context)), *[last_mask] * (step + 1)]
                assert blocks == [0] * len(context) + list(range(1, step + 2))
    assert (batch.choice_ids[1, 2] == -100).all(), "the second text has two choices"


def test_choices_of_one_token_share_one_column(tokenizer):
    features = [{"context": tokenizer("a [MASK]").input_ids, "answers": [[5], [6], [7]]}]
    batch = GLMMultipleChoiceCollator(tokenizer)(features)
    assert batch.input_ids[0].tolist() == [*features[0]["context"], tokenizer.sop_token_id]
    assert batch.choice_indices[0].unique().tolist() == [batch.input_ids.shape[1] - 1]


@torch.no_grad()
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_packed_choices_score_as_each_alone(tokenizer, chooser, expected, attention):
    chooser.set_attn_implementation(attention)
    collate = GLMMultipleChoiceCollator(tokenizer)
    together = chooser(**collate(CHOICES)).logits
    torch.testing.assert_close(together, expected, atol=1e-4, rtol=0)
    for row, example in enumerate(CHOICES):
        alone = chooser(**collate([example])).logits[0]
        torch.testing.assert_close(alone, expected[row, : len(alone)], atol=1e-4, rtol=0)
    wider = GLMMultipleChoiceCollator(tokenizer, pad_to_multiple_of=32)(CHOICES)
    assert wider.input_ids.shape[1] % 32 == 0
    torch.testing.assert_close(chooser(**wider).logits, expected, atol=1e-4, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
def test_the_form_of_the_old_port_scores_alike(tokenizer, chooser, expected, side):
    texts = [example["text"] for example in CHOICES]
    inputs = tokenizer(texts, padding=True, padding_side=side, return_tensors="pt")
    choices = [example["choices"] for example in CHOICES]
    built = tokenizer.build_inputs_for_multiple_choice(inputs, choices)
    torch.testing.assert_close(chooser(**built).logits, expected, atol=1e-4, rtol=0)


@torch.no_grad()
def test_text_and_ids_make_the_same_batch(tokenizer):
    ended = GLMMultipleChoiceCollator(tokenizer, end_token=True)(CHOICES)
    features = []
    for example in CHOICES:
        answers = tokenizer(example["choices"], add_special_tokens=False).input_ids
        features.append(
            {
                "context": tokenizer(example["text"]).input_ids,
                "answers": [[*answer, tokenizer.eop_token_id] for answer in answers],
                "label": example["label"],
            }
        )
    by_ids = GLMMultipleChoiceCollator(tokenizer)(features)
    assert all(torch.equal(ended[name], by_ids[name]) for name in ended)


@torch.no_grad()
def test_what_choices_begin_with_is_read_and_not_scored(tokenizer, chooser):
    context, begun, ends = tokenizer("a [MASK]").input_ids, [40, 41], [[60, 61], [62]]
    collate = GLMMultipleChoiceCollator(tokenizer)
    scores = chooser(**collate([{"context": context, "begun": begun, "answers": ends}])).logits[0]
    whole = [{"context": context, "answers": [begun, *([*begun, *end] for end in ends)]}]
    of_start, *of_all = chooser(**collate(whole)).logits[0]
    torch.testing.assert_close(scores, torch.stack(of_all) - of_start, atol=1e-4, rtol=0)


@torch.no_grad()
def test_scores_by_length(tokenizer, chooser, expected):
    chooser.config.choice_length_penalty = 0.7
    batch = GLMMultipleChoiceCollator(tokenizer)(CHOICES)
    lengths = (batch.choice_ids != -100).sum(-1)
    by_length = torch.where(lengths > 0, expected / lengths.clamp(min=1) ** 0.7, -torch.inf)
    torch.testing.assert_close(chooser(**batch).logits, by_length, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "feature, message",
    [
        ({"text": "no blank", "choices": ["a"]}, "Feature 1: A text has no mask"),
        ({"text": "a [MASK]", "choices": []}, "Feature 1: A text has no choices"),
        ({"text": "a [MASK]", "choices": ["a"], "label": 1}, "1 choices and the label 1"),
        ({"text": "a [MASK]", "choices": ["a", "b"], "label": 0.5}, "2 choices and the label 0.5"),
        ({"text": "a [MASK]", "choices": "ab"}, "Feature 1: The choices of a text are no list"),
        ({"text": "a [MASK]", "choices": ["a", 2]}, "Feature 1: The choices of a text are no list"),
        ({"text": "a [MASK]", "choices": ["<|startofpiece|>"]}, "A choice holds <.startofpiece"),
        ({"text": "a [MASK]", "target": "a"}, 'give it "text" and "choices"'),
        ({"context": [5], "answers": [[5]]}, "Feature 1: A text has no mask"),
        ({"context": [5], "answers": [[]]}, "Feature 1: A text has no choices or an empty one"),
    ],
)
def test_choices_of_which_no_right_batch_can_be_made(tokenizer, feature, message):
    with pytest.raises(ValueError, match=message):
        GLMMultipleChoiceCollator(tokenizer)([feature])


# --- A row for each choice ------------------------------------------------------------------------


def rows_of(tokenizer, example: dict) -> dict:
    """Features as one makes them for the library's collator: text, start, choice."""
    rows = []
    for choice in example["choices"]:
        said = tokenizer(choice, add_special_tokens=False).input_ids
        rows.append([*tokenizer(example["text"]).input_ids, tokenizer.sop_token_id, *said])
    return {"input_ids": rows, "attention_mask": [[1] * len(row) for row in rows], "label": 1}


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
def test_rows_tell_their_choices_themselves(made_repository, chooser, expected, side):
    tokenizer = GLMTokenizerFast.from_pretrained(made_repository, padding_side=side)
    collate = DataCollatorForMultipleChoice(tokenizer)
    two = [{**example, "choices": example["choices"][:2]} for example in CHOICES]
    batch = collate([rows_of(tokenizer, example) for example in two])
    assert batch["input_ids"].shape[:2] == (2, 2)
    output = chooser(**batch)
    torch.testing.assert_close(output.logits, expected[:, :2], atol=1e-4, rtol=0)
    assert output.loss.isfinite()


def test_inputs_that_tell_no_choices(tiny_model):
    model = tiny_model(GLMForMultipleChoice)
    model.glm.forward = None  # no work is done
    rows = torch.tensor([[[1, MASK, EOS, SOP, 60], [1, MASK, EOS, EOS, EOS]]])
    with pytest.raises(ValueError, match=r"A row has no <\|startofpiece\|>: put it"):
        model(rows)
    with pytest.raises(ValueError, match="need choice_ids of the same shape"):
        model(rows, choice_ids=rows[..., 1:])
    with pytest.raises(ValueError, match="need choice_ids and choice_indices"):
        model(rows[0])
    with pytest.raises(ValueError, match="with a row for each of the 2 texts"):
        model(rows[0], choice_ids=rows, choice_indices=rows)
    with pytest.raises(ValueError, match="inputs_embeds do not tell what is said"):
        model(inputs_embeds=torch.zeros(1, 2, 5, 32))


# --- The pooled head ------------------------------------------------------------------------------


def test_pooled_rows_of_choices(tokenizer, made_repository):
    features = [
        {"text": "Ng is at", "choices": ["Stanford", "Beijing", "the dog"], "label": 2},
        {"text": "Beijing", "choices": ["is", "was located"], "label": 0},
    ]
    batch = GLMPooledChoiceCollator(tokenizer, pad_to_multiple_of=8)(features)
    assert batch.input_ids.shape[:2] == (2, 3) and batch.input_ids.shape[2] % 8 == 0
    pair = tokenizer("Beijing", "was located").input_ids
    assert batch.input_ids[1, 1][batch.attention_mask[1, 1].bool()].tolist() == pair
    assert batch.attention_mask[1, 2].sum() == 0, "the second text has two choices"
    ids = [tokenizer([f["text"]] * len(f["choices"]), f["choices"]).input_ids for f in features]
    labels = [f["label"] for f in features]
    by_ids = [{"input_ids": i, "label": n} for i, n in zip(ids, labels, strict=True)]
    again = GLMPooledChoiceCollator(tokenizer, pad_to_multiple_of=8)(by_ids)
    assert all(torch.equal(batch[name], again[name]) for name in batch)


@pytest.mark.parametrize("pool_token", ["cls", "pad", "start"])
def test_a_pooled_head_scores_each_choice_alone(tiny_model, pool_token):
    model = tiny_model(GLMForSequenceClassification, num_labels=1, pool_token=pool_token)
    rows = [[[1, 17, 5, SOP], [1, 18, SOP], [1, 3, 4, 5, 6, SOP]], [[1, 17, SOP], [1, 20, 21, SOP]]]
    expected = torch.full((2, 3), -torch.inf)
    ids = torch.full((2, 3, 7), EOS)
    mask = torch.zeros(2, 3, 7, dtype=torch.long)
    for text, choices in enumerate(rows):
        for number, row in enumerate(choices):
            ids[text, number, -len(row) :] = torch.tensor(row)
            mask[text, number, -len(row) :] = 1
            expected[text, number] = model(torch.tensor([row])).logits[0, 0]
    output = model(ids, mask, labels=torch.tensor([2, 0]))
    torch.testing.assert_close(output.logits, expected, atol=1e-5, rtol=0)
    loss = torch.nn.functional.cross_entropy(expected, torch.tensor([2, 0]))
    torch.testing.assert_close(output.loss, loss, atol=1e-5, rtol=0)
    output.loss.backward()
    assert all(weight.grad.isfinite().all() for weight in model.multichoice_head.parameters())


def test_a_head_of_several_classes_scores_no_choices(tiny_model):
    model = tiny_model(GLMForSequenceClassification, num_labels=3)
    with pytest.raises(ValueError, match="num_labels is 3; load the model with num_labels=1"):
        model(torch.ones(1, 2, 5, dtype=torch.long))


@pytest.mark.parametrize(
    "feature, message",
    [
        ({"text": "a", "choices": []}, "A text has no choices"),
        ({"input_ids": [[5], []]}, '"input_ids" is a list with the ids of each choice'),
        ({"input_ids": [5, 6]}, '"input_ids" is a list with the ids of each choice'),
        ({"input_ids": [[5]], "label": 1}, "1 choices and the label 1"),
        ({"text": "a"}, 'give it "text" and "choices", or "input_ids"'),
    ],
)
def test_pooled_choices_of_which_no_right_batch_can_be_made(tokenizer, feature, message):
    with pytest.raises(ValueError, match=message):
        GLMPooledChoiceCollator(tokenizer)([feature])


# --- The library's Trainer ------------------------------------------------------------------------


def train(model, data: list[dict], collate, folder, steps: int = 60):
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=8,
        max_steps=steps,
        learning_rate=3e-3,
        lr_scheduler_type="constant",
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        remove_unused_columns=False,
    )
    trainer = Trainer(
        model, arguments, train_dataset=Dataset.from_list(data), data_collator=collate
    )
    trainer.train()
    return trainer


def made_task(tokenizer, answers: list[list[int]]) -> list[dict]:
    """The answer depends on one token of the text: 16 examples, half of each label."""
    mask, eos = tokenizer.mask_token_id, tokenizer.eos_token_id
    examples = []
    for number in range(16):
        context = [1, 40 + number, 30 + number % 2, 70 + number % 5, mask, eos]
        examples.append({"context": context, "answers": answers, "label": number % 2})
    return examples


def accuracy(trainer, data: list[dict]) -> float:
    predicted = trainer.predict(Dataset.from_list(data)).predictions.argmax(-1)
    return sum(p == example["label"] for p, example in zip(predicted, data, strict=True)) / 16


@pytest.fixture
def fresh(made_repository):
    """`fresh(cls, **config)`: a network that knows nothing yet."""

    def build(cls, **options):
        torch.manual_seed(0)
        return cls(GLMConfig.from_pretrained(made_repository, **options))

    return build


@pytest.mark.parametrize("answers", [[[60], [61]], [[60, 62], [61, 62, 63]]])
@pytest.mark.parametrize("form", ["packed", "rows"])
def test_a_chooser_learns(tokenizer, fresh, tmp_path, answers, form):
    data = made_task(tokenizer, answers)
    collate = GLMMultipleChoiceCollator(tokenizer)
    if form == "rows":
        collate = DataCollatorForMultipleChoice(tokenizer)
        start = [tokenizer.sop_token_id]
        for example in data:
            context = example.pop("context")
            example["input_ids"] = [context + start + end for end in example.pop("answers")]
    trainer = train(fresh(GLMForMultipleChoice), data, collate, tmp_path)
    assert accuracy(trainer, data) == 1.0


def test_a_pooled_head_learns_choices(tokenizer, fresh, tmp_path):
    eos = tokenizer.eos_token_id
    data = []
    for number in range(16):
        rows = [[1, 40 + number, 30, eos], [1, 40 + number, 31, eos]]
        data.append({"input_ids": rows[:: -1 if number % 2 else 1], "label": number % 2})
    model = fresh(GLMForSequenceClassification, num_labels=1)
    trainer = train(model, data, GLMPooledChoiceCollator(tokenizer), tmp_path)
    assert accuracy(trainer, data) == 1.0


def test_a_classifier_learns_and_answers_in_the_pipeline(made_repository, tokenizer, tmp_path):
    torch.manual_seed(0)
    texts = [f"{word} is located in {place}" for word in ("Ng", "fox") for place in SENTENCES]
    data = [{**tokenizer(text), "label": int(text.startswith("fox"))} for text in texts]
    model = GLMForSequenceClassification.from_pretrained(
        made_repository, id2label={0: "person", 1: "animal"}, label2id={"person": 0, "animal": 1}
    )
    trainer = train(model, data, DataCollatorWithPadding(tokenizer), tmp_path / "run")
    trainer.save_model(tmp_path / "saved")
    tokenizer.save_pretrained(tmp_path / "saved")
    classify = pipeline(
        "text-classification", model=str(tmp_path / "saved"), trust_remote_code=True
    )
    said = [answer["label"] for answer in classify(texts, batch_size=4)]
    assert said == ["animal" if text.startswith("fox") else "person" for text in texts]


SENTENCES = ["Beijing", "Stanford, formerly", "the University", "General Language Model"]


# --- Names of labels ------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 5])
def test_names_that_nobody_gave_are_not_written(tmp_path, count):
    model = GLMForSequenceClassification(tiny_config(num_labels=count))
    model.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert "id2label" not in written and "label2id" not in written
    again = GLMForSequenceClassification.from_pretrained(tmp_path)
    assert again.multichoice_head.out_features == count
    assert again.config.id2label == {n: f"LABEL_{n}" for n in range(count)}
    other = GLMForSequenceClassification.from_pretrained(
        tmp_path, num_labels=count + 1, ignore_mismatched_sizes=True
    )
    assert other.config.num_labels == other.multichoice_head.out_features == count + 1


def test_names_that_somebody_gave_are_written(tmp_path):
    names = {0: "no", 1: "yes", 2: "maybe"}
    model = GLMForSequenceClassification(
        tiny_config(id2label=names, label2id={name: id for id, name in names.items()})
    )
    model.save_pretrained(tmp_path)
    assert GLMForSequenceClassification.from_pretrained(tmp_path).config.id2label == names


def test_a_converted_repository_names_no_labels(made_repository):
    assert "id2label" not in json.loads((made_repository / "config.json").read_text())
