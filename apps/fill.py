"""`glm fill`: the blanks of texts, in a terminal or in a pipe."""

import json
import sys
from contextlib import nullcontext, suppress
from dataclasses import dataclass

from rich.console import Console
from rich.live import Live
from rich.table import Column, Table
from rich.text import Text
from transformers import set_seed

from ..pipeline_glm import GLMText2TextGenerationPipeline
from ..streaming_glm import PieceChunk, PieceStreamer
from .options import OF_THE_PIPELINE, Filling
from .pipeline import open_pipeline
from .processes import begin, of_main, seed_of, silence

MASK_STYLE, ANSWER_STYLE = "yellow", "bold green"
LEFT_EMPTY = "The model leaves a blank empty."
NOT_CONTINUED = (
    "The model adds nothing to a text without a mask; write [MASK] where words are missing."
)
# A terminal would obey what is shown as a picture here; each character stays one character.
CONTROL_PICTURES = {
    **{code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n"},
    0x7F: 0x2421,
    **dict.fromkeys(range(0x80, 0xA0), 0xFFFD),  # they have no pictures
}


def fill(options: Filling) -> None:
    """Fill the blanks of the texts that are given, or asked for, and show them.

    Raises:
        ValueError: one sentence on what is wrong with the options or a text, before any is filled.
    """
    if options.output is not None:
        raise ValueError("--output is for the rows of a file; pass that as --data.")
    if options.sample and options.all is not None:
        raise ValueError("--all shows the likeliest answers, which are not drawn; drop --sample.")
    state = begin()
    if state.num_processes > 1 and not options.tensor_parallel:
        raise ValueError(
            "Several processes would give the same answers; pass --tensor-parallel, by which they "
            "share the model, or the rows of a file as --data."
        )
    # Standard input is the main process's, and so is what is shown.
    texts = of_main(read_texts(options) if state.is_main_process else None)
    if texts is None and state.num_processes > 1:
        raise ValueError("Several processes cannot ask for texts; pass them as arguments.")
    pipeline = open_pipeline(
        options.repository,
        options.dtype,
        options.device,
        options.quantize,
        options.tensor_parallel,
    )
    seed = seed_of(options)
    if seed is not None:
        set_seed(seed)
    with nullcontext() if state.is_main_process else silence():
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
    texts = [line.removesuffix("\n").removesuffix("\r") for line in sys.stdin]
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
            filler.check(text)
        except ValueError as error:
            raise ValueError(f"Text {number}: {error}" if len(texts) > 1 else str(error)) from None


def converse(filler: "Filler") -> None:
    """Ask for texts until the input ends."""
    with suppress(ModuleNotFoundError):  # on Windows, whose terminals have history and arrow keys
        import readline  # noqa: F401  # gives them to `input`
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
            filler.check(text)
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

    def check(self, text: str) -> None:
        """Raise a ValueError if the text cannot be filled as the options say."""
        self.pipeline.check_readable(text, **self._allowed(text))

    def show(self, text: str) -> None:
        if self.options.json:
            result = self._fill(text)
            print(json.dumps({"text": text, **result}, ensure_ascii=False), flush=True)
        elif self.console.is_terminal:
            result = self._fill_live(text)
        else:
            result = self._fill(text)
            print(result["filled_text"], flush=True)
        if self.options.all is not None and not self.options.json:
            self.console.print(table_of(result["alternatives"]))
        if not result["finished"]:
            self._remark("The answers end in the middle; give them more --max-new-tokens.")
        elif "" in result["blanks"]:
            has_masks = self.pipeline.prompt(text) == text
            self._remark(LEFT_EMPTY if has_masks else NOT_CONTINUED)

    def _fill_live(self, text: str) -> dict:
        """Show the blanks being filled; what the pipeline says of the text."""
        prompt, tokenizer = self.pipeline.prompt(text), self.pipeline.tokenizer
        pieces: list[str] = []

        def take(chunk: PieceChunk) -> None:
            pieces.extend([""] * (chunk.blank + 1 - len(pieces)))
            pieces[chunk.blank] += chunk.text
            live.update(filled(prompt, pieces, tokenizer), refresh=True)

        with Live(
            filled(prompt, [], tokenizer),
            console=self.console,
            auto_refresh=False,
            transient=True,
        ) as live:
            # Alternatives come from a search, which writes no answer from its start to its end.
            streamer = PieceStreamer(tokenizer, take) if self.options.all is None else None
            result = self._fill(text, streamer)
        self.console.print(filled(prompt, result["blanks"], tokenizer))
        return result

    def _remark(self, sentence: str) -> None:
        """Beside the answers, which may be data of another program."""
        print(sentence, file=sys.stderr)

    def _fill(self, text: str, streamer: PieceStreamer | None = None) -> dict:
        """What the pipeline says of the text, and whether it came to the end of each blank."""
        given = {name: getattr(self.options, name) for name in OF_THE_PIPELINE}
        (result,) = self.pipeline(
            [text],
            do_sample=self.options.sample,
            alternatives=self.options.all,
            return_tensors=True,
            streamer=streamer,
            **{name: value for name, value in given.items() if value is not None},
            **self._allowed(text),
        )
        ends = {self.pipeline.tokenizer.eop_token_id, self.pipeline.tokenizer.eos_token_id}
        ended = sum(id in ends for id in result.pop("generated_token_ids").tolist())
        return {**result, "finished": ended >= len(result["blanks"])}

    def _allowed(self, text: str) -> dict[str, list[list[str]]]:
        """The pipeline's option for a text: a list for each blank, if answers are prescribed."""
        if self.options.allowed_answers is None:
            return {}
        answers = [of_blank.split("|") for of_blank in self.options.allowed_answers]
        blanks = self.pipeline.count_blanks(text)
        if len(answers) == 1:
            answers *= blanks
        if len(answers) != blanks:
            raise ValueError(
                f"--allowed-answers is there {len(answers)} times, for {blanks} "
                f"blank{'s' * (blanks > 1)}; give it once for all, or once for each."
            )
        return {"allowed_answers": answers}


def table_of(alternatives: list[list[dict]]) -> Table:
    """For each blank, by its number, the answers with their probabilities."""
    table = Table(
        Column(justify="right"),
        Column(overflow="fold"),
        Column(justify="right"),
        box=None,
        pad_edge=False,
        show_header=False,
    )
    for number, of_blank in enumerate(alternatives, start=1):
        for place, entry in enumerate(of_blank):
            table.add_row(
                "" if place else str(number),
                printable(entry["answer"]),
                percent(entry["probability"]),
            )
    return table


def percent(probability: float) -> str:
    """Of a long answer, whose words are many, each is small."""
    return f"{probability:.1%}" if probability >= 0.001 else "<0.1%"


def filled(text: str, pieces: list[str], tokenizer) -> Text:
    """The text with its first blanks filled; these answers, and the masks left, in colour."""
    shown = printable(tokenizer.fill(text, pieces))
    shown.highlight_words(tokenizer.masks, MASK_STYLE)
    for start, end in tokenizer.answer_spans(text, pieces):
        shown.stylize(ANSWER_STYLE, start, end)
    return shown


def printable(text: str) -> Text:
    return Text(text.translate(CONTROL_PICTURES))
