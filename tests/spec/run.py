"""Runs the programs of the documents that mullama follows, as written, with the surroundings that each needs.

    python run.py WAY PROGRAM... [FD]

in a folder where ``model.gguf`` is a model. Programs that are given together share their names, like the blocks of a
page. A server listens on the socket FD, whatever port its text names, and runs until SIGINT.
"""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
Names = dict[str, Any]


def run_program(name: str, names: Names) -> None:
    source = (HERE / f"{name}.py").read_text("utf-8")
    exec(compile(source, f"{name}.py", "exec", dont_inherit=True), names)


def plain(programs: list[str]) -> None:
    names: Names = {"__name__": "__main__"}
    for program in programs:
        run_program(program, names)


def web(programs: list[str], fd: int) -> None:
    """What `uvicorn server:app` does."""
    import uvicorn

    names: Names = {"__name__": "server"}
    for program in programs:
        run_program(program, names)
    server = uvicorn.Server(uvicorn.Config(names["app"], log_level="warning", ws="none"))
    server.run(sockets=[socket.socket(fileno=fd)])


def websocket(programs: list[str], fd: int) -> None:
    import websockets

    serve, run = websockets.serve, asyncio.run

    @asynccontextmanager
    async def serve_here(handler: Any, host: str, port: int) -> AsyncIterator[Any]:
        assert (host, port) in (("localhost", 8080), ("localhost", 8765))
        async with serve(handler, sock=socket.socket(fileno=fd)) as server:
            yield server

    def run_for_ever(main: Any) -> None:
        """The guide creates its server outside an event loop, and passes it to `asyncio.run` instead of a coroutine. Neither
        `websockets` nor asyncio accepts that; what is meant is to serve until interrupted.
        """

        async def until_interrupted() -> None:
            async with main:
                await asyncio.Future()

        run(main if asyncio.iscoroutine(main) else until_interrupted())

    websockets.serve, asyncio.run = serve_here, run_for_ever  # type: ignore[assignment]
    plain(programs)


def backpressure(programs: list[str], fd: int) -> None:
    """The function of the last program answers each message."""
    import websockets

    names: Names = {"__name__": "server", "asyncio": asyncio, "json": json}
    for program in programs:
        run_program(program, names)

    async def handler(connection: Any) -> None:
        async for message in connection:
            await names["stream_with_backpressure"](names["ctx"], message, connection, 60)
            await connection.send(json.dumps({"type": "done"}))

    async def main() -> None:
        async with websockets.serve(handler, sock=socket.socket(fileno=fd)):
            await asyncio.Future()

    asyncio.run(main())


class Interrupted:
    """A context whose fifth token is followed by Ctrl-C."""

    def __init__(self, context: Any) -> None:
        self.context = context

    def generate_stream(self, *args: Any, **kwargs: Any) -> Iterator[Any]:
        for i, token in enumerate(self.context.generate_stream(*args, **kwargs), 1):
            yield token
            if i == 5:
                signal.raise_signal(signal.SIGINT)


def cancellation(programs: list[str], fd: int) -> None:
    """First the function, with a Ctrl-C, then the route."""
    from fastapi import FastAPI, Request
    from fastapi.responses import StreamingResponse

    names: Names = {"__name__": "server", "json": json, "Request": Request, "StreamingResponse": StreamingResponse}
    *before, last = programs
    for program in before:
        run_program(program, names)
    names["app"] = FastAPI()  # without the route of the program before
    run_program(last, names)
    handler = signal.getsignal(signal.SIGINT)
    output = names["stream_with_cancellation"](Interrupted(names["ctx"]), "Once upon a time")
    assert signal.getsignal(signal.SIGINT) is handler
    print(f"\n{json.dumps(output)}", flush=True)

    import uvicorn

    uvicorn.Server(uvicorn.Config(names["app"], log_level="warning", ws="none")).run(sockets=[socket.socket(fileno=fd)])


if __name__ == "__main__":
    way, *rest = sys.argv[1:]
    with suppress(KeyboardInterrupt):
        if way == "plain":
            plain(rest)
        else:
            {"web": web, "websocket": websocket, "backpressure": backpressure, "cancellation": cancellation}[way](
                rest[:-1], int(rest[-1])
            )
    print("ended", flush=True)
