"""Examples of a task are scored as in the original, from the raw example; SuperGLUE's files."""

import json
import re

import pytest
import torch
from conftest import needs_full_reference

from glm_transformers import GLMForConditionalGeneration, GLMTokenizerFast
from glm_transformers.evaluation.predict import (
    answer_contexts,
    features_of,
    score_examples,
    submission_lines,
    write_answers,
    write_submission,
)
from glm_transformers.training.examples import read_examples
from glm_transformers.training.options import Finetuning
from glm_transformers.training.seq2seq import Answers
from glm_transformers.training.task_table import TASKS


@needs_full_reference("the scores are probabilities over every row of the vocabulary")
@pytest.mark.parametrize("name", ["tiny-gpt2-fp16", "tiny-bert-fp16", "tiny-chinese-10b-fp16"])
def test_scores_of_raw_examples(repository, reference, name):
    folder = repository(name)
    model = GLMForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    tokenizer = GLMTokenizerFast.from_pretrained(folder)
    files = [reference / "goldens" / name / f"superglue{end}.json" for end in ("", "_truncated")]
    cases = [case for file in files if file.exists() for case in json.loads(file.read_text())]
    cases = [case for case in cases if "label_scores" in case]
    assert cases
    for case in cases:
        example = {**case["example"], **case["example"].get("meta", {})}
        (scores,) = score_examples(
            model,
            tokenizer,
            TASKS[case["task"].lower()],
            [example],
            pattern=case["pattern_id"],
            max_length=case["max_seq_length"],
        )
        assert scores == pytest.approx(case["label_scores"], abs=1e-4), case["task"]
        assert scores.index(max(scores)) == case["prediction"]


@needs_full_reference("a beam search goes over every row of the vocabulary")
def test_beam_search_from_raw_examples(repository, reference):
    """Ids, and scores, in whose length the end of a piece does not count."""
    name = "tiny-gpt2-fp16"
    folder = repository(name)
    model = GLMForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = GLMTokenizerFast.from_pretrained(folder)
    cases = json.loads((reference / "goldens" / name / "beam_search.json").read_text())
    for case in cases:
        limits = dict(max_length=case["src_seq_length"], max_target_length=case["tgt_seq_length"])
        told = Finetuning(case["task"], "", "", attend_padding=not case["mask_pad_token"], **limits)
        recipe = Answers(TASKS[case["task"]], told, tokenizer)
        contexts = [recipe.encoded(one, with_answers=False).context for one in case["examples"]]
        for context, text in zip(contexts, case["text"], strict=True):
            assert context == text[: len(context)]
        generation = {
            "num_beams": case["num_beams"],
            "length_penalty": case["length_penalty"] if case["num_beams"] > 1 else None,
            "min_new_tokens": case["min_tgt_length"],
            "no_repeat_ngram_size": case["no_repeat_ngram_size"],
            "max_new_tokens": case["tgt_seq_length"],
            "eos_token_id": tokenizer.eop_token_id,
        }
        written = answer_contexts(model, tokenizer, contexts, **generation)
        assert written == [[text.strip()] for text in case["predictions"]]
        if case["num_beams"] > 1:
            output = model.generate(
                **tokenizer.pad({"input_ids": contexts}, padding_side="left", return_tensors="pt"),
                output_scores=True,
                return_dict_in_generate=True,
                **generation,
            )
            assert output.sequences_scores.tolist() == pytest.approx(case["final_scores"], abs=1e-4)
            said = output.sequences[:, max(map(len, contexts)) + 1 :]
            assert said.tolist() == case["final_token_ids"]


@pytest.fixture(scope="module")
def made(made_repository):
    model = GLMForConditionalGeneration.from_pretrained(made_repository, dtype=torch.float32)
    return model.eval(), GLMTokenizerFast.from_pretrained(made_repository)


COPA = [
    {
        "text_a": "Ng is a professor",
        "question": "effect",
        "choice1": "The fox jumps",
        "choice2": "The dog is lazy over the fox",
    },
    {
        "text_a": "The dog jumps over the lazy dog",
        "question": "cause",
        "choice1": "Ng is in Beijing",
        "choice2": "Stanford",
    },
]


def test_examples_together_are_examples_one_by_one(made):
    together = score_examples(*made, TASKS["copa"], COPA, batch_size=3)
    for example, scores in zip(COPA, together, strict=True):
        (alone,) = score_examples(*made, TASKS["copa"], [example], batch_size=1)
        assert scores == pytest.approx(alone, abs=1e-4) and len(scores) == 2


def test_each_choice_of_a_long_text_has_all_the_room_that_it_leaves(made):
    short, long = "Ng", COPA[0]["choice2"]
    for choices in ((short, long), (long, short)):
        example = {**COPA[0], "text_a": f"{COPA[0]['text_a']} " * 9}
        example |= dict(zip(("choice1", "choice2"), choices, strict=True))
        for feature in features_of(TASKS["copa"], example, made[1], max_length=60):
            (answer,) = feature["answers"]
            assert len(feature["context"]) + len(answer) == 60


def test_answers_that_are_written(made):
    texts = ["The quick brown fox", "Ng is an adjunct professor at Stanford", "The dog"]
    examples = [{"source": text, "text": text, "text_a": text} for text in texts]
    options = dict(max_length=48, max_new_tokens=5)
    together = write_answers(*made, TASKS["gigaword"], examples, batch_size=2, **options)
    alone = [write_answers(*made, TASKS["gigaword"], [one], **options)[0] for one in examples]
    assert together == alone and all(len(answers) == 1 for answers in together)


def test_kinds_are_not_mixed(made):
    with pytest.raises(ValueError, match="has no choices to score"):
        score_examples(*made, TASKS["gigaword"], [])
    with pytest.raises(ValueError, match="no answers to write"):
        write_answers(*made, TASKS["copa"], [])


# --- Files of the benchmark -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "task, labels",
    [
        ("boolq", ["false", "true"]),
        ("cb", ["entailment", "contradiction", "neutral"]),
        ("copa", [0, 1]),
        ("rte", ["entailment", "not_entailment"]),
        ("axb", ["entailment", "not_entailment"]),
        ("axg", ["entailment", "not_entailment"]),
        ("wic", ["false", "true"]),
    ],
)
def test_labels_as_the_benchmark_spells_them(task, labels):
    examples = [{"idx": 10 + number} for number in range(len(labels))]
    lines = submission_lines(TASKS[task], examples, range(len(labels)))
    assert lines == [{"idx": 10 + number, "label": label} for number, label in enumerate(labels)]


def test_wsc_asks_for_the_first_choice():
    lines = submission_lines(TASKS["wsc"], [{"idx": 0}, {"idx": 1}], [0, 3])
    assert lines == [{"idx": 0, "label": "True"}, {"idx": 1, "label": "False"}]


def published(tmp_path, task: str, record: dict) -> list[dict]:
    """The examples of a file with one record, as `glm evaluate` reads them."""
    (tmp_path / "val.jsonl").write_text(json.dumps(record))
    return list(read_examples(TASKS[task], tmp_path, "validation"))


def test_multirc_is_gathered_by_paragraph_and_question(tmp_path):
    """From the official file, and from the Hub's rows of the same."""
    questions = [
        {"question": "Who?", "idx": 4, "answers": [{"text": "Ng", "idx": 8, "label": 1}]},
        {"question": "Where?", "idx": 5, "answers": [{"text": "Here", "idx": 9, "label": 0}]},
    ]
    questions[0]["answers"].append({"text": "Tang", "idx": 10, "label": 0})
    passage = {"text": "Ng was there.", "questions": questions}
    of_file = published(tmp_path, "multirc", {"idx": 3, "passage": passage})
    of_hub = [
        example
        for question in questions
        for answer in question["answers"]
        for example in TASKS["multirc"].official.examples(
            {
                "paragraph": passage["text"],
                "question": question["question"],
                "answer": answer["text"],
                "label": answer["label"],
                "idx": {"paragraph": 3, "question": question["idx"], "answer": answer["idx"]},
            }
        )
    ]
    assert of_file == of_hub
    lines = submission_lines(TASKS["multirc"], of_file, [1, 0, 1])
    first = [{"idx": 8, "label": 1}, {"idx": 10, "label": 0}]
    asked = [{"idx": 4, "answers": first}, {"idx": 5, "answers": [{"idx": 9, "label": 1}]}]
    assert lines == [{"idx": 3, "passage": {"questions": asked}}]


def test_record_tells_the_text_of_the_candidate(tmp_path):
    """From the official file, and from the Hub's row of the same."""
    text, query = "Ng met Tang.", "@placeholder is a professor."
    entities = [{"start": 0, "end": 1}, {"start": 7, "end": 10}]
    asked = [{"query": query, "idx": 5, "answers": [{"text": "Tang", "start": 7, "end": 10}]}]
    passage = {"text": text, "entities": entities}
    of_file = published(tmp_path, "record", {"idx": 1, "passage": passage, "qas": asked})
    of_hub = TASKS["record"].official.examples(
        {
            "passage": text,
            "query": query,
            "entities": ["Tang", "Ng"],
            "answers": ["Tang"],
            "idx": {"passage": 1, "query": 5},
        }
    )
    assert of_file == of_hub
    lines = submission_lines(TASKS["record"], of_file, [1])
    assert lines == [{"idx": 5, "label": "Tang"}]


def test_the_file_of_the_leaderboard(tmp_path):
    file = write_submission(tmp_path, TASKS["rte"], [{"idx": 0}, {"idx": 1}], [1, 0])
    assert file.name == "RTE.jsonl"
    assert [json.loads(line) for line in file.read_text().splitlines()] == [
        {"idx": 0, "label": "not_entailment"},
        {"idx": 1, "label": "entailment"},
    ]


@pytest.mark.parametrize(
    "task, example, message",
    [
        ("agnews", {"idx": 0}, "SuperGLUE has no task agnews"),
        ("rte", {}, "Example 1 has no idx"),
        ("multirc", {"idx": 0, "passage_idx": 1}, "Example 1 has no question_idx"),
    ],
)
def test_what_is_of_no_benchmark(task, example, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        submission_lines(TASKS[task], [example], [0])
