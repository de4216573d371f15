"""`glm fill`: the blanks of texts, in a terminal or in a pipe."""

import json
import sys
from dataclasses import dataclass

from rich.console import Console
from rich.text import Text
from transformers import set_seed

from ..pipeline_glm import GLMText2TextGenerationPipeline
from .options import Filling
from .pipeline import open_pipeline

MASK_STYLE, ANSWER_STYLE = "yellow", "bold green"
# A terminal would obey what is shown as a picture here; each character stays one character.
CONTROL_PICTURES = {code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n"}


def fill(options: Filling) -> None:
    """Fill the blanks of the texts that are given, or asked for, and show them.

    Raises:
        ValueError: one sentence on what is wrong with the options or a text, before any is filled.
    """
    texts = read_texts(options)
    pipeline = open_pipeline(options.repository, options.dtype, options.device)
    if options.seed is not None:
        set_seed(options.seed)
    filler = Filler(pipeline, options, Console(highlight=False, soft_wrap=True))
    if texts is None:
        converse(filler)
        return
    check_texts(texts, filler)
    for text in texts:
        filler.show(text)


# --- What is to be filled -------------------------------------------------------------------------


def read_texts(options: Filling) -> list[str] | None:
    """The texts of the command line or of standard input; None if somebody sits there."""
    if options.texts:
        return options.texts
    sys.stdin.reconfigure(errors="surrogateescape")  # type: ignore[union-attr]  # told of later
    if sys.stdin.isatty():
        return None
    texts = [line.removesuffix("\n") for line in sys.stdin]
    if not any(text.strip() for text in texts):
        raise ValueError(
            "Standard input holds no text; write one a line, or pass them as arguments."
        )
    return texts


def check_texts(texts: list[str], filler: "Filler") -> None:
    for number, text in enumerate(texts, start=1):
        if filler.options.texts is None and not text.strip():
            continue  # an empty line stays one, so that lines can be told by their number
        try:
            filler.pipeline.check_readable(text)
        except ValueError as error:
            raise ValueError(f"Text {number}: {error}" if len(texts) > 1 else str(error)) from None


def converse(filler: "Filler") -> None:
    """Ask for texts until the input ends."""
    try:
        import readline  # noqa: F401  # gives `input` a history and arrow keys
    except ModuleNotFoundError:  # on Windows, whose terminals have both
        pass
    masks = " or ".join(filler.pipeline.tokenizer.masks)
    filler.console.print(Text(f"Write {masks} where words are missing; Ctrl-D ends."))
    while True:
        try:
            text = input("> ")
        except EOFError:
            filler.console.print()
            return
        if not text.strip():
            continue
        try:
            filler.pipeline.check_readable(text)
            filler.show(text)
        except ValueError as error:
            filler.console.print(Text(str(error), style="red"))


# --- How it is shown ------------------------------------------------------------------------------


@dataclass
class Filler:
    """Fills the blanks of one text after the other, and shows each as the options say."""

    pipeline: GLMText2TextGenerationPipeline
    options: Filling
    console: Console

    def show(self, text: str) -> None:
        result = self._fill(text)
        if self.options.json:
            print(json.dumps({"text": text, **result}, ensure_ascii=False), flush=True)
        elif not self.console.is_terminal:
            print(result["filled_text"], flush=True)
        else:
            prompt, pieces = self.pipeline.prompt(text), result["blanks"]
            self.console.print(filled(prompt, pieces, self.pipeline.tokenizer))
        if not result["finished"]:
            self._remark("The answers end in the middle; give them more --max-new-tokens.")
        elif "" in result["blanks"]:
            self._remark("The model leaves a blank empty.")

    def _remark(self, sentence: str) -> None:
        """Beside the answers, which may be data of another program."""
        print(sentence, file=sys.stderr)

    def _fill(self, text: str) -> dict:
        """What the pipeline says of the text, and whether it came to the end of each blank."""
        lengths = {
            name: getattr(self.options, name)
            for name in ("max_new_tokens", "max_piece_length")
            if getattr(self.options, name) is not None
        }
        (result,) = self.pipeline(
            [text], do_sample=self.options.sample, return_tensors=True, **lengths
        )
        ends = {self.pipeline.tokenizer.eop_token_id, self.pipeline.tokenizer.eos_token_id}
        ended = sum(id in ends for id in result.pop("generated_token_ids").tolist())
        return {**result, "finished": ended >= len(result["blanks"])}


def masked(text: str, tokenizer) -> Text:
    """The text with its masks in colour."""
    shown = printable(text)
    shown.highlight_words(tokenizer.masks, MASK_STYLE)
    return shown


def filled(text: str, pieces: list[str], tokenizer) -> Text:
    """The text with its blanks filled, and the answers in colour."""
    shown = printable(tokenizer.fill(text, pieces))
    for start, end in tokenizer.answer_spans(text, pieces):
        shown.stylize(ANSWER_STYLE, start, end)
    return shown


def printable(text: str) -> Text:
    return Text(text.translate(CONTROL_PICTURES))
