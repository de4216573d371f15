"""Run as a program: load one converted repository as a user does and compare it with the original code's results.

    python goldens.py REFERENCE NAME REPOSITORY

It imports nothing of this project: what it loads is the code inside the repository. The tolerances are those of
single precision arithmetic done in another order: 1e-4 for logits and scores, 5e-5 for hidden states; ids are exact.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import (
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
    """The repository in float32, as the goldens are; ids from the caller where it has no tokenizer."""
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
    cases, tensors = (
        json.loads((folder / "forward.json").read_text())["cases"],
        load_file(folder / "forward.safetensors"),
    )
    columns = tensors.get("logit_columns")
    caches = {}
    for name, case in cases.items():
        golden = {
            key.split(".")[1]: tensor
            for key, tensor in tensors.items()
            if key.startswith(f"{name}.")
        }
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
            close(
                states, golden[f"hidden_{layer}"][:, -length:], f"{name} hidden {layer}", **STATES
            )
        logits = output.logits if "logits" in golden else output.logits[..., columns]
        expected = golden.get("logits", golden.get("logits_cols"))
        if row_copy:  # the [gMASK] row of glm-10b-chinese is a copy, made by the converter
            keep = columns != 50009
            logits, expected = logits[..., keep], expected[..., keep]
        else:
            close(output.logits.logsumexp(-1), golden["logsumexp"], f"{name} logsumexp", **LOGITS)
        close(logits, expected, f"{name} logits", **LOGITS)
    return len(cases)


def check_generation(model, tokenizer, folder: Path, row_copy: bool):
    """All blanks in one call: the tokens of the original's blank-by-blank run, and the logits of each of its steps."""
    cases, tensors = (
        json.loads((folder / "generation.json").read_text())["cases"],
        load_file(folder / "generation.safetensors"),
    )
    columns, config = tensors["logit_columns"], model.config
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
            steps += [
                len(expected) - 1 + i
                for i in range(len(blank["new_tokens"]) + (blank["ended_by"] != "length"))
            ]
            end = config.eos_token_id if blank["ended_by"] == "eos" else config.eop_token_id
            expected += blank["new_tokens"] + [end]
        assert output.sequences[0, len(context) :].tolist() == expected, name
        logits = torch.cat(output.logits)[steps][:, columns]  # (steps, columns)
        golden = tensors[f"{name}.step_logits_cols"][1:]  # the first step is the context alone
        keep = columns != (50009 if row_copy else -1)
        close(logits[:, keep], golden[:, keep], f"{name} steps", **LOGITS)
        if tokenizer is not None:
            pieces = tokenizer.decode_pieces(output.sequences)[0]
            assert len(pieces) == len(case["blanks"]), name
    return len(cases)


def check_multiple_choice(model, folder: Path, row_copy: bool):
    """Log-probability of each choice, over the padded vocabulary."""
    cases = json.loads((folder / "multiple_choice.json").read_text())
    tensors = load_file(folder / "multiple_choice.safetensors")
    for case in cases:
        golden = {
            key.split(".")[1]: tensor
            for key, tensor in tensors.items()
            if key.startswith(f"{case['case']}.")
        }
        logits = model(
            golden["input_ids"], attention_mask=golden["sep"], position_ids=golden["position_ids"]
        ).logits
        if row_copy:  # the copied row takes its share of every probability; without it the original's scores are back
            logits = logits[..., torch.arange(logits.shape[-1]) != 50009]
            extra = torch.nn.functional.linear(
                model.glm(
                    golden["input_ids"], golden["sep"], golden["position_ids"]
                ).last_hidden_state,
                original_row(folder, 50009)[None],
            )
            logits = torch.cat([logits[..., :50009], extra, logits[..., 50009:]], dim=-1)
        log_probs = logits.log_softmax(-1).gather(-1, golden["target_ids"][..., None])[..., 0]
        scores = (log_probs * golden["logit_mask"]).sum(-1)
        close(scores, golden["choice_logprob"], case["case"], **LOGITS)
        assert int(scores.argmax()) == case["prediction"]
    return len(cases)


def original_row(folder: Path, row: int) -> torch.Tensor:
    """A row of the word embedding before the converter's copy: read from the checkpoint."""
    (file,) = (folder.parents[1] / "checkpoints" / folder.name).glob("*/mp_rank_00_model_states.pt")
    return torch.load(file, weights_only=False)["module"]["word_embeddings.weight"][row].float()


def check_wrappers(name: str, repository: Path, folder: Path):
    """The pooled classifier in its three forms, the one-class head over choices, the cloze heads."""
    golden = load_file(folder / "wrappers.safetensors")
    if name == "tiny-classifier":
        for pool_token in ("cls", "start", "pad"):
            model = load(
                repository,
                AutoModelForSequenceClassification,
                pool_token=pool_token,
                problem_type="single_label_classification",
            )
            output = model(
                golden["classifier.input_ids"],
                attention_mask=golden[f"classifier.{pool_token}.sep"],
                position_ids=golden["classifier.position_ids"],
                labels=golden["classifier.labels"],
            )
            close(output.logits, golden[f"classifier.{pool_token}.logits"], pool_token, **LOGITS)
            if pool_token == "cls":
                close(output.loss, golden["classifier.loss"][0], "loss", **LOGITS)
        return 3
    if name == "tiny-multichoice-head":
        model = load(repository, AutoModelForSequenceClassification, pool_token="start")
        logits = model(
            golden["multichoice.input_ids"].flatten(0, 1),
            attention_mask=golden["multichoice.sep"].flatten(),
            position_ids=golden["multichoice.position_ids"].flatten(0, 1),
        ).logits
        close(logits.view(2, 3), golden["multichoice.logits"], "choices", **LOGITS)
        return 1
    model = load(repository)
    if name == "tiny-cloze":
        logits = model(
            golden["cloze.input_ids"].flatten(0, 1),
            attention_mask=golden["cloze.sep"].flatten(),
            position_ids=golden["cloze.position_ids"].flatten(0, 1),
        ).logits
        log_probs = logits.log_softmax(-1).gather(
            -1, golden["cloze.target_ids"].flatten(0, 1)[..., None]
        )[..., 0]
        scores = (log_probs * golden["cloze.logit_mask"].flatten(0, 1)).sum(-1).view(2, 3)
        close(scores, golden["cloze.choice_logprob"], name, **LOGITS)
        return 1
    # tiny-cloze-fast: the context is encoded once, each choice reads it from the cache up to its own length
    context = golden["cloze_fast.input_ids"].repeat_interleave(3, 0)
    lengths = golden["cloze_fast.dec_sep"].flatten()
    cache = model(
        context,
        attention_mask=golden["cloze_fast.sep"].repeat_interleave(3),
        position_ids=golden["cloze_fast.position_ids"].repeat_interleave(3, 0),
    ).past_key_values
    answers = golden["cloze_fast.dec_input_ids"].flatten(0, 1)
    visible = torch.cat(
        [
            torch.arange(context.shape[1]) < lengths[:, None],
            torch.ones_like(answers, dtype=torch.bool),
        ],
        dim=1,
    )
    logits = model(
        answers,
        attention_mask=visible,
        position_ids=golden["cloze_fast.dec_position_ids"].flatten(0, 1),
        past_key_values=cache,
    ).logits
    log_probs = logits.log_softmax(-1).gather(
        -1, golden["cloze_fast.dec_target_ids"].flatten(0, 1)[..., None]
    )[..., 0]
    scores = (log_probs * golden["cloze_fast.dec_logit_mask"].flatten(0, 1)).sum(-1).view(2, 3)
    close(scores, golden["cloze_fast.choice_logprob"], name, **LOGITS)
    return 1


def check_training_step(repository: Path, folder: Path):
    """Loss over the marked targets, and the gradient of every parameter."""
    golden = load_file(folder / "train_step.safetensors")
    dropouts = dict(embedding_dropout_prob=0.0, attention_dropout_prob=0.0, output_dropout_prob=0.0)
    model = load(repository, **dropouts).train()
    labels = golden["labels"].masked_fill(golden["loss_mask"] == 0, -100)
    model(
        golden["input_ids"],
        attention_mask=golden["sep"],
        position_ids=golden["position_ids"],
        labels=labels,
    ).loss.backward()
    with torch.no_grad():
        loss = model(
            golden["input_ids"],
            attention_mask=golden["sep"],
            position_ids=golden["position_ids"],
            labels=labels,
        ).loss
    close(loss, golden["loss"][0], "loss", atol=0, rtol=1e-5)
    for name, parameter in model.named_parameters():
        close(
            parameter.grad, golden[f"grad.{name.removeprefix('glm.')}"], name, atol=1e-5, rtol=1e-4
        )
    return 1


def main(reference: Path, name: str, repository: Path):
    folder = reference / "goldens" / name
    if name in ("tiny-classifier", "tiny-multichoice-head", "tiny-cloze", "tiny-cloze-fast"):
        with torch.no_grad():
            print(check_wrappers(name, repository, reference / "goldens"), "wrapper results equal")
        return
    tokenizer = None
    if (repository / "tokenizer.json").exists():
        tokenizer = AutoTokenizer.from_pretrained(repository, trust_remote_code=True)
    row_copy = name == "tiny-chinese-10b-fp16"
    for attention in ("eager", "sdpa"):
        model = load(repository, attn_implementation=attention)
        with torch.no_grad():
            print(check_forward(model, folder, row_copy), "forward results equal,", attention)
            print(
                check_generation(model, tokenizer, folder, row_copy),
                "generations equal,",
                attention,
            )
            if (folder / "multiple_choice.json").exists():
                print(
                    check_multiple_choice(model, folder, row_copy),
                    "multiple choices equal,",
                    attention,
                )
    if name == "tiny-fp32":
        with torch.no_grad():
            scaled = load(repository, attention_scale=8.0, attn_implementation="eager")
            print(
                check_forward(scaled, reference / "goldens/tiny-fp32_attnscale8", row_copy),
                "with attention_scale 8",
            )
        check_training_step(repository, folder)
        print("training step equal")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
