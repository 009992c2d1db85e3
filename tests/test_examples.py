"""The examples run: those of `examples/`, and every Python program that users were given, as it is written.

Each runs in a fresh interpreter, in a folder where ``model.gguf`` is the bundled model, with warnings as errors. Servers get
a free port of this machine and real clients, and must end in order when they are interrupted.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from test_docs import ROOT, prose
from test_docs_examples import TIME_LIMIT, run_python
from websockets.sync.client import ClientConnection, connect

import mullama

EXAMPLES = sorted(path for path in (ROOT / "examples").glob("*.py") if path.name != "demo.py")
SPEC = ROOT / "tests" / "spec"
RUN = str(SPEC / "run.py")
STORY = "Once upon a time"


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_example_files_run(example: Path, tmp_path: Path) -> None:
    printed = run_python(tmp_path, str(example))
    assert printed or example.stem == "web_asgi"  # that one is for a server to run


def test_examples_take_a_model(tmp_path: Path) -> None:
    assert run_python(tmp_path, str(ROOT / "examples" / "completions.py"), "model.gguf")


def test_the_table_has_every_example() -> None:
    page = prose(ROOT / "docs" / "examples.md")
    for example in EXAMPLES:
        assert f"`examples/{example.name}`" in page, example.name
    for program in SPEC.glob("*_*.py"):
        assert f"`tests/spec/{program.name}`" in page, program.name
    for name, function in re.findall(r"`examples/(\w+)\.py`: ((?:`\w+`(?:, )?)+)", page):
        for one in re.findall(r"`(\w+)`", function):
            source = (ROOT / "examples" / f"{name}.py").read_text("utf-8")
            assert re.search(rf"^\s*(async )?def {one}\(", source, re.MULTILINE), f"{name}.{one}"


# -- the programs that users were given


@pytest.mark.parametrize("program", ["guide_config", "guide_async", "tutorial_console", "tutorial_complete"])
def test_programs_run_as_they_are_written(program: str, tmp_path: Path) -> None:
    assert len(run_python(tmp_path, str(SPEC / f"{program}.py"))) > 20


def test_tokens_per_second_are_measured(tmp_path: Path) -> None:
    printed = run_python(tmp_path, RUN, "plain", "tutorial_console", "tutorial_stats")
    assert re.search(r"Tokens: \d+\nTime: [\d.]+s\nSpeed: [\d.]+ tok/s\nCharacters: \d+\n", printed)


def interrupted(process: subprocess.Popen[str]) -> tuple[str, str]:
    """Ctrl-C. Before 3.11, asyncio lets it come up wherever the loop just is; in a destructor it is lost, and pressed again."""
    while True:
        process.send_signal(signal.SIGINT)
        try:
            return process.communicate(timeout=TIME_LIMIT / 2 if sys.version_info >= (3, 11) else 5)
        except subprocess.TimeoutExpired:
            if sys.version_info >= (3, 11):
                raise


@contextmanager
def server(folder: Path, way: str, *programs: str) -> Iterator[tuple[str, list[str]]]:
    """A program that serves, for the time of the block: its address, and afterwards the lines that it printed."""
    (folder / "model.gguf").symlink_to(mullama.default_model())
    printed: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:  # connections wait here until the program takes them
        process = subprocess.Popen(
            [sys.executable, "-W", "error", RUN, way, *programs, str(listener.fileno())],
            cwd=folder,
            env={**os.environ, "OMP_WAIT_POLICY": "passive"},
            pass_fds=[listener.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        address = f"127.0.0.1:{listener.getsockname()[1]}"
    try:
        yield address, printed
        out, err = interrupted(process)
        assert process.returncode == 0, err
        assert not err or sys.version_info < (3, 11)
        printed += out.splitlines()
        assert printed.pop() == "ended"
    finally:
        process.kill()
        print(*process.communicate())


@contextmanager
def websocket_server(folder: Path, way: str, *programs: str) -> Iterator[tuple[ClientConnection, list[str]]]:
    """The same with a client that is connected."""
    with (
        server(folder, way, *programs) as (address, printed),
        connect(f"ws://{address}", open_timeout=TIME_LIMIT / 2) as client,
    ):
        yield client, printed


def until_done(client: ClientConnection) -> list[dict[str, Any]]:
    events = [json.loads(client.recv(TIME_LIMIT / 2))]
    while events[-1]["type"] == "token":
        events.append(json.loads(client.recv(TIME_LIMIT / 2)))
    return events


def test_guide_sse(tmp_path: Path) -> None:
    with server(tmp_path, "web", "guide_sse") as (address, _):
        url = f"http://{address}/generate"
        with httpx.stream("POST", url, params={"prompt": STORY}, timeout=TIME_LIMIT / 2) as response:
            assert response.headers["content-type"].startswith("text/event-stream")
            body = response.read().decode()
    *events, end = re.findall(r"data: (\{'text': '.*?'\}|\[DONE\])\n\n", body, re.DOTALL)
    assert end == "[DONE]"
    assert body == "".join(f"data: {event}\n\n" for event in [*events, end])
    assert len("".join(event[10:-2] for event in events).split()) > 10


def test_guide_websocket(tmp_path: Path) -> None:
    with websocket_server(tmp_path, "websocket", "guide_websocket") as (client, _):
        for prompt in (STORY, "Long ago"):
            client.send(prompt)
            *tokens, end = until_done(client)
            assert end == {"type": "done"}
            assert len("".join(token["text"] for token in tokens).split()) > 10


def numbered(response: httpx.Response) -> list[dict[str, Any]]:
    return [json.loads(line.removeprefix("data: ")) for line in response.iter_lines() if line]


def test_tutorial_sse(tmp_path: Path) -> None:
    with server(tmp_path, "web", "tutorial_sse") as (address, _):
        body = {"prompt": STORY, "max_tokens": 30}
        with httpx.stream("POST", f"http://{address}/stream", json=body, timeout=TIME_LIMIT / 2) as response:
            events = numbered(response)
        refused = httpx.post(f"http://{address}/stream", json={"max_tokens": 30}, timeout=TIME_LIMIT / 2)
    assert [event["index"] for event in events] == list(range(len(events)))
    assert [event["done"] for event in events] == [False] * (len(events) - 1) + [True]
    assert 20 < len(events) <= 31
    assert events[-1]["token"] == ""
    assert refused.status_code == 422


def test_tutorial_websocket(tmp_path: Path) -> None:
    with websocket_server(tmp_path, "websocket", "tutorial_websocket") as (client, printed):
        client.send(json.dumps({"prompt": STORY, "max_tokens": 20}))
        *tokens, end = until_done(client)
    assert end == {"type": "done"}
    assert len("".join(token["content"] for token in tokens)) > 20
    assert printed == ["WebSocket server on ws://localhost:8765", "Client connected"]


def test_tutorial_backpressure(tmp_path: Path) -> None:
    with websocket_server(tmp_path, "backpressure", "tutorial_console", "tutorial_backpressure") as (client, _):
        client.send(STORY)
        *tokens, end = until_done(client)
    assert end == {"type": "done"}
    assert 20 < len(tokens) <= 60


def test_tutorial_cancellation(tmp_path: Path) -> None:
    with server(tmp_path, "cancellation", "tutorial_sse", "tutorial_cancellation") as (address, printed):
        body = {"prompt": STORY, "max_tokens": 20}
        with httpx.stream("POST", f"http://{address}/stream", json=body, timeout=TIME_LIMIT / 2) as response:
            next(response.iter_lines())  # and away
        with httpx.stream("POST", f"http://{address}/stream", json=body, timeout=TIME_LIMIT / 2) as response:
            events = numbered(response)
    assert 10 < len(events) <= 20
    assert all(set(event) == {"token"} for event in events)
    assert "[Generation cancelled]" in printed
    assert 0 < len(json.loads(printed[-1]).split()) < 10


# -- the web example, as a server would call it


def load_example(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Client:
    """The two channels of an ASGI connection, seen from the other end."""

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


def request(prompt: str) -> dict[str, Any]:
    return {"type": "http.request", "body": json.dumps({"prompt": prompt}).encode(), "more_body": False}


@pytest.mark.anyio
async def test_web_example_streams_events() -> None:
    web = load_example("web_asgi")
    client = Client(request("Once upon a time"))
    async with await mullama.AsyncModel.load() as web.model, anyio.create_task_group() as tasks:
        tasks.start_soon(web.app, {"type": "http", "method": "POST", "path": "/generate"}, client.receive, client.send)
        start = await client.from_app.receive()
        assert (start["type"], start["status"]) == ("http.response.start", 200)
        body = b""
        with anyio.fail_after(TIME_LIMIT):
            while (message := await client.from_app.receive()).get("more_body"):
                body += message["body"]
    events = [line.removeprefix("data: ") for line in body.decode().split("\n\n") if line]
    assert events[-1] == "[DONE]"
    assert len("".join(json.loads(event)["text"] for event in events[:-1]).split()) > 3
    client.close()


@pytest.mark.anyio
async def test_web_example_stops_for_a_client_that_goes_away() -> None:
    web = load_example("web_asgi")
    web.CONFIG = mullama.StreamConfig(max_tokens=None, params=mullama.SamplerParams(ignore_eos=True))
    client = Client(request("Once upon a time"))
    async with await mullama.AsyncModel.load() as web.model:
        async with anyio.create_task_group() as tasks:
            scope = {"type": "http", "method": "POST", "path": "/generate"}
            tasks.start_soon(web.app, scope, client.receive, client.send)
            for _ in range(3):
                await client.from_app.receive()
            assert web.model.statistics().busy == 1
            client.to_app.send_nowait({"type": "http.disconnect"})
        assert web.model.statistics().busy == 0
    client.close()


@pytest.mark.anyio
async def test_web_example_speaks_over_a_websocket() -> None:
    web = load_example("web_asgi")
    client = Client({"type": "websocket.connect"}, {"type": "websocket.receive", "text": "Once upon a time"})
    async with await mullama.AsyncModel.load() as web.model, anyio.create_task_group() as tasks:
        tasks.start_soon(web.app, {"type": "websocket", "path": "/ws"}, client.receive, client.send)
        assert (await client.from_app.receive())["type"] == "websocket.accept"
        kinds = []
        with anyio.fail_after(TIME_LIMIT):
            while "done" not in kinds:
                kinds.append(json.loads((await client.from_app.receive())["text"])["type"])
        client.to_app.send_nowait({"type": "websocket.disconnect"})
    assert set(kinds) == {"token", "done"}
    client.close()
