"""Steps of the Trainer: batches that are accumulated teach what one large batch does."""

import pytest
import torch
from conftest import EOP, EOS, MASK, SOP
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments

from glm_transformers import (
    GLMForConditionalGeneration,
    GLMForMultipleChoice,
    GLMForSequenceClassification,
)

IGNORED = -100


class Rows(Dataset):
    """Four examples of equal shapes; the answers have one to four tokens."""

    def __init__(self, cls):
        self.cls = cls

    def __len__(self) -> int:
        return 4

    def __getitem__(self, number: int) -> dict:
        context = [1, 17 + number, MASK, 23, EOS]
        answer = list(range(60, 61 + number))
        missing = 4 - number
        row = [*context, SOP, *answer] + [EOS] * (missing - 1)
        mask = [1] * (6 + len(answer)) + [0] * (missing - 1)
        said = [IGNORED] * 5 + [*answer, EOP] + [IGNORED] * (missing - 1)
        tensors = {"input_ids": torch.tensor(row), "attention_mask": torch.tensor(mask)}
        if self.cls is GLMForConditionalGeneration:
            return {**tensors, "labels": torch.tensor(said)}
        if self.cls is GLMForSequenceClassification:
            return {**tensors, "labels": torch.tensor(number % 2)}
        two = {name: tensor.expand(2, -1) for name, tensor in tensors.items()}  # (C, T)
        other = [IGNORED if id == IGNORED else id + 5 for id in said]
        return {
            **two,
            "choice_ids": torch.tensor([said, other]),
            "labels": torch.tensor(number % 2),
        }


@pytest.mark.parametrize(
    "cls", [GLMForConditionalGeneration, GLMForMultipleChoice, GLMForSequenceClassification]
)
def test_accumulated_batches_equal_a_large_one(tiny_model, tmp_path, cls):
    trained = []
    for size, steps in ((4, 1), (1, 4)):
        model = tiny_model(cls, **dict.fromkeys(DROPOUTS, 0.0))
        arguments = TrainingArguments(
            output_dir=str(tmp_path / str(size)),
            per_device_train_batch_size=size,
            gradient_accumulation_steps=steps,
            max_steps=1,
            learning_rate=0.1,
            optim="sgd",
            lr_scheduler_type="constant",
            max_grad_norm=0.0,
            weight_decay=0.0,
            use_cpu=True,
            report_to=[],
            save_strategy="no",
        )
        Trainer(model, arguments, train_dataset=Rows(cls)).train()
        trained.append(dict(model.named_parameters()))
    for name, parameter in trained[0].items():
        torch.testing.assert_close(parameter, trained[1][name], atol=1e-5, rtol=1e-4, msg=name)


DROPOUTS = (
    "embedding_dropout_prob",
    "attention_dropout_prob",
    "output_dropout_prob",
    "classifier_dropout",
)
