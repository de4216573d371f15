"""The server: answers as the pipeline's, batches, limits, clients that leave, and its end."""

import gc
import json
import os
import re
import shlex
import signal
import socket
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.client import HTTPConnection

import pytest
import torch
from checkout import ROOT
from processes import GLM
from typer.testing import CliRunner

from glm_transformers import cli
from glm_transformers.apps.batching import Batches, Full, Question, seeded
from glm_transformers.apps.completions import FIELDS, read_completion
from glm_transformers.apps.listener import bind, listen
from glm_transformers.apps.options import Serving
from glm_transformers.apps.pipeline import open_pipeline
from glm_transformers.apps.server import MOST_BYTES, MOST_CONNECTIONS, Server, make_app
from glm_transformers.hub_repository.handler import (
    LONGEST_ALTERNATIVE,
    MOST_CHARACTERS,
    MOST_OF_A_WORD,
    MOST_TEXTS,
    MOST_WORDS,
    PARAMETERS,
    read_request,
)
from glm_transformers.streaming_glm import PieceChunk

sys.path.insert(0, str(ROOT / "benchmarks"))
import serve as load_test

TEXTS = [
    "Paris is the capital of [MASK].",
    "[MASK] is the capital of Italy and the river [MASK] flows through it.",
    "What is a young cow called? [sMASK]",
    "The opposite of hot is",
    "A spider has [MASK] legs.",
]
LONG = {"max_new_tokens": 60, "min_new_tokens": 60}  # nearly all that the demo has room for
NAME = "glm-demo"


class Client:
    """Sends requests to a port; each on a connection of its own."""

    def __init__(self, port: int):
        self.port = port

    def send(self, path: str, body=None, method=None, **headers):
        connection = HTTPConnection("127.0.0.1", self.port, timeout=60)
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
        headers = {"Content-Type": "application/json", **headers}
        connection.request(method or ("GET" if body is None else "POST"), path, body, headers)
        response = connection.getresponse()
        text = response.read().decode()
        connection.close()
        return response.status, text

    def ask(self, path: str, body=None):
        status, text = self.send(path, body)
        assert status == 200, text
        return json.loads(text)

    def fill(self, inputs, **parameters):
        return self.ask("/fill", {"inputs": inputs, "parameters": parameters})

    def complete(self, prompt, **fields):
        return self.ask("/v1/completions", {"prompt": prompt, **fields})

    def error(self, status: int, *request, **headers) -> str:
        """What is said of a request that fails with this status."""
        answered, text = self.send(*request, **headers)
        assert answered == status, text
        error = json.loads(text)["error"]
        assert set(error) == {"code", "message"} and error["code"] == status
        assert "\n" not in error["message"] and error["message"].endswith(".")
        return error["message"]


@contextmanager
def listening(batches: Batches, timeout: float = 60):
    """A client of an application that runs in a thread."""
    listener = bind("127.0.0.1", 0)
    listen(listener)
    server = Server(make_app(batches, NAME, timeout), batches, timeout)
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    yield Client(listener.getsockname()[1])
    server.should_exit = True
    thread.join()


@pytest.fixture(scope="module")
def fill(demo_repository):
    return open_pipeline(str(demo_repository), device="cpu")


@pytest.fixture(scope="module")
def single(fill):
    """What the pipeline says of each text by itself, before the server has it."""
    return {text: fill(text) for text in TEXTS}


@pytest.fixture(scope="module")
def batches(fill, single):
    batches = Batches(fill, batch_size=16, queue=64)
    yield batches
    batches.close()
    batches.thread.join()


@pytest.fixture(scope="module")
def client(batches):
    with listening(batches) as client:
        yield client


@pytest.fixture
def held(batches, client, monkeypatch):
    """`held(waiting)` in a `with`: the model is busy while requests come, until so many wait."""

    @contextmanager
    def hold(waiting: int):
        busy, release = threading.Event(), threading.Event()
        filling = batches._fill

        def wait(batch):
            busy.set()
            assert release.wait(30)
            return filling(batch)

        monkeypatch.setattr(batches, "_fill", wait)
        with ThreadPoolExecutor(1) as first:
            first.submit(client.fill, "It is [MASK].")
            assert busy.wait(30)
            yield
            until(lambda: len(batches.waiting) == waiting)
            monkeypatch.undo()
            release.set()

    return hold


def until(is_so, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.005)


# --- Answers --------------------------------------------------------------------------------------


def test_answers_are_those_of_the_pipeline(client, batches, single):
    """From many clients at once, one text or several; and they were filled in batches."""
    before = batches.batches, batches.texts
    with ThreadPoolExecutor(8) as clients:
        alone = list(clients.map(client.fill, TEXTS * 5))
    assert alone == [single[text] for text in TEXTS * 5]
    assert client.fill(TEXTS) == [answer for text in TEXTS for answer in single[text]]
    assert batches.texts - before[1] == 6 * len(TEXTS)
    assert batches.batches - before[0] < 5 * len(TEXTS)


def test_under_load_no_answer_is_lost_and_each_is_the_pipelines(client, single):
    """The load test of benchmarks/serve.py, in its short form."""
    texts = TEXTS * 8
    expected = [single[text] for text in texts]
    measured, answers = load_test.load(client.port, texts, clients=8)
    load_test.check(answers, expected)
    assert len(measured.latencies) == len(texts) and all(measured.latencies)
    assert measured.batches < len(texts)
    for lost in (None, single[TEXTS[1]]):
        with pytest.raises(SystemExit, match="1 of 40 answers"):
            load_test.check([lost, *answers[1:]], expected)


def test_several_sequences_are_lists_as_in_the_pipeline(client):
    asked = {"num_beams": 3, "num_return_sequences": 2}
    several = client.fill(TEXTS[:3], **asked)
    assert several == [client.fill(text, **asked) for text in TEXTS[:3]]
    assert [len(sequences) for sequences in several] == [2, 2, 2]


def test_blanks_are_steered_as_in_the_pipeline(client):
    """In a batch with a text that has another number of blanks, where a list has one for each."""
    asked = {"alternatives": 2, "allowed_answers": [["Rome", "Paris"], ["Po", "Tiber"]]}
    (steered,) = client.fill(TEXTS[1], **asked)
    assert steered["blanks"] == ["Rome", "Tiber"]
    assert {one["answer"] for one in steered["alternatives"][0]} == {"Rome", "Paris"}
    assert "one entry for each blank" in client.error(
        400, "/fill", {"inputs": TEXTS[:2], "parameters": asked}
    )
    several = client.fill(TEXTS[:3], alternatives=2)
    for one, text in zip(several, TEXTS, strict=False):
        assert one["blanks"] == client.fill(text, alternatives=2)[0]["blanks"]


def test_what_waits_at_the_same_time_with_the_same_parameters_is_a_batch(
    client, batches, held, single
):
    before = batches.batches
    others = {"max_new_tokens": 3}
    with ThreadPoolExecutor(9) as clients:
        with held(waiting=9):
            same = [clients.submit(client.fill, text) for text in TEXTS]
            short = [clients.submit(client.fill, text, **others) for text in TEXTS[:2]]
            # The padding of a batch would count as repeated.
            penalised = [
                clients.submit(client.fill, text, repetition_penalty=1.5) for text in TEXTS[:2]
            ]
        assert [one.result() for one in same] == [single[text] for text in TEXTS]
    assert [one.result() for one in short] == [client.fill(text, **others) for text in TEXTS[:2]]
    assert [one.result() for one in penalised] == [
        client.fill(text, repetition_penalty=1.5) for text in TEXTS[:2]
    ]
    # What held, the same, the short, two alone; and the four single calls after them.
    assert batches.batches - before == 5 + 4


def test_a_batch_has_so_many_texts_at_most(client, batches, held, single, monkeypatch):
    before = batches.batches
    with ThreadPoolExecutor(1) as clients:
        with held(waiting=5):
            batches.batch_size, size = 2, batches.batch_size
            answers = clients.submit(client.fill, TEXTS)
        assert answers.result() == [single[text][0] for text in TEXTS]
    batches.batch_size = size
    assert batches.batches - before == 1 + 3


def test_a_text_at_fault_meets_only_who_sent_it(client, held, single):
    with ThreadPoolExecutor(3) as clients:
        with held(waiting=3):
            good = [clients.submit(client.fill, text) for text in TEXTS[:2]]
            bad = clients.submit(client.error, 400, "/fill", {"inputs": "word " * 500})
        assert "shorten it" in bad.result()
        assert [one.result() for one in good] == [single[text] for text in TEXTS[:2]]


def test_a_seed_says_what_comes_whoever_else_asks(client, held):
    asked = {"prompt": "It is", "temperature": 5, "seed": 7, "n": 3}
    alone = client.complete(**asked)["choices"]
    assert len({choice["text"] for choice in alone}) == 3
    with ThreadPoolExecutor(4) as clients:
        with held(waiting=4):
            for text in TEXTS[:3]:
                clients.submit(client.complete, text, temperature=5, n=3)
            again = clients.submit(client.complete, **asked)
        assert again.result()["choices"] == alone


def test_a_seed_says_nothing_of_what_comes_after_it(client):
    texts = []
    for _ in range(2):
        client.complete("It is", temperature=5, seed=7)
        texts.append(client.complete("It is", temperature=5)["choices"][0]["text"])
    assert texts[0] != texts[1]


@pytest.mark.parametrize("kind", ["cuda", "mps", "xpu"])
def test_a_seed_is_for_the_draws_of_any_device(monkeypatch, kind):
    """Of which this machine has none: what torch would set there."""
    device, seeds = getattr(torch, kind), []
    monkeypatch.setattr(device, "manual_seed" if kind == "mps" else "manual_seed_all", seeds.append)
    for _ in range(2):
        with seeded(7):
            assert seeds[-1] == 7
        assert seeds[-1] != 7
    assert len(set(seeds)) == 3  # what comes after it is another draw each time


# --- OpenAI's form --------------------------------------------------------------------------------


def test_a_completion(client, fill, single):
    text, masked = TEXTS[3], TEXTS[1]
    answer = client.complete([text, masked], model=NAME, max_tokens=30, stream=None)
    assert answer["object"] == "text_completion" and answer["model"] == NAME
    assert [choice["index"] for choice in answer["choices"]] == [0, 1]
    for choice, (said,) in zip(answer["choices"], (single[text], single[masked]), strict=True):
        assert choice["text"] == said["generated_text"]
        assert choice["blanks"] == said["blanks"]
        assert choice["filled_text"] == said["filled_text"]
        assert choice["finish_reason"] == "stop"
    usage = answer["usage"]
    prompts = [f"{text} [gMASK]", masked]
    assert usage["prompt_tokens"] == sum(len(ids) for ids in fill.tokenizer(prompts).input_ids)
    # Alone there is no padding: <|startofpiece|>, then what was written.
    ids = [fill(prompt, return_tensors=True)[0]["generated_token_ids"] for prompt in prompts]
    written = sum(len(row) - 1 for row in ids)
    assert usage["completion_tokens"] == written
    assert usage["total_tokens"] == usage["prompt_tokens"] + written


def test_a_completion_draws_from_all_tokens():
    """The library has 50 by default."""
    completion = read_completion({"prompt": "a", "temperature": 2}, NAME)
    assert completion.parameters["top_k"] == 0 and completion.parameters["top_p"] == 1


def test_a_completion_that_is_cut_off_says_so(client):
    answer = client.complete(TEXTS[1], max_tokens=2)
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == 2
    assert answer["choices"][0]["blanks"][1] == ""


@pytest.mark.parametrize(
    "fields, named",
    [
        ({"prompt": ""}, "prompt must"),
        ({"prompt": ["a", 4]}, r"prompt\[1\] must"),
        ({"prompt": "a", "max_tokens": 0}, "max_tokens must"),
        ({"prompt": "a", "temperature": -1}, "temperature must"),
        ({"prompt": "a", "seed": 1.5}, "seed must"),
        ({"prompt": "a", "model": "gpt"}, "model 'gpt' is not here"),
        ({"prompt": "a", "logit_bias": {}}, "'logit_bias' is not known"),
        ({"prompt": "a", "n": 2}, "n is 2"),
        ({"prompt": "a", "top_p": 0.5}, "top_p is for answers that are drawn"),
        ({"prompt": "a", "seed": 1}, "seed is for answers that are drawn"),
        ({"prompt": ["a", "b"], "stream": True}, "stream gives one"),
        ([], "A request must"),
    ],
    ids=str,
)
def test_a_wrong_completion(client, fields, named):
    assert re.match(f"{named}.*send", client.error(400, "/v1/completions", fields))


def test_without_any_surprise_what_else_is_of_draws_changes_nothing(client, single):
    """As other programs send them always."""
    answer = client.complete(TEXTS[0], temperature=0, top_p=0.1, seed=3)
    assert answer["choices"][0]["blanks"] == single[TEXTS[0]][0]["blanks"]


def test_what_there_is(client, batches):
    assert [model["id"] for model in client.ask("/v1/models")["data"]] == [NAME]
    health = client.ask("/health")
    assert health["status"] == "ready" and health["texts"] == batches.texts
    paths = client.ask("/openapi.json")["paths"]
    assert set(paths) == {"/fill", "/v1/completions", "/health", "/v1/models"}
    body = paths["/fill"]["post"]["requestBody"]["content"]["application/json"]
    assert set(body["schema"]["properties"]["parameters"]["properties"]) == set(PARAMETERS)
    assert client.ask("/fill", body["example"])
    assert client.send("/docs")[0] == 200


def read_events(text: str) -> list[dict]:
    *events, done = re.findall(r"data: (.*)\n\n", text)
    assert done == "[DONE]"
    return [json.loads(event) for event in events]


@pytest.mark.parametrize(
    "fields",
    [{}, {"max_tokens": 2}, {"max_tokens": 16, "temperature": 3, "seed": 5}],
    ids=str,
)
@pytest.mark.parametrize("prompt", TEXTS[1:4])
def test_a_stream_says_the_same(client, prompt, fields):
    (whole,) = client.complete(prompt, **fields)["choices"]
    status, text = client.send("/v1/completions", {"prompt": prompt, "stream": True, **fields})
    assert status == 200
    *parts, last = read_events(text)
    texts = [part["choices"][0]["text"] for part in parts]
    assert "".join(texts) == whole["text"]
    assert all(texts) and len(texts) > 1
    for part in parts[:-1]:
        assert part["choices"][0]["text"].strip() in whole["blanks"][part["choices"][0]["blank"]]
    assert last["choices"] == [{**whole, "text": ""}]
    usage = client.complete(prompt, **fields)["usage"]
    assert last["usage"] == usage and usage["completion_tokens"] >= len(texts)


def test_what_fails_before_a_stream_is_an_error_and_a_stream_that_is_left_ends(client, batches):
    request = {"prompt": "word " * 500, "stream": True}
    assert "shorten it" in client.error(400, "/v1/completions", request)
    before = batches.texts
    connection = HTTPConnection("127.0.0.1", client.port)
    body = {"prompt": "It is", "stream": True, "max_tokens": 60, "temperature": 100, "seed": 1}
    headers = {"Content-Type": "application/json"}
    connection.request("POST", "/v1/completions", json.dumps(body), headers)
    response = connection.getresponse()
    assert response.readline().startswith(b"data: ")
    response.close()
    connection.close()
    until(lambda: batches.texts == before + 1)


# --- Limits ---------------------------------------------------------------------------------------


def test_wrong_requests(client, batches):
    before = batches.texts
    assert "no JSON" in client.error(400, "/fill", b"{")
    assert "no JSON" in client.error(400, "/fill", b"[" * 100_000)
    assert "no JSON" in client.error(400, "/fill", b"\xff")
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    assert "Content-Type" in client.error(400, "/fill", {"inputs": "a"}, **form)
    known = {"inputs": "a", "parameters": {"custom_generate": "hub/repository"}}
    assert "'custom_generate' is not known" in client.error(400, "/fill", known)
    assert "33 texts" in client.error(400, "/fill", {"inputs": ["a"] * 33})
    assert "<|endofpiece|>" in client.error(400, "/fill", {"inputs": "a <|endofpiece|>"})
    assert batches.texts == before
    for status, request in {404: ("/",), 405: ("/fill",)}.items():
        answered, text = client.send(*request)
        assert answered == status and json.loads(text)["error"]["code"] == status


def test_the_longest_body_and_one_byte_more(client):
    text, word = "a" * MOST_CHARACTERS, "a" * MOST_OF_A_WORD
    words = {"allowed_answers": [[word] * MOST_WORDS], "bad_words": [word] * MOST_WORDS}
    longest = {"inputs": [text] * MOST_TEXTS, "parameters": words}
    assert read_request(longest) and len(json.dumps(longest)) < MOST_BYTES
    body = b'{"inputs": "a [MASK]"}'
    assert client.send("/fill", body.ljust(MOST_BYTES))[0] == 200
    assert f"{MOST_BYTES + 1} bytes" in client.error(413, "/fill", body.ljust(MOST_BYTES + 1))


def test_too_many_wait(client, batches, held):
    with ThreadPoolExecutor(1) as clients, held(waiting=2):
        batches.queue, queue = 2, batches.queue
        waiting = clients.submit(client.fill, TEXTS[:2])
        until(lambda: len(batches.waiting) == 2)
        assert client.error(429, "/fill", {"inputs": "a"}).startswith("2 texts wait")
        batches.queue = queue
    assert len(waiting.result()) == 2


def test_an_answer_that_takes_too_long(batches, held):
    before = batches.texts
    with listening(batches, timeout=0.1) as hurried, held(waiting=1):  # the first has left
        assert "0.1 seconds" in hurried.error(504, "/fill", {"inputs": TEXTS[0]})
        streamed = {"prompt": TEXTS[0], "stream": True}
        assert "0.1 seconds" in hurried.error(504, "/v1/completions", streamed)
    until(lambda: not batches.waiting)
    assert batches.texts == before + 1  # what held: nobody waited for the other


def test_a_stream_that_takes_too_long_ends_with_an_error(batches, monkeypatch):
    release = threading.Event()

    def begin(batch):
        batch[0].streamer.on_chunk(PieceChunk(0, "It ", ended=False))
        assert release.wait(30)
        return [None]

    monkeypatch.setattr(batches, "_fill", begin)
    with listening(batches, timeout=0.2) as hurried:
        _, text = hurried.send("/v1/completions", {"prompt": "a", "stream": True})
        release.set()
    part, error = (json.loads(event) for event in re.findall(r"data: (.*)\n\n", text))
    assert part["choices"][0]["text"] == "It " and error["error"]["code"] == 504


@pytest.mark.parametrize(
    "fault, code, told, logged",
    [
        (RuntimeError("CUDA error: secret"), 500, "The server failed; its log says why.", True),
        (ValueError("Too long; shorten it."), 400, "Too long; shorten it.", False),
    ],
    ids=["of the program", "of the request"],
)
def test_a_stream_that_fails_in_its_middle_ends_with_an_error(
    client, batches, monkeypatch, caplog, fault, code, told, logged
):
    def fail(batch):
        batch[0].streamer.on_chunk(PieceChunk(0, "It ", ended=False))
        raise fault

    monkeypatch.setattr(batches, "_fill", fail)
    status, text = client.send("/v1/completions", {"prompt": "a", "stream": True})
    part, error = (json.loads(event) for event in re.findall(r"data: (.*)\n\n", text))
    assert status == 200 and part["choices"][0]["text"] == "It "
    assert error == {"error": {"code": code, "message": told}}
    assert ("CUDA error: secret" in caplog.text) == logged


def test_a_server_that_stops_takes_nothing(client, batches, monkeypatch):
    monkeypatch.setattr(batches, "is_open", False)
    assert "stopping" in client.error(503, "/fill", {"inputs": "a"})
    status, text = client.send("/health")
    assert status == 503 and json.loads(text)["status"] == "stopping"


# --- Clients that leave ---------------------------------------------------------------------------


def test_a_client_that_leaves_is_not_waited_for(client, batches, held, single):
    before = batches.texts
    body = json.dumps({"inputs": ["a [MASK]"] * 8}).encode()
    head = (
        "POST /fill HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    with ThreadPoolExecutor(1) as clients:
        with held(waiting=1):  # who left is no longer in the way
            leaving = socket.create_connection(("127.0.0.1", client.port))
            leaving.sendall(head.encode() + body)
            until(lambda: len(batches.waiting) == 8)
            left = batches.waiting[:8]
            leaving.close()
            until(lambda: all(question.is_left for question in left))
            staying = clients.submit(client.fill, TEXTS[0])
        assert staying.result() == single[TEXTS[0]]
    assert batches.texts == before + 2  # what held, and who stayed


class LeavesAfter:
    """A streamer whose reader leaves after some tokens."""

    def __init__(self, tokens: int):
        self.tokens = tokens
        self.seen = 0

    def put(self, value) -> None:
        self.seen += 1
        if self.seen > self.tokens:  # the first that is seen is the prompt
            self.question.leave()

    def end(self) -> None:
        self.ended = self.seen


def test_a_search_for_nobody_ends(batches, fill, monkeypatch):
    """Between two of its blanks."""
    seen = []
    question = Question("a [MASK] b [MASK]" * 2, {"alternatives": 2, "max_new_tokens": 4})
    step = fill.model.forward

    def leave(*args, **kwargs):
        question.leave()
        seen.append(1)
        return step(*args, **kwargs)

    monkeypatch.setattr(fill.model, "forward", leave)
    batches.ask([question])
    until(lambda: seen)
    batches.ask([after := Question("a", {"max_new_tokens": 1})])
    after.answer.result(30)
    assert len(seen) <= 4 + 1  # those of the first blank, and that of the other text


def test_questions_that_were_left_leave_room(batches, held):
    with held(waiting=1):
        batches.queue, queue = 2, batches.queue
        left = [Question("a", {}) for _ in range(2)]
        batches.ask(left)
        with pytest.raises(Full):
            batches.ask([Question("a", {})])
        for question in left:
            question.leave()
        batches.ask([staying := Question("a", {})])
        batches.queue = queue
    assert staying.answer.result(30)


def test_who_has_left_is_not_tried_again(batches, monkeypatch):
    questions = [Question("a", {}) for _ in range(2)]
    tried = []

    def fail(batch):
        tried.append(batch)
        questions[0].leave()
        raise ValueError

    monkeypatch.setattr(batches, "_fill", fail)
    batches.ask(questions)
    assert questions[1].answer.exception(30) is not None
    assert tried == [questions, [questions[1]]]


def test_nothing_is_logged_of_who_leaves(batches, held, caplog):
    with listening(batches, timeout=0.1) as hurried, held(waiting=1):
        hurried.error(504, "/fill", {"inputs": TEXTS[:2]})
        hurried.error(504, "/v1/completions", {"prompt": TEXTS[0], "stream": True})
    until(lambda: not batches.waiting)
    gc.collect()  # asyncio logs when what nobody looked at is deleted
    assert not caplog.records


def test_a_generation_for_nobody_ends(batches):
    streamer = LeavesAfter(5)
    streamer.question = Question("a [MASK]", LONG, streamer=streamer)
    batches.ask([streamer.question])
    until(lambda: hasattr(streamer, "ended"))
    assert streamer.ended <= 7


# --- The command ----------------------------------------------------------------------------------

# Tells who it is before it begins.
PROGRAM = f"import os; open('process', 'w').write(str(os.getpid())); {GLM}"


@pytest.fixture
def command(demo_repository, colleague, tmp_path):
    """`glm serve` in a process of its own: its id, what it prints at once, a client, its end."""
    told, printed = tmp_path / "process", colleague.files / "out"
    arguments = ["serve", demo_repository, "--port", "0", "--batch-size", "1", "--device", "cpu"]
    with ThreadPoolExecutor(1) as starter:
        ended = starter.submit(colleague.run, PROGRAM, *arguments, folder=tmp_path)
        until(lambda: told.exists() and told.read_text(), seconds=120)
        process = int(told.read_text())
        try:
            until(lambda: "curl" in printed.read_text(), seconds=120)
            port = re.search(r"http://127\.0\.0\.1:(\d+)", printed.read_text())[1]
            yield process, printed.read_text(), Client(int(port)), ended
        finally:
            if not ended.done():
                os.kill(process, signal.SIGKILL)


def test_a_signal_ends_the_command_when_what_runs_is_answered(command, single):
    process, greeting, client, ended = command
    shown = re.search(r"^curl http://[^/]+(/\w+) -H '.+' -d '(.+)'$", greeting, re.MULTILINE)
    path, body = shown.groups()
    assert client.ask(path, json.loads(body)) == single[json.loads(body)["inputs"]]
    with ThreadPoolExecutor(1) as clients:
        asked = clients.submit(client.fill, TEXTS[:3], **LONG)
        until(lambda: client.ask("/health")["batches"] >= 2)
        os.kill(process, signal.SIGTERM)
        assert len(asked.result()) == 3
    assert ended.result(30).returncode == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_the_command_at_once(command, number):
    process, _, client, ended = command

    def is_stopping() -> bool:
        try:
            return client.send("/health")[0] == 503
        except ConnectionError:
            return True

    with ThreadPoolExecutor(1) as clients:
        asked = clients.submit(client.fill, TEXTS[:1] * MOST_TEXTS, **LONG)
        until(lambda: client.ask("/health")["waiting"])
        os.kill(process, number)
        until(is_stopping)
        assert not ended.done()  # it answers what it has taken
        os.kill(process, number)
        assert ended.result(30).returncode == -number
        assert isinstance(asked.exception(), ConnectionError)


@pytest.mark.parametrize("is_ready", [False, True])  # or another server loads its model
@pytest.mark.parametrize("command", ["serve", "app"])
def test_a_place_where_nothing_can_listen_is_one_sentence(tmp_path, command, is_ready):
    """Before a model is looked for, of which there is none."""
    if command == "app":
        pytest.importorskip("gradio")
    with bind("127.0.0.1", 0) as taken:
        if is_ready:
            listen(taken)
        port = taken.getsockname()[1]
        result = CliRunner().invoke(cli.app, [command, str(tmp_path), "--port", str(port)])
    assert result.exit_code == 1
    assert re.fullmatch(rf"Nothing can listen on 127\.0\.0\.1, port {port} .*\n", result.output)


def test_the_place_of_a_server_that_has_ended_can_be_had_at_once():
    with bind("127.0.0.1", 0) as listener:
        listen(listener)
        place = listener.getsockname()
        with socket.create_connection(place):
            connection, _ = listener.accept()
            connection.close()  # first, so that the system remembers it here
    bind(*place).close()


def test_a_library_that_is_missing_is_named(monkeypatch, tmp_path):
    for name in ("fastapi", "uvicorn"):
        with monkeypatch.context() as missing:
            missing.delitem(sys.modules, "glm_transformers.apps.server")
            missing.setitem(sys.modules, name, None)
            result = CliRunner().invoke(cli.app, ["serve", str(tmp_path)])
        assert result.exit_code == 1 and 'pip install ".[serve]"' in result.output


# --- docs/serving.md ------------------------------------------------------------------------------

PAGE = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
# What differs from run to run.
VARYING = {"id", "created", "texts", "batches"}
EXAMPLE = re.compile(r"```bash\n(curl .*?)```\n\n```(?:json|text)\n(.*?)```", re.DOTALL)


def lasting(answer):
    """An answer without what varies; ids of models are names."""
    if isinstance(answer, list):
        return [lasting(one) for one in answer]
    if not isinstance(answer, dict):
        return answer
    return {name: lasting(value) for name, value in answer.items() if name not in VARYING}


def test_the_page_shows_what_is_answered(client):
    examples = EXAMPLE.findall(PAGE)
    assert len(examples) == PAGE.count("\ncurl ") >= 8
    for command, shown in examples:
        words = shlex.split(command)
        body = words[words.index("-d") + 1].encode() if "-d" in words else None
        (address,) = (word for word in words if word.startswith("http"))
        _, text = client.send(address.removeprefix("http://127.0.0.1:8000"), body)
        read = read_events if text.startswith("data: ") else json.loads
        assert lasting(read(text)) == lasting(read(f"{shown}\n"))


def test_the_page_names_every_field_and_limit():
    for name in (*FIELDS, "prompt"):
        assert f"\n| `{name}` |" in PAGE
    for default in (f"--queue {Serving.queue}", f"--timeout {Serving.timeout:g}"):
        assert f"`{default}`" in PAGE
    assert f"| {MOST_TEXTS} |" in PAGE and f"| {MOST_CHARACTERS:,};" in PAGE
    assert f"{MOST_BYTES // 2**20} MiB" in PAGE
    assert f"| {MOST_CONNECTIONS};" in PAGE and f"| {LONGEST_ALTERNATIVE}, also" in PAGE
