"""The main job on a small real model, without a network: convert, verify, load, fill blanks."""

import logging
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, pipeline

from .apps.fill import filled
from .conversion import ConversionError, convert_checkpoint, verify_repository
from .hub_repository.origin import Origin

EXAMPLES = Path(__file__).with_name("examples")
CHECKPOINT = EXAMPLES / "demo_checkpoint"

TEXTS = {
    "a blank": "Paris is the capital of [MASK].",
    "several blanks": "[MASK] is the capital of Italy and the river [MASK] flows through it.",
    "a sentence": "What is a young cow called? [sMASK]",
    "left to right": "The opposite of hot is [gMASK]",
}
ORIGIN = Origin(
    description="It is the demo of glm-transformers, small enough to have been trained on two CPU "
    "cores in half an hour.",
    data="Sentences that a program wrote from tables of facts: countries with their capitals, "
    "continents, languages, rivers and mountains; animals with their young, sounds, food and legs; "
    "numbers and sums, days, months, units, colours and opposites. The program, `corpus.py`, comes "
    "with glm-transformers.",
    license={"license": "apache-2.0"},
    limits="This model has read nothing but sentences about a few hundred facts, and knows nothing "
    "else: to any other question it answers with one of their words.",
    prompts={
        "[MASK]": TEXTS["a blank"],
        "[sMASK]": TEXTS["a sentence"],
        "[gMASK]": TEXTS["left to right"],
    },
)
# What the checkpoint's tensors cannot tell.
OPTIONS: dict[str, Any] = {
    "vocab": EXAMPLES / "demo_vocabulary",
    "num_attention_heads": 4,
    "tokenizer": "gpt2",
    "task_mask": True,
    "results": EXAMPLES / "demo_results.json",
    "origin": ORIGIN,
}

# Any, because it is the repository's own task and none that the library's types know.
TASK: Any = "text2text-generation"
PIPELINE_TEXT = "A spider has [MASK] legs."
KNOWS = (
    "It is as small as can be: it knows short sentences on countries, capitals, rivers, animals, "
    "small numbers, days, months, units, colours and opposites, and nothing else."
)
QUESTION = "The capital of Spain is [MASK]."


def run_demo(output: Path) -> None:
    """Convert the demo checkpoint to `output`, or use what an earlier run left there; fill blanks.

    Raises:
        ConversionError: if something else is at `output`.
    """
    console = Console(highlight=False, soft_wrap=True)
    convert(console, output)
    fill_with_the_model(console, output)
    fill_with_the_pipeline(console, output)
    console.print(f"The repository is [bold]{output.resolve()}[/].")
    console.print(KNOWS)
    console.print("[bold]Ask it yourself[/]:")
    console.print("  glm fill", Text(f'{shlex.quote(str(output))} "{QUESTION}"'))


def convert(console: Console, output: Path) -> None:
    found = output.exists()
    if not found:
        console.print("[bold]Convert[/] the original checkpoint")
        with own_vocabulary():
            convert_checkpoint(CHECKPOINT, output, **OPTIONS)
    checks = verify_repository(output, CHECKPOINT)
    if found and not all(check.passed for check in checks):
        raise ConversionError(
            f"{output} exists and is not the demo's repository; choose another place."
        )
    console.print("[bold]Verify[/] the repository:", ", ".join(check.name for check in checks))
    for check in checks:
        if not check.passed:
            console.print(f"  [red]failed[/] {check.name}:", Text(check.detail))


@contextmanager
def own_vocabulary() -> Iterator[None]:
    """Leaves out the remark that the vocabulary is not the original's: the demo has its own."""

    def is_other(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith("A remark on the tokenizer")

    conversion = logging.getLogger(convert_checkpoint.__module__)
    conversion.addFilter(is_other)
    try:
        yield
    finally:
        conversion.removeFilter(is_other)


def fill_with_the_model(console: Console, output: Path) -> None:
    console.print("[bold]Fill blanks[/] with AutoModelForSeq2SeqLM, all in one call")
    tokenizer = AutoTokenizer.from_pretrained(output, trust_remote_code=True)
    model = AutoModelForSeq2SeqLM.from_pretrained(output, trust_remote_code=True).eval()
    inputs = tokenizer(list(TEXTS.values()), padding=True, return_tensors="pt")
    outputs = model.generate(**inputs, max_new_tokens=40, max_piece_length=16)
    answers = tokenizer.decode_pieces(outputs)
    for (kind, text), pieces in zip(TEXTS.items(), answers, strict=True):
        show(console, kind, text, pieces, tokenizer)


def fill_with_the_pipeline(console: Console, output: Path) -> None:
    console.print("[bold]Fill a blank[/] with the pipeline")
    fill = pipeline(TASK, model=str(output), trust_remote_code=True)
    (result,) = fill(PIPELINE_TEXT, max_new_tokens=8)
    show(console, "a blank", PIPELINE_TEXT, result["blanks"], fill.tokenizer)


def show(console: Console, kind: str, text: str, pieces: list[str], tokenizer) -> None:
    """The text with its masks, and with its pieces, in colour."""
    console.print(f"  {kind:<15}", filled(text, [], tokenizer))
    console.print(f"  {'':<15}", filled(text, pieces, tokenizer))
