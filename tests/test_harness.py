"""The lm-evaluation-harness asks GLM in the form that GLM was trained with, on local tasks."""

import json
import sys
import warnings
from functools import partial
from importlib.metadata import EntryPoint

import pytest
from checkout import ROOT, TESTS
from processes import TWICE

pytest.importorskip("lm_eval", reason='lm_eval is not installed; pip install ".[eval]" has it')

from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from glm_transformers.evaluation import language_modeling as lm
from glm_transformers.evaluation.harness import GLMHarness
from glm_transformers.evaluation.options import Scoring
from glm_transformers.evaluation.rows import score_rows
from glm_transformers.evaluation.score import score

CAPITALS = {
    "France": "Paris",
    "Italy": "Rome",
    "Spain": "Madrid",
    "Japan": "Tokyo",
    "Egypt": "Cairo",
    "Greece": "Athens",
}
TASKS = {
    "made_choices": """
task: made_choices
output_type: multiple_choice
doc_to_text: "The capital of {{country}} is"
doc_to_target: label
doc_to_choice: "{{choices}}"
metric_list: [{metric: acc}]
""",
    "made_text": """
task: made_text
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "The capital of {{country}} is {{choices[label]}}."
metric_list: [{metric: word_perplexity}, {metric: bits_per_byte}]
""",
    "made_writing": """
task: made_writing
output_type: generate_until
doc_to_text: "The capital of {{country}} is"
doc_to_target: "{{choices[label]}}"
generation_kwargs: {until: [".", " and"], max_gen_toks: 8}
filter_list: [{name: stripped, filter: [{function: remove_whitespace}, {function: take_first}]}]
metric_list: [{metric: exact_match}]
""",
}


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """A folder of tasks that need no network."""
    folder = tmp_path_factory.mktemp("tasks")
    cities = [*CAPITALS.values()]
    documents = [
        {"country": country, "choices": cities, "label": number}
        for number, country in enumerate(CAPITALS)
    ]
    data = folder / "data.jsonl"
    data.write_text("\n".join(map(json.dumps, documents)), encoding="utf-8")
    for name, text in TASKS.items():
        source = f"dataset_path: json\ndataset_kwargs: {{data_files: {{test: {data}}}}}\n"
        splits = "test_split: test\n"
        (folder / f"{name}.yaml").write_text(text + source + splits, encoding="utf-8")
    return TaskManager(include_path=str(folder), include_defaults=False)


@pytest.fixture(scope="module")
def glm(demo_repository):
    return GLMHarness(str(demo_repository), batch_size=4)


def requests(kind: str, *arguments: tuple) -> list[Instance]:
    return [Instance(kind, {}, one, 0) for one in arguments]


def test_a_local_task_by_name(demo_repository, tasks):
    found = simple_evaluate(
        "glm",
        f"pretrained={demo_repository}",
        tasks=["made_choices", "made_text", "made_writing"],
        task_manager=tasks,
        batch_size=4,
    )
    results = found["results"]
    assert results["made_choices"]["acc,none"] == 1
    assert results["made_writing"]["exact_match,stripped"] == 1
    assert results["made_text"]["word_perplexity,none"] < 5


def test_its_own_model_tells_that_it_is_wrong(demo_repository, tasks):
    own = HFLM(str(demo_repository), trust_remote_code=True, batch_size=4, device="cpu")
    with pytest.warns(UserWarning, match="neither a mask nor a"):
        simple_evaluate(own, tasks=["made_choices"], task_manager=tasks)


def test_ours_tells_nothing(glm, tasks):
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*neither a mask")
        simple_evaluate(
            glm, tasks=["made_choices", "made_text", "made_writing"], task_manager=tasks
        )


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tomllib is of Python 3.11")
def test_the_harness_finds_the_model_of_the_package():
    """Later versions by the entry point, whose class names itself as they ask for."""
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    ((name, value),) = project["entry-points"]["lm_eval.models"].items()
    assert EntryPoint(name, value, "lm_eval.models").load() is get_model(name) is GLMHarness


# --- How a context and what follows it are read ---------------------------------------------------


@pytest.mark.parametrize(
    "context, text, continuation",
    [
        ("A spider has", "A spider has[gMASK]", " eight"),
        ("A spider has ", "A spider has[gMASK]", "eight"),  # the space is the word's
        ("A spider has [MASK] legs.", "A spider has [MASK] legs.", " eight"),
        ("", "[gMASK]", "Eight"),
    ],
)
def test_a_continuation_is_the_answer_of_a_blank(glm, context, text, continuation):
    row = glm.continuation_row(context, continuation)
    tokenizer = glm.tokenizer
    assert row.context == tokenizer(text).input_ids
    assert row.context[row.blank] in tokenizer.mask_token_ids
    spaced = continuation if context.rstrip() == context else f" {continuation}"
    assert row.answer == tokenizer(spaced, add_special_tokens=False).input_ids
    assert (row.context[-1] == tokenizer.eos_token_id) == (not text.endswith("[gMASK]"))


def test_a_mask_of_ones_own(demo_repository):
    row = GLMHarness(str(demo_repository), mask="[MASK]").continuation_row("A spider has", " eight")
    assert row.context[-1] == GLMHarness(str(demo_repository)).tokenizer.eos_token_id
    with pytest.raises(ValueError, match=r"mask is \[BLANK\]; this model knows \[MASK\]"):
        GLMHarness(str(demo_repository), mask="[BLANK]")


def test_a_long_context_loses_its_left_and_never_its_mask(demo_repository):
    glm = GLMHarness(str(demo_repository), max_length=12)
    whole = glm.tokenizer("one two three four five six seven eight nine ten[gMASK]").input_ids
    row = glm.continuation_row("one two three four five six seven eight nine ten", " spider")
    assert len(row) == 12
    assert row.context == whole[:1] + whole[len(whole) - len(row.context) + 1 :]
    behind = glm.continuation_row("A [MASK] has one two three four five six seven eight", " spider")
    assert len(behind) == 12 and behind.blank == 1
    assert behind.context[1] == glm.tokenizer.mask_token_id
    with pytest.raises(ValueError, match=r"leaves it .* tokens of 12; allow more"):
        glm.continuation_row("A spider has", " eight legs" * 9)
    with pytest.raises(ValueError, match="has no token"):
        glm.continuation_row("A spider has", "")
    for told in (("A <|startofpiece|> has", " eight"), ("A spider has", " <|endofpiece|>")):
        with pytest.raises(ValueError, match="takes for a command and not for text"):
            glm.continuation_row(*told)


def test_answers_do_not_depend_on_the_batch(glm, demo_repository):
    asked = requests(
        "loglikelihood",
        *[("The capital of France is" + " very" * number, " Paris") for number in range(5)],
    )
    together = glm.loglikelihood(asked)
    alone = GLMHarness(str(demo_repository), batch_size=1).loglikelihood(asked)
    assert [greedy for _, greedy in together] == [greedy for _, greedy in alone]
    for (one, _), (other, _) in zip(together, alone, strict=True):
        assert one == pytest.approx(other, abs=1e-4)
    assert together[0] == (pytest.approx(0, abs=0.1), True)


def test_rolling_is_the_windows_of_the_perplexity_and_the_first_token(demo_repository):
    glm = GLMHarness(str(demo_repository), max_length=16, batch_size=4)
    text = "Paris is the capital of France. A spider has eight legs. A young cow is a calf."
    (rolling,) = glm.loglikelihood_rolling(requests("loglikelihood_rolling", (text,)))
    tokens = lm.encode(glm.tokenizer, text)
    rows = lm.windows(glm.tokenizer, tokens, 16, 8)
    assert len(rows) > 1 and sum(row.scored for row in rows) == len(tokens) - 1
    scores = score_rows(glm.model, glm.tokenizer, rows)
    first = glm.tokenizer.decode(tokens[:1])
    ((of_first, _),) = glm.loglikelihood(requests("loglikelihood", ("", first)))
    expected = sum(score.log_prob for score in scores) + of_first
    assert rolling == pytest.approx(expected, abs=1e-4)
    assert glm.loglikelihood_rolling(requests("loglikelihood_rolling", ("",))) == [0]


def test_writing_stops_where_it_is_told(glm):
    contexts = [f"The capital of {country} is" for country in CAPITALS]
    asked = [(context, {"until": [".", " and"], "max_gen_toks": 12}) for context in contexts]
    asked.append(("A spider has [MASK] legs.", {"until": []}))
    written = glm.generate_until(requests("generate_until", *asked))
    assert written == [*(f" {city}" for city in CAPITALS.values()), " eight"]
    limited = {"until": ["."], "max_gen_toks": 1}
    assert glm.generate_until(requests("generate_until", (contexts[0], limited))) == [" Paris"]
    with pytest.raises(ValueError, match="several masks"):
        glm.generate(["[MASK] is in [MASK]."], {"until": []})


# --- Long runs ------------------------------------------------------------------------------------


def test_what_a_killed_run_had_answered_is_not_asked_again(
    demo_repository, tasks, tmp_path, monkeypatch
):
    """The harness keeps answers in a file; the batches before the kill are in it."""
    import glm_transformers.evaluation.rows as rows

    options = dict(tasks=["made_choices"], task_manager=tasks, use_cache=str(tmp_path / "cache"))
    real, batches = rows.score_batch, []

    def killed(*arguments):
        if len(batches) == 3:
            raise KeyboardInterrupt
        batches.append(arguments)
        return real(*arguments)

    monkeypatch.setattr(rows, "score_batch", killed)
    with pytest.raises(KeyboardInterrupt):
        simple_evaluate(GLMHarness(str(demo_repository), batch_size=4), **options)
    batches.clear()
    monkeypatch.setattr(rows, "score_batch", lambda *a: batches.append(a) or real(*a))
    found = simple_evaluate(GLMHarness(str(demo_repository), batch_size=4), **options)
    assert found["results"]["made_choices"]["acc,none"] == 1
    assert sum(len(batch[-1]) for batch in batches) == 36 - 12


def test_two_processes_share_the_requests(demo_repository, tasks, colleague, tmp_path):
    """Of 36 each asks 18, by fours; killed after two batches, each goes on with what is left."""
    program = TWICE + (TESTS / "harness_processes.py").read_text(encoding="utf-8")
    printed = colleague.output(program, demo_repository, tasks.include_path, folder=tmp_path)
    (line,) = [line for line in printed.splitlines() if line.startswith("{")]
    assert json.loads(line) == {
        "asked again": [10, 10],
        "made_choices": 1.0,
        "made_writing": 1.0,
    }
    assert [file.name for file in tmp_path.iterdir()] == ["record.json"], "nothing else is left"


@pytest.mark.parametrize("wrong", ["auto", 0])
def test_a_batch_size_that_is_no_number(demo_repository, wrong):
    with pytest.raises(ValueError, match=f"batch_size is {wrong}; give a number of rows"):
        GLMHarness(str(demo_repository), batch_size=wrong)


def test_the_same_numbers_as_score_choices(glm):
    """Where the text has its blank, both ask the same."""
    from glm_transformers.evaluation import score_choices

    texts = [f"The capital of {country} is [MASK]." for country in CAPITALS]
    choices = [[f" {city}" for city in CAPITALS.values()]] * len(texts)
    expected = score_choices(glm.model, glm.tokenizer, texts, choices)
    asked = [(text, choice) for text, row in zip(texts, choices, strict=True) for choice in row]
    answers = glm.loglikelihood(requests("loglikelihood", *asked))
    flat = [score for row in expected for score in row]
    assert [score for score, _ in answers] == pytest.approx(flat, abs=1e-4)


def test_the_numbers_of_glm_score(demo_repository, tasks, tmp_path):
    """A task of multiple choice, and log-likelihoods, with the mask that `glm score` appends."""
    own = GLMHarness(str(demo_repository), mask="[MASK]", batch_size=4)
    found = simple_evaluate(own, tasks=["made_choices"], task_manager=tasks)
    cities = [f" {city}" for city in CAPITALS.values()]
    texts = [f"The capital of {country} is" for country in CAPITALS]

    def scored(name: str, **others: list):
        file = tmp_path / name
        columns = {"inputs_pretokenized": texts, **others}
        lines = [
            dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)
        ]
        file.write_text("\n".join(map(json.dumps, lines)))
        return score(Scoring(str(file), str(demo_repository), device="cpu"))

    choices = scored("choices", choices_pretokenized=[cities] * 6, label=[*range(6)])
    assert choices.measures[0].value == found["results"]["made_choices"]["acc,none"]
    for sample, text in zip(found["samples"]["made_choices"], choices.texts, strict=True):
        of_harness = [log_prob for ((log_prob, _),) in sample["resps"]]
        assert of_harness == pytest.approx(text["scores"], abs=1e-4)
    answers = scored("answers", targets_pretokenized=cities)
    asked = requests("loglikelihood", *zip(texts, cities, strict=True))
    assert [text["score"] for text in answers.texts] == pytest.approx(
        [log_prob for log_prob, _ in own.loglikelihood(asked)], abs=1e-4
    )


def test_by_the_command(demo_repository, tasks, tmp_path, monkeypatch):
    from test_cli import invoke, words

    # The harness reads its own thousands of tasks in ten seconds.
    without_its_own = partial(TaskManager, include_defaults=False)
    monkeypatch.setattr("lm_eval.tasks.TaskManager", without_its_own)
    output = tmp_path / "record.json"
    told = ("evaluate", demo_repository, "--task-folder", tasks.include_path, "--device", "cpu")
    result = invoke(*told, "--tasks", "made_choices,made_writing", "--output", output)
    assert result.exit_code == 0, result.output
    results = {one["task"]: one for one in json.loads(output.read_text())["results"]}
    assert results["made_choices"]["metric"] == "acc" and results["made_choices"]["value"] == 1
    assert results["made_choices"]["count"] == len(CAPITALS)
    assert results["made_writing"]["metric"] == "exact_match, stripped"
    assert [file.name for file in tmp_path.iterdir()] == ["record.json"]
    wrong = invoke(*told, "--tasks", "nowhere")
    assert wrong.exit_code == 1 and "has no such task" in words(wrong.output)
