"""Draws what `glm demo` prints, for the README: python examples/draw_demo.py docs/demo.svg"""

import re
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console

from glm_transformers.demo import convert, fill_with_the_model, fill_with_the_pipeline

WIDTH = 88  # columns, as many as the longest text takes
# The picture names a font on the web; each reader's own is as good.
FONT_ON_THE_WEB = re.compile(r"@font-face \{.*?\}", flags=re.DOTALL)


def run_recorded(repository: Path) -> Console:
    """A console that holds what the demo printed."""
    console = Console(record=True, width=WIDTH, highlight=False, force_terminal=True)
    console.print("[bold]$ glm demo[/]")
    convert(console, repository)
    fill_with_the_model(console, repository)
    fill_with_the_pipeline(console, repository)
    return console


def main(file: str) -> None:
    with TemporaryDirectory() as folder:
        picture = run_recorded(Path(folder, "glm-demo")).export_svg(title="glm demo")
    Path(file).write_text(FONT_ON_THE_WEB.sub("", picture), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
