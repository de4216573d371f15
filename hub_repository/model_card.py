"""The README.md of a repository, which the Hub shows as its model card."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from huggingface_hub import EvalResult, ModelCardData

from ..configuration_glm import GLMConfig
from ..tokenization_glm import GLMTokenizerFast
from .config import fills_blanks

PAPER = "https://aclanthology.org/2022.acl-long.26"
ORIGINAL = "https://github.com/THUDM/GLM"

# One prompt for each mask, and what the mask stands for; the masks of the paper, section 2.2.
BLANKS = {
    "[MASK]": "a few words",
    "[sMASK]": "one or more sentences",
    "[gMASK]": "the rest of the text, at the end of a prompt",
}
PROMPTS = {
    "en": {
        "[MASK]": "Ng is an adjunct professor at [MASK] (formerly associate professor and Director "
        "of its Stanford AI Lab).",
        "[sMASK]": "There have been various types of pretraining architectures. [sMASK] We propose "
        "a General Language Model.",
        "[gMASK]": "Tsinghua University is located in [gMASK]",
    },
    "zh": {
        "[MASK]": "凯旋门位于意大利米兰市古城堡旁。1807年为纪念[MASK]而建，门高25米，"
        "顶上矗立两武士青铜古兵车铸像。",
        "[sMASK]": "清华大学位于北京。[sMASK]欢迎大家报考。",
        "[gMASK]": "清华大学位于[gMASK]",
    },
}

# What the original's README gives, for GLM-10B alone.
PUBLISHED = {
    "glm-10b": f"""## Published results

Of the released glm-10b, as [its authors]({ORIGINAL}) give them; not measured again.

| SuperGLUE, dev | COPA | WSC | RTE | WiC | CB | MultiRC | BoolQ | ReCoRD |
|---|---|---|---|---|---|---|---|---|
| | 98.0 | 95.2 | 93.1 | 75.7 | 98.7 / 98.2 | 88.1 / 63.3 | 88.7 | 94.4 / 94.0 |

| Summaries | ROUGE-1 | ROUGE-2 | ROUGE-L |
|---|---|---|---|
| CNN/DailyMail | 44.7 | 21.4 | 41.4 |
| XSum | 48.9 | 25.7 | 40.4 |

| Language modeling | LAMBADA, accuracy | WikiText-103, perplexity |
|---|---|---|
| bidirectional | 72.35 | 11.33 |
| unidirectional | 67.18 | 12.22 |"""
}

END = """## Licence

The weights keep the licence under which they were published; the Python files here are Apache-2.0.

## Citation

```bibtex
@inproceedings{du2022glm,
  title = {{GLM}: General Language Model Pretraining with Autoregressive Blank Infilling},
  author = {Du, Zhengxiao and Qian, Yujie and Liu, Xiao and Ding, Ming and Qiu, Jiezhong and
            Yang, Zhilin and Tang, Jie},
  booktitle = {Proceedings of the 60th Annual Meeting of the Association for Computational
               Linguistics},
  year = {2022},
  pages = {320--335},
}
```"""


@dataclass(frozen=True)
class Tuning:
    """What a card says of a model that was fine-tuned.

    Attributes:
        base_model: what it was made from.
        task, data: what it was trained for, and on.
        options: with which it was trained.
        results: each metric of the validation data, in percent.
        validation: what these data are called.
        use: code to paste that asks the model as it was trained.
    """

    base_model: str
    task: str
    data: str
    options: Mapping[str, Any]
    results: Mapping[str, float]
    validation: str | None
    use: str


def model_card(
    name: str,
    config: GLMConfig,
    tokenizer: GLMTokenizerFast | None,
    parameters: int,
    dtype: torch.dtype,
    released: str | None = None,
    language: str | None = None,
    results: Sequence[Mapping] = (),
    tuning: Tuning | None = None,
) -> str:
    """
    Args:
        name: of the repository, as it is loaded.
        tokenizer: None if the repository has none.
        parameters: how many.
        dtype: of the weights as they are stored.
        released: name of the released checkpoint; None for a model of somebody's own.
        language: "en" or "zh"; None if it is not known.
        results: what was measured, with the fields of `evaluation.record.Measure`.
        tuning: of a model that was fine-tuned.
    """
    fills = fills_blanks(config)
    masks = [mask for mask in BLANKS if fills and tokenizer is not None and mask in tokenizer.masks]
    prompts = {mask: PROMPTS[language or "en"][mask] for mask in masks}
    widget = [
        {"text": text, "example_title": f"{mask}: {BLANKS[mask]}"} for mask, text in prompts.items()
    ]
    metadata = ModelCardData(
        library_name="transformers",
        pipeline_tag="text2text-generation" if fills else "text-classification",
        language=language,
        license="other",
        license_name="as-published-with-the-weights",
        license_link=ORIGINAL if released else None,
        tags=["glm", "custom_code", "arxiv:2103.10360", *(["blank-infilling"] if fills else [])],
        widget=widget if widget and tuning is None else None,
        **evaluated(name, tuning, results),
    )
    use = _use(name, prompts["[MASK]"]) if prompts else _load(name, fills, tokenizer)
    sections = [
        _description(name, config, released, parameters, fills),
        use if tuning is None else tuning_section(tuning),
        _masks(masks) if masks else "",
        _memory(config, dtype, parameters),
        PUBLISHED.get(released or "", ""),
        _measured(results) if results else "",
        END,
    ]
    body = "\n\n".join(section.strip() for section in sections if section)
    return f"---\n{metadata.to_yaml()}\n---\n\n{body}\n"


def tuning_card(name: str, tuning: Tuning) -> str:
    """The card of an adapter."""
    metadata = ModelCardData(
        library_name="peft",
        tags=["glm", "lora", "custom_code", "arxiv:2103.10360"],
        **evaluated(name, tuning, results=()),
    )
    return f"""---
{metadata.to_yaml()}
---

# {name}

An adapter of `{tuning.base_model}`, a GLM ([General Language Model]({PAPER})).

{tuning_section(tuning)}
"""


def evaluated(name: str, tuning: Tuning | None, results: Sequence[Mapping]) -> dict[str, Any]:
    """Fields of `ModelCardData`; the Hub shows the results, its `model-index`."""
    measured = [_result(measure) for measure in results]
    if tuning is not None:
        measured += [
            EvalResult(
                task_type="text2text-generation",
                task_name=tuning.task,
                dataset_type=tuning.validation or tuning.data,
                dataset_name=tuning.validation or tuning.data,
                metric_type=metric,
                metric_name=metric,
                metric_value=round(value, 2),
            )
            for metric, value in tuning.results.items()
        ]
    return {
        "base_model": tuning.base_model if tuning is not None else None,
        "model_name": name.rpartition("/")[2] if measured else None,
        "eval_results": measured or None,
    }


def tuning_section(tuning: Tuning) -> str:
    """How a fine-tuned model is asked, what it was made of, and what it reached."""
    options = "\n".join(f"| {option} | {value} |" for option, value in tuning.options.items())
    reached = f"On the validation data, {tuning.validation}:"
    values = "\n".join(f"| {metric} | {value:.2f} |" for metric, value in tuning.results.items())
    results = f"{reached}\n\n| metric | percent |\n|---|---:|\n{values}"
    return f"""## How to use

```python
{tuning.use.strip()}
```

`trust_remote_code=True` runs the Python files of the repository; read them, and pin a `revision`.

## Training

Fine-tuned from `{tuning.base_model}` for the task `{tuning.task}`, on {tuning.data}.

{results if tuning.results else "It was not evaluated: there was no validation data."}

| option | value |
|---|---|
{options}"""


def _description(
    name: str, config: GLMConfig, released: str | None, parameters: int, fills: bool
) -> str:
    purpose = "fills blanks in texts" if fills else f"sorts texts into {config.num_labels} classes"
    origin = f"It was converted from the released checkpoint [{released}]({ORIGINAL}).\n"
    return f"""# {name.rpartition("/")[2]}

A GLM ([General Language Model]({PAPER}), Du et al., ACL 2022) with {count(parameters)} parameters
that {purpose}. GLM is pretrained by autoregressive blank infilling: it reads the text around a
blank in both directions and writes the answer from left to right.
{origin if released else ""}
{config.num_layers} layers, hidden size {config.hidden_size}, {config.num_attention_heads} \
attention heads, texts of up to {config.max_sequence_length} tokens."""


def _use(name: str, prompt: str) -> str:
    """Code to paste; it runs code of the repository, which is why the library asks for trust."""
    return f"""## How to use

```python
from transformers import pipeline

fill = pipeline("text2text-generation", model="{name}", trust_remote_code=True)
print(fill("{prompt}")[0]["filled_text"])
```

Or step by step; several texts with several blanks each are filled in one call:

```python
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{name}", trust_remote_code=True)
model = AutoModelForSeq2SeqLM.from_pretrained("{name}", trust_remote_code=True, dtype="auto").eval()
texts = ["{prompt}"]
outputs = model.generate(**tokenizer(texts, padding=True, return_tensors="pt"), max_new_tokens=64)
print(tokenizer.decode_pieces(outputs))
```

`trust_remote_code=True` runs the Python files of this repository; read them, and pin a `revision`.
They run on Transformers 4.57 and 5. On Inference Endpoints, `handler.py` answers requests; the
serverless service does not run custom code."""


def _load(name: str, fills: bool, tokenizer: GLMTokenizerFast | None) -> str:
    kind = "AutoModelForSeq2SeqLM" if fills else "AutoModelForSequenceClassification"
    missing = "This repository has no tokenizer; the network takes ids."
    return f"""## How to use

```python
from transformers import {kind}

model = {kind}.from_pretrained("{name}", trust_remote_code=True, dtype="auto").eval()
```

{missing if tokenizer is None else ""}"""


def _masks(masks: list[str]) -> str:
    rows = "\n".join(f"| `{mask}` | {BLANKS[mask]} |" for mask in masks)
    others = " and ".join(f"`{mask}`" for mask in BLANKS if mask not in masks)
    note = (
        f"It was not trained with {others}, which are plain text to it; a prompt is continued by "
        "`[MASK]` at its end."
    )
    return f"## Masks\n\n| mask | stands for |\n|---|---|\n{rows}\n\n{note if others else ''}"


def _result(measure: Mapping) -> EvalResult:
    """An entry of the card's `model-index`, which the Hub shows beside the card."""
    return EvalResult(
        task_type="text2text-generation",
        dataset_type=measure["task"],  # the library makes one entry of what has the same type
        dataset_name=measure["task"],
        metric_type=measure["metric"],
        metric_value=round(measure["value"], 4),
    )


def _measured(results: Sequence[Mapping]) -> str:
    rows = ""
    for measure in results:
        error = "" if measure["error"] is None else f"{measure['error']:.4f}"
        row = [
            measure["task"],
            measure["metric"],
            f"{measure['value']:.4f}",
            error,
            f"{measure['count']:,} {measure['of']}",
        ]
        rows += f"\n| {' | '.join(row)} |"
    return f"""## Evaluation

| data | metric | value | standard error | of |
|---|---|---:|---:|---:|{rows}"""


def _memory(config: GLMConfig, dtype: torch.dtype, parameters: int) -> str:
    # Keys and values of one text.
    cache = 2 * config.num_layers * config.hidden_size * config.max_sequence_length
    rows = ""
    for kind in (torch.float32, torch.float16, torch.bfloat16):
        label = str(kind).removeprefix("torch.") + (" (as stored)" if kind == dtype else "")
        weights, keys = size(parameters * kind.itemsize), size(cache * kind.itemsize)
        rows += f"\n| {label} | {weights} | {keys} |"
    return f"""## Size and memory

{count(parameters)} parameters ({parameters:,}).

| dtype | weights | cache of one text of {config.max_sequence_length} tokens |
|---|---:|---:|{rows}"""


def count(number: int) -> str:
    """A number of parameters as people say it: 110M, 1.9B."""
    if number >= 1e9:
        return f"{number / 1e9:.1f}B"
    return f"{number / 1e6:.0f}M" if number >= 1e7 else f"{number / 1e6:.2g}M"


def size(number: int) -> str:
    """A number of bytes."""
    unit, name = (1e9, "GB") if number >= 1e9 else (1e6, "MB") if number >= 1e6 else (1e3, "kB")
    return f"{number / unit:.1f} {name}"
