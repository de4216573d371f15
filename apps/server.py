"""`glm serve`: fills blanks over HTTP."""

import asyncio
import json
import logging
import math
import signal
import socket
import time
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.requests import ClientDisconnect

from .. import __version__
from ..hub_repository.handler import PARAMETERS, Check, read_request
from ..streaming_glm import PieceChunk, PieceStreamer
from .batching import Answer, Batches, Closed, Full, Question
from .completions import FIELDS, Completed, read_completion
from .listener import bind, listen
from .options import Serving
from .pipeline import open_pipeline

# 32 texts of 20,000 characters are 0.6 MB, or 1.9 MB of Chinese. Most of what read_request takes
# fits, though not if JSON writes each character in 12 bytes (\ud83d\ude00): reading what is longer
# would hold all others up for seconds.
MOST_BYTES = 2 * 2**20
# More than wait by default (--queue 256), whose requests are refused in a sentence. Their bodies
# are 1 GiB together, at most.
MOST_CONNECTIONS = 512
# Seconds: nobody waits for an answer any more, and a step of the model takes less.
LAST_STEP = 5
EXAMPLE = "Paris is the capital of [MASK]."
ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"description": "The request is wrong; the message says what to send."},
    413: {"description": "The body is too long."},
    429: {"description": "Too many texts wait; try again."},
    503: {"description": "The server is stopping."},
    504: {"description": "The answer took too long."},
}
STATUS = {ValueError: 400, ClientDisconnect: 400, Full: 429, Closed: 503}
FAULT = "The server failed; its log says why."
LOG = logging.getLogger("uvicorn.error")  # where uvicorn logs what fails before an answer begins


def serve(options: Serving) -> None:
    """Listen until a signal comes; what was asked before it is answered.

    Raises:
        ValueError: if there is no such place to listen, and as `open_pipeline`.
    """
    with bind(options.host, options.port) as listener:
        fill = open_pipeline(
            options.repository,
            options.dtype,
            options.device,
            options.quantize,
        )
        name = Path(options.repository).resolve().name
        batches = Batches(fill, options.batch_size, options.queue)
        server = Server(make_app(batches, name, options.timeout), batches, options.timeout)
        listen(listener)
        print(greeting(name, listener), flush=True)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: None)  # the server raises it once more at its end
        server.run(sockets=[listener])
        obey_signals()
        batches.close()
        batches.thread.join(LAST_STEP)


def obey_signals() -> None:
    """Have the next signal end the process at once."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)


def greeting(name: str, listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    body = json.dumps({"inputs": EXAMPLE})
    return (
        f"{name} listens on {address}; {address}/docs says what can be asked. For example:\n\n"
        f"curl {address}/fill -H 'Content-Type: application/json' -d '{body}'\n"
    )


class Server(uvicorn.Server):
    """Takes nothing new from a signal on, and bounds the time until its end; a second ends it."""

    def __init__(self, app: FastAPI, batches: Batches, timeout: float):
        config = uvicorn.Config(
            app,
            lifespan="off",
            log_level="warning",
            limit_concurrency=MOST_CONNECTIONS,
            timeout_keep_alive=75,  # longer than a proxy keeps a connection (nginx: 60 seconds)
            timeout_graceful_shutdown=math.ceil(timeout),
        )
        super().__init__(config)
        self.batches = batches

    def handle_exit(self, sig, frame) -> None:
        obey_signals()
        self.batches.close()
        super().handle_exit(sig, frame)


def make_app(batches: Batches, name: str, timeout: float) -> FastAPI:
    """The application.

    Args:
        batches: what fills the texts.
        name: of the model.
        timeout: seconds from a request to its answer.
    """
    app = FastAPI(
        title="GLM for Transformers",
        version=__version__,
        description=f"Fills blanks with {name}.",
    )
    started = int(time.time())
    tokenizer: Any = batches.fill.tokenizer
    answer_errors(app)

    @app.post("/fill", responses=ERRORS, openapi_extra=body_schema("inputs", PARAMETERS, True))
    async def fill(request: Request) -> Response:
        """Fill the blanks of texts: the answer of the pipeline."""
        inputs, parameters = read_request(await read_json(request, timeout))
        texts = [inputs] if isinstance(inputs, str) else inputs
        questions = [Question(text, parameters) for text in texts]
        answers = await ask(request, batches, questions, timeout)
        filled = [[readable(sequence) for sequence in answer.sequences] for answer in answers]
        if isinstance(inputs, str):
            return JSONResponse(filled[0])
        has_one_each = all(len(sequences) == 1 for sequences in filled)
        return JSONResponse([one for (one,) in filled] if has_one_each else filled)

    @app.post("/v1/completions", responses=ERRORS, openapi_extra=body_schema("prompt", FIELDS))
    async def complete(request: Request) -> Response:
        """Fill or continue prompts: the form of OpenAI's completions."""
        completion = read_completion(await read_json(request, timeout), name)
        completed = Completed(name, tokenizer)
        questions = [
            Question(prompt, completion.parameters, completion.seed)
            for prompt in completion.prompts
        ]
        if completion.stream:
            return await stream(request, batches, questions[0], completed, timeout)
        return JSONResponse(completed.whole(await ask(request, batches, questions, timeout)))

    @app.get("/health", responses={503: ERRORS[503]})
    async def health() -> Response:
        """Whether texts are taken, and how many have been filled."""
        is_ready = batches.is_open and batches.thread.is_alive()
        state = {
            "status": "ready" if is_ready else "stopping",
            "model": name,
            "waiting": len(batches.waiting),
            "texts": batches.texts,
            "batches": batches.batches,
        }
        return JSONResponse(state, status_code=200 if is_ready else 503)

    @app.get("/v1/models")
    async def models() -> Response:
        """The one model that there is."""
        model = {
            "id": name,
            "object": "model",
            "created": started,
            "owned_by": "glm-transformers",
        }
        return JSONResponse({"object": "list", "data": [model]})

    return app


# --- Requests -------------------------------------------------------------------------------------


async def read_json(request: Request, timeout: float) -> Any:
    """The body of a request.

    Raises:
        ValueError: if it is no JSON.
        HTTPException: if it is too long, or takes too long.
    """
    # A form of a stranger's web page cannot send this type.
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise ValueError("The body must be JSON; send the header Content-Type: application/json.")
    try:
        body = await asyncio.wait_for(read_body(request), timeout)
    except asyncio.TimeoutError as error:
        raise HTTPException(504, f"The body was not there after {timeout:g} seconds.") from error
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ValueError('The body is no JSON; send one like {"inputs": "a [MASK]"}.') from error


async def read_body(request: Request) -> bytes:
    body, size = bytearray(), 0
    async for part in request.stream():
        size += len(part)
        if size <= MOST_BYTES:
            body += part
    # Read to its end all the same: who still sends does not look for an answer.
    if size > MOST_BYTES:
        raise HTTPException(413, f"The body has {size} bytes; send at most {MOST_BYTES}.")
    return bytes(body)


async def ask(
    request: Request,
    batches: Batches,
    questions: list[Question],
    timeout: float,
) -> list[Answer]:
    """The answers, for as long as the client waits for them.

    Raises:
        ValueError: what the pipeline says of a text that it cannot fill.
        HTTPException: if they took too long.
    """
    batches.ask(questions)
    answers = asyncio.gather(*(asyncio.wrap_future(question.answer) for question in questions))
    try:
        return await while_here(request, answers, timeout)
    finally:
        for question in questions:
            question.leave()


async def while_here(request: Request, awaited: Awaitable, timeout: float) -> Any:
    """The result of what is awaited, unless the client goes away or it takes too long."""
    task = asyncio.ensure_future(awaited)
    task.add_done_callback(look_at)
    gone = asyncio.create_task(is_gone(request))
    try:
        await asyncio.wait((task, gone), timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise HTTPException(504, too_long(timeout))
    finally:
        gone.cancel()
        task.cancel()


def look_at(done: asyncio.Future) -> None:
    """Of an error at which nobody looks, asyncio would log a traceback."""
    if not done.cancelled():
        done.exception()


def too_long(timeout: float) -> str:
    return f"The answer was not there after {timeout:g} seconds; ask less."


async def is_gone(request: Request) -> None:
    """Return when the client has gone; its body must have been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def readable(sequence: dict[str, Any]) -> dict[str, Any]:
    """What the pipeline says when it is not asked for ids."""
    return {name: value for name, value in sequence.items() if name != "generated_token_ids"}


# --- Streams --------------------------------------------------------------------------------------


async def stream(
    request: Request,
    batches: Batches,
    question: Question,
    completed: Completed,
    timeout: float,
) -> Response:
    """The answer as server-sent events, while it is written; what fails before is an error."""
    parts = write(batches, question, timeout)
    try:
        first = await while_here(request, anext(parts, None), timeout)
    except BaseException:
        question.leave()
        raise
    events = send_events(first, parts, question, completed)
    return StreamingResponse(events, media_type="text/event-stream")


async def write(batches: Batches, question: Question, timeout: float) -> AsyncIterator[PieceChunk]:
    """The answer in parts, whose texts are together its `generated_text`.

    Raises:
        ValueError: what the pipeline says of a text that it cannot fill.
        HTTPException: if they took too long.
    """
    loop = asyncio.get_running_loop()
    chunks: asyncio.Queue[PieceChunk | None] = asyncio.Queue()

    def send(chunk: PieceChunk) -> None:  # called by the thread of the model
        loop.call_soon_threadsafe(chunks.put_nowait, chunk)

    tokenizer: Any = batches.fill.tokenizer
    question.streamer = PieceStreamer(tokenizer, send)
    batches.ask([question])
    answer = asyncio.wrap_future(question.answer)
    answer.add_done_callback(look_at)
    answer.add_done_callback(lambda _: chunks.put_nowait(None))
    end = loop.time() + timeout
    sent, blank = 0, 0  # characters, and the number of the blank that they end in
    try:
        while (chunk := await asyncio.wait_for(chunks.get(), end - loop.time())) is not None:
            text = " " * (chunk.blank - blank) + chunk.text
            sent, blank = sent + len(text), chunk.blank
            if text:
                yield chunk._replace(text=text)
    except asyncio.TimeoutError as error:
        raise HTTPException(504, too_long(timeout)) from error
    rest = answer.result().sequences[0]["generated_text"][sent:]
    if rest:  # spaces between blanks that were not reached
        yield PieceChunk(blank, rest, ended=True)


async def send_events(
    first: PieceChunk | None,
    parts: AsyncIterator[PieceChunk],
    question: Question,
    completed: Completed,
) -> AsyncIterator[str]:
    part = first
    try:
        while part is not None:
            yield event(completed.part(part))
            part = await anext(parts, None)
        yield event(completed.last_part(question.answer.result()))
        yield "data: [DONE]\n\n"
    except Exception as error:  # the status of the answer is sent already
        body = error_body(error)
        if body["error"]["code"] == 500:
            LOG.error("A stream failed.", exc_info=error)
        yield event(body)
    finally:
        question.leave()


def event(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"


# --- Errors, and what the OpenAPI page says -------------------------------------------------------


def answer_errors(app: FastAPI) -> None:
    """Have every error answered in one form: {"error": {"code": 400, "message": "..."}}."""

    async def answer(request: Request, error: Exception) -> Response:
        body = error_body(error)
        headers = getattr(error, "headers", None)  # those of 405 say what is allowed
        return JSONResponse(body, body["error"]["code"], headers)

    for kind in (*STATUS, StarletteHTTPException, Exception):
        app.add_exception_handler(kind, answer)


def error_body(error: Exception) -> dict[str, Any]:
    if isinstance(error, StarletteHTTPException):
        code, message = error.status_code, error.detail
    else:
        code = next((code for kind, code in STATUS.items() if isinstance(error, kind)), 500)
        message = FAULT if code == 500 else str(error)
    return {"error": {"code": code, "message": message}}


def body_schema(
    text: str,
    fields: dict[str, Check],
    nested: bool = False,
) -> dict[str, Any]:
    """The body of a request in the words of OpenAPI: texts, and what else may be sent."""
    known: dict[str, Any] = {name: {"description": check(None)} for name, check in fields.items()}
    if nested:
        known = {"parameters": {"type": "object", "properties": known}}
    texts = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}
    schema = {"type": "object", "required": [text], "properties": {text: texts, **known}}
    content = {"schema": schema, "example": {text: EXAMPLE}}
    return {"requestBody": {"required": True, "content": {"application/json": content}}}
