"""Run as a program: loads a converted repository as users do; compares it with the original.

    python goldens.py REFERENCE NAME REPOSITORY

REFERENCE is the folder of the golden data, full or small. The program imports nothing of this
project: what it loads is the code inside the repository. The tolerances are those of single
precision arithmetic done in another order: 1e-4 for logits and scores, 5e-5 for hidden states,
gradients and their norms 1e-4 of their size; ids are exact.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForMultipleChoice,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DynamicCache,
)

LOGITS, STATES = dict(atol=1e-4, rtol=0), dict(atol=5e-5, rtol=0)

# The ids that golden checkpoints without a tokenizer use.
PLAIN_IDS = dict(
    sop_token_id=601,
    eop_token_id=602,
    mask_token_ids=[604, 607, 608],
    pad_token_id=600,
    eos_token_id=600,
)


def load(repository: Path, auto_class=AutoModelForSeq2SeqLM, **options):
    """The repository in float32, as the goldens are; with ids where it has no tokenizer."""
    if not (repository / "tokenizer.json").exists():
        options = {**PLAIN_IDS, **options}
    model = auto_class.from_pretrained(
        repository, trust_remote_code=True, dtype=torch.float32, **options
    ).eval()
    assert type(model).__module__.startswith("transformers_modules"), (
        "the repository's own code must be what is loaded"
    )
    return model


def close(actual, expected, what, atol, rtol):
    torch.testing.assert_close(
        actual, expected, atol=atol, rtol=rtol, msg=lambda message: f"{what}: {message}"
    )


def check_forward(model, folder: Path, row_copy: bool):
    """Logits, hidden states, explicit masks, context lengths, and steps on a filled cache."""
    cases = json.loads((folder / "forward.json").read_text())["cases"]
    tensors = load_file(folder / "forward.safetensors")
    columns = tensors.get("logit_columns")
    caches = {}
    for name, case in cases.items():
        golden = of_case(tensors, name)
        mask = golden["attention_mask"]
        cache = DynamicCache(config=model.config)
        if case["mems_from"]:
            for layer, (keys, values) in enumerate(caches[case["mems_from"]]):
                cache.update(keys, values, layer)
        output = model(
            golden["input_ids"],
            attention_mask=mask.bool() if mask.dim() == 4 else mask,
            position_ids=golden["position_ids"],
            past_key_values=cache,
            output_hidden_states=True,
        )
        caches[name] = [
            (layer.keys.clone(), layer.values.clone()) for layer in output.past_key_values.layers
        ]
        length = golden["input_ids"].shape[1]
        for layer, states in enumerate(output.hidden_states):
            expected = golden[f"hidden_{layer}"][:, -length:]
            features = expected.shape[-1]  # all of them, or the first ones
            close(states[..., :features], expected, f"{name} hidden {layer}", **STATES)
        logits = output.logits if "logits" in golden else output.logits[..., columns]
        expected = golden.get("logits", golden.get("logits_cols"))
        if row_copy:  # the [gMASK] row of glm-10b-chinese is a copy, made by the converter
            keep = columns != 50009
            logits, expected = logits[..., keep], expected[..., keep]
        else:
            close(output.logits.logsumexp(-1), golden["logsumexp"], f"{name} logsumexp", **LOGITS)
        close(logits, expected, f"{name} logits", **LOGITS)
    return len(cases)


def of_case(tensors: dict, case: str) -> dict:
    """The tensors of one case, by the names of their fields."""
    prefix = f"{case}."
    return {
        key.removeprefix(prefix): tensor
        for key, tensor in tensors.items()
        if key.startswith(prefix)
    }


def check_generation(model, tokenizer, folder: Path, row_copy: bool):
    """All blanks in one call: tokens and logits of each step of the original's run by blanks."""
    cases = json.loads((folder / "generation.json").read_text())["cases"]
    tensors = load_file(folder / "generation.safetensors")
    columns, config = tensors["logit_columns"], model.config
    keep = columns != 50009 if row_copy else torch.ones_like(columns, dtype=torch.bool)
    for name, case in cases.items():
        context = case["context_ids"]
        if row_copy:
            context = [50009 if id == 50007 else id for id in context]
        if tokenizer is not None:
            assert tokenizer(case["prompt_as_encoded"]).input_ids == context, name
        limit = case["out_seq_length"]
        output = model.generate(
            torch.tensor([context]),
            attention_mask=torch.ones(1, len(context), dtype=torch.long),
            max_new_tokens=(limit + 1) * len(case["blanks"]),
            max_piece_length=limit,
            eos_token_id=[config.eop_token_id, config.eos_token_id],
            pad_token_id=config.pad_token_id,
            output_logits=True,
            return_dict_in_generate=True,
        )
        expected, steps = [config.sop_token_id], []
        for blank in case["blanks"]:
            # A piece that reaches the limit has one step more here: the one that puts its end.
            count = len(blank["new_tokens"]) + (blank["ended_by"] != "length")
            steps += [len(expected) - 1 + i for i in range(count)]
            end = config.eos_token_id if blank["ended_by"] == "eos" else config.eop_token_id
            expected += [*blank["new_tokens"], end]
        assert output.sequences[0, len(context) :].tolist() == expected, name
        logits = torch.cat(output.logits)[steps][:, columns]  # (steps, columns)
        golden = tensors[f"{name}.step_logits_cols"][1:]  # the first step is the context alone
        close(logits[:, keep], golden[:, keep], f"{name} steps", **LOGITS)
        if tokenizer is not None:
            pieces = tokenizer.decode_pieces(output.sequences)[0]
            assert len(pieces) == len(case["blanks"]), name
    return len(cases)


def score_choices(logits, target_ids, logit_mask):
    """(C,): log-probability of each choice, of logits (C, T, V), targets and their mask (C, T)."""
    log_probs = logits.log_softmax(-1).gather(-1, target_ids[..., None])[..., 0]
    return (log_probs * logit_mask).sum(-1)


def check_multiple_choice(model, folder: Path, row_copy: bool):
    """Log-probability of each choice, over the padded vocabulary."""
    cases = json.loads((folder / "multiple_choice.json").read_text())
    tensors = load_file(folder / "multiple_choice.safetensors")
    for case in cases:
        golden = of_case(tensors, case["case"])
        inputs = (golden["input_ids"], golden["sep"], golden["position_ids"])
        logits = model(*inputs).logits
        if row_copy:
            # The copied row takes its share of every probability; with the original's row in its
            # place the original's scores are back.
            states = model.glm(*inputs).last_hidden_state
            logits[..., 50009] = states @ original_row(folder, 50009)
        scores = score_choices(logits, golden["target_ids"], golden["logit_mask"])
        close(scores, golden["choice_logprob"], case["case"], **LOGITS)
        assert int(scores.argmax()) == case["prediction"]
    return len(cases)


def original_row(folder: Path, row: int) -> torch.Tensor:
    """A row of the word embedding before the converter's copy: read from the checkpoint."""
    (file,) = (folder.parents[1] / "checkpoints" / folder.name).glob("*/mp_rank_00_model_states.pt")
    return torch.load(file, weights_only=False)["module"]["word_embeddings.weight"][row].float()


# --- Checkpoints with a head of their own -------------------------------------------------------


def check_classifier(repository: Path, golden: dict):
    """The pooled classifier in its three forms."""
    for pool_token in ("cls", "start", "pad"):
        model = load(
            repository,
            AutoModelForSequenceClassification,
            pool_token=pool_token,
            problem_type="single_label_classification",
        )
        output = model(
            golden["input_ids"],
            attention_mask=golden[f"{pool_token}.sep"],
            position_ids=golden["position_ids"],
            labels=golden["labels"],
        )
        close(output.logits, golden[f"{pool_token}.logits"], pool_token, **LOGITS)
        if pool_token == "cls":
            close(output.loss, golden["loss"][0], "loss", **LOGITS)


def check_one_class_head(repository: Path, golden: dict):
    """The pooled head that scores each choice alone: 2 texts with 3 choices each."""
    model = load(repository, AutoModelForSequenceClassification, pool_token="start")
    logits = model(
        golden["input_ids"],  # (2, 3, T)
        attention_mask=golden["sep"],
        position_ids=golden["position_ids"],
    ).logits
    close(logits, golden["logits"], "choices", **LOGITS)


def check_cloze(repository: Path, golden: dict):
    """Choices of several tokens, each behind its own context, and behind a copy of one."""
    inputs = dict(
        input_ids=golden["input_ids"],  # (2, 3, T): 2 texts with 3 choices each
        attention_mask=golden["sep"],
        position_ids=golden["position_ids"],
    )
    targets = golden["target_ids"].masked_fill(golden["logit_mask"] == 0, -100)
    rows = {name: tensor.flatten(0, 1) for name, tensor in inputs.items()}
    scores = score_choices(
        load(repository)(**rows).logits,
        golden["target_ids"].flatten(0, 1),
        golden["logit_mask"].flatten(0, 1),
    )
    close(scores.view(2, 3), golden["choice_logprob"], "scores of logits", **LOGITS)
    chooser = load(repository, AutoModelForMultipleChoice)
    scores = chooser(**inputs, choice_ids=targets).logits
    close(scores, golden["choice_logprob"], "rows of choices", **LOGITS)
    columns = [row.nonzero()[:, 0] for row in golden["logit_mask"].flatten(0, 1)]
    said = zip(golden["target_ids"].flatten(0, 1), columns, strict=True)
    scores = chooser(
        **rows,
        choice_ids=[[row[column]] for row, column in said],
        choice_indices=[[column] for column in columns],
    ).logits
    close(scores.view(2, 3), golden["choice_logprob"], "lists of choices", **LOGITS)


def check_fast_cloze(repository: Path, golden: dict):
    """The context is read once, by each choice up to a length of its own.

    Behind its cache as the original does it, and in one row with its choices.
    """
    model = load(repository)
    context = golden["input_ids"].repeat_interleave(3, 0)
    lengths = golden["dec_sep"].flatten()
    cache = model(
        context,
        attention_mask=golden["sep"].repeat_interleave(3),
        position_ids=golden["position_ids"].repeat_interleave(3, 0),
    ).past_key_values
    answers = golden["dec_input_ids"].flatten(0, 1)
    in_context = torch.arange(context.shape[1]) < lengths[:, None]
    in_answer = torch.ones_like(answers, dtype=torch.bool)
    logits = model(
        answers,
        attention_mask=torch.cat([in_context, in_answer], dim=1),
        position_ids=golden["dec_position_ids"].flatten(0, 1),
        past_key_values=cache,
    ).logits
    scores = score_choices(
        logits, golden["dec_target_ids"].flatten(0, 1), golden["dec_logit_mask"].flatten(0, 1)
    )
    close(scores.view(2, 3), golden["choice_logprob"], "scores", **LOGITS)
    scores = load(repository, AutoModelForMultipleChoice)(**packed(golden)).logits
    close(scores, golden["choice_logprob"], "packed scores", **LOGITS)


def packed(golden: dict) -> dict[str, torch.Tensor]:
    """2 texts of 18 tokens, each with 3 choices of 5 tokens, in rows of 18 + 15."""
    places = golden["dec_position_ids"].transpose(1, 2).flatten(2)  # (2, 3, 2, 5) -> (2, 2, 15)
    visible = torch.zeros(2, 33, 33, dtype=torch.bool)
    for text in range(2):
        visible[text, :18, : golden["sep"][text]] = True
        visible[text, :18, :18] |= torch.ones(18, 18).tril().bool()
        for choice in range(3):
            own = slice(18 + 5 * choice, 23 + 5 * choice)
            visible[text, own, : golden["dec_sep"][text, choice]] = True
            visible[text, own, own] = torch.ones(5, 5).tril()
    said = golden["dec_target_ids"].masked_fill(golden["dec_logit_mask"] == 0, -100)
    return dict(
        input_ids=torch.cat([golden["input_ids"], golden["dec_input_ids"].flatten(1)], dim=1),
        position_ids=torch.cat([golden["position_ids"], places], dim=2),
        attention_mask=visible[:, None],
        choice_ids=said,
        choice_indices=torch.arange(18, 33).view(3, 5).expand_as(said),
    )


# Of each checkpoint: where its numbers are in wrappers.safetensors, and what compares them.
WRAPPERS = {
    "tiny-classifier": ("classifier", check_classifier),
    "tiny-multichoice-head": ("multichoice", check_one_class_head),
    "tiny-cloze": ("cloze", check_cloze),
    "tiny-cloze-fast": ("cloze_fast", check_fast_cloze),
}


# --- Training -----------------------------------------------------------------------------------


def check_training_step(repository: Path, folder: Path):
    """Loss over the marked targets, and the gradient of every parameter."""
    golden = load_file(folder / "train_step.safetensors")
    norms = json.loads((folder / "train_step.json").read_text())["grad_norms"]
    dropouts = dict(embedding_dropout_prob=0.0, attention_dropout_prob=0.0, output_dropout_prob=0.0)
    model = load(repository, **dropouts).train()
    labels = golden["labels"].masked_fill(golden["loss_mask"] == 0, -100)
    loss = model(
        golden["input_ids"],
        attention_mask=golden["sep"],
        position_ids=golden["position_ids"],
        labels=labels,
    ).loss
    loss.backward()
    close(loss.detach(), golden["loss"][0], "loss", atol=0, rtol=1e-5)
    for name, parameter in model.named_parameters():
        name = name.removeprefix("glm.")
        expected = golden[f"grad.{name}"]  # all of it, or its first rows and columns
        part = parameter.grad[tuple(slice(size) for size in expected.shape)]
        close(part, expected, name, atol=1e-5, rtol=1e-4)
        norm = torch.tensor(norms[name])
        close(parameter.grad.norm(), norm, f"norm of {name}", atol=1e-5, rtol=1e-4)


# --- The program --------------------------------------------------------------------------------


def main(reference: Path, name: str, repository: Path):
    """Print a line for each kind of result that was compared."""
    goldens = reference / "goldens"
    if name in WRAPPERS:
        prefix, check = WRAPPERS[name]
        with torch.no_grad():
            check(repository, of_case(load_file(goldens / "wrappers.safetensors"), prefix))
        print(prefix, "equal")
        return
    for attention in ("eager", "sdpa"):
        check_network(name, repository, goldens, attention)
    if (goldens / name / "train_step.json").exists():
        check_training_step(repository, goldens / name)
        print("train_step equal")


@torch.no_grad()
def check_network(name: str, repository: Path, goldens: Path, attention: str):
    """What the folder of the checkpoint holds: the small golden set has less than the full one."""
    folder, scaled = goldens / name, goldens / f"{name}_attnscale8"
    row_copy = name == "tiny-chinese-10b-fp16"
    tokenizer = None
    if (repository / "tokenizer.json").exists():
        tokenizer = AutoTokenizer.from_pretrained(repository, trust_remote_code=True)
    model = load(repository, attn_implementation=attention)
    if (folder / "forward.json").exists():
        print(check_forward(model, folder, row_copy), "forward equal,", attention)
    if (folder / "generation.json").exists():
        print(check_generation(model, tokenizer, folder, row_copy), "generation equal,", attention)
    if (folder / "multiple_choice.json").exists():
        print(check_multiple_choice(model, folder, row_copy), "multiple_choice equal,", attention)
    if scaled.exists():
        model = load(repository, attn_implementation=attention, attention_scale=8.0)
        print(check_forward(model, scaled, row_copy), "attention_scale equal,", attention)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
