"""The demo model answers what it has never read, and what was made for it can be made again."""

import json
import re
import shlex
import sys

import pytest
from checkout import ROOT
from conftest import LONG
from typer.testing import CliRunner

from glm_transformers.cli import app
from glm_transformers.conversion import convert_checkpoint, export_checkpoint
from glm_transformers.demo import CHECKPOINT, OPTIONS, TEXTS

SAYS = "The capital of Spain is Madrid.\n"
# Of the checkout: an installed package has only what `glm demo` needs.
EXAMPLES = ROOT / "examples"


@pytest.fixture(scope="module", autouse=True)
def examples():
    """The folder's programs can be imported."""
    sys.path.insert(0, str(EXAMPLES))
    yield
    sys.path.remove(str(EXAMPLES))


def test_accuracy(demo_repository, tmp_path):
    """As examples/README.md says, with the bounds that the demo must reach.

    Of the questions each fourth, or all of them if the long tests are asked for.
    """
    from evaluate_demo import HELD_OUT, ask

    lines = HELD_OUT.read_text(encoding="utf-8").splitlines()
    assert len(lines) >= 300
    (tmp_path / "asked.jsonl").write_text("\n".join(lines if LONG else lines[::4]))
    answers = ask(demo_repository, tmp_path / "asked.jsonl")
    shares = {
        mask: sum(right) / len(right)
        for mask in ("[MASK]", "[sMASK]", "[gMASK]")
        if (right := answers.right(mask))
    }
    assert shares["[MASK]"] >= 0.9 and shares["[sMASK]"] >= 0.8 and shares["[gMASK]"] >= 0.8
    assert sum(answers.two_blanks) / len(answers.two_blanks) >= 0.9
    assert all(answers.agree.values())


def test_the_card_says_what_the_demo_knows(demo_repository):
    """Each of its topics, its licence, and prompts that it answers."""
    from facts import TOPICS
    from huggingface_hub import ModelCard

    card = ModelCard.load(demo_repository / "README.md")
    assert card.data.license == "apache-2.0" and "Apache-2.0" in card.text
    for topic in TOPICS:
        names = {name for row in topic.rows for name in row}
        assert any(name.rstrip("s") in card.text.lower() for name in names), names
    for example in card.data.widget:
        assert example["text"] in TEXTS.values()


def test_the_numbers_of_the_card(demo_repository):
    """They are what examples/evaluate_demo.py measures, and the Hub can read them."""
    from evaluate_demo import measure
    from huggingface_hub import ModelCard

    stored = json.loads(OPTIONS["results"].read_text())["results"]
    entries = ModelCard.load(demo_repository / "README.md").data.eval_results
    for measured, one, entry in zip(measure(demo_repository), stored, entries, strict=True):
        assert (measured.task, measured.metric) == (one["task"], one["metric"])
        assert measured.value == pytest.approx(one["value"], abs=1e-4)
        assert entry.metric_value == round(one["value"], 4)
        assert entry.dataset_name == one["task"] and entry.metric_type == one["metric"]


def test_same_weights_after_export_and_conversion(demo_repository, tmp_path):
    export_checkpoint(demo_repository, tmp_path / "checkpoint", model_parallel_size=2)
    again = convert_checkpoint(tmp_path / "checkpoint", tmp_path / "again", **OPTIONS)
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        assert (again / name).read_bytes() == (demo_repository / name).read_bytes(), name


def test_no_question_was_in_the_training_text():
    """The corpus is written again: it has the questions of the file, in none of its documents."""
    from corpus import DOCUMENTS, VALIDATION_DOCUMENTS, Corpus, words

    corpus = Corpus()
    documents = [corpus.document() for _ in range(DOCUMENTS + VALIDATION_DOCUMENTS)]
    questions = list(corpus.questions())
    stored = (EXAMPLES / "held_out.jsonl").read_text(encoding="utf-8").splitlines()
    assert questions == [json.loads(line) for line in stored]
    sentences = {sentence for document in documents for sentence in re.findall("[^.?]+", document)}
    text = "|".join(map(words, sentences))
    for question in questions:
        asked, blank = question["text"], question["mask"]
        phrasing = (
            asked.removesuffix(blank) if "?" in asked else asked.replace(blank, question["answer"])
        )
        assert words(phrasing) not in text, phrasing  # not inside a longer sentence either


def test_small_enough():
    assert sum(file.stat().st_size for file in CHECKPOINT.rglob("*") if file.is_file()) <= 3e6


def test_command(tmp_path):
    for _ in range(2):  # the second run finds the repository of the first
        result = CliRunner().invoke(app, ["demo", str(tmp_path / "demo")])
        assert result.exit_code == 0, result.output
        shown = " ".join(result.output.split())
        assert "failed" not in shown and str(tmp_path) in shown.replace(" ", "")
        for filled in (
            "Paris is the capital of France.",
            "Rome is the capital of Italy and the river Tiber flows through it.",
            "calf",
            "The opposite of hot is cold.",
            "A spider has eight legs.",
        ):
            assert filled in shown
        assert "nothing else" in shown
    # The command that it ends with answers as it is shown, with these words and quotes.
    program, *arguments = shlex.split(result.stdout.splitlines()[-1])
    assert program == "glm" and CliRunner().invoke(app, arguments).stdout == SAYS


def test_something_else_in_its_place(tmp_path):
    (tmp_path / "demo").mkdir()
    result = CliRunner().invoke(app, ["demo", str(tmp_path / "demo")])
    assert result.exit_code == 1 and "choose another place" in " ".join(result.output.split())
