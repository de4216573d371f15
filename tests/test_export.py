"""Export, the inverse of conversion, and `glm verify`: is a repository what was converted?"""

import json
import shutil

import pytest
import torch
from made import make_checkpoint, make_parameters, make_vocabulary
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from glm_transformers.cli import app
from glm_transformers.conversion import (
    ConversionError,
    convert_checkpoint,
    export_checkpoint,
    verify_repository,
)

OPTIONS = dict(tokenizer="none", num_attention_heads=4)


def modules(checkpoint, weights_only=True) -> list[dict]:
    """The parameters of each rank, as torch loads them; what we wrote needs no trust."""
    tag = (checkpoint / "latest_checkpointed_iteration.txt").read_text().strip()
    files = sorted((checkpoint / tag).glob("mp_rank_*_model_states.pt"))
    return [torch.load(file, weights_only=weights_only)["module"] for file in files]


def assert_same_ranks(ours: list[dict], theirs: list[dict]):
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert set(one) == set(other)
        for name, tensor in other.items():
            assert one[name].dtype == tensor.dtype and torch.equal(one[name], tensor), name
            assert one[name].is_contiguous()


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_golden_ranks(reference, repository, tmp_path, ranks):
    source = "tiny-gpt2-fp16" if ranks == 1 else f"tiny-gpt2-fp16_MP{ranks}"
    exported = export_checkpoint(
        repository("tiny-gpt2-fp16"), tmp_path / "out", model_parallel_size=ranks
    )
    expected = [
        torch.load(file, weights_only=False)["module"]
        for file in sorted((reference / "checkpoints" / source).rglob("mp_rank_*_model_states.pt"))
    ]
    assert_same_ranks(modules(exported), expected)


@pytest.mark.parametrize(
    "name", ["tiny-classifier", "tiny-multichoice-head", "tiny-noblockpos", "tiny-fp32"]
)
def test_golden_round_trips(reference, repository, tmp_path, name):
    exported = export_checkpoint(repository(name), tmp_path / "out")
    again = convert_checkpoint(exported, tmp_path / "again", **OPTIONS)
    assert (again / "model.safetensors").read_bytes() == (
        repository(name) / "model.safetensors"
    ).read_bytes()


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("block_positions", [True, False])
def test_round_trip_is_exact(tmp_path, ranks, block_positions):
    checkpoint = make_checkpoint(
        tmp_path / "checkpoint", make_parameters(block_positions=block_positions), ranks
    )
    first = convert_checkpoint(checkpoint, tmp_path / "first", **OPTIONS)
    exported = export_checkpoint(first, tmp_path / "exported", model_parallel_size=ranks)
    assert_same_ranks(modules(exported), modules(checkpoint, weights_only=False))
    second = convert_checkpoint(exported, tmp_path / "second", **OPTIONS)
    assert (first / "model.safetensors").read_bytes() == (second / "model.safetensors").read_bytes()


def test_prompts_and_shards_and_dtype(reference, tmp_path):
    source = reference / "checkpoints/tiny-prompt-lstm"
    repository = convert_checkpoint(source, tmp_path / "prompt", max_shard_size="20KB", **OPTIONS)
    assert len(list(repository.glob("model-*.safetensors"))) > 1
    again = convert_checkpoint(
        export_checkpoint(repository, tmp_path / "exported"), tmp_path / "again", **OPTIONS
    )
    prompt = "prompt_spell.safetensors"
    assert (again / prompt).read_bytes() == (repository / prompt).read_bytes()
    (half,) = modules(export_checkpoint(repository, tmp_path / "half", dtype="bfloat16"))
    (whole,) = modules(tmp_path / "exported")
    assert all(torch.equal(half[name], whole[name].bfloat16()) for name in whole)


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(model_parallel_size=3), "4 attention heads cannot be shared by 3"),
        (dict(model_parallel_size=0), "choose a divisor"),
        (dict(dtype="int8"), "dtype int8 is unknown"),
    ],
)
def test_what_cannot_be_exported(made_repository, tmp_path, options, message):
    with pytest.raises(ConversionError, match=message):
        export_checkpoint(made_repository, tmp_path / "out", **options)
    (tmp_path / "there").mkdir()
    with pytest.raises(ConversionError, match="exists already"):
        export_checkpoint(made_repository, tmp_path / "there")
    with pytest.raises(ConversionError, match="is no repository"):
        export_checkpoint(tmp_path / "nothing", tmp_path / "out")
    assert {file.name for file in tmp_path.iterdir()} == {"there"}


# --- Verification ---------------------------------------------------------------------------------


@pytest.fixture
def pair(tmp_path):
    """A checkpoint and the repository it became."""
    checkpoint = make_checkpoint(tmp_path / "checkpoint", make_parameters(), ranks=2)
    vocabulary = make_vocabulary(tmp_path / "vocabulary")
    options = dict(model="glm-2b", vocab=vocabulary, num_attention_heads=4, max_shard_size="30KB")
    return checkpoint, convert_checkpoint(checkpoint, tmp_path / "repository", **options)


def failed(repository, against=None) -> dict[str, str]:
    return {
        check.name: check.detail
        for check in verify_repository(repository, against)
        if check.passed is False
    }


def test_a_good_repository_is_verified(pair):
    checkpoint, repository = pair
    checks = verify_repository(repository, checkpoint)
    assert all(check.passed for check in checks) and len(checks) == 5
    result = CliRunner().invoke(app, ["verify", str(repository), "--against", str(checkpoint)])
    assert result.exit_code == 0 and "failed" not in result.output and "one blank" in result.output


def test_golden_repositories_equal_their_checkpoints(reference, repository):
    for name in (
        "tiny-gpt2-fp16",
        "tiny-chinese-10b-fp16",
        "tiny-bert-fp16",
        "tiny-classifier",
        "tiny-noblockpos",
    ):
        assert failed(repository(name), reference / "checkpoints" / name) == {}, name
    assert "checkpoint" in failed(
        repository("tiny-fp32"), reference / "checkpoints/tiny-noblockpos"
    )


def change_weights(repository):
    file = sorted(repository.glob("model-*.safetensors"))[0]
    tensors = load_file(file)
    name = sorted(tensors)[0]
    tensors[name] = tensors[name].clone()
    tensors[name].view(-1)[0] += 1
    save_file(tensors, file, metadata={"format": "pt"})


def drop_shard(repository):
    sorted(repository.glob("model-*.safetensors"))[-1].unlink()


def drop_code(repository):
    (repository / "tokenization_glm.py").unlink()


def change_code(repository):
    with open(repository / "modeling_glm.py", "a") as file:
        file.write("# changed\n")


def change_ids(repository):
    config = json.loads((repository / "config.json").read_text())
    (repository / "config.json").write_text(
        json.dumps({**config, "sop_token_id": config["eop_token_id"]})
    )


def change_tokenizer(repository):
    tokenizer = json.loads((repository / "tokenizer.json").read_text())
    tokenizer["model"]["merges"] = tokenizer["model"]["merges"][:-1]
    (repository / "tokenizer.json").write_text(json.dumps(tokenizer))


def other_model(repository):
    config = json.loads((repository / "config.json").read_text())
    (repository / "config.json").write_text(json.dumps({**config, "num_layers": 3}))


@pytest.mark.parametrize(
    "change, check",
    [
        (change_weights, "weights"),
        (drop_shard, "weights"),
        (drop_code, "files"),
        (change_code, "files"),
        (change_ids, "files"),
        (change_tokenizer, "tokenizer"),
        (other_model, "files"),
    ],
)
def test_what_is_wrong_is_found(pair, change, check):
    _, repository = pair
    change(repository)
    assert list(failed(repository)) == [check]
    result = CliRunner().invoke(app, ["verify", str(repository)])
    assert result.exit_code == 1 and "failed" in result.output and "Traceback" not in result.output


def test_weights_of_another_model_of_the_same_shape(pair, tmp_path):
    """One model's tokenizer with another's weights: whole files that do not belong together."""
    _, repository = pair
    other = {name: tensor * 0.9 for name, tensor in make_parameters().items()}
    checkpoint = make_checkpoint(tmp_path / "other", other)
    second = convert_checkpoint(checkpoint, tmp_path / "second", max_shard_size="30KB", **OPTIONS)
    for file in second.glob("model*"):
        shutil.copy(file, repository / file.name)
    assert list(failed(repository)) == ["weights"]
    assert list(failed(second, pair[0])) == ["checkpoint"]


def test_a_place_that_is_no_repository(tmp_path):
    assert list(failed(tmp_path)) == ["files"]
    assert list(failed(tmp_path / "nowhere")) == ["files"]
