"""Checks a repository: its files, its weights, its tokenizer, and that it fills a blank.

Nothing in the folder is executed: its weights run in this package's classes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from transformers import GenerationConfig

from ..configuration_glm import GLMConfig
from ..modeling_glm import GLMForConditionalGeneration
from ..tokenization_glm import GLMTokenizerFast
from .config import AUTO_MAP, PIPELINES, build_network, check_sizes, fills_blanks, read_config
from .errors import RepositoryError, library_errors
from .files import hash_file, read_json
from .model_card import size
from .repository import (
    HANDLER,
    PACKAGE,
    RECORD,
    SHIPPED_FILES,
    TOKENIZER_FILES,
    read_record,
)
from .weights import LazyTensor, find_weights, fingerprint, make, verify_weights

PROMPT = "Ng is an adjunct professor at [MASK]."


@dataclass(frozen=True)
class Check:
    """One line of the result; `passed` is None for what could not be checked."""

    name: str
    passed: bool | None
    detail: str


class Verification:
    """One repository under verification; what one check reads, the next ones use."""

    def __init__(self, repository: Path):
        self.repository = repository
        self.config: GLMConfig | None = None
        self.record: dict | None = None
        self.tensors: dict[str, LazyTensor] = {}

    @property
    def copied_rows(self) -> tuple[tuple[int, int], ...]:
        """Rows of the word embeddings that conversion copied, (from, to)."""
        return tuple(map(tuple, (self.record or {}).get("copied_rows", ())))

    @property
    def has_tokenizer(self) -> bool:
        return (self.repository / "tokenizer.json").is_file()

    def files(self) -> str:
        """All files are there, and those that were recorded are as they were."""
        self.config = read_config(self.repository)
        self.record = read_record(self.repository)
        if self.record is None:
            raise RepositoryError(f"{RECORD} is missing or damaged; convert the checkpoint again.")
        recorded = self.record["files"]
        tokenizer = TOKENIZER_FILES if "tokenizer.json" in recorded or self.has_tokenizer else ()
        needed = ("generation_config.json", "README.md", "requirements.txt")
        for name in (*needed, *SHIPPED_FILES, *tokenizer):
            if not (self.repository / name).is_file():
                raise RepositoryError(f"{name} is missing.")
        for name in SHIPPED_FILES:
            if hash_file(self.repository / name) != recorded.get(name):
                raise RepositoryError(
                    f"{name} is not what was converted; it was changed or is damaged."
                )
        return "all there"

    def weights(self) -> str:
        """Names and shapes are the network's, numbers are finite, every byte is as recorded."""
        self.tensors = find_weights(self.repository)
        shapes = {name: tensor.shape for name, tensor in self.tensors.items()}
        check_sizes(self.config, shapes, "config.json")
        checksums = verify_weights(build_network(self.config), self.tensors)
        if fingerprint(self.tensors, checksums) != self.record["weights"]:
            raise RepositoryError(
                "The weights are not those that were converted; they were changed, damaged, or "
                "come from another repository."
            )
        nbytes = sum(tensor.nbytes for tensor in self.tensors.values())
        return f"{len(self.tensors)} tensors, {size(nbytes)}, as converted"

    def tokenizer(self) -> str | None:
        """The tokenizer is the one that was converted with these weights, with their ids."""
        if not self.has_tokenizer:
            return None
        file = self.repository / "tokenizer.json"
        if hash_file(file) != self.record["files"].get(file.name):
            raise RepositoryError(
                "tokenizer.json was not converted with these weights; put the right one back, or "
                "convert again."
            )
        ids = {token["content"]: token["id"] for token in read_json(file)["added_tokens"]}
        if max(ids.values()) >= self.config.vocab_size:
            raise RepositoryError(
                f"The tokenizer has ids up to {max(ids.values())} and the weights "
                f"{self.config.vocab_size} rows."
            )
        for token, id in (
            ("<|startofpiece|>", self.config.sop_token_id),
            ("<|endofpiece|>", self.config.eop_token_id),
        ):
            if ids.get(token) != id:
                raise RepositoryError(
                    f"{token} has id {ids.get(token)} in tokenizer.json and {id} in config.json."
                )
        return f"fits the weights, {len(ids)} special tokens"

    def blank(self) -> str | None:
        """The network fills one blank."""
        if not self.has_tokenizer or not fills_blanks(self.config):
            return None
        if any(
            hash_file(self.repository / name) != hash_file(PACKAGE / name) for name in SHIPPED_FILES
        ):
            raise RepositoryError(
                "Its code is not that of this version, and is not run; convert again to bring it "
                "up to date."
            )
        numbers = sum(torch.Size(tensor.shape).numel() for tensor in self.tensors.values())
        if 1.2 * 4 * numbers > psutil.virtual_memory().available:  # in float32
            return None
        with library_errors("It does not load or generate"):
            tokenizer = GLMTokenizerFast.from_pretrained(self.repository)
            model = build_network(self.config)
            state = {name: make(tensor).float() for name, tensor in self.tensors.items()}
            model.load_state_dict(state, strict=False, assign=True)
            model.tie_weights()
            settings = read_json(self.repository / "generation_config.json")
            model.generation_config = GenerationConfig(**settings)
            inputs = tokenizer([PROMPT], return_tensors="pt")
            outputs = model.eval().generate(**inputs, max_new_tokens=8, do_sample=False)
            pieces = tokenizer.decode_pieces(outputs)[0]
        return f"{PROMPT} -> {pieces[0]!r}"


def verify(repository: Path, compare: Callable[[Verification], str] | None = None) -> list[Check]:
    """Check a repository.

    Args:
        compare: compares the tensors with what they should be; raises if one is not.

    Returns:
        One `Check` each for the files, the weights, the tokenizer, the comparison, and one filled
        blank.
    """
    verification = Verification(repository)
    checks: list[Check] = []

    def run(name: str, check: Callable[[], str | None], skipped: str):
        if any(earlier.passed is False for earlier in checks):
            checks.append(Check(name, None, "not checked, for the reason above"))
            return
        try:
            with library_errors("It cannot be checked"):
                detail = check()
            checks.append(Check(name, None if detail is None else True, detail or skipped))
        except RepositoryError as error:
            checks.append(Check(name, False, str(error)))

    run("files", verification.files, "")
    run("weights", verification.weights, "")
    run("tokenizer", verification.tokenizer, "the repository has none")
    run(
        "checkpoint",
        lambda: None if compare is None else compare(verification),
        "not asked for: pass --against",
    )
    run(
        "one blank",
        verification.blank,
        "not filled: no tokenizer, no head for it, or too little memory; the network ran layer by "
        "layer",
    )
    return checks
