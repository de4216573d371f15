"""The paper in miniature: GLM's objective against its ablations, on the corpus of the demo.

    python examples/ablations.py FOLDER

Each variant is the demo's model, trained anew with each seed on an eighth of the demo's facts, and
asked the questions that are held out of these. What is finished is in FOLDER/results.json and not
made again: a command that was killed is given again, and goes on where it was. In the end the table
of all runs is printed.
"""

import json
import shutil
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import corpus
import typer
from corpus import Corpus
from evaluate_demo import BATCH, ask_two_at_once, fill_all, is_right, measure, read_questions
from facts import TOPICS
from safetensors.torch import load_file, save_file
from tqdm.auto import tqdm

from glm_transformers.evaluation.model import load
from glm_transformers.evaluation.options import Scoring
from glm_transformers.evaluation.record import versions, write_record
from glm_transformers.evaluation.score import of_texts, read_texts
from glm_transformers.training.options import Pretraining
from glm_transformers.training.pretrain import pretrain
from glm_transformers.training.recipe import Mode, Recipe, read_recipe
from glm_transformers.training.run import Run

EXAMPLES = Path(__file__).parent
MIX = read_recipe(str(EXAMPLES / "demo_recipe.json"))
VARIANTS = {
    "the mix": MIX,
    "pieces in text order": replace(MIX, shuffle_pieces=False),
    "no second position": replace(MIX, block_positions=False),
    "token blanks alone": replace(MIX, token=1.0, sentence=0.0, document=0.0),
    "document blanks alone": replace(MIX, token=0.0, sentence=0.0, document=1.0),
}
# What is measured, and the mode in which a model meets the mask that is asked with.
MEASURES: dict[str, Mode] = {
    "`[MASK]`": "token",
    "two `[MASK]`": "token",
    "`[sMASK]`": "sentence",
    "`[gMASK]`": "document",
    "best choice": "token",
    "perplexity, answers": "token",
    "perplexity, documents": "document",
}
# A seed has one of so many parts of the demo's facts: each is met often enough to be learnt in few
# steps. More of the phrasings than the demo's share are held out, so that there is enough to ask.
PARTS, HELD_OUT = 8, 0.15
# Less than the demo's 64 and 3e-3: many small steps get further with few texts.
BATCH_SIZE, LEARNING_RATE = 16, 2e-3
BLOCK_TABLE = "glm.transformer.block_position_embeddings.weight"
NEVER_MET = "†"


# --- One run --------------------------------------------------------------------------------------


def run(folder: Path, variant: str, seed: int, steps: int) -> dict[str, Any]:
    """Train, or go on training, and measure: an entry of the results."""
    data = folder / f"corpus-{seed}"
    if not data.exists():
        write_corpus(data, seed)
    repository = folder / f"{variant}-{seed}".replace(" ", "-")
    train(data, repository, VARIANTS[variant], seed, steps)
    measures = evaluate(data, repository)
    return {"variant": variant, "seed": seed, "measures": measures}


def write_corpus(folder: Path, seed: int):
    """The demo's corpus of a part of its facts, with other phrasings held out for each seed."""
    topics = tuple(replace(topic, rows=topic.rows[seed % PARTS :: PARTS]) for topic in TOPICS)
    unfinished = folder.with_suffix(".new")
    corpus.write(Corpus(seed, topics, HELD_OUT), unfinished)
    unfinished.rename(folder)


def train(data: Path, repository: Path, recipe: Recipe, seed: int, steps: int):
    """As train_demo.sh does, with less to read, and a recipe and a seed of its own."""
    place = Run.of(str(repository))
    if not repository.exists():
        pretrain(
            Pretraining(
                data=str(data / "train.txt"),
                output=str(repository),
                config=str(EXAMPLES / "demo_config.json"),
                tokenizer=str(data / "tokenizer"),
                recipe=recipe,
                one_document=True,
                length=corpus.LONGEST,
                steps=steps,
                batch_size=BATCH_SIZE,
                learning_rate=LEARNING_RATE,
                save_every=500,
                log_every=100,
                seed=seed,
                resume=place.last is not None,
            )
        )
        shutil.rmtree(place.checkpoints)
    if not recipe.block_positions:
        forget_second_position(repository)


def forget_second_position(repository: Path):
    """Give all tokens of a piece the block position that they had in training, which is 1."""
    file = repository / "model.safetensors"
    weights = load_file(file)
    weights[BLOCK_TABLE][2:] = weights[BLOCK_TABLE][1]  # (P + 1, H); row 0 is the context's
    changed = file.with_suffix(".new")
    save_file(weights, changed, metadata={"format": "pt"})
    changed.replace(file)


def evaluate(data: Path, repository: Path) -> dict[str, float]:
    """A value for each of MEASURES: shares of right answers, perplexities of tokens."""
    questions = read_questions(data / "held_out.jsonl")
    model, tokenizer = loaded = load(str(repository))
    pieces = fill_all(model, tokenizer, [question["text"] for question in questions], BATCH)
    right: dict[str, list[bool]] = {}
    for question, (piece,) in zip(questions, pieces, strict=True):
        right.setdefault(f"`{question['mask']}`", []).append(is_right(question, piece))
    right["two `[MASK]`"] = ask_two_at_once(model, tokenizer, questions)
    choices, answers = measure(repository, data / "held_out.jsonl")
    validation = str(data / "validation.txt")
    (documents,) = of_texts(loaded, read_texts(validation)[1], Scoring(validation)).measures
    return {
        **{name: statistics.mean(of_kind) for name, of_kind in right.items()},
        "best choice": choices.value,
        "perplexity, answers": answers.value,
        "perplexity, documents": documents.value,
    }


# --- All runs -------------------------------------------------------------------------------------


def read_results(file: Path) -> dict[str, Any]:
    """What is finished; nothing if there is no file."""
    if not file.exists():
        return {"runs": []}
    return json.loads(file.read_text(encoding="utf-8"))


def make_table(results: dict[str, Any]) -> str:
    """In Markdown: a row for each variant, mean and standard deviation over its seeds."""
    lines = [
        f"| | seeds | {' | '.join(MEASURES)} |",
        f"|---|---:|{'---:|' * len(MEASURES)}",
    ]
    for variant, recipe in VARIANTS.items():
        runs = [entry["measures"] for entry in results["runs"] if entry["variant"] == variant]
        if not runs:
            continue
        cells = [
            cell(name, [measures[name] for measures in runs])
            + NEVER_MET * (getattr(recipe, mode) == 0)
            for name, mode in MEASURES.items()
        ]
        lines.append(f"| {variant} | {len(runs)} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", f"{NEVER_MET} This model never met the mask in training."])


def cell(name: str, values: list[float]) -> str:
    """Mean ± standard deviation, in percent but for perplexities; a single run has no deviation."""
    if name.startswith("perplexity"):
        mean, digits = statistics.mean(values), 2
        if mean >= 100:
            digits = 0
    else:
        values = [100 * value for value in values]
        mean, digits = statistics.mean(values), 1
    shown = f"{mean:,.{digits}f}"
    return shown if len(values) == 1 else f"{shown} ± {statistics.stdev(values):,.{digits}f}"


def main(
    folder: Annotated[Path, typer.Argument(help="For the corpus, the models and the results.")],
    steps: Annotated[int, typer.Option(min=1, help="Steps of each training.")] = 3000,
    seeds: Annotated[int, typer.Option(min=1, help="Trainings of each variant.")] = 3,
    table: Annotated[
        bool,
        typer.Option("--table", help="Print the table of what is finished, and train nothing."),
    ] = False,
):
    """Train and measure what is not finished, all variants with one seed after the other."""
    file = folder / "results.json"
    results = {"steps": steps, "versions": versions(), **read_results(file)}
    if not table:
        if results["steps"] != steps:
            raise typer.BadParameter(
                f"{file} is of runs with --steps {results['steps']}; give the same, or another "
                "folder."
            )
        finished = [(entry["variant"], entry["seed"]) for entry in results["runs"]]
        wanted = [(variant, seed) for seed in range(1, seeds + 1) for variant in VARIANTS]
        missing = [one for one in wanted if one not in finished]
        for variant, seed in tqdm(missing, desc="Runs"):
            results["runs"].append(run(folder, variant, seed, steps))
            write_record(file, results)
    print(make_table(results))


if __name__ == "__main__":
    typer.run(main)
