"""`glm evaluate --task`: what a fine-tuned repository, or an adapter, reaches on a task.

Examples are asked as `glm finetune` asks those of its validation data, and measured by the task's
metrics, in percent.
"""

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..modeling_glm import GLMForConditionalGeneration, GLMForSequenceClassification
from ..training.cloze import Pooled
from ..training.examples import find_files, name_of_split, read_examples
from ..training.finetune import Recipe, check_options, make_recipe, with_published
from ..training.metrics import first_answers
from ..training.official import NO_ANSWER
from ..training.options import Finetuning
from ..training.own_tasks import read_task
from ..training.repository import load_tokenizer
from ..training.seq2seq import Answers, beam_search, check_search
from ..training.tasks import Task, groups_of, is_labelled
from ..training.templates import Example
from .batches import Finished
from .model import Found, check_device, check_length, find, load_network
from .options import OF_TASK, Evaluation
from .predict import (
    SUBMISSIONS,
    answer_contexts,
    classify_contexts,
    contexts_of,
    features_of,
    score_features,
    submission_lines,
)
from .record import PREDICTIONS, Measure, write_whole
from .rows import Row, score_rows, standard_error
from .scoring import named

# Beam search without what was published for a task.
PLAIN_SEARCH: dict[str, Any] = {
    "num_beams": 1,
    "length_penalty": 1.0,
    "min_new_tokens": None,
    "no_repeat_ngram_size": 0,
}
UNKNOWN = 1  # the number of a choice that is not the only one: of WSC, that it is another span


@dataclass(frozen=True)
class PreparedTask:
    """What is asked of a model, and all that is known before it is loaded.

    examples: as they are asked: of long documents the parts.
    asked: of each example what the model reads: the ids of the context whose blanks it answers, or
        those that `features_of` or `contexts_of` makes.
    is_answered: whether the data tells what is right.
    files: that were read; none of the Hub.
    """

    found: Found
    recipe: Recipe
    examples: list[Example]
    asked: list[Any]
    is_answered: bool
    files: list[Path]


def prepare(options: Evaluation) -> PreparedTask:
    """Read what the options name.

    Raises:
        ValueError: one sentence, if it cannot be asked, measured or written.
    """
    assert options.task is not None and options.data is not None  # see evaluate.py
    check_device(options.device)
    found = find(options.repository)
    task = read_task(options.task)
    if found.is_classifier and task.kind == "answers":
        raise ValueError(
            f"{options.repository} is a classifier, and the answers of {task.name} are written; "
            "give a model that fills blanks."
        )
    recipe = make_recipe(
        task,
        as_finetuned(options, task, found),
        load_tokenizer(found.repository),
    )
    if isinstance(recipe, Pooled):
        check_classes(recipe, found)
    rows = read_examples(
        task,
        options.data,
        options.split,
        options.text_column,
        options.target_column,
    )
    examples = list(rows)[: options.limit]
    if task.slices is not None:
        assert recipe.options.max_length is not None  # see as_finetuned
        examples = task.slices(examples, recipe.tokenizer, recipe.options.max_length)
    is_answered = check_answers(recipe, examples)
    prepared = PreparedTask(
        found,
        recipe,
        examples,
        encode_each(recipe, examples, is_answered),
        is_answered,
        read_files(task, options),
    )
    check_examples(prepared, options)
    return prepared


def as_finetuned(options: Evaluation, task: Task, found: Found) -> Finetuning:
    """What `glm finetune` would be told to ask examples so."""
    length = options.length or task.max_length or found.config.max_sequence_length
    check_length(length, found.config)
    told: dict[str, Any] = {name: getattr(options, name) for name in OF_TASK}
    finetuning = Finetuning(
        task=str(options.task),
        data=str(options.data),
        output="",
        model=options.repository,
        pooled=found.is_classifier,
        max_length=length,
        **told,
    )
    asked = with_published(finetuning, task)
    check_options(asked, task)
    return asked


def read_files(task: Task, options: Evaluation) -> list[Path]:
    """The files that the task and its data are in."""
    data, described = Path(str(options.data)), Path(str(options.task))
    files = find_files(task, data, name_of_split(options.split)) if data.exists() else []
    targets = [file.with_suffix(".target") for file in files if file.suffix == ".source"]
    return [file for file in (described, *files, *targets) if file.is_file()]


# --- What is asked --------------------------------------------------------------------------------


def encode_each(recipe: Recipe, examples: Sequence[Example], is_answered: bool) -> list[Any]:
    """Of each example what the model reads, see `PreparedTask`.

    Raises:
        ValueError: for examples that cannot be asked; it says which and why.
    """
    asked = []
    for number, example in enumerate(examples, start=1):
        with named(f"Example {number}"):
            try:
                asked.append(encode(recipe, example, is_answered))
            except KeyError as error:
                raise ValueError(f"it has no column {error}.") from error
    return asked


def encode(recipe: Recipe, example: Example, is_answered: bool) -> Any:
    if isinstance(recipe, Answers):  # the answers of a benchmark's test are not known
        return recipe.encoded(example, with_answers=is_answered).context
    told, tokenizer = recipe.options, recipe.tokenizer
    if isinstance(recipe, Pooled):
        return contexts_of(recipe.task, example, tokenizer, told.max_length)
    return features_of(recipe.task, example, tokenizer, told.pattern, told.max_length)


# --- What cannot be -------------------------------------------------------------------------------


def check_classes(recipe: Pooled, found: Found) -> None:
    """Raise a ValueError if a classifier's classes are not those of the task, in their order."""
    if found.adapter is not None:  # which does not tell them
        return
    classes = list((found.config.id2label or {}).values())
    unnamed = [f"LABEL_{number}" for number in range(recipe.num_labels)]
    expected = recipe.class_names if recipe.has_classes else unnamed
    if classes not in (expected, unnamed):
        wanted = ", ".join(expected) if recipe.has_classes else "one score for each choice"
        raise ValueError(
            f"The classifier names {', '.join(classes)}, and the task {recipe.task.name} asks for "
            f"{wanted}; give the task that it was tuned on."
        )


def check_answers(recipe: Recipe, examples: Sequence[Example]) -> bool:
    """Whether all examples have answers.

    Raises:
        ValueError: if only some have.
    """
    known = [has_answer(recipe, example) for example in examples]
    if all(known):
        return True
    if any(known):
        raise ValueError(
            f"Example {known.index(False) + 1} has no answer to measure by, and others have; give "
            "all of them one, or none."
        )
    return False


def has_answer(recipe: Recipe, example: Example) -> bool:
    task = recipe.task
    if task.references in example:
        return bool(example[task.references])
    if not isinstance(recipe, Answers):
        return is_labelled(task, example)
    try:
        return bool(recipe.references(example))
    except (KeyError, ValueError):
        return False


def check_examples(prepared: PreparedTask, options: Evaluation) -> None:
    """Raise a ValueError, before any work, for examples that cannot be measured or written."""
    if prepared.is_answered:
        prepared.recipe.check(prepared.examples)
    elif options.predictions is None:
        raise ValueError(
            f"{options.data} has no answers to measure by; pass --predictions FILE to write what "
            "the model answers."
        )
    if options.predictions is not None:
        nothing: list[Any] = [0] * len(prepared.examples)
        if isinstance(prepared.recipe, Answers):
            nothing = [[""]] * len(prepared.examples)
        text_of_predictions(prepared, nothing)


# --- What the model answers -----------------------------------------------------------------------


def run(prepared: PreparedTask, options: Evaluation, finished: Finished) -> list[Measure]:
    """What the model answers, measured, and written where the options say so."""
    answers = predict(prepared, options, finished)
    if options.predictions is not None:
        finished.add(PREDICTIONS, 0, [options.predictions])  # see check_predictions
        write_whole(options.predictions, text_of_predictions(prepared, answers))
    return measures_of(prepared, answers) if prepared.is_answered else []


def predict(prepared: PreparedTask, options: Evaluation, finished: Finished) -> list[Any]:
    """For each example the number of the choice that wins, or the answers to its blanks."""
    settings: Any = {"batch_size": options.batch_size, "finished": finished}
    device = check_device(options.device)
    how = (prepared.found, options.dtype, device, options.quantize)
    if isinstance(prepared.recipe, Pooled):
        num_labels = prepared.recipe.num_labels
        classifier = load_network(GLMForSequenceClassification, *how, num_labels=num_labels)
        return classes_of(prepared, classifier, **settings)
    model = load_network(GLMForConditionalGeneration, *how)
    if isinstance(prepared.recipe, Answers):
        return answers_of(prepared, prepared.recipe, model, options, **settings)
    return choices_of(prepared, model, **settings)


def classes_of(prepared: PreparedTask, model: Any, **settings: Any) -> list[int]:
    recipe = prepared.recipe
    scores = classify_contexts(model, recipe.tokenizer, recipe.task, prepared.asked, **settings)
    return [best_of(of_example) for of_example in scores]


def answers_of(
    prepared: PreparedTask,
    recipe: Answers,
    model: Any,
    options: Evaluation,
    **settings: Any,
) -> list[list[str]]:
    return answer_contexts(
        model,
        recipe.tokenizer,
        prepared.asked,
        name=recipe.task.name,
        **settings,
        **search(recipe, model, options),
    )


def choices_of(prepared: PreparedTask, model: Any, **settings: Any) -> list[int]:
    recipe = prepared.recipe
    scores = score_features(model, recipe.tokenizer, recipe.task, prepared.asked, **settings)
    chosen = [best_of(of_example) for of_example in scores]
    if recipe.task.no_choice:
        alone = [number for number, of_example in enumerate(scores) if len(of_example) == 1]
        said = would_be_said(prepared, model, alone, **settings)
        for number, is_said in zip(alone, said, strict=True):
            chosen[number] = 0 if is_said else UNKNOWN
    return chosen


def best_of(scores: list[float]) -> int:
    return scores.index(max(scores))


def would_be_said(
    prepared: PreparedTask,
    model: Any,
    numbers: Sequence[int],
    **settings: Any,
) -> list[bool]:
    """Whether the only choice of these examples is what the model would say itself.

    So the original decides where WSC has no other candidates (FACTS section 7).
    """
    recipe = prepared.recipe
    masks = recipe.tokenizer.mask_token_ids
    rows = []
    for number in numbers:
        (only,) = prepared.asked[number]
        context, (answer,) = only["context"], only["answers"]
        blank = max(column for column, id in enumerate(context) if id in masks)
        rows.append(Row(context, blank, answer))
    name = f"{recipe.task.name}, alone"
    scores = score_rows(model, recipe.tokenizer, rows, name=name, **settings)
    return [score.is_greedy for score in scores]


def search(recipe: Answers, model: Any, options: Evaluation) -> dict[str, Any]:
    """Arguments of `generate`: as the repository has them, or as the options name them."""
    given = model.generation_config.max_new_tokens
    limits = (given, recipe.task.max_target_length)
    longest = options.max_target_length or min(limit for limit in limits if limit is not None)
    generation: dict[str, Any] = {"max_new_tokens": longest}
    if options.generation is not None:
        generation |= {**PLAIN_SEARCH, **beam_search(recipe.task, options.generation)}
        check_search(generation)
    return generation


# --- Numbers --------------------------------------------------------------------------------------


def measures_of(prepared: PreparedTask, answers: Sequence[Any]) -> list[Measure]:
    task = prepared.recipe.task
    values = prepared.recipe.measure(answers, prepared.examples)
    units = [
        prepared.recipe.measure(
            [answers[number] for number in unit],
            [prepared.examples[number] for number in unit],
        )
        for unit in units_of(prepared)
    ]
    return [
        Measure(
            task.name,
            f"{metric}, percent",
            value,
            error_of(value, [unit[metric] for unit in units]),
            len(units),
            "examples" if task.group is None else "questions",
        )
        for metric, value in values.items()
    ]


def units_of(prepared: PreparedTask) -> list[list[int]]:
    """The numbers of the examples of each question; without questions each example is one."""
    groups = groups_of(prepared.recipe.task, prepared.examples) or range(len(prepared.examples))
    units: dict[Any, list[int]] = {}
    for number, group in enumerate(groups):
        units.setdefault(group, []).append(number)
    return list(units.values())


def error_of(value: float, of_units: Sequence[float]) -> float | None:
    """The standard error of a metric that is the mean of its units'; None of others."""
    spread = standard_error(of_units)
    if spread is None or not math.isclose(statistics.fmean(of_units), value, abs_tol=1e-9):
        return None
    return spread / len(of_units)


# --- The file of predictions ----------------------------------------------------------------------


def text_of_predictions(prepared: PreparedTask, answers: Sequence[Any]) -> str:
    """What the model answers, as the benchmark wants it.

    SuperGLUE: its lines. Questions about a text (SQuAD, CMRC): one object, by the question's idx,
    with nothing where there is no answer. Pairs of files: a line for each answer. Else JSON lines
    with the example's idx, or its number, and its label or the answers to its blanks.
    """
    recipe, examples = prepared.recipe, prepared.examples
    task = recipe.task
    if task.name in SUBMISSIONS:
        return json_lines(submission_lines(task, examples, answers, recipe.options.pattern))
    places = [example.get("idx") for example in examples]
    places = [number if place is None else place for number, place in enumerate(places)]
    if not isinstance(recipe, Answers):
        labels = [spellings[0] for spellings in task.labels]
        return json_lines(
            {"idx": place, "label": labels[choice] if labels else choice}
            for place, choice in zip(places, answers, strict=True)
        )
    groups = groups_of(task, examples)
    if groups is not None:
        texts = first_answers([first for first, *_ in answers], groups)
        said = {str(idx): "" if text == NO_ANSWER else text for idx, text in texts.items()}
        return json.dumps(said, ensure_ascii=False) + "\n"
    if task.official is not None and task.official.is_pair:
        return "".join(" ".join(first.split()) + "\n" for first, *_ in answers)
    return json_lines(
        {"idx": place, "answers": of_example}
        for place, of_example in zip(places, answers, strict=True)
    )


def json_lines(lines: Any) -> str:
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
