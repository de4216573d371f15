"""What loading a model takes of each process, whole and in parts, and the time to a first token.

    python benchmarks/shards.py --model glm-large --ranks 1 --ranks 2 --ranks 4

    python benchmarks/shards.py --ranks 2 --limit 750

with the package installed. Makes a repository of random float32 numbers with the true shapes in a
temporary folder, which needs the model's room, and deletes it. No more than a minute or two. With
a limit, which takes Linux and root, only the memory in parts is measured: the system gives each
process no more MB than that above its imports, for what it maps, too, and a copy of the files of
its own, as if it had a machine for itself.

* Memory: n processes on this machine share the model by tensor parallelism. For each, above what
  it takes with all imports done: the highest while it loads, and what it has behind a first token.
  Of its own (anonymous memory), and with the pages of files that it maps, which all processes of a
  machine have in common, and which the system may take back. One process also takes the weights in
  another type.
* Time: a plain read of the files, and a new process from its start to its first token. The system
  has forgotten the files before each (on a virtual disk the host may remember them).
"""

import os
import shutil
import socket
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Annotated

import torch
import torch.distributed as dist
import typer
from convert import forget, make_repository
from torch.distributed.tensor import DTensor
from transformers.distributed import DistributedConfig

from glm_transformers import GLMForConditionalGeneration

KINDS = ("RssAnon", "RssFile", "RssShmem")
EVERY = 0.002  # seconds between two looks at the memory
IDS = {
    "sop_token_id": 1,
    "eop_token_id": 2,
    "mask_token_ids": [3],
    "eos_token_id": 4,
    "pad_token_id": 4,
}
TEXT = torch.tensor([[5, 6, 7, 3, 8, 9, 4]])


def memory() -> tuple[int, int]:
    """Bytes of this process's own, and with what it maps."""
    lines = Path("/proc/self/status").read_text().splitlines()
    sizes = {line.split(":")[0]: line.split()[1] for line in lines if line.startswith(KINDS)}
    own, *mapped = (int(sizes[kind]) * 1024 for kind in KINDS)
    return own, own + sum(mapped)


class Peak:
    """The highest memory while the block runs, of both kinds."""

    def __enter__(self) -> "Peak":
        self.highest, self.is_over = memory(), threading.Event()
        self.watcher = threading.Thread(target=self._watch)
        self.watcher.start()
        return self

    def _watch(self):
        while not self.is_over.wait(EVERY):
            self.highest = tuple(map(max, self.highest, memory()))

    def __exit__(self, *error):
        self.is_over.set()
        self.watcher.join()


@contextmanager
def confined(limit: int | None) -> Iterator[None]:
    """Takes no more MB than the limit, what was taken before not counted; a kill is the end."""
    if limit is None:
        yield
        return
    # The first version of Linux's control groups has a folder for memory, the second one for all.
    groups, file = Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"
    if not groups.is_dir():
        groups, file = Path("/sys/fs/cgroup"), "memory.max"
    group = groups / f"shards-{os.getpid()}"
    group.mkdir()
    (group / file).write_text(str(limit * 10**6))
    (group / "cgroup.procs").write_text(str(os.getpid()))
    yield
    (groups / "cgroup.procs").write_text(str(os.getpid()))
    group.rmdir()


def load_part(
    rank: int,
    ranks: int,
    port: int,
    folder: Path,
    dtype: torch.dtype,
    limit: int | None,
    results: Connection,
):
    """One process: its bytes of weights, the peaks of loading, and the end, above the start."""
    os.environ.update(MASTER_ADDR="localhost", MASTER_PORT=str(port))
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(ranks))
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    before = memory()
    with confined(limit):
        with Peak() as peak:
            model = GLMForConditionalGeneration.from_pretrained(
                folder,
                dtype=dtype,
                distributed_config=DistributedConfig(tp_size=ranks),
                **IDS,
            )
        model.generate(TEXT, max_new_tokens=1)
        after = memory()
    weights = sum(
        (part.to_local() if isinstance(part, DTensor) else part).nbytes
        for part in model.parameters()
    )
    (peak_own, peak_all), (own, all_) = (
        [now - then for now, then in zip(sizes, before, strict=True)]
        for sizes in (peak.highest, after)
    )
    results.send((rank, weights, peak_own, peak_all, own, all_))
    dist.destroy_process_group()


def first_token(folder: Path, results: Connection):
    """One process: the clock when it can import, has loaded, and has its token."""
    times = [time.time()]
    model = GLMForConditionalGeneration.from_pretrained(folder, **IDS)
    times.append(time.time())
    model.generate(TEXT, max_new_tokens=1)
    times.append(time.time())
    results.send(times)


def start(target, *arguments) -> tuple:
    context = get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=target, args=(*arguments, sender))
    process.start()
    sender.close()
    return process, receiver


def memory_of(folders: list[Path], dtype: torch.dtype, limit: int | None) -> list[tuple]:
    """What each process has, of those that read these folders."""
    ranks = len(folders)
    with socket.create_server(("localhost", 0)) as free:
        port = free.getsockname()[1]
    started = [
        start(load_part, rank, ranks, port, folder, dtype, limit)
        for rank, folder in enumerate(folders)
    ]
    results = [receiver.recv() for _, receiver in started]
    for process, _ in started:
        process.join()
    return results


def copy_for_each(folder: Path, ranks: int) -> list[Path]:
    """A folder for each process, which the system has forgotten."""
    copies = [folder.with_name(f"{folder.name}-{rank}") for rank in range(ranks)]
    for copy in copies:
        shutil.copytree(folder, copy)
    forget(folder.parent)
    return copies


def read(folder: Path) -> float:
    """Seconds of reading the weights' files, and nothing else."""
    begin = time.time()
    block = bytearray(16 * 2**20)
    for file in sorted(folder.glob("*.safetensors")):
        with open(file, "rb", buffering=0) as weights:
            while weights.readinto(block):
                pass
    return time.time() - begin


def token(folder: Path) -> tuple[float, ...]:
    """Seconds of a new process: start and imports, loading, the token."""
    begin = time.time()
    process, receiver = start(first_token, folder)
    times = [begin, *receiver.recv()]
    process.join()
    return tuple(later - earlier for earlier, later in pairwise(times))


def main(
    ranks: Annotated[
        list[int], typer.Option(default_factory=lambda: [1, 2, 4], help="Processes that share it.")
    ],
    model: Annotated[str, typer.Option(help="A released shape.")] = "glm-large",
    repeats: Annotated[int, typer.Option(min=1, help="Rounds of the times.")] = 3,
    limit: Annotated[int | None, typer.Option(help="MB that each process may take.")] = None,
):
    """Print a table of memory, and one of times."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / model
        make_repository(folder, model, torch.float32)
        size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
        print(f"\n{model}, {size / 1e6:,.0f} MB\n")
        columns = ("peak of loading", "with mapped", "behind a token", "with mapped")
        print("| type | processes | rank | its weights, MB |", " | ".join(columns), "|")
        print("|---|" + "---:|" * 7, flush=True)
        if limit is None:
            in_parts = [(torch.float32, [folder] * count) for count in ranks]
            rows = [(torch.float16, [folder]), *in_parts]
        else:
            copies = copy_for_each(folder, max(ranks))
            rows = [(torch.float32, copies[:count]) for count in ranks]
        for dtype, folders in rows:
            count = len(folders)
            for rank, *sizes in memory_of(folders, dtype, limit):
                shown = " | ".join(f"{bytes_ / 1e6:,.0f}" for bytes_ in sizes)
                name = str(dtype).removeprefix("torch.")
                print(f"| {name} | {count} | {rank} | {shown} |", flush=True)
        if limit is not None:
            return
        rounds = []
        for _ in range(repeats):
            forget(folder)
            plain = read(folder)
            forget(folder)
            rounds.append((plain, *token(folder)))
        plain, imports, loading, first = (
            statistics.median(column) for column in zip(*rounds, strict=True)
        )
        print("\n| plain read, s | start and imports | loading | first token | of the two / read |")
        print("|---:" * 5 + "|")
        ratio = (loading + first) / plain
        print(f"| {plain:.2f} | {imports:.2f} | {loading:.2f} | {first:.2f} | {ratio:.2f} |")


if __name__ == "__main__":
    typer.run(main)
