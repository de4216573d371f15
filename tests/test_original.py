"""The original's numbers, through a converted repository that a fresh process loads."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import CONVERSIONS


@pytest.mark.parametrize("name", CONVERSIONS)
def test_goldens_in_a_fresh_process(reference, repository, name, tmp_path):
    program = Path(__file__).with_name("goldens.py")
    environment = {
        **os.environ,
        "HF_MODULES_CACHE": str(tmp_path / "modules"),
        "HF_HUB_OFFLINE": "1",
    }
    run = subprocess.run(
        [sys.executable, program, reference, name, repository(name)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout + run.stderr[-4000:]
    assert "equal" in run.stdout
