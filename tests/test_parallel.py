"""The plans by which two processes share a model, each against the model in one process."""

from importlib.util import find_spec

import pytest
from checkout import TESTS
from processes import TWICE
from transformers import PretrainedConfig

# 4.57 has other classes for sharing; its plan is declared, and only looked at below.
shares = find_spec("transformers.distributed.tensor_parallel") is not None


@pytest.mark.skipif(not shares, reason="this version of Transformers cannot share with these plans")
@pytest.mark.parametrize("plan", ["tp", "fsdp", "pp"])
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


def test_plans_name_modules_that_exist(tiny_model):
    base = tiny_model().glm
    names = {name for name, _ in base.named_modules()}
    config = base.config
    for plan in (config.base_model_tp_plan, config.base_model_fsdp_plan, config.base_model_pp_plan):
        assert {name.replace("*", "0") for name in plan} <= names
    assert not any(name.startswith("base_model_") for name in config.to_dict())
    assert PretrainedConfig().base_model_tp_plan is None  # only ours is changed
