"""Damaged checkpoints: each becomes the right repository, or one sentence; never half of one.

    GLM_MUTATIONS=1000 python -m pytest tests/test_mutations.py

makes a thousand of them; a few by default.
"""

import io
import os
import pickletools
import random
import shutil
import zipfile

import pytest
import torch
from made import cut, make_checkpoint, make_parameters
from safetensors.torch import load_file

from glm_transformers.conversion import ConversionError, convert_checkpoint

COUNT = int(os.environ.get("GLM_MUTATIONS", 60))
RANKS = (1, 2, 4)
WRONG = None  # what no repository may come from


def load_ranks(checkpoint):
    files = sorted((checkpoint / "250000").glob("*.pt"))
    return {file: torch.load(file, weights_only=False) for file in files}


def save(file, state, source):
    legacy = not zipfile.is_zipfile(source)
    torch.save(state, file, _use_new_zipfile_serialization=not legacy)


def change_module(change):
    """A mutation that changes the parameters of one rank, and in half of the cases of all."""

    def mutate(checkpoint, generator):
        states = load_ranks(checkpoint)
        name = generator.choice(sorted(next(iter(states.values()))["module"]))
        chosen = generator.choice([list(states), [generator.choice(list(states))]])
        seed = generator.random()
        for file in chosen:
            module = states[file]["module"]
            tensor = module.pop(name)
            module.update(change(name, tensor, random.Random(seed)))
            save(file, states[file], file)
        modules = [state["module"] for state in states.values()]
        return modules[0] if len(modules) == 1 else merged(modules)

    mutate.__name__ = change.__name__
    return mutate


def merged(modules):
    """What the ranks' modules are cut from; WRONG if they are not cut from anything."""
    modules = [
        {name.removeprefix("model."): tensor for name, tensor in module.items()}
        for module in modules
    ]
    try:
        assert all(set(module) == set(modules[0]) for module in modules)
        whole = {name: joined(name, [module[name] for module in modules]) for name in modules[0]}
        cuts = [
            {name: cut(name, tensor, len(modules), rank) for name, tensor in whole.items()}
            for rank in range(len(modules))
        ]
        assert all(
            same(module[name], pieces[name])
            for module, pieces in zip(modules, cuts, strict=True)
            for name in module
        )
        return whole
    except (AssertionError, AttributeError, RuntimeError, TypeError, IndexError):
        return WRONG


def joined(name, parts):
    if "query_key_value" in name:
        return torch.cat(
            [torch.cat(blocks) for blocks in zip(*(part.chunk(3) for part in parts), strict=True)]
        )
    if name.endswith(("attention.dense.weight", "dense_4h_to_h.weight")):
        return torch.cat(parts, 1)
    return (
        torch.cat(parts)
        if "dense_h_to_4h" in name or name == "word_embeddings.weight"
        else parts[0]
    )


def same(one, other):
    return isinstance(one, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)


@change_module
def dropped(name, tensor, generator):
    return {}


@change_module
def renamed(name, tensor, generator):
    at = generator.randrange(len(name))
    new = generator.choice(
        [
            name[:at] + "x" + name[at:],
            name[:at] + name[at + 1 :],
            name.replace("layers.1", "layers.7"),
            f"model.{name}",
            "\n",
            "",
            "ä\ud800",
        ]
    )
    return {new: tensor}


@change_module
def reshaped(name, tensor, generator):
    return {
        name: generator.choice(
            [
                tensor.t(),
                tensor[:-1],
                tensor[None],
                tensor.flatten()[:3],
                tensor[:0],
                torch.cat([tensor, tensor]),
            ]
        ).clone()
    }


@change_module
def strided(name, tensor, generator):
    return {
        name: generator.choice(
            [torch.stack([tensor, tensor], -1)[..., 1], torch.cat([tensor, tensor])[: len(tensor)]]
        )
    }


@change_module
def retyped(name, tensor, generator):
    return {
        name: tensor.to(
            generator.choice(
                [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.uint8, torch.bool]
            )
        )
    }


@change_module
def not_finite(name, tensor, generator):
    tensor = tensor.clone()
    tensor.view(-1)[generator.randrange(tensor.numel())] = generator.choice(
        [float("nan"), float("inf"), -float("inf")]
    )
    return {name: tensor}


@change_module
def no_tensor(name, tensor, generator):
    return {name: generator.choice([None, 3, "text", {}, [tensor], {"tensor": tensor}, set()])}


def truncated(checkpoint, generator):
    file = generator.choice(sorted((checkpoint / "250000").glob("*.pt")))
    os.truncate(
        file,
        generator.choice(
            [0, 1, 3, 100, generator.randrange(file.stat().st_size), file.stat().st_size - 1]
        ),
    )


def flipped(checkpoint, generator):
    """Some bits of the pickle.

    A zip file has checksums; in a legacy file, which has none, only the first bytes are the pickle.
    """
    file = generator.choice(sorted((checkpoint / "250000").glob("*.pt")))
    content = bytearray(file.read_bytes())
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            record = archive.getinfo(
                next(name for name in archive.namelist() if name.endswith("data.pkl"))
            )
        start, end = record.header_offset, record.header_offset + record.file_size
    else:
        start, end = 0, pickle_length(content)
    content[generator.randrange(start, end)] ^= 1 << generator.randrange(8)
    file.write_bytes(content)
    return make_parameters(**SHAPE)


def flipped_anywhere(checkpoint, generator):
    file = generator.choice(sorted((checkpoint / "250000").glob("*.pt")))
    content = bytearray(file.read_bytes())
    end = len(content) if zipfile.is_zipfile(file) else pickle_length(content)
    content[generator.randrange(end)] = generator.randrange(256)
    file.write_bytes(content)
    return make_parameters(**SHAPE)


def pickle_length(content):
    stream = io.BytesIO(content)
    for _ in range(5):  # the pickles of a legacy file
        for _ in pickletools.genops(stream):
            pass
    return stream.tell()


def resealed(checkpoint, generator):
    """Bytes of the pickle, with a checksum that fits: it says anything, and does no harm."""
    file = generator.choice(sorted((checkpoint / "250000").glob("*.pt")))
    if not zipfile.is_zipfile(file):
        return flipped(checkpoint, generator)
    copy = file.with_suffix(".copy")
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(copy, "w") as new:
        for record in old.infolist():
            content = bytearray(old.read(record))
            if record.filename.endswith("data.pkl"):
                for _ in range(generator.choice([1, 1, 3])):
                    content[generator.randrange(len(content))] = generator.randrange(256)
            new.writestr(zipfile.ZipInfo(record.filename), bytes(content))
    copy.rename(file)
    return "anything"


def swapped(checkpoint, generator):
    files = sorted((checkpoint / "250000").glob("*.pt"))
    if len(files) == 1 or not zipfile.is_zipfile(files[0]):  # a legacy file does not keep its name
        return make_parameters(**SHAPE)
    one, other = generator.sample(files, 2)
    one.rename(checkpoint / "aside")
    other.rename(one)
    (checkpoint / "aside").rename(other)


def mixed(checkpoint, generator):
    """One rank of another iteration, or of another number of ranks."""
    states = load_ranks(checkpoint)
    file = generator.choice(list(states))
    entry, value = generator.choice(
        [("iteration", 249999), ("global_steps", 7), ("mp_world_size", 8), ("iteration", "250000")]
    )
    states[file][entry] = value
    save(file, states[file], file)
    return make_parameters(**SHAPE) if len(states) == 1 and entry != "mp_world_size" else WRONG


def missing(checkpoint, generator):
    generator.choice(sorted((checkpoint / "250000").glob("*.pt"))).unlink()


def surplus(checkpoint, generator):
    files = sorted((checkpoint / "250000").glob("*.pt"))
    shutil.copy(
        generator.choice(files),
        files[0].with_name(f"mp_rank_{len(files) + generator.randrange(2):02d}_model_states.pt"),
    )


def other_tracker(checkpoint, generator):
    tracker = checkpoint / "latest_checkpointed_iteration.txt"
    tracker.write_bytes(
        generator.choice(
            [
                b"",
                b"..",
                b"/",
                b"../checkpoint/250000",
                b"\xff\xfe",
                b"251000",
                b"250000\x00",
                b"a\nb",
                b"x" * 9999,
            ]
        )
    )


def other_content(checkpoint, generator):
    file = generator.choice(sorted((checkpoint / "250000").glob("*.pt")))
    save(
        file,
        generator.choice(
            [
                None,
                [],
                {"module": None},
                {"module": {}},
                {1: 2},
                "text",
                {"module": [1]},
                torch.ones(3),
            ]
        ),
        file,
    )


def nested(checkpoint, generator):
    """No damage: what other wrappers make of the same parameters."""
    states = load_ranks(checkpoint)
    way = generator.choice(["model", "state_dict", "module", "bare", "prefix"])
    for file, state in states.items():
        module = dict(state["module"])
        if way == "prefix":
            module = {f"module.model.{name}": tensor for name, tensor in module.items()}
        save(file, module if way == "bare" else {way: {"module": module}}, file)
    return make_parameters(**SHAPE)


SHAPE = dict(layers=2, hidden=16, length=16, vocabulary=128)
MUTATIONS = [
    dropped,
    renamed,
    reshaped,
    strided,
    retyped,
    not_finite,
    no_tensor,
    truncated,
    flipped,
    flipped_anywhere,
    resealed,
]
MUTATIONS += [swapped, mixed, missing, surplus, other_tracker, other_content, nested]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mutations")
    made = {}
    for ranks in RANKS:
        made[ranks, False] = make_checkpoint(
            folder / f"{ranks}",
            make_parameters(**SHAPE),
            ranks,
            mp_world_size=ranks,
            global_steps=6,
        )
        made[ranks, True] = shutil.copytree(made[ranks, False], folder / f"{ranks}-legacy")
        for file, state in load_ranks(made[ranks, True]).items():
            torch.save(state, file, _use_new_zipfile_serialization=False)
    return made


@pytest.mark.parametrize("seed", range(COUNT))
def test_mutations(checkpoints, tmp_path, seed):
    generator = random.Random(seed)
    mutation = MUTATIONS[seed % len(MUTATIONS)]
    source = checkpoints[generator.choice(RANKS), generator.choice([False, True])]
    checkpoint = shutil.copytree(source, tmp_path / "checkpoint")
    expected = mutation(checkpoint, generator)
    before = {file: file.read_bytes() for file in checkpoint.rglob("*") if file.is_file()}
    try:
        convert_checkpoint(checkpoint, tmp_path / "out", tokenizer="none", num_attention_heads=4)
    except ConversionError as error:
        assert str(error) and "\n" not in str(error)
        assert {file.name for file in tmp_path.iterdir()} == {"checkpoint"}
    else:
        assert {file.name for file in tmp_path.iterdir()} == {"checkpoint", "out"}
        tensors = {
            name.removeprefix("glm."): tensor
            for name, tensor in load_file(tmp_path / "out" / "model.safetensors").items()
        }
        assert expected is not WRONG, "this should have been an error"
        if expected != "anything":
            expected = {name.removeprefix("model."): tensor for name, tensor in expected.items()}
            assert set(tensors) == set(expected)
            for name, tensor in expected.items():
                assert same(tensors[name], tensor), name
    assert {
        file: file.read_bytes() for file in checkpoint.rglob("*") if file.is_file()
    } == before, "the source is not touched"
