"""The code blocks of the README and the docs, executed in order on a small converted repository."""

import re
from pathlib import Path

from checkout import ROOT

README = ROOT / "README.md"


def python_blocks(file: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", file.read_text(encoding="utf-8"), flags=re.DOTALL)


def test_python_blocks(made_repository, stranger, tmp_path):
    """In a fresh process, which has Transformers and the repository."""
    blocks = python_blocks(README)
    assert len(blocks) >= 2
    (tmp_path / "my-glm-2b").symlink_to(made_repository)
    stranger.output("\n".join(blocks), folder=tmp_path)


def test_python_blocks_of_pretraining(made_repository, tmp_path, monkeypatch, capsys):
    """In this process, which has the package."""
    (block,) = python_blocks(ROOT / "docs" / "pretraining.md")
    (tmp_path / "my-glm-2b").symlink_to(made_repository)
    monkeypatch.chdir(tmp_path)
    exec(block, {})
    assert "position_ids" in capsys.readouterr().out


def test_convert_command(reference, tmp_path):
    """The shell block, with the paths of a golden checkpoint and its number of heads."""
    (command,) = re.findall(
        r"^glm convert .*$", README.read_text(encoding="utf-8"), flags=re.MULTILINE
    )
    from typer.testing import CliRunner

    from glm_transformers.cli import app

    arguments = command.split()[1:]
    arguments[1] = str(reference / "checkpoints/tiny-gpt2-fp16")
    arguments[2] = str(tmp_path / "my-glm-2b")
    arguments[arguments.index("--vocab") + 1] = str(reference / "vocab")
    result = CliRunner().invoke(app, [*arguments, "--num-attention-heads", "4"])
    assert result.exit_code == 0, result.output
    assert "is complete" in result.output and (tmp_path / "my-glm-2b/model.safetensors").is_file()
