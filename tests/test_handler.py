"""What a stranger may ask of an Inference Endpoint: texts, and parameters within their limits."""

import json

import pytest

from glm_transformers.hub_repository import handler
from glm_transformers.hub_repository.handler import PARAMETERS, EndpointHandler, read_request

TEXT = "Ng is [MASK]."


def test_a_good_request():
    assert read_request({"inputs": TEXT}) == (TEXT, {})
    parameters = {"max_new_tokens": 32, "temperature": 1, "do_sample": True, "top_p": 0.9}
    request = {"inputs": [TEXT, "a"], "parameters": parameters, "options": {"use_cache": False}}
    assert read_request(request) == ([TEXT, "a"], parameters)
    assert read_request({"inputs": TEXT, "parameters": None}) == (TEXT, {})
    assert read_request({"inputs": "a" * handler.MOST_CHARACTERS})[1] == {}


@pytest.mark.parametrize(
    "request_, named",
    [
        (None, "A request"),
        ([TEXT], "A request"),
        (TEXT, "A request"),
        ({}, "inputs must"),
        ({"inputs": ""}, "inputs must"),
        ({"inputs": []}, "inputs must"),
        ({"inputs": {"text": TEXT}}, "inputs must"),
        ({"inputs": 4}, "inputs must"),
        ({"inputs": [TEXT, " "]}, r"inputs\[1\] must"),
        ({"inputs": [TEXT, None]}, r"inputs\[1\] must"),
        ({"inputs": [[TEXT]]}, r"inputs\[0\] must"),
        ({"inputs": "a" * 10_000_000}, "inputs has 10000000 characters"),
        ({"inputs": [TEXT, "a" * 20_001]}, r"inputs\[1\] has 20001 characters"),
        ({"inputs": "\ud800 [MASK]"}, "inputs holds half of a character"),
        ({"inputs": [TEXT] * 33}, "inputs has 33 texts"),
        ({"inputs": TEXT, "parameters": [4]}, "parameters must"),
        ({"inputs": TEXT, "parameters": "max_new_tokens"}, "parameters must"),
        ({"inputs": TEXT, "max_new_tokens": 4}, "'max_new_tokens' is no field"),
        ({"inputs": TEXT, "trust_remote_code": True}, "'trust_remote_code' is no field"),
        ({"inputs": TEXT, "x" * 1000: True}, r"'x+\.\.\.' is no field"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_bad_request_names_the_field(request_, named):
    with pytest.raises(ValueError, match=f"^{named}.*send") as raised:
        read_request(request_)
    assert len(str(raised.value)) < 200


@pytest.mark.parametrize(
    "name, value",
    [
        *[
            ("max_new_tokens", value)
            for value in (0, -1, 1025, 4.0, "4", True, None, [4], 10**5000)
        ],
        *[("max_piece_length", value) for value in (0, -3, 1.5)],
        *[("max_piece_length", value) for value in ([], [0], [3, "4"], [3] * 513)],
        *[("min_piece_length", value) for value in (-1, [-1], [[1]])],
        *[("allowed_answers", value) for value in ("a", [], [[]], ["a"], [["a", 4]])],
        *[("allowed_answers", value) for value in ([["a"] * 600] * 2, [["a" * 201]])],
        *[("bad_words", value) for value in ("a", [], [4], ["a"] * 1001, ["a" * 201])],
        *[("alternatives", value) for value in (0, 11, True)],
        *[("num_beams", value) for value in (0, 100_000, "many")],
        *[("num_return_sequences", value) for value in (0, 9)],
        *[("temperature", value) for value in (0, -1.0, float("nan"), float("inf"), "1", True)],
        *[("top_p", value) for value in (0, 1.1)],
        *[("do_sample", value) for value in (1, "true", None)],
        *[("truncation", value) for value in ("only_first", 1)],
    ],
    ids=lambda value: str(value)[:20] if not isinstance(value, int) else "",
)
def test_a_parameter_outside_its_limits_is_named(name, value):
    with pytest.raises(ValueError, match=rf"^parameters\.{name} must be .*; send") as raised:
        read_request({"inputs": TEXT, "parameters": {name: value}})
    assert len(str(raised.value)) < 200


@pytest.mark.parametrize(
    "name",
    [
        "custom_generate",
        "trust_remote_code",
        "generation_config",
        "assistant_model",
        "tokenizer",
        "cache_implementation",
        "prefill_chunk_size",
        "return_tensors",
        "batch_size",
        "max_length",
        "compile_config",
        "num_workers",
        "streamer",
        "eos_token_id",
    ],
)
def test_no_other_parameter_passes(name):
    for value in ("hub/repository", True, {}, None):
        with pytest.raises(ValueError, match=rf"^parameters\.'{name}' is not known; send any of"):
            read_request({"inputs": TEXT, "parameters": {name: value}})


def test_as_many_beams_as_sequences():
    parameters = {"num_return_sequences": 3}
    with pytest.raises(ValueError, match=r"^parameters\.num_return_sequences is 3 and num_beams 1"):
        read_request({"inputs": TEXT, "parameters": parameters})
    for more in ({"num_beams": 3}, {"do_sample": True}):
        assert read_request({"inputs": TEXT, "parameters": {**parameters, **more}})[1]


@pytest.mark.parametrize("name", ["max_new_tokens", "max_piece_length"])
def test_alternatives_have_a_longest_answer(name):
    """Their search keeps the scores of each step."""
    longest = handler.LONGEST_ALTERNATIVE
    asked = {"alternatives": 2, name: longest}
    assert read_request({"inputs": TEXT, "parameters": asked})[1][name] == longest
    with pytest.raises(ValueError, match=rf"^With alternatives parameters\.{name} must.*; send"):
        read_request({"inputs": TEXT, "parameters": {**asked, name: longest + 1}})
    assert read_request({"inputs": TEXT, "parameters": {name: longest + 1}})


def test_alternatives_are_bounded_where_nothing_is_said():
    longest = handler.LONGEST_ALTERNATIVE
    asked = {"alternatives": 2}
    assert read_request({"inputs": TEXT, "parameters": asked})[1]["max_new_tokens"] == longest
    asked["max_piece_length"] = [3, None]
    bounded = read_request({"inputs": TEXT, "parameters": asked})[1]
    assert bounded["max_piece_length"] == [3, longest]


def test_half_a_character_in_a_word_is_one_sentence():
    for name, value in {"bad_words": ["\ud800"], "allowed_answers": [None, ["a\udfff"]]}.items():
        with pytest.raises(ValueError, match=rf"^parameters\.{name} holds half of a character"):
            read_request({"inputs": TEXT, "parameters": {name: value}})


def test_a_request_runs_no_code_and_nothing_runs_before_it_is_checked(made_repository, tmp_path):
    """With the repository's own code, as an endpoint has it."""
    evil = tmp_path / "evil" / "custom_generate"
    evil.mkdir(parents=True)
    mark = tmp_path / "mark"
    (evil / "generate.py").write_text(f"open({str(mark)!r}, 'w').close()\n")
    endpoint = EndpointHandler(str(made_repository))
    assert type(endpoint.fill.model).__module__.startswith("transformers_modules")
    evil_parameters = {"custom_generate": str(evil.parent), "trust_remote_code": True}
    with pytest.raises(ValueError, match="custom_generate"):
        endpoint({"inputs": TEXT, "parameters": evil_parameters})
    assert not mark.exists()
    calls = []
    fill, endpoint.fill = endpoint.fill, lambda *args, **kwargs: calls.append(args)
    for request in ({"inputs": [TEXT, ""]}, {"inputs": TEXT, "parameters": {"num_beams": 10**5}}):
        with pytest.raises(ValueError):
            endpoint(request)
    assert not calls
    endpoint.fill = fill
    parameters = {"max_new_tokens": 8, "max_piece_length": 3, "num_beams": 2}
    answers = endpoint({"inputs": [TEXT, "[MASK] is [MASK]"], "parameters": parameters})
    assert [len(answer["blanks"]) for answer in json.loads(json.dumps(answers))] == [1, 2]
    with pytest.raises(ValueError, match="holds"):
        endpoint({"inputs": "a <|startofpiece|> [MASK]"})


def test_every_parameter_is_one_that_the_pipeline_takes(made_repository):
    """At both of its limits, of a kind that generation accepts."""
    endpoint = EndpointHandler(str(made_repository))
    values = {
        "do_sample": True,
        "early_stopping": True,
        "truncation": True,
        "num_beams": 2,
        "num_return_sequences": 2,
        "max_new_tokens": 6,
        "max_piece_length": [3],
        "allowed_answers": [None],
        "bad_words": ["Oxford"],
        "temperature": 0.7,
        "typical_p": 0.9,
        "top_p": 0.9,
        "repetition_penalty": 1.2,
        "length_penalty": -1.0,
    }
    parameters = {name: values.get(name, 1) for name in PARAMETERS}
    parameters.pop("alternatives")  # it is a way of its own
    assert len(endpoint({"inputs": TEXT, "parameters": parameters})) == 2
    whole = ("temperature", "repetition_penalty", "length_penalty", "top_p", "typical_p")
    parameters |= dict.fromkeys(whole, 1) | {"temperature": 2, "repetition_penalty": 2}
    assert len(endpoint({"inputs": TEXT, "parameters": parameters})) == 2
    parameters = {"alternatives": 2, "allowed_answers": [["a", "b", "c"]], "max_piece_length": 4}
    (answer,) = json.loads(json.dumps(endpoint({"inputs": TEXT, "parameters": parameters})))
    assert len(answer["alternatives"][0]) == 2
    with pytest.raises(ValueError, match="without do_sample"):
        endpoint({"inputs": TEXT, "parameters": {"alternatives": 2, "do_sample": True}})
