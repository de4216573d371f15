"""Answers while they are written: streamers for `generate`, which tell one blank from the next.

for chunk in streamer:  # PieceChunk(blank=0, text="Stanford ", ended=False), ...
    show(chunk.blank, chunk.text)
"""

from collections.abc import Callable, Iterator
from queue import Queue
from typing import NamedTuple, cast

import torch
from transformers.generation.streamers import BaseStreamer

from .tokenization_glm import GLMTokenizerFast

INCOMPLETE = "\ufffd"  # what a character is decoded as before its last token is there


class PieceChunk(NamedTuple):
    """The next characters of an answer.

    Attributes:
        blank: the number of its blank, from 0.
        text: all chunks of a blank together are what `decode_pieces` gives of it. It may be empty.
        ended: whether the answer ends with it.
    """

    blank: int
    text: str
    ended: bool


class PieceStreamer(BaseStreamer):
    """Hands on the answers to one text as they are generated, blank after blank.

    A character of several tokens is handed on when it is whole, white space when something follows
    it. It serves one call of `generate` after the other, not two at once.

    Args:
        tokenizer: the model's.
        on_chunk: called with each `PieceChunk`.
        decode_kwargs: of `tokenizer.decode`.

    Example:
        >>> streamer = PieceStreamer(tokenizer, on_chunk=print)
        >>> model.generate(**inputs, streamer=streamer)
    """

    def __init__(
        self,
        tokenizer: GLMTokenizerFast,
        on_chunk: Callable[[PieceChunk], object],
        **decode_kwargs,
    ):
        self.tokenizer = tokenizer
        self.on_chunk = on_chunk
        self.decode_kwargs = decode_kwargs
        self._wait_for_a_prompt()

    def _wait_for_a_prompt(self):
        self.blanks = 0
        self._wait_for_answer(0)

    def _wait_for_answer(self, blank: int):
        self.blank = blank
        self.ids: list[int] = []
        self.shown = ""  # what was handed on of them

    def put(self, value: torch.Tensor):
        """Take the prompt (1, N), then tokens (T,) as they come.

        Raises:
            ValueError: for a batch of several texts.
        """
        if value.dim() > 1 and len(value) > 1:
            raise ValueError("A PieceStreamer shows one text; give each its own call of generate.")
        ids = value.flatten().tolist()
        # A prompt, also behind a generation that failed; tokens hold no start.
        if value.dim() > 1 and self.tokenizer.sop_token_id in ids:
            ids = self._read_prompt(ids)
        for id in ids:
            self._put_token(id)

    def _read_prompt(self, ids: list[int]) -> list[int]:
        """Count the blanks of a prompt; returns what it has of answers already."""
        self._wait_for_answer(0)
        start = ids.index(self.tokenizer.sop_token_id)
        masks = set(self.tokenizer.mask_token_ids)
        self.blanks = sum(id in masks for id in ids[:start])
        return ids[start + 1 :]

    def _put_token(self, id: int):
        if self.blank == self.blanks:
            return  # padding behind the last answer
        if id in (self.tokenizer.eop_token_id, self.tokenizer.eos_token_id):
            self._hand_on(ended=True)
            self._wait_for_answer(self.blank + 1)
        else:
            self.ids.append(id)
            self._hand_on(ended=False)

    def _hand_on(self, ended: bool):
        text = cast(str, self.tokenizer.decode(self.ids, **self.decode_kwargs)).strip()
        if not ended:
            text = text.rstrip(INCOMPLETE).rstrip()
        new = text[len(self.shown) :]
        if new or ended:
            self.on_chunk(PieceChunk(self.blank, new, ended))
            self.shown = text

    def end(self):
        """The end of a generation, and of its last answer if that was broken off."""
        if self.ids:
            self._hand_on(ended=True)
        self._wait_for_a_prompt()


class PieceIteratorStreamer(PieceStreamer):
    """A `PieceStreamer` that is an iterator over the chunks, while `generate` runs in a thread.

    Args:
        timeout: seconds to wait for a chunk, then `queue.Empty` is raised; by default there is no
            limit. Call `end` where `generate` fails, or the iterator waits for ever.

    Example:
        >>> streamer = PieceIteratorStreamer(tokenizer)
        >>> Thread(target=model.generate, kwargs={**inputs, "streamer": streamer}).start()
        >>> for chunk in streamer:
        ...     print(chunk.blank, chunk.text)
    """

    def __init__(self, tokenizer: GLMTokenizerFast, timeout: float | None = None, **decode_kwargs):
        self.timeout = timeout
        self.chunks: Queue[PieceChunk | None] = Queue()
        super().__init__(tokenizer, self.chunks.put, **decode_kwargs)

    def end(self):
        super().end()
        self.chunks.put(None)

    def __iter__(self) -> Iterator[PieceChunk]:
        while (chunk := self.chunks.get(timeout=self.timeout)) is not None:
            yield chunk
