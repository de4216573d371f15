"""Fine-tuning: each recipe learns, and its result loads; killed, spread over processes, refused."""

import json
import random
import re
import shutil
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import LONG, long
from huggingface_hub import ModelCard
from made import make_checkpoint, make_parameters, make_vocabulary
from processes import GLM, TWICE, flags
from safetensors.torch import load_file, save_file

from glm_transformers import GLMForConditionalGeneration, GLMTokenizerFast
from glm_transformers.conversion import convert_checkpoint
from glm_transformers.evaluation.evaluate import evaluate
from glm_transformers.evaluation.options import Evaluation
from glm_transformers.hub_repository.space import PAGE
from glm_transformers.training import adapters
from glm_transformers.training.finetune import encode_each, finetune, with_published
from glm_transformers.training.options import Finetuning
from glm_transformers.training.run import RepeatableTrainer
from glm_transformers.training.seq2seq import AnswerTrainer
from glm_transformers.training.task_table import TASKS

# Each is one token behind a space, and each answers the one before it.
WORDS = ["Ng", "Stanford", "Beijing", "Tsinghua", "fox", "dog", "General", "Language"]
NEXT = dict(zip(WORDS, [*WORDS[1:], WORDS[0]], strict=True))
DROPOUTS = (
    "embedding_dropout_prob",
    "attention_dropout_prob",
    "output_dropout_prob",
    "classifier_dropout",
)

ANSWERS = {"kind": "answers", "context": ["{source}", "[MASK]"], "answers": " {target}"}
CHOICES = {
    "kind": "choices",
    "context": ["{source}", " It is", "[MASK]", "."],
    "answers": [" quick", " lazy"],
    "labels": ["quick", "lazy"],
    "one_token": False,
}


def write_lines(file: Path, rows: list[dict]) -> str:
    file.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return str(file)


def made_rows(count: int, seed: int) -> list[dict]:
    """A word in a sentence, the word that answers it, and of which half of the words it is."""
    random_ = random.Random(seed)
    rows = []
    for word in random_.choices(WORDS, k=count):
        other = random_.choice(WORDS)
        label = "quick" if WORDS.index(word) < len(WORDS) / 2 else "lazy"
        rows.append({"source": f"The {word} and {other}", "target": NEXT[word], "label": label})
    return rows


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A network so small that a run takes seconds, with dropout: random states matter."""
    folder = tmp_path_factory.mktemp("base")
    parameters = make_parameters(hidden=32, dtype=torch.float32)
    return convert_checkpoint(
        make_checkpoint(folder / "checkpoint", {name: w / 3 for name, w in parameters.items()}),
        folder / "repository",
        model="glm-2b",
        vocab=make_vocabulary(folder / "vocabulary"),
        num_attention_heads=4,
        dtype="float32",
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_lines(folder / "train.jsonl", made_rows(96, seed=1))
    write_lines(folder / "test.jsonl", made_rows(19, seed=2))
    (folder / "answers.json").write_text(json.dumps(ANSWERS))
    (folder / "choices.json").write_text(json.dumps(CHOICES))
    return folder


@pytest.fixture(scope="module")
def options(base, data) -> Finetuning:
    return Finetuning(
        task=str(data / "answers.json"),
        data=str(data / "train.jsonl"),
        output="",
        model=str(base),
        validation=str(data / "test.jsonl"),
        epochs=40,
        batch_size=8,
        learning_rate=1e-2,
        log_every=10,
        evaluate_every=120,
        seed=3,
    )


def reached(output: Path) -> dict[str, float]:
    results = ModelCard.load(output / "README.md").data.eval_results
    return {result.metric_type: result.metric_value for result in results}


RECIPES = {
    "answers": dict(task="answers.json"),
    "choices": dict(task="choices.json"),
    "pooled": dict(task="choices.json", pooled=True),
}
# Steps with which each learns the data, in whole and by LoRA. Answers take LoRA many more on a
# network that knows nothing: here it makes a few, and test_finetuning_page.py sees it learn. So do
# choices, but in the long mode.
STEPS = {"answers": (160, 4), "choices": (80, 160 if LONG else 4), "pooled": (90, 160)}
LEARNT = [(recipe, False) for recipe in RECIPES] + [("pooled", True)] + [("choices", True)] * LONG


@pytest.fixture(scope="module")
def tuned(options, data, tmp_path_factory):
    """`tuned(recipe, lora)`: what a run of it left."""
    made = {}

    def run(recipe: str, lora: bool = False) -> Path:
        if (recipe, lora) not in made:
            output = tmp_path_factory.mktemp("runs") / f"{recipe}{'-lora' * lora}"
            changed = {**RECIPES[recipe], "task": str(data / RECIPES[recipe]["task"])}
            steps = STEPS[recipe][lora]
            changed |= dict(batch_size=16, steps=steps, evaluate_every=steps // 2)
            if lora:
                changed |= dict(lora=True, lora_rank=8)
            elif recipe != "pooled":
                changed |= dict(space=True)
            made[recipe, lora] = finetune(replace(options, output=str(output), **changed))
        return made[recipe, lora]

    return run


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("recipe", RECIPES)
def test_evaluate_gives_the_numbers_of_the_run(tuned, data, recipe, lora):
    """Of the weights that were kept; beside an adapter also how it writes its answers."""
    output = tuned(recipe, lora)
    (measure,) = evaluate_on(output, data / RECIPES[recipe]["task"], data)
    name = measure.metric.removesuffix(", percent")
    assert measure.value == max(history(output, f"eval_{name}"))
    assert measure.count == 19 and measure.of == "examples"


def test_a_run_leaves_a_space_if_asked(tuned):
    output = tuned("answers")
    assert (output / "app.py").read_bytes() == PAGE.read_bytes()
    assert "sdk: gradio" in (output / "README.md").read_text(encoding="utf-8").splitlines()


def test_evaluate_gives_the_numbers_of_choices_of_one_token(short, data, tmp_path):
    """After so few steps that not all are right."""
    words = {**CHOICES, "answers": [" Beijing", " General"], "one_token": True}
    (tmp_path / "words.json").write_text(json.dumps(words))
    others = dict(task=str(tmp_path / "words.json"), output=str(tmp_path / "run"), patience=None)
    output = finetune(replace(short, **others, steps=4, evaluate_every=4))
    (measure,) = evaluate_on(output, tmp_path / "words.json", data)
    assert [measure.value] == history(output, "eval_accuracy") and 0 < measure.value < 100
    assert measure.error == pytest.approx((measure.value * (100 - measure.value) / 18) ** 0.5)


def evaluate_on(output: Path, task: Path, data: Path):
    return evaluate(
        Evaluation(str(output), task=str(task), data=str(data / "test.jsonl"), device="cpu")
    )


@pytest.mark.parametrize("recipe, lora", LEARNT)
def test_each_recipe_learns(tuned, recipe, lora):
    """Of eight words one is right by chance, of two labels one."""
    assert min(reached(tuned(recipe, lora)).values()) > 90


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize(
    "recipe, expected",
    [("choices", "text-generation"), ("pooled", "text-classification")],
)
def test_a_card_tells_the_hub_what_the_model_does(tuned, recipe, lora, expected):
    card = ModelCard.load(tuned(recipe, lora) / "README.md")
    assert card.data.pipeline_tag == expected
    assert {result.task_type for result in card.data.eval_results} == {expected}
    assert "| learning_rate | 0.01 |" in card.text and "None" not in card.text


def test_the_code_of_each_card_runs_in_a_fresh_process(tuned, base, stranger, tmp_path):
    """It finds repositories and adapters by the names in the card, and answers as they learnt."""
    shutil.copytree(base, tmp_path / base.name)
    expected = {}
    for recipe, answer in {"answers": "dog", "choices": " lazy", "pooled": "lazy"}.items():
        for lora in (False, True):
            output = tuned(recipe, lora)
            shutil.copytree(output, tmp_path / output.name)
            card = (output / "README.md").read_text()
            (program,) = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
            assert "fox" not in card  # no text of the data
            file = tmp_path / f"{output.name}.py"
            file.write_text(program.replace('"..."', '"The fox and Ng"'))
            expected[file.name] = answer if (recipe, lora) in LEARNT else None
    program = """
import runpy, sys
for file in sys.argv[1:]:
    print(file)
    runpy.run_path(file)
"""
    lines = stranger.output(program, *expected, folder=tmp_path).splitlines()
    assert lines[::2] == list(expected)
    for file, said in zip(lines[::2], lines[1::2], strict=True):
        if expected[file] is not None:
            assert said in (expected[file], f"[['{expected[file]}']]"), file


# --- A run that is killed, or spread over processes -----------------------------------------------


class Killed(Exception):
    pass


def history(output: Path, name: str = "loss") -> list[float]:
    states = output.with_name(f"{output.name}-checkpoints").glob("checkpoint-*/trainer_state.json")
    state = json.loads(max(states, key=lambda file: int(file.parent.name[11:])).read_text())
    return [entry[name] for entry in state["log_history"] if name in entry]


def weights(output: Path) -> dict[str, torch.Tensor]:
    """Of a repository, or of an adapter."""
    (file,) = output.glob("*model.safetensors")
    return load_file(file)


def assert_same_weights(one: Path, other: Path, **tolerance):
    ours, theirs = weights(one), weights(other)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], **tolerance)


@pytest.fixture(scope="module")
def short(options) -> Finetuning:
    """Twelve steps; nothing fits evenly into anything."""
    changed = dict(steps=12, evaluate_every=5, batch_size=7, accumulation=2, log_every=1)
    return replace(options, label_smoothing=0.1, patience=2, **changed)


# A classifier's head is new, in whole or beside an adapter, and is trained like all the rest.
REPEATED = pytest.mark.parametrize(
    "recipe, lora",
    [
        ("answers", False),
        ("choices", False),
        ("pooled", True),
        pytest.param("pooled", False, marks=long),
        pytest.param("answers", True, marks=long),
    ],
)


def repeated(options: Finetuning, data: Path, recipe: str, lora: bool) -> Finetuning:
    changed = {**RECIPES[recipe], "task": str(data / RECIPES[recipe]["task"])}
    return replace(options, lora=lora, **changed)


@REPEATED
def test_a_killed_run_that_is_resumed_ends_with_the_same_weights(
    short, data, tmp_path, monkeypatch, recipe, lora
):
    short = repeated(short, data, recipe, lora)
    whole = finetune(replace(short, output=str(tmp_path / "whole")))
    options = replace(short, output=str(tmp_path / "run"))
    step, count = RepeatableTrainer.training_step, []

    def killed(self, *args, **kwargs):
        count.append(1)
        if len(count) > 15:  # in the eighth step, after the checkpoint of the fifth
            raise Killed
        return step(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(RepeatableTrainer, "training_step", killed)
        with pytest.raises(Killed):
            finetune(options)
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match="--resume"):
        finetune(options)
    with pytest.raises(ValueError, match=r"learning_rate was 0\.01 and is 0\.1"):
        finetune(replace(options, learning_rate=0.1, resume=True))
    resumed = finetune(replace(options, resume=True))
    assert len(history(whole)) == 12
    assert history(resumed) == history(whole)
    assert history(resumed, "eval_loss") == history(whole, "eval_loss")
    assert_same_weights(resumed, whole, rtol=0, atol=0)


def command_line(options: Finetuning) -> list[str]:
    arguments = ["finetune", options.task, options.data, options.output]
    return [*arguments, *flags(options, ("task", "data", "output"))]


def without_dropout(repository: Path, folder: Path) -> Path:
    shutil.copytree(repository, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **dict.fromkeys(DROPOUTS, 0.0)}))
    return folder


# Adapters have a dropout of their own.
NO_DROPOUT_OF_LORA = """
from functools import partial
from glm_transformers.training import adapters
adapters.add_lora = partial(adapters.add_lora, dropout=0.0)
"""


@REPEATED
def test_two_processes_train_like_one_with_twice_the_batch(
    short, data, base, colleague, tmp_path, monkeypatch, recipe, lora
):
    """Through the command, too; 19 examples to evaluate fill no batch of two processes."""
    model = str(without_dropout(base, tmp_path / "base"))
    options = repeated(short, data, recipe, lora)
    # Six steps, if both processes are counted.
    half = dict(epochs=0.5, steps=None)
    options = replace(options, model=model, **half, evaluate_every=3, batch_size=4)
    with monkeypatch.context() as patch:
        patch.setattr(adapters, "add_lora", partial(adapters.add_lora, dropout=0.0))
        one = finetune(replace(options, output=str(tmp_path / "one"), accumulation=2))
    two = replace(options, output=str(tmp_path / "two"), accumulation=1)
    program = TWICE + NO_DROPOUT_OF_LORA + GLM
    printed = colleague.output(program, *command_line(two), folder=tmp_path)
    assert "is complete" in printed
    assert len(history(one)) == 6
    for name in ("loss", "eval_exact_match" if recipe == "answers" else "eval_accuracy"):
        # The log has 4 digits.
        assert history(Path(two.output), name) == pytest.approx(history(one, name), rel=1e-3)
    assert reached(Path(two.output)) == reached(one)
    # Sums in another order; Adam makes steps of rounding errors where a gradient is zero, as for
    # the biases of keys.
    assert_same_weights(Path(two.output), one, rtol=1e-3, atol=1e-3)


# --- What is kept, and what is measured -----------------------------------------------------------


def ask(repository: Path, rows: list[dict], **others) -> list[str]:
    """The answers by hand: one text at a time."""
    tokenizer = GLMTokenizerFast.from_pretrained(repository)
    model = GLMForConditionalGeneration.from_pretrained(repository).eval()
    answers = []
    for row in rows:
        inputs = tokenizer(f"{row['source']}[MASK]", return_tensors="pt")
        answers += tokenizer.decode_pieces(model.generate(**inputs, **others))[0]
    return answers


def test_what_is_reached_is_what_generating_by_hand_gives(tuned, data):
    output = tuned("answers")
    rows = list(map(json.loads, (data / "test.jsonl").read_text().splitlines()))
    said = ask(output, rows)
    right = [answer == row["target"] for answer, row in zip(said, rows, strict=True)]
    assert reached(output) == {"exact_match": pytest.approx(100 * sum(right) / 19, abs=0.01)}


def test_a_new_answer_may_be_longer_than_those_of_the_data(tuned):
    """The longest of these has two tokens and its end."""
    settings = json.loads((tuned("answers") / "generation_config.json").read_text())
    assert settings["max_new_tokens"] == 2 * 3


def test_the_published_rate_is_of_the_whole_network():
    options = Finetuning("boolq", "data", "output")
    task = TASKS["boolq"]
    assert with_published(options, task).learning_rate == task.settings.learning_rate == 1e-5
    assert with_published(replace(options, lora=True), task).learning_rate == pytest.approx(1e-4)
    told = replace(options, lora=True, learning_rate=1e-5)
    assert with_published(told, task).learning_rate == 1e-5


def test_the_published_beam_search_answers(short, data, base, tmp_path):
    """The settings of another task, in evaluation and in the repository that is left."""
    others = dict(generation="xsum", steps=2, evaluate_every=2, max_target_length=12, patience=None)
    output = finetune(replace(short, output=str(tmp_path / "beams"), **others))
    settings = json.loads((output / "generation_config.json").read_text())
    expected = dict(
        num_beams=6,
        length_penalty=1.0,
        min_new_tokens=10,
        no_repeat_ngram_size=3,
        max_new_tokens=12,
    )
    assert expected.items() <= settings.items()
    rows = list(map(json.loads, (data / "test.jsonl").read_text().splitlines()))
    right = [a == row["target"] for a, row in zip(ask(output, rows), rows, strict=True)]
    assert reached(output)["exact_match"] == pytest.approx(100 * sum(right) / 19, abs=0.01)


def test_the_best_checkpoint_is_kept_and_the_run_stops(options, tuned, data, tmp_path):
    """Wrong answers are learnt by a network that knows the right ones: it only becomes worse."""
    wrong = [{**row, "target": row["source"].split()[1]} for row in made_rows(64, seed=5)]
    others = dict(
        model=str(tuned("answers")),
        data=write_lines(tmp_path / "wrong.jsonl", wrong),
        output=str(tmp_path / "stopped"),
        steps=90,
        evaluate_every=5,
        patience=3,
        learning_rate=2e-3,
    )
    output = finetune(replace(options, **others))
    values = history(output, "eval_exact_match")
    first = values.index(max(values))
    assert len(values) == first + 1 + 3  # the best, and three that are no better
    assert values[-1] < values[first]
    assert reached(output)["exact_match"] == pytest.approx(values[first], abs=0.01)
    rows = list(map(json.loads, (data / "test.jsonl").read_text().splitlines()))
    right = [a == row["target"] for a, row in zip(ask(output, rows), rows, strict=True)]
    assert values[first] == pytest.approx(100 * sum(right) / 19, abs=0.01)


def test_patience_is_not_new_in_a_run_that_is_resumed(options, tmp_path, monkeypatch):
    """What does not learn stops after four evaluations, killed after the third or not."""
    others = dict(learning_rate=0.0, steps=40, evaluate_every=2, patience=3)
    options = replace(options, output=str(tmp_path / "run"), **others)
    evaluate, count = AnswerTrainer.evaluate, []

    def killed(self, *args, **kwargs):
        count.append(1)
        if len(count) == 4:
            raise Killed
        return evaluate(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(AnswerTrainer, "evaluate", killed)
        with pytest.raises(Killed):
            finetune(options)
    resumed = finetune(replace(options, resume=True))
    assert len(history(resumed, "eval_exact_match")) == 4


def test_a_network_in_half_precision_is_trained_and_written_in_float32(options, base, tmp_path):
    half = shutil.copytree(base, tmp_path / "half")
    tensors = load_file(half / "model.safetensors")
    save_file({name: tensor.half() for name, tensor in tensors.items()}, half / "model.safetensors")
    others = dict(model=str(half), steps=1, learning_rate=1e-6, warmup=0.0, evaluate_every=None)
    output = finetune(replace(options, output=str(tmp_path / "run"), validation=None, **others))
    after = load_file(output / "model.safetensors")
    moved = [(after[name] - tensor.half().float()).abs().max() for name, tensor in tensors.items()]
    assert {tensor.dtype for tensor in after.values()} == {torch.float32}
    assert 0 < max(moved) < 1e-5  # a step that float16 could not hold
    assert ModelCard.load(output / "README.md").data.eval_results is None


def test_long_documents_are_learnt_in_windows(base, tmp_path, monkeypatch):
    """SQuAD: the part of a document that holds the answer is learnt, and every part is asked."""
    fact = "Ng is a professor."
    document = {
        "source": "Beijing is large. " * 20 + fact,
        "question": "Who is?",
        "answer": "Ng",
        "answers": ["Ng"],
    }
    data = write_lines(tmp_path / "squad.jsonl", [document])
    encoded = []

    def record(recipe, examples):
        encoded.append(examples)
        return encode_each(recipe, examples)

    monkeypatch.setattr("glm_transformers.training.finetune.encode_each", record)
    options = Finetuning(
        task="squad",
        data=data,
        validation=data,
        output=str(tmp_path / "tuned"),
        model=str(base),
        max_length=60,
        max_target_length=4,
        epochs=1,
        generation="greedy",
    )
    reached_by = reached(finetune(options))
    learnt, asked = encoded
    assert [example["answer"] == "Ng" for example in learnt] == [
        fact[:5] in example["source"] for example in learnt
    ]
    assert len(learnt) > 3 and len(asked) == len(learnt)
    # The parts are of one question, which is right or wrong as a whole.
    assert reached_by["normalized_match"] in (0, 100)


# --- What cannot be -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong, message",
    [
        (dict(model=None), "pass --model"),
        (dict(model="nowhere"), "nowhere is neither a folder nor"),
        (dict(task="nothing"), "no task and no file nothing"),
        (dict(data="nowhere.jsonl"), "nowhere.jsonl"),
        (dict(precision="fp16"), "precision is fp16; choose fp32 or bf16"),
        (dict(metric="bleu"), "no metric bleu; choose from exact_match, loss"),
        (dict(generation="fastest"), "no task and no file fastest"),
        (dict(generation="xsum"), "at least 10 tokens, and an answer may have 6; pass --gener"),
        (dict(generation="cnn_dm", max_target_length=20), "at least 55 tokens, .* may have 20"),
        (dict(validation=None), "--evaluate-every needs data to evaluate on"),
        (dict(validation=None, evaluate_every=None, patience=1), "--patience needs data"),
        (dict(save_every=5), "pass --evaluate-every instead of --save-every"),
        (dict(lora_rank=4), "pass --lora too"),
        (dict(pooled=True), "leave --pooled out"),
        (dict(lora=True, space=True), "leave --space out"),
        (dict(max_length=65), "longest position 64; pass --max-length 64 or less"),
        (dict(max_target_length=65), "pass --max-target-length 64 or less"),
        (dict(pattern=1), "no pattern 1"),
        (dict(text_column="body"), "no column body"),
        (dict(resume=True), "leave --resume out"),
        (dict(epochs=0), "epochs is 0, which trains nothing; give more"),
        (dict(learning_rate=float("nan")), "learning_rate is nan; give at least 0"),
        (dict(batch_size=0), "batch_size is 0; give at least 1"),
    ],
)
def test_wrong_options_are_one_clear_sentence(options, tmp_path, wrong, message, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=message):
        finetune(replace(options, **{"output": str(tmp_path / "run"), **wrong}))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("flag", ["attend_padding", "generation"])
def test_what_only_answers_have(options, data, tmp_path, flag):
    value = {"attend_padding": True, "generation": "xsum"}[flag]
    others = dict(task=str(data / "choices.json"), output=str(tmp_path / "run"))
    with pytest.raises(ValueError, match=f"{flag} is for tasks whose answers are written"):
        finetune(replace(options, **others, **{flag: value}))


@pytest.mark.parametrize(
    "task, rows, message",
    [
        (ANSWERS, [], "holds no examples"),
        (ANSWERS, [{"source": "The fox"}], "Line 1 of .*target"),
        (ANSWERS, [{"source": "a", "target": "<|endofpiece|>"}], "Line 1 of .*endofpiece"),
        (
            {**ANSWERS, "context": ["{source}", "[MASK]", "[MASK]"]},
            made_rows(3, 0),
            "2 masks and 1",
        ),
        (CHOICES, [{"source": "The fox", "label": "new"}], "'new'; .* knows quick, lazy"),
        (CHOICES, [{"source": "The fox"}], "Line 1 of .* has no right choice in the column label"),
        (
            {**CHOICES, "answers": [" quick", " xylophone"], "one_token": True},
            made_rows(3, 0),
            "not one token",
        ),
    ],
)
def test_wrong_data_are_one_clear_sentence(options, tmp_path, task, rows, message, monkeypatch):
    """Before the network is loaded, which may take minutes."""
    monkeypatch.setattr("glm_transformers.training.finetune.load_model", None)
    (tmp_path / "task.json").write_text(json.dumps(task))
    (tmp_path / "data.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    others = dict(task=str(tmp_path / "task.json"), data=str(tmp_path / "data.jsonl"))
    with pytest.raises(ValueError, match=message):
        finetune(replace(options, **others, output=str(tmp_path / "run")))
    assert not (tmp_path / "run").exists() and not (tmp_path / "run-checkpoints").exists()


def test_fewer_examples_than_a_batch_are_learnt_once_an_epoch(short, tmp_path):
    few = write_lines(tmp_path / "few.jsonl", made_rows(3, seed=1))
    run = replace(short, data=few, validation=None, evaluate_every=None, patience=None)
    run = replace(run, output=str(tmp_path / "run"), steps=None, epochs=2)
    with pytest.warns(UserWarning, match="3 examples, and a step takes 14; the batch"):
        output = finetune(run)
    assert history(output, "epoch") == pytest.approx([2 / 3, 4 / 3, 2])


def test_answers_without_a_word_are_told_of(options, tmp_path, monkeypatch):
    """An empty cell of a table is a text."""

    def load_model(*arguments):
        raise Killed

    monkeypatch.setattr("glm_transformers.training.finetune.load_model", load_model)
    data = tmp_path / "data.csv"
    data.write_text("source,target\nThe fox,dog\nThe dog,\n\nThe fox, \n")
    with (
        pytest.raises(Killed),
        pytest.warns(UserWarning, match=r"2 of 3 examples .*Line 3 of .*data\.csv; .* say nothing"),
    ):
        finetune(replace(options, data=str(data), output=str(tmp_path / "run")))


def test_validation_data_without_labels(options, data, tmp_path, monkeypatch):
    """They would be counted as wrong."""
    monkeypatch.setattr("glm_transformers.training.finetune.load_model", None)
    rows = [*made_rows(2, 0), {"source": "The fox", "label": -1}]
    others = dict(
        task=str(data / "choices.json"),
        validation=write_lines(tmp_path / "test.jsonl", rows),
        output=str(tmp_path / "run"),
    )
    with pytest.raises(ValueError, match=r"Line 3 of .*test\.jsonl has no right choice"):
        finetune(replace(options, **others))


def test_a_mask_that_the_model_was_not_trained_with(options, data, tmp_path):
    parameters = make_parameters(vocabulary=256)  # 152 tokens, padded
    bert = convert_checkpoint(
        make_checkpoint(tmp_path / "checkpoint", parameters),
        tmp_path / "bert",
        model="glm-base",
        vocab=make_vocabulary(tmp_path / "vocabulary", family="bert"),
        num_attention_heads=4,
    )
    task = {**ANSWERS, "context": ["{source}", "[gMASK]"]}
    (tmp_path / "task.json").write_text(json.dumps(task))
    others = dict(task=str(tmp_path / "task.json"), model=str(bert), output=str(tmp_path / "run"))
    with pytest.raises(ValueError, match=r"no \[gMASK\]; the masks it was trained with: \[MASK\]"):
        finetune(replace(options, **others))


def test_what_is_there_already_is_not_replaced(options, tmp_path):
    (tmp_path / "run").mkdir()
    with pytest.raises(ValueError, match="exists already"):
        finetune(replace(options, output=str(tmp_path / "run")))


def test_a_place_that_is_a_file(options, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"file is no folder; choose another place than"):
        finetune(replace(options, output=str(tmp_path / "file" / "folder" / "run")))


@pytest.mark.parametrize("validation", [True, False])
def test_a_training_that_diverges_ends_in_a_sentence(options, tmp_path, validation):
    others = dict(learning_rate=1e30, steps=3, warmup=0.0, log_every=1, evaluate_every=3)
    if not validation:
        others |= dict(validation=None, evaluate_every=None)
    with pytest.raises(
        ValueError, match=r"diverged: at step \d the \w*loss is \w+; .* a lower --lea"
    ):
        finetune(replace(options, output=str(tmp_path / "run"), **others))
    assert not (tmp_path / "run").exists()


def test_examples_that_cannot_be_measured_are_told_before_training(
    options, data, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "sacrebleu", None)  # as if it were not installed
    (tmp_path / "task.json").write_text(json.dumps({**ANSWERS, "metrics": ["bleu"]}))
    with pytest.raises(ValueError, match="sacrebleu is not installed"):
        finetune(replace(options, task=str(tmp_path / "task.json"), output=str(tmp_path / "run")))
    assert not (tmp_path / "run-checkpoints").exists()


# --- Several blanks, padding that is seen, adapters -----------------------------------------------


def test_several_blanks_are_learnt_and_measured_one_by_one(options, base, tmp_path):
    """One of the two answers of each example is always right, the other one never."""
    task = {
        "kind": "answers",
        "context": "The [MASK] and the [MASK] of {word}",
        "answers": ["fox", "{word}"],
    }
    (tmp_path / "task.json").write_text(json.dumps(task))
    rows = [{"word": word} for word in WORDS[:4]] * 6
    unseen = [{"word": word} for word in ("professor", "formerly")]
    others = dict(
        task=str(tmp_path / "task.json"),
        data=write_lines(tmp_path / "train.jsonl", rows),
        validation=write_lines(tmp_path / "test.jsonl", unseen),
        output=str(tmp_path / "run"),
        epochs=15,
        evaluate_every=None,
    )
    assert reached(finetune(replace(options, **others)))["exact_match"] == 50


def test_padding_that_is_seen_is_asked_for_as_it_was_learnt(options, tuned, data, tmp_path):
    """The evaluation, and the code of the card, pad as the training did, which goes on here."""
    others = dict(attend_padding=True, max_length=24, steps=24, evaluate_every=24)
    others |= dict(model=str(tuned("answers")), output=str(tmp_path / "run"))
    output = finetune(replace(options, **others))
    assert "ids += [tokenizer.pad_token_id] * (24 - len(ids))" in (output / "README.md").read_text()
    tokenizer = GLMTokenizerFast.from_pretrained(output)
    model = GLMForConditionalGeneration.from_pretrained(output).eval()
    rows = list(map(json.loads, (data / "test.jsonl").read_text().splitlines()))
    right = 0
    for row in rows:
        ids = tokenizer(f"{row['source']}[MASK]").input_ids
        ids += [tokenizer.pad_token_id] * (24 - len(ids))
        (answers,) = tokenizer.decode_pieces(model.generate(torch.tensor([ids])))
        right += answers == [row["target"]]
    assert reached(output)["exact_match"] == pytest.approx(100 * right / 19, abs=0.01)


def test_an_adapter_holds_little_and_is_merged_into_the_model(tuned, base):
    from peft import PeftModel

    from glm_transformers.training.adapters import merge

    output = tuned("choices", lora=True)
    names = load_file(output / "adapter_model.safetensors")
    assert names and all("lora_" in name for name in names)
    assert not list(output.glob("model*.safetensors"))
    data = ModelCard.load(output / "README.md").data
    assert (data.base_model, data.base_model_relation) == (base.name, "adapter")
    tokenizer = GLMTokenizerFast.from_pretrained(base)
    inputs = tokenizer("The fox is [MASK].", return_tensors="pt")
    model = GLMForConditionalGeneration.from_pretrained(base).eval()
    adapted = PeftModel.from_pretrained(model, output).eval()
    with torch.no_grad():
        expected = adapted(**inputs).logits
        merged = merge(adapted)(**inputs).logits
    torch.testing.assert_close(merged, expected, atol=1e-5, rtol=0)
