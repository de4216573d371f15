"""Learning to choose: the best answer for a blank (cloze), or a class of a pooled classifier.

On `Trainer`. The choices of an example stand behind one context, which is read once for all
(`GLMMultipleChoiceCollator`).

Shapes: B batch, C choices.
"""

import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import DataCollatorWithPadding, TrainingArguments

from ..collation_glm import GLMMultipleChoiceCollator, GLMPooledChoiceCollator
from ..modeling_glm import (
    GLMForMultipleChoice,
    GLMForSequenceClassification,
    GLMPreTrainedModel,
)
from ..tokenization_glm import GLMTokenizerFast
from .metrics import compute_metrics
from .options import Finetuning
from .patterns import Pattern
from .run import RepeatableTrainer
from .tasks import (
    Task,
    choose_pattern,
    encode,
    encode_pooled,
    groups_of,
    number_of_choice,
    prepared,
    texts_of_answers,
)
from .templates import Example


class ChoiceTrainer(RepeatableTrainer):
    """Predicts the number of the choice that wins."""

    @torch.no_grad()
    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        inputs = self._prepare_inputs(inputs)
        with self.compute_loss_context_manager():
            output = model(**inputs)
        chosen = output.logits.argmax(-1)  # (B, C) -> (B,)
        # Of some tasks the right choice is not known, or is none: the metrics have the examples.
        return output.loss, chosen, chosen


class Choices:
    """The recipe of tasks that score answers.

    Args:
        options: with a value wherever the task has a published one.
    """

    # Network and weights are those of `GLMForMultipleChoice`, which loads them too.
    architecture = "GLMForConditionalGeneration"
    auto_class = "AutoModelForMultipleChoice"
    arguments_class = TrainingArguments
    generation: dict[str, Any] | None = None

    def __init__(self, task: Task, options: Finetuning, tokenizer: GLMTokenizerFast):
        self.task = task
        self.options = options
        self.tokenizer = tokenizer
        self.pattern: Pattern = choose_pattern(task, options.pattern)

    def load(self, repository: Path) -> GLMPreTrainedModel:
        return GLMForMultipleChoice.from_pretrained(repository, dtype=torch.float32)

    def encode(self, example: Example) -> dict[str, Any]:
        """Context, answers and label, as `GLMMultipleChoiceCollator` takes them."""
        encoded = encode(
            self.task,
            example,
            self.tokenizer,
            pattern=self.options.pattern,
            max_length=self.options.max_length,
        )
        return {"context": encoded.context, "answers": encoded.answers, "label": encoded.label}

    def collator(self) -> Any:
        return GLMMultipleChoiceCollator(self.tokenizer)

    def trainer(self, examples: Sequence[Example], **others) -> ChoiceTrainer:
        """
        Args:
            examples: those of the validation data.
            others: of `RepeatableTrainer`.
        """
        self.warn_of_lone_choices(examples)

        def measure(output) -> dict[str, float]:
            return self.measure(output.predictions.tolist(), examples)

        return ChoiceTrainer(
            data_collator=self.collator(),
            compute_metrics=measure,
            **others,
        )

    def measure(self, chosen: Sequence[int], examples: Sequence[Example]) -> dict[str, float]:
        """The task's metrics.

        Args:
            chosen: the number of the choice that wins, for each example.
        """
        given: list[Any] = []
        right: list[Any] = []
        for number, example in zip(chosen, examples, strict=True):
            choices = self.choices(example)
            label = number_of_choice(self.task, example, len(choices))
            if self.task.references in example:  # ReCoRD: the text that was chosen is compared
                given.append(choices[number].strip())
                right.append(list(example[self.task.references]))
            elif self.task.no_choice:  # WSC: is it the span that was asked for, or another one
                given.append(number == 0)
                right.append(label == 0)
            else:
                given.append(number)
                right.append(label)
        return compute_metrics(self.task.metrics, given, right, groups_of(self.task, examples))

    def check(self, examples: Sequence[Example]) -> None:
        """Raise a ValueError, before any work, if these examples could not be measured."""
        self.measure([0] * len(examples), examples)

    def warn_of_lone_choices(self, examples: Sequence[Example]) -> None:
        """Warn of validation examples that nothing but their one choice can win."""
        alone = [example for example in examples if len(self.choices(example)) == 1]
        if self.task.no_choice and alone:
            warnings.warn(
                f"{len(alone)} validation examples have one choice alone, which wins in any case: "
                "give them other candidates, or measure with glm evaluate, which asks what the "
                "model would say.",
                stacklevel=2,
            )

    def choices(self, example: Example) -> list[str]:
        return texts_of_answers(self.pattern, prepared(self.task, example))


class Pooled(Choices):
    """The recipe of the pooled classifier: classes, or choices in rows of their own."""

    architecture = "GLMForSequenceClassification"
    auto_class = "AutoModelForSequenceClassification"

    def __init__(self, task: Task, options: Finetuning, tokenizer: GLMTokenizerFast):
        super().__init__(task, options, tokenizer)
        if task.pooled is not None:
            self.pattern = task.pooled
        elif task.labels:  # the classes are known, and the context says all the rest
            self.pattern = replace(self.pattern, answers=())
            self.task = replace(task, pooled=self.pattern)
        else:
            raise ValueError(
                f"The task {task.name} has no pattern for a pooled classifier, only for a model "
                "that fills blanks."
            )
        self.has_classes = not self.pattern.answers
        self.num_labels = len(task.labels) if self.has_classes else 1

    def load(self, repository: Path) -> GLMPreTrainedModel:
        named: dict[str, Any] = {}
        if self.has_classes:
            names = self.class_names
            named["id2label"] = dict(enumerate(names))
            named["label2id"] = {name: number for number, name in enumerate(names)}
        return GLMForSequenceClassification.from_pretrained(
            repository,
            dtype=torch.float32,
            num_labels=self.num_labels,
            **named,
        )

    @property
    def class_names(self) -> list[str]:
        return [str(spellings[0]) for spellings in self.task.labels]

    def encode(self, example: Example) -> dict[str, Any]:
        rows = encode_pooled(
            self.task,
            example,
            self.tokenizer,
            max_length=self.options.max_length,
        )
        contexts = [row.context for row in rows]
        ids = contexts[0] if self.has_classes else contexts
        return {"input_ids": ids, "label": rows[0].label}

    def collator(self) -> Any:
        if self.has_classes:
            return DataCollatorWithPadding(self.tokenizer)
        return GLMPooledChoiceCollator(self.tokenizer)

    def choices(self, example: Example) -> list[str]:
        if self.has_classes:
            return self.class_names
        return super().choices(example)
