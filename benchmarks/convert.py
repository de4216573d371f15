"""Memory and throughput of `glm convert` beside copying the same files with `cp`.

    python benchmarks/convert.py FOLDER --model glm-2b --model glm-10b --ranks 1 --ranks 4

Makes checkpoints of random numbers with the true shapes in FOLDER, which needs three times the model's room, converts and
copies each in turn, and deletes them. Both read from the disk (what the system keeps in memory is dropped before) and wait
until the disk has what they write. The conversion's time has all of the command in it: the start of Python and its imports,
which is also shown on its own, reading the result back, and running it. Memory is the peak of the process above that of one
that only imports the package.
"""

import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer
from decode import import_glm

import_glm()

from glm_transformers import GLMConfig  # noqa: E402
from glm_transformers.conversion import export_checkpoint  # noqa: E402
from glm_transformers.conversion.released import RELEASED  # noqa: E402
from glm_transformers.conversion.repository import AUTO_MAP, build_network, write_config  # noqa: E402
from glm_transformers.conversion.weights import write_weights  # noqa: E402

PROGRAM = "from decode import import_glm; import_glm(); from glm_transformers.cli import main"


@dataclass(frozen=True)
class Made:
    """A tensor that is made when it is read: one block of random numbers, again and again."""

    shape: tuple[int, ...]
    block: torch.Tensor
    dtype = torch.float16

    @property
    def nbytes(self) -> int:
        return 2 * torch.Size(self.shape).numel()

    def chunks(self) -> Iterator[torch.Tensor]:
        left = torch.Size(self.shape).numel()
        while left:
            yield self.block[:left]
            left -= len(self.block[:left])


def make_repository(folder: Path, model: str):
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
    block = torch.randn(2**20 + 7, generator=torch.Generator().manual_seed(0)).mul(0.02).half()
    parameters = {
        name: Made(tuple(tensor.shape), block)
        for name, tensor in build_network(config).state_dict().items()
    }
    write_weights(folder, parameters, "5GB")
    write_config(folder / "config.json", config, torch.float16)


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
    _, status, usage = os.wait4(process.pid, 0)
    os.sync()
    if status:
        raise RuntimeError(f"{command} failed.")
    return time.perf_counter() - start, usage.ru_maxrss * 1024


def main(
    folder: Annotated[Path, typer.Argument(help="Where checkpoints are made and deleted.")],
    model: Annotated[list[str], typer.Option(help="Names of released checkpoints.")] = ["glm-2b"],
    ranks: Annotated[list[int], typer.Option(help="Numbers of model-parallel ranks.")] = [1, 4],
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
            # The first round is not counted: a virtual disk is slow where it is written for the first time.
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
            print(
                f"| {name} | {count} | {size / 1e9:.1f} | {convert_seconds:.1f} | {start:.1f} | {copy_seconds:.1f} | "
                f"{copy_seconds / convert_seconds:.2f} | {copy_seconds / (convert_seconds - start):.2f} | {max(peaks) / 1e6:.0f} | {max(peaks) / largest:.2f} |",
                flush=True,
            )
            shutil.rmtree(checkpoint)
        shutil.rmtree(repository)


if __name__ == "__main__":
    typer.run(main)
