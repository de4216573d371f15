"""Scoring and choosing beside what they would cost without reading a context once.

    python benchmarks/score.py --threads 2 --repeats 5

with the package installed (pip install -e .). A network with the sizes of glm-base and a vocabulary
of 50304, random float32 weights. Each row of the table is ours beside a plain way to the same
numbers; the two take turns, the table shows medians. A choice has 4 tokens.

* training: a step of `GLMForMultipleChoice`, forward and backward, with the choices behind one
  context, and with each choice behind a context of its own.
* scoring: `score_choices`, and a forward pass over whole sequences, one for each choice.
* cache: the choices in one row, and each in a row behind a copy of the context's cache.
* answers: `log_likelihood` of texts of 40 to 120 tokens, like LAMBADA, and bare forward passes over
  the same padded tokens with logits for the answers alone.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from transformers import DynamicCache

from glm_transformers import (
    GLMConfig,
    GLMForConditionalGeneration,
    GLMForMultipleChoice,
    GLMMultipleChoiceCollator,
)
from glm_transformers.collation_glm import Row, TextCollator
from glm_transformers.conversion.tokenizers import build_tokenizer, find_vocabulary
from glm_transformers.evaluation import log_likelihood, score_choices
from glm_transformers.modeling_glm import CACHE

CHOICES, CHOICE_LENGTH, CONTEXT = 8, 4, 256
ANSWERS, BATCH = 32, 16  # texts of the last row of the table, and texts of a forward pass
IGNORED = -100
VOCABULARY = Path(__file__).resolve().parents[1] / "examples" / "demo_vocabulary"


def make_models(tokenizer) -> tuple[GLMForConditionalGeneration, GLMForMultipleChoice]:
    config = GLMConfig(
        vocab_size=50304,
        hidden_size=768,
        num_layers=12,
        num_attention_heads=12,
        sop_token_id=tokenizer.sop_token_id,
        eop_token_id=tokenizer.eop_token_id,
        mask_token_ids=tokenizer.mask_token_ids,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return GLMForConditionalGeneration(config).eval(), GLMForMultipleChoice(config).train()


def make_text(tokenizer, tokens: int) -> str:
    """Words of one token each."""
    words = [word for word in tokenizer.get_vocab() if word.startswith("Ġ") and word[1:].isalpha()]
    chosen = torch.randint(len(words), (tokens,)).tolist()
    return "".join(" " + words[number][1:] for number in chosen)


def make_choices(tokenizer) -> tuple[str, list[str]]:
    """A text of 256 tokens with [CLS], its mask and its end, and its choices."""
    text = make_text(tokenizer, CONTEXT - 3) + " [MASK]"
    return text, [make_text(tokenizer, CHOICE_LENGTH) for _ in range(CHOICES)]


def whole_sequences(tokenizer, text: str, choices: list[str]) -> dict[str, torch.Tensor]:
    """(C, T): each choice behind a context of its own; what it says is (C, T), too."""
    context = tokenizer(text).input_ids
    said = tokenizer.encode_choices(choices)
    rows = [[*context, tokenizer.sop_token_id, *answer[:-1]] for answer in said]
    labels = [[IGNORED] * len(context) + answer for answer in said]
    return {"input_ids": torch.tensor(rows), "labels": torch.tensor(labels)}


# --- What is compared -----------------------------------------------------------------------------


def training(tokenizer, model, chooser) -> tuple[Callable, Callable]:
    text, choices = make_choices(tokenizer)
    packed = GLMMultipleChoiceCollator(tokenizer)(
        [{"text": text, "choices": choices, "label": 0}],
    )
    rows = whole_sequences(tokenizer, text, choices)
    each = {
        "input_ids": rows["input_ids"][None],  # (1, C, T)
        "choice_ids": rows["labels"][None],
        "labels": packed["labels"],
    }

    def step(inputs) -> torch.Tensor:
        output = chooser(**inputs)
        output.loss.backward()
        chooser.zero_grad(set_to_none=True)
        return output.logits

    return lambda: step(packed), lambda: step(each)


def scoring(tokenizer, model, chooser) -> tuple[Callable, Callable]:
    text, choices = make_choices(tokenizer)
    rows = whole_sequences(tokenizer, text, choices)
    return (
        lambda: torch.tensor(score_choices(model, tokenizer, [text], [choices])),
        lambda: of_rows(model, rows),
    )


def of_rows(model, rows: dict[str, torch.Tensor], **inputs) -> torch.Tensor:
    """(1, C): the scores of rows that end with their choices."""
    said = rows["labels"][:, -CHOICE_LENGTH:]  # (C, G)
    logits = model(
        rows["input_ids"],
        logits_to_keep=CHOICE_LENGTH,
        **inputs,
    ).logits
    return logits.log_softmax(-1).gather(-1, said[..., None])[..., 0].sum(-1)[None]


def cache(tokenizer, model, chooser) -> tuple[Callable, Callable]:
    text, choices = make_choices(tokenizer)
    rows = whole_sequences(tokenizer, text, choices)
    context = rows["input_ids"][:1, :CONTEXT]
    answers = {name: tensor[:, CONTEXT:] for name, tensor in rows.items()}
    places = torch.full((CHOICES, CHOICE_LENGTH), CONTEXT - 2)  # of the mask
    blocks = torch.arange(1, CHOICE_LENGTH + 1).expand(CHOICES, -1)
    positions = torch.stack([places, blocks], dim=1)  # (C, 2, G)

    def from_cache() -> torch.Tensor:
        filled = DynamicCache(config=model.config)
        model(context, logits_to_keep=1, **{CACHE: filled})
        filled.batch_repeat_interleave(CHOICES)
        return of_rows(model, answers, position_ids=positions, **{CACHE: filled})

    def packed() -> torch.Tensor:
        return torch.tensor(score_choices(model, tokenizer, [text], [choices]))

    return packed, from_cache


def answers(tokenizer, model, chooser) -> tuple[Callable, Callable]:
    lengths = torch.randint(40, 120, (ANSWERS,)).tolist()
    texts = [make_text(tokenizer, length) + " [MASK]" for length in lengths]
    said = [make_text(tokenizer, 1 + number % 2) for number in range(ANSWERS)]
    collator = TextCollator(tokenizer)
    rows = []
    for text, answer in zip(texts, said, strict=True):
        pieces = tokenizer.pieces(tokenizer.encode_choices([answer]))
        rows.append(Row(tokenizer(text).input_ids, *pieces))
    rows.sort(key=lambda row: -len(row.context))
    batches = [collator.pad(rows[first : first + BATCH]) for first in range(0, ANSWERS, BATCH)]
    for batch in batches:
        batch["logits_to_keep"] = 2  # an answer has one or two tokens
        del batch["labels"]

    def ours() -> torch.Tensor:
        scores = log_likelihood(model, tokenizer, texts, said, batch_size=BATCH)
        return torch.tensor([[score.log_prob for score in of_text] for of_text in scores])

    def bare():
        for batch in batches:
            model(**batch, use_cache=False)

    return ours, bare


COMPARED = {
    "training": training,
    "scoring": scoring,
    "cache": cache,
    "answers": answers,
}


def measure(ours: Callable, plain: Callable, repeats: int) -> tuple[float, float]:
    """Median milliseconds of calls in turn; the first round is not counted."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats + 1):
        for call, milliseconds in zip((ours, plain), times, strict=True):
            start = time.perf_counter()
            call()
            milliseconds.append(1000 * (time.perf_counter() - start))
    return statistics.median(times[0][1:]), statistics.median(times[1][1:])


def check(name: str, ours: Callable, plain: Callable):
    """Both give the same scores, where both give any and dropout does not differ."""
    if name in ("scoring", "cache"):
        torch.testing.assert_close(ours().float(), plain(), atol=1e-3, rtol=0)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=list(COMPARED), default=list(COMPARED))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    tokenizer = build_tokenizer("gpt2", find_vocabulary("gpt2", VOCABULARY), task_mask=True)
    models = make_models(tokenizer)
    print(
        f"torch {torch.__version__}, transformers {transformers.__version__}, "
        f"{arguments.threads} threads, float32\n"
    )
    print("| | ours ms | plain ms | ours / plain | plain / ours |")
    print("|---" + "|---:" * 4 + "|")
    for name in arguments.only:
        calls = COMPARED[name](tokenizer, *models)
        with torch.set_grad_enabled(name == "training"):
            check(name, *calls)
            ours, plain = measure(*calls, arguments.repeats)
        ratios = f"{ours / plain:.2f} | {plain / ours:.2f}"
        print(f"| {name} | {ours:.0f} | {plain:.0f} | {ratios} |", flush=True)


if __name__ == "__main__":
    main()
