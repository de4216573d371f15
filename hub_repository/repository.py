"""Writes a complete Hub repository: weights, settings, tokenizer, code, model card, handler."""

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ..configuration_glm import GLMConfig
from ..modeling_glm import GLMPreTrainedModel
from ..tokenization_glm import GLM_TOKENS, GLMTokenizerFast
from .config import build_network, fills_blanks, read_config, write_config
from .errors import RepositoryError
from .files import hash_file, read_json, write_json
from .model_card import Tuning, model_card
from .origin import Origin
from .output import new_folder, synchronize
from .space import APP, add_space, check_has_page
from .weights import (
    INDEX,
    PROMPT_WEIGHTS,
    WORD_EMBEDDINGS,
    AnyTensor,
    check_names,
    checksum,
    count_numbers,
    expected_names,
    find_weights,
    fingerprint,
    make,
    read_safetensors,
    verify_weights,
    write_shard,
    write_weights,
)

PACKAGE = Path(__file__).resolve().parents[1]
# The Python files of a repository, as they are in this package.
SHIPPED_FILES = (
    "configuration_glm.py",
    "parallel_glm.py",
    "blanks_glm.py",
    "steering_glm.py",
    "answers_glm.py",
    "modeling_glm.py",
    "generation_glm.py",
    "tokenization_glm.py",
    "collation_glm.py",
    "streaming_glm.py",
    "pipeline_glm.py",
)
HANDLER = Path(__file__).with_name("handler.py")
# What weights, tokenizer, settings and code were when they were written: `glm verify` compares.
RECORD = "conversion.json"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
SETTINGS = ("config.json", "generation_config.json")
OTHER_FILES = ("README.md", "requirements.txt", "LICENSE", INDEX, RECORD, HANDLER.name, APP)
WEIGHTS_FILE = re.compile(r"model(-\d+-of-\d+)?\.safetensors")
# Entries of each family's text vocabulary, and rows of the released models' word embeddings.
TEXT_VOCABULARIES = {
    "gpt2": (50257, 50304),
    "roberta": (50265, 50304),
    "bert": (30522, 30592),
    "chinese": (50000, 50048),
}
# Tokens that the original's interactive generation makes at most for one text.
DEFAULT_NEW_TOKENS = 512
# As in pyproject.toml, of which a repository needs these.
REQUIREMENTS = "accelerate\ntorch>=2.6\ntransformers>=4.57,<6\n"


def write_repository(
    output: Path,
    config: GLMConfig,
    tensors: Mapping[str, AnyTensor],
    tokenizer: GLMTokenizerFast | None,
    prompt: Mapping[str, AnyTensor] | None = None,
    copied_rows: tuple[tuple[int, int], ...] = (),
    max_shard_size: str = "5GB",
    name: str | None = None,
    origin: Origin | None = None,
    language: str | None = None,
    results: Sequence[Mapping] = (),
    generation: Mapping[str, float] | None = None,
    tuning: Tuning | None = None,
    space: bool = False,
):
    """Write a repository beside its final name, read it back, and move it there when it is right.

    Args:
        output: an absolute path; what is there is replaced.
        tensors: of the network, by their names there; those that are made are made shard by shard.
        prompt: the weights of a continuous prompt, which is no part of the network: they go into a
            file of their own.
        copied_rows: the rows of the word embeddings that `tensors` copy, for the record.
        generation: settings for generation_config.json besides the usual ones.
        name, origin, language, results, tuning: for the model card, see `model_card`; the name is
            that of the folder by default.
        space: add the page that the Hub runs in a Space.
    """
    if space:
        check_has_page(config, tokenizer)
    network = build_network(config)
    tensors = stored_tensors(network, tensors)
    prompt = prompt or {}
    dtype = tensors[WORD_EMBEDDINGS].dtype
    card = model_card(
        name or output.name,
        config,
        tokenizer,
        count_numbers(tensors),
        dtype,
        origin,
        language,
        results,
        tuning,
    )
    nbytes = sum(tensor.nbytes for tensor in (*tensors.values(), *prompt.values()))
    with new_folder(output, nbytes) as folder, ThreadPoolExecutor(1) as disk:
        checksums = write_weights(folder, tensors, max_shard_size)
        of_prompt = write_shard(folder / PROMPT_WEIGHTS, prompt) if prompt else {}
        for file in folder.iterdir():  # on its way to the disk while it is read back
            disk.submit(synchronize, file)
        write_files(folder, config, tokenizer, card, generation)
        if space:
            add_space(folder)
        write_config(folder / ".config.json", config, dtype)
        record = {"weights": fingerprint(tensors, checksums), "copied_rows": copied_rows}
        write_json(folder / RECORD, record | {"files": hash_files(folder)})
        if read_back(folder, network) != checksums | of_prompt:
            raise RepositoryError(
                f"What was read back from {output.parent} is not what was written; "
                "is the disk damaged?"
            )
        for file in folder.iterdir():
            synchronize(file)
        # config.json comes last, and whole: without it no library takes the folder for a model.
        (folder / ".config.json").rename(folder / "config.json")
        synchronize(folder)


def stored_tensors(
    network: GLMPreTrainedModel,
    tensors: Mapping[str, AnyTensor],
) -> dict[str, AnyTensor]:
    """Those of a network that are stored, in its order: no file depends on how they were cut.

    A tied weight is in memory twice, and on disk once.

    Raises:
        RepositoryError: if they are not the network's.
    """
    expected = expected_names(network)
    tied = set(network.state_dict()) - set(expected)
    stored = {name: tensor for name, tensor in tensors.items() if name not in tied}
    check_names(network, stored)
    return {name: stored[name] for name in expected}


def read_back(folder: Path, network: GLMPreTrainedModel) -> dict[str, int]:
    """The checksum of each tensor that was written; see `verify_weights`."""
    checksums = verify_weights(network, find_weights(folder))
    if (folder / PROMPT_WEIGHTS).exists():
        stored = read_safetensors(folder / PROMPT_WEIGHTS)
        checksums |= {name: checksum(make(tensor)) for name, tensor in stored.items()}
    return checksums


def write_files(
    folder: Path,
    config: GLMConfig,
    tokenizer: GLMTokenizerFast | None,
    card: str,
    settings: Mapping[str, float] | None = None,
) -> None:
    """Write everything but the weights, config.json and the record."""
    # Without block positions each blank takes as many positions as it may have tokens, and the
    # context needs some, too.
    longest = (
        config.max_sequence_length
        if config.block_position_encoding
        else config.max_sequence_length // 4
    )
    generation: dict[str, int | list[int]] = {"max_new_tokens": min(DEFAULT_NEW_TOKENS, longest)}
    for file in SHIPPED_FILES:
        shutil.copyfile(PACKAGE / file, folder / file)
    if tokenizer is not None:
        generation |= {
            "eos_token_id": [tokenizer.eop_token_id, tokenizer.eos_token_id],
            "pad_token_id": tokenizer.pad_token_id,
        }
        save_tokenizer(tokenizer, folder, model_max_length=config.max_sequence_length)
        if fills_blanks(config):
            shutil.copyfile(HANDLER, folder / HANDLER.name)
    write_json(folder / "generation_config.json", {**generation, **(settings or {})})
    (folder / "requirements.txt").write_text(REQUIREMENTS)
    (folder / "README.md").write_text(card, encoding="utf-8")


def complete_repository(folder: str | Path, language: str | None = None):
    """Add what `save_pretrained` does not write: model card, handler and requirements.

    For a model that was fine-tuned with the package; what is there already stays as it is.

    Args:
        folder: where the model was saved, and its tokenizer.
        language: "en" or "zh", for the card's examples.

    Raises:
        RepositoryError: if the folder holds no GLM that was saved whole.
    """
    folder = Path(folder)
    config, weights = read_config(folder), find_weights(folder)
    tokenizer = None
    if (folder / "tokenizer.json").is_file():
        tokenizer = GLMTokenizerFast.from_pretrained(folder)
    card = model_card(
        folder.resolve().name,
        config,
        tokenizer,
        count_numbers(weights),
        weights[WORD_EMBEDDINGS].dtype,
        language=language,
    )
    texts = {"README.md": card, "requirements.txt": REQUIREMENTS}
    if tokenizer is not None and fills_blanks(config):
        texts[HANDLER.name] = HANDLER.read_text(encoding="utf-8")
    for file, text in texts.items():
        if not (folder / file).exists():
            (folder / file).write_text(text, encoding="utf-8")


def save_tokenizer(tokenizer: GLMTokenizerFast, folder: Path, model_max_length: int):
    """Write files that Transformers 5 and 4.57 load: one does not read what the other writes."""
    tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
    special = {
        name: getattr(tokenizer, name)
        for name in (
            "cls_token",
            "mask_token",
            "unk_token",
            "sep_token",
            "pad_token",
            "eos_token",
        )
    }
    named = tokenizer.special_tokens_map
    config = {
        "tokenizer_class": "GLMTokenizerFast",
        "extra_special_tokens": {name: named[name] for name in GLM_TOKENS if name in named},
        "auto_map": {"AutoTokenizer": [None, "tokenization_glm.GLMTokenizerFast"]},
        "model_max_length": model_max_length,
        "padding_side": "left",
        "clean_up_tokenization_spaces": False,
        **special,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=2) + "\n")


def check_text_vocabulary(tokenizer: GLMTokenizerFast, rows: int) -> str | None:
    """What is to be said about a vocabulary that is not the original's; None for the original's.

    Args:
        rows: of the word embeddings.

    Raises:
        RepositoryError: if the embeddings are of the original's size, so that it has to be there.
    """
    family = find_family(tokenizer)
    original, padded = TEXT_VOCABULARIES[family]
    entries = tokenizer.backend_tokenizer.get_vocab_size(with_added_tokens=False)
    if entries == original:
        return None
    said = f"its vocabulary has {entries} entries, the original {family} vocabulary {original}"
    if rows == padded:
        raise RepositoryError(
            f"The tokenizer is not the model's: {said}; pass --vocab with the right files, and "
            "the --tokenizer that they are of."
        )
    return f"{said}, which is right only for a model that was trained with it"


def find_family(tokenizer: GLMTokenizerFast) -> str:
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    if backend["model"]["type"] == "WordPiece":
        return "bert"
    if backend["pre_tokenizer"]["type"] == "Metaspace":
        return "chinese"
    return "roberta" if backend["model"]["vocab"].get("[CLS]") == 0 else "gpt2"


def hash_files(folder: Path) -> dict[str, str]:
    """SHA-256 of each file that is recorded; config.json has another name until all is done."""
    hashes = {"config.json": hash_file(folder / ".config.json")}
    for name in ("generation_config.json", *SHIPPED_FILES, HANDLER.name, APP, *TOKENIZER_FILES):
        if (folder / name).is_file():
            hashes[name] = hash_file(folder / name)
    return hashes


def read_record(repository: Path) -> dict | None:
    """What was recorded when the repository was written; None if nothing was.

    Raises:
        RepositoryError: if the record is damaged.
    """
    if not (repository / RECORD).exists():
        return None
    record = read_json(repository / RECORD)
    files, rows = record.get("files"), record.get("copied_rows", [])
    if not (
        isinstance(record.get("weights"), str)
        and isinstance(files, dict)
        and all(isinstance(value, str) for value in files.values())
        and isinstance(rows, list)
        and all(_is_pair_of_rows(pair) for pair in rows)
    ):
        raise RepositoryError(f"{RECORD} is damaged; convert the checkpoint again.")
    return record


def _is_pair_of_rows(pair) -> bool:
    return isinstance(pair, list) and len(pair) == 2 and all(type(row) is int for row in pair)


def check_replaceable(output: Path):
    """Raise unless `output` is free, an empty folder, or a repository that this program wrote.

    A link is only a name: it is replaced, and what it points to is kept.
    """
    if output.is_symlink() or not output.exists():
        return
    if not output.is_dir():
        raise RepositoryError(f"{output} is no repository, and is not replaced; move it away.")
    if not any(output.iterdir()):
        return
    record = read_record(output)
    if record is None:
        raise RepositoryError(
            f"{output} is not a repository that this program wrote, and is not replaced; "
            "choose another place, or move it away."
        )
    for file in sorted(output.rglob("*")):
        is_folder = file.is_dir() and not file.is_symlink()
        name = file.relative_to(output)
        if not is_folder and not is_written_here(name):
            raise RepositoryError(
                f"{output} holds {name}, which no conversion wrote, and is not replaced; "
                "move that file away."
            )
    settings = output / "config.json"
    recorded = record["files"].get(settings.name)
    if recorded is not None and settings.exists() and hash_file(settings) != recorded:
        raise RepositoryError(
            f"{settings} is not what was converted: a model that was trained since may be there, "
            "and is not replaced; move it away."
        )


def is_written_here(name: Path) -> bool:
    """Whether a conversion writes a file of this name, or Python and the Hub's client beside it."""
    if name.parts[0] == ".cache":
        return name.parts[1] == "huggingface"
    if name.parts[0] == "__pycache__":
        return name.suffix == ".pyc"
    known = (*SHIPPED_FILES, *TOKENIZER_FILES, *SETTINGS, *OTHER_FILES, PROMPT_WEIGHTS)
    return str(name) in known or WEIGHTS_FILE.fullmatch(str(name)) is not None
