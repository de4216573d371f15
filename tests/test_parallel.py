"""The plans by which two processes share a model, each against the model in one process."""

import json
from fnmatch import filter as find_names
from importlib.util import find_spec

import pytest
from checkout import TESTS
from processes import GLM, TWICE
from transformers import PretrainedConfig
from typer.testing import CliRunner

from glm_transformers.cli import app
from glm_transformers.evaluation.model import load

# 4.57 has other classes for sharing, and a plan of its own.
shares = find_spec("transformers.distributed.tensor_parallel") is not None
needs_sharing = pytest.mark.skipif(
    not shares, reason="this version of Transformers cannot share with these plans"
)


@needs_sharing
@pytest.mark.parametrize("plan", ["tp", "fsdp"])
def test_two_processes_equal_one(tiny_model, colleague, tmp_path, plan):
    # Released tables have multiples of 128 rows. With rows that two processes cannot halve, the
    # library's FSDP (5.24) leaves the head's last rows as they were before a step of training.
    rows = 100 if plan == "fsdp" else 99
    model = tiny_model(attn_implementation="sdpa", vocab_size=rows)
    model.save_pretrained(tmp_path / "model")
    program = TWICE + (TESTS / "parallel.py").read_text(encoding="utf-8")
    run = colleague.run(program, plan, tmp_path / "model", folder=tmp_path)
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-4000:]
    assert run.stdout.count("equal") == 2
    assert "match" not in run.stderr and "not applied" not in run.stderr  # the library's warnings


def test_a_pipeline_of_two_processes_equals_one(tiny_model, colleague, tmp_path):
    """Three layers: the stages have one and two."""
    tiny_model(num_layers=3).save_pretrained(tmp_path / "model")
    program = TWICE + (TESTS / "stages.py").read_text(encoding="utf-8")
    run = colleague.run(program, tmp_path / "model", folder=tmp_path)
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-4000:]
    assert run.stdout.count("equal") == 2


# Prints the largest difference to the whole model, and how many parameters of MLPs are cut.
WITH_THE_OLD_PLAN = """
import checkout, torch
from torch.distributed.tensor import DTensor
from glm_transformers import GLMForConditionalGeneration
torch.distributed.init_process_group("gloo")
single = GLMForConditionalGeneration.from_pretrained(sys.argv[1])
shared = GLMForConditionalGeneration.from_pretrained(sys.argv[1], tp_plan="auto")
text = torch.tensor([[1, 17, 92, 23, 5, 95, 90, 60, 61]])
with torch.no_grad():
    difference = (shared(text).logits - single(text).logits).abs().max().item()
cut = [name for name, weight in shared.named_parameters() if isinstance(weight, DTensor)]
sys.stdout.write(f"{difference} {len([name for name in cut if 'mlp' in name])}\\n")
"""


@pytest.mark.skipif(shares, reason="this version of Transformers has the newer plan")
def test_the_plan_of_older_versions(tiny_model, colleague, tmp_path):
    model = tiny_model(attn_implementation="sdpa")
    model.save_pretrained(tmp_path / "model")
    printed = colleague.output(TWICE + WITH_THE_OLD_PLAN, tmp_path / "model", folder=tmp_path)
    for line in printed.splitlines():
        difference, matrices = line.split()
        assert float(difference) < 1e-5
        assert int(matrices) >= 2 * model.config.num_layers, "the MLP of each layer is cut"
    assert len(printed.splitlines()) == 2


def test_plans_name_modules_that_exist(tiny_model):
    base = tiny_model().glm
    names = [name for name, _ in base.named_modules()]
    config = base.config
    for plan in (config.base_model_tp_plan, config.base_model_fsdp_plan, config.base_model_pp_plan):
        assert all(find_names(names, pattern) for pattern in plan)
    assert list(config.base_model_pp_plan) == [
        name for name in names if name in config.base_model_pp_plan
    ], "in the network's order"
    assert not any(name.startswith("base_model_") for name in config.to_dict())
    assert PretrainedConfig().base_model_tp_plan is None  # only ours is changed


# --- `glm fill` under `torchrun` ------------------------------------------------------------------

TEXTS = ["The capital of Spain is [MASK].", "A dog has [MASK] legs and [MASK]", "Hot is not"]
# Each process holds a part, and parts of a file are small.
IN_PARTS = """
import checkout
from torch.distributed.tensor import DTensor
from glm_transformers.apps import fill, fill_files, pipeline
fill_files.ROWS = 2

def open_parts(*arguments):
    opened = pipeline.open_pipeline(*arguments)
    assert isinstance(opened.model.lm_head.weight, DTensor)
    return opened

fill.open_pipeline = fill_files.open_pipeline = open_parts
"""


@needs_sharing
@pytest.mark.parametrize("options", [["--json"], ["--all", "2"], ["--sample", "--seed", "3"]])
def test_fill_prints_what_one_process_does(demo_repository, colleague, tmp_path, options):
    command = ["fill", str(demo_repository), *TEXTS, "--max-new-tokens", "6", *options]
    expected = CliRunner().invoke(app, [*command, "--device", "cpu"]).stdout
    program = TWICE + IN_PARTS + GLM
    assert colleague.output(program, *command, "--tensor-parallel", folder=tmp_path) == expected
    assert len(expected.splitlines()) >= len(TEXTS)


@needs_sharing
def test_the_rows_of_a_file_are_filled_by_all(demo_repository, colleague, tmp_path):
    data, output = tmp_path / "data.jsonl", tmp_path / "filled.jsonl"
    data.write_text("".join(f"{json.dumps({'text': text})}\n" for text in TEXTS))
    command = ["fill", demo_repository, "--data", data, "--output", output, "--max-new-tokens", 6]
    colleague.output(TWICE + IN_PARTS + GLM, *command, "--tensor-parallel", folder=tmp_path)
    shared = output.read_text()
    output.unlink()
    assert CliRunner().invoke(app, [*map(str, command), "--device", "cpu"]).exit_code == 0
    assert shared == output.read_text()


def test_processes_that_share_draw_alike(colleague, tmp_path):
    """Without a seed, too: another word in one of them would be another text to go on with."""
    program = TWICE + (
        "import checkout; from glm_transformers.apps.options import Filling\n"
        "from glm_transformers.apps.processes import begin, seed_of\n"
        "begin(); print(seed_of(Filling('', sample=True, tensor_parallel=True)))"
    )
    first, second = colleague.output(program, folder=tmp_path).split()
    assert first == second != "None"


def test_what_cannot_be_shared(demo_repository, colleague, tmp_path, monkeypatch):
    def refuse(words: str, **options):
        with pytest.raises(ValueError, match=words if shares else "install version 5"):
            load(str(demo_repository), tensor_parallel=True, **options)

    refuse("one process")
    monkeypatch.setenv("WORLD_SIZE", "3")
    refuse("3 processes cannot share 4 heads")
    refuse("device", device="cpu")
    refuse("quantize", quantize="int8")
    command = ["fill", demo_repository, *TEXTS]
    run = colleague.run(TWICE + GLM, *command, folder=tmp_path)
    assert run.returncode and not run.stdout
    assert "pass --tensor-parallel" in run.stderr and "Traceback" not in run.stderr
