"""Learning to write answers: summaries, questions, what fills the blanks of a text.

On `Seq2SeqTrainer` and `GLMDataCollator`. Validation examples are answered by generation, with the
beam search that was published for the task.

Shapes: S tokens of the context.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import EvalPrediction, Seq2SeqTrainer, Seq2SeqTrainingArguments

from ..collation_glm import GLMDataCollator
from ..modeling_glm import GLMForConditionalGeneration
from ..tokenization_glm import IGNORED, GLMTokenizerFast
from .metrics import compute_metrics, first_answers
from .options import Finetuning
from .own_tasks import read_task
from .run import RepeatableTrainer
from .tasks import (
    Encoded,
    Settings,
    Task,
    choose_pattern,
    encode,
    groups_of,
    prepared,
    row_to_learn,
    texts_of_answers,
)
from .templates import Example

GREEDY = "greedy"
# Times the longest answer of the data: that of a new text may be longer.
ROOM_FOR_ANSWERS = 2


class AnswerTrainer(RepeatableTrainer, Seq2SeqTrainer):
    """Answers the validation examples by generation.

    Args:
        generation: arguments of `generate` in evaluation.
        label_smoothing: of the loss in training.
        others: of `RepeatableTrainer`.
    """

    model: Any  # with what generation needs, also in an adapter

    def __init__(self, generation: dict[str, Any], label_smoothing: float, **others):
        super().__init__(**others)
        # The loss is divided by the targets of all processes and batches of a step.
        self.model_accepts_loss_kwargs = True
        self.generation = generation
        self.label_smoothing = label_smoothing
        self.max_length = self.model.generation_config.max_length

    def evaluate(self, *args, **kwargs) -> dict[str, float]:
        return super().evaluate(*args, **{**self.generation, **kwargs})

    def evaluation_loop(self, *args, **kwargs):
        # The library also counts what only fills the last batch of several processes.
        self.gather_function = self.accelerator.gather_for_metrics
        return super().evaluation_loop(*args, **kwargs)

    def compute_loss(self, model, inputs, *args, **kwargs):
        if model.training:
            inputs = {**inputs, "label_smoothing": self.label_smoothing}
        return super().compute_loss(model, inputs, *args, **kwargs)

    def prediction_step(self, model, inputs, *args, **kwargs):
        # The library's step leaves its default here, of which its next one warns.
        self.model.generation_config.max_length = self.max_length
        inputs = {**inputs, "skip_logits": True}  # answers are generated
        return super().prediction_step(model, inputs, *args, **kwargs)


class Answers:
    """The recipe of tasks whose answers are written.

    Args:
        options: with a value wherever the task has a published one.
    """

    architecture = "GLMForConditionalGeneration"
    auto_class = "AutoModelForSeq2SeqLM"
    arguments_class = Seq2SeqTrainingArguments

    def __init__(self, task: Task, options: Finetuning, tokenizer: GLMTokenizerFast):
        self.task = task
        self.options = options
        self.tokenizer = tokenizer
        self.pattern = choose_pattern(task, options.pattern)
        self.generation = beam_search(task, options.generation)
        self.generation["max_new_tokens"] = options.max_target_length

    def load(self, repository: Path) -> GLMForConditionalGeneration:
        return GLMForConditionalGeneration.from_pretrained(repository, dtype=torch.float32)

    def encode(self, example: Example) -> dict[str, list[int]]:
        """The row of one example, as `GLMDataCollator` takes it."""
        return row_to_learn(self.encoded(example), self.tokenizer)

    def encoded(self, example: Example, with_answers: bool = True) -> Encoded:
        """The context and the answers of one example, or the context alone."""
        encoded = encode(
            self.task,
            example,
            self.tokenizer,
            pattern=self.options.pattern,
            max_length=self.options.max_length,
            max_target_length=self.options.max_target_length,
            with_answers=with_answers,
        )
        return self.with_seen_padding(encoded) if self.options.attend_padding else encoded

    def with_seen_padding(self, encoded: Encoded) -> Encoded:
        """A context (S,) that ends with padding, which is text like any other to the model.

        So the original pads the sources of these tasks on the right (FACTS section 8).
        """
        assert self.options.max_length is not None  # see finetune.py
        missing = self.options.max_length - len(encoded.context)
        padding = [self.tokenizer.pad_token_id] * missing
        return Encoded(encoded.context + padding, encoded.answers)

    def collator(self) -> GLMDataCollator:
        return GLMDataCollator(self.tokenizer)

    def limit_answers(self, rows: Sequence[dict]) -> None:
        """Settle how long a written answer may be, where no option says it.

        Args:
            rows: of the data.

        Raises:
            ValueError: if the beam search writes longer ones.
        """
        if self.options.max_target_length is None:
            self.generation["max_new_tokens"] = ROOM_FOR_ANSWERS * max(map(count_targets, rows))
        check_search(self.generation)

    def says_nothing(self, row: dict) -> bool:
        """Whether the answers of a row are nothing but their ends."""
        return bool(np.isin(row["labels"], [IGNORED, self.tokenizer.eop_token_id]).all())

    def trainer(self, examples: Sequence[Example], **others) -> AnswerTrainer:
        """
        Args:
            examples: those of the validation data.
            others: of `RepeatableTrainer`.
        """
        others["args"].predict_with_generate = True

        def measure(output: EvalPrediction) -> dict[str, float]:
            return self.measure(self.tokenizer.decode_pieces(output.predictions), examples)

        return AnswerTrainer(
            self.generation,
            self.options.label_smoothing or 0.0,
            data_collator=self.collator(),
            compute_metrics=measure if self.task.metrics else None,
            **others,
        )

    def measure(
        self,
        answers: Sequence[Sequence[str]],
        examples: Sequence[Example],
    ) -> dict[str, float]:
        """The task's metrics.

        Args:
            answers: of each blank of each example.
        """
        given: list[str] = []
        right: list[list[str]] = []
        for pieces, example in zip(answers, examples, strict=True):
            references = self.references(example)
            given += pieces
            right += references
        questions = groups_of(self.task, examples)
        if questions is not None:
            right = list(dict(zip(questions, right, strict=True)).values())
            given = list(first_answers(given, questions).values())
        return compute_metrics(self.task.metrics, given, right)

    def check(self, examples: Sequence[Example]) -> None:
        """Raise a ValueError, before any training, if these examples could not be measured."""
        self.measure([[""] * len(self.references(example)) for example in examples], examples)

    def references(self, example: Example) -> list[list[str]]:
        """For each blank all the texts that are right."""
        if self.task.references in example:
            return [list(example[self.task.references])]
        texts = texts_of_answers(self.pattern, prepared(self.task, example))
        return [[text.strip()] for text in texts]


def count_targets(row: dict) -> int:
    """How many tokens an example's answers have, with their ends."""
    return int(np.not_equal(row["labels"], IGNORED).sum())


def check_search(generation: Mapping[str, Any]) -> None:
    """Raise a ValueError for arguments of `generate` that no answer can obey."""
    least, most = generation.get("min_new_tokens") or 0, generation["max_new_tokens"]
    if least > most:
        raise ValueError(
            f"The beam search writes at least {least} tokens, and an answer may have {most}; pass "
            "--generation greedy, or a larger --max-target-length."
        )


def beam_search(task: Task, name: str | None) -> dict[str, Any]:
    """Arguments of `generate` as they were published for a task.

    Args:
        name: another task whose settings are used, or "greedy".
    """
    if name == GREEDY:
        return {"num_beams": 1}
    settings: Settings = (task if name is None else read_task(name)).settings
    options: dict[str, Any] = {"num_beams": settings.num_beams}
    if settings.num_beams > 1:
        options["length_penalty"] = settings.length_penalty
    if settings.min_length:
        options["min_new_tokens"] = settings.min_length
    if settings.no_repeat_ngram_size:
        options["no_repeat_ngram_size"] = settings.no_repeat_ngram_size
    return options
