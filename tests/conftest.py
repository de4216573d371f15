"""What every test file shares: the package without installing it, the golden data, converted repositories."""

import importlib.util
import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).resolve().parents[1]

# In a checkout the repository root is the package; an installed glm_transformers is left alone.
if importlib.util.find_spec("glm_transformers") is None:
    spec = importlib.util.spec_from_file_location(
        "glm_transformers", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    sys.modules["glm_transformers"] = package = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(package)

REFERENCE = ROOT.parent / "shared" / "reference"

# How each golden checkpoint is converted: what its tensors cannot tell (heads; --model where it has a tokenizer).
CONVERSIONS = {
    "tiny-gpt2-fp16": dict(model="glm-2b", num_attention_heads=4),
    "tiny-bert-fp16": dict(model="glm-base", num_attention_heads=2),
    "tiny-roberta-fp16": dict(model="glm-roberta-large", num_attention_heads=2),
    "tiny-chinese-10b-fp16": dict(model="glm-10b-chinese", num_attention_heads=4),
    "tiny-fp32": dict(tokenizer="none", num_attention_heads=4),
    "tiny-noblockpos": dict(tokenizer="none", num_attention_heads=4),
    "tiny-classifier": dict(tokenizer="none", num_attention_heads=4),
    "tiny-multichoice-head": dict(tokenizer="none", num_attention_heads=4),
    "tiny-cloze": dict(tokenizer="none", num_attention_heads=4),
    "tiny-cloze-fast": dict(tokenizer="none", num_attention_heads=4),
}

# The ids that golden checkpoints without a tokenizer use.
PLAIN_IDS = dict(sop_token_id=601, eop_token_id=602, mask_token_ids=[604, 607, 608], pad_token_id=600, eos_token_id=600)


@pytest.fixture(scope="session")
def reference() -> Path:
    """The golden data made by the original code."""
    if not REFERENCE.is_dir():
        pytest.skip(f"the golden data folder {REFERENCE.parent.name}/{REFERENCE.name} does not exist beside the checkout")
    return REFERENCE


@pytest.fixture(scope="session")
def repository(reference, tmp_path_factory):
    """`repository(name)`: the golden checkpoint `name`, converted once for the whole session."""
    from glm_transformers.conversion import convert_checkpoint

    converted = {}

    def convert(name: str) -> Path:
        if name not in converted:
            options = dict(CONVERSIONS[name])
            if "model" in options:
                options["vocab"] = reference / "vocab"
            output = tmp_path_factory.mktemp("repositories") / name
            converted[name] = convert_checkpoint(reference / "checkpoints" / name, output, **options)
        return converted[name]

    return convert
