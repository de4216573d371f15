"""The converter killed at any moment: no repository or a whole one, and the next run cleans up."""

import json
import os
import random
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import LONG
from made import make_checkpoint, make_parameters
from safetensors.torch import load_file

from glm_transformers.conversion import ConversionError, convert_checkpoint, verify_repository

MOMENTS = 60 if LONG else 12
OPTIONS = dict(tokenizer="none", num_attention_heads=4, max_shard_size="20KB")

# Imports once, then converts in one forked process after the other. Each is killed a moment after
# Python says, for the n-th time, that it is about to touch a file: a moment long enough that it is
# sometimes in the middle of writing.
PROGRAM = f"""
import json, os, signal, sys, threading
import checkout
from glm_transformers.conversion import convert_checkpoint
TOUCHES = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree", "os.listdir",
           "os.scandir")

def convert(folder, overwrite, moment, delay):
    events = 0
    def count(event, arguments):
        nonlocal events
        if event in TOUCHES:
            events += 1
            if events == moment:
                threading.Timer(delay, os.kill, (os.getpid(), signal.SIGKILL)).start()
    sys.addaudithook(count)
    convert_checkpoint(folder + "/checkpoint", folder + "/out", overwrite=overwrite, **{OPTIONS})
    return events

for folder, overwrite, moment, delay in json.loads(sys.argv[1]):
    read, write = os.pipe()
    if os.fork() == 0:
        os.write(write, str(convert(folder, overwrite, moment, delay)).encode())
        os._exit(0)
    os.close(write)
    _, status = os.wait()
    print(os.read(read, 99).decode() or "killed" if moment == 0 else os.WIFSIGNALED(status))
"""


def run(colleague, folder: Path, jobs: list) -> list[str]:
    return colleague.output(PROGRAM, json.dumps(jobs), folder=folder).split()


def is_complete(repository: Path) -> bool:
    return all(check.passed is not False for check in verify_repository(repository))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on this system")
@pytest.mark.parametrize("overwrite", [False, True])
def test_killed_at_any_moment(colleague, tmp_path, overwrite):
    def prepare(name):
        make_checkpoint(tmp_path / name / "checkpoint", make_parameters())
        if overwrite:
            older = {parameter: tensor * 0.5 for parameter, tensor in make_parameters().items()}
            make_checkpoint(tmp_path / name / "older", older)
            convert_checkpoint(tmp_path / name / "older", tmp_path / name / "out", **OPTIONS)
        return str(tmp_path / name)

    (events,) = run(colleague, tmp_path, [[prepare("whole"), overwrite, 0, 0.0]])
    new = {file.name: file.read_bytes() for file in (tmp_path / "whole/out").glob("model*")}
    generator, step = random.Random(9), int(events) / MOMENTS
    moments = [max(1, int(step * (index + generator.random()))) for index in range(MOMENTS - 1)]
    moments.append(int(events))  # the whole is there then
    jobs = [
        [prepare(str(index)), overwrite, moment, generator.random() * 0.004]
        for index, moment in enumerate(moments)
    ]
    assert "True" in run(colleague, tmp_path, jobs)

    outcomes = set()
    for folder, *_ in jobs:
        folder = Path(folder)
        source = (folder / "checkpoint/250000/mp_rank_00_model_states.pt").read_bytes()
        repositories = [file for file in folder.iterdir() if (file / "config.json").exists()]
        assert all(
            is_complete(repository) for repository in repositories
        )  # whatever could be loaded is whole
        assert repositories or not overwrite  # what was there is not lost
        outcomes.add(
            (folder / "out").exists()
            and {f.name: f.read_bytes() for f in (folder / "out").glob("model*")} == new
        )
        if overwrite:
            with pytest.raises(ConversionError, match="exists already"):  # it is back in its place
                convert_checkpoint(folder / "checkpoint", folder / "out", **OPTIONS)
            assert is_complete(folder / "out")
        convert_checkpoint(folder / "checkpoint", folder / "out", overwrite=True, **OPTIONS)
        assert {f.name: f.read_bytes() for f in (folder / "out").glob("model*")} == new
        assert {file.name for file in folder.iterdir()} - {"older"} == {"checkpoint", "out"}
        assert (folder / "checkpoint/250000/mp_rank_00_model_states.pt").read_bytes() == source
    assert outcomes == {False, True}  # some were killed before the end, and some after it


def test_a_full_disk(colleague, tmp_path, monkeypatch):
    """Half of the weights fit."""
    checkpoint = make_checkpoint(tmp_path / "checkpoint", make_parameters())
    program = PROGRAM.split("for folder")[0] + (
        "import resource\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))\n"
        "from glm_transformers.conversion import ConversionError\n"
        "try:\n"
        "    convert(sys.argv[1], False, 0, 0.0)\n"
        "except ConversionError as error:\n"
        "    print(error)\n"
    )
    printed = colleague.output(program, tmp_path, folder=tmp_path)
    assert "cannot be used" in printed and "File too large" in printed
    assert {file.name for file in tmp_path.iterdir()} == {"checkpoint"}
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(ConversionError, match="make room or choose another place"):
        convert_checkpoint(checkpoint, tmp_path / "out", **OPTIONS)
    assert {file.name for file in tmp_path.iterdir()} == {"checkpoint"}


def test_places_that_cannot_be_written(tmp_path):
    checkpoint = make_checkpoint(tmp_path / "checkpoint", make_parameters())
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ConversionError, match="cannot be used: Not a directory"):
        convert_checkpoint(checkpoint, tmp_path / "file/out", **OPTIONS)
    with pytest.raises(ConversionError, match="exists already"):
        convert_checkpoint(checkpoint, tmp_path / "file", **OPTIONS)
    with pytest.raises(ConversionError, match="holds what is to be read"):
        convert_checkpoint(checkpoint, checkpoint, overwrite=True, **OPTIONS)
    assert (tmp_path / "file").read_text() == "mine" and (checkpoint / "250000").is_dir()


def test_a_link_is_replaced_and_what_it_points_to_is_kept(tmp_path):
    checkpoint = make_checkpoint(tmp_path / "checkpoint", make_parameters())
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/mine.txt").write_text("mine")
    (tmp_path / "out").symlink_to(tmp_path / "elsewhere")
    convert_checkpoint(checkpoint, tmp_path / "out", overwrite=True, **OPTIONS)
    assert not (tmp_path / "out").is_symlink() and is_complete(tmp_path / "out")
    assert [file.name for file in (tmp_path / "elsewhere").iterdir()] == ["mine.txt"]


def test_an_index_does_not_lead_out_of_its_folder(tmp_path):
    checkpoint = make_checkpoint(tmp_path / "checkpoint", make_parameters())
    repository = convert_checkpoint(checkpoint, tmp_path / "out", **OPTIONS)
    assert len(load_file(sorted(repository.glob("model-*.safetensors"))[0])) > 0
    index = repository / "model.safetensors.index.json"
    index.write_text(index.read_text().replace('"model-00001', '"../out/model-00001'))
    (check,) = [check for check in verify_repository(repository) if check.passed is False]
    assert "names a file outside its folder" in check.detail
