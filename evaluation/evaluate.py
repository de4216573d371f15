"""`glm evaluate`: measures what it is told to, and keeps a record."""

import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Column, Table

from ..training.processes import rank, world_size
from .batches import Finished
from .language_modeling import (
    DOCUMENTS_LENGTH,
    DOCUMENTS_STRIDE,
    LAMBADA_LENGTH,
    PUBLISHED,
    WIKITEXT_LENGTH,
    WIKITEXT_STRIDE,
    Accuracy,
    Perplexity,
    evaluate_documents,
    evaluate_lambada,
    evaluate_wikitext,
    read_documents,
    read_lambada,
    read_wikitext,
)
from .model import check_length, find, load
from .options import OF_TASK, Evaluation
from .record import (
    PREDICTIONS,
    FinishedParts,
    Measure,
    check_new,
    depends_on,
    file_of_answers,
    is_begun,
)

if TYPE_CHECKING:
    from .task import PreparedTask

# How the files with texts are read, by the names of their options.
READERS: dict[str, Callable[[str], Any]] = {
    "lambada": read_lambada,
    "wikitext": read_wikitext,
    "documents": read_documents,
}


def evaluate(options: Evaluation) -> list[Measure]:
    """Everything that the options name; with `output`, the record is written.

    Under `accelerate launch`, where only tasks of the harness run, the first process has the
    measures and writes the record, the others have none.

    Raises:
        ValueError: for options that do not go together, and for files that cannot be measured.
    """
    check(options)
    texts = read_texts(options)
    prepared = prepare_task(options)
    started = time.monotonic()
    key: dict[str, Any] = {}
    finished = Finished()
    if options.output is not None and rank() == 0:
        files: list[str | Path] = [*data_files(options).values()]
        if prepared is not None:
            files += prepared.files
        key = depends_on(options, find(options.repository).folders, files)
        finished = FinishedParts(options.output, key)
    check_predictions(options, finished)
    measures = [
        *language_modeling(texts, options, finished),
        *harness_tasks(options, finished),
        *of_task(prepared, options, finished),
    ]
    results = [asdict(measure) for measure in measures]
    seconds = round(time.monotonic() - started, 1)
    finished.complete({"results": results, "seconds": seconds, **key})
    return measures


def check_predictions(options: Evaluation, finished: Finished) -> None:
    """Raise a ValueError for a file of predictions that is there.

    One that a run wrote that was killed before its record was there is written again.
    """
    if options.predictions is None:
        return
    if finished.get(PREDICTIONS, 0) != [options.predictions]:
        check_new(options.predictions)


def data_files(options: Evaluation) -> dict[str, str]:
    """The files with texts that are measured, by the names of their options."""
    named = {name: getattr(options, name) for name in READERS}
    return {name: file for name, file in named.items() if file is not None}


def check(options: Evaluation) -> None:
    """Raise a ValueError, before any work, for what cannot be measured."""
    files = data_files(options)
    if (options.task is None) != (options.data is None):
        raise ValueError("A task is measured on examples; pass both --task and --data.")
    if not files and options.tasks is None and options.task is None:
        raise ValueError(
            "There is nothing to measure; pass --lambada, --wikitext, --documents, --task or "
            "--tasks."
        )
    if options.output is not None:
        check_new(options.output)
    if options.predictions is not None and not is_begun(options.output):
        check_new(options.predictions)  # or see check_predictions
    for file in files.values():
        if not os.path.isfile(file):
            raise ValueError(f"{file} is no file; pass one with texts.")
    if options.tasks is not None and options.unidirectional:
        raise ValueError("The harness's tasks have no unidirectional form; measure them alone.")
    if options.tasks is not None and options.stride is not None:
        raise ValueError("The harness's tasks have windows of their own; leave stride out.")
    if options.wikitext is not None and options.limit is not None:
        raise ValueError("WikiText is one text, of which limit takes no part; leave it out.")
    for name in (*OF_TASK, "predictions"):
        value = getattr(options, name)
        if options.task is None and value is not None and value is not False:
            raise ValueError(f"--{name.replace('_', '-')} is of a task's examples; pass --task.")
    if options.tasks is None and (options.shots is not None or options.task_folder is not None):
        raise ValueError("--shots and --task-folder are of the harness's tasks; pass --tasks.")
    if options.task_folder is not None and not os.path.isdir(options.task_folder):
        raise ValueError(f"{options.task_folder} is no folder; pass one with tasks of the harness.")
    for name in ("unidirectional", "stride"):
        if options.task is not None and getattr(options, name):
            raise ValueError(f"--{name} is of language modelling; leave it out with --task.")
    if (files or options.task is not None) and world_size() > 1:
        raise ValueError("Only tasks of the harness run on several processes; start one.")


# --- Language modelling ---------------------------------------------------------------------------


def read_texts(options: Evaluation) -> dict[str, Any]:
    """What the files hold that are measured, by the names of their options.

    Raises:
        ValueError: for a file of another form, and for rows that are too long for the model.
    """
    files = data_files(options)
    if files or options.tasks is not None:
        check_length(options.length, find(options.repository).config)
    return {name: READERS[name](file) for name, file in files.items()}


def language_modeling(
    texts: dict[str, Any],
    options: Evaluation,
    finished: Finished,
) -> Iterator[Measure]:
    """LAMBADA and the perplexities that are asked for."""
    if not texts:
        return
    loaded = load(options.repository, options.dtype, options.device, options.quantize)
    longest = loaded.model.config.max_sequence_length
    settings: dict[str, Any] = {
        "unidirectional": options.unidirectional,
        "batch_size": options.batch_size,
        "finished": finished,
    }
    if "lambada" in texts:
        yield of_accuracy(
            evaluate_lambada(
                *loaded,
                texts["lambada"][: options.limit],
                length=options.length or min(LAMBADA_LENGTH, longest),
                **settings,
            )
        )
    if "wikitext" in texts:
        length = options.length or min(WIKITEXT_LENGTH, longest)
        result = evaluate_wikitext(
            *loaded,
            texts["wikitext"],
            length=length,
            stride=min(options.stride or WIKITEXT_STRIDE, length - 1),
            **settings,
        )
        yield from of_perplexity("WikiText", result)
    if "documents" in texts:
        length = options.length or min(DOCUMENTS_LENGTH, longest)
        result = evaluate_documents(
            *loaded,
            texts["documents"][: options.limit],
            length=length,
            stride=min(options.stride or DOCUMENTS_STRIDE, length - 1),
            **settings,
        )
        yield from of_perplexity("documents", result)


def of_accuracy(result: Accuracy) -> Measure:
    return Measure(
        "LAMBADA",
        "accuracy",
        result.accuracy,
        result.standard_error,
        result.count,
        "texts",
    )


def of_perplexity(task: str, result: Perplexity) -> Iterator[Measure]:
    yield Measure(
        task,
        "perplexity of words",
        result.word_perplexity,
        result.standard_error,
        result.words,
        "words",
    )
    yield Measure(
        task,
        "perplexity of tokens",
        result.perplexity,
        result.token_standard_error,
        result.tokens,
        "tokens",
    )


# --- A task of fine-tuning ------------------------------------------------------------------------


def prepare_task(options: Evaluation) -> "PreparedTask | None":
    """The task that is asked for, and its examples."""
    if options.task is None:
        return None
    from .task import prepare  # with all that fine-tuning needs

    return prepare(options)


def of_task(
    prepared: "PreparedTask | None",
    options: Evaluation,
    finished: Finished,
) -> list[Measure]:
    if prepared is None:
        return []
    from .task import run

    return run(prepared, options, finished)


# --- The harness ----------------------------------------------------------------------------------


def harness_tasks(options: Evaluation, finished: Finished) -> list[Measure]:
    """The tasks of lm-evaluation-harness that are asked for."""
    if options.tasks is None:
        return []
    finished.begin()  # before the harness keeps answers
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    from .harness import GLMHarness

    glm = GLMHarness(
        options.repository,
        batch_size=options.batch_size,
        max_length=options.length,
        dtype=options.dtype,
        device=options.device,
        quantize=options.quantize,
    )
    glm.barrier()  # the first process has looked whether what others keep is of this evaluation
    found = simple_evaluate(
        glm,
        tasks=options.tasks.split(","),
        task_manager=TaskManager(include_path=options.task_folder),
        num_fewshot=options.shots,
        limit=options.limit,
        use_cache=None if options.output is None else file_of_answers(options.output),
        random_seed=options.seed,
        numpy_random_seed=options.seed,
        torch_random_seed=options.seed,
        fewshot_random_seed=options.seed,
    )
    if found is None:  # not the first process
        return []
    return [
        measure
        for task, metrics in found["results"].items()
        for measure in of_harness(task, metrics, found["n-samples"])
    ]


def of_harness(task: str, metrics: dict, samples: dict) -> Iterator[Measure]:
    """The metrics of a task, which the harness names `metric,filter`."""
    for name, value in metrics.items():
        metric, comma, filter = name.partition(",")
        if not comma or metric.endswith("_stderr"):
            continue
        error = metrics.get(f"{metric}_stderr,{filter}")
        yield Measure(
            task,
            metric if filter == "none" else f"{metric}, {filter}",
            float(value),
            float(error) if isinstance(error, (int, float)) else None,
            samples.get(task, {}).get("effective", 0),
            "questions",
        )


# --- On the terminal ------------------------------------------------------------------------------


def make_table(measures: Iterable[Measure]) -> Table:
    table = Table(
        Column("task", no_wrap=True),
        "metric",
        Column("value", justify="right"),
        Column("standard error", justify="right"),
        Column("of", justify="right"),
    )
    for measure in measures:
        error = "" if measure.error is None else f"{measure.error:.4f}"
        table.add_row(
            measure.task,
            measure.metric,
            f"{measure.value:.4f}",
            error,
            f"{measure.count:,} {measure.of}",
        )
    return table


def make_published_table() -> Table:
    """What the original's README gives, beside which a result of the released files can be held."""
    table = Table(
        Column("published by the authors of GLM, not measured here", no_wrap=True),
        Column("LAMBADA, accuracy", justify="right"),
        Column("WikiText-103, perplexity of words", justify="right"),
    )
    for model, (accuracy, perplexity) in PUBLISHED.items():
        table.add_row(model, f"{accuracy / 100:.4f}", f"{perplexity:.2f}")
    return table
