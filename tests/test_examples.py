"""The examples run: those of `examples/`, and every Python program of the documents that mullama follows, as written.

Each runs in a fresh interpreter, in a folder where ``model.gguf`` is the bundled model, with warnings as errors, and must
show its point. Servers get a free port of this machine and real clients, and must shut down cleanly when they are interrupted.
"""

from __future__ import annotations

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


# The output that shows the point of each example, in every run with the bundled model.
SHOWN = {
    "callbacks": [
        r"40 tokens, cancelled",
        r"\[100 tokens, [\d.]+ t/s\]",
        r"Error: the stream took longer than",
        r"11 tokens arrived: Hi there!",
        r"(?s)into asyncio\n\nHi there!.*into trio\n\nHi there!",
    ],
    "chat": [r"Ctrl-C stops an answer, Ctrl-D ends the chat", r"> \n"],
    "chat_tools": [r'get_weather: \{"city": "Paris"\}\nIt is sunny in Paris'],
    "completions": [
        r"The output broke: .*No space left",
        r"Written: 'Rust is a programming'\nGenerated: 'Rust is a programming language.*', cancelled",
        r"stopped: True",
        r"' P' +9\d\.\d%",
    ],
    "many_streams": [
        r"arrived: (?=.*[25]{8})(?=.*[0134]{3})\d{160}",
        r"7:  30 tokens, cancelled",
        r"(?s)2: 100 tokens, length +paused.*5: 100 tokens, length +paused",
        r"730 tokens in 1\d\d batches",
    ],
    "reading_streams": [r"\[stopped before '\.'\]", r"Generation timed out", r"1, 2, 3, 4, 5,\n\[cancelled"],
    "token_stream": [
        r"Paused with 16 of 16 places of the buffer used\nRead on to the end: 60 tokens",
        r"Stopped after 20 tokens: cancelled\nKept: '",
        r"with memory', then '\.'",
        r"Stream error: STREAM_TIMEOUT, after \d+ tokens",
        r"(?s)=== asyncio.*=== trio",
    ],
    "tutorial": [r"Speed: \d+", r"\[stopped\]", r"\[Generation cancelled\]\nKept: ', a happy cat"],
    "web_asgi": [
        r'data: \{"text": ","\}',
        r"data: \[DONE\]",
        r"400 .*temperature must be",
        r'\{"prompt": 1, "type": "done"\}',
    ],
    "web_fastapi": [r"Once upon a time\S* \w+", r"data: \[DONE\]", r"422 .*max_tokens must be"],
    "websocket_server": [
        r"Long ago, .* …\nThe capital of France is Paris\. \[done\]",
        r"\[prompt must be",
        r"Client disconnected",
    ],
}


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_example_files_run(example: Path, tmp_path: Path) -> None:
    printed = run_python(tmp_path, str(example))
    for point in SHOWN[example.stem]:
        assert re.search(point, printed), printed


@pytest.mark.parametrize("name", ["chat", "web_asgi", "web_fastapi", "websocket_server"])
def test_an_example_without_its_model_says_so(name: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", ROOT / "examples" / f"{name}.py", tmp_path / "none.gguf"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIME_LIMIT,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(r"cannot load the model '.*none\.gguf': no such file\. .*\n", done.stderr)


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
    """Ctrl-C. Before 3.11, asyncio raises it wherever the loop happens to be; in a destructor it is lost, so press it again."""
    while True:
        process.send_signal(signal.SIGINT)
        try:
            return process.communicate(timeout=TIME_LIMIT / 2 if sys.version_info >= (3, 11) else 5)
        except subprocess.TimeoutExpired:
            if sys.version_info >= (3, 11):
                raise


@contextmanager
def server(folder: Path, way: str, *programs: str) -> Iterator[tuple[str, list[str]]]:
    """A server that runs during the block: its address, and afterwards the lines that it printed."""
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
    """The same with a connected client."""
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
            next(response.iter_lines())  # and disconnect
        with httpx.stream("POST", f"http://{address}/stream", json=body, timeout=TIME_LIMIT / 2) as response:
            events = numbered(response)
    assert 10 < len(events) <= 20
    assert all(set(event) == {"token"} for event in events)
    assert "[Generation cancelled]" in printed
    assert 0 < len(json.loads(printed[-1]).split()) < 10
