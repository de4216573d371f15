"""Checks a converted repository: its files, its weights, its tokenizer, and that it fills a blank."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from ..configuration_glm import GLMConfig
from .checkpoint import read_checkpoint
from .errors import ConversionError
from .hub_port import find_hub_port
from .model_card import size
from .repository import (
    PACKAGE,
    RECORD,
    SHIPPED_FILES,
    build_network,
    hash_file,
    is_prompt,
    read_repository_config,
    repository_names,
)
from .stored import read_safetensors
from .tensors import StoredTensor, same_bytes
from .weights import PROMPT_WEIGHTS, find_weights, fingerprint, verify_weights

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
PROMPT = "Ng is an adjunct professor at [MASK]."


@dataclass(frozen=True)
class Check:
    """One line of the result; `passed` is None for what could not be checked."""

    name: str
    passed: bool | None
    detail: str


class Verification:
    """One repository under verification; what one check reads, the next ones use."""

    def __init__(self, repository: Path, checkpoint: Path | None):
        self.repository, self.checkpoint = repository, checkpoint
        self.config: GLMConfig | None = None
        self.record: dict = {}
        self.tensors: dict[str, StoredTensor] = {}

    def files(self) -> str:
        """All files are there, and those that were recorded at conversion are as they were."""
        self.config = read_repository_config(self.repository)
        try:
            self.record = json.loads((self.repository / RECORD).read_text(encoding="utf-8"))
            recorded = dict(self.record["files"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConversionError(
                f"{RECORD} is missing or damaged; convert the checkpoint again."
            ) from error
        tokenizer = TOKENIZER_FILES if "tokenizer.json" in recorded or self.has_tokenizer() else ()
        for file in (
            "config.json",
            "generation_config.json",
            "README.md",
            "requirements.txt",
            *SHIPPED_FILES,
            *tokenizer,
        ):
            if not (self.repository / file).is_file():
                raise ConversionError(f"{file} is missing.")
        for file in SHIPPED_FILES:
            if hash_file(self.repository / file) != recorded.get(file):
                raise ConversionError(
                    f"{file} is not what was converted; it was changed or is damaged."
                )
        return "all there"

    def weights(self) -> str:
        """Names and shapes are the network's, its results are finite, and every byte is as at conversion."""
        self.tensors = find_weights(self.repository)
        checksums = verify_weights(build_network(self.config), self.tensors)
        if fingerprint(self.tensors, checksums) != self.record.get("weights"):
            raise ConversionError(
                "The weights are not those that were converted; they were changed, damaged, or come from another repository."
            )
        nbytes = sum(tensor.nbytes for tensor in self.tensors.values())
        return f"{len(self.tensors)} tensors, {size(nbytes)}, as converted"

    def tokenizer(self) -> str | None:
        """The tokenizer is the one that was converted with these weights, and its ids are the configuration's."""
        if not self.has_tokenizer():
            return None
        if hash_file(self.repository / "tokenizer.json") != self.record["files"].get(
            "tokenizer.json"
        ):
            raise ConversionError(
                "tokenizer.json was not converted with these weights; put the right one back, or convert again."
            )
        with open(self.repository / "tokenizer.json", encoding="utf-8") as file:
            ids = {token["content"]: token["id"] for token in json.load(file)["added_tokens"]}
        if max(ids.values()) >= self.config.vocab_size:
            raise ConversionError(
                f"The tokenizer has ids up to {max(ids.values())} and the weights {self.config.vocab_size} rows."
            )
        for token, id in (
            ("<|startofpiece|>", self.config.sop_token_id),
            ("<|endofpiece|>", self.config.eop_token_id),
        ):
            if ids.get(token) != id:
                raise ConversionError(
                    f"{token} has id {ids.get(token)} in tokenizer.json and {id} in config.json."
                )
        return f"fits the weights, {len(ids)} special tokens"

    def equality(self) -> str | None:
        """Every tensor is the checkpoint's."""
        if self.checkpoint is None:
            return None
        port = find_hub_port(self.checkpoint)
        parameters = port.read_parameters() if port else read_checkpoint(self.checkpoint)
        prompt = {name: parameters.pop(name) for name in list(parameters) if is_prompt(name)}
        rows = tuple(map(tuple, self.record.get("copied_rows", ())))
        dtype = self.tensors["glm.word_embeddings.weight"].dtype
        original = parameters.get("word_embeddings.weight")
        # A checkpoint may have several dtypes; a conversion with --dtype has one.
        converted = dtype if original is not None and original.dtype != dtype else None
        expected, ours = repository_names(parameters, rows, converted) | prompt, dict(self.tensors)
        if (self.repository / PROMPT_WEIGHTS).is_file():
            ours |= read_safetensors(self.repository / PROMPT_WEIGHTS)
        for name in sorted(set(expected) ^ set(ours)):
            raise ConversionError(
                f"{name} is only in {'the checkpoint' if name in expected else 'the repository'}."
            )
        for name, parameter in expected.items():
            if parameter.shape != ours[name].shape or not same_bytes(
                parameter.read(), ours[name].read()
            ):
                raise ConversionError(f"{name} is not the same in the checkpoint.")
        return f"{len(expected)} tensors equal those of {self.checkpoint}"

    def blank(self) -> str | None:
        """A fresh load by the Auto classes fills one blank."""
        if not self.has_tokenizer() or self.config.architectures != ["GLMForConditionalGeneration"]:
            return None
        if any(
            hash_file(self.repository / file) != hash_file(PACKAGE / file) for file in SHIPPED_FILES
        ):
            raise ConversionError(
                "Its code is not that of this version, and is not run; convert again to bring it up to date."
            )
        needed = 4 * sum(
            tensor.nbytes // tensor.dtype.itemsize for tensor in self.tensors.values()
        )  # in float32
        if 1.2 * needed > psutil.virtual_memory().available:
            return None
        from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(self.repository, trust_remote_code=True)
            model = AutoModelForSeq2SeqLM.from_pretrained(
                self.repository, trust_remote_code=True, dtype=torch.float32
            ).eval()
            inputs = tokenizer([PROMPT], return_tensors="pt")
            with torch.no_grad():
                pieces = tokenizer.decode_pieces(
                    model.generate(**inputs, max_new_tokens=8, do_sample=False)
                )[0]
        except Exception as error:  # whatever stops a user's load is the result of this check
            raise ConversionError(
                f"It does not load or generate: {type(error).__name__}: {error}"
            ) from error
        return f"{PROMPT} -> {pieces[0]!r}"

    def has_tokenizer(self) -> bool:
        return (self.repository / "tokenizer.json").is_file()


def verify_repository(repository: str | Path, against: str | Path | None = None) -> list[Check]:
    """Check a converted repository.

    Args:
        repository: the repository.
        against: the checkpoint it was converted from: every tensor is compared.

    Returns:
        One `Check` each for the files, the weights, the tokenizer, the checkpoint, and one filled blank.
    """
    verification = Verification(Path(repository), Path(against) if against is not None else None)
    checks: list[Check] = []

    def run(name: str, check: Callable[[], str | None], skipped: str):
        if any(earlier.passed is False for earlier in checks):
            checks.append(Check(name, None, "not checked, for the reason above"))
            return
        try:
            detail = check()
            checks.append(Check(name, None if detail is None else True, detail or skipped))
        except (ConversionError, OSError, ValueError, KeyError) as error:
            checks.append(Check(name, False, str(error)))

    run("files", verification.files, "")
    run("weights", verification.weights, "")
    run("tokenizer", verification.tokenizer, "the repository has none")
    run("checkpoint", verification.equality, "not asked for: pass --against")
    run(
        "one blank",
        verification.blank,
        "not filled: no tokenizer, no head for it, or too little memory; the network ran layer by layer",
    )
    return checks
