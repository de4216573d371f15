"""`glm fill --data`: rows of files, filled in parts, by a run that may be killed, or by two."""

import json
import os
from pathlib import Path

import pyarrow.parquet
import pytest
from processes import GLM, TWICE
from pyarrow import Table
from typer.testing import CliRunner

from glm_transformers.apps import fill_files
from glm_transformers.apps.pipeline import open_pipeline
from glm_transformers.cli import app

COUNTRIES = ["Spain", "France", "Japan", "Italy", "Greece", "Egypt", "Norway"]
TEXTS = [f"The capital of {country} is [MASK]." for country in COUNTRIES]
TEXTS += ["", "A dog has [MASK] legs, and the opposite of [MASK] is cold.", "Hot is not"]
ROWS = [{"id": 2**60 + n, "when": "2026-01-01T00:00:00", "text": t} for n, t in enumerate(TEXTS)]


@pytest.fixture(scope="module")
def pipeline(demo_repository):
    return open_pipeline(str(demo_repository), device="cpu")


@pytest.fixture(scope="module")
def expected(pipeline) -> list[dict]:
    """One text at a time."""
    rows = []
    for row in ROWS:
        (result,) = pipeline([row["text"]])
        rows.append({**row, **{name: result[name] for name in ("blanks", "filled_text")}})
    return rows


@pytest.fixture
def fill(demo_repository, pipeline, tmp_path, monkeypatch):
    """`fill(data, *arguments)`: the command's result, in parts of three rows."""
    monkeypatch.setattr(fill_files, "open_pipeline", lambda *_: pipeline)
    monkeypatch.setattr(fill_files, "ROWS", 3)

    def invoke(data: Path, *arguments, output: Path | None = None):
        output = output or tmp_path / f"out{data.suffix}"
        options = ["--data", data, "--output", output, "--batch-size", 2, *arguments]
        return CliRunner().invoke(app, ["fill", str(demo_repository), *map(str, options)])

    return invoke


@pytest.fixture
def lines(tmp_path) -> Path:
    file = tmp_path / "data.jsonl"
    file.write_text("".join(f"{json.dumps(row)}\n" for row in ROWS))
    return file


def read(file: Path) -> list[dict]:
    if file.suffix == ".parquet":
        return pyarrow.parquet.read_table(file).to_pylist()
    return list(map(json.loads, file.read_text(encoding="utf-8").splitlines()))


def killed_at(call: int):
    """`os.replace` that does not come to its end when it is called for this time."""
    replace, calls = os.replace, []

    def killed(*args):
        calls.append(args)
        if len(calls) == call:
            raise KeyboardInterrupt
        replace(*args)

    return killed


def test_every_row_is_filled_in_its_place(fill, lines, expected, tmp_path):
    pyarrow.parquet.write_table(Table.from_pylist(ROWS), tmp_path / "data.parquet")
    for data in (lines, tmp_path / "data.parquet"):
        result = fill(data)
        assert result.exit_code == 0, result.output
        assert read(tmp_path / f"out{data.suffix}") == expected
    assert not list(tmp_path.glob("*.parts"))


def test_a_killed_run_goes_on(fill, lines, expected, tmp_path, monkeypatch):
    """What is finished is not filled again, and what was half done is."""
    asked: list[str] = []
    filled = fill_files.fill_texts

    def note(pipeline, texts, *others):
        asked.extend(texts)
        return filled(pipeline, texts, *others)

    monkeypatch.setattr(fill_files, "fill_texts", note)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed_at(2))
        assert fill(lines).exit_code != 0  # the second part is written, and not in its place
    assert not (tmp_path / "out.jsonl").exists()
    assert len(list((tmp_path / "out.jsonl.parts").glob("0*.jsonl"))) == 1
    first = list(asked)
    other = fill(lines, "--max-new-tokens", 3)
    assert other.exit_code == 1 and "other options" in other.stderr
    asked.clear()
    assert fill(lines).exit_code == 0
    assert first[:3] + asked == TEXTS
    assert read(tmp_path / "out.jsonl") == expected


def test_the_model_is_opened_as_asked_for(fill, lines, pipeline, monkeypatch):
    opened = []
    monkeypatch.setattr(
        fill_files, "open_pipeline", lambda *given: opened.append(given) or pipeline
    )
    assert fill(lines, "--quantize", "int8", "--device", "cpu").exit_code == 0
    assert opened[0][1:] == ("float32", "cpu", "int8", False)


def test_two_processes_fill_like_one(demo_repository, lines, expected, colleague, tmp_path):
    program = TWICE + "import checkout; from glm_transformers.apps import fill_files\n"
    program += f"fill_files.ROWS = 3\n{GLM}"
    command = ["fill", demo_repository, "--data", lines, "--output", tmp_path / "out.jsonl"]
    printed = colleague.output(program, *command, folder=tmp_path)
    assert "is complete" in printed
    assert read(tmp_path / "out.jsonl") == expected


def test_each_process_has_its_device(demo_repository, lines, colleague, tmp_path):
    command = ["fill", demo_repository, "--data", lines, "--output", tmp_path / "out.jsonl"]
    run = colleague.run(TWICE + GLM, *command, "--device", "cpu", folder=tmp_path)
    assert run.returncode and "leave out --device" in run.stderr


def test_what_is_wrong_is_said_before_anything_is_filled(fill, lines, tmp_path, monkeypatch):
    monkeypatch.setattr(fill_files, "fill_texts", None)
    (tmp_path / "other.txt").write_text("x")
    bad = tmp_path / "bad.jsonl"
    for row, words in (
        ('{"text": "The [MASK] <|startofpiece|>"}', "Row 11 of"),
        ('{"text": null}', "Row 11 of"),
        ('{"other": "a"}', "--text-column"),
        ('{"text": "a", "blanks": 1}', "column blanks"),
        ("[1]", "no JSON object"),
    ):
        bad.write_text(lines.read_text() + row + "\n")
        result = fill(bad, output=tmp_path / "bad-out.jsonl")
        assert result.exit_code == 1 and words in result.stderr, result.output
    for arguments, words in (
        (("--json",), "--json is for single texts"),
        (("--allowed-answers", "a"), "--allowed-answers is for single texts"),
        (("a [MASK]",), "The texts are those of --data"),
        (("--seed", 1), "pass --sample with it"),
    ):
        assert words in fill(lines, *arguments).stderr
    assert "ending" in fill(tmp_path / "other.txt").stderr
    assert "let it end" in fill(lines, output=tmp_path / "out.parquet").stderr
    assert not list(tmp_path.glob("*out*"))
