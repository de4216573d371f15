"""The main job on a small real model, without a network: convert, verify, load, fill blanks."""

import re
from pathlib import Path

from rich.console import Console
from rich.text import Text
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, pipeline

from .conversion import ConversionError, convert_checkpoint, verify_repository

EXAMPLES = Path(__file__).with_name("examples")
CHECKPOINT, VOCABULARY = EXAMPLES / "demo_checkpoint", EXAMPLES / "demo_vocabulary"
# What the checkpoint's tensors cannot tell.
OPTIONS = dict(vocab=VOCABULARY, num_attention_heads=4, tokenizer="gpt2", task_mask=True)

TEXTS = {
    "a blank": "Paris is the capital of [MASK].",
    "several blanks": "[MASK] is the capital of Italy and the river [MASK] flows through it.",
    "a sentence": "What is a young cow called? [sMASK]",
    "left to right": "The opposite of hot is [gMASK]",
}
PIPELINE_TEXT = "A spider has [MASK] legs."


def run_demo(output: Path):
    """Convert the demo checkpoint to `output`, or use what an earlier run left there, and print what it answers.

    Raises:
        ConversionError: if something else is at `output`.
    """
    console = Console(highlight=False)
    if output.exists() and not all(check.passed for check in verify_repository(output, CHECKPOINT)):
        raise ConversionError(
            f"{output} exists and is not the demo's repository; choose another place."
        )
    if not output.exists():
        console.print("[bold]Convert[/] the original checkpoint")
        convert_checkpoint(CHECKPOINT, output, **OPTIONS)
    console.print("[bold]Verify[/] the repository")
    for check in verify_repository(output, CHECKPOINT):
        console.print(
            f"  {'[green]ok[/]' if check.passed else '[red]failed[/]'} {check.name}:",
            Text(check.detail),
        )

    console.print("[bold]Fill blanks[/] with AutoModelForSeq2SeqLM, all in one call")
    tokenizer = AutoTokenizer.from_pretrained(output, trust_remote_code=True)
    model = AutoModelForSeq2SeqLM.from_pretrained(output, trust_remote_code=True).eval()
    inputs = tokenizer(list(TEXTS.values()), padding=True, return_tensors="pt")
    outputs = model.generate(**inputs, max_new_tokens=40, max_piece_length=16)
    for (kind, text), pieces in zip(TEXTS.items(), tokenizer.decode_pieces(outputs)):
        show(console, kind, text, pieces, tokenizer)

    console.print("[bold]Fill a blank[/] with the pipeline")
    fill = pipeline("text2text-generation", model=str(output), trust_remote_code=True)
    show(
        console,
        "a blank",
        PIPELINE_TEXT,
        fill(PIPELINE_TEXT, max_new_tokens=8)[0]["blanks"],
        tokenizer,
    )
    console.print(f"The repository is [bold]{output.resolve()}[/].", soft_wrap=True)


def show(console: Console, kind: str, text: str, pieces: list[str], tokenizer):
    """The text with its masks, and with its pieces, in colour."""
    masks = list(re.finditer("|".join(map(re.escape, tokenizer.masks)), text))
    before, after = Text(text), Text(tokenizer.fill(text, pieces))
    for number, (mask, piece) in enumerate(zip(masks, pieces), start=1):
        before.stylize("yellow", *mask.span())
        end = len(tokenizer.fill(text[: mask.end()], pieces[:number]))
        after.stylize("bold green", end - len(piece), end)
    console.print(f"  {kind:<15}", before)
    console.print(f"  {'':<15}", after)
