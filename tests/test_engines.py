"""Engines that share the training of a network among processes give the network of one process."""

import json
import shutil
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from checkout import ROOT
from made import SENTENCES
from processes import GLM, TWICE, flags
from safetensors.torch import load_file

from glm_transformers.training import adapters
from glm_transformers.training.finetune import finetune
from glm_transformers.training.options import Finetuning, Pretraining
from glm_transformers.training.pretrain import pretrain

ENGINES = ROOT / "examples/engines"
# accelerate has these engines for GPUs. Here it takes the CPUs of two processes for two of them,
# and the settings that `accelerate launch` would give them.
ON_CPUS = """
from accelerate import PartialState
from accelerate.commands.launch import launch_command, launch_command_parser
from accelerate.utils import DistributedType
from torch.distributed import run as torchrun

def take_cpus(state, *args, **kwargs):
    begin(state, *args, **kwargs)
    if state.distributed_type == DistributedType.MULTI_CPU:
        state.distributed_type = DistributedType.MULTI_GPU

begin, PartialState.__init__ = PartialState.__init__, take_cpus
end = sys.argv.index("--")
launch = ["--num_processes", "2", "--num_machines", "1", *sys.argv[1:end], "glm"]
del sys.argv[1 : end + 1]
given = {}
torchrun.run = lambda arguments: given.update(os.environ)
launch_command(launch_command_parser().parse_args(launch))
os.environ.update({key: given[key] for key in given if key.startswith(("ACCELERATE", "FSDP"))})
if "--use_deepspeed" in launch:
    os.environ.update(ACCELERATE_USE_CPU="false", DS_ACCELERATOR="cpu")
    import deepspeed

    # Not through memory that the processes share: compiling what that takes lasts for minutes.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
"""
NO_DROPOUT = """
import checkout, functools
from glm_transformers.training import adapters
adapters.add_lora = functools.partial(adapters.add_lora, dropout=0.0)
"""
FSDP = ("--config_file", ENGINES / "fsdp.yaml")
ZERO2, ZERO3 = (
    ("--use_deepspeed", "--deepspeed_config_file", ENGINES / file)
    for file in ("zero2.json", "zero3.json")
)


@pytest.fixture(scope="module")
def model(made_repository, tmp_path_factory) -> Path:
    """Without dropout, which each process would draw for itself."""
    folder = tmp_path_factory.mktemp("engines") / "model"
    shutil.copytree(made_repository, folder)
    config = json.loads((folder / "config.json").read_text())
    dropouts = ("embedding_dropout_prob", "attention_dropout_prob", "output_dropout_prob")
    (folder / "config.json").write_text(json.dumps({**config, **dict.fromkeys(dropouts, 0.0)}))
    return folder


@pytest.fixture(scope="module")
def run(model, tmp_path_factory) -> Pretraining:
    folder = tmp_path_factory.mktemp("texts")
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
        accumulation=4,
        learning_rate=1e-3,
        evaluate_every=4,
        save_every=2,
        log_every=1,
        seed=3,
    )


@pytest.fixture(scope="module")
def alone(run, tmp_path_factory) -> Path:
    return pretrain(replace(run, output=str(tmp_path_factory.mktemp("alone") / "output")))


needs_deepspeed = pytest.mark.skipif(
    find_spec("deepspeed") is None, reason="DeepSpeed is not installed"
)


@pytest.mark.parametrize(
    ("engine", "parts"),
    [
        pytest.param(FSDP, "pytorch_model_fsdp_0/*.distcp", id="fsdp"),
        pytest.param(ZERO2, "global_step4/*optim_states.pt", id="zero2", marks=needs_deepspeed),
        pytest.param(ZERO3, "global_step4/*optim_states.pt", id="zero3", marks=needs_deepspeed),
    ],
)
def test_pretraining(run, alone, colleague, tmp_path, engine, parts):
    """A run that was killed and is resumed ends with the repository of one process, too."""
    options = replace(run, output=str(tmp_path / "shared"), accumulation=2)
    command = ["pretrain", options.data, options.output, *flags(options, ("data", "output"))]
    program = TWICE + ON_CPUS + GLM
    colleague.output(program, *engine, "--", *command, folder=tmp_path)
    checkpoints = tmp_path / "shared-checkpoints"
    assert len(list(checkpoints.glob(f"checkpoint-4/{parts}"))) == 2, "in parts"
    assert_same(Path(options.output), alone)
    shutil.rmtree(options.output)
    shutil.rmtree(checkpoints / "checkpoint-4")
    colleague.output(program, *engine, "--", *command, "--resume", folder=tmp_path)
    assert_same(Path(options.output), alone)


# 4.57 does not gather an adapter's network for `generate`.
gathers_adapters = pytest.mark.skipif(
    find_spec("transformers.distributed.tensor_parallel") is None,
    reason="this version of Transformers cannot generate with an adapter in parts",
)


@pytest.mark.parametrize(
    ("engine", "lora"),
    [
        pytest.param(FSDP, False, id="fsdp"),
        pytest.param(FSDP, True, id="fsdp-lora", marks=gathers_adapters),
        pytest.param(ZERO2, False, id="zero2", marks=needs_deepspeed),
        pytest.param(ZERO3, False, id="zero3", marks=needs_deepspeed),
    ],
)
def test_finetuning(model, colleague, tmp_path, monkeypatch, engine, lora):
    """Answers are generated by the network in parts, too; of an adapter only itself is written.

    A run that was killed and is resumed ends with what one process writes, too.
    """
    monkeypatch.setattr(adapters, "add_lora", partial(adapters.add_lora, dropout=0.0))
    rows = [{"source": text, "target": text.split()[0]} for text in SENTENCES] * 4
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    task = {"kind": "answers", "context": ["{source}", "[MASK]"], "answers": " {target}"}
    (tmp_path / "task.json").write_text(json.dumps(task))
    options = Finetuning(
        task=str(tmp_path / "task.json"),
        data=str(tmp_path / "rows.jsonl"),
        output=str(tmp_path / "alone"),
        model=str(model),
        validation=str(tmp_path / "rows.jsonl"),
        steps=4,
        evaluate_every=2,
        batch_size=4,
        accumulation=2,
        learning_rate=1e-3,
        max_length=40,
        metric="loss",  # which falls: the last weights are the best, and are written
        lora=lora,
        log_every=1,
    )
    alone = finetune(options)
    shared = replace(options, output=str(tmp_path / "shared"), accumulation=1)
    command = ["finetune", shared.task, shared.data, shared.output]
    line = [*command, *flags(shared, ("task", "data", "output"))]
    program = TWICE + ON_CPUS + NO_DROPOUT + GLM
    colleague.output(program, *engine, "--", *line, folder=tmp_path)
    file = "adapter_model.safetensors" if lora else "model.safetensors"
    assert_same(Path(shared.output), alone, file)
    last = tmp_path / "shared-checkpoints/checkpoint-4"
    assert json.loads((last / "trainer_state.json").read_text())["best_global_step"] == 4
    shutil.rmtree(shared.output)
    shutil.rmtree(last)
    colleague.output(program, *engine, "--", *line, "--resume", folder=tmp_path)
    assert_same(Path(shared.output), alone, file)


def assert_same(shared: Path, alone: Path, file: str = "model.safetensors"):
    assert {file.name for file in shared.iterdir()} == {file.name for file in alone.iterdir()}
    ours, theirs = load_file(shared / file), load_file(alone / file)
    assert set(ours) == set(theirs)
    for name, weight in theirs.items():
        if name.endswith("query_key_value.bias"):
            # The gradient of the keys' bias is zero, and Adam makes steps of its rounding errors.
            of_keys = slice(len(weight) // 3, 2 * len(weight) // 3)
            weight[of_keys] = ours[name][of_keys]
        torch.testing.assert_close(ours[name], weight, rtol=1e-4, atol=1e-5, msg=name)
