"""Code for a model card: how a fine-tuned model is asked, in the form in which it was trained."""

from collections.abc import Iterable
from typing import Any

from ..tokenization_glm import GLMTokenizerFast
from .cloze import Choices, Pooled
from .patterns import Cut, Part
from .seq2seq import Answers
from .tasks import prepared
from .templates import Example, parse


def code_to_paste(name: str, base: str, recipe: Answers | Choices, example: Example) -> str:
    """Code that loads the model and asks it; what is asked is the reader's, so no data leak.

    Args:
        name: of the repository, or of the adapter.
        base: of the repository of the model that an adapter belongs to.
        example: of the data: it tells which fields hold lists.
    """
    pattern = recipe.pattern
    parts = [*parts_of(pattern.context), *pattern.second]
    asked = parts if isinstance(recipe, Answers) else [*parts, *pattern.answers]
    return "\n".join(
        [
            *loading(name, base, recipe),
            "",
            *assignments(asked, recipe, example),
            f"text = {formatted(as_written(part, recipe.tokenizer) for part in parts)}",
            *asking(recipe, example),
        ]
    )


def loading(name: str, base: str, recipe: Answers | Choices) -> list[str]:
    """Lines that load tokenizer and model."""
    auto = recipe.auto_class
    adapted = recipe.options.lora
    source = base if adapted else name
    head = ""
    if adapted and isinstance(recipe, Pooled):
        head = f", num_labels={recipe.num_labels}"
    lines = [
        "import torch",
        *(["from peft import PeftModel"] if adapted else []),
        f"from transformers import {auto}, AutoTokenizer",
        "",
        f'tokenizer = AutoTokenizer.from_pretrained("{source}", trust_remote_code=True)',
        f'model = {auto}.from_pretrained("{source}", trust_remote_code=True{head})',
    ]
    if adapted:
        lines.append(f'model = PeftModel.from_pretrained(model, "{name}")')
    return [*lines, "model.eval()"]


def assignments(parts: Iterable[Part], recipe: Answers | Choices, example: Example) -> list[str]:
    """A line for each field that the parts name."""
    example = prepared(recipe.task, example)
    lines: dict[str, str] = {}
    for part in parts:
        for _, field, filters in parse(text_of(part)):
            if field is None or field == "choice":
                continue
            value = '["...", "..."]' if isinstance(example.get(field), list) else '"..."'
            said = f"  # as made by {', '.join(filters)}" if filters else ""
            lines.setdefault(field, f"{field} = {value}{said}")
    return list(lines.values())


def asking(recipe: Answers | Choices, example: Example) -> list[str]:
    """Lines that print what the model says to `text`."""
    if isinstance(recipe, Answers):
        return for_answers(recipe)
    if not isinstance(recipe, Pooled):
        return [
            f"choices = {list_of_choices(recipe, example)}",
            'inputs = tokenizer([text], return_tensors="pt")',
            "inputs = tokenizer.build_inputs_for_multiple_choice(inputs, [choices])",
            "print(choices[model(**inputs).logits[0].argmax()])",
        ]
    if recipe.has_classes:
        return [
            'inputs = tokenizer([text], return_tensors="pt")',
            f"labels = {recipe.class_names}",
            "print(labels[model(**inputs).logits[0].argmax()])",
        ]
    return [
        f"choices = {list_of_choices(recipe, example)}",
        'rows = [text.replace("{choice}", choice) for choice in choices]',
        'inputs = tokenizer(rows, padding=True, return_tensors="pt")',
        "print(choices[model(**inputs).logits[:, 0].argmax()])",
    ]


def for_answers(recipe: Answers) -> list[str]:
    """Lines that print the answers that the model writes."""
    task, options = recipe.task, recipe.options
    lines = ["ids = tokenizer(text).input_ids"]
    if not task.cls:
        lines.append("ids = ids[1:]  # without [CLS]")
    if not task.eos:
        lines.append("ids = ids[:-1]  # without <|endoftext|>")
    if options.attend_padding:
        lines.append(f"ids += [tokenizer.pad_token_id] * ({options.max_length} - len(ids))")
    # A repository has these in its generation_config.json.
    search = recipe.generation if options.lora else {}
    settings = "".join(f", {name}={value}" for name, value in search.items())
    return [
        *lines,
        f"outputs = model.generate(input_ids=torch.tensor([ids]){settings})",
        "print(tokenizer.decode_pieces(outputs))",
    ]


# --- Patterns as Python ---------------------------------------------------------------------------


def parts_of(context: Any) -> list[Part]:
    """A context may be one text."""
    return [context] if isinstance(context, str) else list(context)


def text_of(part: Part) -> str:
    return part.text if isinstance(part, Cut) else part


def as_written(part: Part, tokenizer: GLMTokenizerFast) -> str:
    """A part in a text: of several masks the one that the model knows."""
    text = text_of(part)
    masks = [mask for mask in text.split("|") if mask in tokenizer.masks]
    return masks[0] if masks else text


def formatted(templates: Iterable[str]) -> str:
    """An f-string of templates, without their filters."""
    text = ""
    for template in templates:
        for words, field, _ in parse(template):
            text += words.replace("{", "{{").replace("}", "}}")
            if field == "choice":  # filled in for each choice
                text += "{{choice}}"
            elif field is not None:
                text += f"{{{field}}}"
    prefix = "f" if "{" in text else ""
    return prefix + repr(text)


def list_of_choices(recipe: Choices, example: Example) -> str:
    """A list of f-strings, or one made of a field with a list."""
    example = prepared(recipe.task, example)
    entries = []
    for answer in recipe.pattern.answers:
        names = [field for _, field, _ in parse(answer) if field is not None]
        several = [name for name in names if isinstance(example.get(name), list)]
        entry = formatted([answer])
        entries.append(f"*({entry} for {several[0]} in {several[0]})" if several else entry)
    return f"[{', '.join(entries)}]"
