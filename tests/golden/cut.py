"""Cuts the golden data in this folder from the full set, which lies beside the project.

    python tests/golden/cut.py ../shared/reference

Nothing here is computed anew: numbers of the original code are kept or left out. README.md says
which.
"""

import io
import itertools
import json
import lzma
import struct
import sys
import tarfile
from hashlib import sha256
from pathlib import Path

import torch
from safetensors.torch import load_file, save

HERE = Path(__file__).parent

# Checkpoints whose every number is kept, and those that keep the rows of the vocabulary that are
# read, with zeros in the others.
WHOLE = ["tiny-fp32", "tiny-noblockpos", "tiny-cloze"]
FAMILIES = {
    "gpt2": "tiny-gpt2-fp16",
    "roberta": "tiny-roberta-fp16",
    "bert": "tiny-bert-fp16",
    "chinese": "tiny-chinese-10b-fp16",
}
OF_A_FAMILY = list(FAMILIES.values())
RANKS = ["tiny-gpt2-fp16_MP2", "tiny-gpt2-fp16_MP4"]
# Checkpoints kept for the form of their file: the first row of each parameter, zeros in the others.
FORMS = ["tiny-multichoice-head", "tiny-cloze-fast", "tiny-prompt-lstm"]
LEGACY = "tiny-legacy-notracker"
SETUPS = [
    "gpt2_block",
    "gpt2_block_taskmask",
    "roberta_block",
    "roberta_block_taskmask",
    "bert_base_uncased_block",
    "bert_large_uncased_block",
    "bert_base_uncased_block_taskmask",
    "chinese_sp_block",
    "chinese_sp_block_taskmask",
    "chinese_sp_block_taskmask_fix",
]
FEATURES = 3  # of a hidden state
COLUMNS = 8  # of the logits
GRADIENT = (8, 8)  # the corner of a gradient
TEXTS = 120  # of 200 for each mode of pretraining
PIECE, ORDINARY, FLOAT_FIELD_2 = 1, 1, b"\x15"  # of a sentencepiece model
COPIED_ROWS = [50007, 50009]  # of glm-10b-chinese, by the converter

Files = dict[str, bytes]


def main(reference: Path):
    parts = {
        "checkpoints": cut_checkpoints(reference),
        "goldens": cut_goldens(reference),
        "tokenizers": cut_tokenizers(reference),
        "pretraining": cut_pretraining(reference),
    }
    for name, files in parts.items():
        write_archive(HERE / f"{name}.tar.xz", files)
        print(f"{name}: {len(files)} files, {(HERE / f'{name}.tar.xz').stat().st_size} bytes")


def write_archive(file: Path, files: Files):
    """The same files give the same bytes: without times, owners and an order of their own."""
    with tarfile.open(file, "w:xz", preset=9 | lzma.PRESET_EXTREME) as archive:
        for name, content in sorted(files.items()):
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))


def as_json(value) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode()


# --- Checkpoints --------------------------------------------------------------------------------


def cut_checkpoints(reference: Path) -> Files:
    facts = json.loads((reference / "checkpoints/checkpoints.json").read_text())
    files, kept = {}, {}
    for name in [*WHOLE, "tiny-classifier", *OF_A_FAMILY, *FORMS]:
        (source,) = (reference / "checkpoints" / name).glob("*/mp_rank_00_model_states.pt")
        state = torch.load(source, weights_only=False)
        rows = read_rows(reference, name)
        module = {
            key: cut_parameter(name, key, tensor, rows) for key, tensor in state["module"].items()
        }
        files |= checkpoint_files(source, {**state, "module": module, "optimizer": None})
        kept[name] = facts[name] | {
            "state_dict": {
                key: {"shape": list(tensor.shape), "sha256": digest(tensor)}
                for key, tensor in module.items()
            }
        }
    rows = read_rows(reference, "tiny-gpt2-fp16")
    for name in RANKS:
        sources = sorted((reference / "checkpoints" / name).glob("*/mp_rank_*_model_states.pt"))
        for rank, source in enumerate(sources):
            state = torch.load(source, weights_only=False)
            words = state["module"]["word_embeddings.weight"]
            first = rank * len(words)
            mine = [row - first for row in rows if first <= row < first + len(words)]
            state["module"]["word_embeddings.weight"] = only_rows(words, mine)
            files |= checkpoint_files(source, state)
    legacy_files, kept[LEGACY] = cut_legacy(reference, facts[LEGACY])
    return files | legacy_files | {"checkpoints/checkpoints.json": as_json(kept)}


def checkpoint_files(source: Path, state: dict) -> Files:
    """The file of a rank, and the trackers that lie beside its folder."""
    folder = source.parents[1]
    files = {
        f"checkpoints/{folder.name}/{file.name}": file.read_bytes()
        for file in folder.iterdir()
        if file.is_file()
    }
    name = f"checkpoints/{folder.name}/{source.parent.name}/{source.name}"
    return files | {name: saved(state)}


def saved(state: dict) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def cut_parameter(name: str, key: str, tensor: torch.Tensor, rows: list[int]) -> torch.Tensor:
    if name in FORMS:
        return only_rows(tensor, [0])
    if name not in WHOLE and key.endswith("word_embeddings.weight"):
        return only_rows(tensor, rows)
    return tensor


def only_rows(tensor: torch.Tensor, rows: list[int]) -> torch.Tensor:
    kept = torch.zeros_like(tensor)
    kept[rows] = tensor[rows]
    return kept


def digest(tensor: torch.Tensor) -> str:
    return sha256(tensor.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()


def read_rows(reference: Path, name: str) -> list[int]:
    """Rows of the vocabulary that the golden runs of a checkpoint read, as input or as logits."""
    if name == "tiny-classifier":
        golden = load_file(reference / "goldens/wrappers.safetensors")
        return golden["classifier.input_ids"].unique().tolist()
    if name not in OF_A_FAMILY:
        return []
    facts, tensors = load_golden(reference / "goldens" / name / "generation")
    rows = {*COPIED_ROWS, *tensors["logit_columns"][:COLUMNS].tolist()}
    for case in facts["cases"].values():
        rows |= {*case["context_ids"], *case["end_ids"], *case["all_tokens"]}
        # The rows left out have a logit of zero, which no step may come near.
        if min(step["top5_logits"][0] for step in case["steps"]) < 1:
            raise ValueError(f"{name} prefers a token by little; keep its rows.")
    return sorted(row for row in rows if row < facts["config"]["vocab_size"])


def cut_legacy(reference: Path, facts: dict) -> tuple[Files, dict]:
    """A file of a torch before 1.6 cannot be written again: its numbers are zeroed in place."""
    (source,) = (reference / "checkpoints" / LEGACY).glob("*/mp_rank_00_model_states.pt")
    content = bytearray(source.read_bytes())
    state_dict = {}
    for key, tensor in torch.load(source, weights_only=False)["module"].items():
        numbers = tensor.contiguous().view(torch.uint8).numpy().tobytes()
        start = content.index(numbers)
        kept = 16
        content[start + kept : start + len(numbers)] = bytes(len(numbers) - kept)
        zeroed = numbers[:kept] + bytes(len(numbers) - kept)
        state_dict[key] = {"shape": list(tensor.shape), "sha256": sha256(zeroed).hexdigest()}
    name = f"checkpoints/{LEGACY}/{source.parent.name}/{source.name}"
    return {name: bytes(content)}, facts | {"state_dict": state_dict}


# --- Goldens ------------------------------------------------------------------------------------


def load_golden(path: Path) -> tuple[dict, dict]:
    facts = json.loads(path.with_suffix(".json").read_text())
    return facts, load_file(path.with_suffix(".safetensors"))


def cut_goldens(reference: Path) -> Files:
    goldens, files = reference / "goldens", {}
    for name in ("tiny-fp32", "tiny-noblockpos", "tiny-fp32_attnscale8"):
        facts, tensors = load_golden(goldens / name / "forward")
        cases = {case: {"mems_from": of["mems_from"]} for case, of in facts["cases"].items()}
        files[f"goldens/{name}/forward.json"] = as_json({"cases": cases})
        files[f"goldens/{name}/forward.safetensors"] = save(cut_forward(tensors))
    for name in ("tiny-fp32", "tiny-noblockpos", *OF_A_FAMILY):
        facts, tensors = load_golden(goldens / name / "generation")
        for case in facts["cases"].values():
            del case["steps"], case["fp32_vs_fp64_max_abs"]
        files[f"goldens/{name}/generation.json"] = as_json(facts)
        columns = slice(COLUMNS)
        tensors = {key: tensor[..., columns].contiguous() for key, tensor in tensors.items()}
        files[f"goldens/{name}/generation.safetensors"] = save(tensors)
    facts, tensors = load_golden(goldens / "tiny-fp32/train_step")
    files["goldens/tiny-fp32/train_step.json"] = as_json({"grad_norms": facts["grad_norms"]})
    files["goldens/tiny-fp32/train_step.safetensors"] = save(
        {key: corner(tensor) if "grad." in key else tensor for key, tensor in tensors.items()}
    )
    wrappers = load_file(goldens / "wrappers.safetensors")
    wrappers = {key: wrappers[key] for key in wrappers if key.startswith(("classifier.", "cloze."))}
    files["goldens/wrappers.safetensors"] = save(wrappers)
    files["goldens/init_statistics.json"] = (goldens / "init_statistics.json").read_bytes()
    return files


def cut_forward(tensors: dict) -> dict:
    """Every case and every token of it: some columns of the logits, some features of the states."""
    columns = tensors["logit_columns"][:COLUMNS]
    kept = {"logit_columns": columns}
    for key, tensor in tensors.items():
        field = key.partition(".")[2]
        if field == "logits":
            kept[key.replace("logits", "logits_cols")] = tensor[..., columns].contiguous()
        elif field == "logits_cols":
            kept[key] = tensor[..., :COLUMNS].contiguous()
        elif field.startswith("hidden_"):
            kept[key] = tensor[..., :FEATURES].contiguous()
        elif field in ("input_ids", "position_ids", "attention_mask", "logsumexp"):
            kept[key] = tensor
    return kept


def corner(tensor: torch.Tensor) -> torch.Tensor:
    return tensor[tuple(slice(size) for size in GRADIENT[: tensor.dim()])].contiguous()


# --- Tokenizers ---------------------------------------------------------------------------------


def cut_tokenizers(reference: Path) -> Files:
    """The original's answers, and vocabularies in which only the pieces of these have a text."""
    golden = {
        setup: json.loads((reference / f"tokenizers/{setup}.json").read_text()) for setup in SETUPS
    }
    files = {}
    for setup, facts in golden.items():
        for case in facts["encode_cases"]:
            case.pop("tokens", None)
        kept = {key: facts[key] for key in ("command_tokens", "encode_cases", "decode_cases")}
        files[f"tokenizers/{setup}.json"] = as_json(kept)
    vocab = reference / "vocab"
    for family, name in FAMILIES.items():
        ids = ids_of(golden, family) | ids_of_prompts(reference, name)
        if family == "gpt2":
            ids |= ids_of_samples(reference)
        for file, content in VOCABULARY_CUTS[family](vocab, family, ids).items():
            files[f"vocab/{file}"] = content
    return files


def ids_of(golden: dict, family: str) -> set[int]:
    return {
        id
        for setup, facts in golden.items()
        if setup.startswith(family)
        for case in facts["encode_cases"] + facts["decode_cases"]
        for id in case["ids"]
    }


def ids_of_prompts(reference: Path, name: str) -> set[int]:
    cases = json.loads((reference / f"goldens/{name}/generation.json").read_text())["cases"]
    return {id for case in cases.values() for id in case["context_ids"] + case["all_tokens"]}


def ids_of_samples(reference: Path) -> set[int]:
    samples = load_file(reference / "pretraining/blank_infilling_samples.safetensors")
    texts = [tensor for key, tensor in samples.items() if key.endswith("input_text")]
    return set(torch.cat(texts).unique().tolist())


def filler(id: int) -> str:
    """What stands for a piece that is left out; no text is ever read as it."""
    return f"<{id}>"


def cut_bpe(folder: Path, family: str, ids: set[int]) -> Files:
    vocabulary, merges = folder / f"{family}-vocab.json", folder / f"{family}-merges.txt"
    pieces = json.loads(vocabulary.read_text(encoding="utf-8"))
    header, *lines = merges.read_text(encoding="utf-8").splitlines()
    pairs = [tuple(line.split(" ")) for line in lines if line]
    ranks = {pair: rank for rank, pair in enumerate(pairs) if "".join(pair) in pieces}
    made_by = {"".join(pair): pair for pair in reversed(ranks)}  # the best of several
    special = {piece for piece in pieces if piece[0] == "<" and piece[-1] == ">"}
    wanted = [piece for piece, id in pieces.items() if id in ids and piece not in special]
    kept, kept_pairs = {*special, *(piece for piece in pieces if len(piece) == 1)}, set()
    while wanted:
        piece = wanted.pop()
        if piece in kept:
            continue
        kept.add(piece)
        # Those that really make it, and one that could: every piece is the result of a merge.
        for pair in {*merges_of(piece, ranks), made_by[piece]}:
            kept_pairs.add(pair)
            wanted += [*pair, "".join(pair)]
    cut = {piece if piece in kept else filler(id): id for piece, id in pieces.items()}
    lines = [header, *(" ".join(pair) for pair in pairs if pair in kept_pairs)]
    return {
        vocabulary.name: json.dumps(cut, ensure_ascii=False).encode(),
        merges.name: ("\n".join(lines) + "\n").encode(),
    }


def merges_of(piece: str, ranks: dict[tuple[str, str], float]) -> list[tuple[str, str]]:
    """The merges that make a piece of its characters, in the order in which they are made."""
    symbols, merges = list(piece), []
    while True:
        pairs = [
            (ranks[pair], at)
            for at, pair in enumerate(itertools.pairwise(symbols))
            if pair in ranks
        ]
        if not pairs:
            return merges
        _, at = min(pairs)
        merges.append((symbols[at], symbols[at + 1]))
        symbols[at : at + 2] = [symbols[at] + symbols[at + 1]]


def cut_word_pieces(folder: Path, family: str, ids: set[int]) -> Files:
    vocabulary = folder / "bert-base-uncased-vocab.txt"
    pieces = vocabulary.read_text(encoding="utf-8").split("\n")
    while not pieces[-1]:
        pieces.pop()
    kept = [
        piece if id in ids or piece[0] == "[" or len(piece.removeprefix("##")) == 1 else filler(id)
        for id, piece in enumerate(pieces)
    ]
    return {vocabulary.name: ("\n".join(kept) + "\n").encode()}


def cut_sentencepiece(folder: Path, family: str, ids: set[int]) -> Files:
    """The fields of the file in their order; a piece that is left out has another text, no score.

    Field 1, repeated, is a piece: 1 its text, 2 its score, 3 its kind. The others stay as they are.
    """
    model = folder / "cog-pretrain.model"
    messages = list(fields(model.read_bytes()))
    pieces = [dict(fields(value)) for number, value in messages if number == PIECE]
    # The better the score, the earlier two parts are joined.
    ranks = {piece[1].decode(): -struct.unpack("<f", piece[2])[0] for piece in pieces}
    texts, kept = list(ranks), set()
    for id in ids & set(range(len(texts))):
        kept |= made_by(texts[id], ranks)
    output, id = b"", 0
    for number, value in messages:
        if number == PIECE:
            if pieces[id].get(3, ORDINARY) == ORDINARY and texts[id] not in kept:
                value = field(1, filler(id).encode()) + FLOAT_FIELD_2 + bytes(4)
            id += 1
        output += field(number, value)
    return {model.name: output}


def made_by(piece: str, ranks: dict[str, float]) -> set[str]:
    """The piece, its characters, and every piece on the way from these to it."""
    pairs = {
        (piece[start:middle], piece[middle:end]): ranks[piece[start:end]]
        for start in range(len(piece))
        for end in range(start + 2, len(piece) + 1)
        for middle in range(start + 1, end)
        if piece[start:end] in ranks
    }
    return {piece, *piece, *(left + right for left, right in merges_of(piece, pairs))}


def fields(message: bytes):
    """(number, value) of each field of a protocol buffer message: bytes, or an integer."""
    at = 0
    while at < len(message):
        key, at = integer(message, at)
        number, kind = key >> 3, key & 7
        if kind == 0:
            value, at = integer(message, at)
        elif kind == 5:  # four bytes
            value, at = message[at : at + 4], at + 4
        else:
            size, at = integer(message, at)
            value, at = message[at : at + size], at + size
        yield number, value


def integer(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        value |= (message[at] & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if not message[at - 1] & 0x80:
            return value, at


def field(number: int, value: bytes) -> bytes:
    """A field whose value is bytes."""
    return varint(number << 3 | 2) + varint(len(value)) + value


def varint(value: int) -> bytes:
    output = b""
    while value > 0x7F:
        output, value = output + bytes([value & 0x7F | 0x80]), value >> 7
    return output + bytes([value])


VOCABULARY_CUTS = {
    "gpt2": cut_bpe,
    "roberta": cut_bpe,
    "bert": cut_word_pieces,
    "chinese": cut_sentencepiece,
}


# --- Pretraining --------------------------------------------------------------------------------


def cut_pretraining(reference: Path) -> Files:
    folder = reference / "pretraining"
    samples = load_file(folder / "blank_infilling_samples.safetensors")
    statistics = json.loads((folder / "blank_infilling_statistics.json").read_text())
    for mode in statistics["modes"].values():
        del mode["samples_200"]
    return {
        "pretraining/blank_infilling_samples.safetensors": save(
            {key: tensor[:TEXTS].contiguous() for key, tensor in samples.items()}
        ),
        "pretraining/blank_infilling_statistics.json": as_json(statistics),
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]))
