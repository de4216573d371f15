"""What a fine-tuned model answers to the examples of a task, and the files of SuperGLUE.

The choices of a task are scored as the original scores them (FACTS section 6): those of one token
by their logits behind one context, longer ones with their end, each behind a context that was
shortened for it alone.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ..modeling_glm import GLMForConditionalGeneration, GLMForSequenceClassification
from ..tokenization_glm import GLMTokenizerFast
from ..training.tasks import (
    Task,
    choose_pattern,
    encode,
    encode_apart,
    encode_pooled,
    prepared,
    texts_of_answers,
)
from ..training.templates import Example
from .batches import Finished, in_order, run_in_batches
from .scoring import Feature, score_packed

# Files of the leaderboard, by the names of the tasks.
SUBMISSIONS = {
    "axb": "AX-b",
    "axg": "AX-g",
    "boolq": "BoolQ",
    "cb": "CB",
    "copa": "COPA",
    "multirc": "MultiRC",
    "record": "ReCoRD",
    "rte": "RTE",
    "wic": "WiC",
    "wsc": "WSC",
}
PLACES_OF_ANSWERS = ("passage_idx", "question_idx", "answer_idx")  # of MultiRC, in its examples


def score_examples(
    model: GLMForConditionalGeneration,
    tokenizer: GLMTokenizerFast,
    task: Task,
    examples: Sequence[Example],
    *,
    pattern: int | None = None,
    max_length: int | None = None,
    batch_size: int = 16,
) -> list[list[float]]:
    """The score of each choice of each example; the best is the prediction.

    Args:
        task: of the kind "choices".
        pattern, max_length: of `encode`; by default the task's.
        batch_size: contexts of a forward pass.

    Raises:
        ValueError: for a task of another kind, and for examples that cannot be encoded.
    """
    if task.kind != "choices":
        raise ValueError(f"The task {task.name} has no choices to score; write its answers.")
    asked = [features_of(task, one, tokenizer, pattern, max_length) for one in examples]
    return score_features(model, tokenizer, task, asked, batch_size)


def features_of(
    task: Task,
    example: Example,
    tokenizer: GLMTokenizerFast,
    pattern: int | None = None,
    max_length: int | None = None,
) -> list[Feature]:
    """The choices of an example as they are scored: all behind one context, or one behind each."""
    if task.one_token:
        encoded = [encode(task, example, tokenizer, pattern, max_length)]
    else:
        encoded = encode_apart(task, example, tokenizer, pattern, max_length)
    return [{"context": one.context, "answers": one.answers} for one in encoded]


def score_features(
    model: GLMForConditionalGeneration,
    tokenizer: GLMTokenizerFast,
    task: Task,
    asked: Sequence[list[Feature]],
    batch_size: int = 16,
    finished: Finished | None = None,
) -> list[list[float]]:
    """As `score_examples`, of what `features_of` makes of each example.

    Args:
        finished: of `run_in_batches`.
    """
    scores = iter(
        score_packed(
            model,
            tokenizer,
            [feature for features in asked for feature in features],
            normalised=not task.one_token,
            batch_size=batch_size,
            name=task.name,
            finished=finished,
        )
    )
    return [[score for _ in features for score in next(scores)] for features in asked]


def contexts_of(
    task: Task,
    example: Example,
    tokenizer: GLMTokenizerFast,
    max_length: int | None = None,
) -> list[list[int]]:
    """What the pooled classifier reads of an example: a row, or one for each choice.

    Args:
        max_length: of `encode_pooled`; by default the task's.

    Raises:
        ValueError: for a task without a pattern for the classifier, and for an example that cannot
            be encoded.
    """
    return [row.context for row in encode_pooled(task, example, tokenizer, max_length)]


def classify_contexts(
    model: GLMForSequenceClassification,
    tokenizer: GLMTokenizerFast,
    task: Task,
    asked: Sequence[list[list[int]]],
    batch_size: int = 16,
    finished: Finished | None = None,
) -> list[list[float]]:
    """What the pooled classifier gives each class, or each choice, of each example.

    Args:
        asked: what `contexts_of` makes of each example.
        batch_size: rows of a forward pass; each choice has its own.
        finished: of `run_in_batches`.
    """
    contexts = [context for of_example in asked for context in of_example]

    def run(part: list[list[int]]) -> list[list[float]]:
        inputs: Any = tokenizer.pad({"input_ids": part}, return_tensors="pt").to(model.device)
        return model(**inputs).logits.tolist()  # (B, classes), or (B, 1) of choices

    lengths = [len(context) for context in contexts]
    come = run_in_batches(model, run, contexts, lengths, batch_size, task.name, finished)
    logits = iter(in_order(come))
    return [[score for _ in of_example for score in next(logits)] for of_example in asked]


def write_answers(
    model: GLMForConditionalGeneration,
    tokenizer: GLMTokenizerFast,
    task: Task,
    examples: Sequence[Example],
    *,
    pattern: int | None = None,
    max_length: int | None = None,
    batch_size: int = 16,
    **generation: Any,
) -> list[list[str]]:
    """The answers that the model writes to the blanks of each example.

    Args:
        task: of the kind "answers".
        pattern, max_length: of `encode`; by default the task's.
        batch_size: examples of a call.
        generation: of `generate`; what is not given is as the repository's generation_config.json
            has it, and the length of the answers as the task has it.

    Raises:
        ValueError: for a task of another kind, and for examples that cannot be encoded.
    """
    if task.kind != "answers":
        raise ValueError(f"The task {task.name} has choices and no answers to write; score them.")
    if task.max_target_length is not None:
        generation.setdefault("max_new_tokens", task.max_target_length)
    contexts = [
        encode(task, one, tokenizer, pattern, max_length, with_answers=False).context
        for one in examples
    ]
    return answer_contexts(model, tokenizer, contexts, batch_size, **generation)


def answer_contexts(
    model: GLMForConditionalGeneration,
    tokenizer: GLMTokenizerFast,
    contexts: Sequence[list[int]],
    batch_size: int = 16,
    name: str = "Writing",
    finished: Finished | None = None,
    **generation: Any,
) -> list[list[str]]:
    """The answers to the blanks of contexts that are ids already.

    Args:
        batch_size, name, finished: of `run_in_batches`.
        generation: of `generate`.
    """

    def run(part: list[list[int]]) -> list[list[str]]:
        inputs: Any = tokenizer.pad(
            {"input_ids": part},
            padding_side="left",
            return_tensors="pt",
        ).to(model.device)
        return tokenizer.decode_pieces(model.generate(**inputs, **generation))

    lengths = [len(context) for context in contexts]
    return in_order(run_in_batches(model, run, contexts, lengths, batch_size, name, finished))


# --- Files of the benchmark -----------------------------------------------------------------------


def submission_lines(
    task: Task,
    examples: Sequence[Example],
    chosen: Sequence[int],
    pattern: int | None = None,
) -> list[dict[str, Any]]:
    """The lines of SuperGLUE's file for a task: `{"idx": ..., "label": ...}`.

    The choices of MultiRC are gathered by paragraph and question, and ReCoRD's label is the text of
    the best candidate.

    Args:
        examples: as `read_examples` makes them of the benchmark's files or the Hub's rows.
        chosen: the number of the choice of each example.
        pattern: number of the pattern with which they were chosen.

    Raises:
        ValueError: for a task that SuperGLUE has not, and for examples without their place in it.
    """
    if task.name not in SUBMISSIONS:
        names = ", ".join(SUBMISSIONS)
        raise ValueError(f"SuperGLUE has no task {task.name}; choose one of {names}.")
    needed = PLACES_OF_ANSWERS if task.name == "multirc" else ("idx",)
    for number, example in enumerate(examples, start=1):
        missing = [name for name in needed if example.get(name) is None]
        if missing:
            raise ValueError(
                f"Example {number} has no {missing[0]}, by which the benchmark finds it."
            )
    pairs = list(zip(examples, chosen, strict=True))
    if task.name == "multirc":
        return multirc_lines(pairs)
    lines = []
    for example, choice in pairs:
        if task.name == "record":
            texts = texts_of_answers(choose_pattern(task, pattern), prepared(task, example))
            lines.append({"idx": example["idx"], "label": texts[choice].strip()})
        elif task.name == "wsc":  # the first choice is the span that is asked for
            lines.append({"idx": example["idx"], "label": str(choice == 0)})
        else:
            lines.append({"idx": example["idx"], "label": task.labels[choice][0]})
    return lines


def multirc_lines(pairs: Iterable[tuple[Example, int]]) -> list[dict[str, Any]]:
    """A line for each paragraph, with its questions and the label of each of their answers."""
    paragraphs: dict[int, dict[int, list[dict[str, int]]]] = {}
    for example, choice in pairs:
        paragraph, question, answer = (example[name] for name in PLACES_OF_ANSWERS)
        questions = paragraphs.setdefault(paragraph, {})
        answers = questions.setdefault(question, [])
        answers.append({"idx": answer, "label": choice})
    return [
        {
            "idx": paragraph,
            "passage": {
                "questions": [
                    {"idx": question, "answers": answers} for question, answers in questions.items()
                ]
            },
        }
        for paragraph, questions in paragraphs.items()
    ]


def write_submission(
    folder: str | Path,
    task: Task,
    examples: Sequence[Example],
    chosen: Sequence[int],
    pattern: int | None = None,
) -> Path:
    """The file of a task under the name that the leaderboard looks for; see `submission_lines`."""
    lines = submission_lines(task, examples, chosen, pattern)
    file = Path(folder) / f"{SUBMISSIONS[task.name]}.jsonl"
    file.write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")
    return file
