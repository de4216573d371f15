"""Weights in int8: smaller, as right as in float32, and everything that works on them."""

import io
import shutil

import pytest
import torch
from checkout import ROOT
from conftest import EOS, MASK, SOP
from torch import nn
from typer.testing import CliRunner

from glm_transformers.apps.options import Serving
from glm_transformers.apps.pipeline import open_pipeline
from glm_transformers.cli import app
from glm_transformers.demo import TEXTS
from glm_transformers.evaluation import score_choices
from glm_transformers.evaluation.model import load
from glm_transformers.evaluation.quantization import only_weights, to_int8, untied_head


@pytest.fixture(scope="module")
def exact(demo_repository):
    return load(str(demo_repository), device="cpu").model


@pytest.fixture(scope="module")
def fill(demo_repository):
    return open_pipeline(str(demo_repository), device="cpu", quantize="int8")


def state_bytes(model) -> int:
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    return file.tell()


def test_every_matrix_is_in_int8(exact, fill):
    """The head's, too; tables of embeddings are as they were, and what is saved is smaller."""
    linear = [module for module in exact.modules() if isinstance(module, nn.Linear)]
    matrices = sum(module.weight.numel() for module in linear)
    table = exact.glm.word_embeddings.weight
    assert not any(isinstance(module, nn.Linear) for module in fill.model.modules())
    assert fill.model.lm_head.weight().dtype == torch.qint8
    assert torch.equal(fill.model.glm.word_embeddings.weight, table)
    # float32 has 4 bytes a weight, int8 one; the head's matrix is the table, and now beside it.
    saved = state_bytes(exact) - state_bytes(fill.model)
    assert saved > 0.9 * (3 * matrices - 4 * table.numel())


def test_logits_are_near(exact, fill):
    """On real weights, in a batch with padding: less than a tenth of how far they are spread."""
    inputs = fill.tokenizer(list(TEXTS.values()), padding=True, return_tensors="pt")
    with torch.no_grad():
        asked = exact(**inputs).logits[inputs.attention_mask.bool()]
        got = fill.model(**inputs).logits[inputs.attention_mask.bool()]
    assert not torch.equal(got, asked)
    assert (got - asked).square().mean().sqrt() < 0.1 * asked.std()


def test_as_right_as_in_float32(exact, fill, monkeypatch):
    """Of each fourth question; of all, one of a hundred fewer is allowed."""
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    from evaluate_demo import BATCH, fill_all, is_right, read_questions

    questions = read_questions()[::4]

    def count_right(model) -> int:
        texts = [question["text"] for question in questions]
        answers = fill_all(model, fill.tokenizer, texts, BATCH)
        return sum(
            is_right(question, piece) for question, (piece,) in zip(questions, answers, strict=True)
        )

    assert count_right(fill.model) >= count_right(exact) - len(questions) / 100


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_beams": 3},
        {"cache_implementation": "static", "disable_compile": True},
        {"use_cache": False},
        {"min_piece_length": 1, "max_piece_length": 8},
    ],
    ids=str,
)
def test_all_blanks_in_all_ways(fill, options):
    texts = list(TEXTS.values())
    filled = fill(texts, batch_size=len(texts), max_new_tokens=40, **options)
    answers = [[piece.strip(" .") for piece in result["blanks"]] for result in filled]
    assert answers[:2] == [["France"], ["Rome", "Tiber"]]
    assert "calf" in answers[2][0] and "cold" in answers[3][0]


def test_scores_of_choices(fill):
    choices = [" four", " eight"]
    (scores,) = score_choices(fill.model, fill.tokenizer, ["A spider has [MASK] legs."], [choices])
    assert scores[1] > scores[0]


def test_blanks_are_found_in_embeddings(tiny_model):
    """The positions of embeddings are told by the table's rows, which are there still."""
    model = to_int8(tiny_model())
    ids = torch.tensor([[3, MASK, 5, EOS, SOP], [4, 6, MASK, EOS, SOP], [MASK, 7, 8, EOS, SOP]])
    embeddings = model.get_input_embeddings()(ids)
    with torch.no_grad():
        torch.testing.assert_close(model(inputs_embeds=embeddings).logits, model(ids).logits)


def test_only_weights(tiny_model):
    """What other devices get, here on a CPU: the head loses its tie, the table is as it was."""
    pytest.importorskip("torchao", reason='pip install ".[quantize]" has it')
    model, exact = tiny_model(), tiny_model()
    model.lm_head = untied_head(model.lm_head)
    only_weights(model)
    ids = torch.tensor([[3, MASK, 5, EOS, SOP], [4, 6, MASK, EOS, SOP], [MASK, 7, 8, EOS, SOP]])
    with torch.no_grad():
        got, asked = model(ids).logits, exact(ids).logits
    assert type(model.lm_head.weight.data) is not torch.Tensor
    assert torch.equal(model.glm.word_embeddings.weight, exact.glm.word_embeddings.weight)
    assert (got - asked).square().mean().sqrt() < 0.1 * asked.std()


def test_what_cannot_be_quantised_so(demo_repository, tmp_path):
    """One sentence each, before the weights are read, which are not there."""
    without = shutil.ignore_patterns("*.safetensors")
    repository = str(shutil.copytree(demo_repository, tmp_path / "repository", ignore=without))
    for asked, words in (
        ({"quantize": "int4"}, "quantize is int4; choose int8"),
        ({"quantize": "int8", "dtype": "float16"}, "int8 computes beside float32"),
        ({"quantize": "int8", "dtype": "bfloat16"}, "int8 computes beside float32"),
    ):
        with pytest.raises(ValueError, match=words):
            load(repository, device="cpu", **asked)
    with pytest.raises(ValueError, match="quantize is int4; choose int8"):
        Serving(repository, quantize="int4")


def test_an_adapter_is_merged_first(demo_repository, tmp_path):
    written = f'{{"base_model_name_or_path": "{demo_repository}"}}'
    (tmp_path / "adapter_config.json").write_text(written)
    with pytest.raises(ValueError, match="merge it"):
        load(str(tmp_path), device="cpu", quantize="int8")


@pytest.mark.parametrize(
    "command",
    [
        ["score", "{texts}", "--model", "{repository}"],
        ["evaluate", "{repository}", "--documents", "{texts}"],
    ],
    ids=lambda command: command[0],
)
def test_the_commands_have_it(demo_repository, tmp_path, command):
    texts = tmp_path / "texts.txt"
    texts.write_text("Paris is the capital of France. A spider has eight legs.\n")
    asked = [part.format(texts=texts, repository=demo_repository) for part in command]
    outputs = [
        CliRunner().invoke(app, [*asked, "--device", "cpu", *given]).output
        for given in ([], ["--quantize", "int8"])
    ]
    assert all("Error" not in output and "perplexity" in output.lower() for output in outputs)
    assert outputs[0] != outputs[1]
