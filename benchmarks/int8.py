"""Weights in int8 beside float32: what a step takes, how large the weights are, what is answered.

    python benchmarks/int8.py --threads 2 --repeats 20

with the package installed (pip install -e .), on a CPU. A decode step is one token behind a filled
cache, of a network with 12 layers of 768 and a vocabulary of 50304, its output head included. All
ways take turns; a row shows medians, and of a time to that of float32 the median over the rounds.
Then the demo answers its held-out questions, in batches of 50 and one by one.

`int8` is `--quantize int8` of this project's commands. The ways below it are those of other
libraries: through `from_pretrained`, which leave the head as it is, and ONNX Runtime, which has the
steps' whole graph, the cache in it. A way whose library is missing is left out.
"""

import io
import logging
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import torch
import transformers
import typer
from transformers import BitsAndBytesConfig, DynamicCache, TorchAoConfig

from glm_transformers import GLMConfig, GLMForConditionalGeneration, GLMTokenizerFast
from glm_transformers.conversion import convert_checkpoint
from glm_transformers.demo import CHECKPOINT, EXAMPLES, OPTIONS
from glm_transformers.evaluation.quantization import to_int8
from glm_transformers.modeling_glm import CACHE

VOCABULARY, CONTEXT = 50304, 64
MASK, START, END = VOCABULARY - 1, VOCABULARY - 2, VOCABULARY - 3


def load(folder: Path, dtype: torch.dtype = torch.float32, **options: Any) -> torch.nn.Module:
    model = GLMForConditionalGeneration.from_pretrained(folder, dtype=dtype, **options)
    return model.eval()


def load_int8(folder: Path) -> torch.nn.Module:
    return to_int8(load(folder))


def load_torchao(folder: Path, name: str) -> torch.nn.Module:
    import torchao.quantization

    quantization = TorchAoConfig(getattr(torchao.quantization, name)())
    return load(folder, quantization_config=quantization, device_map="cpu")


def load_bitsandbytes(folder: Path) -> torch.nn.Module:
    quantization = BitsAndBytesConfig(load_in_8bit=True)
    return load(folder, quantization_config=quantization, device_map="cpu")


sys.path.insert(0, str(EXAMPLES))

WAYS: dict[str, Callable[[Path], torch.nn.Module]] = {
    "float32": load,
    "bfloat16": partial(load, dtype=torch.bfloat16),
    "int8": load_int8,
}
if find_spec("torchao") is not None:
    WAYS["torchao, weights"] = partial(load_torchao, name="Int8WeightOnlyConfig")
    WAYS["torchao, dynamic"] = partial(
        load_torchao,
        name="Int8DynamicActivationInt8WeightConfig",
    )
if find_spec("bitsandbytes") is not None:
    WAYS["bitsandbytes"] = load_bitsandbytes
if find_spec("onnxruntime") is not None:
    from onnx_steps import with_onnx_steps

    WAYS["ONNX Runtime, float32"] = partial(with_onnx_steps, in_int8=False)
    WAYS["ONNX Runtime, int8"] = partial(with_onnx_steps, in_int8=True)


def write_network(folder: Path) -> None:
    """A network with the sizes of the table, and random weights."""
    config = GLMConfig(
        vocab_size=VOCABULARY,
        hidden_size=768,
        num_layers=12,
        num_attention_heads=12,
        sop_token_id=START,
        eop_token_id=END,
        mask_token_ids=[MASK],
    )
    GLMForConditionalGeneration(config).save_pretrained(folder)


# --- Time and size --------------------------------------------------------------------------------


def step_of(model: torch.nn.Module, batch: int) -> Callable[[], None]:
    """A step behind a context of `CONTEXT` tokens with one blank; the cache is cropped after it."""
    prompt = torch.randint(0, END, (batch, CONTEXT))
    prompt[:, CONTEXT // 2] = MASK
    prompt[:, -1] = START
    token = torch.full((batch, 1), 7)
    # (B, 2, 1): of the blank, and the second of its piece
    positions = torch.tensor([CONTEXT // 2, 2]).expand(batch, 2)[..., None]
    cache = DynamicCache(config=model.config)
    filled = {CACHE: cache, "use_cache": True}
    model(prompt, logits_to_keep=1, **filled)

    def step() -> None:
        model(token, position_ids=positions, **filled)
        cache.crop(-1)

    return step


def time_in_turn(calls: list[Callable[[], None]], repeats: int) -> list[list[float]]:
    """Milliseconds of each call in each round; the first two rounds are not counted."""
    rounds = []
    for _ in range(repeats + 2):
        times = []
        for call in calls:
            start = time.perf_counter()
            call()
            times.append(1000 * (time.perf_counter() - start))
        rounds.append(times)
    return [list(times) for times in zip(*rounds[2:], strict=True)]


def state_bytes(model: torch.nn.Module) -> int:
    """Of all weights as they are kept; a tied one counts once."""
    if hasattr(model, "graph_bytes"):
        return model.graph_bytes
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    return file.tell()


# --- Answers --------------------------------------------------------------------------------------


def share_right(model: torch.nn.Module, tokenizer: GLMTokenizerFast) -> list[float]:
    """Of the held-out questions, in batches and one by one."""
    from evaluate_demo import BATCH, fill_all, is_right, read_questions

    questions = read_questions()
    texts = [question["text"] for question in questions]
    shares = []
    for batch in (BATCH, 1):
        answers = fill_all(model, tokenizer, texts, batch)
        right = [
            is_right(question, piece) for question, (piece,) in zip(questions, answers, strict=True)
        ]
        shares.append(sum(right) / len(right))
    return shares


# --- Tables ---------------------------------------------------------------------------------------


def compare_steps(folder: Path, ways: list[str], batches: list[int], repeats: int) -> None:
    write_network(folder)
    models = {name: WAYS[name](folder) for name in ways}
    print(
        "\n| 12 x 768 | MB |" + "".join(f" batch {rows}, ms | to {ways[0]} |" for rows in batches)
    )
    print("|---" + "|---:" * (1 + 2 * len(batches)) + "|")
    cells = {name: [f"{state_bytes(model) / 1e6:.0f}"] for name, model in models.items()}
    for rows in batches:
        times = time_in_turn([step_of(model, rows) for model in models.values()], repeats)
        for name, ours in zip(models, times, strict=True):
            ratios = [one / first for one, first in zip(ours, times[0], strict=True)]
            cells[name] += [f"{statistics.median(ours):.1f}", f"{statistics.median(ratios):.2f}"]
    for name, of_way in cells.items():
        print(f"| {name} | {' | '.join(of_way)} |", flush=True)


def compare_answers(folder: Path, ways: list[str]) -> None:
    convert_checkpoint(CHECKPOINT, folder, **OPTIONS)
    tokenizer = GLMTokenizerFast.from_pretrained(folder)
    print("\n| the demo | MB | right, in batches | one by one |\n|---|---:|---:|---:|")
    for name in ways:
        model = WAYS[name](folder)
        shares = " | ".join(f"{share:.1%}" for share in share_right(model, tokenizer))
        print(f"| {name} | {state_bytes(model) / 1e6:.1f} | {shares} |", flush=True)


def main(
    batch: Annotated[
        list[int], typer.Option(default_factory=lambda: [1, 8], help="Rows of a step.")
    ],
    way: Annotated[
        list[str], typer.Option(default_factory=lambda: list(WAYS), help="Rows of the tables.")
    ],
    threads: int = torch.get_num_threads(),
    repeats: Annotated[int, typer.Option(help="Measured rounds.")] = 20,
    steps: Annotated[bool, typer.Option(help="Time a step.")] = True,
    answers: Annotated[bool, typer.Option(help="Ask the demo.")] = True,
):
    """Print both tables."""
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    torch.manual_seed(0)
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, {threads} threads")
    with tempfile.TemporaryDirectory() as folder:
        if steps:
            compare_steps(Path(folder) / "network", way, batch, repeats)
        if answers:
            compare_answers(Path(folder) / "demo", way)


if __name__ == "__main__":
    typer.run(main)
