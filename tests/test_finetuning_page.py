"""The commands and the Python of docs/finetuning.md run, and the model answers as the page says."""

import json
import re

import pytest
from checkout import ROOT
from test_finetune import reached
from test_readme import python_blocks

from glm_transformers.training.own_tasks import KEYS, read_task
from glm_transformers.training.task_table import TASKS

PAGE = ROOT / "docs" / "finetuning.md"
TEXT = PAGE.read_text(encoding="utf-8")
# Installing, and what takes minutes.
LEFT_OUT = ("pip install", "python examples/finetune_demo.py", "python benchmarks/")


@pytest.fixture(scope="module")
def commands() -> list[str]:
    blocks = re.findall(r"```bash\n(.*?)```", TEXT, flags=re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    return [line for line in lines if not line.startswith(LEFT_OUT)]


def test_the_page(shell, commands, monkeypatch, capsys):
    (shell.folder / "examples").symlink_to(ROOT / "examples")
    assert sum(line.startswith("glm finetune") for line in commands) == 2
    for line in commands:
        shell(line)
    assert reached(shell.folder / "rivers-lora")["exact_match"] > 90
    assert (shell.folder / "glm-rivers-checkpoints" / "curves.png").is_file()
    monkeypatch.chdir(shell.folder)
    task, example = re.findall(r"```json\n(.*?)```", TEXT, flags=re.DOTALL)[::-1]
    assert json.loads(task) == json.loads((shell.folder / "data/rivers.json").read_text())
    assert example in (shell.folder / "data/rivers.train.jsonl").read_text()
    asking, training = python_blocks(PAGE)
    exec(asking, {})
    (shown,) = re.findall(r"```text\n(.*?)```", TEXT, flags=re.DOTALL)
    assert capsys.readouterr().out == shown
    assert "epochs=3" in training
    exec(training.replace("epochs=3", "epochs=1"), {})
    assert (shell.folder / "glm-topics" / "model.safetensors").is_file()


def test_the_page_names_every_task_and_key():
    for name in TASKS:
        assert f"`{name}`" in TEXT
    for key in set(KEYS) - {"name", "second"}:
        assert f"`{key}`" in TEXT
    assert read_task("boolq") is TASKS["boolq"]
