"""The original's numbers, through a converted repository that a fresh process loads elsewhere."""

from pathlib import Path

import pytest
from conftest import CONVERSIONS, HAS_FULL_REFERENCE, needs_full_reference

# What the program must say that it compared, with the full golden data and with the small.
NETWORK = ["forward equal", "generation equal"]
COMPARED = {
    "tiny-gpt2-fp16": [*NETWORK, "multiple_choice equal"],
    "tiny-bert-fp16": [*NETWORK, "multiple_choice equal"],
    "tiny-roberta-fp16": [*NETWORK, "multiple_choice equal"],
    "tiny-chinese-10b-fp16": [*NETWORK, "multiple_choice equal"],
    "tiny-fp32": [*NETWORK, "attention_scale equal", "train_step equal"],
    "tiny-noblockpos": NETWORK,
    "tiny-classifier": ["classifier equal"],
    "tiny-multichoice-head": ["multichoice equal"],
    "tiny-cloze": ["cloze equal"],
    "tiny-cloze-fast": ["cloze_fast equal"],
}
COMPARED_IN_PART = {name: ["generation equal"] for name in COMPARED if name.endswith("-fp16")}
ONLY_FULL = ("tiny-multichoice-head", "tiny-cloze-fast")
not_in_the_small_set = needs_full_reference("the small set has the form of this head's file alone")
NAMES = [
    pytest.param(name, marks=not_in_the_small_set if name in ONLY_FULL else ())
    for name in CONVERSIONS
]


@pytest.mark.parametrize("name", NAMES)
def test_goldens_in_a_fresh_process(reference, repository, name, stranger, tmp_path):
    program = Path(__file__).with_name("goldens.py").read_text(encoding="utf-8")
    printed = stranger.output(program, reference, name, repository(name), folder=tmp_path)
    compared = COMPARED[name] if HAS_FULL_REFERENCE else {**COMPARED, **COMPARED_IN_PART}[name]
    assert all(what in printed for what in compared), printed
