"""`glm preview` shows what the collator made, and who really sees whom."""

import json
import struct
from itertools import pairwise

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from glm_transformers import GLMDataCollator, GLMForConditionalGeneration, GLMTokenizerFast
from glm_transformers.cli import app
from glm_transformers.tokenization_glm import IGNORED
from glm_transformers.training.blank_infilling import BlankInfillingCollator, Recipe
from glm_transformers.training.options import Preview
from glm_transformers.training.preview import draw, make_example, read_example, token_text

TEXT = (
    "Ng is an adjunct professor at Stanford. Tsinghua University is located in Beijing. "
    "The fox jumps over the dog."
)


@pytest.fixture(scope="module")
def tokenizer(made_repository):
    return GLMTokenizerFast.from_pretrained(made_repository)


@pytest.mark.parametrize("mode", ["token", "sentence", "document"])
@pytest.mark.parametrize("seed", range(3))
def test_every_row_is_the_collators(tokenizer, mode, seed):
    batch = BlankInfillingCollator(tokenizer, seed=seed).collate(
        [{"input_ids": tokenizer(TEXT).input_ids}], 0, mode
    )
    example = read_example(batch, tokenizer)
    ids, labels = batch["input_ids"][0], batch["labels"][0]
    positions, block_positions = batch["position_ids"][0]
    assert len(example.tokens) == len(ids) == len(example.labels) == len(example.sees)
    assert example.positions.tolist() == positions.tolist()
    assert example.block_positions.tolist() == block_positions.tolist()
    starts = (ids == tokenizer.sop_token_id).nonzero()[:, 0].tolist()
    masks = torch.isin(ids, torch.tensor(tokenizer.mask_token_ids))
    blanks = masks.nonzero()[:, 0].tolist()
    assert example.context == starts[0]
    # Each piece, in whatever order, has the number of the blank whose position it has.
    for start, end in pairwise([*starts, len(ids)]):
        number = 1 + [positions[blank].item() for blank in blanks].index(positions[start].item())
        assert set(example.pieces[start:end]) == {number}
        assert example.parts[start] == f"piece {number}"
        assert example.colors[start] == example.colors[blanks[number - 1]] != example.colors[0]
    for label, shown, token in zip(labels.tolist(), example.labels, example.tokens, strict=True):
        assert (shown == "") == (label == IGNORED) and token
    assert not any(example.labels[: example.context])


def test_the_picture_is_who_influences_whom(tokenizer, made_repository):
    """A token sees another if what it becomes changes with that one."""
    batch = BlankInfillingCollator(tokenizer, seed=1).collate(
        [{"input_ids": tokenizer(TEXT).input_ids}], 0, "token"
    )
    sees = read_example(batch, tokenizer).sees
    torch.manual_seed(0)
    model = GLMForConditionalGeneration.from_pretrained(made_repository).eval()
    batch = {name: tensor for name, tensor in batch.items() if name != "labels"}
    with torch.no_grad():
        before = model(**batch).logits[0]
        for column in range(0, len(sees), 7):
            changed = batch["input_ids"].clone()
            changed[0, column] = 5 if changed[0, column] != 5 else 6
            after = model(**{**batch, "input_ids": changed}).logits[0]
            moved = (after - before).abs().amax(-1) > 1e-6
            assert moved.tolist() == sees[:, column].tolist(), column


def test_a_hidden_token_of_a_piece_has_a_name(tokenizer):
    collator = BlankInfillingCollator(tokenizer, Recipe(block_mask_prob=1.0))
    example = read_example(
        collator.collate([{"input_ids": tokenizer(TEXT).input_ids}], 0, "token"), tokenizer
    )
    assert "[dBLOCK]" in example.tokens and "[dBLOCK]" not in example.labels


def test_picture_file(made_repository, tmp_path):
    example = make_example(Preview(str(made_repository), TEXT, mode="token"))
    draw(example, tmp_path / "picture.png")
    content = (tmp_path / "picture.png").read_bytes()
    width, height = struct.unpack(">II", content[16:24])
    cells = len(example.tokens) * 0.24 * 150  # of the mask alone
    assert content[:4] == b"\x89PNG"
    assert cells < width < cells + 900 and cells < height < cells + 900
    from matplotlib.image import imread

    picture = (imread(tmp_path / "picture.png") * 255).astype(int)
    colours = picture[..., :3] @ (1 << 16, 1 << 8, 1)
    assert len(np.unique(colours)) > 5  # it is no empty page


def run(*arguments):
    result = CliRunner().invoke(app, ["preview", *map(str, arguments)])
    assert "Traceback" not in result.output and not isinstance(
        result.exception, (ValueError, OSError)
    )
    return result


def test_command(made_repository, tmp_path):
    result = run(
        made_repository, "--text", TEXT, "--mode", "sentence", "--png", tmp_path / "picture.png"
    )
    assert (
        result.exit_code == 0 and "block position" in result.output and "[sMASK]" in result.output
    )
    assert (tmp_path / "picture.png").stat().st_size > 1000
    (tmp_path / "texts.txt").write_text(TEXT + "\n")
    result = run(made_repository, "--data", tmp_path / "texts.txt", "--length", "24", "--seed", "2")
    assert result.exit_code == 0 and "<|startofpiece|>" in result.output


@pytest.mark.parametrize("name", ["x.foo", "picture", "picture.jpg"])
def test_a_name_that_no_picture_has(made_repository, tmp_path, name):
    result = run(made_repository, "--text", TEXT, "--png", tmp_path / name)
    assert result.exit_code == 1 and "ends with .png" in " ".join(result.output.split())
    assert "block position" not in result.output and not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match=r"ends with \.png"):
        draw(make_example(Preview(str(made_repository), TEXT)), tmp_path / name)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "either --text"),
        (["--text", TEXT, "--data", "x"], "either --text"),
        (["--text", ""], "4 to 64"),
        (["--text", TEXT * 9], "pass --length"),
        (["--text", TEXT, "--recipe", "glm-3b"], "no recipe glm-3b"),
        (
            ["--text", "nothing that ends", "--mode", "sentence"],
            "No text of this batch can be masked in sentence mode",
        ),
    ],
)
def test_wrong_options_are_one_sentence(made_repository, arguments, message):
    result = run(made_repository, *arguments)
    assert result.exit_code == 1 and message in " ".join(result.output.split())


def test_no_tokenizer(tmp_path):
    result = run(tmp_path, "--text", TEXT)
    assert result.exit_code == 1 and "no folder with a tokenizer.json" in " ".join(
        result.output.split()
    )


def write_task(folder, **entries):
    file = folder / "task.json"
    file.write_text(json.dumps(entries))
    (folder / "data.jsonl").write_text('{"place": "Tsinghua University", "city": "Beijing"}\n')
    return str(file), str(folder / "data.jsonl")


def test_answers_of_a_task(tmp_path, made_repository, tokenizer):
    """Context and answers are those that the recipe learns from."""
    task, data = write_task(
        tmp_path,
        kind="answers",
        context="{place} is located in [MASK]. [sMASK]",
        answers=["{city}", "{city} is large."],
    )
    example = make_example(Preview(str(made_repository), task=task, data=data))
    text = "Tsinghua University is located in [MASK]. [sMASK]"
    batch = GLMDataCollator(tokenizer)([{"text": text, "target": ["Beijing", "Beijing is large."]}])
    assert len(example.tokens) == batch["input_ids"].shape[1]
    said = [token_text(id, tokenizer) for id in batch["labels"][0].tolist() if id >= 0]
    assert [label for label in example.labels if label] == said
    assert example.parts[-1] == "piece 2" and example.context == len(tokenizer(text).input_ids)


def test_choices_of_a_task(tmp_path, made_repository):
    """Each sees the context, their start and itself, and none another choice."""
    task, data = write_task(
        tmp_path,
        kind="choices",
        context="{place} is large: [MASK].",
        answers=[" yes indeed", " no"],
    )
    example = make_example(Preview(str(made_repository), task=task, data=data))
    start = example.context
    assert example.parts[start] == "all choices" and " | " in example.labels[start]
    first, second = (
        [column for column, part in enumerate(example.parts) if part == f"choice {number}"]
        for number in (1, 2)
    )
    assert first and second and len(example.tokens) == start + 1 + len(first) + len(second)
    for row in first:
        seen = np.flatnonzero(example.sees[row]).tolist()
        assert seen == [*range(start + 1), *(column for column in first if column <= row)]
    assert set(example.positions[first + second]) == {example.positions[start]}


def test_a_task_without_data_shows_its_fields(tmp_path, made_repository):
    task, _ = write_task(tmp_path, kind="answers", context="{place}: [MASK]", answers=["{city}"])
    example = make_example(Preview(str(made_repository), task=task))
    assert "".join(example.tokens[1:]).startswith("place")
    with pytest.raises(ValueError, match="pass --data"):
        make_example(Preview(str(made_repository), task="copa"))
