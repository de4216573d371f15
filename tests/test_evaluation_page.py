"""The commands of docs/evaluation.md print what the page shows, and its Python runs."""

import os
import re
import subprocess
import sys

import pytest
from checkout import ENVIRONMENT, ROOT
from test_readme import python_blocks

PAGE = ROOT / "docs" / "evaluation.md"
GLM = """#!/bin/sh
exec "{}" -c "import checkout; from glm_transformers.cli import main; main()" "$@"
"""
NUMBER = r"-?\d+\.\d+"


@pytest.fixture(scope="module")
def shell(tmp_path_factory):
    """`shell(commands)`: what they print, all in one folder, with a terminal of 100 columns."""
    folder = tmp_path_factory.mktemp("page")
    program = folder / "bin" / "glm"
    program.parent.mkdir()
    program.write_text(GLM.format(sys.executable))
    program.chmod(0o755)
    path = f"{program.parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**ENVIRONMENT, "PATH": path, "COLUMNS": "100"}

    def run(commands: str) -> str:
        done = subprocess.run(
            ["bash", "-ec", commands],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run.folder = folder
    return run


def test_the_page(shell, monkeypatch, capsys):
    """Words as they are there, numbers up to the last digits, which differ between machines."""
    text = PAGE.read_text(encoding="utf-8")
    pairs = re.findall(r"```bash\n(.*?)```\n\n```text\n(.*?)```", text, flags=re.DOTALL)
    assert len(pairs) == 2
    for commands, shown in pairs:
        printed = shell(commands)
        assert re.sub(NUMBER, "", printed) == re.sub(NUMBER, "", shown)
        numbers = [float(number) for number in re.findall(NUMBER, printed)]
        assert numbers == pytest.approx(
            [float(number) for number in re.findall(NUMBER, shown)], rel=2e-3, abs=2e-3
        )
    monkeypatch.chdir(shell.folder)
    (block,) = python_blocks(PAGE)
    exec(block, {})
    assert "True" in capsys.readouterr().out
