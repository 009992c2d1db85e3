"""The example servers: what they refuse and with which status, text and binary frames, clients that disconnect.

Each has a real server and real clients on loopback; the application without a framework is also called as a server would
call it, under asyncio, uvloop and trio.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import Any

import anyio
import httpx
import pytest
from test_docs import ROOT
from test_docs_examples import TIME_LIMIT
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as connect_async
from websockets.asyncio.server import serve
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

import mullama

STORY = "Once upon a time"
EXAMPLES = ROOT / "examples"


def load_example(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where FastAPI looks up annotations
    spec.loader.exec_module(module)
    return module


# -- under uvicorn


@contextmanager
def uvicorn(name: str, **environment: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """`uvicorn NAME:app` during the block: its address, and its process."""
    with socket.create_server(("127.0.0.1", 0)) as listener:  # connections wait here until it takes them
        process = subprocess.Popen(
            [sys.executable, "-m", "uvicorn", "--app-dir", EXAMPLES, "--fd", str(listener.fileno()), f"{name}:app"],
            env={**os.environ, "OMP_WAIT_POLICY": "passive", **environment},
            pass_fds=[listener.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        address = f"127.0.0.1:{listener.getsockname()[1]}"
    try:
        yield address, process
    finally:
        process.send_signal(signal.SIGINT)
        try:
            print(*process.communicate(timeout=TIME_LIMIT / 4))
        finally:
            process.kill()


applications = pytest.mark.parametrize("name", ["web_asgi", "web_fastapi"])


@applications
def test_without_a_model_the_start_up_fails(name: str) -> None:
    with uvicorn(name, MODEL="/none.gguf") as (_, process):
        _, errors = process.communicate(timeout=TIME_LIMIT / 2)
        assert process.returncode == 3
        assert "cannot load the model '/none.gguf': no such file." in errors
        assert "Application startup failed" in errors


BAD_JSON = ["", "{", "no JSON", "[" * 100_000, b"\xff{}"]
BAD_VALUES: list[tuple[dict[str, Any], str]] = [
    ({"prompt": ""}, "prompt must be"),
    ({"prompt": STORY, "max_tokens": 0}, "max_tokens must be"),
    ({"prompt": STORY, "max_tokens": 10**30}, "max_tokens must be"),
    ({"prompt": "a\0b"}, "NUL"),
    ({"prompt": "once upon a time " * 10_000}, "the prompt has"),
]


def events_of(response: httpx.Response) -> list[str]:
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    return [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]


def test_the_application_without_a_framework() -> None:
    with (
        uvicorn("web_asgi") as (address, _),
        httpx.Client(base_url=f"http://{address}", timeout=TIME_LIMIT / 2) as client,
    ):
        for body in [*BAD_JSON, "[]", "{}", '{"prompt": 1}', '{"prompt": "a", "n": 1}']:
            refused = client.post("/generate", content=body)
            assert (refused.status_code, refused.json()["error"]["code"]) == (400, "BAD_REQUEST"), body
        for values, message in [*BAD_VALUES, ({"prompt": STORY, "temperature": "hot"}, "temperature must be")]:
            refused = client.post("/generate", json=values)
            assert refused.status_code == 400, values
            assert message in refused.json()["error"]["message"]
        assert client.post("/generate", content=b" " * 1_100_000).status_code == 413
        assert client.get("/generate").status_code == 404
        *tokens, end = events_of(client.post("/generate", json={"prompt": STORY, "max_tokens": 10, "temperature": 0}))
        assert (len(tokens), end) == (10, "[DONE]")
        with connect(f"ws://{address}/ws") as websocket:
            for prompt in (STORY, STORY.encode(), ""):
                websocket.send(prompt)
                while (event := json.loads(websocket.recv(TIME_LIMIT / 2)))["type"] == "token":
                    assert event["text"] is not None
                if prompt:
                    assert event["type"] == "done"
                else:
                    assert event["type"] == "error"
                    assert "prompt must be" in event["message"]
            websocket.send(b"caf\xe9")
            with pytest.raises(ConnectionClosed) as closed:
                websocket.recv(TIME_LIMIT / 2)
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 1007
            assert closed.value.rcvd.reason == "not UTF-8: unexpected end of data at byte 3"


def test_the_application_with_fastapi() -> None:
    with (
        uvicorn("web_fastapi") as (address, _),
        httpx.Client(base_url=f"http://{address}", timeout=TIME_LIMIT / 2) as client,
    ):
        for path in ("/generate", "/stream"):
            for body in [*BAD_JSON[:3], "[]", "{}", '{"prompt": 1}']:
                assert client.post(path, content=body).status_code == 422, body
            for values, message in BAD_VALUES:
                refused = client.post(path, json=values)
                assert refused.status_code == 422, values
                assert message in str(refused.json()["detail"])
        *tokens, end = events_of(client.post("/generate", json={"prompt": STORY, "max_tokens": 10}))
        assert (len(tokens), end) == (10, "[DONE]")
        numbered = [
            json.loads(event) for event in events_of(client.post("/stream", json={"prompt": STORY, "max_tokens": 5}))
        ]
        assert [event["done"] for event in numbered] == [False] * 5 + [True]


# -- with the websockets package


def test_the_websocket_server() -> None:
    async def until_done(websocket: ClientConnection, number: int) -> list[dict[str, Any]]:
        events: list[dict[str, Any]] = []
        while not events or events[-1]["type"] == "token":
            event = json.loads(await websocket.recv())
            if event["message"] == number:
                events.append(event)
        return events

    async def talk(url: str, model: mullama.AsyncModel) -> None:
        number = 0
        async with connect_async(url) as websocket:
            for message in (STORY, STORY.encode(), json.dumps({"prompt": STORY, "max_tokens": 5})):
                number += 1
                await websocket.send(message)
                *tokens, end = await until_done(websocket, number)
                assert end["type"] == "done"
                assert len(tokens) >= 5
            for bad in (
                "",
                "{",
                "{" * 10_000,
                "{}",
                '{"prompt": "a", "max_tokens": 0}',
                '{"prompt": "a", "x": 1}',
                "\0",
            ):
                number += 1
                await websocket.send(bad)
                (event,) = await until_done(websocket, number)
                assert event["type"] == "error"
                assert event["text"]
            await websocket.send(json.dumps({"prompt": STORY, "max_tokens": None}))
            await websocket.send("Long ago")  # takes its place
            assert (await until_done(websocket, number + 2))[-1]["type"] == "done"
            await websocket.send(b"caf\xe9")
            await websocket.wait_closed()
            assert websocket.close_code == 1007
        async with connect_async(url) as websocket:
            await websocket.send(json.dumps({"prompt": STORY, "max_tokens": None}))
            await websocket.recv()
        while model.statistics().busy:  # noqa: ASYNC110  it went away in the middle
            await asyncio.sleep(0.001)

    handler = load_example("websocket_server").handler

    async def run() -> None:
        async with await mullama.AsyncModel.load() as model, serve(partial(handler, model), "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            with anyio.fail_after(TIME_LIMIT / 2):
                await talk(f"ws://127.0.0.1:{port}", model)

    asyncio.run(run())


# -- the application without a framework, as a server would call it

HTTP = {"type": "http", "method": "POST", "path": "/generate"}
WEBSOCKET = {"type": "websocket", "path": "/ws"}
GONE = {"type": "http.disconnect"}


class Client:
    """The two channels of an ASGI connection, from the server's side."""

    def __init__(self, *messages: dict[str, Any]) -> None:
        self.to_app, self._app_reads = anyio.create_memory_object_stream[dict[str, Any]](10)
        self._app_writes, self.from_app = anyio.create_memory_object_stream[dict[str, Any]](0)
        for message in messages:
            self.to_app.send_nowait(message)

    async def receive(self) -> dict[str, Any]:
        return await self._app_reads.receive()

    async def send(self, message: dict[str, Any]) -> None:
        await self._app_writes.send(message)

    def close(self) -> None:
        for end in (self.to_app, self._app_reads, self._app_writes, self.from_app):
            end.close()


@asynccontextmanager
async def calling(web: Any, scope: dict[str, Any], *messages: dict[str, Any]) -> AsyncIterator[Client]:
    """The application, called with a connection; it must have returned by the end of the block."""
    client = Client(*messages)
    try:
        with anyio.fail_after(TIME_LIMIT / 2):
            async with await mullama.AsyncModel.load() as web.model:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(web.app, scope, client.receive, client.send)
                    yield client
                assert web.model.statistics().busy == 0
    finally:
        client.close()


def request(values: Any, /, **message: Any) -> dict[str, Any]:
    return {"type": "http.request", "body": json.dumps(values).encode(), "more_body": False} | message


@pytest.mark.anyio
async def test_events_are_streamed() -> None:
    whole = request({"prompt": STORY})
    halves = [request(0, body=whole["body"][:7], more_body=True), request(0, body=whole["body"][7:])]
    async with calling(load_example("web_asgi"), HTTP, *halves) as client:
        start = await client.from_app.receive()
        assert (start["type"], start["status"]) == ("http.response.start", 200)
        body = b""
        while (message := await client.from_app.receive()).get("more_body"):
            body += message["body"]
    events = [line.removeprefix("data: ") for line in body.decode().split("\n\n") if line]
    assert events[-1] == "[DONE]"
    assert len("".join(json.loads(event)["text"] for event in events[:-1]).split()) > 3


@pytest.mark.anyio
@pytest.mark.parametrize("values", [values for values, _ in BAD_VALUES], ids=lambda values: str(values)[:40])
async def test_what_is_refused_gets_no_200(values: dict[str, Any]) -> None:
    async with calling(load_example("web_asgi"), HTTP, request(values)) as client:
        start, body = await client.from_app.receive(), await client.from_app.receive()
    assert start["status"] == 400
    assert json.loads(body["body"])["error"]["message"]


@pytest.mark.anyio
async def test_a_failure_after_the_200_is_an_event() -> None:
    web = load_example("web_asgi")
    web.CONFIG = mullama.StreamConfig(max_tokens=None, params=mullama.SamplerParams(ignore_eos=True))
    async with calling(web, HTTP, request({"prompt": STORY})) as client:
        assert (await client.from_app.receive())["status"] == 200
        await web.model.aclose()
        body = b""
        while (message := await client.from_app.receive()).get("more_body"):
            body += message["body"]
    assert json.loads(body.split(b"data: ")[-1])["error"]["code"] == "CLOSED"


@pytest.mark.anyio
async def test_a_client_that_goes_away_stops_the_generation() -> None:
    web = load_example("web_asgi")
    web.CONFIG = mullama.StreamConfig(max_tokens=None, params=mullama.SamplerParams(ignore_eos=True))
    async with calling(web, HTTP, request({"prompt": STORY})) as client:
        for _ in range(3):
            await client.from_app.receive()
        assert web.model.statistics().busy == 1
        client.to_app.send_nowait(GONE)


@pytest.mark.anyio
async def test_a_client_that_goes_away_before_the_first_token() -> None:
    web = load_example("web_asgi")
    web.CONFIG = mullama.StreamConfig(max_tokens=None, params=mullama.SamplerParams(ignore_eos=True))
    async with calling(web, HTTP, request({"prompt": STORY}), GONE):
        pass
    async with calling(web, HTTP, request({}, more_body=True), GONE):
        pass


@pytest.mark.anyio
async def test_prompts_in_frames_of_both_kinds() -> None:
    messages: list[dict[str, Any]] = [
        {"type": "websocket.receive", "text": STORY},
        {"type": "websocket.receive", "text": None, "bytes": STORY.encode()},
        {"type": "websocket.receive", "text": ""},
    ]
    async with calling(load_example("web_asgi"), WEBSOCKET, {"type": "websocket.connect"}) as client:
        assert (await client.from_app.receive())["type"] == "websocket.accept"
        for number, message in enumerate(messages, 1):
            client.to_app.send_nowait(message)
            kinds = {"token"}
            while not kinds & {"done", "error"}:
                event = json.loads((await client.from_app.receive())["text"])
                assert event["prompt"] == number
                kinds.add(event["type"])
            assert kinds - {"token"} == {"error" if message.get("text") == "" else "done"}
        client.to_app.send_nowait({"type": "websocket.receive", "text": None, "bytes": b"caf\xe9"})
        close = await client.from_app.receive()
        assert (close["type"], close["code"]) == ("websocket.close", 1007)


@pytest.mark.anyio
async def test_a_websocket_that_goes_away_stops_the_generation() -> None:
    web = load_example("web_asgi")
    web.CONFIG = mullama.StreamConfig(max_tokens=None, params=mullama.SamplerParams(ignore_eos=True))
    message = {"type": "websocket.receive", "text": STORY}
    async with calling(web, WEBSOCKET, {"type": "websocket.connect"}, message) as client:
        for _ in range(3):
            await client.from_app.receive()
        assert web.model.statistics().busy == 1
        client.to_app.send_nowait({"type": "websocket.disconnect"})


@pytest.mark.anyio
async def test_the_start_up_fails_without_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODEL", "/none.gguf")
    client = Client({"type": "lifespan.startup"})
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(load_example("web_asgi").app, {"type": "lifespan"}, client.receive, client.send)
        message = await client.from_app.receive()
    assert message["type"] == "lifespan.startup.failed"
    assert message["message"].startswith("cannot load the model '/none.gguf'")
    client.close()
