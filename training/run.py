"""What every training run shares: its folders, its continuation, the order of its data, its steps.

A run that was killed and is resumed ends with the weights of an uninterrupted one, and n processes
train as one with n times the batch.
"""

import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, Sampler
from transformers import Trainer, TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from .curves import Curves
from .options import Finetuning, Pretraining
from .processes import are_on_cpu

OPTIONS_FILE = "options.json"  # beside the checkpoints: what the run was begun with
# Options that may be others when a run is continued: its weights do not depend on them.
CHANGEABLE = {
    "output",
    "resume",
    "validation",
    "evaluate_every",
    "save_every",
    "log_every",
    "workers",
}


# --- Where a run is -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """
    Attributes:
        output: what is there when the run has ended, and not before.
        checkpoints: the folder beside it, with the log and what it takes to continue.
        last: the newest complete checkpoint; None for a run that begins.
    """

    output: Path
    checkpoints: Path
    last: str | None

    @classmethod
    def of(cls, output: str) -> "Run":
        place = Path(os.path.abspath(output))
        checkpoints = place.with_name(f"{place.name}-checkpoints")
        return cls(place, checkpoints, last_checkpoint(checkpoints))

    @property
    def first_step(self) -> int:
        """Steps that are made already."""
        if self.last is None:
            return 0
        return TrainerState.load_from_json(f"{self.last}/{TRAINER_STATE_NAME}").global_step

    def check(self, resume: bool) -> None:
        """Raise a ValueError if there is something in the way, or nothing to resume."""
        if os.path.lexists(self.output):
            raise ValueError(f"{self.output} exists already; choose another place.")
        above = next(folder for folder in self.output.parents if os.path.lexists(folder))
        if not above.is_dir():
            raise ValueError(f"{above} is no folder; choose another place than {self.output}.")
        if resume and self.last is None:
            raise ValueError(
                f"{self.checkpoints} holds no checkpoint to continue from; leave --resume out."
            )
        if not resume and self.last is not None:
            raise ValueError(
                f"{self.last} is of an unfinished run; pass --resume to continue it, or choose "
                "another place."
            )

    def check_same(self, options: dict[str, Any], changeable: set[str] = CHANGEABLE) -> None:
        """Raise a ValueError if what the weights depend on is not what the run was begun with."""
        if self.last is None:
            return
        try:
            begun = json.loads((self.checkpoints / OPTIONS_FILE).read_text(encoding="utf-8"))
        except FileNotFoundError:  # begun before this file was written
            return
        changed = [
            f"{name} was {begun[name]} and is {value}"
            for name, value in options.items()
            if name in begun and name not in changeable and begun[name] != value
        ]
        if changed:
            raise ValueError(
                f"The run was begun with other options: {'; '.join(changed)}. Pass the same ones, "
                "or choose another place for a new run."
            )

    def record(self, options: dict[str, Any]) -> None:
        """Write down what the run is begun with."""
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        (self.checkpoints / OPTIONS_FILE).write_text(json.dumps(options, indent=2) + "\n")


def last_checkpoint(checkpoints: Path) -> str | None:
    """The newest complete one: the `Trainer` writes its state last, a killed one left none."""
    steps = [
        int(file.parent.name.partition("-")[2])
        for file in checkpoints.glob(f"checkpoint-*/{TRAINER_STATE_NAME}")
    ]
    return str(checkpoints / f"checkpoint-{max(steps)}") if steps else None


# --- How it trains --------------------------------------------------------------------------------


def common_arguments(options: Pretraining | Finetuning, run: Run, steps: int) -> dict[str, Any]:
    """The `TrainingArguments` of every run."""
    assert options.warmup is not None  # fine-tuning has filled in its recipe's
    return dict(
        output_dir=str(run.checkpoints),
        max_steps=steps,
        per_device_train_batch_size=options.batch_size,
        per_device_eval_batch_size=options.batch_size,
        gradient_accumulation_steps=options.accumulation,
        learning_rate=options.learning_rate,
        weight_decay=options.weight_decay,
        # The original's for glm-10b, in pretraining as in fine-tuning.
        adam_beta1=0.9,
        adam_beta2=0.95,
        adam_epsilon=1e-8,
        max_grad_norm=options.max_grad_norm,
        warmup_steps=math.ceil(options.warmup * steps),
        use_cpu=are_on_cpu(),
        bf16=options.precision == "bf16",
        eval_strategy="steps" if options.validation else "no",
        eval_steps=options.evaluate_every,
        save_steps=options.save_every,
        save_total_limit=2,
        logging_steps=options.log_every,
        report_to=["tensorboard"],
        dataloader_num_workers=options.workers,
        average_tokens_across_devices=True,
        remove_unused_columns=False,
        # The sampler begins where the run was killed; there is nothing to skip.
        ignore_data_skip=True,
        seed=options.seed,
    )


class Shuffled(Sampler):
    """Indices of a dataset that never ends: one shuffled pass after the other.

    Args:
        size: of the dataset.
        total: indices that the whole training takes.
        taken: those that a run that is continued took.
    """

    def __init__(self, size: int, total: int, seed: int, taken: int = 0):
        self.size = size
        self.total = total
        self.seed = seed
        self.taken = taken

    def __iter__(self) -> Iterator[int]:
        position = self.taken
        while position < self.total:
            epoch, start = divmod(position, self.size)
            indices = np.random.default_rng([self.seed, epoch]).permutation(self.size)
            indices = indices[start : start + self.total - position].tolist()
            yield from indices
            position += len(indices)

    def __len__(self) -> int:
        """Of the whole training, so that the Trainer counts a continued one as any other."""
        return self.total


class RepeatableTrainer(Trainer):
    """`Trainer` with the original's schedule and an exact continuation.

    Args:
        decay: "linear" or "cosine".
        decay_ratio: the lowest learning rate, as a share of the highest.
        decay_steps: where the decay ends.
        first_step: steps that a run that is continued made.
    """

    model: Any
    optimizer: torch.optim.Optimizer

    def __init__(self, decay: str, decay_ratio: float, decay_steps: int, first_step: int, **kwargs):
        super().__init__(**kwargs)
        self.add_callback(Curves())
        self._loss_shifts_labels = False
        # A tied weight is in no checkpoint, and the library need not warn of it.
        network: Any = self.model
        network._keys_to_ignore_on_save = set(getattr(network, "_tied_weights_keys", None) or ())
        self.decay = decay
        self.decay_ratio = decay_ratio
        self.decay_steps = decay_steps
        self.first_step = first_step

    @property
    def samples_of_a_step(self) -> int:
        arguments = self.args
        batches = arguments.gradient_accumulation_steps * arguments.world_size
        return batches * arguments.per_device_train_batch_size

    def gather_weights(self) -> dict[str, torch.Tensor]:
        """The weights of the whole network, which engines such as FSDP keep in parts.

        Every process must call this; the main one gets them all.
        """
        return self.accelerator.get_state_dict(self.model_wrapped)

    def get_train_dataloader(self) -> DataLoader:
        data: Any = self.train_dataset
        order = Shuffled(
            len(data),
            self.args.max_steps * self.samples_of_a_step,
            self.args.seed,
            self.first_step * self.samples_of_a_step,
        )
        return self.make_loader(data, order)

    def make_loader(self, data: Any, order: Sampler | None) -> DataLoader:
        loader = DataLoader(
            data,
            batch_size=self.args.per_device_train_batch_size,
            sampler=order,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=torch.cuda.is_available(),
            # A loader takes a number from its generator; that of dropout must not change.
            generator=torch.Generator(),
        )
        return self.accelerator.prepare(loader)

    def _save_checkpoint(self, model, trial) -> None:
        # Weights in parts are saved after each process looked whether the best ones' folder is
        # there; those that find none would not wait for the others when these are loaded again.
        folder = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        os.makedirs(os.path.join(self._get_output_dir(trial=trial), folder), exist_ok=True)
        super()._save_checkpoint(model, trial)

    def create_scheduler(self, num_training_steps: int, optimizer=None):
        """Linear warmup, then decay to `decay_ratio` times the learning rate, which then stays."""
        warmup = math.ceil(self.args.warmup_steps)

        def factor(step: int) -> float:
            if step < warmup:
                return (step + 1) / warmup
            done = min(1.0, (step - warmup) / max(1, self.decay_steps - warmup))
            left = 1 - done if self.decay == "linear" else (1 + math.cos(math.pi * done)) / 2
            return self.decay_ratio + (1 - self.decay_ratio) * left

        if self.lr_scheduler is None:
            self.lr_scheduler = LambdaLR(optimizer or self.optimizer, factor)
        return self.lr_scheduler
