"""The `glm` command in two processes."""

import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

from checkout import ENVIRONMENT

PROGRAM = """
import checkout
from glm_transformers.cli import app
app()
"""


def flags(options, arguments: tuple[str, ...]) -> list[str]:
    """The fields of options that are none of the arguments and have not their default."""
    defaults = asdict(type(options)(*("" for _ in arguments)))
    line = []
    for name, value in asdict(options).items():
        if name not in arguments and value != defaults[name]:
            line += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
    return line


def run_in_two_processes(folder: Path, command: list[str]) -> subprocess.CompletedProcess:
    """What `glm` with this command line prints, started by `accelerate launch`."""
    (folder / "program.py").write_text(PROGRAM)
    # The flag asks for one process each for several devices; without a GPU these are on the CPU.
    launch = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--multi_gpu",
        "--num_processes",
        "2",
        "--num_machines",
        "1",
        "--mixed_precision",
        "no",
        "--dynamo_backend",
        "no",
    ]
    return subprocess.run(
        [*launch, folder / "program.py", *command],
        capture_output=True,
        text=True,
        env={**ENVIRONMENT, "OMP_NUM_THREADS": "1"},
    )
