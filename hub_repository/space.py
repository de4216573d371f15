"""A repository that the Hub can run, too, as a Space: its page, and what the Hub must know."""

import shutil
from pathlib import Path

from ..configuration_glm import GLMConfig
from ..tokenization_glm import GLMTokenizerFast
from .config import fills_blanks
from .errors import RepositoryError

PAGE = Path(__file__).resolve().parents[1] / "apps" / "page.py"
APP = "app.py"
# A version that the page is tested with, and that goes with the Transformers of requirements.txt.
SETTINGS_OF_A_SPACE = {"sdk": "gradio", "sdk_version": "6.31.0", "app_file": APP}


def check_has_page(config: GLMConfig, tokenizer: GLMTokenizerFast | None) -> None:
    if tokenizer is None or not fills_blanks(config):
        raise RepositoryError("A page is for a model that fills blanks; leave --space out.")


def add_space(folder: Path) -> None:
    """Add the page to a repository that is being written, and to its card how it is run."""
    shutil.copyfile(PAGE, folder / APP)
    card = folder / "README.md"
    settings = "".join(f"{name}: {value}\n" for name, value in SETTINGS_OF_A_SPACE.items())
    text = card.read_text(encoding="utf-8")
    card.write_text(text.replace("---\n", f"---\n{settings}", 1), encoding="utf-8")
