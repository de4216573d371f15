"""The notebooks of examples/notebooks run from top to bottom, and show what they say."""

import runpy

import matplotlib
import pytest
import torch
from checkout import ROOT

NOTEBOOKS = ROOT / "examples" / "notebooks"


@pytest.fixture
def run(tmp_path, monkeypatch):
    """`run(name)`: what the names of a notebook hold at its end."""
    monkeypatch.chdir(tmp_path)
    matplotlib.use("agg")
    return lambda name: runpy.run_path(str(NOTEBOOKS / name))


def test_fill_blanks(run):
    names = run("fill_blanks.py")
    assert names["answers"][0] == ["Rome", "Tiber"] and len(names["answers"]) == 3
    assert len(set(names["ranked"])) == 5
    assert names["results"][0]["filled_text"] == "A spider has eight legs."


def test_own_pairs(run, tmp_path):
    """Countries that it was not trained on are answered."""
    names = run("own_pairs.py")
    right = list(names["asked"].values())
    assert names["after"] == right and names["before"] != right
    assert (tmp_path / "glm-capitals" / "README.md").is_file()


def test_look_inside(run, tmp_path):
    names = run("look_inside.py")
    assert names["first_tokens"][0] == " Rome"
    assert max(names["scores"]) == names["scores"][0]
    attention = names["attention"]
    torch.testing.assert_close(attention.sum(-1), torch.ones(len(attention)))
    assert (tmp_path / "who_sees_whom.png").is_file()


def test_every_notebook_is_tested_and_listed():
    page = (NOTEBOOKS / "README.md").read_text(encoding="utf-8")
    for notebook in NOTEBOOKS.glob("*.py"):
        assert f"({notebook.name})" in page
        assert f"def test_{notebook.stem}(" in (ROOT / "tests" / "test_notebooks.py").read_text()
