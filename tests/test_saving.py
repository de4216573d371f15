"""What people save, from the package or from a repository, is a repository that others load."""

import json

import pytest
import torch
from conftest import tiny_config

from glm_transformers import (
    GLMForConditionalGeneration,
    GLMForMultipleChoice,
    GLMForSequenceClassification,
    GLMModel,
    GLMTokenizerFast,
)
from glm_transformers.conversion import verify_repository
from glm_transformers.hub_repository.repository import SHIPPED_FILES, complete_repository

# Loads with the Auto classes alone, in a process that has no package, and prints a result.
LOAD = """
import sys, torch, transformers
kind, repository = sys.argv[1:]
model = getattr(transformers, kind).from_pretrained(repository, trust_remote_code=True).eval()
assert type(model).__module__.startswith("transformers_modules")
with torch.no_grad():
    output = model(torch.tensor([[1, 17, 23, 5]]))
print(output[0].double().sum().item())
"""
ANSWER = """
import sys
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1], trust_remote_code=True)
model = AutoModelForSeq2SeqLM.from_pretrained(sys.argv[1], trust_remote_code=True).eval()
inputs = tokenizer("Ng is a professor at [MASK].", return_tensors="pt")
print(tokenizer.decode_pieces(model.generate(**inputs, max_new_tokens=5)))
"""


@pytest.mark.parametrize(
    "cls, kind",
    [
        (GLMModel, "AutoModel"),
        (GLMForConditionalGeneration, "AutoModelForSeq2SeqLM"),
        (GLMForSequenceClassification, "AutoModelForSequenceClassification"),
    ],
)
def test_a_fresh_model_of_the_package_is_saved_whole(stranger, tmp_path, cls, kind):
    """With its code and all Auto classes, though nobody registered anything."""
    torch.manual_seed(3)
    model = cls(tiny_config()).eval()
    model.save_pretrained(tmp_path / "saved")
    assert {file.name for file in (tmp_path / "saved").glob("*.py")} == set(SHIPPED_FILES)
    auto_map = json.loads((tmp_path / "saved/config.json").read_text())["auto_map"]
    assert {"AutoConfig", "AutoModel", "AutoModelForSeq2SeqLM", kind} <= set(auto_map)
    assert auto_map["AutoModelForMultipleChoice"] == "modeling_glm.GLMForMultipleChoice"
    with torch.no_grad():
        expected = model(torch.tensor([[1, 17, 23, 5]]))[0].double().sum().item()
    printed = float(stranger.output(LOAD, kind, tmp_path / "saved", folder=tmp_path))
    assert printed == pytest.approx(expected, abs=1e-4)


def test_a_chooser_is_saved_whole(tmp_path):
    GLMForMultipleChoice(tiny_config()).save_pretrained(tmp_path)
    assert {file.name for file in tmp_path.glob("*.py")} == set(SHIPPED_FILES)


def test_a_repository_loaded_by_the_package_and_saved_again(made_repository, stranger, tmp_path):
    """As after fine-tuning with the package: it loads, answers alike, and verifies."""
    model = GLMForConditionalGeneration.from_pretrained(made_repository)
    model.save_pretrained(tmp_path / "saved")
    GLMTokenizerFast.from_pretrained(made_repository).save_pretrained(tmp_path / "saved")
    answers = [
        stranger.output(ANSWER, repository, folder=tmp_path)
        for repository in (made_repository, tmp_path / "saved")
    ]
    assert answers[0] == answers[1]
    checks = verify_repository(tmp_path / "saved")
    assert all(check.passed is not False for check in checks), checks
    (files,) = [check for check in checks if check.name == "files"]
    assert "conversion" in files.detail  # that there is no record of one is said


def test_card_handler_and_requirements_come_along(made_repository, tmp_path):
    """One call adds them to what was saved, and keeps what a person wrote."""
    saved = tmp_path / "my-tuned-glm"
    GLMForConditionalGeneration.from_pretrained(made_repository).save_pretrained(saved)
    GLMTokenizerFast.from_pretrained(made_repository).save_pretrained(saved)
    (saved / "requirements.txt").write_text("torch\n")
    complete_repository(saved)
    assert "my-tuned-glm" in (saved / "README.md").read_text(encoding="utf-8")
    assert (saved / "requirements.txt").read_text() == "torch\n"
    handler = (made_repository / "handler.py").read_bytes()
    assert (saved / "handler.py").read_bytes() == handler
    assert all(check.passed is not False for check in verify_repository(saved))


@pytest.mark.parametrize("changed", ["a weight is gone", "other code"])
def test_what_was_saved_and_damaged_does_not_verify(made_repository, tmp_path, changed):
    saved = tmp_path / "saved"
    GLMForConditionalGeneration.from_pretrained(made_repository).save_pretrained(saved)
    GLMTokenizerFast.from_pretrained(made_repository).save_pretrained(saved)
    if changed == "other code":
        (saved / "evil.py").write_text("print('executed')")
    else:
        (saved / "model.safetensors").write_bytes(b"")
    assert any(check.passed is False for check in verify_repository(saved))
