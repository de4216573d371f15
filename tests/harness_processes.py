"""Run as a program once for each of two processes: the local tasks of test_harness.py.

torchrun --nproc-per-node 2 harness_processes.py REPOSITORY TASKS
"""

import json
import sys

import checkout  # noqa: F401 - makes the checkout importable
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager

from glm_transformers.evaluation.harness import GLMHarness

if __name__ == "__main__":
    repository, folder = sys.argv[1:]
    glm = GLMHarness(repository, batch_size=4)
    found = simple_evaluate(
        glm,
        tasks=["made_choices", "made_writing"],
        task_manager=TaskManager(include_path=folder, include_defaults=False),
    )
    if found is not None:  # in the first process
        results = found["results"]
        right = {
            "world": glm.world_size,
            "made_choices": float(results["made_choices"]["acc,none"]),
            "made_writing": float(results["made_writing"]["exact_match,stripped"]),
        }
        print(json.dumps(right))
