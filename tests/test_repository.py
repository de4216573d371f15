"""What people see of a converted repository: its model card, its handler, its upload to the Hub."""

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from base64 import b64decode
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from checkout import ROOT
from huggingface_hub import ModelCard
from made import make_checkpoint, make_parameters
from processes import GLM
from typer.testing import CliRunner

from glm_transformers import GLMConfig, GLMForConditionalGeneration
from glm_transformers.cli import app
from glm_transformers.conversion import ConversionError, convert_checkpoint
from glm_transformers.conversion.released import RELEASED
from glm_transformers.hub_repository.model_card import model_card
from glm_transformers.hub_repository.origin import RELEASED_ORIGINS


def card_of(repository) -> tuple[dict, str]:
    card = ModelCard.load(repository / "README.md")
    return card.data.to_dict(), card.text


def test_model_card(made_repository):
    data, text = card_of(made_repository)
    assert data["library_name"] == "transformers" and data["pipeline_tag"] == "text-generation"
    assert "text2text-generation" in data["tags"]  # what it is loaded by
    assert (
        data["language"] == "en"
        and {"glm", "custom_code"} <= set(data["tags"])
        and data["license"] == "other"
    )
    for mask, widget in zip(("[MASK]", "[sMASK]", "[gMASK]"), data["widget"], strict=True):
        assert mask in widget["text"] and mask in text
    parameters = sum(
        parameter.numel()
        for parameter in GLMForConditionalGeneration.from_pretrained(made_repository).parameters()
    )
    assert f"{parameters:,}" in text and "float32 (as stored)" in text and "@inproceedings" in text
    assert (
        "not trained with" not in text and "Published" not in text
    )  # it only has the shape of its family
    assert data["license"] == "other" and "keep the licence" in text
    assert "What it is for, and what not" in text and "base_model" not in data


def test_the_code_on_the_card_runs(made_repository, stranger):
    _, text = card_of(made_repository)
    program = "\n".join(re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)).replace(
        "max_new_tokens=64", "max_new_tokens=4"
    )
    assert f'"{made_repository.name}"' in program
    printed = stranger.output(program, folder=made_repository.parent)
    assert printed.count("\n") == 2


def test_card_of_a_released_checkpoint():
    shape = RELEASED["glm-10b"]
    config = GLMConfig(
        num_layers=shape.layers,
        hidden_size=shape.hidden_size,
        num_attention_heads=shape.num_attention_heads,
    )
    config.architectures = ["GLMForConditionalGeneration"]
    text = model_card(
        "me/glm",
        config,
        None,
        shape.parameters,
        torch.float16,
        origin=RELEASED_ORIGINS["glm-10b"],
        language="en",
    )
    assert "72.35" in text and "9.9B" in text and "THUDM/GLM" in text and "the Pile" in text
    unknown = model_card("me/glm", config, None, shape.parameters, torch.float16, language="en")
    assert "72.35" not in unknown and "does not say what it was trained on" in unknown


def test_the_origin_of_every_released_checkpoint_is_said():
    """The corpus of each, and results only where the authors gave them."""
    assert list(RELEASED_ORIGINS) == list(RELEASED)
    for name, origin in RELEASED_ORIGINS.items():
        assert name in origin.description and "trained it on" in origin.data
        chinese = RELEASED[name].tokenizer == "chinese"
        assert ("WuDao" in origin.data) == chinese
        assert bool(origin.published) == (name == "glm-10b")


def test_requirements_are_those_of_the_package(made_repository):
    """With its limits: a repository runs on what its own tests ran on."""
    said = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    lines = (made_repository / "requirements.txt").read_text().split()
    assert {"torch", "transformers"} <= {re.match(r"[a-z]+", line)[0] for line in lines}
    for line in lines:
        assert f'"{line}"' in said


def test_card_without_task_masks_and_of_a_classifier(tmp_path, reference):
    source = reference / "checkpoints"
    options = dict(model="glm-base", num_attention_heads=2, vocab=reference / "vocab")
    data, text = card_of(
        convert_checkpoint(source / "tiny-bert-fp16", tmp_path / "bert", **options)
    )
    assert len(data["widget"]) == 1 and "not trained with `[sMASK]` and `[gMASK]`" in text
    options = dict(tokenizer="none", num_attention_heads=4)
    classifier = convert_checkpoint(source / "tiny-classifier", tmp_path / "classifier", **options)
    data, text = card_of(classifier)
    assert data["pipeline_tag"] == "text-classification" and "widget" not in data
    assert "AutoModelForSequenceClassification" in text and not (classifier / "handler.py").exists()
    options = dict(model="glm-10b-chinese", num_attention_heads=4, vocab=reference / "vocab")
    data, _ = card_of(
        convert_checkpoint(source / "tiny-chinese-10b-fp16", tmp_path / "chinese", **options)
    )
    assert data["language"] == "zh" and "纪念[MASK]而建" in data["widget"][0]["text"]


HANDLER = """
import json
import sys
sys.path.insert(0, sys.argv[1])
from handler import EndpointHandler
OPTIONS = {"max_new_tokens": 16, "max_piece_length": 3}
handler = EndpointHandler(sys.argv[1])
one = handler({"inputs": "Ng is [MASK].", "parameters": OPTIONS})
two = handler({"inputs": ["Ng is [MASK].", "[MASK] is [MASK]."], "parameters": OPTIONS})
assert len(one) == 1 and one[0] == two[0] and len(two[1]["blanks"]) == 2
for request in ({}, {"inputs": ""}, {"inputs": "Ng is [MASK].", "parameters": [4]}):
    try:
        handler(request)
    except ValueError as error:
        assert "send" in str(error)
    else:
        raise AssertionError(request)
json.dumps(two)
"""

AUTO = """
import sys
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, pipeline
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1], trust_remote_code=True)
model = AutoModelForSeq2SeqLM.from_pretrained(sys.argv[1], trust_remote_code=True)
text = "Ng is [MASK]."
inputs = tokenizer(text, return_tensors="pt")
(pieces,) = tokenizer.decode_pieces(model.generate(**inputs, max_new_tokens=4))
options = {"trust_remote_code": True, "dtype": model.dtype}
fill = pipeline("text2text-generation", model=sys.argv[1], **options)
assert fill(text, max_new_tokens=4)[0]["blanks"] == pieces
"""


def test_it_works_in_a_fresh_process(made_repository, tmp_path):
    """From another directory, with an empty cache for the code of repositories."""
    modules = {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"}
    run = subprocess.run(
        [sys.executable, "-c", HANDLER + AUTO, made_repository],
        cwd=tmp_path,
        env={**os.environ, **modules},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-2000:]


@pytest.mark.parametrize("name", ["tiny-gpt2-fp16", "tiny-chinese-10b-fp16"])
@pytest.mark.parametrize("program", [HANDLER, AUTO], ids=["handler", "auto"])
def test_it_works_for_a_stranger(repository, stranger, name, program, tmp_path):
    stranger.output(program, repository(name), folder=tmp_path)


# --- The Hub --------------------------------------------------------------------------------------


class HubStandIn(BaseHTTPRequestHandler):
    """As much of the Hub's API as an upload needs: who asks, a repository, files, one commit."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        if self.headers.get("authorization") != "Bearer hf_right":
            return self.answer({"error": "Invalid credentials"}, 401)
        if self.path == "/api/whoami-v2":
            return self.answer(
                {
                    "name": "me",
                    "type": "user",
                    "auth": {"accessToken": {"role": "write"}},
                    "orgs": [],
                }
            )
        self.answer({"id": "me/my-glm", "sha": "0" * 40, "siblings": []})

    def do_POST(self):
        body, store = self.body(), self.server.store
        if self.path == "/api/repos/create":
            store["created"] = json.loads(body)["name"]
            return self.answer(
                {"url": f"{self.address()}/me/my-glm", "name": "me/my-glm", "id": "1"}
            )
        if self.path.startswith("/api/validate-yaml"):
            store["card"] = json.loads(body)["content"]
            return self.answer({"errors": [], "warnings": []})
        if "/preupload/" in self.path:
            files = json.loads(body)["files"]
            modes = [
                {
                    "path": f["path"],
                    "uploadMode": "lfs" if f["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                }
                for f in files
            ]
            return self.answer({"files": modes})
        if self.path.endswith("/objects/batch"):
            objects = [
                {
                    **entry,
                    "actions": {
                        "upload": {"href": f"{self.address()}/store/{entry['oid']}", "header": {}}
                    },
                }
                for entry in json.loads(body)["objects"]
            ]
            return self.answer({"transfer": "basic", "objects": objects})
        if "/commit/" in self.path:
            store["commits"].append([json.loads(line) for line in body.splitlines()])
            return self.answer(
                {
                    "success": True,
                    "commitOid": "1" * 40,
                    "commitUrl": f"{self.address()}/me/my-glm/commit/1",
                    "hookOutput": "",
                }
            )
        self.answer({"error": self.path}, 404)

    def do_PUT(self):
        self.server.store["large"][self.path.rpartition("/")[2]] = self.body()
        self.answer({})

    def body(self) -> bytes:
        if self.headers.get("transfer-encoding") != "chunked":
            return self.rfile.read(int(self.headers["content-length"] or 0))
        parts = []
        while length := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(length))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def address(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    def answer(self, content: dict, status: int = 200):
        text = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def server(hub_port):
    server = ThreadingHTTPServer(("127.0.0.1", hub_port), HubStandIn)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


@pytest.fixture
def hub(server):
    server.store = {"created": None, "card": None, "large": {}, "commits": []}
    return server


def push(colleague, tmp_path, name="me/my-glm", token="hf_right"):
    checkpoint = tmp_path / "checkpoint"
    make_checkpoint(checkpoint, make_parameters())
    options = ["--tokenizer", "none", "--num-attention-heads", "4", "--push-to-hub", name]
    program = f"import os; os.environ['HF_TOKEN'] = {token!r}; {GLM}"
    return colleague.run(
        program,
        "convert",
        checkpoint,
        tmp_path / "out",
        *options,
        folder=tmp_path,
    )


def test_push_to_hub(hub, colleague, tmp_path):
    run = push(colleague, tmp_path)
    assert run.returncode == 0, run.stderr[-3000:]
    assert "on the Hub as me/my-glm" in run.stdout and hub.store["created"] == "my-glm"
    (commit,) = hub.store["commits"]  # all files at once
    uploaded = {
        line["value"]["path"]: b64decode(line["value"]["content"])
        for line in commit
        if line["key"] == "file"
    }
    for line in commit:
        if line["key"] == "lfsFile":
            uploaded[line["value"]["path"]] = hub.store["large"][line["value"]["oid"]]
            assert (
                hashlib.sha256(uploaded[line["value"]["path"]]).hexdigest() == line["value"]["oid"]
            )
    assert uploaded == {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()}
    assert b'"me/my-glm"' in uploaded["README.md"]


@pytest.mark.parametrize(
    "options, message",
    [(dict(token="hf_wrong"), "hf auth login"), (dict(name="a/b/c"), "is no name on the Hub")],
)
def test_an_upload_that_will_be_refused_is_said_before_any_work(
    hub, colleague, tmp_path, options, message
):
    run = push(colleague, tmp_path, **options)
    assert (
        run.returncode == 1
        and message in " ".join(run.stderr.split())
        and "Traceback" not in run.stderr
    )
    assert not (tmp_path / "out").exists() and not hub.store["commits"]


def test_mixed_dtypes_need_a_choice(tmp_path):
    parameters = make_parameters()
    parameters["transformer.final_layernorm.bias"] = parameters[
        "transformer.final_layernorm.bias"
    ].float()
    checkpoint = make_checkpoint(tmp_path / "checkpoint", parameters)
    options = dict(tokenizer="none", num_attention_heads=4)
    with pytest.raises(ConversionError, match=r"float16, float32.*--dtype"):
        convert_checkpoint(checkpoint, tmp_path / "out", **options)
    convert_checkpoint(checkpoint, tmp_path / "out", dtype="float32", **options)


def test_models_lists_the_released_checkpoints():
    result = CliRunner().invoke(app, ["models"])
    assert result.exit_code == 0 and all(name in result.output for name in RELEASED)
