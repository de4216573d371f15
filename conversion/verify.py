"""Verifies a repository, and compares it with the checkpoint that it was converted from."""

from pathlib import Path

from ..hub_repository.errors import RepositoryError
from ..hub_repository.verify import Check, Verification, verify
from ..hub_repository.weights import (
    PROMPT_WEIGHTS,
    WORD_EMBEDDINGS,
    make,
    read_safetensors,
    same_bytes,
)
from .checkpoint import read_checkpoint
from .convert import is_prompt, repository_names
from .hub_port import find_hub_port


def verify_repository(repository: str | Path, against: str | Path | None = None) -> list[Check]:
    """Check a repository; nothing in it is executed.

    Args:
        repository: the repository.
        against: the checkpoint it was converted from: every tensor is compared.

    Returns:
        One `Check` each for the files, the weights, the tokenizer, the checkpoint, and one filled
        blank.
    """
    if against is None:
        return verify(Path(repository))
    return verify(Path(repository), lambda found: compare(found, Path(against)))


def compare(found: Verification, checkpoint: Path) -> str:
    """Every tensor is the checkpoint's."""
    port = find_hub_port(checkpoint)
    parameters = port.read_parameters() if port else read_checkpoint(checkpoint)
    prompt = {name: parameters.pop(name) for name in list(parameters) if is_prompt(name)}
    dtype = found.tensors[WORD_EMBEDDINGS].dtype
    original = parameters.get("word_embeddings.weight")
    # A checkpoint may have several dtypes; a conversion with --dtype has one.
    converted = dtype if original is not None and original.dtype != dtype else None
    expected = repository_names(parameters, found.copied_rows, converted) | prompt
    ours = dict(found.tensors)
    if (found.repository / PROMPT_WEIGHTS).is_file():
        ours |= read_safetensors(found.repository / PROMPT_WEIGHTS)
    for name in sorted(set(expected) ^ set(ours)):
        place = "the checkpoint" if name in expected else "the repository"
        raise RepositoryError(f"{name} is only in {place}.")
    for name, parameter in expected.items():
        same = parameter.shape == ours[name].shape and parameter.dtype == ours[name].dtype
        if not same or not same_bytes(make(parameter), make(ours[name])):
            raise RepositoryError(f"{name} is not the same in the checkpoint.")
    return f"{len(expected)} tensors equal those of {checkpoint}"
