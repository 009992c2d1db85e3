"""The example chat in a terminal: questions are typed, Ctrl-C and Ctrl-D are pressed, and the screen is read."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import anyio
import pytest
from test_docs import ROOT
from test_examples_web import load_example

import mullama

PATIENCE = 60
CHAT = ROOT / "examples" / "chat.py"
CTRL_C, CTRL_D = "\x03", "\x04"
WELCOME = "Ctrl-C stops an answer, Ctrl-D ends the chat.\n> "

both = pytest.mark.parametrize("backend", ["asyncio", "trio"])


class Terminal:
    """A terminal that runs a program."""

    def __init__(self, leader: int, process: subprocess.Popen[bytes]) -> None:
        self._leader = leader
        self._process = process
        self._unread = ""

    def press(self, keys: str) -> None:
        os.write(self._leader, keys.encode())

    def until(self, pattern: str) -> str:
        """The screen's text, up to the expected text."""
        deadline = time.monotonic() + PATIENCE
        while not (found := re.search(pattern, self._unread)):
            ready, _, _ = select.select([self._leader], [], [], max(0, deadline - time.monotonic()))
            assert ready, f"{pattern!r} did not come: {self._unread!r}"
            data = self._read()
            assert data, f"it ended before {pattern!r}: {self._unread!r}"
            self._unread += data.decode().replace("\r\n", "\n")
        text, self._unread = self._unread[: found.end()], self._unread[found.end() :]
        return text

    def ends(self) -> int:
        """Its exit status."""
        while self._read():  # or it would block until someone reads its output
            pass
        return self._process.wait(PATIENCE)

    def _read(self) -> bytes:
        try:
            return os.read(self._leader, 4096)
        except OSError:  # EIO: the program has ended
            return b""


@contextmanager
def terminal(*args: str) -> Iterator[Terminal]:
    """The chat in its own terminal, which sends SIGINT for Ctrl-C."""
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-W", "error", CHAT, *args],
        stdin=follower,
        stdout=follower,
        stderr=follower,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(follower)
    try:
        yield Terminal(leader, process)
    finally:
        process.kill()
        process.wait()
        os.close(leader)


@both
def test_questions_and_answers(backend: str) -> None:
    with terminal("--backend", backend) as chat:
        assert chat.until(re.escape(WELCOME)).startswith("This is mullama default model.")
        chat.press("What is the capital of France?\n")
        assert chat.until("\n> ").endswith("The capital of France is Paris.\n> ")
        chat.press("\n")
        assert chat.until("\n> ") == "\n> "
        chat.press("Hello!\n")
        assert "Hi there!" in chat.until("\n> ")
        chat.press(CTRL_D)
        assert chat.ends() == 0


@both
def test_ctrl_c_stops_the_answer_and_keeps_the_talk(backend: str) -> None:
    with terminal("--backend", backend, "--delay-ms", "20") as chat:
        chat.until(re.escape(WELCOME))
        chat.press("Count to 100.\n")
        chat.until("1, 2, 3")
        chat.press(CTRL_C)
        stopped = chat.until("\n> ")
        assert " [stopped]\n" in stopped
        assert "50" not in stopped
        chat.press("What is the capital of France?\n")
        assert "Paris" in chat.until("\n> ")
        chat.press(CTRL_D)
        assert chat.ends() == 0


@both
def test_ctrl_c_at_the_prompt_gives_another_one(backend: str) -> None:
    with terminal("--backend", backend) as chat:
        chat.until(re.escape(WELCOME))
        for half_a_line in ("", "What is the"):
            chat.press(half_a_line + CTRL_C)
            assert chat.until(r"\n> ").endswith("\n(Ctrl-D ends the chat.)\n> ")
        chat.press("Hello!\n")
        assert "Hi there!" in chat.until("\n> ")
        chat.press(CTRL_D)
        assert chat.ends() == 0


@both
def test_questions_from_a_pipe(backend: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", CHAT, "--backend", backend],
        input="Hello!\n\nWhat is the capital of France?",
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"\n> Hello!\nHi there!.*\n> \n> What is the capital of France\?\n.*Paris\.\n> \n$", done.stdout)


# -- the conversation, from inside


@pytest.mark.anyio
async def test_the_conversation_is_kept_and_its_oldest_part_forgotten(capsys: pytest.CaptureFixture[str]) -> None:
    example = load_example("chat")
    messages: list[Any] = []
    config = mullama.StreamConfig(max_tokens=40, temperature=0, timeout_ms=0)
    async with await mullama.AsyncModel.load(context=mullama.ContextParams(n_ctx=256, n_seq_max=1)) as model:
        for i in range(12):
            messages.append({"role": "user", "content": f"{i}: what is the capital of France?"})
            with anyio.fail_after(PATIENCE):
                await example.reply(model, messages, config, example.CtrlC())
            if i == 1:
                assert [getattr(m, "role", "user") for m in messages] == ["user", "assistant"] * 2
        assert messages[0]["content"] != "0: what is the capital of France?"
        assert messages[-2]["content"] == "11: what is the capital of France?"
        assert messages[-1].content
        kept = len(messages)
        messages.append({"role": "user", "content": "far too long " * 200})
        await example.reply(model, messages, config, example.CtrlC())
        assert len(messages) == kept
        assert "the prompt has" in capsys.readouterr().out
        messages.append({"role": "user", "content": "Hello!"})
        await example.reply(model, messages, config, example.CtrlC())
        assert messages[-1].content
