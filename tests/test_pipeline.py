"""The text2text-generation pipeline, from a repository and on a model in hand."""

import copy
import re

import pytest
import torch
from checkout import ROOT, TESTS
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, pipeline

from glm_transformers import (
    GLMForConditionalGeneration,
    GLMText2TextGenerationPipeline,
    GLMTokenizerFast,
)

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
    for text, blanks in zip(TEXTS, (1, 2, 1), strict=True):
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


@pytest.mark.parametrize("option", [{"temperature": 0.7}, {"top_p": 0.9}, {"top_k": 5}])
def test_options_of_draws_need_draws(fill, option):
    """Where nothing is drawn they would be left out; also the pipeline may say that it draws."""
    (name,) = option
    for draws in ({}, {"do_sample": False}):
        with pytest.raises(ValueError, match=f"{name} is for answers that are drawn; pass do_samp"):
            fill(TEXTS, **option, **draws, **LIMITS)
    (result,) = fill(TEXTS[0], do_sample=True, **option, **LIMITS)
    assert result["blanks"]
    drawing = copy.copy(fill.model.generation_config)
    drawing.do_sample = True
    drawing.max_new_tokens = 12
    assert fill(TEXTS[0], generation_config=drawing, **option)
    made = GLMText2TextGenerationPipeline(
        model=fill.model, tokenizer=fill.tokenizer, do_sample=True, **LIMITS
    )
    assert made(TEXTS[0], **option)
    with pytest.raises(ValueError, match=f"{name} is for answers"):
        made(TEXTS[0], do_sample=False, **option)
    made = GLMText2TextGenerationPipeline(model=fill.model, tokenizer=fill.tokenizer, **option)
    with pytest.raises(ValueError, match=f"{name} is for answers"):
        made(TEXTS[0])


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


@pytest.mark.parametrize("batch_size", [1, 3])
def test_an_empty_text_among_others_loses_no_answer(fill, batch_size):
    expected = [fill(text, **LIMITS)[0] for text in TEXTS]
    empty = {"generated_text": "", "blanks": [], "filled_text": ""}
    texts = [TEXTS[0], "", TEXTS[1], " \n", TEXTS[2]]
    results = [expected[0], empty, expected[1], empty, expected[2]]
    assert fill(texts, batch_size=batch_size, **LIMITS) == results
    streamed = fill((text for text in texts), batch_size=batch_size, **LIMITS)
    assert [result for (result,) in streamed] == results


@pytest.mark.parametrize("token", ["<|startofpiece|>", "<|endofpiece|>", "<|endoftext|>"])
def test_a_command_in_a_prompt(fill, token):
    """An error that names it, before any text of a list is worked on."""
    for inputs in (f"a {token} b [MASK]", [TEXTS[0], f"{token} a"]):
        with pytest.raises(ValueError, match=re.escape(f"A prompt holds {token}")):
            fill(inputs, **LIMITS)
    with pytest.raises(ValueError, match="A prompt must be a text, not None"):
        fill([TEXTS[0], None], **LIMITS)


def test_truncation(fill):
    """A text that is continued loses its left, a text with masks never these."""
    long = "There have been various types of pretraining architectures. " * 12 + TEXTS[2]
    with pytest.raises(ValueError, match="positions"):
        fill(long, **LIMITS)
    (result,) = fill(long, truncation=True, **LIMITS)
    limit = fill.tokenizer.model_max_length
    ids = fill.tokenizer(f"{long} [gMASK]").input_ids
    kept = torch.tensor([[ids[0], *ids[1 - limit :]]])
    output = fill.model.generate(kept, attention_mask=torch.ones_like(kept), **LIMITS)
    assert [result["blanks"]] == fill.tokenizer.decode_pieces(output)
    assert result["filled_text"].startswith(long) and fill.tokenizer.truncation_side == "right"
    with pytest.raises(ValueError, match="Truncation would cut a mask away"):
        fill(f"{long} [MASK]", truncation=True, **LIMITS)
    (result,) = fill(f"[MASK] {long}", truncation=True, **LIMITS)
    assert len(result["blanks"]) == 1


def test_what_is_returned_can_be_chosen(fill):
    inputs = fill.tokenizer(TEXTS[0], return_tensors="pt")
    ids = fill.model.generate(**inputs, **LIMITS)[0, inputs.input_ids.shape[1] :].tolist()
    (texts,) = fill(TEXTS[0], **LIMITS)
    (both,) = fill(TEXTS[0], return_tensors=True, **LIMITS)
    assert both.pop("generated_token_ids").tolist() == ids and both == texts
    options = {"return_tensors": True, "return_text": False, **LIMITS}
    for results in (fill(TEXTS[0], **options), fill(TEXTS[:2], batch_size=2, **options)):
        assert list(results[0]) == ["generated_token_ids"]
        assert results[0]["generated_token_ids"].tolist()[: len(ids)] == ids
    with pytest.raises(ValueError, match="return_text=False leaves nothing"):
        fill(TEXTS[0], return_text=False)


def test_clean_up_of_spaces(fill, monkeypatch):
    seen = []
    decode = type(fill.tokenizer).decode

    def spy(self, ids, **options):
        seen.append(options)
        return decode(self, ids, **options)

    monkeypatch.setattr(type(fill.tokenizer), "decode", spy)
    fill(TEXTS[0], clean_up_tokenization_spaces=True, **LIMITS)
    assert seen == [{"clean_up_tokenization_spaces": True}]


@pytest.mark.parametrize("name", ["stop_sequence", "return_type"])
def test_what_the_former_task_took_and_this_does_not(fill, name):
    with pytest.raises(ValueError, match=f"{name} is not supported; pass"):
        fill(TEXTS[0], **{name: "."})


def test_a_model_that_assists(fill, monkeypatch):
    expected = fill(TEXTS[0], **LIMITS)
    assert fill(TEXTS[0], assistant_model=fill.model, **LIMITS) == expected
    seen = []
    generate = type(fill.model).generate

    def spy(self, *args, **options):
        seen.append(options.get("assistant_model"))
        return generate(self, *args, **options)

    monkeypatch.setattr(type(fill.model), "generate", spy)
    assisted = type(fill)(model=fill.model, tokenizer=fill.tokenizer, assistant_model=fill.model)
    assert assisted(TEXTS[0], **LIMITS) == expected and seen[0] is fill.model


# --- A model in memory ----------------------------------------------------------------------------


@pytest.fixture
def in_memory(made_repository):
    return (
        GLMForConditionalGeneration.from_pretrained(made_repository),
        GLMTokenizerFast.from_pretrained(made_repository),
    )


def test_a_model_of_peft(in_memory):
    import peft

    model, tokenizer = in_memory
    expected = GLMText2TextGenerationPipeline(model=model, tokenizer=tokenizer)(TEXTS, **LIMITS)
    for task_type in (None, "SEQ_2_SEQ_LM", "CAUSAL_LM"):
        config = peft.LoraConfig(target_modules=["query_key_value"], r=2, task_type=task_type)
        wrapped = peft.get_peft_model(copy.deepcopy(model), config).eval()
        fill = GLMText2TextGenerationPipeline(model=wrapped, tokenizer=tokenizer)
        assert fill(TEXTS, **LIMITS) == expected, "a fresh adapter changes nothing"


REGISTERED = """
import sys
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer
from transformers import T5Config, T5ForConditionalGeneration, pipeline, pipelines

tokenizer = AutoTokenizer.from_pretrained(sys.argv[1], trust_remote_code=True)
small = dict(vocab_size=512, d_model=8, d_ff=8, num_layers=1, num_heads=1)
t5 = T5ForConditionalGeneration(T5Config(**small, decoder_start_token_id=0))
native = getattr(pipelines, "Text2TextGenerationPipeline", None)


def of_t5():
    try:
        return type(pipeline("text2text-generation", model=t5, tokenizer=tokenizer))
    except KeyError as error:
        return str(error)[:60]


before = of_t5()
assert before is native or "has been removed" in before
for source in ("repository", "package"):
    if source == "package":
        sys.path.append(sys.argv[2])
        import checkout
        from glm_transformers import GLMForConditionalGeneration as AutoModelForSeq2SeqLM
    model = AutoModelForSeq2SeqLM.from_pretrained(sys.argv[1], trust_remote_code=True)
    fill = pipeline("text2text-generation", model=model, tokenizer=tokenizer)
    assert type(fill).__name__ == "GLMText2TextGenerationPipeline"
    (result,) = fill("[MASK] is in [MASK]", max_new_tokens=12, max_piece_length=3)
    assert len(result["blanks"]) == 2
    assert of_t5() == before
named = pipeline("text2text-generation", model=sys.argv[1], trust_remote_code=True)
assert type(named).__name__ == "GLMText2TextGenerationPipeline"
"""


def test_the_name_of_the_task_for_a_model_in_memory(made_repository, stranger, tmp_path):
    """For GLM models this class, for others what the library had for them, in a fresh process."""
    stranger.output(REGISTERED, made_repository, TESTS, folder=tmp_path)


ENTRIES = ("configuration", "modeling", "tokenization", "collation", "streaming", "pipeline")


@pytest.mark.parametrize("entry", ENTRIES)
def test_what_is_loaded_by_name_names_all_that_it_needs(entry):
    """4.57 fetches what a file imports, and not what these import in their turn."""

    def named(file: str) -> set[str]:
        text = (ROOT / f"{file}.py").read_text(encoding="utf-8")
        return set(re.findall(r"^\s*from \.(\w+) import", text, flags=re.MULTILINE))

    fetched = named(f"{entry}_glm")
    for file in fetched:
        assert named(file) <= fetched | {f"{entry}_glm"}, file


def test_saved_model_carries_every_shipped_file_and_works_again(
    made_repository, stranger, tmp_path
):
    """Saved through the library in one process, used in another, from another directory."""
    save = (
        "import sys; from transformers import AutoModelForSeq2SeqLM as M, AutoTokenizer as T\n"
        "M.from_pretrained(sys.argv[1], trust_remote_code=True).save_pretrained(sys.argv[2])\n"
        "T.from_pretrained(sys.argv[1], trust_remote_code=True).save_pretrained(sys.argv[2])"
    )
    saved = tmp_path / "saved"
    stranger.output(save, made_repository, saved, folder=tmp_path)
    shipped = {"configuration_glm.py", "modeling_glm.py", "tokenization_glm.py", "pipeline_glm.py"}
    shipped |= {"blanks_glm.py", "generation_glm.py", "collation_glm.py"}
    shipped |= {"steering_glm.py", "answers_glm.py", "streaming_glm.py"}
    assert shipped <= {file.name for file in saved.iterdir()}
    use = (
        "import sys; from transformers import pipeline\n"
        "fill = pipeline('text2text-generation', model=sys.argv[1], trust_remote_code=True)\n"
        f"print(fill({TEXTS[1]!r}, max_new_tokens=12, max_piece_length=4))"
    )
    outputs = [
        stranger.output(use, folder, folder=tmp_path).strip().splitlines()[-1]
        for folder in (made_repository, saved)
    ]
    assert outputs[0] == outputs[1] and "filled_text" in outputs[0]
