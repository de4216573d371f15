"""Scores of choices and answers from raw text: the original's numbers, and what must not matter."""

import json

import pytest
import torch
from conftest import needs_full_reference, tiny_config
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file
from test_tasks import CLOZE
from transformers import AutoModelForMultipleChoice, AutoModelForSeq2SeqLM, AutoTokenizer

from glm_transformers import (
    GLMForConditionalGeneration,
    GLMForSequenceClassification,
    GLMTokenizerFast,
)
from glm_transformers.evaluation import (
    log_likelihood,
    perplexity,
    score_choices,
    score_packed,
    scoring,
)

FAMILIES = ["tiny-gpt2-fp16", "tiny-bert-fp16", "tiny-chinese-10b-fp16", "tiny-roberta-fp16"]
# In one direction a choice is behind [gMASK], which two of them have.
SCORED = [(name, "bi") for name in FAMILIES] + [(FAMILIES[0], "uni"), (FAMILIES[2], "uni")]
TEXTS = ["Ng is at [MASK].", "[MASK] is located in [MASK] now", "The quick brown fox", "[gMASK]"]
CHOICES = [
    [" Stanford", " Beijing", " the dog"],
    ["Beijing", " Tsinghua Un"],
    [" jumps over", "s", " is lazy", " General"],
    ["There have been", "We"],
]


@pytest.fixture(scope="module")
def tokenizer(made_repository):
    return GLMTokenizerFast.from_pretrained(made_repository)


@pytest.fixture
def model(made_repository):
    return GLMForConditionalGeneration.from_pretrained(made_repository)


def assert_close(actual: list[list[float]], expected: list[list[float]], atol=1e-4):
    for of_text, others in zip(actual, expected, strict=True):
        torch.testing.assert_close(
            torch.tensor(of_text), torch.tensor(others), atol=atol, rtol=0, check_dtype=False
        )


# --- The original's numbers -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def load(repository, reference):
    """`load(name)`: the repository's own code, in float32, with the original's head."""
    loaded = {}

    def load(name):
        if name not in loaded:
            folder = repository(name)
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
            model = AutoModelForSeq2SeqLM.from_pretrained(
                folder, trust_remote_code=True, dtype=torch.float32
            )
            if name == "tiny-chinese-10b-fp16":
                put_back_the_row(model, reference, name)
            loaded[name] = model, tokenizer
        return loaded[name]

    return load


def put_back_the_row(model, reference, name):
    """Conversion gives [gMASK] a copy of a row, which takes its share of every probability."""
    (file,) = (reference / "checkpoints" / name).glob("*/mp_rank_00_model_states.pt")
    rows = torch.load(file, weights_only=False)["module"]["word_embeddings.weight"]
    head = model.lm_head.weight.detach().clone()  # the embedding keeps the copy
    head[50009] = rows[50009].float()
    model.lm_head.weight = torch.nn.Parameter(head)


@needs_full_reference("the scores are probabilities over every row of the vocabulary")
@pytest.mark.parametrize("name, direction", SCORED)
@pytest.mark.parametrize("length_penalty", [0.0, 1.0])
def test_choices_score_as_in_the_original(load, reference, name, direction, length_penalty):
    model, tokenizer = load(name)
    cases = json.loads((reference / "goldens" / name / "multiple_choice.json").read_text())
    cases = [case for case in cases if case["direction"] == direction]
    assert cases
    scores = score_choices(
        model,
        tokenizer,
        [case["inputs_pretokenized"] for case in cases],
        [case["choices_pretokenized"] for case in cases],
        unidirectional=direction == "uni",
        length_penalty=length_penalty,
    )
    field = "length_penalty_1" if length_penalty else "choice_logprob"
    assert_close(scores, [case[field] for case in cases])
    if not length_penalty:
        best = [max(range(len(of_text)), key=of_text.__getitem__) for of_text in scores]
        assert best == [case["prediction"] for case in cases]


@needs_full_reference("only there are all cases")
@pytest.mark.parametrize("name", FAMILIES)
def test_choices_are_read_as_in_the_original(load, reference, name):
    """Ids, positions and targets of each choice, as far as its tokens see them."""
    _, tokenizer = load(name)
    folder = reference / "goldens" / name
    tensors = load_file(folder / "multiple_choice.safetensors")
    for case in json.loads((folder / "multiple_choice.json").read_text()):
        answers = scoring.encode_answers(tokenizer, case["choices_pretokenized"], end_token=False)
        is_bidirectional = case["direction"] == "bi"
        make = scoring.bidirectional_feature
        if not is_bidirectional:
            make = scoring.unidirectional_feature
        feature = make(tokenizer, case["inputs_pretokenized"], answers, case["seq_length"])
        batch = scoring.GLMMultipleChoiceCollator(tokenizer)([feature])
        golden = {f: tensors[f"{case['case']}.{f}"] for f in ("input_ids", "position_ids")}
        if name == "tiny-chinese-10b-fp16":  # where [gMASK] and the end of piece had one id
            golden["input_ids"] = golden["input_ids"].where(golden["input_ids"] != 50007, 50009)
        for number, answer in enumerate(answers):
            column = batch["choice_indices"][0, number, len(answer) - 1]
            seen = batch["attention_mask"][0, 0, column]
            length = int(seen.sum())
            assert torch.equal(batch["input_ids"][0, seen], golden["input_ids"][number, :length])
            assert torch.equal(
                batch["position_ids"][0, :, seen], golden["position_ids"][number, :, :length]
            )
            logit_mask = tensors[f"{case['case']}.logit_mask"][number].bool()
            assert tensors[f"{case['case']}.target_ids"][number][logit_mask].tolist() == answer


@needs_full_reference("the scores are probabilities over every row of the vocabulary")
@pytest.mark.parametrize("name, file", CLOZE)
def test_superglue_scores_as_in_the_original(load, reference, name, file):
    model, tokenizer = load(name)
    cases = json.loads((reference / "goldens" / name / file).read_text())
    cases = [case for case in cases if "label_scores" in case]
    assert cases
    features = [superglue_feature(case, tokenizer) for case in cases]
    for multi_token in (False, True):
        chosen = [case["multi_token"] == multi_token for case in cases]
        of_kind = [case for case, is_chosen in zip(cases, chosen, strict=True) if is_chosen]
        scores = score_packed(
            model,
            tokenizer,
            [feature for feature, is_chosen in zip(features, chosen, strict=True) if is_chosen],
            normalised=multi_token,
        )
        assert_close(scores, [case["label_scores"] for case in of_kind])
        for of_text, case in zip(scores, of_kind, strict=True):
            assert max(range(len(of_text)), key=of_text.__getitem__) == case["prediction"]


def superglue_feature(case: dict, tokenizer) -> dict:
    """Context and answers of an encoded example of the original."""
    sample = case["sample"]
    if not case["multi_token"]:
        return {
            "context": sample["text"][: sample["mask"]],
            "answers": [[id] for id in sample["target"]],
        }
    answers = []
    for said, is_said in zip(sample["target"], sample["logit_mask"], strict=True):
        answers.append([id for id, mark in zip(said, is_said, strict=True) if mark])
    return {"context": sample["text"][0][: sample["mask"][0]], "answers": answers}


# --- What must not matter -------------------------------------------------------------------------


@pytest.mark.parametrize("unidirectional", [False, True])
def test_batches_and_kernels(model, tokenizer, unidirectional):
    options = {"unidirectional": unidirectional}
    expected = score_choices(model, tokenizer, TEXTS, CHOICES, batch_size=1, **options)
    assert [len(scores) for scores in expected] == [len(choices) for choices in CHOICES]
    for attention in ("sdpa", "eager"):
        model.set_attn_implementation(attention)
        for batch_size in (2, 16):
            scores = score_choices(
                model, tokenizer, TEXTS, CHOICES, batch_size=batch_size, **options
            )
            assert_close(scores, expected)
    one_by_one = []
    for text, choices in zip(TEXTS, CHOICES, strict=True):
        one_by_one.append(
            [
                score_choices(model, tokenizer, [text], [[choice]], **options)[0][0]
                for choice in choices
            ]
        )
    assert_close(one_by_one, expected)


def test_any_class_with_the_head_and_adapters_score(made_repository, model, tokenizer):
    expected = score_choices(model, tokenizer, TEXTS, CHOICES)
    tokens = AutoTokenizer.from_pretrained(made_repository, trust_remote_code=True)
    for auto_class in (AutoModelForSeq2SeqLM, AutoModelForMultipleChoice):
        other = auto_class.from_pretrained(made_repository, trust_remote_code=True)
        assert_close(score_choices(other, tokens, TEXTS, CHOICES), expected)
    adapted = get_peft_model(model, LoraConfig(target_modules=["query_key_value"]))
    assert_close(score_choices(adapted, tokenizer, TEXTS, CHOICES), expected)
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight)
    changed = score_choices(adapted, tokenizer, TEXTS, CHOICES)
    assert abs(changed[0][0] - expected[0][0]) > 1e-2


def test_the_mode_of_each_module_is_kept(model, tokenizer):
    model.train()
    model.glm.transformer.layers[0].eval()
    modes = [module.training for module in model.modules()]
    assert score_choices(model, tokenizer, TEXTS, CHOICES) == score_choices(
        model, tokenizer, TEXTS, CHOICES
    ), "without dropout"
    assert [module.training for module in model.modules()] == modes
    with pytest.raises(ValueError, match="Text 1"):
        score_choices(model, tokenizer, ["<|startofpiece|>"], [["a"]])
    assert [module.training for module in model.modules()] == modes


def test_half_precision(model, tokenizer):
    expected = score_choices(model, tokenizer, TEXTS, CHOICES)
    scores = score_choices(model.to(torch.bfloat16), tokenizer, TEXTS, CHOICES)
    assert_close(scores, expected, atol=2.0)


# --- Texts that are too long ----------------------------------------------------------------------

LONG = " quick brown fox" * 40


def test_of_a_long_text_the_right_end_is_kept(model, tokenizer):
    """As in the original; the model has 64 positions."""
    text = LONG + " at [MASK] now"
    with pytest.warns(UserWarning, match="1 of 2 texts were too long"):
        scores = score_choices(model, tokenizer, [text, "a [MASK]"], [["a", "the dog"]] * 2)
    ids = tokenizer(text, add_special_tokens=False).input_ids
    answers = tokenizer(["a", "the dog"], add_special_tokens=False).input_ids
    kept = ids[-(64 - max(map(len, answers)) - 2) :]
    context = [tokenizer.cls_token_id, *kept, tokenizer.eos_token_id]
    expected = score_packed(model, tokenizer, [{"context": context, "answers": answers}])
    assert_close(scores[:1], expected)


@pytest.mark.parametrize("text", [f"at [MASK] {LONG}", f"{LONG} at [MASK] {LONG}"])
def test_the_mask_is_never_cut_away(model, tokenizer, text):
    answers = [[5, 6]]
    feature = scoring.bidirectional_feature(tokenizer, text, answers, 30)
    assert tokenizer.mask_token_id in feature["context"] and len(feature["context"]) == 28
    with pytest.warns(UserWarning, match="too long"):
        assert score_choices(model, tokenizer, [text], [["a"]])[0][0] < 0
    right = scoring.bidirectional_feature(tokenizer, f"{LONG}[MASK] a", answers, 30)
    ids = tokenizer(f"{LONG}[MASK] a", add_special_tokens=False).input_ids
    assert right["context"][1:-1] == ids[-26:]


def test_a_unidirectional_text_keeps_its_right_end(tokenizer):
    feature = scoring.unidirectional_feature(tokenizer, LONG, [[5, 6]], 30)
    assert feature["begun"] == tokenizer(LONG, add_special_tokens=False).input_ids[-26:]
    assert feature["context"] == [tokenizer.cls_token_id, tokenizer.gmask_token_id]


# --- Answers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("end_token", [False, True])
def test_answers_of_all_blanks(model, tokenizer, end_token):
    """Token by token, as they would be generated."""
    texts = ["Ng is at [MASK].", "[MASK] is located in [MASK] now", "The quick"]
    answers = [" Stanford", ["Tsinghua University", " Beijing"], [" fox"]]
    scores = log_likelihood(model, tokenizer, texts, answers, end_token=end_token, batch_size=2)
    model.eval()
    for text, of_text, said in zip(texts, scores, answers, strict=True):
        said = [said] if isinstance(said, str) else said
        text = text if "[MASK]" in text else f"{text}[MASK]"
        read = tokenizer(text).input_ids
        for answer, score in zip(said, of_text, strict=True):
            ids = tokenizer(answer, add_special_tokens=False).input_ids
            ids += [tokenizer.eop_token_id] * end_token
            assert score.tokens == ids and len(score.log_probs) == len(ids)
            read = [*read, tokenizer.sop_token_id]
            best = []
            for id, log_prob in zip(ids, score.log_probs, strict=True):
                with torch.no_grad():
                    expected = model(torch.tensor([read])).logits[0, -1].log_softmax(-1)
                assert log_prob == pytest.approx(float(expected[id]), abs=1e-4)
                best.append(int(expected.argmax()) == id)
                read = [*read, id]
            read = read[:-1]  # the last token of an answer is not read
            assert score.is_greedy == all(best)
            assert score.log_prob == pytest.approx(sum(score.log_probs))


def test_what_greedy_decoding_says_is_greedy(model, tokenizer):
    text = "Ng is at [MASK]."
    inputs = tokenizer(text, return_tensors="pt")
    said = model.generate(**inputs, max_new_tokens=4, eos_token_id=None, do_sample=False)
    ids = said[0, inputs.input_ids.shape[1] + 1 :]
    context = inputs.input_ids[0].tolist()
    (row,) = [scoring.Row(context, *tokenizer.pieces([ids.tolist()]))]
    batch = scoring.TextCollator(tokenizer).pad([row])
    labels = batch.pop("labels")
    where = (labels != -100).nonzero(as_tuple=True)
    assert scoring.score_tokens(model.eval(), batch, *where, labels[where]).is_best.all()


def test_one_choice_is_an_answer(model, tokenizer):
    ((choice,),) = score_choices(model, tokenizer, ["Ng is at [MASK]."], [[" Stanford"]])
    ((answer,),) = log_likelihood(model, tokenizer, ["Ng is at [MASK]."], [" Stanford"])
    assert choice == pytest.approx(answer.log_prob, abs=1e-4)
    (value,) = perplexity(model, tokenizer, ["Ng is at [MASK]."], [" Stanford"])
    assert value == pytest.approx(2.718281828 ** (-answer.log_prob / len(answer.tokens)), rel=1e-5)


# --- Wrong input ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "texts, choices, message",
    [
        ("a [MASK]", [["a"]], "1 lists of choices for one text; pass a list of texts"),
        (["a [MASK]"], [["a"], ["b"]], "2 lists of choices for 1 texts"),
        (["a [MASK]", "b"], [["a"], "bc"], "Text 2: The choices of a text are no list of texts"),
        (["a [MASK]"], [[]], "Text 1: A text has no choices"),
        (["a [MASK]", 5], [["a"], ["a"]], "Text 2: it is no text but int"),
        (["a <|endofpiece|>"], [["a"]], "Text 1: A text holds <|endofpiece|>"),
        (["a [MASK]"], [["fox" * 70]], "Text 1: A choice has .* tokens, which leaves no room"),
    ],
)
def test_choices_that_cannot_be_scored(model, tokenizer, texts, choices, message):
    model.glm.forward = None  # no work is done
    with pytest.raises(ValueError, match=message.replace("|", r"\|")):
        score_choices(model, tokenizer, texts, choices)


@pytest.mark.parametrize(
    "texts, answers, message",
    [
        (["a [MASK]"], "a", "1 answers for 1 texts; pass a list of texts"),
        (["[MASK] [MASK]"], ["a"], "Text 1: it has 2 masks and 1 answers"),
        (["a [MASK]"], [""], "Text 1: A text has no choices or an empty one"),
        ([LONG], ["a"], "Text 1: a context of .* this model has 65 positions"),
    ],
)
def test_answers_that_cannot_be_scored(model, tokenizer, texts, answers, message):
    model.glm.forward = None  # no work is done
    with pytest.raises(ValueError, match=message):
        log_likelihood(model, tokenizer, texts, answers)


def test_features_and_options_that_cannot_be_scored(model, tokenizer):
    model.glm.forward = None  # no work is done
    feature = {"context": [5] * 66, "answers": [[5]]}
    with pytest.raises(ValueError, match="Text 1: a context of 66 tokens"):
        score_packed(model, tokenizer, [feature])
    with pytest.raises(ValueError, match="batch_size is 0"):
        score_choices(model, tokenizer, ["a [MASK]"], [["a"]], batch_size=0)


def test_models_that_cannot_score(model, tokenizer):
    classifier = GLMForSequenceClassification(tiny_config())
    with pytest.raises(ValueError, match="GLMForSequenceClassification says no words"):
        score_choices(classifier, tokenizer, ["a"], [["a"]])
    plain = GLMForConditionalGeneration(tiny_config(block_position_encoding=False))
    with pytest.raises(ValueError, match="This model has no block positions"):
        log_likelihood(plain, tokenizer, ["a"], ["a"])
    prompt = PromptTuningConfig(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=2, num_layers=2)
    prompt.token_dim, prompt.num_attention_heads = 16, 4
    with pytest.raises(ValueError, match="PROMPT_TUNING puts virtual tokens"):
        score_choices(get_peft_model(model, prompt), tokenizer, ["a"], [["a"]])
