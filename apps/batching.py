"""Texts that wait at the same time, filled in batches by the one thread that owns the model.

Nothing is waited for: a lone text is filled at once, and those that come meanwhile are the next
batch. Texts share a batch if their parameters are the same and their answers do not depend on what
else is in it.
"""

import json
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import torch
from transformers import StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from ..pipeline_glm import GLMText2TextGenerationPipeline

# It looks at all ids of a row, and so at the padding that a batch adds.
SEES_PADDING = "repetition_penalty"
# It takes the longest of all, and memory for each text.
SEARCHES = "alternatives"


class Full(Exception):
    """Too many texts wait already."""


class Closed(Exception):
    """No more texts are taken."""


class Answer(NamedTuple):
    """What is known of a text that was filled.

    Attributes:
        sequences: what the pipeline says, one for each returned sequence, with
            `generated_token_ids`.
        prompt_tokens: tokens of the context.
    """

    sequences: list[dict[str, Any]]
    prompt_tokens: int


@dataclass(eq=False)
class Question:
    """A text that is to be filled.

    Attributes:
        text: with blanks, or one that is continued.
        parameters: of the pipeline's call.
        seed: of its random choices, which are then the same each time.
        streamer: gets the tokens as they are written.
        answer: an `Answer`, or the error that there was.
        is_left: nobody waits for the answer any more.
    """

    text: str
    parameters: dict[str, Any]
    seed: int | None = None
    streamer: BaseStreamer | None = None
    answer: Future = field(default_factory=Future)
    is_left: bool = False

    @cached_property
    def kind(self) -> object:
        """What questions that may share a batch have in common; itself, if it is to be alone."""
        is_alone = self.seed is not None or self.streamer is not None
        if is_alone or any(name in self.parameters for name in (SEES_PADDING, SEARCHES)):
            return self
        return json.dumps(self.parameters, sort_keys=True)  # in which true is not 1

    def leave(self) -> None:
        """Say that nobody waits for the answer; whoever has it already may do so too."""
        self.is_left = True
        self.answer.cancel()


class AllLeft(StoppingCriteria):
    """Ends a generation for which nobody waits any more."""

    def __init__(self, batch: list[Question]):
        self.batch = batch

    def __call__(self, input_ids: torch.Tensor, scores, **kwargs) -> torch.Tensor:
        all_left = all(question.is_left for question in self.batch)
        return torch.full(input_ids.shape[:1], all_left, device=input_ids.device)  # (B,)


@contextmanager
def seeded(seed: int | None) -> Iterator[None]:
    """Random choices by the seed, on whatever device; those that follow are of no seed."""
    if seed is None:
        yield
        return
    torch.manual_seed(seed)
    try:
        yield
    finally:
        torch.seed()


class Batches:
    """The queue, and the thread that fills what is in it.

    Args:
        fill: the pipeline; from now on it belongs to the thread.
        batch_size: texts of a batch, at most.
        queue: while so many texts wait, no more are taken.

    Attributes:
        waiting: what no batch has taken yet, oldest first.
        batches, texts: how many have been filled.
    """

    def __init__(self, fill: GLMText2TextGenerationPipeline, batch_size: int, queue: int):
        self.fill = fill
        self.batch_size = batch_size
        self.queue = queue
        self.waiting: list[Question] = []
        self.batches = 0
        self.texts = 0
        self.is_open = True
        self.changed = threading.Condition()
        self.thread = threading.Thread(target=self._work, name="batches", daemon=True)
        self.thread.start()

    def ask(self, questions: list[Question]) -> None:
        """Put questions, all or none, into the queue.

        Raises:
            Full: if too many wait.
            Closed: after `close`.
        """
        with self.changed:
            if not self.is_open:
                raise Closed("The server is stopping; ask another one.")
            self.waiting = [asked for asked in self.waiting if not asked.is_left]
            if len(self.waiting) >= self.queue:
                raise Full(f"{len(self.waiting)} texts wait already; try again in a while.")
            self.waiting += questions
            self.changed.notify()

    def close(self) -> None:
        """Take nothing new; what waits is still filled."""
        with self.changed:
            self.is_open = False
            self.changed.notify()

    def _work(self) -> None:
        while batch := self._take():
            batch = [asked for asked in batch if asked.answer.set_running_or_notify_cancel()]
            if batch:
                self._answer(batch)

    def _take(self) -> list[Question]:
        """The oldest question and those that go with it; none when all is done for good."""
        with self.changed:
            self.changed.wait_for(lambda: self.waiting or not self.is_open)
            if not self.waiting:
                return []
            kind = self.waiting[0].kind
            batch = [asked for asked in self.waiting if asked.kind == kind][: self.batch_size]
            self.waiting = [asked for asked in self.waiting if asked not in batch]
            return batch

    def _answer(self, batch: list[Question]) -> None:
        try:
            answers = self._fill(batch)
        except Exception as error:
            if len(batch) == 1:
                batch[0].answer.set_exception(error)
            else:  # one of them is at fault, and the others shall not know
                for question in batch:
                    if not question.is_left:
                        self._answer([question])
            return
        self.batches += 1
        self.texts += len(batch)
        for question, answer in zip(batch, answers, strict=True):
            question.answer.set_result(answer)

    def _fill(self, batch: list[Question]) -> list[Answer]:
        first = batch[0]
        options: dict[str, Any] = dict(first.parameters)
        options["stopping_criteria"] = StoppingCriteriaList([AllLeft(batch)])
        if first.streamer is not None:
            options["streamer"] = first.streamer
        with seeded(first.seed):
            filled = self.fill(
                [question.text for question in batch],
                batch_size=len(batch),
                return_tensors=True,
                **options,
            )
        answers = []
        for question, sequences in zip(batch, filled, strict=True):
            prompt = self.fill.preprocess(question.text, options.get("truncation"))
            # The pipeline leaves the list out where each text has one sequence.
            sequences = sequences if isinstance(sequences, list) else [sequences]
            answers.append(Answer(sequences, prompt["input_ids"].shape[1]))
        return answers
