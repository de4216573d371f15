"""Checks a repository: its files, its weights, its tokenizer, and that it fills a blank.

Nothing in the folder is executed: its weights run in this package's classes.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
from transformers import GenerationConfig

from ..configuration_glm import AUTO_MAP, PIPELINES, GLMConfig
from ..modeling_glm import GLMForConditionalGeneration
from ..tokenization_glm import GLMTokenizerFast
from .config import build_network, check_sizes, read_config
from .errors import RepositoryError, library_errors
from .files import hash_file, read_json
from .model_card import size
from .repository import (
    HANDLER,
    PACKAGE,
    RECORD,
    SHIPPED_FILES,
    check_text_vocabulary,
    read_record,
)
from .space import APP, PAGE
from .weights import (
    LazyTensor,
    count_numbers,
    find_weights,
    fingerprint,
    make,
    verify_weights,
)

# The code of a repository, and where it is in this package.
OUR_CODE = {name: PACKAGE / name for name in SHIPPED_FILES}
OUR_CODE |= {HANDLER.name: HANDLER, APP: PAGE}
OUR_CLASSES = [
    *AUTO_MAP.values(),
    *(pipeline["impl"] for pipeline in PIPELINES.values()),
    "tokenization_glm.GLMTokenizerFast",
    None,
]
CODE = (".py", ".pyc", ".pyd", ".so", ".dll", ".dylib", ".sh", ".ipynb")
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".dill", ".npy", ".npz")
# Settings that make the Auto classes load other repositories or classes, which no GLM has.
FOREIGN_SETTINGS = (
    "adapter_config.json",
    "processor_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
)
PROMPT = "Ng is an adjunct professor at [MASK]."


@dataclass(frozen=True)
class Check:
    """One line of the result; `passed` is None for what could not be checked."""

    name: str
    passed: bool | None
    detail: str


class Verification:
    """One repository under verification; what one check reads, the next ones use."""

    config: GLMConfig  # read by the first check, without which no other one runs

    def __init__(self, repository: Path):
        self.repository = repository
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
        """All files are there, as they were recorded, and none is code or settings of others."""
        self.config = read_config(self.repository)
        self.record = read_record(self.repository)
        check_foreign(self.repository)
        for name in ("config.json", "tokenizer_config.json"):
            if (self.repository / name).is_file():
                check_auto_classes(self.repository / name)
        recorded = self.record["files"] if self.record else {}
        needed = ["config.json", *SHIPPED_FILES]
        if self.record:
            needed += ["generation_config.json", "README.md", "requirements.txt", *recorded]
        for name in needed:
            if not (self.repository / name).is_file():
                raise RepositoryError(f"{name} is missing.")
        for name, digest in recorded.items():
            # A tokenizer of another model has a check of its own.
            if name != "tokenizer.json" and hash_file(self.repository / name) != digest:
                raise RepositoryError(
                    f"{name} is not what was converted; it was changed or is damaged."
                )
        for name, ours in OUR_CODE.items():
            file = self.repository / name
            if file.is_file() and hash_file(file) != hash_file(ours):
                raise RepositoryError(
                    f"{name} is not that of this version; convert again to bring it up to date."
                )
        if self.record is None:
            return f"all there; there is no {RECORD}, so nothing tells what they were"
        return "all there"

    def weights(self) -> str:
        """Names and shapes are the network's, numbers are finite, every byte is as recorded."""
        self.tensors = find_weights(self.repository)
        shapes = {name: tensor.shape for name, tensor in self.tensors.items()}
        check_sizes(self.config, shapes, "config.json")
        checksums = verify_weights(build_network(self.config), self.tensors)
        nbytes = sum(tensor.nbytes for tensor in self.tensors.values())
        found = f"{len(self.tensors)} tensors, {size(nbytes)}"
        if self.record is None:
            return f"{found}, whole; no record tells whether they were changed"
        if fingerprint(self.tensors, checksums) != self.record["weights"]:
            raise RepositoryError(
                "The weights are not those that were converted; they were changed, damaged, or "
                "come from another repository."
            )
        return f"{found}, as converted"

    def tokenizer(self) -> str | None:
        """The tokenizer is the one that was converted with these weights, with their ids."""
        if not self.has_tokenizer:
            return None
        file = self.repository / "tokenizer.json"
        if self.record and hash_file(file) != self.record["files"].get(file.name):
            raise RepositoryError(
                "tokenizer.json was not converted with these weights; put the right one back, or "
                "convert again."
            )
        with library_errors("tokenizer.json is damaged"):
            content = read_json(file)
            ids = {token["content"]: token["id"] for token in content["added_tokens"]}
            highest = max(ids.values())
        if highest >= self.config.vocab_size:
            raise RepositoryError(
                f"The tokenizer has ids up to {highest} and the weights "
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
        with library_errors("tokenizer.json is damaged"):
            tokenizer = GLMTokenizerFast.from_pretrained(self.repository)
        note = check_text_vocabulary(tokenizer, self.config.vocab_size)
        return f"fits the weights, {len(ids)} special tokens" + (f"; {note}" if note else "")

    def blank(self) -> str | None:
        """The network fills one blank."""
        model = build_network(self.config)
        if not self.has_tokenizer or not isinstance(model, GLMForConditionalGeneration):
            return None
        in_float32 = 4 * count_numbers(self.tensors)
        if 1.2 * in_float32 > psutil.virtual_memory().available:
            return None
        with library_errors("It does not load or generate"):
            tokenizer = GLMTokenizerFast.from_pretrained(self.repository)
            state = {name: make(tensor).float() for name, tensor in self.tensors.items()}
            model.load_state_dict(state, strict=False, assign=True)
            model.tie_weights()
            settings = read_json(self.repository / "generation_config.json")
            model.generation_config = GenerationConfig(**settings)
            inputs = tokenizer([PROMPT], return_tensors="pt")
            # A stranger's settings may ask for any number of beams.
            once = {"do_sample": False, "num_beams": 1, "num_return_sequences": 1}
            outputs = model.eval().generate(**inputs, max_new_tokens=8, **once)
            pieces = tokenizer.decode_pieces(outputs)[0]
        return f"{PROMPT} -> {pieces[0]!r}"


def check_foreign(repository: Path):
    """Raise if the folder holds code, or what executes code when it is loaded, that is not ours."""
    for folder, folders, names in os.walk(repository):
        for name in folders:
            if Path(folder, name).is_symlink():
                raise RepositoryError(
                    f"{Path(folder, name).relative_to(repository)} is a link to a folder, which no "
                    "GLM repository holds; move it away."
                )
        for name in names:
            file = Path(folder, name).relative_to(repository)
            if file.suffix.lower() in CODE and str(file) not in OUR_CODE:
                raise RepositoryError(
                    f"{file} is code that no GLM repository holds; nothing of it was run: read "
                    "it, and move it away."
                )
            if str(file) in FOREIGN_SETTINGS:
                raise RepositoryError(
                    f"{file} may have other repositories or classes loaded in place of this one; "
                    "no GLM repository holds it: move it away."
                )
            if file.suffix.lower() in PICKLES:
                raise RepositoryError(
                    f"{file} is a pickle, which can execute code when it is loaded; the weights "
                    "of a repository are safetensors: move it away."
                )


def check_auto_classes(file: Path):
    """Raise if a file of settings names a class for the Auto classes that is not ours."""
    settings = read_json(file)
    named = [settings.get("auto_map") or {}]
    pipelines = settings.get("custom_pipelines") or {}
    with library_errors(f"{file.name} is damaged"):
        named += [{"impl": pipeline["impl"]} for pipeline in pipelines.values()]
        classes = [name for names in named for name in names.values()]
    for name in classes:
        for one in name if isinstance(name, list) else [name]:
            if one not in OUR_CLASSES:
                raise RepositoryError(
                    f"{file.name} names {one}, which is not of this package and would be executed "
                    "by who loads it with trust_remote_code; restore the file."
                )


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
