"""What every test file shares: the golden data, converted repositories, tiny networks."""

import gc
import os
import re
import shlex
import socket
import subprocess
import tarfile
from pathlib import Path

import pytest
from checkout import ENVIRONMENT, ROOT
from processes import GLM, Forks

# The golden data made by the original code: all of it beside the checkout, or the small part of it
# under tests/golden, which is taken where the other is not, or when the environment asks for it.
FULL_REFERENCE = ROOT.parent / "shared" / "reference"
SMALL_REFERENCE = ROOT / "tests" / "golden"
HAS_FULL_REFERENCE = FULL_REFERENCE.is_dir() and os.environ.get("GLM_GOLDEN") != "small"


def needs_full_reference(why: str):
    """Marks a test that the small golden set cannot serve."""
    reason = f"needs the full golden data beside the checkout: {why}"
    return pytest.mark.skipif(not HAS_FULL_REFERENCE, reason=reason)


# Cases that go no way of their own through the code, or many more of a kind: asked for by hand.
LONG = os.environ.get("GLM_LONG") == "1"
long = pytest.mark.skipif(not LONG, reason="GLM_LONG=1 runs it, too")


def pytest_collection_finish():
    """All that was imported stays, so that no collection of garbage looks through it again.

    The Trainer collects at the begin of each training, which takes longer than some of these.
    """
    gc.freeze()


# How each golden checkpoint is converted: what its tensors cannot tell (heads; --model where it has
# a tokenizer).
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

# What pages call; the package may not be installed.
PROGRAMS = {
    "glm": GLM,
    "python": "import os, runpy, sys; sys.argv = sys.argv[1:]; "
    "sys.path.insert(0, os.path.dirname(sys.argv[0])); "
    "runpy.run_path(sys.argv[0], run_name='__main__')",
}

# What programs of the package need of libraries, and what those of strangers need.
OF_THE_PACKAGE = """
import checkout
import accelerate, datasets, matplotlib.backends.backend_agg, matplotlib.figure, peft
import torch.utils.tensorboard
import glm_transformers.cli
import glm_transformers.training.finetune, glm_transformers.training.pretrain
from glm_transformers.conversion import convert_checkpoint, verify_repository
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, pipeline
"""
OF_STRANGERS = """
import torch, torch.nn.attention.flex_attention
import transformers.generation, transformers.masking_utils, transformers.modeling_layers
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, PreTrainedModel, pipeline
"""

# A vocabulary of 99: text below 90, then the special tokens.
SOP, EOP, MASK, GMASK, SMASK, EOS = 90, 91, 92, 93, 94, 95


def tiny_config(**options):
    from glm_transformers import GLMConfig

    shape = dict(
        vocab_size=99, hidden_size=32, num_layers=2, num_attention_heads=4, max_sequence_length=64
    )
    ids = dict(
        sop_token_id=SOP,
        eop_token_id=EOP,
        mask_token_ids=[MASK, GMASK, SMASK],
        eos_token_id=EOS,
        pad_token_id=EOS,
    )
    return GLMConfig(**{**shape, **ids, **options})


@pytest.fixture
def tiny_model():
    """`tiny_model(cls, **config)`: a seeded network.

    Its attention is far from uniform, so that wrong masks show.
    """

    def build(cls=None, attn_implementation="eager", **options):
        import torch

        from glm_transformers import GLMForConditionalGeneration

        torch.manual_seed(7)
        model = (cls or GLMForConditionalGeneration)._from_config(
            tiny_config(**options), attn_implementation=attn_implementation
        )
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(std=0.3) if parameter.dim() > 1 else parameter.add_(
                    torch.randn_like(parameter) * 0.1
                )
        if model.can_generate():
            model.generation_config.eos_token_id, model.generation_config.pad_token_id = (
                [EOP, EOS],
                EOS,
            )
        return model.eval()

    return build


@pytest.fixture(scope="session")
def reference(tmp_path_factory) -> Path:
    """The golden data made by the original code, full or small: the folders are the same."""
    if HAS_FULL_REFERENCE:
        return FULL_REFERENCE
    folder = tmp_path_factory.mktemp("golden")
    for file in sorted(SMALL_REFERENCE.glob("*.tar.xz")):
        with tarfile.open(file) as archive:
            archive.extractall(folder, filter="data")
    return folder


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
            converted[name] = convert_checkpoint(
                reference / "checkpoints" / name, output, **options
            )
        return converted[name]

    return convert


@pytest.fixture(scope="session")
def made_repository(tmp_path_factory) -> Path:
    """A converted repository without golden data: a trained vocabulary, a seeded checkpoint."""
    from made import make_checkpoint, make_parameters, make_vocabulary

    from glm_transformers.conversion import convert_checkpoint

    folder = tmp_path_factory.mktemp("made")
    checkpoint = make_checkpoint(folder / "checkpoint", make_parameters(), ranks=2)
    vocabulary = make_vocabulary(folder / "vocabulary")
    return convert_checkpoint(
        checkpoint,
        folder / "repository",
        model="glm-2b",
        vocab=vocabulary,
        num_attention_heads=4,
        dtype="float32",
    )


@pytest.fixture(scope="session")
def demo_repository(tmp_path_factory) -> Path:
    """What `glm demo` converts, for a model that knows something."""
    from glm_transformers.conversion import convert_checkpoint
    from glm_transformers.demo import CHECKPOINT, OPTIONS

    return convert_checkpoint(CHECKPOINT, tmp_path_factory.mktemp("demo") / "glm-demo", **OPTIONS)


@pytest.fixture(scope="session")
def stranger(tmp_path_factory):
    """Programs of strangers, who have Transformers, and the package at most if it is installed."""
    folder = tmp_path_factory.mktemp("stranger")
    # The first is where the library puts the code of repositories.
    settings = {"HF_MODULES_CACHE": str(folder / "modules"), "HF_HUB_OFFLINE": "1"}
    forks = Forks(OF_STRANGERS, folder, {**os.environ, **settings})
    yield forks
    forks.end()


@pytest.fixture(scope="session")
def hub_port() -> int:
    """Where programs of colleagues look for the Hub."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


@pytest.fixture(scope="session")
def colleague(hub_port, tmp_path_factory):
    """Programs that have the package, on a terminal of 100 columns."""
    folder = tmp_path_factory.mktemp("colleague")
    hub = dict(
        HF_ENDPOINT=f"http://127.0.0.1:{hub_port}",
        HF_HUB_DISABLE_XET="1",
        HF_HUB_OFFLINE="0",
        HF_HUB_DISABLE_TELEMETRY="1",
        HF_HOME=str(folder / "home"),
    )
    environment = {**ENVIRONMENT, **hub, "COLUMNS": "100"}
    environment.pop("TQDM_DISABLE", None)  # a test says where there are no bars
    forks = Forks(OF_THE_PACKAGE, folder, environment)
    yield forks
    forks.end()


@pytest.fixture(scope="module")
def shell(colleague, tmp_path_factory):
    """`shell(commands)`: what they print, all in one folder, by bash and by colleagues."""
    folder = tmp_path_factory.mktemp("page")

    def of_others(commands: str) -> str:
        run = subprocess.run(
            ["bash", "-ec", commands],
            cwd=folder,
            capture_output=True,
            text=True,
        )
        assert run.returncode == 0, run.stdout + run.stderr
        return run.stdout

    def of_ours(command: str) -> str:
        line, _, file = command.strip().partition(" > ")
        name, *arguments = shlex.split(line)
        printed = colleague.output(PROGRAMS[name], *arguments, folder=folder)
        if file:
            (folder / file).write_text(printed)
            return ""
        return printed

    def run(commands: str) -> str:
        # Every second part is a line of ours.
        parts = re.split(rf"^((?:{'|'.join(PROGRAMS)}) .*)$", commands, flags=re.MULTILINE)
        printed = [(of_others, of_ours)[i % 2](part) for i, part in enumerate(parts)]
        return "".join(printed)

    run.folder = folder
    return run


@pytest.fixture
def killed_run(monkeypatch):
    """`killed_run(run)`: a run that is killed when one batch of it is finished.

    Returns a list with that batch, to which those are added that later runs finish.
    """
    from glm_transformers.evaluation.record import FinishedParts

    add, finished = FinishedParts.add, []

    def add_and_die(self, *batch):
        add(self, *batch)
        finished.append(batch)
        raise KeyboardInterrupt

    def kill(run) -> list:
        monkeypatch.setattr(FinishedParts, "add", add_and_die)
        with pytest.raises(KeyboardInterrupt):
            run()
        monkeypatch.setattr(FinishedParts, "add", lambda *all: finished.append(all) or add(*all))
        return finished

    return kill
