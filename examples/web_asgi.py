"""Streams to browsers: server-sent events at POST /generate and a WebSocket at /ws, for any ASGI server, without a framework.

    pip install uvicorn websockets
    uvicorn --app-dir examples web_asgi:app
    curl --no-buffer -d '{"prompt": "Once upon a time", "max_tokens": 50}' http://127.0.0.1:8000/generate

The model is the one that MODEL names, or else the one that comes with mullama; without a model the start-up fails. A request
is answered with 200 only when its first token is there. Run by itself, it asks its own server once.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import anyio

from mullama import AsyncModel, MullamaError, StreamConfig, TokenizationError

Message = Mapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

CONFIG = StreamConfig(max_tokens=200, timeout_ms=60_000)
FIELDS = {"prompt", "max_tokens", "temperature", "top_k", "top_p", "stop_sequences"}
MAX_BODY = 1_000_000
model: AsyncModel  # loaded while the application starts


async def app(scope: Message, receive: Receive, send: Send) -> None:
    if scope["type"] == "lifespan":
        await lifespan(receive, send)
    elif scope["type"] == "websocket":
        await websocket(receive, send)
    elif scope["method"] == "POST" and scope["path"] == "/generate":
        await events(receive, send)
    else:
        await respond(send, 404, {"error": {"message": "there is only POST /generate, and a WebSocket at /ws"}})


async def lifespan(receive: Receive, send: Send) -> None:
    """One model for the whole application, there from its start to its end."""
    global model
    await receive()
    try:
        loaded = await AsyncModel.load(os.environ.get("MODEL"))
    except MullamaError as error:
        await send({"type": "lifespan.startup.failed", "message": str(error)})
        return
    async with loaded as model:
        await send({"type": "lifespan.startup.complete"})
        await receive()
    await send({"type": "lifespan.shutdown.complete"})


async def events(receive: Receive, send: Send) -> None:
    """Each token as an event. A client that goes away cancels the generation; one that reads slowly pauses it."""
    body = b""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        body += message.get("body", b"")
        if len(body) > MAX_BODY:
            await respond(send, 413, {"error": {"message": f"the body has more than {MAX_BODY} bytes"}})
            return
        if not message.get("more_body"):
            break
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(cancel_when_gone, receive, tasks.cancel_scope)
        await answer_request(body, send)
        tasks.cancel_scope.cancel()


async def answer_request(body: bytes, send: Send) -> None:
    started = False
    try:
        prompt, config = parse(body)
        async with model.generate_stream(prompt, config) as stream:
            token = await stream.next()  # whatever is wrong with the request is known by now
            headers = [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-cache")]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            started = True
            while token is not None:
                await send(event(json.dumps({"text": token})))
                token = await stream.next()
        await send(event("[DONE]"))
        await send({"type": "http.response.body"})
    except (MullamaError, ValueError) as error:
        if started:
            await send(event(json.dumps(described(error))))
            await send({"type": "http.response.body"})
        else:
            await respond(send, status(error), described(error))


def parse(body: bytes) -> tuple[str, StreamConfig]:
    """The prompt and what else a request asks for. Raises a ValueError that says what is wrong."""
    try:
        values = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the body is not JSON: {error}") from None
    if not isinstance(values, dict) or not isinstance(values.get("prompt"), str):
        raise ValueError('the body must be an object with a text as "prompt"')
    if unknown := values.keys() - FIELDS:
        raise ValueError(f"there is no field {min(unknown)!r}, only {', '.join(sorted(FIELDS))}")
    return values.pop("prompt"), CONFIG.replace(**values)


def status(error: Exception) -> int:
    """The client's fault, or the server's."""
    if isinstance(error, (ValueError, TokenizationError)) or getattr(error, "code", "") == "PROMPT_TOO_LONG":
        return 400
    return 503


def described(error: Exception) -> dict[str, Any]:
    return {"error": {"code": getattr(error, "code", "BAD_REQUEST"), "message": str(error)}}


async def respond(send: Send, code: int, content: Any) -> None:
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": code, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps(content).encode()})


def event(data: str) -> Message:
    return {"type": "http.response.body", "body": f"data: {data}\n\n".encode(), "more_body": True}


async def cancel_when_gone(receive: Receive, scope: anyio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()


async def websocket(receive: Receive, send: Send) -> None:
    """Each message of the client is a prompt, in a text or a binary frame; a new one takes the place of the one that is
    being answered. The events of an answer have the number of its prompt. A client that goes away cancels its answer.
    """
    await receive()
    await send({"type": "websocket.accept"})
    async with anyio.create_task_group() as tasks:
        answering, number = anyio.CancelScope(), 0
        while (message := await receive())["type"] == "websocket.receive":
            answering.cancel()
            try:
                prompt = message["text"] if message.get("text") is not None else message["bytes"].decode()
            except UnicodeDecodeError as error:
                reason = f"not UTF-8: {error.reason} at byte {error.start}"
                await send({"type": "websocket.close", "code": 1007, "reason": reason})
                break
            answering, number = anyio.CancelScope(), number + 1
            tasks.start_soon(answer, number, prompt, send, answering)
        tasks.cancel_scope.cancel()


async def answer(number: int, prompt: str, send: Send, scope: anyio.CancelScope) -> None:
    async def say(**what: Any) -> None:
        await send({"type": "websocket.send", "text": json.dumps({"prompt": number, **what})})

    with scope:
        try:
            async with model.generate_stream(prompt, CONFIG) as stream:
                async for token in stream:
                    await say(type="token", text=token)
            await say(type="done")
        except MullamaError as error:
            await say(type="error", **described(error)["error"])


async def main() -> None:
    """What `uvicorn web_asgi:app` and two clients do, in one process."""
    import asyncio
    import socket

    import httpx
    import uvicorn
    from websockets.asyncio.client import connect

    global model
    async with await AsyncModel.load(os.environ.get("MODEL")) as model:
        listener = socket.create_server(("127.0.0.1", 0))
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off"))
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            async with httpx.AsyncClient(base_url=f"http://{address}", timeout=60) as client:
                request = {"prompt": "Once upon a time", "max_tokens": 10, "temperature": 0}
                print((await client.post("/generate", json=request)).text)
                refused = await client.post("/generate", json=request | {"temperature": -1})
                print(f"{refused.status_code} {refused.text}\n")
            async with connect(f"ws://{address}/ws") as client:
                await client.send(b"The capital of France is")
                while json.loads(message := await client.recv())["type"] == "token":
                    print(message)
                print(message)
        finally:
            server.should_exit = True
            await serving


if __name__ == "__main__":
    if len(sys.argv) > 1:
        os.environ["MODEL"] = sys.argv[1]
    try:
        anyio.run(main)
    except MullamaError as error:
        sys.exit(str(error))
