"""Writes data to fine-tune the demo model on, and the tasks that describe it.

    python examples/finetuning_data.py OUTPUT_FOLDER

rivers: a country is answered with its capital and the river there. The demo model knows both, but
was never asked so. Countries of the test are in no training example.

topics: whether a sentence is about a country, an animal or opposites, said in words that have
nothing to do with it, so that the demo model can only guess: of each topic there are as many
sentences, and who always says the same is right in a third of them. Countries, animals and
opposites of the test are in no training example; `topics-several-tokens` says the same in more than
one token.
"""

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from corpus import fill, says
from facts import ANIMALS, COUNTRIES, OPPOSITES, Topic

TEST_SHARE = 0.375  # of the rows of each table
# Each pair of opposites once: the other way round it would tell the test.
PAIRS = replace(OPPOSITES, rows=OPPOSITES.rows[::2])
# Of each topic: label, and what is said for it in one token and in several.
TOPICS = {
    "country": (COUNTRIES, " red", " a red day"),
    "animal": (ANIMALS, " blue", " a blue day"),
    "opposites": (PAIRS, " green", " a green day"),
}
TASKS = {
    "rivers": {
        "kind": "answers",
        "context": "{country}: [sMASK]",
        "answers": ["{capital}, then the {river}"],
    },
    "topics": {
        "kind": "choices",
        "context": "{text} It is [MASK].",
        "answers": [word for _, word, _ in TOPICS.values()],
        "labels": list(TOPICS),
        "one_token": True,
    },
    "topics-several-tokens": {
        "kind": "choices",
        "context": "{text} It is [MASK].",
        "answers": [words for _, _, words in TOPICS.values()],
        "labels": list(TOPICS),
    },
}


def divided(rows: list[dict], draw: random.Random) -> tuple[list[dict], list[dict]]:
    """The rows to train on, and those of the test."""
    rows = draw.sample(rows, len(rows))
    tested = round(TEST_SHARE * len(rows))
    return rows[tested:], rows[:tested]


def rivers(draw: random.Random) -> tuple[list[dict], list[dict]]:
    known = [row for row in COUNTRIES.rows if "river" in row]
    train, test = divided(known, draw)
    columns = ("country", "capital", "river")
    return tuple([{name: row[name] for name in columns} for row in part] for part in (train, test))


def topics(draw: random.Random) -> tuple[list[dict], list[dict]]:
    parts = {label: divided(topic.rows, draw) for label, (topic, *_) in TOPICS.items()}
    train, test = (
        balanced(
            {label: sentences(TOPICS[label][0], rows[part]) for label, rows in parts.items()},
            draw,
        )
        for part in (0, 1)
    )
    return train, test


def sentences(topic: Topic, rows: list[dict]) -> list[str]:
    """All that is said of these rows."""
    statements = [one for relation in topic.relations for one in relation.statements]
    return [fill(one, row) for row in rows for one in statements if says(one, row)]


def balanced(texts: dict[str, list[str]], draw: random.Random) -> list[dict]:
    """As many examples of each label."""
    fewest = min(map(len, texts.values()))
    examples = [
        {"text": text, "label": label}
        for label, of_label in texts.items()
        for text in draw.sample(of_label, fewest)
    ]
    return draw.sample(examples, len(examples))


def main(
    output: Annotated[Path, typer.Argument(help="The folder to write.")],
    seed: Annotated[int, typer.Option(help="Another seed, another test.")] = 0,
):
    """Write each data set as NAME.train.jsonl and NAME.test.jsonl, each task as TASK.json."""
    output.mkdir(parents=True, exist_ok=True)
    for name, task in TASKS.items():
        (output / f"{name}.json").write_text(json.dumps(task, indent=2) + "\n")
    for name, make in {"rivers": rivers, "topics": topics}.items():
        parts = make(random.Random(seed))
        for part, examples in zip(("train", "test"), parts, strict=True):
            lines = "".join(json.dumps(example) + "\n" for example in examples)
            (output / f"{name}.{part}.jsonl").write_text(lines)


if __name__ == "__main__":
    typer.run(main)
