"""Pretraining: packing; runs that are killed, spread over processes, loaded as a repository."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import long
from datasets import load_dataset
from made import SENTENCES, make_checkpoint, make_parameters, make_vocabulary
from processes import GLM, TWICE, flags, launch_twice
from safetensors.torch import load_file

from glm_transformers import GLMForConditionalGeneration, GLMTokenizerFast
from glm_transformers.conversion import convert_checkpoint
from glm_transformers.training import BlankInfillingCollator, data
from glm_transformers.training.data import load_documents, pack_documents
from glm_transformers.training.options import Pretraining
from glm_transformers.training.pretrain import (
    BlankInfillingTrainer,
    pretrain,
)

LENGTH = 40


@pytest.fixture(scope="module")
def tokenizer(made_repository):
    return GLMTokenizerFast.from_pretrained(made_repository)


@pytest.fixture(scope="module")
def texts() -> list[str]:
    random = np.random.default_rng(0)
    words = " ".join(SENTENCES).replace(".", "").split()
    sentences = [" ".join(random.choice(words, random.integers(3, 7))) + "." for _ in range(200)]
    return [" ".join(random.choice(sentences, random.integers(1, 10))) for _ in range(150)]


@pytest.fixture(scope="module")
def corpus(texts, tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("corpus") / "corpus.txt"
    file.write_text("\n".join(texts) + "\n\n   \n")
    return file


# --- Data ----------------------------------------------------------------------------------------


def test_every_kind_of_source_gives_the_same_documents(texts, corpus, tmp_path):
    lines = load_dataset("text", data_files=str(corpus), split="train")
    lines.to_json(tmp_path / "corpus.jsonl")
    lines.to_parquet(tmp_path / "corpus.parquet")
    for source in (corpus, tmp_path / "corpus.jsonl", tmp_path / "corpus.parquet"):
        for streaming in (False, True):
            documents = [row["text"] for row in load_documents(source, streaming)]
            assert documents[: len(texts)] == texts
    with pytest.raises(ValueError, match="one kind"):
        load_documents(tmp_path)
    (tmp_path / "wrong.jsonl").write_text('{"body": "no text here"}\n')
    with pytest.raises(ValueError, match="body"):
        load_documents(tmp_path / "wrong.jsonl")


@pytest.mark.parametrize("streaming", [False, True])
def test_documents_without_text(tokenizer, streaming, tmp_path):
    texts = ["Ng is an adjunct professor.", None, "  ", "\u3000\t"]
    lines = [{"text": text} for text in texts]
    (tmp_path / "texts.jsonl").write_text("\n".join(map(json.dumps, lines)))
    documents = load_documents(tmp_path / "texts.jsonl", streaming)
    samples = [row["input_ids"] for row in pack_documents(documents, tokenizer, LENGTH)]
    whole = tokenizer(texts[0]).input_ids
    assert samples[0][: len(whole)] == whole and set().union(*samples) == set(whole)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("one_document", [False, True])
def test_packing(corpus, tokenizer, streaming, one_document, tmp_path):
    documents = load_documents(corpus, streaming)
    wanted = None if streaming else 2000
    samples = [
        row["input_ids"]
        for row in pack_documents(documents, tokenizer, LENGTH, wanted, one_document)
    ]
    cls, eos = tokenizer.cls_token_id, tokenizer.eos_token_id
    lines = [line for line in corpus.read_text().splitlines() if line.strip()]
    texts = [tokenizer(line, add_special_tokens=False).input_ids for line in lines]
    written = [f" {' '.join(map(str, text))} " for text in texts]
    total = sum(map(len, texts))
    packed = sum(map(len, samples))
    passes = 1 if streaming else min(10, -(-2000 * LENGTH // total))
    assert passes * total <= packed < passes * total + LENGTH
    kinds = {"whole": 0, "cut": 0, "moved": 0, "one": 0}
    seen = np.zeros(len(texts))
    ends = {id for piece, id in tokenizer.get_vocab().items() if set(piece) & set(".?!;:")}
    for sample in samples:
        assert sample[0] == cls and len(sample) <= LENGTH
        parts = "|".join(" ".join(map(str, sample[1:])).split(f" {eos} {cls} ")).split("|")
        kinds["one"] += len(parts) == 1
        for i, part in enumerate(parts):
            ids = [int(id) for id in part.split()]
            assert cls not in ids and eos not in ids[:-1]  # so what was cut ends its sample
            whole = i < len(parts) - 1 or ids[-1] == eos
            ids = ids[:-1] if ids[-1] == eos else ids
            stretch = f" {' '.join(map(str, ids))} "
            homes = [k for k, text in enumerate(written) if stretch in text]
            assert homes  # every part is a stretch of one document
            if whole:
                assert any(texts[k][-len(ids) :] == ids for k in homes)
                kinds["whole"] += ids in texts
            else:
                kinds["cut"] += ids[-1] in ends
            kinds["moved"] += ids not in [texts[k][: len(ids)] for k in homes]
            seen[homes] += 1
    assert all(kinds.values())
    assert one_document == (kinds["one"] == len(samples))
    # Drawn by length: long documents come more often than short ones.
    lengths = np.array([len(text) for text in texts])
    longer, shorter = lengths > np.median(lengths), lengths < np.median(lengths)
    assert seen[longer].mean() > 1.3 * seen[shorter].mean()


def test_a_document_of_one_token_is_no_text_of_its_own(tokenizer, tmp_path):
    """It is too short for the collator; with others in one text it is fine."""
    (tmp_path / "texts.txt").write_text("Ng is an adjunct professor.\nis\n" * 99)
    (tmp_path / "short.txt").write_text("is\n" * 9)
    documents = load_documents(tmp_path / "texts.txt")
    alone = pack_documents(documents, tokenizer, LENGTH, one_document=True)["input_ids"]
    assert set(map(tuple, alone)) == {tuple(tokenizer("Ng is an adjunct professor.").input_ids)}
    assert min(map(len, pack_documents(documents, tokenizer, LENGTH)["input_ids"])) > 3
    with pytest.raises(ValueError, match="no text"):
        pack_documents(load_documents(tmp_path / "short.txt"), tokenizer, LENGTH, one_document=True)


def test_packing_is_cached_until_its_code_changes(corpus, tokenizer, monkeypatch):
    def pack(tokenizer, seed):
        return pack_documents(load_documents(corpus), tokenizer, LENGTH, wanted=100, seed=seed)

    first = pack(tokenizer, seed=4)["input_ids"]
    assert pack(tokenizer, seed=5)["input_ids"] != first
    monkeypatch.setattr("glm_transformers.training.data.Packing.fit", None)  # cannot pack again
    assert pack(GLMTokenizerFast.from_pretrained(tokenizer.name_or_path), 4)["input_ids"] == first
    monkeypatch.setattr("glm_transformers.training.data.code_digest", lambda: "of other code")
    with pytest.raises(TypeError):  # it packs again
        pack(tokenizer, seed=4)


def test_the_digest_is_of_the_code(monkeypatch, tmp_path):
    before = data.code_digest()
    other = tmp_path / "data.py"
    other.write_text(Path(data.__file__).read_text() + "\n# changed\n")
    monkeypatch.setattr(data, "__file__", str(other))
    assert data.code_digest() != before


# --- Runs ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scratch(made_repository, texts, corpus, tmp_path_factory) -> Pretraining:
    """A network so small that a run takes seconds, with dropout: random states matter."""
    folder = tmp_path_factory.mktemp("scratch")
    (folder / "validation.txt").write_text("\n".join(texts[:20]))
    shape = dict(hidden_size=32, num_layers=2, num_attention_heads=4, max_sequence_length=64)
    (folder / "config.json").write_text(json.dumps(shape))
    recipe = dict(token=0.5, sentence=0.3, document=0.2, block_mask_prob=0.1)
    (folder / "recipe.json").write_text(json.dumps(recipe))
    return Pretraining(
        data=str(corpus),
        output="",
        config=str(folder / "config.json"),
        tokenizer=str(made_repository),
        recipe=str(folder / "recipe.json"),
        validation=str(folder / "validation.txt"),
        length=LENGTH,
        steps=12,
        batch_size=4,
        accumulation=2,
        learning_rate=1e-2,
        evaluate_every=6,
        save_every=4,
        log_every=1,
        seed=3,
    )


@pytest.fixture(scope="module")
def finished(scratch, tmp_path_factory) -> Path:
    return pretrain(replace(scratch, output=str(tmp_path_factory.mktemp("runs") / "finished")))


def history(output: Path, name: str = "loss") -> list[float]:
    states = output.with_name(f"{output.name}-checkpoints").glob("checkpoint-*/trainer_state.json")
    state = json.loads(max(states, key=lambda file: int(file.parent.name[11:])).read_text())
    return [entry[name] for entry in state["log_history"] if name in entry]


def weights(output: Path) -> dict:
    return GLMForConditionalGeneration.from_pretrained(output).state_dict()


def assert_same_weights(a: dict, b: dict, **tolerance):
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], **tolerance)


def test_a_run_learns_and_writes_a_repository_that_loads_anywhere(finished, stranger, tmp_path):
    for mode in ("token", "sentence", "document"):
        early, late = history(finished, f"eval_loss_{mode}")
        assert late < early < 7  # ln of the vocabulary's 512 rows is 6.2
    assert len(history(finished)) == 12
    checkpoints = finished.with_name("finished-checkpoints")
    assert list(checkpoints.rglob("events.out.tfevents*"))
    assert (checkpoints / "curves.png").read_bytes().startswith(b"\x89PNG")
    program = """
import sys
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, pipeline
model = AutoModelForSeq2SeqLM.from_pretrained(sys.argv[1], trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1], trust_remote_code=True)
assert type(model).__name__ == "GLMForConditionalGeneration"
assert type(model).__module__.startswith("transformers_modules")
ids = model.generate(**tokenizer("Ng is [MASK].", return_tensors="pt"), max_new_tokens=4)
assert len(tokenizer.decode_pieces(ids)[0]) == 1
fill = pipeline("text2text-generation", model=sys.argv[1], trust_remote_code=True)
print(fill("Ng is [MASK].", max_new_tokens=4))
"""
    stranger.output(program, finished, folder=tmp_path)
    assert (finished / "README.md").exists()
    assert json.loads((finished / "config.json").read_text())["vocab_size"] % 128 == 0


class Killed(Exception):
    pass


@pytest.mark.parametrize("streaming, workers", [(False, 0), (False, 2), (True, 0)])
def test_a_killed_run_that_is_resumed_ends_with_the_same_weights(
    scratch, finished, tmp_path, monkeypatch, streaming, workers
):
    options = replace(scratch, output=str(tmp_path / "run"), streaming=streaming, workers=workers)
    uninterrupted = finished
    if streaming:
        uninterrupted = pretrain(replace(options, output=str(tmp_path / "uninterrupted")))
    step, count = BlankInfillingTrainer.training_step, []

    def killed(self, *args, **kwargs):
        count.append(1)
        if len(count) > 14:  # in the eighth of the twelve steps, after the checkpoint of the fourth
            raise Killed
        return step(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(BlankInfillingTrainer, "training_step", killed)
        with pytest.raises(Killed):
            pretrain(options)
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match="--resume"):
        pretrain(options)
    resumed = pretrain(replace(options, resume=True))
    assert history(resumed) == history(uninterrupted)
    assert_same_weights(weights(resumed), weights(uninterrupted), rtol=0, atol=0)


def test_the_optimiser_has_the_originals_constants(finished):
    """What the optimiser itself wrote down when it was saved."""
    checkpoints = finished.with_name("finished-checkpoints")
    groups = torch.load(checkpoints / "checkpoint-12/optimizer.pt")["param_groups"]
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
    for group in groups:
        assert group["betas"] == (0.9, 0.95)
        assert group["eps"] == 1e-8


@pytest.mark.parametrize(
    "changed, message",
    [
        (dict(learning_rate=1e-3), "learning_rate was 0.01 and is 0.001"),
        (dict(seed=4, steps=20), "steps was 12 and is 20; seed was 3 and is 4"),
        (dict(recipe="glm-base"), "recipe was"),
        (dict(batch_size=8, accumulation=1), "batch_size was 4 and is 8"),
    ],
)
def test_a_run_is_not_continued_with_other_options(scratch, finished, tmp_path, changed, message):
    shutil.copytree(finished.with_name("finished-checkpoints"), tmp_path / "run-checkpoints")
    options = replace(scratch, output=str(tmp_path / "run"), resume=True, **changed)
    with pytest.raises(ValueError, match=message):
        pretrain(options)
    assert not (tmp_path / "run").exists()


def test_what_the_weights_do_not_depend_on_may_change(scratch, finished, tmp_path):
    shutil.copytree(finished.with_name("finished-checkpoints"), tmp_path / "run-checkpoints")
    shutil.rmtree(tmp_path / "run-checkpoints/checkpoint-12")
    other = dict(save_every=100, log_every=2, evaluate_every=100, validation=None)
    resumed = pretrain(replace(scratch, output=str(tmp_path / "run"), resume=True, **other))
    assert_same_weights(weights(resumed), weights(finished), rtol=0, atol=0)


def test_a_repository_in_half_precision_is_trained_in_float32(scratch, tmp_path):
    """In float16 a small step would change nothing, and gradients would leave its range."""
    checkpoint = make_checkpoint(tmp_path / "checkpoint", make_parameters())
    options = dict(model="glm-2b", num_attention_heads=4, dtype="float16")
    vocabulary = make_vocabulary(tmp_path / "vocabulary")
    half = convert_checkpoint(checkpoint, tmp_path / "half", vocab=vocabulary, **options)
    output = pretrain(
        replace(
            scratch,
            model=str(half),
            config=None,
            tokenizer=None,
            recipe="glm-base",
            validation=None,
            output=str(tmp_path / "more"),
            steps=1,
            learning_rate=1e-6,
            warmup=0.0,
        )
    )
    before, after = (load_file(folder / "model.safetensors") for folder in (half, output))
    for name, tensor in before.items():
        assert tensor.dtype == torch.float16 and after[name].dtype == torch.float32
        assert torch.isfinite(after[name]).all()
    moved = [(after[name] - tensor.float()).abs().max() for name, tensor in before.items()]
    assert 0 < max(moved) < 1e-5  # a step that float16 could not hold


def test_a_checkpoint_that_is_half_there_is_no_checkpoint(scratch, finished, tmp_path):
    """The run was killed while it wrote the last one."""
    shutil.copytree(finished.with_name("finished-checkpoints"), tmp_path / "run-checkpoints")
    (tmp_path / "run-checkpoints/checkpoint-12/trainer_state.json").unlink()
    resumed = pretrain(replace(scratch, output=str(tmp_path / "run"), resume=True))
    assert_same_weights(weights(resumed), weights(finished), rtol=0, atol=0)


def test_validation_texts_that_cannot_be_masked_do_not_count(scratch, tmp_path):
    """These have no sentence; those of the training data have, so that the run goes on."""
    (tmp_path / "validation.txt").write_text("Ng is an adjunct professor\n" * 9)
    options = replace(
        scratch,
        validation=str(tmp_path / "validation.txt"),
        output=str(tmp_path / "run"),
        steps=1,
        evaluate_every=1,
    )
    output = pretrain(options)
    assert history(output, "eval_loss_token") and not history(output, "eval_loss_sentence")


def command_line(options: Pretraining) -> list[str]:
    arguments = ["pretrain", options.data, options.output]
    return [*arguments, *flags(options, ("data", "output"))]


@pytest.mark.parametrize("launched", [False, pytest.param(True, marks=long)])
def test_two_processes_train_like_one_with_twice_the_batch(scratch, colleague, tmp_path, launched):
    """Twice the batch is two batches a step: process r of n takes batch n * i + r of the run.

    `accelerate launch` tells its processes of each other as it is done here, and imports for each.
    """
    dropouts = ("embedding_dropout_prob", "attention_dropout_prob", "output_dropout_prob")
    no_dropout = dict.fromkeys(dropouts, 0.0)
    shape = json.loads(Path(scratch.config).read_text())
    (tmp_path / "config.json").write_text(json.dumps({**shape, **no_dropout}))
    options = replace(scratch, config=str(tmp_path / "config.json"), accumulation=2)
    one = pretrain(replace(options, output=str(tmp_path / "one")))
    two = replace(options, output=str(tmp_path / "two"), accumulation=1)
    if launched:
        run = launch_twice(tmp_path, command_line(two))
    else:
        run = colleague.run(TWICE + GLM, *command_line(two), folder=tmp_path)
    assert run.returncode == 0, run.stderr[-4000:]
    assert "is complete" in run.stdout
    for name in ("loss", "eval_loss_token", "eval_loss_sentence", "eval_loss_document"):
        # The log has 4 digits.
        np.testing.assert_allclose(history(Path(two.output), name), history(one, name), rtol=2e-4)
    # Sums in another order; Adam makes steps of rounding errors where a gradient is zero, as for
    # the biases of keys.
    assert_same_weights(weights(two.output), weights(one), rtol=1e-4, atol=1e-4)


def test_continuing_a_converted_repository(made_repository, scratch, tmp_path):
    options = replace(
        scratch,
        model=str(made_repository),
        config=None,
        tokenizer=None,
        recipe="glm-base",
        output=str(tmp_path / "more"),
        steps=1,
        accumulation=1,
        learning_rate=0.0,
        validation=None,
        gradient_checkpointing=True,
    )
    output = pretrain(options)
    assert_same_weights(weights(output), weights(made_repository), rtol=0, atol=0)
    # What the run alone needed is not in its result.
    ours, theirs = (
        json.loads((folder / "config.json").read_text()) for folder in (output, made_repository)
    )
    for name in ("use_cache", "_name_or_path"):
        assert ours.get(name) == theirs.get(name), name


def test_optimiser_groups_and_schedule(tiny_model, tokenizer, tmp_path):
    from transformers import TrainingArguments

    model = tiny_model()

    def trainer(**options):
        arguments = TrainingArguments(
            output_dir=str(tmp_path),
            max_steps=100,
            weight_decay=0.1,
            learning_rate=1.0,
            warmup_steps=10,
            report_to=[],
        )
        options = {
            "decay": "linear",
            "decay_ratio": 0.1,
            "decay_steps": 80,
            "first_step": 0,
            **options,
        }
        return BlankInfillingTrainer(
            model=model, args=arguments, data_collator=BlankInfillingCollator(tokenizer), **options
        )

    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed = {
        names[id(p)]: group["weight_decay"]
        for group in trainer().create_optimizer().param_groups
        for p in group["params"]
    }
    assert len(decayed) == len(names)
    for name, decay in decayed.items():
        assert decay == (0.0 if name.endswith("bias") or "layernorm" in name else 0.1), name
    for decay in ("linear", "cosine"):
        run = trainer(decay=decay)
        run.create_optimizer_and_scheduler(100)
        rates = []
        for _ in range(100):
            rates.append(run.lr_scheduler.get_last_lr()[0])
            run.optimizer.step()
            run.lr_scheduler.step()
        np.testing.assert_allclose(rates[:10], np.arange(1, 11) / 10)
        np.testing.assert_allclose([rates[45], rates[80], rates[99]], [0.55, 0.1, 0.1])
        after_ten_of_seventy = {"linear": 6 / 7, "cosine": (1 + np.cos(np.pi / 7)) / 2}[decay]
        assert rates[20] == pytest.approx(0.1 + 0.9 * after_ten_of_seventy)


@pytest.mark.parametrize(
    "wrong, message",
    [
        (dict(tokenizer=None), "--model to continue"),
        (dict(decay="step"), "linear or cosine"),
        (dict(precision="int8"), "fp32, bf16"),
        (dict(steps=0), "at least 1"),
        (dict(warmup=2.0), "between 0 and 1"),
        (dict(recipe="glm-2b"), "JSON file"),
        (dict(resume=True), "leave --resume out"),
        (dict(streaming=True, workers=2), "workers 0 or 1"),
        (dict(length=65), "longest position 64"),
        (dict(model="x", tokenizer=None), "--model to continue"),
        (dict(model="nowhere", config=None, tokenizer=None), "nowhere is neither a folder nor"),
        (dict(config="no.json"), "no.json is no JSON file"),
        (dict(data="no.txt"), "no.txt is neither"),
        (dict(validation="no.txt"), "no.txt is neither"),
    ],
)
def test_wrong_options_are_one_clear_sentence(scratch, tmp_path, wrong, message, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=message):
        pretrain(replace(scratch, output=str(tmp_path / "run"), **wrong))


def test_a_misspelt_field_of_the_config(scratch, tmp_path):
    (tmp_path / "config.json").write_text('{"hidden_sizes": 32}')
    options = dict(output=str(tmp_path / "run"), config=str(tmp_path / "config.json"))
    with pytest.raises(ValueError, match="unknown fields hidden_sizes"):
        pretrain(replace(scratch, **options))


@pytest.mark.parametrize(
    "content, options, message",
    [
        ("", {}, "is empty; write documents into it"),
        ("", dict(streaming=True), "is empty; write documents into it"),
        ("\n \n", {}, "no text"),
        ("\n \n", dict(streaming=True), "no text"),
        ('{"text": 5}\n', {}, "something else than texts"),
    ],
)
def test_wrong_data_is_one_clear_sentence(scratch, tmp_path, content, options, message):
    file = tmp_path / ("data.jsonl" if "text" in content else "data.txt")
    file.write_text(content)
    with pytest.raises(ValueError, match=message):
        pretrain(replace(scratch, data=str(file), output=str(tmp_path / "run"), **options))
    assert not (tmp_path / "run").exists()


def test_a_vocabulary_that_is_too_small(scratch, tmp_path):
    config = {**json.loads(Path(scratch.config).read_text()), "vocab_size": 99}
    (tmp_path / "config.json").write_text(json.dumps(config))
    options = dict(output=str(tmp_path / "run"), config=str(tmp_path / "config.json"))
    with pytest.raises(ValueError, match="99 rows"):
        pretrain(replace(scratch, recipe="glm-base", **options))
