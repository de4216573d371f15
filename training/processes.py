"""Processes of `torchrun` or `accelerate launch` that work together."""

import os
from typing import Any

import torch
from accelerate import PartialState


def rank() -> int:
    """The number of this process, from 0, as launchers tell it."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """How many there are, as launchers tell it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def are_on_cpu() -> bool:
    """Whether processes compute on a CPU: accelerate must be told, or they do not find each other.

    An option of `PartialState`, `Accelerator` and `TrainingArguments`, under three names.
    """
    return not torch.accelerator.is_available()


def this_process(**options: Any) -> PartialState:
    """What this process knows of the others; of none, where it was started alone.

    Args:
        options: of `PartialState`.
    """
    return PartialState(cpu=are_on_cpu(), **options)
