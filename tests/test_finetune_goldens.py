"""Fine-tuning on answers: the original's ids, positions, masks and losses, from raw examples."""

import json

import pytest
import torch
from conftest import needs_full_reference
from safetensors.torch import load_file

from glm_transformers import GLMTokenizerFast
from glm_transformers.training.cloze import Choices
from glm_transformers.training.options import Finetuning
from glm_transformers.training.own_tasks import read_task
from glm_transformers.training.seq2seq import Answers

pytestmark = needs_full_reference("it has the fine-tuning formats of three tokenizers")

CHECKPOINTS = ["tiny-gpt2-fp16", "tiny-bert-fp16", "tiny-chinese-10b-fp16"]
# One is learnt from texts whose blanks are drawn: these are the golden's draws.
DRAWN = {
    "bert.blank.train.0": {
        "source": "The quick [MASK] fox jumps [MASK] lazy dog near the river bank.",
        "answers": ["brown", "over the"],
    }
}


def read_cases(reference, checkpoint: str) -> list[dict]:
    cases = json.loads((reference / "goldens/seq2seq_formats.json").read_text())
    return [case for case in cases if case["checkpoint"] == checkpoint]


def recipe_of(case: dict, tokenizer) -> Answers:
    """The recipe that a user would have asked for; padding that is hidden is ours by default."""
    options = Finetuning(
        case["task"],
        "data",
        "output",
        max_length=case["src_seq_length"],
        max_target_length=case["tgt_seq_length"],
        attend_padding=not case["mask_pad_token"],
    )
    return Answers(read_task(case["task"]), options, tokenizer)


def example_of(case: dict) -> dict:
    example = {**case["example"], **case["example"].get("meta", {})}
    return {**example, **DRAWN.get(case["id"], {})}


@pytest.mark.parametrize("checkpoint", CHECKPOINTS)
def test_batches_are_the_originals(reference, repository, checkpoint):
    """Ids, positions, targets, and who sees whom."""
    tokenizer = GLMTokenizerFast.from_pretrained(repository(checkpoint))
    masks = load_file(reference / "goldens/seq2seq_formats.safetensors")
    cases = [case for case in read_cases(reference, checkpoint) if case["split"] == "train"]
    for case in cases:
        recipe = recipe_of(case, tokenizer)
        collator = recipe.collator()
        batch = collator([recipe.encode(example_of(case))])
        layout = collator.layout(batch["input_ids"], batch["attention_mask"])
        length = layout.length
        context = int(layout.in_context.sum())
        # The original pads targets, too, and puts a padded column between context and targets.
        width = case["src_seq_length"]
        columns = [*range(context), *range(width, width + length - context)]
        said = [
            id if real else -100 for id, real in zip(case["target"], case["loss_mask"], strict=True)
        ]
        places = torch.tensor(case["position_id"])[:, columns]
        assert batch["input_ids"][0].tolist() == [case["text"][k] for k in columns], case["id"]
        assert batch["labels"][0].tolist() == [said[k] for k in columns], case["id"]
        assert batch["attention_mask"].all()
        positions = layout.block_positions(length)[0]
        assert positions[context:].tolist() == places[1, context:].tolist()
        if case["mask_pad_token"]:
            seen = masks[f"{case['id']}.attention_mask"][0][columns][:, columns]
            columns_ = torch.arange(length)
            ours = (columns_ < context) | (columns_ <= columns_[:, None])
            assert torch.equal(seen.bool(), ours), case["id"]
        else:
            assert context == case["attention_mask"], case["id"]
    assert cases


@torch.no_grad()
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("checkpoint", CHECKPOINTS)
def test_losses_are_the_originals(reference, repository, checkpoint, smoothing):
    folder = repository(checkpoint)
    tokenizer = GLMTokenizerFast.from_pretrained(folder)
    cases = [case for case in read_cases(reference, checkpoint) if case["split"] == "train"]
    model = recipe_of(cases[0], tokenizer).load(folder).eval()
    for case in cases:
        recipe = recipe_of(case, tokenizer)
        batch = recipe.collator()([recipe.encode(example_of(case))])
        golden = case[f"loss_label_smoothing_{smoothing}"]
        loss = model(**batch, label_smoothing=smoothing, skip_logits=True).loss
        assert loss.item() == pytest.approx(golden, abs=1e-4), case["id"]


@pytest.mark.parametrize("checkpoint", CHECKPOINTS)
def test_prompts_are_the_originals(reference, repository, checkpoint):
    """What an answer is generated from."""
    tokenizer = GLMTokenizerFast.from_pretrained(repository(checkpoint))
    cases = [case for case in read_cases(reference, checkpoint) if case["split"] == "test"]
    for case in cases:
        if case["task"] == "blank":
            example = {**example_of(case), "answers": ["brown", "over"]}
        else:
            example = example_of(case)
        recipe = recipe_of(case, tokenizer)
        ids = recipe.encode(example)["input_ids"]
        context = ids[: ids.index(tokenizer.sop_token_id)]
        padding = [tokenizer.pad_token_id] * (case["src_seq_length"] - len(context))
        assert context + padding + [tokenizer.sop_token_id] == case["text"], case["id"]
    assert cases


@torch.no_grad()
@pytest.mark.parametrize("checkpoint", CHECKPOINTS)
def test_choices_are_learnt_by_the_originals_scores(reference, repository, checkpoint):
    """The loss is the cross entropy of the scores, and the best score is the prediction."""
    folder = repository(checkpoint)
    tokenizer = GLMTokenizerFast.from_pretrained(folder)
    file = reference / "goldens" / checkpoint / "superglue.json"
    cases = [case for case in json.loads(file.read_text()) if "label_scores" in case]
    assert len(cases) > 2
    model = None
    for case in cases:
        options = Finetuning(
            case["task"].lower(),
            "data",
            "output",
            pattern=case["pattern_id"],
            max_length=case["max_seq_length"],
        )
        recipe = Choices(read_task(options.task), options, tokenizer)
        row = recipe.encode({**case["example"], **case["example"].get("meta", {})})
        model = model or recipe.load(folder).eval()
        label = case["sample"]["label"]
        output = model(**recipe.collator()([{**row, "label": label}]))
        golden = torch.tensor(case["label_scores"])[None]
        loss = torch.nn.functional.cross_entropy(golden, torch.tensor([label])).item()
        assert output.loss.item() == pytest.approx(loss, abs=1e-4), case["task"]
        assert output.logits.argmax().item() == case["prediction"]
        # But for WSC, which is learnt from positive examples alone, and ReCoRD, from each answer.
        if recipe.task.expand is None:
            assert row["label"] == label, case["task"]
