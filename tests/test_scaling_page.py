"""The commands and the Python of docs/scaling.md, in two processes on a CPU, and its tables.

Installing, and the benchmarks that measure, are left out.
"""

import json
import re
import shlex
import subprocess
import sys
from importlib.util import find_spec

import pyarrow.parquet
import pytest
import torch
from checkout import ENVIRONMENT, ROOT
from made import SENTENCES
from processes import GLM, TWICE
from safetensors.torch import load_file
from test_engines import ON_CPUS, needs_deepspeed
from test_parallel import needs_sharing
from test_readme import python_blocks

PAGE = ROOT / "docs" / "scaling.md"
TEXT = PAGE.read_text(encoding="utf-8")
BLOCKS = re.findall(r"```bash\n(.*?)```", TEXT, flags=re.DOTALL)
LINES = [line for block in BLOCKS for line in block.replace("\\\n", " ").splitlines()]
COMMANDS = [shlex.split(line) for line in LINES if not line.startswith(("pip install", "python "))]
FULLY_SHARDED, IN_PARTS, IN_A_SMALL_MEMORY, IN_RAY = python_blocks(PAGE)
ROWS = [{"text": "The capital of Spain is [MASK]."}, {"text": "A dog has [MASK] legs."}]
TO_LEARN = [{"text": f"{text[9:]} [MASK]", "target": text.split()[0]} for text in SENTENCES] * 6
FILLED = ["The capital of Spain is Madrid.", "A dog has four legs."]


def command(*words: str) -> tuple[list[str], list[str]]:
    """What launches the command of the page that has these words, and the command itself."""
    (found,) = (line for line in COMMANDS if {"glm", *words} <= set(line))
    start = found.index("glm")
    return [word for word in found[:start] if word != "--no_python"], found[start + 1 :]


@pytest.fixture
def folder(demo_repository, made_repository, tmp_path):
    """Where the page's names lead to small models and data."""
    for name, target in {
        "glm-demo": demo_repository,
        "glm-10b": demo_repository,
        "my-glm-2b": made_repository,
        "examples": ROOT / "examples",
        "benchmarks": ROOT / "benchmarks",
    }.items():
        (tmp_path / name).symlink_to(target)
    (tmp_path / "texts.txt").write_text("\n".join(SENTENCES * 8))
    (tmp_path / "texts.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in ROWS))
    (tmp_path / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in TO_LEARN))
    pyarrow.parquet.write_table(
        pyarrow.Table.from_pylist(ROWS),
        tmp_path / "texts.parquet",
    )
    return tmp_path


def test_nothing_else_is_on_the_page():
    assert len(COMMANDS) == 6


@pytest.mark.parametrize(
    "engine",
    [
        "--config_file",
        pytest.param("--use_deepspeed", marks=needs_deepspeed),
    ],
)
def test_training_in_parts(colleague, folder, engine):
    launch, pretrain = command(engine, "pretrain")
    settings = launch[2 : launch.index("--num_processes")]
    size = ["--steps", "2", "--length", "40", "--batch-size", "2"]
    program = TWICE + ON_CPUS + GLM
    colleague.output(program, *settings, "--", *pretrain, *size, folder=folder)
    assert (folder / "my-glm" / "model.safetensors").is_file()


def test_layers_behind_each_other(colleague, folder):
    (line,) = (line for line in COMMANDS if "examples/pipeline_parallel.py" in line)
    program, *arguments = line[line.index("examples/pipeline_parallel.py") :]
    run = f"import checkout, runpy\nrunpy.run_path({program!r}, run_name='__main__')"
    printed = colleague.output(TWICE + run, *arguments, folder=folder)
    losses = [float(line.removeprefix("loss ")) for line in printed.splitlines()]
    assert len(losses) == len(TO_LEARN) // 8
    old, new = (
        load_file(folder / name / "model.safetensors") for name in ("my-glm-2b", "my-tuned-glm")
    )
    assert {name: weight.shape for name, weight in new.items()} == {
        name: weight.shape for name, weight in old.items()
    }
    changed = {name for name, weight in new.items() if not torch.equal(weight, old[name])}
    assert changed == set(old), "all stages learnt"
    assert not (folder / "my-tuned-glm-parts").exists()
    refused = colleague.run(TWICE + run, *arguments[:2], "other", "--parts", "3", folder=folder)
    assert refused.returncode and "cannot be cut in 3" in refused.stderr


@needs_sharing
def test_a_text_is_filled_by_a_shared_model(colleague, folder):
    _, fill = command("torchrun")
    assert colleague.output(TWICE + GLM, *fill, folder=folder) == f"{FILLED[0]}\n"


@needs_sharing
@pytest.mark.parametrize("block", [FULLY_SHARDED.replace("size=8", "size=2"), IN_PARTS])
def test_a_program_shares_a_model(stranger, folder, block):
    program = f"{TWICE}{block}\nprint(type(model.lm_head.weight).__name__)"
    assert stranger.output(program, folder=folder).split() == ["DTensor"] * 2


def test_a_small_memory(stranger, folder):
    """Here without a GPU, and with too little memory for the demo; by the pipeline, too."""
    small = IN_A_SMALL_MEMORY.replace('0: "20GB", ', "").replace("30GB", "2MB")
    assert small != IN_A_SMALL_MEMORY
    fill = f"""
from transformers import AutoTokenizer, pipeline

texts = {[row["text"] for row in ROWS]}
tokenizer = AutoTokenizer.from_pretrained("glm-10b", trust_remote_code=True)
inputs = tokenizer(texts, padding=True, return_tensors="pt")
pieces = tokenizer.decode_pieces(model.generate(**inputs, max_new_tokens=6))
fill = pipeline(
    "text2text-generation",
    model="glm-10b",
    trust_remote_code=True,
    device_map="auto",
    model_kwargs=dict(max_memory={{"cpu": "2MB"}}, offload_folder="offload"),
)
for spread in (model, fill.model):
    places = spread.hf_device_map
    print(*sorted(set(map(str, places.values()))), places["glm.word_embeddings"], places["lm_head"])
print(list(map(tokenizer.fill, texts, pieces)))
print([result["filled_text"] for result in fill(texts)])
"""
    printed = stranger.output(small + fill, folder=folder).splitlines()
    assert printed == ["cpu disk cpu cpu", "cpu disk cpu cpu", str(FILLED), str(FILLED)]


def test_rows_of_files_are_filled(colleague, folder):
    _, alone = command("texts.jsonl")
    colleague.output(GLM, *alone, folder=folder)
    rows = map(json.loads, (folder / "filled.jsonl").read_text().splitlines())
    assert [row["filled_text"] for row in rows] == FILLED
    _, shared = command("texts.parquet", "accelerate")
    colleague.output(TWICE + GLM, *shared, folder=folder)
    table = pyarrow.parquet.read_table(folder / "filled.parquet")
    assert table.column("filled_text").to_pylist() == FILLED


@pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed")
def test_ray(folder):
    """With two actors on a CPU."""
    program = IN_RAY.replace("num_gpus=1", "num_cpus=1").replace("size=8", "size=2")
    assert program.count("num_cpus=1") == program.count("size=2") == 1
    begin = "import ray; ray.init(num_cpus=3, include_dashboard=False)\n"
    (folder / "program.py").write_text(begin + program)
    run = subprocess.run(
        [sys.executable, "program.py"],
        cwd=folder,
        capture_output=True,
        text=True,
        env={**ENVIRONMENT, "OMP_NUM_THREADS": "1", "HF_MODULES_CACHE": str(folder / "modules")},
    )
    assert run.returncode == 0, run.stderr[-4000:]
    lines = [line for file in folder.glob("filled/*") for line in file.read_text().splitlines()]
    rows = {row["text"]: row["filled_text"] for row in map(json.loads, lines)}
    assert rows == {row["text"]: text for row, text in zip(ROWS, FILLED, strict=True)}


def test_the_tables_are_what_the_counts_give(capsys):
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import cost

    for show in (
        cost.show_arithmetic,
        cost.show_memory,
        cost.show_communication,
        cost.show_pretraining,
    ):
        show()
    printed = capsys.readouterr().out.split("\n\n")
    assert len(printed) == 4
    for table in printed:
        assert table.strip() in TEXT
