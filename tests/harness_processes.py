"""Run as a program once for each of two processes: the local tasks of test_harness.py.

torchrun --nproc-per-node 2 harness_processes.py REPOSITORY TASKS

The first run ends in the middle, the second goes on; the record is record.json.
"""

import json
import sys
from functools import partial
from unittest.mock import patch

import checkout  # noqa: F401 - makes the checkout importable
import torch
from lm_eval.tasks import TaskManager

from glm_transformers.evaluation import rows
from glm_transformers.evaluation.evaluate import evaluate
from glm_transformers.evaluation.options import Evaluation

real, asked = rows.score_batch, []


def counted(model, tokenizer, batch):
    asked.append(len(batch))
    return real(model, tokenizer, batch)


def killed(model, tokenizer, batch):
    if len(asked) == 2:
        raise KeyboardInterrupt
    return counted(model, tokenizer, batch)


if __name__ == "__main__":
    repository, folder = sys.argv[1:]
    told = Evaluation(
        repository,
        tasks="made_choices,made_writing",
        task_folder=folder,
        output="record.json",
        batch_size=4,
    )
    without_its_own = partial(TaskManager, include_defaults=False)
    with patch("lm_eval.tasks.TaskManager", without_its_own):
        with patch.object(rows, "score_batch", killed):
            try:
                evaluate(told)
            except KeyboardInterrupt:
                asked.clear()
        with patch.object(rows, "score_batch", counted):
            measures = evaluate(told)
    counts = [None, None]
    torch.distributed.all_gather_object(counts, sum(asked))
    if measures:  # in the first process
        values = {measure.task: measure.value for measure in measures}
        print(json.dumps({"asked again": counts, **values}))
