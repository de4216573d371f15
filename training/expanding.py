"""Out of the examples of a benchmark those that the original learns from.

Mirrored copies, an example for each answer, masked words, windows of long documents.
"""

import random
from collections.abc import Iterable
from itertools import groupby

from tqdm import tqdm

from ..tokenization_glm import GLMTokenizerFast
from .official import NO_ANSWER
from .templates import PLACE, Example

# A question of ReCoRD and WSC is learnt with so many candidates at most, the right one among them
# (the original's max_train_candidates_per_question, whose seed this is too).
MOST_CANDIDATES = 10
CANDIDATES_SEED = 42

OTHER_CHOICE = {"0": 1, "1": 0}


def mirror_copa(examples: list[Example]) -> list[Example]:
    """COPA is learnt from the examples, and then from all with their choices exchanged."""
    mirrored = [
        {
            **example,
            "choice1": example["choice2"],
            "choice2": example["choice1"],
            "label": OTHER_CHOICE.get(str(example["label"]), example["label"]),
        }
        for example in examples
    ]
    return [*examples, *mirrored]


def record_answers(examples: list[Example]) -> list[Example]:
    """ReCoRD: an example for each right answer, which is the first of at most 10 candidates."""
    drawing = random.Random(CANDIDATES_SEED)
    learnt = []
    for example in examples:
        right = example["answers"]
        for answer in right:
            wrong = [candidate for candidate in example["candidates"] if candidate not in right]
            if len(wrong) > MOST_CANDIDATES - 1:
                drawing.shuffle(wrong)
            candidates = [answer, *wrong[: MOST_CANDIDATES - 1]]
            learnt.append({**example, "candidates": candidates, "answers": [answer], "label": "0"})
    return learnt


def wsc_positives(examples: list[Example]) -> list[Example]:
    """WSC is learnt where the span is right; many candidates are shared out among copies."""
    learnt = []
    most = MOST_CANDIDATES - 1
    for example in examples:
        label = str(example["label"])
        if label in ("False", "0"):
            continue
        if label not in ("True", "1"):
            where = example.get(PLACE, "An example")
            raise ValueError(
                f"{where} has the label {example['label']!r}; to be learnt, WSC needs True or "
                "False."
            )
        candidates = example.get("candidates") or []
        if len(candidates) <= most:
            learnt.append(example)
            continue
        for start in range(0, len(candidates), most):
            share = candidates[start : start + most]
            share += candidates[: most - len(share)]  # the last share is filled up from the first
            learnt.append({**example, "candidates": share})
    return learnt


def one_per_answer(examples: list[Example]) -> list[Example]:
    """CMRC is learnt from each of the answers of a question."""
    return [{**example, "answer": answer} for example in examples for answer in example["answers"]]


# The original's masked share of words is an option without a default; this is of its golden data.
MASKED_WORDS = 0.3


def mask_words(text: str, masked: Iterable[int]) -> Example:
    """A text with blanks for some of its words, neighbours in one blank, and what they said."""
    words = text.split()
    chosen = set(masked)
    source, answers = [], []
    for is_masked, group in groupby(range(len(words)), key=lambda place: place in chosen):
        run = [words[place] for place in group]
        source += ["[MASK]"] if is_masked else run
        answers += [" ".join(run)] if is_masked else []
    return {"source": " ".join(source), "answers": answers}


def mask_at_random(
    examples: list[Example],
    share: float = MASKED_WORDS,
    seed: int = 0,
) -> list[Example]:
    """The blank task is learnt from whole texts, some words of which are masked.

    The words are drawn once; the original draws them anew each time it reads a text.
    """
    drawing = random.Random(seed)
    learnt = []
    for example in examples:
        words = len(example["source"].split())
        masked = drawing.sample(range(words), int(words * share))
        if masked:
            learnt.append({**example, **mask_words(example["source"], masked)})
    return learnt


# --- Long documents -------------------------------------------------------------------------------


def slice_documents(
    examples: Iterable[Example],
    tokenizer: GLMTokenizerFast,
    max_length: int,
    unanswered: bool = True,
) -> list[Example]:
    """SQuAD: overlapping windows of a document, each with the question (FACTS section 8).

    Args:
        max_length: tokens of the context with the question; windows begin at each half of it.
        unanswered: keep windows that do not hold the answer; their answer is N/A.

    Raises:
        ValueError: for a question that leaves no room.
    """
    windows = []
    for number, example in enumerate(tqdm(examples, desc="Slicing", leave=False)):
        example = {"idx": number, **example}  # which windows are of one question
        ids = tokenizer(example["source"], add_special_tokens=False).input_ids
        question = tokenizer(" " + example["question"], add_special_tokens=False).input_ids
        answer = tokenizer(example["answer"], add_special_tokens=False).input_ids
        said = tokenizer.decode(answer)
        length = max_length - 3 - len(question)  # beside [CLS], the mask and the full stop
        if length < 1:
            raise ValueError(
                f"A question has {len(question)} tokens, which leaves no room for a text within "
                f"{max_length}; allow more."
            )
        for start in range(0, len(ids), max_length // 2):
            window = ids[start : start + length]
            text = tokenizer.decode(window)
            if said in text and answer:
                windows.append({**example, "source": text})
            elif unanswered:
                windows.append({**example, "source": text, "answer": NO_ANSWER})
            else:
                continue
            if len(window) < length:
                break
    return windows


def slice_answered(
    examples: Iterable[Example],
    tokenizer: GLMTokenizerFast,
    max_length: int,
) -> list[Example]:
    """SQuAD 1.1: the windows that hold the answer."""
    return slice_documents(examples, tokenizer, max_length, unanswered=False)
