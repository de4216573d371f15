"""Memory and throughput of `glm convert` beside copying the same files with `cp`.

    python benchmarks/convert.py FOLDER --model glm-2b --model glm-10b --ranks 1 --ranks 4

Makes checkpoints of random numbers with the true shapes in FOLDER, which needs three times the
model's room, converts and copies each in turn, and deletes them. Both read from the disk (what the
system keeps in memory is dropped before) and wait until the disk has what they write. The
conversion's time has all of the command in it: the start of Python and its imports, which is also
shown on its own, reading the result back, and running it. Memory is the peak of what the process
has for itself (anonymous memory: what it maps from files, the system may take back), above that of
one that only imports the package.
"""

import os
import shutil
import statistics
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import typer
from decode import import_glm

import_glm()

from glm_transformers import GLMConfig  # noqa: E402
from glm_transformers.configuration_glm import AUTO_MAP  # noqa: E402
from glm_transformers.conversion import export_checkpoint  # noqa: E402
from glm_transformers.conversion.released import RELEASED  # noqa: E402
from glm_transformers.hub_repository.config import build_network, write_config  # noqa: E402
from glm_transformers.hub_repository.weights import (  # noqa: E402
    LazyTensor,
    expected_names,
    write_weights,
)

PROGRAM = "from decode import import_glm; import_glm(); from glm_transformers.cli import main"


def make_repository(folder: Path, model: str, dtype: torch.dtype = torch.float16):
    """Weights and settings; no tokenizer and no code."""
    shape = RELEASED[model]
    config = GLMConfig(
        num_layers=shape.layers,
        hidden_size=shape.hidden_size,
        num_attention_heads=shape.num_attention_heads,
        vocab_size=shape.vocabulary,
        max_sequence_length=shape.positions,
        architectures=["GLMForConditionalGeneration"],
        auto_map=AUTO_MAP,
    )
    folder.mkdir()
    # One block of random numbers, again and again.
    block = torch.randn(2**20 + 7, generator=torch.Generator().manual_seed(0)).mul(0.02).to(dtype)

    def fill(shape: tuple[int, ...]) -> torch.Tensor:
        numbers = torch.Size(shape).numel()
        return block.repeat(-(-numbers // len(block)))[:numbers].view(shape)

    parameters = {
        name: LazyTensor(shape, dtype, partial(fill, shape))
        for name, shape in expected_names(build_network(config)).items()
    }
    write_weights(folder, parameters, "1GB")
    write_config(folder / "config.json", config, dtype)


def forget(folder: Path):
    """Drop the folder's files from the memory of the system."""
    os.sync()
    for file in folder.rglob("*"):
        if file.is_file():
            descriptor = os.open(file, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def run(*command: str | Path) -> tuple[float, int]:
    """Seconds and peak bytes of a process, until the disk has what it wrote."""
    start = time.perf_counter()
    process = subprocess.Popen(
        [*command], cwd=Path(__file__).parent, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    peaks = [0]
    watcher = threading.Thread(target=watch, args=(process, peaks))
    watcher.start()
    status = process.wait()
    os.sync()
    taken = time.perf_counter() - start
    watcher.join()
    if status:
        raise RuntimeError(f"{command} failed.")
    return taken, max(peaks)


def watch(process: subprocess.Popen, peaks: list[int]):
    """Append the anonymous bytes of the process, a hundred times a second."""
    while process.poll() is None:
        try:
            status = Path(f"/proc/{process.pid}/status").read_text()
        except OSError:  # it has just ended
            return
        for line in status.splitlines():
            if line.startswith("RssAnon:"):
                peaks.append(int(line.split()[1]) * 1024)
        time.sleep(0.01)


def main(
    folder: Annotated[Path, typer.Argument(help="Where checkpoints are made and deleted.")],
    model: Annotated[
        list[str], typer.Option(default_factory=lambda: ["glm-2b"], help="Released checkpoints.")
    ],
    ranks: Annotated[
        list[int], typer.Option(default_factory=lambda: [1, 4], help="Model-parallel ranks.")
    ],
    repeats: Annotated[
        int, typer.Option(min=1, help="Rounds of which the table shows medians.")
    ] = 3,
):
    """Print a table of memory and throughput."""
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    repository, checkpoint, output = folder / "repository", folder / "checkpoint", folder / "output"
    starts = [run(sys.executable, "-c", PROGRAM) for _ in range(1 + repeats)]
    start, imported = (
        statistics.median(seconds for seconds, _ in starts[1:]),
        min(memory for _, memory in starts),
    )
    columns = (
        "model",
        "ranks",
        "GB",
        "convert, s",
        "of it start, s",
        "cp, s",
        "cp / convert",
        "cp / convert without start",
    )
    print("|", " | ".join((*columns, "peak memory, MB", "peak / largest file")), "|")
    print("|---" + "|---:" * 9 + "|", flush=True)
    for name in model:
        make_repository(repository, name)
        for count in ranks:
            export_checkpoint(repository, checkpoint, model_parallel_size=count)
            size = sum(file.stat().st_size for file in checkpoint.rglob("*.pt"))
            convert = [sys.executable, "-c", f"{PROGRAM}; main()", "convert", checkpoint, output]
            convert += ["--tokenizer", "none", "--model", name]
            converted, copied, peaks = [], [], []
            # The first round is not counted: a virtual disk is slow where it is new.
            for round in range(1 + repeats):
                for command, seconds in (
                    (convert, converted),
                    (["cp", "-r", checkpoint, output], copied),
                ):
                    forget(folder)
                    taken, peak = run(*command)
                    if command is convert:
                        largest = max(file.stat().st_size for file in output.glob("*.safetensors"))
                        peaks.append(peak - imported)
                    if round:
                        seconds.append(taken)
                    shutil.rmtree(output)
            convert_seconds, copy_seconds = statistics.median(converted), statistics.median(copied)
            row = (
                name,
                count,
                f"{size / 1e9:.1f}",
                f"{convert_seconds:.1f}",
                f"{start:.1f}",
                f"{copy_seconds:.1f}",
                f"{copy_seconds / convert_seconds:.2f}",
                f"{copy_seconds / (convert_seconds - start):.2f}",
                f"{max(peaks) / 1e6:.0f}",
                f"{max(peaks) / largest:.2f}",
            )
            print("|", " | ".join(map(str, row)), "|", flush=True)
            shutil.rmtree(checkpoint)
        shutil.rmtree(repository)


if __name__ == "__main__":
    typer.run(main)
