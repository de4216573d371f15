"""Work in batches, the longest first: little is padded, and what is too much is so at once.

What a run that was killed had finished is not done again.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from tqdm.auto import tqdm


class Finished:
    """Results of batches that need not be done, by name and number; here there are none.

    `evaluation.record.FinishedParts` keeps them in a file, as JSON.
    """

    def begin(self) -> None:
        """Write down what the results depend on, before any is kept."""

    def get(self, name: str, number: int) -> list | None:
        return None

    def add(self, name: str, number: int, results: list) -> None:
        pass

    def complete(self, record: dict[str, Any]) -> None:
        """Write the record; here there is none."""


def in_order(results: Iterable[tuple[int, Any]]) -> list:
    """Results of numbered work, in the order of the work."""
    found = dict(results)
    return [found[number] for number in range(len(found))]


def run_in_batches(
    model,
    run: Callable[[list], list],
    work: Sequence,
    lengths: Sequence[int],
    batch_size: int,
    name: str = "Scoring",
    finished: Finished | None = None,
) -> Iterator[tuple[int, Any]]:
    """The number of each piece of work, and what `run` makes of it, with a progress bar.

    Args:
        model: it is left in the mode in which it was.
        run: makes a result of each piece of a batch.
        lengths: tokens of each piece of work.
        name: of the progress bar, and of the batches in `finished`.
        finished: batches that were done before, and where to keep those that are done now.

    Raises:
        ValueError: for a batch size below 1.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; score one text at a time at least.")
    finished = finished or Finished()
    order = sorted(range(len(work)), key=lambda number: -lengths[number])
    with tqdm(total=len(work), desc=name, disable=None) as progress:
        for number, first in enumerate(range(0, len(order), batch_size)):
            of_batch = order[first : first + batch_size]
            results = finished.get(name, number)
            if results is None:
                with evaluating(model):
                    results = run([work[piece] for piece in of_batch])
                finished.add(name, number, results)
            progress.update(len(of_batch))
            yield from zip(of_batch, results, strict=True)


@contextmanager
def evaluating(model) -> Iterator[None]:
    """Without dropout and gradients; each module is left in the mode in which it was."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training
