"""The text of an answer in parts, while it is written."""

from collections.abc import Callable

import torch
from transformers.generation.streamers import BaseStreamer

from ..tokenization_glm import GLMTokenizerFast

HALF_A_CHARACTER = "\ufffd"  # what a token decodes to that is not all of a character


class TextParts(BaseStreamer):
    """Gives away what is new of an answer's `generated_text`, after each token.

    Args:
        tokenizer: of the model.
        send: called with each part; together they are the text.
    """

    def __init__(self, tokenizer: GLMTokenizerFast, send: Callable[[str], None]):
        self.tokenizer = tokenizer
        self.send = send
        self.ids: list[int] = []  # of the prompt, which comes first, and what is behind it
        self.sent = ""

    def put(self, value: torch.Tensor) -> None:
        self.ids += value.flatten().tolist()  # (1, S), then (1,)
        text = self._text().rstrip()  # a space belongs to what follows it
        if not text.endswith(HALF_A_CHARACTER):
            self._send_up_to(text)

    def end(self) -> None:
        self._send_up_to(self._text())

    def _text(self) -> str:
        (pieces,) = self.tokenizer.decode_pieces([self.ids])
        return " ".join(pieces)

    def _send_up_to(self, text: str) -> None:
        if len(text) > len(self.sent):
            self.send(text[len(self.sent) :])
            self.sent = text
