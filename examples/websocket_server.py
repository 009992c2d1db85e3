"""A chat over WebSockets with the `websockets` package; run by itself it is its own client once.

    pip install websockets
    python examples/websocket_server.py [MODEL]

Each message is JSON, `{"prompt": …, "max_tokens": …}`, or a prompt as bare text, in a text or a binary frame. A new one takes
the place of the one that is being answered, and the events of an answer have the number of its message. A client that reads
slowly pauses its own answer; one that goes away cancels it.
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

from mullama import AsyncModel, MullamaError, SamplerParams, StreamConfig

CONFIG = StreamConfig(max_tokens=200, params=SamplerParams(temperature=0.7, seed=1))


async def handler(model: AsyncModel, websocket: ServerConnection) -> None:
    print("Client connected")
    answering, number = anyio.CancelScope(), 0
    async with anyio.create_task_group() as tasks:
        with suppress(ConnectionClosed):
            async for message in websocket:
                answering.cancel()
                try:
                    text = message if isinstance(message, str) else message.decode()
                except UnicodeDecodeError as error:
                    await websocket.close(1007, f"not UTF-8: {error.reason} at byte {error.start}")
                    break
                answering, number = anyio.CancelScope(), number + 1
                tasks.start_soon(answer, model, websocket, number, text, answering)
        tasks.cancel_scope.cancel()
    print("Client disconnected")


async def answer(
    model: AsyncModel, websocket: ServerConnection, number: int, message: str, scope: anyio.CancelScope
) -> None:
    """`send` waits while the client's buffers are full: that is all the backpressure there is to do."""

    async def say(**what: str) -> None:
        await websocket.send(json.dumps({"message": number, **what}))

    with scope, suppress(ConnectionClosed):
        try:
            prompt, config = parse(message)
            async with model.generate_stream(prompt, config) as stream:
                async for token in stream:
                    await say(type="token", content=token)
            await say(type="done")
        except (MullamaError, ValueError) as error:
            await say(type="error", code=getattr(error, "code", "BAD_REQUEST"), text=str(error))


def parse(message: str) -> tuple[str, StreamConfig]:
    """What is asked for. Raises a ValueError that says what is wrong."""
    if not message.lstrip().startswith("{"):
        return message, CONFIG
    try:
        values = json.loads(message)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the message is not JSON: {error}") from None
    if not isinstance(values.get("prompt"), str) or values.keys() - {"prompt", "max_tokens"}:
        raise ValueError('the message must have a text as "prompt", and may have "max_tokens"')
    return values.pop("prompt"), CONFIG.replace(**values)


async def ask(url: str, *prompts: str) -> None:
    """Shows an answer; where there is another prompt, the client sends it after ten tokens of that."""
    async with connect(url) as websocket:
        for number, prompt in enumerate(prompts, 1):
            await websocket.send(json.dumps({"prompt": prompt, "max_tokens": 60}))
            print(prompt, end="")
            count = 0
            async for message in websocket:
                event = json.loads(message)
                if event["message"] < number:
                    continue  # was still on its way
                if event["type"] != "token":
                    print(f" [{event.get('text', event['type'])}]")
                    break
                print(event["content"], end="", flush=True)
                count += 1
                if count == 10 and number < len(prompts):
                    print(" …")
                    break


async def main(path: str | None = None) -> None:
    async with await AsyncModel.load(path) as model, serve(partial(handler, model), "127.0.0.1", 0) as server:
        url = f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        await ask(url, "Once upon a time")
        await ask(url, "Long ago", "The capital of France is")
        await ask(url, "")
        # To keep it running:  await server.serve_forever()


if __name__ == "__main__":
    try:
        asyncio.run(main(*sys.argv[1:2]))
    except MullamaError as error:
        sys.exit(str(error))
