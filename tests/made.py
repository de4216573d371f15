"""Data that the tests make themselves: small vocabularies, a seeded checkpoint cut over ranks."""

import json
from pathlib import Path

import numpy
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

SENTENCES = [
    "Ng is an adjunct professor at Stanford (formerly associate professor).",
    "There have been various types of pretraining architectures. "
    "We propose a General Language Model.",
    "Tsinghua University is located in Beijing. The quick brown fox jumps over the lazy dog.",
]


def make_vocabulary(folder: Path, family: str = "gpt2") -> Path:
    """A small vocabulary of the family, trained here, in the files of the original."""
    folder.mkdir(parents=True, exist_ok=True)
    if family == "bert":
        tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        tokenizer.train_from_iterator(
            [s.lower() for s in SENTENCES * 4],
            trainers.WordPieceTrainer(vocab_size=150, special_tokens=special, show_progress=False),
        )
        pieces = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
        (folder / "vocab.txt").write_text("\n".join(piece for piece, _ in pieces) + "\n")
        return folder
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(SENTENCES * 4, trainer)
    tokenizer.model.save(str(folder))
    vocabulary = json.loads((folder / "vocab.json").read_text())
    vocabulary["<|endoftext|>"] = len(vocabulary)
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    return folder


def make_parameters(
    layers=2, hidden=16, length=64, vocabulary=512, block_positions=True, dtype=torch.float16
) -> dict:
    """Seeded parameters under the released names, far from zero so that the answers vary."""
    generator = torch.Generator().manual_seed(5)
    rows = length + 1 if block_positions else length
    shapes = {
        "word_embeddings.weight": (vocabulary, hidden),
        "transformer.position_embeddings.weight": (rows, hidden),
    }
    if block_positions:
        shapes["transformer.block_position_embeddings.weight"] = (rows, hidden)
    for layer in range(layers):
        prefix = f"transformer.layers.{layer}."
        for name, shape in {
            "input_layernorm": (hidden,),
            "attention.query_key_value": (3 * hidden, hidden),
            "attention.dense": (hidden, hidden),
            "post_attention_layernorm": (hidden,),
            "mlp.dense_h_to_4h": (4 * hidden, hidden),
            "mlp.dense_4h_to_h": (hidden, 4 * hidden),
        }.items():
            shapes[f"{prefix}{name}.weight"], shapes[f"{prefix}{name}.bias"] = shape, shape[:1]
    shapes["transformer.final_layernorm.weight"] = shapes["transformer.final_layernorm.bias"] = (
        hidden,
    )
    parameters = {
        name: torch.randn(shape, generator=generator) * 0.3 for name, shape in shapes.items()
    }
    for name in parameters:
        if name.endswith("layernorm.weight"):
            parameters[name] += 1
    return {name: tensor.to(dtype) for name, tensor in parameters.items()}


def cut(name: str, tensor: torch.Tensor, ranks: int, rank: int) -> torch.Tensor:
    """The part of a parameter that one rank holds, as the original's split tool cuts it."""
    if "query_key_value" in name:
        return torch.cat([block.chunk(ranks)[rank] for block in tensor.chunk(3)])
    if name.endswith(("attention.dense.weight", "dense_4h_to_h.weight")):
        return tensor.chunk(ranks, dim=1)[rank].contiguous()
    if "dense_h_to_4h" in name or name == "word_embeddings.weight":
        return tensor.chunk(ranks)[rank].contiguous()
    return tensor


def make_checkpoint(
    folder: Path, parameters: dict, ranks: int = 1, tracker: str | None = "250000", **entries
) -> Path:
    """A checkpoint folder with the entries that the original writes, numpy's state among them."""
    iteration = folder / (tracker or "250000")
    iteration.mkdir(parents=True)
    for rank in range(ranks):
        module = {name: cut(name, tensor, ranks, rank) for name, tensor in parameters.items()}
        state = {
            "iteration": 250000,
            "module": module,
            "optimizer": None,
            "np_rng_state": numpy.random.get_state(),
        }
        state |= {
            "csr_tensor_module_names": set(),
            "torch_rng_state": torch.get_rng_state(),
            **entries,
        }
        torch.save(state, iteration / f"mp_rank_{rank:02d}_model_states.pt")
    if tracker is not None:
        (folder / "latest_checkpointed_iteration.txt").write_text(tracker)
    return folder
