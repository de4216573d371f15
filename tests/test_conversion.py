"""From a checkpoint to a repository: the right tensors, or one sentence and nothing written."""

import hashlib
import json
import os
import pickle
import re
from pathlib import Path

import pytest
import torch
from conftest import CONVERSIONS
from made import make_checkpoint, make_parameters, make_vocabulary
from safetensors.torch import load_file
from typer.testing import CliRunner

from glm_transformers import GLMForConditionalGeneration
from glm_transformers.cli import app
from glm_transformers.conversion import ConversionError, convert_checkpoint

OPTIONS = dict(tokenizer="none", num_attention_heads=4)


def weights(repository):
    """All tensors of a repository under their released names."""
    tensors = {}
    for file in sorted(repository.glob("*.safetensors")):
        tensors |= load_file(file)
    return {name.removeprefix("glm."): tensor for name, tensor in tensors.items()}


def digest(tensor):
    return hashlib.sha256(tensor.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()


@pytest.mark.parametrize("name", CONVERSIONS)
def test_every_golden_checkpoint_has_its_tensors(reference, repository, name):
    expected = json.loads((reference / "checkpoints/checkpoints.json").read_text())[name]
    tensors = weights(repository(name))
    assert set(tensors) == {key.removeprefix("model.") for key in expected["state_dict"]}
    for key, facts in expected["state_dict"].items():
        tensor = tensors[key.removeprefix("model.")]
        assert list(tensor.shape) == facts["shape"]
        if name == "tiny-chinese-10b-fp16" and key == "word_embeddings.weight":
            assert torch.equal(tensor[50009], tensor[50007])  # the copied row
            file = next((reference / "checkpoints" / name).glob("*/mp_rank_00_model_states.pt"))
            tensor = tensor.clone()
            tensor[50009] = torch.load(file, weights_only=False)["module"][key][50009]
        assert digest(tensor) == facts["sha256"], key
    config = json.loads((repository(name) / "config.json").read_text())
    for field, value in expected["config"].items():
        assert config[field] == value, field
    assert config["model_type"] == "glm-blank-infilling"
    if "num_class" in expected:
        assert config["architectures"] == ["GLMForSequenceClassification"]


def test_legacy_file_without_tracker(reference, tmp_path):
    source = reference / "checkpoints/tiny-legacy-notracker"
    (iteration,) = [folder for folder in source.iterdir() if folder.is_dir()]
    expected = json.loads((reference / "checkpoints/checkpoints.json").read_text())[
        "tiny-legacy-notracker"
    ]["state_dict"]
    for number, path in enumerate((iteration, iteration / "mp_rank_00_model_states.pt")):
        tensors = weights(convert_checkpoint(path, tmp_path / str(number), **OPTIONS))
        assert {name: digest(tensor) for name, tensor in tensors.items()} == {
            n: f["sha256"] for n, f in expected.items()
        }


def test_golden_ranks_give_the_same_bytes(reference, repository, tmp_path):
    single = (repository("tiny-gpt2-fp16") / "model.safetensors").read_bytes()
    for ranks in ("MP2", "MP4"):
        source = reference / f"checkpoints/tiny-gpt2-fp16_{ranks}"
        assert (
            convert_checkpoint(source, tmp_path / ranks, **OPTIONS) / "model.safetensors"
        ).read_bytes() == single


def test_continuous_prompts_are_kept_in_a_file_of_their_own(reference, tmp_path):
    expected = json.loads((reference / "checkpoints/checkpoints.json").read_text())[
        "tiny-prompt-lstm"
    ]["state_dict"]
    out = convert_checkpoint(
        reference / "checkpoints/tiny-prompt-lstm", tmp_path / "out", **OPTIONS
    )
    prompt, network = (
        load_file(out / "prompt_spell.safetensors"),
        load_file(out / "model.safetensors"),
    )
    assert {name: digest(tensor) for name, tensor in prompt.items()} == {
        name: facts["sha256"]
        for name, facts in expected.items()
        if name.startswith("prompt_spell.")
    }
    assert {name.removeprefix("glm.") for name in network} == set(expected) - set(prompt)


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_ranks_merge_to_the_parameters_they_were_cut_from(tmp_path, ranks):
    parameters = make_parameters()
    checkpoint = make_checkpoint(tmp_path / "checkpoint", parameters, ranks)
    tensors = weights(convert_checkpoint(checkpoint, tmp_path / "out", **OPTIONS))
    assert set(tensors) == set(parameters)
    for name, tensor in parameters.items():
        assert torch.equal(tensors[name], tensor), name


@pytest.mark.parametrize("legacy", [False, True])
def test_tensors_whose_numbers_are_not_in_their_order(tmp_path, legacy):
    parameters = make_parameters()
    stored = {
        name: tensor.T.contiguous().T if tensor.dim() == 2 else tensor
        for name, tensor in parameters.items()
    }
    if not legacy:  # where a tensor that does not fill its storage is refused
        stored["transformer.final_layernorm.weight"] = parameters[
            "transformer.final_layernorm.weight"
        ].repeat_interleave(2)[::2]
    file = tmp_path / "mp_rank_00_model_states.pt"
    torch.save({"module": stored}, file, _use_new_zipfile_serialization=not legacy)
    tensors = weights(convert_checkpoint(file, tmp_path / "out", **OPTIONS))
    for name, tensor in parameters.items():
        assert torch.equal(tensors[name], tensor), name


@pytest.mark.parametrize("tracker", ["250000", "best", "release"])
def test_tracker_files(tmp_path, tracker):
    checkpoint = make_checkpoint(tmp_path / "checkpoint", make_parameters(), tracker=tracker)
    convert_checkpoint(checkpoint, tmp_path / "folder", **OPTIONS)
    convert_checkpoint(checkpoint / tracker, tmp_path / "iteration", **OPTIONS)
    convert_checkpoint(
        checkpoint / tracker / "mp_rank_00_model_states.pt", tmp_path / "file", **OPTIONS
    )
    (checkpoint / "latest_checkpointed_iteration.txt").rename(checkpoint / "latest")
    convert_checkpoint(checkpoint, tmp_path / "deepspeed", **OPTIONS)
    files = {
        (tmp_path / way / "model.safetensors").read_bytes()
        for way in ("folder", "iteration", "file", "deepspeed")
    }
    assert len(files) == 1


def test_shards_and_dtype(tmp_path):
    parameters = make_parameters()
    checkpoint = make_checkpoint(tmp_path / "checkpoint", parameters)
    out = convert_checkpoint(
        checkpoint, tmp_path / "out", dtype="bfloat16", max_shard_size="10KB", **OPTIONS
    )
    index = json.loads((out / "model.safetensors.index.json").read_text())["weight_map"]
    assert len(set(index.values())) > 1 and len(index) == len(parameters)
    for name, tensor in weights(out).items():
        assert torch.equal(tensor, parameters[name].to(torch.bfloat16))
    assert json.loads((out / "config.json").read_text())["torch_dtype"] == "bfloat16"


def test_complete_repository(made_repository):
    files = {file.name for file in made_repository.iterdir()}
    assert files >= {
        *(
            "config.json",
            "generation_config.json",
            "model.safetensors",
            "README.md",
            "requirements.txt",
        ),
        *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
        *("configuration_glm.py", "modeling_glm.py", "tokenization_glm.py", "pipeline_glm.py"),
    }
    config = json.loads((made_repository / "config.json").read_text())
    generation = json.loads((made_repository / "generation_config.json").read_text())
    assert {"AutoConfig", "AutoModel", "AutoModelForSeq2SeqLM", "AutoModelForCausalLM"} <= set(
        config["auto_map"]
    )
    assert generation["eos_token_id"] == [config["eop_token_id"], config["eos_token_id"]]
    assert 0 < generation["max_new_tokens"] <= config["max_sequence_length"]
    assert len(config["mask_token_ids"]) == 3


def test_rows_are_copied_for_glm_10b_chinese_alone(reference, tmp_path):
    source = reference / "checkpoints/tiny-chinese-10b-fp16"
    options = dict(vocab=reference / "vocab", num_attention_heads=4)
    for model, copied in (("glm-10b-chinese", True), ("glm-large-chinese", False)):
        rows = weights(convert_checkpoint(source, tmp_path / model, model=model, **options))[
            "word_embeddings.weight"
        ]
        assert torch.equal(rows[50009], rows[50007]) is copied


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("legacy", [False, True])
def test_nothing_in_a_checkpoint_is_executed(tmp_path, legacy):
    file = tmp_path / "mp_rank_00_model_states.pt"
    state = {"module": make_parameters(), "args": Payload(tmp_path / "executed")}
    torch.save(state, file, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(ConversionError, match="cannot be read as a checkpoint of tensors"):
        convert_checkpoint(file, tmp_path / "out", **OPTIONS)
    assert not (tmp_path / "executed").exists() and not (tmp_path / "out").exists()
    pickle.loads(pickle.dumps(Payload(tmp_path / "executed")))
    assert (tmp_path / "executed").exists(), "the payload would have worked"


def drop(parameters):
    del parameters["transformer.layers.1.mlp.dense_h_to_4h.bias"]


def rename(parameters):
    parameters["transformer.layers.1.mlp.gate.bias"] = parameters.pop(
        "transformer.layers.1.mlp.dense_h_to_4h.bias"
    )


@pytest.mark.parametrize(
    "change, message",
    [
        (drop, "lacks transformer.layers.1.mlp.dense_h_to_4h.bias"),
        (rename, "holds transformer.layers.1.mlp.gate.bias"),
    ],
)
def test_keys_that_do_not_fit_are_named(tmp_path, change, message):
    parameters = make_parameters()
    change(parameters)
    checkpoint = make_checkpoint(tmp_path / "checkpoint", parameters)
    with pytest.raises(ConversionError, match=message):
        convert_checkpoint(checkpoint, tmp_path / "out", **OPTIONS)
    assert {file.name for file in tmp_path.iterdir()} == {"checkpoint"}


def test_ranks_that_do_not_belong_together(tmp_path):
    checkpoint = make_checkpoint(tmp_path / "checkpoint", make_parameters(), ranks=2)
    second = checkpoint / "250000/mp_rank_01_model_states.pt"
    state = torch.load(second, weights_only=False)
    state["module"]["transformer.layers.0.mlp.dense_4h_to_h.bias"] += 1
    torch.save(state, second)
    with pytest.raises(
        ConversionError,
        match=r"transformer\.layers\.0\.mlp\.dense_4h_to_h\.bias should be the same on all",
    ):
        convert_checkpoint(checkpoint, tmp_path / "out", **OPTIONS)
    del state["module"]["transformer.final_layernorm.bias"]
    torch.save(state, second)
    with pytest.raises(
        ConversionError, match=r"transformer\.final_layernorm\.bias is not in all of them"
    ):
        convert_checkpoint(checkpoint, tmp_path / "out", **OPTIONS)
    second.rename(second.with_name("mp_rank_02_model_states.pt"))
    with pytest.raises(ConversionError, match=r"lacks mp_rank_01_model_states\.pt"):
        convert_checkpoint(checkpoint, tmp_path / "out", **OPTIONS)


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(tokenizer="none"), "pass --model or --num-attention-heads"),
        (dict(num_attention_heads=4), "Pass --model, or --tokenizer"),
        (dict(tokenizer="t5", num_attention_heads=4), "Pass --model, or --tokenizer"),
        (
            dict(tokenizer="none", num_attention_heads=3),
            "3 attention heads do not divide the hidden size 16",
        ),
        (dict(model="glm-3b"), "glm-3b is not a released checkpoint"),
        (dict(dtype="int8", **OPTIONS), "dtype int8 is unknown"),
        (
            dict(model="glm-2b", num_attention_heads=4, vocab="nowhere/at-all"),
            "neither a folder nor a repository",
        ),
    ],
)
def test_options_that_do_not_fit(tmp_path, options, message, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    checkpoint = make_checkpoint(tmp_path / "checkpoint", make_parameters())
    with pytest.raises(ConversionError, match=message):
        convert_checkpoint(checkpoint, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_a_vocabulary_larger_than_the_embedding(tmp_path):
    checkpoint = make_checkpoint(tmp_path / "checkpoint", make_parameters(vocabulary=128))
    vocabulary = make_vocabulary(tmp_path / "vocabulary")
    with pytest.raises(ConversionError, match="tokens and the checkpoint's vocabulary 128 rows"):
        convert_checkpoint(
            checkpoint, tmp_path / "out", model="glm-2b", num_attention_heads=4, vocab=vocabulary
        )


@pytest.mark.parametrize(
    "name",
    [
        "adapter_model.safetensors",
        "model.safetensors/mine.txt",
        "README.md/mine.txt",
        "__pycache__/mine.txt",
        ".cache/mine.txt",
    ],
)
def test_files_that_only_look_like_ours_are_kept(tmp_path, name):
    checkpoint = make_checkpoint(tmp_path / "checkpoint", make_parameters())
    output = convert_checkpoint(checkpoint, tmp_path / "out", **OPTIONS)
    folder = (output / name).parent
    if folder.is_file():
        folder.unlink()
    folder.mkdir(exist_ok=True)
    (output / name).write_text("kept")
    with pytest.raises(ConversionError, match=f"holds {re.escape(name)}, which no conversion"):
        convert_checkpoint(checkpoint, output, overwrite=True, **OPTIONS)
    assert (output / name).read_text() == "kept"


def test_a_model_that_was_trained_since_is_kept(tmp_path):
    checkpoint = make_checkpoint(tmp_path / "checkpoint", make_parameters(dtype=torch.float32))
    output = convert_checkpoint(checkpoint, tmp_path / "out", **OPTIONS)
    model = GLMForConditionalGeneration.from_pretrained(output)
    torch.nn.init.ones_(model.glm.word_embeddings.weight)
    model.save_pretrained(output)
    with pytest.raises(ConversionError, match="a model that was trained since may be there"):
        convert_checkpoint(checkpoint, output, overwrite=True, **OPTIONS)
    assert (weights(output)["word_embeddings.weight"] == 1).all()


def test_the_root_of_all_folders_is_no_place(tmp_path):
    checkpoint = make_checkpoint(tmp_path / "checkpoint", make_parameters())
    with pytest.raises(ConversionError, match="choose another place"):
        convert_checkpoint(checkpoint, "/", overwrite=True, **OPTIONS)


def test_only_what_this_program_wrote_is_replaced(tmp_path):
    checkpoint = make_checkpoint(tmp_path / "checkpoint", make_parameters())
    output = tmp_path / "out"
    convert_checkpoint(checkpoint, output, **OPTIONS)
    with pytest.raises(ConversionError, match="exists already; choose another place, or pass --ov"):
        convert_checkpoint(checkpoint, output, **OPTIONS)
    convert_checkpoint(checkpoint, output, overwrite=True, dtype="float32", **OPTIONS)
    assert weights(output)["word_embeddings.weight"].dtype == torch.float32
    (output / "mine.txt").write_text("kept")
    for place, message in (
        (output, "holds mine.txt, which no conversion wrote"),
        (tmp_path / "texts", "is not a repository that this program wrote"),
        (tmp_path / "file", "is no repository"),
    ):
        if place.name == "texts":
            place.mkdir()
            (place / "mine.txt").write_text("kept")
        elif place.name == "file":
            place.write_text("kept")
        with pytest.raises(ConversionError, match=message):
            convert_checkpoint(checkpoint, place, overwrite=True, **OPTIONS)
    assert (output / "config.json").is_file() and (tmp_path / "file").read_text() == "kept"
    assert {(folder / "mine.txt").read_text() for folder in (output, tmp_path / "texts")} == {
        "kept"
    }
    (tmp_path / "empty").mkdir()
    convert_checkpoint(checkpoint, tmp_path / "empty", overwrite=True, **OPTIONS)
    assert {file.name for file in tmp_path.iterdir()} == {
        "checkpoint",
        "out",
        "texts",
        "file",
        "empty",
    }, "nothing is left beside them"


def test_no_checkpoint(tmp_path):
    with pytest.raises(ConversionError, match="does not exist"):
        convert_checkpoint(tmp_path / "nothing", tmp_path / "out", **OPTIONS)
    with pytest.raises(ConversionError, match=r"holds no mp_rank_00_model_states\.pt"):
        convert_checkpoint(tmp_path, tmp_path / "out", **OPTIONS)


def convert_command(checkpoint: Path, output: Path) -> list[str]:
    options = ["--tokenizer", "none", "--num-attention-heads", "4"]
    return ["convert", str(checkpoint), str(output), *options]


def test_command(tmp_path):
    checkpoint = make_checkpoint(tmp_path / "checkpoint", make_parameters())
    arguments = convert_command(checkpoint, tmp_path / "out")
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0 and "is complete" in result.output
    result = CliRunner().invoke(app, arguments)
    assert (
        result.exit_code == 1
        and "exists already" in result.output
        and "Traceback" not in result.output
    )


def test_command_names_the_class_of_a_classifier(tmp_path):
    parameters = make_parameters()
    parameters |= {"pool_layer.weight": torch.zeros(16, 16), "pool_layer.bias": torch.zeros(16)}
    parameters |= {
        "multichoice_head.weight": torch.zeros(3, 16),
        "multichoice_head.bias": torch.zeros(3),
    }
    checkpoint = make_checkpoint(
        tmp_path / "checkpoint", {name: p.float() for name, p in parameters.items()}
    )
    arguments = convert_command(checkpoint, tmp_path / "out")
    result = CliRunner().invoke(app, arguments)
    assert (
        result.exit_code == 0
        and "AutoModelForSequenceClassification.from_pretrained" in result.output
    )


def test_generation_without_block_positions_has_room_for_its_default_length(tmp_path):
    checkpoint = make_checkpoint(tmp_path / "checkpoint", make_parameters(block_positions=False))
    out = convert_checkpoint(checkpoint, tmp_path / "out", **OPTIONS)
    ids = dict(
        sop_token_id=90, eop_token_id=91, mask_token_ids=[92], eos_token_id=95, pad_token_id=95
    )
    model = GLMForConditionalGeneration.from_pretrained(out, **ids).float().eval()
    outputs = model.generate(torch.tensor([[1, 2, 92, 3, 95]]))
    assert 6 < outputs.shape[1] <= 6 + model.generation_config.max_new_tokens
