"""What Hugging Face Inference Endpoints calls.

The serverless service runs no code from a repository, an endpoint does. What a request may ask for
is listed here, each with its limits: it comes from strangers.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from transformers import pipeline

# Any, because it is the repository's own task and none that the library's types know.
TASK: Any = "text2text-generation"
MOST_TEXTS = 32
MOST_BLANKS = 512
MOST_WORDS = 1000  # that are allowed, or forbidden
MOST_OF_A_WORD = 200  # characters
MOST_CHARACTERS = 20_000  # of one text: more than the longest context of any model holds
# Tokens of one of the alternatives: their search keeps all scores of each step, for each beam.
LONGEST_ALTERNATIVE = 64

# What is wrong with a value, or None.
Check = Callable[[Any], str | None]


@dataclass(frozen=True)
class Number:
    """A check of a number: what it must be, if it is not."""

    kind: type
    lowest: float
    highest: float

    def __call__(self, value) -> str | None:
        allowed = (int,) if self.kind is int else (int, float)
        # In Python true is an integer.
        is_number = isinstance(value, allowed) and not isinstance(value, bool)
        if is_number and self.lowest <= value <= self.highest:
            return None
        what = "an integer" if self.kind is int else "a number"
        return f"must be {what} from {self.lowest} to {self.highest}"


def for_each_blank(check: Check) -> Check:
    """A check of one for all blanks, or of a list with one for each."""

    def check_each(value) -> str | None:
        if not isinstance(value, list):
            return check(value)
        if not 0 < len(value) <= MOST_BLANKS:
            return f"must be a list of 1 to {MOST_BLANKS} entries"
        wrong = [check(entry) for entry in value if entry is not None]
        return next((what for what in wrong if what is not None), None)

    return check_each


def words(value) -> str | None:
    """A check of texts that are looked for in answers, or allowed as such."""
    if (
        isinstance(value, list)
        and 0 < len(value) <= MOST_WORDS
        and all(isinstance(word, str) and len(word) <= MOST_OF_A_WORD for word in value)
    ):
        return None
    return f"must be a list of 1 to {MOST_WORDS} texts of at most {MOST_OF_A_WORD} characters"


def lists_of_words(value) -> str | None:
    """A check of a list of such texts, or null, for each blank."""
    if not isinstance(value, list):
        return "must be a list with an entry for each blank"
    lists = [entry for entry in value if isinstance(entry, list)]
    if sum(map(len, lists)) > MOST_WORDS:
        return f"must be lists of {MOST_WORDS} texts together"
    return for_each_blank(words)(value)


def true_or_false(value) -> str | None:
    return None if isinstance(value, bool) else "must be true or false"


PARAMETERS: dict[str, Check] = {
    "max_new_tokens": Number(int, 1, 1024),
    "min_new_tokens": Number(int, 0, 1024),
    "min_piece_length": for_each_blank(Number(int, 0, 1024)),
    "max_piece_length": for_each_blank(Number(int, 1, 1024)),
    "allowed_answers": lists_of_words,
    "bad_words": words,
    "alternatives": Number(int, 1, 10),
    "do_sample": true_or_false,
    "temperature": Number(float, 0.01, 100),
    "top_k": Number(int, 0, 1000),
    "top_p": Number(float, 0.01, 1),
    "typical_p": Number(float, 0.01, 1),
    "repetition_penalty": Number(float, 0.01, 10),
    "no_repeat_ngram_size": Number(int, 0, 100),
    "num_beams": Number(int, 1, 8),
    "early_stopping": true_or_false,
    "length_penalty": Number(float, -10, 10),
    "num_return_sequences": Number(int, 1, 8),
    "truncation": true_or_false,
}
# What else is asked of them beside alternatives.
OF_ALTERNATIVES: dict[str, Check] = {
    "max_new_tokens": Number(int, 1, LONGEST_ALTERNATIVE),
    "max_piece_length": for_each_blank(Number(int, 1, LONGEST_ALTERNATIVE)),
}


class EndpointHandler:
    """Fills the blanks of texts.

    A request is {"inputs": a text or a list of texts, "parameters": some of `PARAMETERS`}, of which
    the second is optional; the answer is that of the `text2text-generation` pipeline.
    """

    def __init__(self, path: str = ""):
        self.fill = pipeline(
            TASK,
            model=path,
            trust_remote_code=True,  # the code beside this file
            dtype="auto",
        )

    def __call__(self, data: dict) -> list:
        """
        Raises:
            ValueError: for a request that asks for anything else; it names the field.
        """
        inputs, parameters = read_request(data)
        return self.fill(inputs, **parameters)


def read_request(data) -> tuple[str | list[str], dict]:
    """The texts and the parameters of a request, checked before any work."""
    if not isinstance(data, dict):
        raise ValueError('A request must be an object; send {"inputs": "a text with a [MASK]"}.')
    for name in data:
        if name not in ("inputs", "parameters", "options"):  # clients of the Hub send options
            raise ValueError(
                f"{shown(name)} is no field of a request; send inputs, and what generation is to "
                "heed in parameters."
            )
    inputs: Any = data.get("inputs")
    check_texts("inputs", inputs)
    parameters: Any = data.get("parameters")
    parameters = {} if parameters is None else parameters
    check_parameters(parameters)
    if "alternatives" in parameters:
        parameters = bound_alternatives(parameters)
    return inputs, {name: as_generate_takes(name, value) for name, value in parameters.items()}


def check_texts(name: str, texts):
    if isinstance(texts, str):
        return check_text(name, texts)
    if not isinstance(texts, list) or not texts:
        raise ValueError(
            f'{name} must be texts; send {{"{name}": "a text with a [MASK]"}} or a list.'
        )
    if len(texts) > MOST_TEXTS:
        raise ValueError(f"{name} has {len(texts)} texts; send at most {MOST_TEXTS} at once.")
    for number, text in enumerate(texts):
        check_text(f"{name}[{number}]", text)


def check_text(name: str, text):
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"{name} must be a text with something in it; send one with a [MASK].")
    if len(text) > MOST_CHARACTERS:
        raise ValueError(
            f"{name} has {len(text)} characters; send at most {MOST_CHARACTERS} in a text."
        )
    check_characters(name, text)


def check_characters(name: str, text: str):
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError(f"{name} holds half of a character; send a text that UTF-8 can hold.")


def check_parameters(parameters):
    """Raise a ValueError for parameters that are not listed, or contradict each other."""
    if not isinstance(parameters, dict):
        raise ValueError(
            'parameters must be an object; send them like {"parameters": {"max_new_tokens": 32}}.'
        )
    check_values("parameters.", parameters, PARAMETERS)
    for word in parameters.get("bad_words", []):
        check_characters("parameters.bad_words", word)
    for of_blank in parameters.get("allowed_answers", []):
        for answer in of_blank or []:
            check_characters("parameters.allowed_answers", answer)
    if "alternatives" in parameters:
        lengths = {name: parameters[name] for name in OF_ALTERNATIVES if name in parameters}
        check_values("With alternatives parameters.", lengths, OF_ALTERNATIVES)
    sequences = parameters.get("num_return_sequences", 1)
    beams = parameters.get("num_beams", 1)
    if sequences > beams and not parameters.get("do_sample"):
        raise ValueError(
            f"parameters.num_return_sequences is {sequences} and num_beams {beams}; send as many "
            "beams, or do_sample."
        )


def bound_alternatives(parameters: dict) -> dict:
    """The parameters with a longest answer, where none is given."""
    bounded = {"max_new_tokens": LONGEST_ALTERNATIVE, **parameters}
    lengths = parameters.get("max_piece_length")
    if isinstance(lengths, list):
        bounded["max_piece_length"] = [length or LONGEST_ALTERNATIVE for length in lengths]
    return bounded


def as_generate_takes(name: str, value):
    """The library refuses 2 where it expects 2.0."""
    check = PARAMETERS[name]
    return float(value) if isinstance(check, Number) and check.kind is float else value


def check_values(prefix: str, values: dict, known: dict[str, Check]):
    for name, value in values.items():
        if name not in known:
            raise ValueError(f"{prefix}{shown(name)} is not known; send any of {', '.join(known)}.")
        wrong = known[name](value)
        if wrong is not None:
            raise ValueError(f"{prefix}{name} {wrong}; send such a one, not {shown(value)}.")


def shown(value) -> str:
    """What a stranger sent, short and without control characters."""
    if isinstance(value, str):
        return repr(value if len(value) <= 40 else f"{value[:40]}...")
    if isinstance(value, (bool, float)) or (isinstance(value, int) and abs(value) < 10**15):
        return repr(value)
    return f"a {type(value).__name__}"
