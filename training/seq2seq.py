"""Learning to write answers: summaries, questions, what fills the blanks of a text.

On `Seq2SeqTrainer` and `GLMDataCollator`. Validation examples are answered by generation, with the
beam search that was published for the task.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import EvalPrediction, Seq2SeqTrainer, Seq2SeqTrainingArguments

from ..collation_glm import GLMDataCollator
from ..tokenization_glm import GLMTokenizerFast
from .loss import GLMForBlankInfilling
from .metrics import compute_metrics
from .options import Finetuning
from .run import RepeatableTrainer, Run, common_arguments
from .tasks import Example, Task, encode


class AnswerTrainer(RepeatableTrainer, Seq2SeqTrainer):
    """
    Args:
        generation: arguments of `generate` in evaluation.
        others: of `RepeatableTrainer`.
    """

    def __init__(self, generation: dict[str, Any], **others):
        super().__init__(**others)
        # The loss is divided by the targets of all processes and batches of a step.
        self.model_accepts_loss_kwargs = True
        self.generation = generation

    def evaluate(self, *args, **kwargs) -> dict[str, float]:
        return super().evaluate(*args, **{**self.generation, **kwargs})

    def evaluation_loop(self, *args, **kwargs):
        # The library also counts the examples that only fill the last batch of the processes.
        self.gather_function = self.accelerator.gather_for_metrics
        return super().evaluation_loop(*args, **kwargs)


class Answers:
    """A task whose answers are written.

    Args:
        options: with a value for each option that the task has a published one for.
    """

    architecture = "GLMForConditionalGeneration"

    def __init__(self, task: Task, options: Finetuning, tokenizer: GLMTokenizerFast):
        self.task = task
        self.options = options
        self.tokenizer = tokenizer

    def load(self, repository: Path) -> GLMForBlankInfilling:
        model = GLMForBlankInfilling.from_pretrained(repository, dtype=torch.float32)
        model.label_smoothing = self.options.label_smoothing
        return model

    def encode(self, example: Example) -> dict[str, Any]:
        """The ids of a context and of its answers, as `GLMDataCollator` takes them."""
        encoded = encode(
            self.task,
            example,
            self.tokenizer,
            pattern=self.options.pattern,
            max_length=self.options.max_length,
            max_target_length=self.options.max_target_length,
        )
        context = encoded.context
        if self.options.attend_padding:
            context = with_seen_padding(
                context,
                self.options.max_length,
                self.tokenizer.pad_token_id,
            )
        return {"input_ids": context, "labels": encoded.answers}

    def collator(self) -> GLMDataCollator:
        return GLMDataCollator(
            self.tokenizer,
            max_target_length=self.options.max_target_length,
        )


def with_seen_padding(context: list[int], length: int, padding: int) -> list[int]:
    """A context (S,) that ends with padding, which is text like any other to the model.

    So the original pads the sources of its sequence-to-sequence tasks (FACTS section 8).
    """
    return context + [padding] * (length - len(context))
