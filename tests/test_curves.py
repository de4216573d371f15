"""The picture of a run shows what was logged, each kind in a panel of its own."""

from types import SimpleNamespace

import pytest

from glm_transformers.training.curves import draw, find_curves, label

HISTORY = [
    {"loss": 4.0, "learning_rate": 1e-3, "epoch": 1.0, "step": 10},
    {"eval_loss": 3.5, "eval_exact_match": 20.0, "eval_runtime": 1.0, "step": 10},
    {"loss": 2.0, "learning_rate": 5e-4, "epoch": 2.0, "step": 20},
    {"eval_loss": 2.5, "eval_exact_match": 80.0, "eval_runtime": 1.0, "step": 20},
    {"train_runtime": 9.0, "train_loss": 3.0, "step": 20},
]


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """`drawn(history)`: the figure that is saved, None if there is none."""
    from matplotlib.figure import Figure

    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, file: figures.append(figure))

    def run(history):
        draw(find_curves(history), tmp_path / "curves.png")
        return figures.pop() if figures else None

    return run


def test_each_kind_has_its_panel(drawn):
    panels = drawn(HISTORY).axes
    assert [panel.get_ylabel() for panel in panels] == ["loss", "percent", "learning rate"]
    lines = {line.get_label(): line.get_xydata().tolist() for line in panels[0].lines}
    assert lines == {
        "training": [[10, 4.0], [20, 2.0]],
        "validation": [[10, 3.5], [20, 2.5]],
    }
    (match,) = panels[1].lines
    assert match.get_label() == "validation, exact match"
    assert match.get_ydata().tolist() == [20.0, 80.0]


def test_without_validation_and_without_a_log(drawn):
    training = [entry for entry in HISTORY if "loss" in entry]
    assert [panel.get_ylabel() for panel in drawn(training).axes] == ["loss", "learning rate"]
    assert drawn([]) is None


def test_a_picture_that_fails_loses_no_training(tmp_path):
    from glm_transformers.training.curves import Curves

    state = SimpleNamespace(is_world_process_zero=True, log_history=HISTORY)
    missing = SimpleNamespace(output_dir=tmp_path / "missing")
    with pytest.warns(UserWarning, match=r"curves\.png could not be drawn .*\.$"):
        Curves().on_train_end(missing, state, None)
    Curves().on_train_end(SimpleNamespace(output_dir=tmp_path), state, None)
    assert (tmp_path / "curves.png").exists()


def test_modes_have_names():
    assert label("eval_loss_sentence") == "validation, sentence"


def test_a_missing_library_is_said_before_the_training(monkeypatch):
    import sys

    from glm_transformers.cli import clear_sentence
    from glm_transformers.training.curves import Curves

    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ModuleNotFoundError) as error:
        Curves()
    assert "[train]" in (clear_sentence(error.value) or "")
