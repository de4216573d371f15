"""Files of strangers: nothing of them is executed, and each ends soon, in a sentence."""

import json
import os
import pickle
import shutil
import struct
import threading
import time
import zipfile
from collections import OrderedDict, defaultdict
from datetime import datetime
from pathlib import Path

import pytest
import torch
from made import make_checkpoint, make_parameters, make_vocabulary
from safetensors.torch import load_file

from glm_transformers import (
    GLMForConditionalGeneration,
    GLMForSequenceClassification,
    GLMTokenizerFast,
)
from glm_transformers.conversion import (
    ConversionError,
    convert_checkpoint,
    export_checkpoint,
    verify_repository,
)
from glm_transformers.conversion.tokenizers import build_tokenizer, find_vocabulary
from glm_transformers.hub_repository.config import build_network, read_config
from glm_transformers.hub_repository.output import new_folder
from glm_transformers.hub_repository.repository import write_repository

ROOT = Path(__file__).resolve().parents[1]
OPTIONS = dict(tokenizer="none", num_attention_heads=4)


@pytest.fixture(autouse=True)
def soon():
    """Every test ends in seconds of the processor, however busy the machine is."""
    start = time.process_time()
    yield
    assert time.process_time() - start < 30


def failed(repository, against=None) -> dict[str, str]:
    checks = verify_repository(repository, against)
    return {check.name: check.detail for check in checks if check.passed is False}


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("strangers")
    checkpoint = make_checkpoint(folder / "checkpoint", make_parameters())
    vocabulary = make_vocabulary(folder / "vocabulary")
    return convert_checkpoint(
        checkpoint,
        folder / "repository",
        model="glm-2b",
        vocab=vocabulary,
        num_attention_heads=4,
    )


@pytest.fixture
def repository(converted, tmp_path):
    return Path(shutil.copytree(converted, tmp_path / "repository"))


def change_json(file, **fields):
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


# --- Nothing in a repository is executed ----------------------------------------------------------

TRAP = "from pathlib import Path\nPath({!r}).write_text('executed')\nclass GLMConfig: pass\n"


def custom_generate(repository, trap):
    (repository / "custom_generate").mkdir()
    (repository / "custom_generate/generate.py").write_text(f"{trap}def generate(**k): pass\n")


def linked_custom_generate(repository, trap):
    elsewhere = repository.with_name("elsewhere")
    elsewhere.mkdir()
    (elsewhere / "generate.py").write_text(f"{trap}def generate(**k): pass\n")
    (repository / "custom_generate").symlink_to(elsewhere)


def other_processor(repository, trap):
    settings = {"auto_map": {"AutoProcessor": "who/ever--evil.Processor"}}
    (repository / "processor_config.json").write_text(json.dumps(settings))


def adapter_of_another_repository(repository, trap):
    settings = {"base_model_name_or_path": "who/ever"}
    (repository / "adapter_config.json").write_text(json.dumps(settings))


def other_file(repository, trap):
    (repository / "evil.py").write_text(trap)


def other_class(repository, trap):
    (repository / "evil.py").write_text(trap)
    change_json(repository / "config.json", auto_map={"AutoConfig": "evil.GLMConfig"})


def class_of_another_repository(repository, trap):
    change_json(repository / "config.json", auto_map={"AutoConfig": "who/ever--evil.GLMConfig"})
    (repository / "conversion.json").unlink()


def other_tokenizer_class(repository, trap):
    classes = {"AutoTokenizer": [None, "evil.Tokenizer"]}
    change_json(repository / "tokenizer_config.json", auto_map=classes)
    (repository / "conversion.json").unlink()


def other_pipeline(repository, trap):
    pipelines = {"text2text-generation": {"impl": "evil.Pipeline", "pt": []}}
    change_json(repository / "config.json", custom_pipelines=pipelines)
    (repository / "conversion.json").unlink()


def shipped_file(repository, trap):
    (repository / "modeling_glm.py").write_text(trap)


def shipped_file_with_a_forged_record(repository, trap):
    import hashlib

    (repository / "modeling_glm.py").write_text(trap)
    record = json.loads((repository / "conversion.json").read_text())
    record["files"]["modeling_glm.py"] = hashlib.sha256(trap.encode()).hexdigest()
    (repository / "conversion.json").write_text(json.dumps(record))


def compiled(repository, trap):
    (repository / "__pycache__").mkdir()
    (repository / "__pycache__/modeling_glm.cpython-311.pyc").write_bytes(b"anything")


def pickled(repository, trap):
    torch.save({}, repository / "pytorch_model.bin")


@pytest.mark.parametrize(
    "change, message",
    [
        (custom_generate, "custom_generate/generate.py is code that no GLM repository holds"),
        (linked_custom_generate, "custom_generate is a link to a folder"),
        (other_processor, "processor_config.json may have other"),
        (adapter_of_another_repository, "adapter_config.json may have other"),
        (other_file, "evil.py is code"),
        (other_class, "evil.py is code"),
        (class_of_another_repository, "names who/ever--evil.GLMConfig"),
        (other_tokenizer_class, "names evil.Tokenizer"),
        (other_pipeline, "names evil.Pipeline"),
        (shipped_file, "modeling_glm.py is not what was converted"),
        (shipped_file_with_a_forged_record, "modeling_glm.py is not that of this version"),
        (compiled, "is code"),
        (pickled, "pytorch_model.bin is a pickle"),
    ],
)
def test_code_in_a_repository_is_named_and_not_run(repository, tmp_path, change, message):
    change(repository, TRAP.format(str(tmp_path / "executed")))
    assert list(failed(repository)) == ["files"] and message in failed(repository)["files"]
    export_checkpoint(repository, tmp_path / "exported")  # reads settings and weights alone
    assert not (tmp_path / "executed").exists()


def test_verification_runs_no_code_of_the_folder_even_where_it_is_ours(repository, monkeypatch):
    def refuse(*arguments, **options):
        raise AssertionError("the code of a repository was asked for")

    monkeypatch.setattr("transformers.dynamic_module_utils.get_class_from_dynamic_module", refuse)
    monkeypatch.setattr("transformers.dynamic_module_utils.get_class_in_module", refuse)
    assert failed(repository) == {}


@pytest.mark.parametrize(
    "name", ["config.json", "generation_config.json", "tokenizer_config.json", "handler.py"]
)
def test_settings_are_recorded(repository, name):
    with open(repository / name, "a") as file:
        file.write("\n")
    assert "is not what was converted" in failed(repository)["files"]


def test_a_repository_without_a_record(repository):
    (repository / "conversion.json").unlink()
    checks = {check.name: check for check in verify_repository(repository)}
    assert all(check.passed is not False for check in checks.values())
    assert "there is no conversion.json" in checks["files"].detail
    assert "no record tells" in checks["weights"].detail and checks["one blank"].passed


def test_a_hundred_thousand_beams_are_not_run(repository):
    (repository / "conversion.json").unlink()
    change_json(repository / "generation_config.json", num_beams=100_000)
    assert failed(repository) == {}


def test_what_save_pretrained_writes_is_verified(repository, tmp_path):
    model = GLMForConditionalGeneration.from_pretrained(repository)
    model.save_pretrained(tmp_path / "saved")
    GLMTokenizerFast.from_pretrained(repository).save_pretrained(tmp_path / "saved")
    for name in repository.glob("*.py"):  # which only a class of a repository brings along
        shutil.copy(name, tmp_path / "saved")
    assert failed(tmp_path / "saved") == {}


# --- JSON of strangers ----------------------------------------------------------------------------

DEEP = "[" * 200_000


@pytest.mark.parametrize("content", [DEEP, '{"a":' * 200_000, "{", "[]", "3", "NaN", "\ud800"])
@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "conversion.json",
        "model.safetensors.index.json",
    ],
)
@pytest.mark.parametrize("recorded", [True, False])
def test_json_that_is_none(repository, name, content, recorded):
    if not recorded:
        (repository / "conversion.json").unlink()
    (repository / name).write_text(content, errors="surrogatepass", encoding="utf-8")
    found = failed(repository)
    assert len(found) == 1 and all(len(detail) < 1600 for detail in found.values())


@pytest.mark.parametrize(
    "fields",
    [
        dict(num_layers=10**9),
        dict(num_layers=3),
        dict(num_layers="2"),
        dict(num_layers=True),
        dict(vocab_size=10**12),
        dict(vocab_size=512.0),
        dict(hidden_size=0),
        dict(hidden_size=-16),
        dict(hidden_size=[16]),
        dict(num_attention_heads=0),
        dict(num_attention_heads=3),
        dict(num_attention_heads=None),
        dict(max_sequence_length=10**15),
        dict(num_labels=10**9),
        dict(attention_scale=0),
        dict(attention_scale=-1.0),
        dict(attention_scale=float("nan")),
        dict(attention_scale=1e999),
        dict(attention_scale="8"),
        dict(embedding_dropout_prob=2),
        dict(output_dropout_prob=None),
        dict(initializer_range="a"),
        dict(hidden_act="unknown"),
        dict(hidden_act=["gelu"]),
        dict(pool_token=7),
        dict(mask_token_ids=5),
        dict(mask_token_ids=["[MASK]"]),
        dict(eos_token_id={}),
        dict(sop_token_id="x" * 10**6),
        dict(block_position_encoding="yes"),
        dict(tie_word_embeddings=False),
        dict(architectures=7),
        dict(architectures=["Other"]),
        dict(architectures=[]),
        dict(id2label=[]),
        dict(model_type="glm"),
        dict(model_type=None),
        dict(auto_map=7),
        dict(custom_pipelines={"a": 1}),
        dict(to_dict=1),
        dict(relative_encoding=True),
        dict(attn_implementation="who/ever"),
        dict(_attn_implementation_internal="who/ever:kernel"),
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_settings_that_no_glm_has(repository, tmp_path, fields):
    (repository / "conversion.json").unlink()
    change_json(repository / "config.json", **fields)
    found = failed(repository)
    assert len(found) == 1 and all(0 < len(detail) < 1600 for detail in found.values()), found
    if "auto_map" not in fields and "custom_pipelines" not in fields:
        with pytest.raises(ConversionError) as raised:
            export_checkpoint(repository, tmp_path / "exported")
        assert len(str(raised.value)) < 1600


@pytest.mark.parametrize(
    "header",
    [
        DEEP.encode(),
        b"{}",
        b'{"a":1}',
        b'{"a":{"dtype":"F16","shape":[9999999999999,9999999999999],"data_offsets":[0,2]}}',
        b'{"a":{"dtype":"F16","shape":[1],"data_offsets":[0,99999999]}}',
        b'{"a":{"dtype":"X9","shape":[1],"data_offsets":[0,2]}}',
        b'{"a":{"dtype":"F8_E5M2","shape":[2],"data_offsets":[0,2]}}',
        b'{"' + b"n" * 10**6 + b'":{"dtype":"F16","shape":[1],"data_offsets":[0,2]}}',
    ],
    ids=["deep", "empty", "number", "huge", "beyond", "unknown", "fp8", "long name"],
)
def test_headers_of_safetensors(repository, header):
    file = repository / "model.safetensors"
    file.write_bytes(struct.pack("<Q", len(header)) + header + b"ab")
    (detail,) = failed(repository).values()
    assert len(detail) < 1600
    file.write_bytes(struct.pack("<Q", 2**63) + header)
    assert list(failed(repository)) == ["weights"]


def test_more_layers_than_tensors_are_never_built(repository, monkeypatch):
    def refuse(*arguments):
        raise AssertionError("a network was built")

    change_json(repository / "config.json", num_layers=4000)
    (repository / "conversion.json").unlink()
    monkeypatch.setattr("glm_transformers.hub_repository.config.NETWORKS", (refuse,))
    assert "says num_layers 4000 and the weights have 2" in failed(repository)["weights"]


# --- Checkpoints of strangers ---------------------------------------------------------------------


def write_zip(file, content: bytes, root="mp_rank_00_model_states", compress=(), extra=()):
    """A torch file with this pickle and one storage of 64 bytes."""
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in (
            ("data.pkl", content),
            ("byteorder", b"little"),
            ("data/0", bytes(64)),
            ("version", b"3\n"),
            *extra,
        ):
            kind = zipfile.ZIP_DEFLATED if name in compress else zipfile.ZIP_STORED
            archive.writestr(zipfile.ZipInfo(f"{root}/{name}"), data, kind)
    return file


def write_legacy(file, content: bytes):
    protocol = 2
    machine = dict(protocol_version=1001, little_endian=True, type_sizes={})
    parts = [pickle.dumps(part, protocol) for part in (0x1950A86A20F9469CFC6C, 1001, machine)]
    file.write_bytes(b"".join([*parts, content, pickle.dumps([], protocol)]))
    return file


SELF = b"\x80\x02}q\x00X\x06\x00\x00\x00moduleq\x01h\x00s."
PICKLES = {
    "itself": SELF,
    "list of itself": b"\x80\x02]q\x00h\x00a.",
    "empty sets": b"\x80\x04(" + b"\x8f" * 3_000_000 + b"l.",
    "empty dictionaries": b"\x80\x02(" + b"}" * 3_000_000 + b"l.",
    "memo": b"\x80\x02}r\xff\xff\xff\x7f.",
    "bytearray": b"\x80\x02cbuiltins\nbytearray\n\x8a\x06\x00\x00\x00\x00\x00\x01\x85R.",
    "old tensor": b"\x80\x02ctorch\nFloatTensor\n\x8a\x06\x00\x00\x00\x00\x00\x01\x85R.",
    "growing number": b"\x80\x02I" + b"9" * 1_000_000 + b"\n.",
    "copies": b"\x80\x02cbuiltins\nset\nq\x00("
    + b"K\x01" * 100_000
    + b"tq\x01\x85q\x020"
    + b"h\x00h\x02R0" * 50_000
    + b"}.",
    "copies in a list": b"\x80\x02cbuiltins\nset\nq\x00("
    + b"".join(b"J" + struct.pack("<i", number) for number in range(50_000))
    + b"tq\x01\x85q\x02]("
    + b"h\x00h\x02R" * 100_000
    + b"e.",
    "deep": b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".",
    "nothing": b"",
    "wrong storage": b"\x80\x02(X\x07\x00\x00\x00storageK\x01K\x02K\x03K\x04tQ.",
    "built": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(N}X\x0c\x00\x00\x00__defaults__)s\x86b.",
}

LIMITED = """
import resource, sys, time
from pathlib import Path
from glm_transformers.conversion import ConversionError
from glm_transformers.conversion.checkpoint import read_checkpoint
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
before = peak()
for file in sys.argv[1:]:
    start = time.process_time()
    try:
        read_checkpoint(Path(file))
    except ConversionError as error:
        assert len(str(error)) < 1600
        print(Path(file).name, peak() - before)
    assert time.process_time() - start < 10, file
"""


def test_pickles_end_soon_and_in_little_memory(colleague, tmp_path):
    files = []
    for number, (_, content) in enumerate(PICKLES.items()):
        files.append(write_zip(tmp_path / f"{number}.pt", content))
        files.append(write_legacy(tmp_path / f"{number}-legacy.pt", content))
    names = ("data.pkl", "byteorder", "data/0")
    files += [
        write_zip(tmp_path / f"compressed{number}.pt", b"\x80\x02}.", compress=(name,))
        for number, name in enumerate(names)
    ]
    bomb = ("byteorder", bytes(400_000_000))
    with pytest.warns(UserWarning, match="Duplicate name"):
        files.append(write_zip(tmp_path / "bomb.pt", SELF, compress=bomb[:1], extra=[bomb]))
    printed = colleague.output(LIMITED, *files, folder=tmp_path)
    answers = dict(line.split() for line in printed.splitlines())
    assert set(answers) == {file.name for file in files}
    assert max(map(int, answers.values())) < 400  # MB above what the imports take


def test_a_zip_with_more_records_than_any_checkpoint(tmp_path):
    file = write_zip(tmp_path / "many.pt", SELF, extra=[(f"x{i}", b"") for i in range(70_000)])
    with pytest.raises(ConversionError, match="more records than any checkpoint"):
        convert_checkpoint(file, tmp_path / "out", **OPTIONS)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_record_that_stands_twice(tmp_path):
    file = tmp_path / "mp_rank_00_model_states.pt"
    torch.save({"module": make_parameters()}, file)
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("mp_rank_00_model_states/data/0", b"other")
    with pytest.raises(ConversionError, match="holds a record twice"):
        convert_checkpoint(file, tmp_path / "out", **OPTIONS)


class Builds:
    """Changes what torch's rebuilt tensor stands for, after it was made."""

    def __init__(self, tensor, state):
        self.tensor, self.state = tensor, state

    def __reduce__(self):
        storage = self.tensor.storage()
        arguments = (storage, 0, (2,), (1,), False, OrderedDict())
        return torch._utils._rebuild_tensor_v2, arguments, self.state


@pytest.mark.parametrize("state", [{"shape": (10**9,)}, (None, {"shape": (10**9,)}), (1, 2, 3)])
@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
def test_a_tensor_is_not_changed_after_it_was_checked(tmp_path, state):
    file = tmp_path / "mp_rank_00_model_states.pt"
    module = make_parameters()
    module["transformer.final_layernorm.bias"] = Builds(torch.ones(2), state)
    torch.save({"module": module}, file)
    with pytest.raises(ConversionError, match="cannot be read as a checkpoint of tensors"):
        convert_checkpoint(file, tmp_path / "out", **OPTIONS)


HUGE = {"a": [{}] * 1000}
HUGE["a"].append(HUGE)


@pytest.mark.parametrize(
    "value",
    [None, 3.5, "text", b"bytes", [1, [2]], {"a": 1}, (), 10**5000, "long" * 10**6, HUGE],
    ids=lambda value: type(value).__name__,
)
def test_an_iteration_of_any_type(tmp_path, value):
    checkpoint = make_checkpoint(
        tmp_path / "checkpoint",
        make_parameters(),
        ranks=2,
        iteration=value,
        global_steps=value,
        mp_world_size=value if not isinstance(value, int) else 2,
    )
    convert_checkpoint(checkpoint, tmp_path / "out", **OPTIONS)


def test_what_is_not_the_module_is_ignored(tmp_path):
    """Names of other libraries, paths, dates: nothing of them is imported or built."""
    parameters = make_parameters()
    counts = defaultdict(list, {"a": [1]})
    counts["b"].append(2)
    checkpoint = make_checkpoint(
        tmp_path / "checkpoint",
        parameters,
        args={"path": Path("somewhere"), "when": datetime.now(), "counts": counts},
        more=[Path, {1, 2}, frozenset([3]), bytearray(b"x"), 1j, range(3), torch.float32],
    )
    out = convert_checkpoint(checkpoint, tmp_path / "out", **OPTIONS)
    stored = load_file(out / "model.safetensors")
    assert all(torch.equal(stored[f"glm.{name}"], tensor) for name, tensor in parameters.items())


@pytest.mark.parametrize("legacy", [False, True])
def test_tensors_that_no_model_has_are_ignored_beside_it(tmp_path, legacy):
    file = tmp_path / "mp_rank_00_model_states.pt"
    others = [
        torch.ones(2, dtype=torch.complex64),
        torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
        torch.nn.Linear(2, 2),  # legacy files have the source of its class
    ]
    state = {"others": others, "module": make_parameters()}
    torch.save(state, file, _use_new_zipfile_serialization=not legacy)
    assert convert_checkpoint(file, tmp_path / "out", **OPTIONS).is_dir()


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("legacy", [False, True])
def test_pickle_protocols(tmp_path, protocol, legacy):
    parameters = make_parameters()
    file = tmp_path / "mp_rank_00_model_states.pt"
    state = {"module": parameters, "random": b"bytes", "name": "a"}
    zipped = dict(_use_new_zipfile_serialization=not legacy)
    torch.save(state, file, pickle_protocol=protocol, **zipped)
    out = convert_checkpoint(file, tmp_path / "out", **OPTIONS)
    stored = load_file(out / "model.safetensors")
    assert all(torch.equal(stored[f"glm.{name}"], tensor) for name, tensor in parameters.items())


def test_a_name_of_a_megabyte_and_control_characters(tmp_path):
    for number, name in enumerate(("n" * 10**6, "a\x00b\x1b[31mred\x07\r\n", "\u202eback")):
        file = tmp_path / f"{number}.pt"
        torch.save({"module": {**make_parameters(), name: torch.ones(2)}}, file)
        with pytest.raises(ConversionError, match="is no parameter of GLM") as raised:
            convert_checkpoint(file, tmp_path / "out", **OPTIONS)
        assert len(str(raised.value)) < 1600 and str(raised.value).isprintable()


def test_a_pipe_and_a_loop_of_links(tmp_path):
    folder = tmp_path / "250000"
    folder.mkdir()
    file = folder / "mp_rank_00_model_states.pt"
    os.mkfifo(file)
    for path in (folder, file):
        with pytest.raises(ConversionError, match="is no regular file"):
            convert_checkpoint(path, tmp_path / "out", **OPTIONS)
    file.unlink()
    file.symlink_to(file)
    for path, message in ((folder, "cannot be read: Too many"), (file, "does not exist|Too many")):
        with pytest.raises(ConversionError, match=message):
            convert_checkpoint(path, tmp_path / "out", **OPTIONS)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_pipes_in_a_repository(repository, name):
    (repository / name).unlink()
    os.mkfifo(repository / name)
    assert len(failed(repository)) == 1


# --- Vocabularies ---------------------------------------------------------------------------------


def damage(file, change):
    file.write_bytes(change(file.read_bytes()))


DAMAGES = {
    "empty": lambda content: b"",
    "half": lambda content: content[: len(content) // 2],
    "bytes": lambda content: b"\xff\xfe" + content,
    "zeros": lambda content: bytes(len(content)),
    "deep": lambda content: DEEP.encode(),
    "list": lambda content: b"[1, 2]",
    "page": lambda content: b"<html>404</html>",
    "twice": lambda content: content + content,
    "names": lambda content: b'{"a": "b"}',
    "gap": lambda content: content.replace(b": 5,", b": 500000,"),
    "negative": lambda content: content.replace(b": 5,", b": -5,"),
}
VOCABULARY_FILES = {"gpt2": ("vocab.json", "merges.txt"), "bert": ("vocab.txt",)}


@pytest.mark.parametrize("change", DAMAGES)
@pytest.mark.parametrize(
    "family, name", [(family, name) for family, names in VOCABULARY_FILES.items() for name in names]
)
def test_damaged_vocabularies(tmp_path, family, name, change):
    """Each is an error in one sentence; a repository from it would have wrong tokens."""
    checkpoint = make_checkpoint(tmp_path / "checkpoint", make_parameters())
    vocabulary = make_vocabulary(tmp_path / "vocabulary", family)
    before = (vocabulary / name).read_bytes()
    damage(vocabulary / name, DAMAGES[change])
    if (vocabulary / name).read_bytes() == before:
        return  # this damage does not touch this file
    with pytest.raises(ConversionError) as raised:
        convert_checkpoint(
            checkpoint,
            tmp_path / "out",
            tokenizer=family,
            vocab=vocabulary,
            num_attention_heads=4,
        )
    assert len(str(raised.value)) < 1600 and not (tmp_path / "out").exists()


def test_a_vocabulary_that_is_a_pipe(tmp_path):
    checkpoint = make_checkpoint(tmp_path / "checkpoint", make_parameters())
    vocabulary = make_vocabulary(tmp_path / "vocabulary")
    (vocabulary / "merges.txt").unlink()
    os.mkfifo(vocabulary / "merges.txt")
    for vocab in (vocabulary, vocabulary / "merges.txt"):
        with pytest.raises(ConversionError, match="is no regular file"):
            convert_checkpoint(
                checkpoint, tmp_path / "out", tokenizer="gpt2", vocab=vocab, num_attention_heads=4
            )


def test_the_vocabulary_of_another_family(reference, tmp_path, caplog):
    """RoBERTa's files under GPT-2's names, and a vocabulary of another size."""
    source = reference / "checkpoints/tiny-gpt2-fp16"
    options = dict(model="glm-2b", num_attention_heads=4)
    vocabulary = tmp_path / "vocabulary"
    vocabulary.mkdir()
    for theirs, ours in (("roberta-vocab", "vocab"), ("gpt2-merges", "merges")):
        suffix = ".json" if ours == "vocab" else ".txt"
        shutil.copy(reference / "vocab" / f"{theirs}{suffix}", vocabulary / f"{ours}{suffix}")
    with pytest.raises(ConversionError, match="it is RoBERTa's"):
        convert_checkpoint(source, tmp_path / "out", vocab=vocabulary, **options)
    entries = json.loads((reference / "vocab/gpt2-vocab.json").read_text())
    smaller = {name: id for name, id in entries.items() if id < 50250}
    (vocabulary / "vocab.json").write_text(json.dumps({**smaller, "<|endoftext|>": len(smaller)}))
    lines = (reference / "vocab/gpt2-merges.txt").read_text(encoding="utf-8").split("\n")
    kept = [line for line in lines if "".join(line.split(" ")) in smaller or line[:1] == "#"]
    (vocabulary / "merges.txt").write_text("\n".join(kept))
    with pytest.raises(ConversionError, match="50251 entries, the original gpt2 vocabulary 50257"):
        convert_checkpoint(source, tmp_path / "out", vocab=vocabulary, **options)
    assert not caplog.records
    checkpoint = make_checkpoint(tmp_path / "own", make_parameters())
    own = make_vocabulary(tmp_path / "own_vocabulary")
    convert_checkpoint(checkpoint, tmp_path / "out", vocab=own, **options)
    assert "right only for a model that was trained with it" in caplog.text
    details = {check.name: check.detail for check in verify_repository(tmp_path / "out")}
    assert "right only for a model that was trained with it" in details["tokenizer"]


# --- Words ----------------------------------------------------------------------------------------


def test_a_truncated_download(tmp_path):
    file = tmp_path / "mp_rank_00_model_states.pt"
    torch.save({"module": make_parameters()}, file)
    damage(file, lambda content: content[: len(content) * 2 // 3])
    with pytest.raises(ConversionError, match="its end is missing; download or copy it again"):
        convert_checkpoint(file, tmp_path / "out", **OPTIONS)


def test_parts_of_zero_3(tmp_path):
    empty = {name: torch.ones(0) for name in make_parameters()}
    folder = tmp_path / "250000"
    folder.mkdir()
    torch.save({"module": empty}, folder / "zero_pp_rank_0_mp_rank_00_model_states.pt")
    with pytest.raises(ConversionError, match=r"zero_to_fp32\.py"):
        convert_checkpoint(folder, tmp_path / "out", **OPTIONS)
    torch.save({"module": empty}, folder / "mp_rank_00_model_states.pt")
    with pytest.raises(ConversionError, match=r"zero_to_fp32\.py"):
        convert_checkpoint(folder, tmp_path / "out", **OPTIONS)


@pytest.mark.parametrize(
    "prefix, of_layer",
    [
        ("_orig_mod.", ""),
        ("_forward_module.", ""),
        ("module._orig_mod.model.", ""),
        ("", "_orig_mod."),
        ("_fsdp_wrapped_module.", "_fsdp_wrapped_module._checkpoint_wrapped_module."),
    ],
)
def test_prefixes_of_compilers_and_wrappers(tmp_path, prefix, of_layer):
    parameters = {
        prefix + name.replace("layers.0.", f"layers.0.{of_layer}"): tensor
        for name, tensor in make_parameters().items()
    }
    checkpoint = make_checkpoint(tmp_path / "checkpoint", parameters)
    out = convert_checkpoint(checkpoint, tmp_path / "out", **OPTIONS)
    assert set(load_file(out / "model.safetensors")) == {
        f"glm.{name}" for name in make_parameters()
    }


def test_two_files_for_one_rank(tmp_path):
    checkpoint = make_checkpoint(tmp_path / "checkpoint", make_parameters())
    folder = checkpoint / "250000"
    shutil.copy(folder / "mp_rank_00_model_states.pt", folder / "mp_rank_000_model_states.pt")
    with pytest.raises(ConversionError, match="both for rank 0; move one of them away"):
        convert_checkpoint(checkpoint, tmp_path / "out", **OPTIONS)


def test_a_configuration_without_a_model_type(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConversionError, match="names no model_type"):
        convert_checkpoint(tmp_path, tmp_path / "out", **OPTIONS)
    with pytest.raises(ConversionError, match="names no model_type"):
        export_checkpoint(tmp_path, tmp_path.with_name("exported"))


def test_export_names_no_option_that_it_does_not_have(converted, tmp_path):
    (tmp_path / "there").mkdir()
    with pytest.raises(ConversionError, match=r"exists already; choose another place\.$"):
        export_checkpoint(converted, tmp_path / "there")


def test_too_little_room_is_said_in_readable_sizes(tmp_path, monkeypatch):
    checkpoint = make_checkpoint(tmp_path / "checkpoint", make_parameters())
    usage = shutil._ntuple_diskusage(total=1, used=1, free=1000)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    with pytest.raises(ConversionError, match=r"has 1\.0 kB free and the weights take \d+\.\d kB"):
        convert_checkpoint(checkpoint, tmp_path / "out", **OPTIONS)


def test_no_progress_bars_where_the_output_is_no_terminal(tmp_path, capfd):
    checkpoint = make_checkpoint(tmp_path / "checkpoint", make_parameters())
    out = convert_checkpoint(checkpoint, tmp_path / "out", **OPTIONS)
    verify_repository(out)
    export_checkpoint(out, tmp_path / "exported")
    assert capfd.readouterr().err == ""


# --- What is replaced, and who is at work ---------------------------------------------------------


def test_what_is_read_is_never_replaced(tmp_path):
    checkpoint = make_checkpoint(tmp_path / "checkpoint", make_parameters())
    vocabulary = make_vocabulary(tmp_path / "vocabulary")
    options = dict(tokenizer="gpt2", num_attention_heads=4, overwrite=True)
    (tmp_path / "link").symlink_to(vocabulary)
    for vocab in (vocabulary, vocabulary / "merges.txt", tmp_path / "link"):
        with pytest.raises(ConversionError, match="holds what is to be read"):
            convert_checkpoint(checkpoint, vocabulary, vocab=vocab, **options)
    # A repository that was written by this program, and is read this time.
    out = convert_checkpoint(checkpoint, tmp_path / "out", vocab=vocabulary, **options)
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(vocabulary / name, out)
    with pytest.raises(ConversionError, match="holds what is to be read"):
        convert_checkpoint(checkpoint, out, vocab=out, **options)
    # The same by links to its files.
    links = tmp_path / "links"
    links.mkdir()
    for name in ("vocab.json", "merges.txt"):
        (links / name).symlink_to(out / name)
    with pytest.raises(ConversionError, match="holds what is to be read"):
        convert_checkpoint(checkpoint, out, vocab=links, **options)
    assert (out / "config.json").is_file() and len(list(vocabulary.iterdir())) == 2


def test_a_record_of_somebody_else_is_none(tmp_path):
    checkpoint = make_checkpoint(tmp_path / "checkpoint", make_parameters())
    output = tmp_path / "out"
    output.mkdir()
    (output / "conversion.json").write_text('{"mine": 1}')
    with pytest.raises(ConversionError, match=r"conversion\.json is damaged"):
        convert_checkpoint(checkpoint, output, overwrite=True, **OPTIONS)
    assert (output / "conversion.json").read_text() == '{"mine": 1}'


def test_a_conversion_at_work_is_told(tmp_path):
    checkpoint = make_checkpoint(tmp_path / "checkpoint", make_parameters())
    with new_folder(tmp_path / "out", 0) as unfinished:
        (unfinished / "half").write_text("half")
        with pytest.raises(ConversionError, match=f"Process {os.getpid()} is writing"):
            convert_checkpoint(checkpoint, tmp_path / "out", **OPTIONS)
        assert (unfinished / "half").read_text() == "half"
    assert (tmp_path / "out/half").is_file()
    # What a process left that is no more is removed.
    leftover = tmp_path / ".second.incomplete-1-0123abcd"
    leftover.mkdir()
    convert_checkpoint(checkpoint, tmp_path / "second", **OPTIONS)
    assert not leftover.exists()


def test_conversions_into_one_place_at_the_same_time(tmp_path):
    checkpoint = make_checkpoint(tmp_path / "checkpoint", make_parameters(layers=24, hidden=128))
    answers = []

    def convert():
        try:
            convert_checkpoint(checkpoint, tmp_path / "out", overwrite=True, **OPTIONS)
            answers.append("written")
        except ConversionError as error:
            answers.append(str(error))

    threads = [threading.Thread(target=convert) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 4 and "written" in answers
    assert all(answer == "written" or "at this moment" in answer for answer in answers), answers
    assert {file.name for file in tmp_path.iterdir()} == {"checkpoint", "out"}
    assert failed(tmp_path / "out", checkpoint) == {}


# --- The old port's classifier --------------------------------------------------------------------


def make_port(folder, **config):
    folder.mkdir()
    tensors = make_parameters(dtype=torch.float32)
    tensors |= {"dense.weight": torch.eye(16), "dense.bias": torch.ones(16)}
    tensors |= {"out_proj.weight": torch.ones(3, 16) * 2, "out_proj.bias": torch.ones(3)}
    heads = ("dense.", "out_proj.")
    state = {
        name if name.startswith(heads) else f"glm.{name}": tensor
        for name, tensor in tensors.items()
    }
    torch.save(state, folder / "pytorch_model.bin")
    settings = {"model_type": "glm", "num_attention_heads": 4, **config}
    (folder / "config.json").write_text(json.dumps(settings))
    return folder, tensors


def test_a_classifier_of_the_old_port(tmp_path):
    names = ["GLMForSequenceClassification"]
    port, tensors = make_port(tmp_path / "port", architectures=names, id2label={0: "a"})
    out = convert_checkpoint(port, tmp_path / "out", tokenizer="none")
    model = GLMForSequenceClassification.from_pretrained(out)
    assert model.config.num_labels == 3
    for ours, theirs in (("pool_layer", "dense"), ("multichoice_head", "out_proj")):
        layer = getattr(model, ours)
        assert torch.equal(layer.weight, tensors[f"{theirs}.weight"])
        assert torch.equal(layer.bias, tensors[f"{theirs}.bias"])
    assert failed(out, port) == {}


@pytest.mark.parametrize("names", [None, ["GLMForConditionalGeneration"], "GLMModel"])
def test_a_classifier_beside_a_generator_of_the_old_port(tmp_path, caplog, names):
    port, _ = make_port(tmp_path / "port", architectures=names)
    out = convert_checkpoint(port, tmp_path / "out", tokenizer="none")
    assert "out_proj.bias are left out" in caplog.text
    stored = load_file(out / "model.safetensors")
    assert {name.removeprefix("glm.") for name in stored} == set(make_parameters())
    assert json.loads((out / "config.json").read_text())["architectures"] == [
        "GLMForConditionalGeneration"
    ]


# --- A tied head ----------------------------------------------------------------------------------


def test_a_tied_head_is_neither_written_nor_asked_for(tmp_path, monkeypatch):
    class Tied(GLMForConditionalGeneration):
        def __init__(self, config):
            super().__init__(config)
            self.lm_head = torch.nn.Linear(config.hidden_size, config.vocab_size, bias=False)
            self._tied_weights_keys = {"lm_head.weight": "glm.word_embeddings.weight"}

    checkpoint = make_checkpoint(tmp_path / "checkpoint", make_parameters())
    out = convert_checkpoint(checkpoint, tmp_path / "out", **OPTIONS)
    Tied.__name__ = "GLMForConditionalGeneration"
    monkeypatch.setattr("glm_transformers.hub_repository.config.NETWORKS", (Tied,))
    assert failed(out, checkpoint) == {}
    config = read_config(out)
    network = build_network(config)
    assert "lm_head.weight" in network.state_dict()
    state = {name: torch.zeros(tensor.shape) for name, tensor in network.state_dict().items()}
    write_repository(tmp_path / "again", config, state, None)
    assert set(load_file(tmp_path / "again/model.safetensors")) == set(state) - {"lm_head.weight"}


@pytest.mark.parametrize("change", [name for name in DAMAGES if name not in ("gap", "negative")])
@pytest.mark.parametrize("family", ["roberta", "chinese"])
def test_damaged_vocabularies_of_the_original(reference, tmp_path, family, change):
    vocabulary = tmp_path / "vocabulary"
    vocabulary.mkdir()
    for name in ("roberta-vocab.json", "roberta-merges.txt", "cog-pretrain.model"):
        shutil.copy(reference / "vocab" / name, vocabulary)
    name = "roberta-vocab.json" if family == "roberta" else "cog-pretrain.model"
    damage(vocabulary / name, DAMAGES[change])
    with pytest.raises(ConversionError) as raised:
        build_tokenizer(family, find_vocabulary(family, vocabulary), True)
    assert len(str(raised.value)) < 1600
