"""Builds the tokenizer of each GLM family from the vocabulary files that the original code used.

The families differ in how text becomes pieces; the command tokens, their ids and their left-stripping are GLM's. Masks of
the GPT-2, RoBERTa and Chinese families swallow all white space on their left, other tokens swallow none.
"""

import json
import struct
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

from ..hub_repository.errors import RepositoryError
from ..tokenization_glm import GLMTokenizerFast

# The vocabulary files of each family, by the names they have in one place or another, and the Hub name that has them.
VOCABULARIES = {
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


def find_vocabulary(family: str, vocab: str | Path | None) -> list[Path]:
    """The vocabulary files of `family`, in the order its builder takes them.

    Args:
        vocab: a folder that holds them, one of the files, or a Hub name; the family's own Hub name if None.

    Raises:
        RepositoryError: if a file is missing; it names the file.
    """
    names, hub_name = VOCABULARIES[family]
    vocab = vocab if vocab is not None else hub_name
    folder = Path(vocab)
    if folder.is_file():
        folder = folder.parent
    elif not folder.exists():
        try:
            folder = Path(
                snapshot_download(
                    str(vocab), allow_patterns=[name for group in names for name in group]
                )
            )
        except Exception as error:
            raise RepositoryError(
                f"{vocab} is neither a folder nor a repository that can be reached on the Hub; pass --vocab with the "
                f"folder that holds {names[0][0]}."
            ) from error
    files = []
    for group in names:
        present = [folder / name for name in group if (folder / name).is_file()]
        if not present:
            raise RepositoryError(
                f"{folder} holds no {' or '.join(group)}, which the {family} tokenizer needs."
            )
        files.append(present[0])
    return files


def build_tokenizer(family: str, files: list[Path], task_mask: bool) -> GLMTokenizerFast:
    """The tokenizer of `family` with its command tokens; with `task_mask`, `[gMASK]` and `[sMASK]` too."""
    try:
        tokenizer = BUILDERS[family](*files, task_mask)
    except (ValueError, KeyError, struct.error, UnicodeDecodeError) as error:
        raise RepositoryError(f"{files[0]} is not a {family} vocabulary: {error}.") from error
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
    tokenizer: Tokenizer, surfaces: list[str], strip: bool = True, normalized: tuple[str, ...] = ()
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


def build_gpt2(vocabulary: Path, merges: Path, task_mask: bool) -> Tokenizer:
    model = models.BPE.from_file(str(vocabulary), str(merges))
    tokenizer = byte_level(model)
    surfaces = [
        "<|endoftext|>",
        "<|startofpiece|>",
        "<|endofpiece|>",
        "[CLS]",
        "[MASK]",
        "[SEP]",
        "[UNK]",
    ]
    add_command_tokens(tokenizer, surfaces + ["[gMASK]", "[sMASK]"] * task_mask)
    return tokenizer


def build_roberta(vocabulary: Path, merges: Path, task_mask: bool) -> Tokenizer:
    # The vocabulary maps byte-level pieces straight to fairseq ids; its four special entries are GLM's command tokens, and
    # GPT-2's own end of text, which fairseq kept as a piece of text, was never used.
    pieces = json.loads(vocabulary.read_text(encoding="utf-8"))
    if "<mask>" not in pieces:
        raise ValueError("it holds no <mask>")
    renamed = {
        "<s>": "[CLS]",
        "</s>": "<|endoftext|>",
        "<unk>": "[UNK]",
        "<mask>": "[MASK]",
        "<|endoftext|>": "<|unused|>",
    }
    ids = {renamed.get(piece, piece): id for piece, id in pieces.items()}
    pairs = [
        tuple(line.split(" "))
        for line in merges.read_text(encoding="utf-8").splitlines()[1:]
        if line
    ]
    # GPT-2 merges can make pieces that RoBERTa has not: the original reads these as id 0, as it does all unknown ones.
    tokenizer = byte_level(
        models.BPE(ids, [pair for pair in pairs if "".join(pair) in ids], unk_token="[CLS]")
    )
    # `[SEP]` has the id of the end of text, and a vocabulary has one surface for an id: the text is rewritten.
    tokenizer.normalizer = normalizers.Replace("[SEP]", "<|endoftext|>")
    surfaces = ["[CLS]", "<|endoftext|>", "[UNK]", "[MASK]", "<|startofpiece|>", "<|endofpiece|>"]
    add_command_tokens(
        tokenizer, surfaces + ["[gMASK]", "[sMASK]"] * task_mask, normalized=("<|endoftext|>",)
    )
    return tokenizer


def byte_level(model: models.BPE) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def build_bert(vocabulary: Path, task_mask: bool) -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece.from_file(str(vocabulary), unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(cleanup=False)
    surfaces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "<|startofpiece|>", "<|endofpiece|>"]
    add_command_tokens(tokenizer, surfaces + ["[gMASK]", "[sMASK]"] * task_mask, strip=False)
    return tokenizer


def build_chinese(model_file: Path, task_mask: bool) -> Tokenizer:
    pieces, character_map = read_sentencepiece(model_file)
    # `<n>` is a piece that is never cut or joined: inside the tokenizer it is one character, from the private use area.
    pieces = [(NEW_LINE if piece == "<n>" else piece, score) for piece, score in pieces]
    ids = {piece: id for id, (piece, _) in enumerate(pieces)}
    # A sentencepiece BPE model keeps no merges: they are all the ways to cut a piece into two, in the order of its score.
    merges = sorted(
        (-score, ids[left], ids[right])
        for piece, score in pieces
        for left, right in ((piece[:i], piece[i:]) for i in range(1, len(piece)))
        if left in ids and right in ids
    )
    surface = [piece for piece, _ in pieces]
    merges = [(surface[left], surface[right]) for _, left, right in merges]
    tokenizer = Tokenizer(models.BPE(ids, merges, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence(
        [
            # The map knows decomposed kana and Hangul, which this library looks up in it one character at a time.
            normalizers.NFC(),
            normalizers.Precompiled(character_map),
            normalizers.Replace(Regex("^ +| +$"), ""),
            normalizers.Replace(Regex(" {2,}"), " "),
            normalizers.Replace("<n>", NEW_LINE),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    # Ids 50000 to 50009; 50005 was left free. glm-10b-chinese was trained with [gMASK] at 50007, where it has a row of its
    # own after conversion, so that one tokenizer serves both Chinese models.
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
    # The original makes text of each stretch between command tokens on its own: the first space of each is dropped.
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


def escape(surface: str) -> str:
    return "".join(f"\\{character}" if character in "[]<>|" else character for character in surface)


def read_sentencepiece(model_file: Path) -> tuple[list[tuple[str, float]], bytes]:
    """Pieces with their scores, and the normaliser's character map, from a sentencepiece model.

    The file is one protocol buffer message: field 1, repeated, is a piece (1 text, 2 score); field 3 is the normaliser
    (2 the character map).
    """
    pieces, character_map = [], b""
    for field, value in protobuf_fields(model_file.read_bytes()):
        if field == 1:
            piece = dict(protobuf_fields(value))
            pieces.append((piece[1].decode("utf-8"), struct.unpack("<f", piece[2])[0]))
        elif field == 3:
            character_map = dict(protobuf_fields(value)).get(2, b"")
    if not pieces:
        raise ValueError("it holds no pieces")
    return pieces, character_map


def protobuf_fields(message: bytes):
    """The fields of a protocol buffer message: (number, bytes), or (number, integer) for variable-length integers."""

    def integer(at):
        value, shift = 0, 0
        while True:
            if at >= len(message):
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


BUILDERS = {
    "gpt2": build_gpt2,
    "roberta": build_roberta,
    "bert": build_bert,
    "chinese": build_chinese,
}
