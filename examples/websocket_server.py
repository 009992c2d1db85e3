"""A chat over WebSockets with the `websockets` package; run by itself it is its own client once.

    pip install websockets
    python examples/websocket_server.py [MODEL]

Each message is `{"prompt": …, "max_tokens": …}` or bare text. A new one takes the place of the one that is being answered;
a client that reads slowly pauses its own answer; one that goes away cancels it.
"""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import suppress
from functools import partial

import anyio
from websockets.asyncio.client import connect
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from mullama import AsyncModel, MullamaError, StreamConfig


async def handler(model: AsyncModel, websocket: ServerConnection) -> None:
    print("Client connected")
    answering = anyio.CancelScope()
    async with anyio.create_task_group() as tasks:
        with suppress(ConnectionClosed):
            async for message in websocket:
                answering.cancel()
                answering = anyio.CancelScope()
                tasks.start_soon(answer, model, websocket, str(message), answering)
        tasks.cancel_scope.cancel()
    print("Client disconnected")


async def answer(model: AsyncModel, websocket: ServerConnection, message: str, scope: anyio.CancelScope) -> None:
    """`send` waits while the client's buffers are full: that is all the backpressure there is to do."""
    prompt, max_tokens = parse(message)
    with scope, suppress(ConnectionClosed):
        try:
            async with model.generate_stream(prompt, StreamConfig(max_tokens=max_tokens, temperature=0.7)) as stream:
                async for token in stream:
                    await websocket.send(json.dumps({"type": "token", "content": token}))
            await websocket.send(json.dumps({"type": "done"}))
        except MullamaError as error:
            await websocket.send(json.dumps({"type": "error", "code": error.code}))


def parse(message: str) -> tuple[str, int]:
    try:
        data = json.loads(message)
        return str(data["prompt"]), int(data.get("max_tokens", 200))
    except (ValueError, TypeError, KeyError):
        return message, 200


async def ask(url: str, prompt: str) -> str:
    async with connect(url) as websocket:
        await websocket.send(json.dumps({"prompt": prompt, "max_tokens": 60}))
        text = ""
        while (event := json.loads(await websocket.recv()))["type"] == "token":
            print(event["content"], end="", flush=True)
            text += event["content"]
        print(f" [{event['type']}]")
        return text


async def main(path: str | None = None) -> None:
    async with await AsyncModel.load(path) as model, serve(partial(handler, model), "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        await ask(f"ws://127.0.0.1:{port}", "Once upon a time")
        # To keep it running:  await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:2]))
