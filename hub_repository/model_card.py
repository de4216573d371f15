"""The README.md of a repository, which the Hub shows as its model card."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from huggingface_hub import EvalResult, ModelCardData

from ..configuration_glm import GLMConfig
from ..tokenization_glm import GLMTokenizerFast
from .config import fills_blanks
from .origin import AS_PUBLISHED, Origin

PAPER = "https://aclanthology.org/2022.acl-long.26"
# The Hub lists models by a task of its own list, which GLM's pipeline is no longer on.
HUB_TASK = "text-generation"
HUB_TASK_OF_CLASSIFIERS = "text-classification"
PIPELINE_TASK = "text2text-generation"
TAGS = ("glm", "custom_code", "arxiv:2103.10360")

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

FILLING = """It fills blanks, continues texts, and scores given answers; most of all it is a base to
fine-tune from. It was not taught to follow instructions or to talk with people. An answer is what
a text would likely say there, which is often not what is true: check what matters, and let it
decide nothing about a person."""
CLASSIFYING = """It sorts texts like those it was trained on. Its scores are no probabilities that
can be trusted without checking them on texts of your own; let it decide nothing about a person."""
UNKNOWN_DATA = """A checkpoint does not say what it was trained on. Whoever publishes this model
writes it here: which texts, from where, and what was left out."""

CITATION = """## Citation

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
        hub_task: what the Hub calls what it does.
        options: with which it was trained.
        results: each metric of the validation data, in percent.
        validation: what these data are called.
        use: code to paste that asks the model as it was trained.
    """

    base_model: str
    task: str
    data: str
    hub_task: str
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
    origin: Origin | None = None,
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
        origin: None for a model of somebody's own.
        language: "en" or "zh"; None if it is not known.
        results: what was measured, with the fields of `evaluation.record.Measure`.
        tuning: of a model that was fine-tuned.
    """
    fills = fills_blanks(config)
    prompts = _prompts(tokenizer, origin, language) if fills else {}
    license = origin.license if origin else AS_PUBLISHED
    metadata = ModelCardData(
        library_name="transformers",
        pipeline_tag=HUB_TASK if fills else HUB_TASK_OF_CLASSIFIERS,
        language=language,
        tags=[*TAGS, *(["blank-infilling", PIPELINE_TASK] if fills else [])],
        widget=_widget(prompts) if prompts and tuning is None else None,
        **license,
        **evaluated(name, tuning, results),
        **based(tuning, "finetune"),
    )
    if tuning is None:
        use = _use(name, prompts["[MASK]"]) if prompts else _load(name, fills, tokenizer)
        use += f"\n\n{_on_a_gpu(name, fills)}"
        data = f"## Training data\n\n{origin.data if origin else UNKNOWN_DATA}"
    else:
        use, data = tuning_section(tuning), ""  # it says both
    sections = [
        _description(name, config, origin, parameters, fills),
        use,
        _masks(list(prompts)) if prompts else "",
        _limits(config, origin, fills),
        data,
        _memory(config, dtype, parameters),
        origin.published if origin else "",
        _measured(results) if results else "",
        _license(license),
        CITATION,
    ]
    body = "\n\n".join(section.strip() for section in sections if section)
    return f"---\n{metadata.to_yaml()}\n---\n\n{body}\n"


def tuning_card(name: str, tuning: Tuning) -> str:
    """The card of an adapter."""
    metadata = ModelCardData(
        library_name="peft",
        pipeline_tag=tuning.hub_task,
        tags=[*TAGS, "lora"],
        **evaluated(name, tuning, results=()),
        **based(tuning, "adapter"),
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
                task_type=tuning.hub_task,
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
        "model_name": name.rpartition("/")[2] if measured else None,
        "eval_results": measured or None,
    }


def based(tuning: Tuning | None, relation: str) -> dict[str, Any]:
    """Fields of `ModelCardData`; the Hub shows them as the model's family tree."""
    if tuning is None:
        return {}
    return {"base_model": tuning.base_model, "base_model_relation": relation}


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


def _prompts(
    tokenizer: GLMTokenizerFast | None,
    origin: Origin | None,
    language: str | None,
) -> dict[str, str]:
    """A text for each mask that the model knows."""
    if tokenizer is None:
        return {}
    texts = origin.prompts if origin and origin.prompts else PROMPTS[language or "en"]
    return {mask: texts[mask] for mask in BLANKS if mask in tokenizer.masks}


def _widget(prompts: Mapping[str, str]) -> list[dict[str, str]]:
    """The examples that the Hub shows beside the card."""
    return [
        {"text": text, "example_title": f"{mask}: {BLANKS[mask]}"} for mask, text in prompts.items()
    ]


def _description(
    name: str,
    config: GLMConfig,
    origin: Origin | None,
    parameters: int,
    fills: bool,
) -> str:
    purpose = "fills blanks in texts" if fills else f"sorts texts into {config.num_labels} classes"
    return f"""# {name.rpartition("/")[2]}

A GLM ([General Language Model]({PAPER}), Du et al., ACL 2022) with {count(parameters)} parameters
that {purpose}. GLM is pretrained by autoregressive blank infilling: it reads the text around a
blank in both directions and writes the answer from left to right.
{origin.description if origin else ""}

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
    kind = auto_class(fills)
    missing = "This repository has no tokenizer; the network takes ids."
    return f"""## How to use

```python
from transformers import {kind}

model = {kind}.from_pretrained("{name}", trust_remote_code=True, dtype="auto").eval()
```

{missing if tokenizer is None else ""}"""


def _on_a_gpu(name: str, fills: bool) -> str:
    kind = auto_class(fills)
    return f"""## On a GPU

```python
import torch
from transformers import {kind}

model = {kind}.from_pretrained(
    "{name}",
    trust_remote_code=True,
    dtype=torch.bfloat16,
    device_map="auto",
).eval()
```

`device_map="auto"` needs `accelerate`, and shares a model that is too large for one device among
all of them. Move inputs to where the model is: `inputs.to(model.device)`."""


def auto_class(fills: bool) -> str:
    return "AutoModelForSeq2SeqLM" if fills else "AutoModelForSequenceClassification"


def _limits(config: GLMConfig, origin: Origin | None, fills: bool) -> str:
    use = FILLING if fills else CLASSIFYING
    return f"""## What it is for, and what not

{use}

It takes texts of up to {config.max_sequence_length} tokens, answers included. What it learnt ends
with its training data, and with them it learnt what they say of groups of people: expect
prejudices, and look for them in your own use before others are affected. \
{origin.limits if origin else ""}"""


def _license(license: Mapping[str, Any]) -> str:
    if license["license"] == "apache-2.0":
        said = "Weights and Python files are Apache-2.0."
    else:
        said = "The weights keep the licence under which they were published; the Python files "
        said += "here are Apache-2.0."
    return f"## Licence\n\n{said}"


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
        task_type=HUB_TASK,
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
