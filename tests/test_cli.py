"""The `glm` command: quick to ask, the same options as in Python, and one sentence for an error."""

import json
import re
import subprocess
import sys
from dataclasses import MISSING, fields
from importlib import import_module
from pickle import UnpicklingError
from typing import get_args

import pytest
import torch
from checkout import ENVIRONMENT, ROOT
from processes import GLM
from typer.testing import CliRunner

import glm_transformers
from glm_transformers import cli
from glm_transformers.apps.options import Filling, Serving, Showing
from glm_transformers.conversion.tokenizers import BUILDERS
from glm_transformers.evaluation.options import Evaluation, Scoring
from glm_transformers.hub_repository.config import DTYPES
from glm_transformers.training.options import Options, Pretraining, Preview

SLOW = {"torch", "transformers", "tokenizers", "safetensors", "huggingface_hub", "numpy", "fastapi"}


def invoke(*arguments, **settings):
    return CliRunner().invoke(cli.app, [*map(str, arguments)], **settings)


def words(text: str) -> str:
    return " ".join(text.split())


# --- Quick to ask ---------------------------------------------------------------------------------

MODULES_AT_EXIT = """
import atexit, json, sys
import checkout
atexit.register(lambda: print(json.dumps([*sys.modules]), file=sys.stderr))
from glm_transformers.cli import main
main()
"""


@pytest.mark.parametrize(
    "question",
    [
        *("--help", "--version", "models", "pretrain --help", "evaluate --help"),
        *("fill --help", "app --help", "serve --help"),
    ],
)
def test_asking_loads_no_slow_library(question):
    run = subprocess.run(
        [sys.executable, "-c", MODULES_AT_EXIT, *question.split()],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    loaded = {name.partition(".")[0] for name in json.loads(run.stderr)}
    assert "typer" in loaded and not loaded & SLOW


@pytest.mark.parametrize("package", ["glm_transformers", "conversion", "evaluation", "training"])
def test_type_checkers_know_the_names_that_are_imported_when_they_are_used(package):
    top = package == "glm_transformers"
    module = glm_transformers if top else import_module(f"glm_transformers.{package}")
    source = (ROOT / ("." if top else package) / "__init__.py").read_text(encoding="utf-8")
    known = re.findall(r"^    from (\.\w+) import (\w+) as \w+$", source, re.MULTILINE)
    lazy = re.findall(r'^ +"(\w+)": "(\.\w+)",$', source, re.MULTILINE)
    assert known and sorted(known) == sorted((file, name) for name, file in lazy)
    for _, name in known:
        assert getattr(module, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = module.nothing


# --- What can be asked ----------------------------------------------------------------------------


def test_the_version_stands_once():
    result = invoke("--version")
    assert result.exit_code == 0
    assert result.output.split() == ["glm-transformers", glm_transformers.__version__]
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert glm_transformers.__version__ not in project


def test_the_package_is_a_command():
    program = "import checkout, runpy; runpy.run_module('glm_transformers', run_name='__main__')"
    run = subprocess.run(
        [sys.executable, "-c", program, "--version"],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0 and glm_transformers.__version__ in run.stdout, run.stderr


def test_help_keeps_its_brackets():
    """A help text is shown as it is written; as markup, what is in brackets would be dropped."""
    result = invoke("convert", "--help")
    assert "Trained with [gMASK] and [sMASK]; wins over --model." in words(result.output)


def test_names_of_tables_are_the_choices():
    assert get_args(cli.DType) == tuple(DTYPES)
    assert set(cli.FAMILIES) == {*BUILDERS, "none"}
    output = invoke("convert", "--help").output
    assert "glm-10b-chinese" in output and "float16|bfloat16|float32" in output
    result = invoke("convert", "x", "y", "--model", "glm-3b")
    assert result.exit_code == 2 and "glm-3b" in result.output


@pytest.mark.parametrize(
    "command, options",
    [
        ("fill", Filling),
        ("app", Showing),
        ("pretrain", Pretraining),
        ("preview", Preview),
        ("evaluate", Evaluation),
        ("score", Scoring),
        ("serve", Serving),
    ],
)
def test_a_command_has_the_fields_defaults_and_help_of_its_options(command, options):
    shown = words(invoke(command, "--help", terminal_width=400).output)
    for field in fields(options):
        required = field.default is MISSING
        is_argument = required or field.metadata["argument"]
        name = field.name if is_argument else f"--{field.name.replace('_', '-')}"
        about = re.escape(field.metadata["help"])
        # Between the name and the help is the type, which each version of typer writes in its way.
        line = rf"(?<![\w-]){name}(?![\w-])(?:\.{{3}})?[^.]{{0,60}}? {about}( \[[^\]]*\])?"
        found = re.search(line, shown, re.IGNORECASE)
        assert found, name
        if required:
            assert found[1] == " [required]"
        elif field.default is not None and field.default is not False:
            assert f"default: {field.default}" in found[1]
        else:
            assert "default" not in (found[1] or "")


def test_a_command_passes_on_what_it_is_given(monkeypatch):
    given = []
    monkeypatch.setattr("glm_transformers.training.pretrain.pretrain", given.append)
    result = invoke("pretrain", "texts.txt", "out", "--steps", 7, "--resume", "--decay", "linear")
    assert result.exit_code == 0, result.output
    assert given == [Pretraining("texts.txt", "out", steps=7, resume=True, decay="linear")]


# --- Errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong, message",
    [
        (dict(learning_rate=-1.0), "learning_rate is -1.0; give at least 0."),
        (dict(learning_rate=float("nan")), "learning_rate is nan; give at least 0."),
        (dict(steps=0), "steps is 0; give at least 1."),
        (dict(length=3), "length is 3; give at least 4."),
        (dict(warmup=1.5), "warmup is 1.5; give a value between 0 and 1."),
        (dict(decay="step"), "decay is step; choose linear or cosine."),
        (dict(precision="int8"), "precision is int8; choose fp32, bf16 or fp16."),
    ],
)
def test_a_wrong_value_is_said_in_python_and_by_the_command(wrong, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Pretraining("texts.txt", "out", **wrong)
    ((name, value),) = wrong.items()
    result = invoke("pretrain", "texts.txt", "out", f"--{name.replace('_', '-')}", value)
    assert result.exit_code in (1, 2) and "Traceback" not in result.output
    assert name in result.output.replace("-", "_")


def test_a_choice_that_may_be_left_out():
    with pytest.raises(ValueError, match="mode is word; choose token, sentence or document"):
        Preview("repository", mode="word")
    assert Preview("repository").mode is None
    assert Options.types() == {}


def test_pretraining_from_nowhere(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "texts.txt").write_text("A text.\n")
    for option, message in (
        (["--model", "no where"], "no where is neither a folder nor a repository"),
        (["--model", tmp_path], "holds no config.json; pass a converted repository"),
        (["--config", tmp_path / "c.json", "--tokenizer", tmp_path], "no folder with a tokenizer"),
    ):
        result = invoke("pretrain", tmp_path / "texts.txt", tmp_path / "out", *option)
        assert result.exit_code == 1 and message in words(result.output), result.output
        assert not (tmp_path / "out").exists()


def test_an_export_to_a_folder_that_exists_names_no_option_that_it_lacks(made_repository, tmp_path):
    result = invoke("export", made_repository, tmp_path)
    assert result.exit_code == 1 and "choose another place" in words(result.output)
    for option in re.findall(r"--[\w-]+", result.output):
        assert option in invoke("export", "--help").output


def raises(error: Exception):
    """As a library raises it: from a module that is not of this package."""

    def run(*_):
        raise error

    return run


@pytest.mark.parametrize(
    "error, message",
    [
        (ModuleNotFoundError("No module named 'datasets'"), 'pip install ".[train]"'),
        (RuntimeError("TensorBoardCallback requires tensorboard to be installed."), "[train]"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."), "--batch-size"),
        (ValueError("Your setup doesn't support bf16/gpu."), "this --precision"),
        (
            UnpicklingError("Weights only load failed."),
            "delete its folder",
        ),
        (OSError(28, "No space left on device"), "No space left on device"),
    ],
)
def test_messages_of_libraries_that_are_clear(error, message, monkeypatch):
    monkeypatch.setattr("glm_transformers.training.pretrain.pretrain", raises(error))
    result = invoke("pretrain", "texts.txt", "out")
    assert result.exit_code == 1 and message in words(result.output)


@pytest.mark.parametrize(
    "command, arguments, place",
    [
        ("pretrain", 2, "training.pretrain.pretrain"),
        ("finetune", 3, "training.finetune.finetune"),
        ("evaluate", 1, "evaluation.evaluate.evaluate"),
        ("score", 1, "evaluation.score.score"),
        ("demo", 1, "demo.run_demo"),
    ],
)
def test_a_small_memory_is_helped_by_options_that_the_command_has(
    command, arguments, place, monkeypatch
):
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
    monkeypatch.setattr(f"glm_transformers.{place}", raises(error))
    result = invoke(command, *["x"] * arguments)
    assert result.exit_code == 1 and "The memory is too small; " in words(result.output)
    options = re.findall(r"--[\w-]+", result.output)
    assert bool(options) == (command != "demo")
    for option in options:
        assert option in invoke(command, "--help").output


@pytest.mark.parametrize(
    "error",
    [
        ValueError("too many values to unpack"),
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        ModuleNotFoundError("No module named 'glm_transformers.trainning'"),
    ],
)
def test_a_fault_of_the_program_is_shown_as_it_is(error, monkeypatch):
    monkeypatch.setattr("glm_transformers.training.pretrain.pretrain", raises(error))
    result = invoke("pretrain", "texts.txt", "out")
    assert result.exception is error


# --- Output that is no terminal -------------------------------------------------------------------


def test_no_progress_bars_in_a_log(made_repository, colleague, tmp_path):
    run = colleague.run(GLM, "verify", made_repository, folder=tmp_path)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "%|" not in run.stderr and "\r" not in run.stderr
