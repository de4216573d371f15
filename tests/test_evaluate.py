"""`glm evaluate`: the numbers of the functions, a record to trust, and runs that go on."""

import json
import re

import pytest
from test_cli import invoke, words

import glm_transformers
from glm_transformers.evaluation import evaluate_documents, evaluate_lambada, evaluate_wikitext
from glm_transformers.evaluation import rows as rows_module
from glm_transformers.evaluation.evaluate import evaluate
from glm_transformers.evaluation.model import load
from glm_transformers.evaluation.options import Evaluation
from glm_transformers.hub_repository.files import hash_file

SENTENCES = [
    "Ng is an adjunct professor at Stanford .",
    "The quick brown fox jumps over the lazy dog .",
    "There have been various types of pretraining architectures .",
    "Tsinghua University is located in Beijing .",
] * 3


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, str]:
    """The three kinds of data, by the names of the options."""
    folder = tmp_path_factory.mktemp("data")
    lambada, text = folder / "lambada.jsonl", folder / "text.txt"
    lambada.write_text("\n".join(json.dumps({"text": one[:-2]}) for one in SENTENCES))
    text.write_text("\n".join(SENTENCES))
    return {"lambada": str(lambada), "wikitext": str(text), "documents": str(text)}


def run(repository, files, **options):
    return evaluate(Evaluation(str(repository), **files, device="cpu", **options))


@pytest.mark.parametrize("unidirectional", [False, True])
def test_the_numbers_are_those_of_the_functions(made_repository, files, unidirectional):
    loaded = load(str(made_repository), device="cpu")
    measures = {
        (measure.task, measure.metric): measure
        for measure in run(made_repository, files, unidirectional=unidirectional, stride=20)
    }
    options = dict(length=64, unidirectional=unidirectional)  # the longest that the model takes
    texts = [sentence[:-2] for sentence in SENTENCES]
    lambada = evaluate_lambada(*loaded, texts, **options)
    wikitext = evaluate_wikitext(*loaded, "\n".join(SENTENCES), stride=20, **options)
    documents = evaluate_documents(*loaded, SENTENCES, stride=20, **options)
    assert measures["LAMBADA", "accuracy"].value == lambada.accuracy
    assert measures["LAMBADA", "accuracy"].count == len(SENTENCES)
    for task, result in (("WikiText", wikitext), ("documents", documents)):
        of_words = measures[task, "perplexity of words"]
        assert of_words.value == pytest.approx(result.word_perplexity)
        assert of_words.error == pytest.approx(result.standard_error) and of_words.error > 0
        assert of_words.count == result.words
        assert measures[task, "perplexity of tokens"].value == pytest.approx(result.perplexity)


def test_the_record(made_repository, files, tmp_path):
    output = tmp_path / "record.json"
    result = invoke(
        "evaluate",
        made_repository,
        *("--lambada", files["lambada"], "--documents", files["documents"], "--limit", 4),
        *("--output", output, "--device", "cpu", "--seed", 3),
    )
    assert result.exit_code == 0, result.output
    assert "LAMBADA" in result.output and "GLM-10B, unidirectional" in result.output
    assert "not measured here" in words(result.output) and "67.18" not in result.output
    record = json.loads(output.read_text())
    lambada, of_words, of_tokens = record["results"]
    assert lambada["task"] == "LAMBADA" and lambada["count"] == 4 and lambada["error"] is not None
    assert of_words["count"] < of_tokens["count"]
    assert record["options"]["seed"] == 3 and record["options"]["dtype"] == "float32"
    assert record["versions"]["glm-transformers"] == glm_transformers.__version__
    assert {"torch", "transformers", "python"} <= set(record["versions"])
    weights = made_repository / "model.safetensors"
    assert record["sha256"][str(weights)] == hash_file(weights)
    assert files["lambada"] in record["sha256"]
    assert [file.name for file in tmp_path.iterdir()] == ["record.json"], "nothing else is left"
    again = invoke("evaluate", made_repository, "--lambada", files["lambada"], "--output", output)
    assert again.exit_code == 1 and "exists already; choose another file" in words(again.output)


def test_a_killed_run_goes_on(made_repository, files, tmp_path, monkeypatch):
    options = dict(batch_size=4, stride=20)
    expected = run(made_repository, files, **options)
    output = tmp_path / "record.json"
    real, scored = rows_module.score_batch, []

    def killed(*arguments):
        if len(scored) == 5:
            raise KeyboardInterrupt
        scored.append(arguments)
        return real(*arguments)

    monkeypatch.setattr(rows_module, "score_batch", killed)
    with pytest.raises(KeyboardInterrupt):
        run(made_repository, files, output=str(output), **options)
    parts = tmp_path / "record.json.parts"
    assert not output.exists() and len(parts.read_text().splitlines()) == 1 + 5
    with parts.open("a") as file:
        file.write('["LAMBADA", 7, [[-1.')  # as a kill leaves a line
    monkeypatch.setattr(rows_module, "score_batch", lambda *all: scored.append(all) or real(*all))
    with pytest.raises(ValueError, match="of an evaluation with other options, files or versions"):
        run(made_repository, files, output=str(output), batch_size=4, stride=21)
    assert run(made_repository, files, output=str(output), **options) == expected
    batches = len(scored)
    scored.clear()
    run(made_repository, files, **options)
    assert batches == len(scored), "no batch was scored twice"
    assert json.loads(output.read_text())["results"][0]["task"] == "LAMBADA"
    assert not parts.exists()


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({}, "nothing to measure; pass --lambada, --wikitext, --documents"),
        (dict(lambada="nowhere.jsonl"), "nowhere.jsonl is no file"),
        (dict(tasks="piqa", unidirectional=True), "no unidirectional form"),
        (dict(tasks="piqa", task_folder="nowhere"), "nowhere is no folder"),
        (dict(tasks="piqa", stride=8), "windows of their own"),
        (dict(documents=__file__, shots=3), "--shots and --task-folder are of the harness's"),
        (dict(wikitext=__file__, limit=3), "WikiText is one text"),
        (dict(lambada=__file__), "is no JSON object"),
        (dict(wikitext=__file__, length=65), "length is 65; this model takes 64 tokens"),
        (dict(tasks="piqa", length=65), "length is 65; this model takes 64 tokens"),
        (dict(wikitext=__file__, length=4), "length is 4; give at least 8"),
        (dict(wikitext=__file__, output="/nowhere/record.json"), "/nowhere is no folder"),
    ],
)
def test_wrong_options_are_one_sentence(made_repository, monkeypatch, wrong, message):
    """Before a model is loaded."""
    monkeypatch.setattr("glm_transformers.evaluation.evaluate.load", None)
    with pytest.raises(ValueError, match=re.escape(message)):
        run(made_repository, {}, **wrong)


def test_several_processes_measure_only_tasks(made_repository, files, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="Only tasks of the harness run on several processes"):
        run(made_repository, files)
