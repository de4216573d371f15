"""`glm serve` under load, beside calling the pipeline with the same texts one by one.

    python benchmarks/serve.py glm-demo --requests 200 --clients 8 --clients 32

with the package installed (pip install -e ".[serve]") and a repository, like that of `glm demo`.
The server is a process of its own, on the loopback. Its clients are threads here, each with one
connection and one text at a time, and each sends its next request when the last is answered. The
pipeline and the clients take turns; the table has the medians of the rounds, and latencies over all
of them. Every answer must be there and be the pipeline's, or the run fails.
"""

import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.client import HTTPConnection
from itertools import cycle, islice
from pathlib import Path
from typing import Annotated, NamedTuple

import torch
import transformers
import typer
from tqdm import trange

from glm_transformers.apps.pipeline import open_pipeline

TEXTS = Path(__file__).resolve().parents[1] / "examples" / "held_out.jsonl"
DEVICE = "cpu"


class Round(NamedTuple):
    seconds: float
    latencies: list[float]  # seconds of each request
    batches: int


@contextmanager
def serving(repository: str) -> Iterator[int]:
    """The port of a server."""
    command = [sys.executable, "-m", "glm_transformers", "serve", repository]
    process = subprocess.Popen(
        [*command, "--port", "0", "--device", DEVICE],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        for line in process.stdout:
            listens = re.search(r"listens on http://[^:]+:(\d+)", line)
            if listens:
                yield int(listens[1])
                break
    finally:
        process.terminate()
        process.wait()


def send(connection: HTTPConnection, path: str, body: object = None) -> object:
    headers = {"Content-Type": "application/json"}
    data = None if body is None else json.dumps(body)
    connection.request("GET" if body is None else "POST", path, data, headers)
    response = connection.getresponse()
    answer = json.loads(response.read())
    if response.status != 200:
        raise SystemExit(f"The server says {response.status}: {answer}")
    return answer


def count_batches(port: int) -> int:
    return send(HTTPConnection("127.0.0.1", port), "/health")["batches"]


def check(answers: list, expected: list) -> None:
    wrong = sum(one != other for one, other in zip(answers, expected, strict=True))
    if wrong:
        raise SystemExit(f"{wrong} of {len(expected)} answers are not those of the pipeline.")


def call_one_by_one(fill: Callable, texts: list[str]) -> tuple[Round, list]:
    answers, latencies = [], []
    for text in texts:
        start = time.perf_counter()
        answers.append(fill(text))
        latencies.append(time.perf_counter() - start)
    return Round(sum(latencies), latencies, len(texts)), answers


def load(port: int, texts: list[str], clients: int) -> tuple[Round, list]:
    answers, latencies = [None] * len(texts), [0.0] * len(texts)
    numbers = iter(range(len(texts)))  # which a thread takes the next of

    def ask() -> None:
        connection = HTTPConnection("127.0.0.1", port)
        for number in numbers:
            start = time.perf_counter()
            answers[number] = send(connection, "/fill", {"inputs": texts[number]})
            latencies[number] = time.perf_counter() - start
        connection.close()

    before = count_batches(port)
    start = time.perf_counter()
    with ThreadPoolExecutor(clients) as threads:
        for running in [threads.submit(ask) for _ in range(clients)]:
            running.result()
    seconds = time.perf_counter() - start
    return Round(seconds, latencies, count_batches(port) - before), answers


def row(name: str, rounds: list[Round], alone: list[Round]) -> str:
    requests = len(rounds[0].latencies)
    seconds = statistics.median(one.seconds for one in rounds)
    latencies = [1000 * latency for one in rounds for latency in one.latencies]
    times = statistics.median(one.seconds for one in alone) / seconds
    p95 = statistics.quantiles(latencies, n=20)[-1]
    texts = requests / statistics.median(one.batches for one in rounds)
    speed = f"{requests / seconds:.1f} | {times:.2f}"
    return f"| {name} | {speed} | {statistics.median(latencies):.0f} | {p95:.0f} | {texts:.1f} |"


def main(
    repository: Annotated[str, typer.Argument(help="A converted repository.")],
    requests: Annotated[int, typer.Option(min=2, help="Of each round.")] = 200,
    clients: Annotated[list[int], typer.Option(min=1, help="At the same time.")] = (8, 32),
    rounds: Annotated[int, typer.Option(min=1)] = 3,
    threads: Annotated[int, typer.Option(min=1, help="Of torch.")] = 2,
) -> None:
    torch.set_num_threads(threads)
    lines = TEXTS.read_text(encoding="utf-8").splitlines()
    texts = list(islice(cycle(json.loads(line)["text"] for line in lines), requests))
    fill = open_pipeline(repository, device=DEVICE)
    measured: dict[int, list[Round]] = {count: [] for count in (0, *clients)}
    with serving(repository) as port:
        call_one_by_one(fill, texts[:10])
        load(port, texts[:10], 2)
        for _ in trange(rounds, desc="rounds"):
            alone, expected = call_one_by_one(fill, texts)
            measured[0].append(alone)
            for count in clients:
                loaded, answers = load(port, texts, count)
                check(answers, expected)
                measured[count].append(loaded)
    print(
        f"torch {torch.__version__}, transformers {transformers.__version__}, {threads} threads, "
        f"{requests} requests, {rounds} rounds\n"
    )
    print("| | requests/s | of the pipeline | median ms | 95% ms | texts of a batch |")
    print("|---" + "|---:" * 5 + "|")
    print(row("pipeline, one by one", measured[0], measured[0]))
    for count in clients:
        print(row(f"glm serve, {count} clients", measured[count], measured[0]))


if __name__ == "__main__":
    typer.run(main)
