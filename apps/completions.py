"""Requests and answers in the form of OpenAI's completions."""

import time
import uuid
from dataclasses import dataclass
from typing import Any

from ..hub_repository.handler import (
    PARAMETERS,
    Check,
    Number,
    check_texts,
    check_values,
    shown,
    true_or_false,
)
from ..pipeline_glm import refuse_draws
from ..streaming_glm import PieceChunk
from ..tokenization_glm import GLMTokenizerFast
from ..training.options import LARGEST_SEED
from .batching import Answer

LOWEST_TEMPERATURE = 0.01  # that the pipeline takes; what is below it is 0


def a_text(value) -> str | None:
    return None if isinstance(value, str) else "must be a text"


# What a request may hold besides its prompt.
FIELDS: dict[str, Check] = {
    "model": a_text,
    "max_tokens": PARAMETERS["max_new_tokens"],
    "temperature": Number(float, 0, 100),
    "top_p": PARAMETERS["top_p"],
    "n": PARAMETERS["num_return_sequences"],
    "seed": Number(int, 0, LARGEST_SEED),
    "stream": true_or_false,
}


@dataclass
class Completion:
    """A request that was checked.

    Attributes:
        prompts: the texts.
        parameters: of the pipeline's call.
        seed: of random choices; None if they may differ.
        stream: whether the answer is sent while it is written.
    """

    prompts: list[str]
    parameters: dict[str, Any]
    seed: int | None
    stream: bool


def read_completion(data: Any, model: str) -> Completion:
    """The request, checked before any work.

    Args:
        data: what was sent.
        model: the name of the one that there is.

    Raises:
        ValueError: for a request that asks for anything else; it names the field.
    """
    if not isinstance(data, dict):
        raise ValueError('A request must be an object; send {"prompt": "a text with a [MASK]"}.')
    prompt: Any = data.get("prompt")
    check_texts("prompt", prompt)
    # Clients send null for what they leave open.
    given = {name: value for name, value in data.items() if value is not None and name != "prompt"}
    check_values("", given, FIELDS)
    if given.get("model", model) != model:
        raise ValueError(f"model {shown(given['model'])} is not here; send {shown(model)}.")
    prompts = [prompt] if isinstance(prompt, str) else prompt
    sequences = given.get("n", 1)
    stream = given.get("stream", False)
    parameters = {"max_new_tokens": given.get("max_tokens", 16)}  # as OpenAI has it
    # With a temperature of 0 they change nothing; where there is none, draws are meant.
    if "temperature" not in given:
        refuse_draws(given, ("top_p", "seed"), "send a temperature")
    if given.get("temperature", 0) >= LOWEST_TEMPERATURE:
        parameters |= {
            "do_sample": True,
            "temperature": float(given["temperature"]),  # 2 is refused where 2.0 is expected
            "top_p": float(given.get("top_p", 1)),
            "top_k": 0,  # all tokens: the library's 50 is none of OpenAI's parameters
            "num_return_sequences": sequences,
        }
    elif sequences > 1:
        raise ValueError(f"n is {sequences} and all choices are the same; send a temperature.")
    if stream and len(prompts) * sequences > 1:
        raise ValueError("stream gives one choice; send one prompt, and n as 1.")
    return Completion(prompts, parameters, given.get("seed"), stream)


class Completed:
    """What is sent back for a request, whole or in parts.

    Args:
        model: the name of the model.
        tokenizer: whose ends the pieces have.
    """

    def __init__(self, model: str, tokenizer: GLMTokenizerFast):
        self.ends = {tokenizer.eop_token_id, tokenizer.eos_token_id}
        self.head = {
            "id": f"cmpl-{uuid.uuid4().hex}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": model,
        }

    def whole(self, answers: list[Answer]) -> dict[str, Any]:
        """All choices, those of a prompt side by side."""
        sequences = [sequence for answer in answers for sequence in answer.sequences]
        choices = [self.choice(index, sequence) for index, sequence in enumerate(sequences)]
        return {**self.head, "choices": choices, "usage": self.usage(answers)}

    def part(self, chunk: PieceChunk) -> dict[str, Any]:
        """Some more of the text of the only choice."""
        choice = {
            "index": 0,
            "text": chunk.text,
            "logprobs": None,
            "finish_reason": None,
            "blank": chunk.blank,
        }
        return {**self.head, "choices": [choice]}

    def last_part(self, answer: Answer) -> dict[str, Any]:
        """The end of the only choice, whose text has been sent."""
        choice = {**self.choice(0, answer.sequences[0]), "text": ""}
        return {**self.head, "choices": [choice], "usage": self.usage([answer])}

    def choice(self, index: int, sequence: dict[str, Any]) -> dict[str, Any]:
        _, reason = self.read_end(sequence)
        return {
            "index": index,
            "text": sequence["generated_text"],
            "logprobs": None,
            "finish_reason": reason,
            "blanks": sequence["blanks"],
            "filled_text": sequence["filled_text"],
        }

    def usage(self, answers: list[Answer]) -> dict[str, int]:
        prompt = sum(answer.prompt_tokens for answer in answers)
        written = sum(
            self.read_end(sequence)[0] for answer in answers for sequence in answer.sequences
        )
        return {
            "prompt_tokens": prompt,
            "completion_tokens": written,
            "total_tokens": prompt + written,
        }

    def read_end(self, sequence: dict[str, Any]) -> tuple[int, str]:
        """How many tokens were written, and why no more."""
        written = sequence["generated_token_ids"].tolist()[1:]  # behind <|startofpiece|>
        left = len(sequence["blanks"])
        for count, token in enumerate(written, start=1):
            left -= token in self.ends
            if left == 0:
                return count, "stop"  # padding follows
        return len(written), "length"
