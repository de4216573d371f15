"""`glm fill --data`: the blanks of the texts of a file, millions of them, on several devices.

The rows are cut into parts. Each is filled, its longest texts first, and written into a file of its
own that is there when it is whole; a run that was killed goes on with those that are missing.
Process r of n fills every n-th part, or its part of the model for all of them. In the end the parts
are put together in their order.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from tqdm.auto import tqdm
from transformers import set_seed

from ..evaluation.model import find
from ..evaluation.record import check_new, digests
from ..pipeline_glm import GLMText2TextGenerationPipeline
from ..training.options import LARGEST_SEED
from .options import OF_THE_PIPELINE, Filling
from .parts import Parts
from .pipeline import open_pipeline
from .processes import begin, seed_of
from .tables import ADDED, KINDS, Answers, Table

ROWS = 1024  # of a part: enough that texts of like length meet, and not much to do again
OF_ONE_TEXT = ("all", "allowed_answers", "json")
# May be others when a run goes on.
NOT_OF_THE_ANSWERS = {"output", "batch_size", "device", "tensor_parallel"}


def fill_file(options: Filling) -> Path:
    """Write the rows of a file again, in their order, with the blanks of their texts filled.

    Returns:
        The file; each row has got `blanks`, a list of answers, and `filled_text`.

    Raises:
        ValueError: one sentence on what is wrong with the options, the file or a text, before any
            is filled.
    """
    data, output = check_options(options)
    table = KINDS[data.suffix](data, options.text_column, ROWS)
    parts = Parts(output)
    share = Share.of(options)
    pipeline = open_pipeline(
        options.repository,
        options.dtype,
        share.device,
        options.quantize,
        options.tensor_parallel,
    )
    rows = None
    if share.is_main:
        rows = check_texts(table, pipeline)
        parts.begin(key_of(options))
    share.wait_for_everyone()
    fill_parts(table, parts, share, pipeline, options, rows)
    share.wait_for_everyone()
    if share.is_main:
        parts.join(table)
    share.wait_for_everyone()
    return output


@dataclass(frozen=True)
class Share:
    """What one of several processes does of the work.

    state: what it knows of the others.
    has_own_model: whether each has a model, and fills parts of its own; else all fill each part.
    device: of its model, by default that of `open_pipeline`.
    """

    state: PartialState
    has_own_model: bool
    device: str | torch.device | None

    @classmethod
    def of(cls, options: Filling) -> "Share":
        state = begin()
        if state.num_processes == 1 or options.tensor_parallel:
            return cls(state, False, options.device)
        if options.device is not None:
            raise ValueError("Each process takes a device of its own; leave out --device.")
        return cls(state, True, state.device)

    @property
    def is_main(self) -> bool:
        return self.state.is_main_process

    @property
    def writes(self) -> bool:
        """Whether it writes what it fills, and not another one that fills the same."""
        return self.has_own_model or self.is_main

    def takes(self, part: int) -> bool:
        turn = part % self.state.num_processes
        return not self.has_own_model or turn == self.state.process_index

    def wait_for_everyone(self) -> None:
        self.state.wait_for_everyone()


def fill_parts(
    table: Table,
    parts: Parts,
    share: Share,
    pipeline: GLMText2TextGenerationPipeline,
    options: Filling,
    rows: int | None,
) -> None:
    """Fill and write the parts of this process that are missing.

    Args:
        rows: of all parts, for the progress bar of the main process.
    """
    seed = seed_of(options)
    hidden = None if share.is_main else True  # None: where nobody sits at a terminal
    with tqdm(total=rows, desc="Filling", disable=hidden) as progress:
        for number, part in enumerate(table.parts()):
            if not share.takes(number) or parts.file(number).exists():
                progress.update(len(part))
                continue
            if seed is not None:  # a part draws for itself, whoever fills it
                set_seed((seed + number) % LARGEST_SEED)
            answers = fill_texts(pipeline, table.texts(part), options, progress)
            if share.writes:
                parts.write(number, table, part, answers)


def fill_texts(
    pipeline: GLMText2TextGenerationPipeline,
    texts: Sequence[str],
    options: Filling,
    progress: tqdm,
) -> list[Answers]:
    """The answers to each text, in the texts' order; batches are of texts of like length."""
    order = sorted(range(len(texts)), key=lambda number: -len(texts[number]))
    given = {name: getattr(options, name) for name in OF_THE_PIPELINE}
    results = pipeline(
        (texts[number] for number in order),
        batch_size=options.batch_size,
        do_sample=options.sample,
        **{name: value for name, value in given.items() if value is not None},
    )
    answers: dict[int, Answers] = {}
    for number, (result,) in zip(order, results, strict=True):
        answers[number] = {name: result[name] for name in ADDED}
        progress.update()
    return [answers[number] for number in range(len(texts))]


# --- Before any is filled -------------------------------------------------------------------------


def check_options(options: Filling) -> tuple[Path, Path]:
    """The file with the rows, and the one to write.

    Raises:
        ValueError: for options of single texts, and for files that cannot be read or written so.
    """
    if options.texts:
        raise ValueError("The texts are those of --data; leave that out, or those beside it.")
    for name in OF_ONE_TEXT:
        if getattr(options, name):
            option = f"--{name.replace('_', '-')}"
            raise ValueError(f"{option} is for single texts; leave it out beside --data.")
    if options.output is None:
        raise ValueError("There is no file for the answers; pass --output.")
    data, output = Path(str(options.data)), Path(options.output)
    if data.suffix not in KINDS or not data.is_file():
        endings = ", ".join(KINDS)
        raise ValueError(f"{data} is no file with one of the endings {endings}.")
    if output.suffix != data.suffix:
        raise ValueError(f"{output} gets rows as {data} has them; let it end with {data.suffix}.")
    check_new(output)
    return data, output


def check_texts(table: Table, pipeline: GLMText2TextGenerationPipeline) -> int:
    """How many rows there are, all of whose texts can be filled."""
    rows = 0
    with tqdm(desc="Checking", disable=None) as progress:
        for part in table.parts():
            for text in table.texts(part):
                rows += 1
                check_text(text, f"Row {rows} of {table.file}", pipeline)
            progress.update(len(part))
    if not rows:
        raise ValueError(f"{table.file} holds no rows; check the data.")
    return rows


def check_text(text: Any, place: str, pipeline: GLMText2TextGenerationPipeline) -> None:
    if not isinstance(text, str):
        raise ValueError(f"{place} has {text!r} for a text; write one, or choose --text-column.")
    if not text.strip():  # it stays as it is
        return
    try:
        pipeline.check_readable(text)
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from None


def key_of(options: Filling) -> dict[str, Any]:
    """What the answers depend on: the options, the model and the data."""
    of_answers = {
        name: value for name, value in asdict(options).items() if name not in NOT_OF_THE_ANSWERS
    }
    files = digests(find(options.repository).folders, [str(options.data)])
    return {**of_answers, "rows_of_a_part": ROWS, "files": files}
