"""The commands of docs/evaluation.md print what the page shows, and its Python runs."""

import re

import pytest
from checkout import ROOT
from test_readme import python_blocks

PAGE = ROOT / "docs" / "evaluation.md"
NUMBER = r"-?\d+\.\d+"


def test_the_page(shell, monkeypatch, capsys):
    """Words as they are there, numbers up to the last digits, which differ between machines."""
    text = PAGE.read_text(encoding="utf-8")
    pairs = re.findall(r"```bash\n(.*?)```\n\n```text\n(.*?)```", text, flags=re.DOTALL)
    assert len(pairs) == 3
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
