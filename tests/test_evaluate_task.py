"""`glm evaluate --task`: a task of the table or of one's own, measured, written, gone on with.

That the numbers are those of the run that tuned a model is in `test_finetune.py`.
"""

import json
import re
import warnings

import pytest
from test_cli import invoke, words
from test_finetune import CHOICES, made_rows, write_lines

from glm_transformers.evaluation import task as task_module
from glm_transformers.evaluation.evaluate import evaluate
from glm_transformers.evaluation.options import Evaluation
from glm_transformers.evaluation.record import FinishedParts
from glm_transformers.evaluation.rows import RowScore
from glm_transformers.training import tasks

ROWS = made_rows(11, seed=4)
ANSWERS = {"kind": "answers", "context": ["{source}", "[MASK]"], "answers": " {target}"}
WSC = {"text": "Ng met the dog when he was lazy", "label": True, "idx": 0}
WSC["target"] = {"span1_text": "Ng", "span1_index": 0, "span2_text": "he", "span2_index": 5}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A task of each kind, and data for it."""
    folder = tmp_path_factory.mktemp("task")
    (folder / "choices.json").write_text(json.dumps(CHOICES))
    (folder / "answers.json").write_text(json.dumps({**ANSWERS, "max_target_length": 4}))
    write_lines(folder / "data.jsonl", ROWS)
    (folder / "train.jsonl").write_text("")
    return folder


def run(repository, folder, task="choices.json", data="data.jsonl", **options):
    return evaluate(
        Evaluation(
            str(repository),
            task=str(folder / task) if task.endswith(".json") else task,
            data=str(folder / data),
            device="cpu",
            **options,
        )
    )


def test_the_command(made_repository, files, tmp_path):
    """A number with its error and count, in the record with all it depends on; the predictions."""
    output, predictions = tmp_path / "record.json", tmp_path / "predictions.jsonl"
    told = ("evaluate", made_repository, "--task", files / "choices.json", "--data")
    told = (*told, files / "data.jsonl", "--device", "cpu", "--output", output)
    result = invoke(*told, "--predictions", predictions)
    assert result.exit_code == 0, result.output
    assert "accuracy, percent" in result.output and "11 examples" in result.output
    record = json.loads(output.read_text())
    lines = [json.loads(line) for line in predictions.read_text().splitlines()]
    right = [line["label"] == row["label"] for line, row in zip(lines, ROWS, strict=True)]
    assert [line["idx"] for line in lines] == [*range(11)]
    (accuracy,) = record["results"]
    assert accuracy["value"] == pytest.approx(100 * sum(right) / 11)
    assert accuracy["count"] == 11 and accuracy["error"] is not None
    assert record["options"]["task"] == str(files / "choices.json")
    for name in ("choices.json", "data.jsonl"):
        assert str(files / name) in record["sha256"]
    assert sorted(tmp_path.iterdir()) == [predictions, output]


@pytest.mark.parametrize("task, batches", [("choices.json", 4), ("answers.json", 2)])
def test_a_killed_run_goes_on(made_repository, files, tmp_path, killed_run, task, batches):
    options = dict(batch_size=3, limit=5)  # with a row for each choice
    expected = run(made_repository, files, task, **options)
    options["output"] = str(tmp_path / "record.json")
    finished = killed_run(lambda: run(made_repository, files, task, **options))
    with pytest.raises(ValueError, match="with other options, files or versions"):
        run(made_repository, files, task, **{**options, "batch_size": 4})
    assert run(made_repository, files, task, **options) == expected
    assert len(finished) == batches, "no batch was done twice"


def test_a_run_killed_between_its_predictions_and_its_record(
    made_repository, files, tmp_path, monkeypatch
):
    """Writes both again; a file of predictions that another run wrote stays."""
    written, others = tmp_path / "predictions.jsonl", tmp_path / "others.jsonl"
    options = dict(limit=5, output=str(tmp_path / "record.json"))

    def killed(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(FinishedParts, "complete", killed)
        with pytest.raises(KeyboardInterrupt):
            run(made_repository, files, predictions=str(written), **options)
    expected = written.read_text()
    others.write_text("of another run")
    with pytest.raises(ValueError, match=r"others\.jsonl exists already"):
        run(made_repository, files, predictions=str(others), **options)
    written.write_text("")
    run(made_repository, files, predictions=str(written), **options)
    assert written.read_text() == expected and others.read_text() == "of another run"
    assert {file.name for file in tmp_path.iterdir()} == {
        "record.json",
        "predictions.jsonl",
        "others.jsonl",
    }


@pytest.mark.parametrize("task", ["choices.json", "answers.json"])
def test_a_text_is_encoded_once(made_repository, files, monkeypatch, task):
    real, encoded = tasks.encode_sides, []
    monkeypatch.setattr(tasks, "encode_sides", lambda *all: encoded.append(all) or real(*all))
    run(made_repository, files, task, limit=3)
    assert len(encoded) == 3


def test_what_was_not_begun_is_in_nobodys_way(made_repository, files, tmp_path):
    """After an error the same output serves, with other options."""
    output = str(tmp_path / "record.json")
    texts = str(files / "data.jsonl")
    with pytest.raises(ValueError, match="length is 65"):
        evaluate(Evaluation(str(made_repository), documents=texts, length=65, output=output))
    run(made_repository, files, output=output, limit=2)
    assert [file.name for file in tmp_path.iterdir()] == ["record.json"]


def test_examples_without_answers_are_only_predicted(made_repository, files, tmp_path):
    """As those of a benchmark's test."""
    unanswered = [{"source": row["source"]} for row in ROWS[:2]]
    data = write_lines(tmp_path / "test.jsonl", unanswered)
    for task in ("choices.json", "answers.json"):
        with pytest.raises(ValueError, match="has no answers to measure by; pass --predictions"):
            run(made_repository, files, task, data)
        told = tmp_path / task
        assert run(made_repository, files, task, data, predictions=str(told)) == []
        assert len(told.read_text().splitlines()) == 2
    mixed = write_lines(tmp_path / "mixed.jsonl", [ROWS[0], unanswered[0]])
    with pytest.raises(ValueError, match="Example 2 has no answer to measure by"):
        run(made_repository, files, "choices.json", mixed)


def short_task(folder, name: str, text: str, answers: list[str]):
    """A task of the table in few words, for a vocabulary that has few."""
    file = folder / f"{name}.py"
    file.write_text(
        "from dataclasses import replace\n"
        "from glm_transformers.training import TASKS, Pattern\n"
        f"patterns = (Pattern([{text!r}, ' [MASK]'], {answers!r}),)\n"
        f"task = replace(TASKS[{name!r}], patterns=patterns, pattern=0, one_token=False)\n"
    )
    return file


def test_a_folder_of_the_benchmark(made_repository, tmp_path):
    """Its file is read, and one is written as the leaderboard wants it."""
    lines = [{"premise": "Ng is here.", "hypothesis": "Ng is.", "label": "entailment", "idx": 7}]
    write_lines(tmp_path / "val.jsonl", lines)
    task = short_task(tmp_path, "rte", "{text_a} {text_b}", [" quick", " lazy"])
    told = dict(length=32, predictions=str(tmp_path / "RTE.jsonl"))
    (accuracy,) = evaluate(
        Evaluation(str(made_repository), task=str(task), data=str(tmp_path), device="cpu", **told)
    )
    (line,) = map(json.loads, (tmp_path / "RTE.jsonl").read_text().splitlines())
    assert line["idx"] == 7 and accuracy.count == 1
    assert (line["label"] == "entailment") == (accuracy.value == 100)


@pytest.mark.parametrize("said", [True, False])
def test_wsc_without_other_candidates(made_repository, tmp_path, monkeypatch, said):
    """The one choice does not win as such: it must be what the model would write."""
    monkeypatch.setattr(task_module, "score_rows", lambda *_, **__: [RowScore(-1.0, said)])
    (tmp_path / "val.jsonl").write_text(json.dumps(WSC))
    task = short_task(tmp_path, "wsc", "{text_a}", [" {span1_text}", " {candidates}"])
    told = dict(length=64, predictions=str(tmp_path / "WSC.jsonl"), device="cpu")
    with warnings.catch_warnings():  # that is of a run that tunes
        warnings.filterwarnings("error", message=".*one choice alone")
        (accuracy,) = evaluate(
            Evaluation(str(made_repository), task=str(task), data=str(tmp_path), **told)
        )
    assert json.loads((tmp_path / "WSC.jsonl").read_text())["label"] == str(said)
    assert accuracy.value == 100 * said


@pytest.mark.parametrize("label", [None, -1])
def test_wsc_without_labels(made_repository, tmp_path, label):
    """The Hub's rows of a test say -1, which is not that the span is wrong."""
    (tmp_path / "test.jsonl").write_text(json.dumps({**WSC, "label": label}))
    task = short_task(tmp_path, "wsc", "{text_a}", [" {span1_text}", " {candidates}"])
    told = dict(length=64, predictions=str(tmp_path / "WSC.jsonl"), device="cpu", split="test")
    asked = Evaluation(str(made_repository), task=str(task), data=str(tmp_path), **told)
    assert evaluate(asked) == []
    assert json.loads((tmp_path / "WSC.jsonl").read_text())["idx"] == WSC["idx"]


@pytest.mark.parametrize(
    "wrong, message",
    [
        (dict(data=None), "pass both --task and --data"),
        (dict(task=None), "pass both --task and --data"),
        (dict(task=None, data=None, documents=__file__, pattern=0), "--pattern is of a task's"),
        (dict(task="nowhere"), "There is no task and no file nowhere"),
        (dict(unidirectional=True), "--unidirectional is of language modelling"),
        (dict(stride=8), "--stride is of language modelling"),
        (dict(length=65), "takes 64 tokens: ask for 64 or less"),
        (dict(pattern=1), "has no pattern 1"),
        (dict(generation="xsum"), "answers are written, and choices is none"),
        (dict(predictions=__file__), "exists already"),
        (dict(predictions=__file__, data="nowhere"), "exists already"),
        (dict(predictions="/nowhere/file"), "/nowhere is no folder"),
        (dict(text_column="texts"), "The data has no column texts"),
        (dict(device="cuda:99"), "There is no device cuda:99 here"),
    ],
)
def test_what_cannot_be_is_told_before_any_work(
    made_repository, files, monkeypatch, wrong, message
):
    monkeypatch.setattr(task_module, "load_network", lambda *_, **__: pytest.fail("work"))
    told = dict(task=str(files / "choices.json"), data=str(files / "data.jsonl"), device="cpu")
    with pytest.raises(ValueError, match=re.escape(message)):
        evaluate(Evaluation(str(made_repository), **{**told, **wrong}))


def test_a_beam_search_that_writes_more_than_it_may(made_repository, files):
    with pytest.raises(ValueError, match="at least 10 tokens, and an answer may have 4"):
        run(made_repository, files, "answers.json", generation="xsum")


def test_data_of_another_task(made_repository, files, tmp_path):
    data = write_lines(tmp_path / "data.jsonl", [{"text": "The fox"}])
    result = invoke(
        *("evaluate", made_repository, "--task", files / "answers.json", "--data", data),
    )
    assert result.exit_code == 1 and "Example 1: " in words(result.output)
    assert "source" in result.output
