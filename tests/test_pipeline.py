"""The text2text-generation pipeline, from a repository and on a model in hand."""

import subprocess
import sys

import pytest
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, pipeline

from glm_transformers import GLMText2TextGenerationPipeline

TEXTS = [
    "Ng is an adjunct professor at [MASK].",
    "[MASK] is located in [sMASK] now",
    "The quick brown fox",
]
LIMITS = dict(max_new_tokens=12, max_piece_length=4)


@pytest.fixture(scope="module", params=["task named", "task omitted", "in hand"])
def fill(request, made_repository):
    if request.param == "task named":
        return pipeline("text2text-generation", model=str(made_repository), trust_remote_code=True)
    if request.param == "task omitted":
        return pipeline(model=str(made_repository), trust_remote_code=True)
    model = AutoModelForSeq2SeqLM.from_pretrained(made_repository, trust_remote_code=True)
    return GLMText2TextGenerationPipeline(
        model=model,
        tokenizer=AutoTokenizer.from_pretrained(made_repository, trust_remote_code=True),
    )


def direct(fill, text):
    inputs = fill.tokenizer(text, return_tensors="pt")
    return fill.tokenizer.decode_pieces(fill.model.generate(**inputs, **LIMITS))[0]


def test_what_it_returns(fill):
    for text, blanks in zip(TEXTS, (1, 2, 1)):
        (result,) = fill(text, **LIMITS)
        prompt = text if "MASK]" in text else f"{text} [gMASK]"
        assert result["blanks"] == direct(fill, prompt) and len(result["blanks"]) == blanks
        assert result["generated_text"] == " ".join(result["blanks"])
        assert result["filled_text"] == fill.tokenizer.fill(prompt, result["blanks"])
        assert "MASK]" not in result["filled_text"]


def test_lists_generators_datasets_and_batches(fill):
    from datasets import Dataset
    from transformers.pipelines.pt_utils import KeyDataset

    expected = [fill(text, **LIMITS)[0] for text in TEXTS]
    assert fill(TEXTS, **LIMITS) == expected
    assert fill(TEXTS, batch_size=2, **LIMITS) == expected
    assert fill(TEXTS, batch_size=3, **LIMITS) == expected
    assert [
        result for (result,) in fill((text for text in TEXTS), batch_size=2, **LIMITS)
    ] == expected
    dataset = KeyDataset(Dataset.from_dict({"text": TEXTS}), "text")
    assert [result for (result,) in fill(dataset, batch_size=2, **LIMITS)] == expected


def test_several_sequences_for_each_text(fill):
    results = fill(TEXTS[0], num_beams=4, num_return_sequences=3, **LIMITS)
    assert len(results) == 3 and len({result["generated_text"] for result in results}) == 3
    results = fill(TEXTS[:2], num_beams=4, num_return_sequences=3, batch_size=2, **LIMITS)
    assert [len(row) for row in results] == [3, 3]


def test_dictionaries_of_generate(fill):
    assert fill(TEXTS, batch_size=2, return_dict_in_generate=True, **LIMITS) == fill(
        TEXTS, **LIMITS
    )


def test_a_prompt_that_ends_with_white_space(fill):
    """The mask swallows it: the same answer, and no second space in the text."""
    (spaced,), (plain,) = fill(TEXTS[2] + " ", **LIMITS), fill(TEXTS[2], **LIMITS)
    assert spaced == plain


def test_empty_prompt(fill):
    with pytest.raises(ValueError, match="must be a text with something in it"):
        fill("  ")


def test_saved_model_carries_every_shipped_file_and_works_again(made_repository, tmp_path):
    """Saved through the library in one process, used in another, from another directory."""
    save = (
        "import sys; from transformers import AutoModelForSeq2SeqLM as M, AutoTokenizer as T\n"
        "M.from_pretrained(sys.argv[1], trust_remote_code=True).save_pretrained(sys.argv[2])\n"
        "T.from_pretrained(sys.argv[1], trust_remote_code=True).save_pretrained(sys.argv[2])"
    )
    saved = tmp_path / "saved"
    subprocess.run(
        [sys.executable, "-c", save, made_repository, saved],
        check=True,
        capture_output=True,
        cwd=tmp_path,
    )
    shipped = {"configuration_glm.py", "modeling_glm.py", "tokenization_glm.py", "pipeline_glm.py"}
    assert shipped <= {file.name for file in saved.iterdir()}
    use = (
        "import sys; from transformers import pipeline\n"
        "fill = pipeline('text2text-generation', model=sys.argv[1], trust_remote_code=True)\n"
        f"print(fill({TEXTS[1]!r}, max_new_tokens=12, max_piece_length=4))"
    )
    outputs = []
    for folder in (made_repository, saved):
        run = subprocess.run(
            [sys.executable, "-c", use, folder],
            check=True,
            capture_output=True,
            text=True,
            cwd=tmp_path,
        )
        outputs.append(run.stdout.strip().splitlines()[-1])
    assert outputs[0] == outputs[1] and "filled_text" in outputs[0]
