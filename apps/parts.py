"""What a run that fills the rows of a file has finished, and a killed one finds again."""

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..hub_repository.files import write_json
from .tables import Answers, Table


class Parts:
    """The filled parts, in a folder beside the output until all are there.

    Args:
        output: where the whole is in the end; the folder has `.parts` behind its name.
    """

    def __init__(self, output: Path):
        self.output = output
        self.folder = Path(f"{output}.parts")

    def file(self, number: int) -> Path:
        return self.folder / f"{number:08d}{self.output.suffix}"

    def begin(self, key: dict[str, Any]) -> None:
        """Go on with what is there.

        Args:
            key: what the answers depend on.

        Raises:
            ValueError: if what is there is of another key.
        """
        file = self.folder / "key.json"
        if not file.exists():
            self.folder.mkdir(exist_ok=True)
            write_json(file, key)
        elif json.loads(file.read_text(encoding="utf-8")) != key:
            raise ValueError(
                f"{self.folder} is of other options, data or another model; give the same as then, "
                "remove it, or choose another output."
            )

    def write(self, number: int, table: Table, part: Any, answers: Sequence[Answers]) -> None:
        unfinished = self.folder / f"{number:08d}.new"
        table.write(part, answers, unfinished)
        os.replace(unfinished, self.file(number))

    def join(self, table: Table) -> None:
        """Put the parts together, and remove them when the whole is there."""
        unfinished = self.folder / "whole.new"
        table.join(sorted(self.folder.glob(f"[0-9]*{self.output.suffix}")), unfinished)
        os.replace(unfinished, self.output)
        shutil.rmtree(self.folder)
