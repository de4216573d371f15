"""Builds the tokenizer of each GLM family from the vocabulary files that the original code used.

The families differ in how text becomes entries of the vocabulary; the command tokens, their ids and
their left-stripping are GLM's. Masks of the GPT-2, RoBERTa and Chinese families swallow all white
space on their left, other tokens swallow none.
"""

import os
import struct
from collections.abc import Callable
from pathlib import Path

from huggingface_hub import snapshot_download
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from ..hub_repository.errors import RepositoryError, library_errors
from ..hub_repository.files import LARGEST_JSON, read_json, read_text, require_file
from ..tokenization_glm import GLMTokenizerFast

# The vocabulary files of each family, by the names they have in one place or another, and the Hub
# name that has them.
VOCABULARIES: dict[str, tuple[list[tuple[str, ...]], str]] = {
    "gpt2": (
        [("gpt2-vocab.json", "vocab.json"), ("gpt2-merges.txt", "merges.txt")],
        "openai-community/gpt2",
    ),
    "roberta": (
        [("roberta-vocab.json", "dict.json", "vocab.json"), ("roberta-merges.txt", "merges.txt")],
        "FacebookAI/roberta-large",
    ),
    "bert": (
        [("bert-base-uncased-vocab.txt", "bert-large-uncased-vocab.txt", "vocab.txt")],
        "google-bert/bert-base-uncased",
    ),
    "chinese": ([("cog-pretrain.model",)], "THUDM/glm-large-chinese"),
}

NEW_LINE = "\ue000"
# Characters of an entry of a SentencePiece vocabulary; the longest known has 16.
LONGEST_ENTRY = 1000


def find_vocabulary(family: str, vocab: str | Path | None) -> list[Path]:
    """The vocabulary files of `family`, in the order its builder takes them.

    Args:
        vocab: a folder that holds them, one of the files, or a Hub name; the family's own Hub name
            if None.

    Raises:
        RepositoryError: if a file is missing; it names the file.
    """
    names, hub_name = VOCABULARIES[family]
    vocab = vocab if vocab is not None else hub_name
    folder = Path(vocab)
    if os.path.lexists(folder):
        folder = folder if folder.is_dir() else require_file(folder).parent
    else:
        try:
            folder = Path(
                snapshot_download(
                    str(vocab), allow_patterns=[name for group in names for name in group]
                )
            )
        except Exception as error:
            raise RepositoryError(
                f"{vocab} is neither a folder nor a repository that can be reached on the Hub; "
                f"pass --vocab with the folder that holds {names[0][0]}."
            ) from error
    files = []
    for group in names:
        present = [folder / name for name in group if os.path.lexists(folder / name)]
        if not present:
            raise RepositoryError(
                f"{folder} holds no {' or '.join(group)}, which the {family} tokenizer needs."
            )
        files.append(require_file(present[0], LARGEST_JSON))
    return files


def build_tokenizer(family: str, files: list[Path], task_mask: bool) -> GLMTokenizerFast:
    """The tokenizer of `family` with its command tokens.

    Args:
        files: as `find_vocabulary` gives them.
        task_mask: with `[gMASK]` and `[sMASK]` too.

    Raises:
        RepositoryError: if the files are damaged, or of another family.
    """
    with library_errors(f"{files[0]} is not a {family} vocabulary"):
        tokenizer = BUILDERS[family](*files, task_mask)
    end = "[PAD]" if family == "bert" else "<|endoftext|>"
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"[CLS] $A {end}",
        pair=f"[CLS] $A $B {end}",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in ("[CLS]", end)],
    )
    # RoBERTa's separator is its end of text, see below.
    separator = end if family == "roberta" else "[SEP]"
    return GLMTokenizerFast(
        tokenizer_object=tokenizer,
        cls_token="[CLS]",
        mask_token="[MASK]",
        unk_token="[UNK]",
        sep_token=separator,
        pad_token=end,
        eos_token=end,
    )


def add_command_tokens(
    tokenizer: Tokenizer,
    surfaces: list[str],
    strip: bool = True,
    normalized: tuple[str, ...] = (),
):
    """Add the tokens in the order of their ids; those the vocabulary has keep theirs."""
    tokenizer.add_special_tokens(
        [
            AddedToken(
                surface,
                lstrip=strip and "MASK]" in surface,
                normalized=surface in normalized,
                special=True,
            )
            for surface in surfaces
        ]
    )


def read_entries(vocabulary: Path, needed: str) -> dict[str, int]:
    """The entries of a vocabulary with their ids, which are 0, 1, 2, ... in some order."""
    entries = read_json(vocabulary)
    if not all(type(id) is int for id in entries.values()):
        raise ValueError("its values are not ids")
    if sorted(entries.values()) != list(range(len(entries))):
        raise ValueError("its ids have gaps, or an id stands twice; download it again")
    if needed not in entries:
        raise ValueError(f"it holds no {needed}")
    return entries


def read_merges(merges: Path, entries: dict[str, int]) -> list[tuple[str, str]]:
    """The merges, in their order; each entry of more than one character is the result of one."""
    lines = read_text(merges).split("\n")
    pairs = [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]
    if not all(len(pair) == 2 for pair in pairs):
        raise ValueError(f"{merges} holds a line that is no pair")
    if len(set(pairs)) < len(pairs):
        raise ValueError(f"a line stands twice in {merges}; download it again")
    made = {"".join(pair) for pair in pairs}
    for entry in entries:
        special = entry.startswith("madeupword") or (entry[:1] == "<" and entry[-1:] == ">")
        if len(entry) > 1 and not special and entry not in made:
            raise ValueError(f"{merges} does not make {entry}; download it again, completely")
    return [(left, right) for left, right in pairs]


def build_gpt2(vocabulary: Path, merges: Path, task_mask: bool) -> Tokenizer:
    """Byte-level BPE, whose own ids are kept: GLM's tokens follow."""
    entries = read_entries(vocabulary, "<|endoftext|>")
    if "<mask>" in entries:
        raise ValueError("it is RoBERTa's; pass --tokenizer roberta, or GPT-2's files")
    tokenizer = byte_level(models.BPE(entries, read_merges(merges, entries)))
    surfaces = [
        "<|endoftext|>",
        "<|startofpiece|>",
        "<|endofpiece|>",
        "[CLS]",
        "[MASK]",
        "[SEP]",
        "[UNK]",
    ]
    surfaces += ["[gMASK]", "[sMASK]"] * task_mask
    masks = [surface for surface in surfaces if "MASK]" in surface]
    tokenizer.normalizer = without_control_characters(masks)
    add_command_tokens(tokenizer, surfaces, normalized=tuple(masks))
    return tokenizer


def build_roberta(vocabulary: Path, merges: Path, task_mask: bool) -> Tokenizer:
    """Byte-level BPE with fairseq's ids."""
    # The vocabulary maps byte-level entries straight to fairseq ids; its four special entries are
    # GLM's command tokens, and GPT-2's own end of text, which fairseq kept as text, was never used.
    entries = read_entries(vocabulary, "<mask>")
    renamed = {
        "<s>": "[CLS]",
        "</s>": "<|endoftext|>",
        "<unk>": "[UNK]",
        "<mask>": "[MASK]",
        "<|endoftext|>": "<|unused|>",
    }
    ids = {renamed.get(entry, entry): id for entry, id in entries.items()}
    pairs = read_merges(merges, entries)
    # GPT-2 merges can make entries that RoBERTa has not: the original reads these as id 0, as it
    # does all unknown ones.
    tokenizer = byte_level(
        models.BPE(ids, [pair for pair in pairs if "".join(pair) in ids], unk_token="[CLS]")
    )
    # `[SEP]` has the id of the end of text, and a vocabulary has one surface for an id: the text is
    # rewritten.
    surfaces = ["[CLS]", "<|endoftext|>", "[UNK]", "[MASK]", "<|startofpiece|>", "<|endofpiece|>"]
    surfaces += ["[gMASK]", "[sMASK]"] * task_mask
    masks = [surface for surface in surfaces if "MASK]" in surface]
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.Replace("[SEP]", "<|endoftext|>"),
            without_control_characters(masks),
        ]
    )
    add_command_tokens(tokenizer, surfaces, normalized=("<|endoftext|>", *masks))
    return tokenizer


def without_control_characters(masks: list[str]) -> normalizers.Normalizer:
    """Drops U+001C to U+001F in front of a mask, and white space between them and it.

    To Python, and so to the original, these are white space, which a mask swallows; to the
    `tokenizers` library they are not. The masks must be looked for in normalised text.
    """
    before = "|".join(escape(mask) for mask in masks)
    return normalizers.Replace(Regex(f"[\\x1c-\\x1f][\\s\\x1c-\\x1f]*(?={before})"), "")


def byte_level(model: models.BPE) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


BERT_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def build_bert(vocabulary: Path, task_mask: bool) -> Tokenizer:
    """WordPiece, in lower case."""
    lines = [line.rstrip() for line in read_text(vocabulary).rstrip("\n").split("\n")]
    entries = {entry: id for id, entry in enumerate(lines)}
    if len(entries) < len(lines):
        raise ValueError("a line stands twice in it; download it again")
    missing = [token for token in BERT_TOKENS if token not in entries]
    if missing:
        raise ValueError(f"it holds no {missing[0]}")
    tokenizer = Tokenizer(models.WordPiece(entries, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(cleanup=False)
    surfaces = [*BERT_TOKENS, "<|startofpiece|>", "<|endofpiece|>"]
    add_command_tokens(tokenizer, surfaces + ["[gMASK]", "[sMASK]"] * task_mask, strip=False)
    return tokenizer


def build_chinese(model_file: Path, task_mask: bool) -> Tokenizer:
    """SentencePiece's BPE of Chinese."""
    scored, character_map = read_sentencepiece(model_file)
    tokenizer = Tokenizer(sentencepiece_bpe(scored))
    tokenizer.normalizer = normalizers.Sequence(
        [
            # The map knows decomposed kana and Hangul, which this library looks up in it one
            # character at a time.
            normalizers.NFC(),
            normalizers.Precompiled(character_map),
            normalizers.Replace(Regex("^ +| +$"), ""),
            normalizers.Replace(Regex(" {2,}"), " "),
            normalizers.Replace("<n>", NEW_LINE),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    # Ids 50000 to 50009; 50005 was left free. glm-10b-chinese was trained with [gMASK] at 50007; it
    # has a row of its own after conversion, so that one tokenizer serves both Chinese models.
    surfaces = [
        "<|endoftext|>",
        "[SEP]",
        "[CLS]",
        "[MASK]",
        "[UNK]",
        "<|unused|>",
        "<|startofpiece|>",
        "<|endofpiece|>",
    ]
    surfaces += ["[sMASK]", "[gMASK]"] * task_mask
    add_command_tokens(tokenizer, surfaces)
    # The original makes text of each stretch between command tokens on its own: the first space of
    # each is dropped.
    commands = "|".join(["^", *(rf"(?<={escape(token)})" for token in surfaces)])
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("<unk>", " \u2047 "),
            decoders.Fuse(),
            decoders.Replace(Regex(f"(?:{commands})▁"), ""),
            decoders.Replace("▁", " "),
            decoders.Replace(NEW_LINE, "<n>"),
        ]
    )
    return tokenizer


def sentencepiece_bpe(scored: list[tuple[str, float]]) -> models.BPE:
    """The model of these entries and their scores, with the merges that SentencePiece implies.

    Raises:
        ValueError: if an entry stands twice, or the unknown one is missing.
    """
    # `<n>` is an entry that is never cut or joined: inside the tokenizer it is one character, from
    # the private use area.
    scored = [(NEW_LINE if entry == "<n>" else entry, score) for entry, score in scored]
    ids = {entry: id for id, (entry, _) in enumerate(scored)}
    if len(ids) < len(scored) or "<unk>" not in ids:
        raise ValueError("an entry stands twice in it, or it holds no <unk>; download it again")
    # It keeps no merges: they are all the ways to cut an entry into two, in the order of its score.
    ranked = sorted(
        (-score, ids[left], ids[right])
        for entry, score in scored
        for left, right in ((entry[:i], entry[i:]) for i in range(1, len(entry)))
        if left in ids and right in ids
    )
    surface = [entry for entry, _ in scored]
    merges = [(surface[left], surface[right]) for _, left, right in ranked]
    return models.BPE(ids, merges, unk_token="<unk>", fuse_unk=True)


def escape(surface: str) -> str:
    return "".join(f"\\{character}" if character in "[]<>|" else character for character in surface)


def read_sentencepiece(model_file: Path) -> tuple[list[tuple[str, float]], bytes]:
    """Entries with their scores, and the normaliser's character map, from a SentencePiece model.

    The file is one protocol buffer message: field 1, repeated, is an entry (1 text, 2 score); field
    3 is the normaliser (2 the character map).
    """
    scored, character_map = [], b""
    for field, value in protobuf_fields(model_file.read_bytes()):
        if field == 1:
            entry = dict(protobuf_fields(value))
            text = entry[1].decode("utf-8")
            if not 0 < len(text) <= LONGEST_ENTRY:
                raise ValueError("it holds an entry that is empty or very long")
            scored.append((text, struct.unpack("<f", entry[2])[0]))
        elif field == 3:
            character_map = dict(protobuf_fields(value)).get(2, b"")
    if not scored:
        raise ValueError("it holds no entries")
    return scored, character_map


def protobuf_fields(message: bytes):
    """The fields of a protocol buffer message: (number, bytes), or (number, integer)."""

    def integer(at):
        value, shift = 0, 0
        while True:
            if at >= len(message) or shift > 63:
                raise ValueError("it ends in the middle of a field")
            value |= (message[at] & 0x7F) << shift
            at, shift = at + 1, shift + 7
            if not message[at - 1] & 0x80:
                return value, at

    at = 0
    while at < len(message):
        key, at = integer(at)
        number, wire_type = key >> 3, key & 7
        if wire_type == 0:
            value, at = integer(at)
        elif wire_type in (1, 5):  # eight or four bytes
            size = 8 if wire_type == 1 else 4
            value, at = message[at : at + size], at + size
        elif wire_type == 2:
            size, at = integer(at)
            value, at = message[at : at + size], at + size
        else:
            raise ValueError(f"it holds a field of unknown type {wire_type}")
        yield number, value


BUILDERS: dict[str, Callable[..., Tokenizer]] = {
    "gpt2": build_gpt2,
    "roberta": build_roberta,
    "bert": build_bert,
    "chinese": build_chinese,
}
