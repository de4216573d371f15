"""Processes of `torchrun` or `accelerate launch` that fill together."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from datetime import timedelta
from typing import TypeVar

from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from ..training.options import LARGEST_SEED
from ..training.processes import this_process
from .options import Filling

# A process that has filled its parts waits for the slowest.
LONGEST_WAIT = timedelta(days=100)

Value = TypeVar("Value")


def begin() -> PartialState:
    """What this process knows of the others; of none, where it was started alone."""
    return this_process(timeout=LONGEST_WAIT)


def of_main(value: Value) -> Value:
    """What the main process has for a value, in each of them."""
    values = [value]
    broadcast_object_list(values)
    return values[0]


def seed_of(options: Filling) -> int | None:
    """The seed that is given; processes that share a model draw the same words without one, too."""
    if options.seed is None and options.sample and options.tensor_parallel:
        return of_main(secrets.randbelow(LARGEST_SEED))
    return options.seed


@contextmanager
def silence() -> Iterator[None]:
    """Nothing is printed."""
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield
