"""Engines that share the training of a network among processes give the network of one process."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from checkout import ROOT
from made import SENTENCES
from processes import GLM, TWICE, flags
from safetensors.torch import load_file

from glm_transformers.training.options import Pretraining
from glm_transformers.training.pretrain import pretrain

ENGINES = ROOT / "examples/engines"
# accelerate has these engines for GPUs. Here it takes the CPUs of two processes for two of them,
# and its settings from the file that `accelerate launch --config_file` would read.
ON_CPUS = """
import torch
from accelerate import PartialState
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DistributedType
from accelerate.utils.launch import prepare_multi_gpu_env

def take_cpus(state, *args, **kwargs):
    begin(state, *args, **kwargs)
    if state.distributed_type == DistributedType.MULTI_CPU:
        state.distributed_type = DistributedType.MULTI_GPU

begin, PartialState.__init__ = PartialState.__init__, take_cpus
launch = ["--config_file", sys.argv.pop(1), "--num_processes", "2", "glm"]
arguments, *_ = _validate_launch_command(launch_command_parser().parse_args(launch))
os.environ.update(prepare_multi_gpu_env(arguments))
"""


@pytest.fixture(scope="module")
def run(made_repository, tmp_path_factory) -> Pretraining:
    """A short run without dropout, which each process would draw for itself."""
    folder = tmp_path_factory.mktemp("engines")
    model = folder / "model"
    shutil.copytree(made_repository, model)
    config = json.loads((model / "config.json").read_text())
    dropouts = ("embedding_dropout_prob", "attention_dropout_prob", "output_dropout_prob")
    (model / "config.json").write_text(json.dumps({**config, **dict.fromkeys(dropouts, 0.0)}))
    texts = [" ".join(SENTENCES[i:] + SENTENCES[:i]) for i in range(3)] * 8
    (folder / "texts.txt").write_text("\n".join(texts))
    return Pretraining(
        data=str(folder / "texts.txt"),
        output="",
        model=str(model),
        validation=str(folder / "texts.txt"),
        length=40,
        steps=4,
        batch_size=2,
        accumulation=2,
        learning_rate=1e-3,
        evaluate_every=4,
        save_every=2,
        log_every=1,
        seed=3,
    )


@pytest.fixture(scope="module")
def alone(run, tmp_path_factory) -> Path:
    return pretrain(replace(run, output=str(tmp_path_factory.mktemp("alone") / "output")))


def weights(repository: Path) -> dict[str, torch.Tensor]:
    return load_file(repository / "model.safetensors")


def test_fsdp(run, alone, colleague, tmp_path):
    """A run that was killed and is resumed ends with the repository of one process, too."""
    options = replace(run, output=str(tmp_path / "shared"), accumulation=1)
    command = ["pretrain", options.data, options.output, *flags(options, ("data", "output"))]
    program = TWICE + ON_CPUS + GLM
    print(colleague.output(program, ENGINES / "fsdp.yaml", *command, folder=tmp_path))
    checkpoints = tmp_path / "shared-checkpoints"
    assert list(checkpoints.glob("checkpoint-4/pytorch_model_fsdp_0/*.distcp")), "in parts"
    assert_same(Path(options.output), alone)
    shutil.rmtree(options.output)
    shutil.rmtree(checkpoints / "checkpoint-4")
    colleague.output(program, ENGINES / "fsdp.yaml", *command, "--resume", folder=tmp_path)
    assert_same(Path(options.output), alone)


def assert_same(shared: Path, alone: Path):
    assert {file.name for file in shared.iterdir()} == {file.name for file in alone.iterdir()}
    ours, theirs = weights(shared), weights(alone)
    assert set(ours) == set(theirs)
    for name, weight in theirs.items():
        # Sums in another order; Adam makes steps of rounding errors where a gradient is zero.
        torch.testing.assert_close(ours[name], weight, rtol=1e-4, atol=1e-4, msg=name)
