"""Streams to browsers: server-sent events at POST /generate and a WebSocket at /ws, for any ASGI server, without a framework.

    pip install uvicorn websockets
    uvicorn --app-dir examples web_asgi:app
    curl --no-buffer -d '{"prompt": "Once upon a time"}' http://127.0.0.1:8000/generate

The model is the one that MODEL names, or else the one that comes with mullama.
"""

from __future__ import annotations

import json
import os
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import anyio

from mullama import AsyncModel, MullamaError, StreamConfig

Message = Mapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

CONFIG = StreamConfig(max_tokens=200, timeout_ms=60_000)
model: AsyncModel  # loaded while the application starts


async def app(scope: Message, receive: Receive, send: Send) -> None:
    if scope["type"] == "lifespan":
        await lifespan(receive, send)
    elif scope["type"] == "websocket":
        await websocket(receive, send)
    elif scope["method"] == "POST" and scope["path"] == "/generate":
        await events(receive, send)
    else:
        await send({"type": "http.response.start", "status": 404, "headers": []})
        await send({"type": "http.response.body", "body": b"POST to /generate\n"})


async def lifespan(receive: Receive, send: Send) -> None:
    """One model for the whole application, there from its start to its end."""
    global model
    await receive()
    async with await AsyncModel.load(os.environ.get("MODEL")) as model:
        await send({"type": "lifespan.startup.complete"})
        await receive()
    await send({"type": "lifespan.shutdown.complete"})


async def events(receive: Receive, send: Send) -> None:
    """Each token as an event. A client that goes away cancels the generation; one that reads slowly pauses it."""
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message.get("body", b""), message.get("more_body", False)
    prompt = json.loads(body)["prompt"]
    headers = [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-cache")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(cancel_when_gone, receive, tasks.cancel_scope)
        try:
            async with model.generate_stream(prompt, CONFIG) as stream:
                async for token in stream:
                    await send(event(json.dumps({"text": token})))
        except MullamaError as error:
            await send(event(json.dumps({"error": error.code})))
        await send(event("[DONE]"))
        await send({"type": "http.response.body"})
        tasks.cancel_scope.cancel()


def event(data: str) -> Message:
    return {"type": "http.response.body", "body": f"data: {data}\n\n".encode(), "more_body": True}


async def cancel_when_gone(receive: Receive, scope: anyio.CancelScope) -> None:
    while (await receive())["type"] not in ("http.disconnect", "websocket.disconnect"):
        pass
    scope.cancel()


async def websocket(receive: Receive, send: Send) -> None:
    """Each message of the client is a prompt; a new one takes the place of the one that is being answered."""
    await receive()
    await send({"type": "websocket.accept"})
    async with anyio.create_task_group() as tasks:
        answering = anyio.CancelScope()
        while (message := await receive())["type"] == "websocket.receive":
            answering.cancel()
            answering = anyio.CancelScope()
            tasks.start_soon(answer, message["text"], send, answering)
        tasks.cancel_scope.cancel()


async def answer(prompt: str, send: Send, scope: anyio.CancelScope) -> None:
    async def say(**what: str) -> None:
        await send({"type": "websocket.send", "text": json.dumps(what)})

    with scope:
        try:
            async with model.generate_stream(prompt, CONFIG) as stream:
                async for token in stream:
                    await say(type="token", text=token)
            await say(type="done")
        except MullamaError as error:
            await say(type="error", code=error.code)
