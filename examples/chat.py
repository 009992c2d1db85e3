"""A chat in a terminal: it keeps the conversation, streams the answers, and Ctrl-C stops an answer but not the chat.

    python examples/chat.py [MODEL]
    python examples/chat.py --backend trio

Ctrl-D ends it. Questions may also come from a file or a pipe, one a line.
"""

from __future__ import annotations

import argparse
import functools
import os
import signal
import sys
from typing import Any

import anyio
from anyio.abc import TaskStatus

from mullama import AsyncModel, MullamaError, StreamConfig


class CtrlC:
    """Cancels what is being done, and not the program."""

    def __init__(self) -> None:
        self._scope = anyio.CancelScope()

    async def watch(self, *, task_status: TaskStatus[None]) -> None:
        with anyio.open_signal_receiver(signal.SIGINT) as signals:
            task_status.started()
            async for _ in signals:
                self._scope.cancel()

    def stops(self) -> anyio.CancelScope:
        """The scope that the next Ctrl-C cancels."""
        self._scope = anyio.CancelScope()
        return self._scope


async def read_line() -> str:
    """A line, "" at the end of the input. Cancelled, nothing is lost: the terminal keeps a line until it is complete."""
    print("> ", end="", flush=True)
    if sys.stdin.isatty():
        await anyio.wait_readable(sys.stdin)  # unlike input(), this lets the event loop go on
        line = os.read(sys.stdin.fileno(), 4096).decode(errors="replace")
        print(end="" if line else "\n")
    else:
        line = await anyio.to_thread.run_sync(sys.stdin.readline)
        print(line.rstrip("\n"))
    return line


async def answer(model: AsyncModel, messages: list[Any], config: StreamConfig, ctrl_c: CtrlC) -> None:
    """Streams the answer to the last message, and appends it, whole or not."""
    stream = model.chat_stream(messages, config)
    with ctrl_c.stops() as scope:
        async with stream:
            async for delta in stream:
                print(delta.content, end="", flush=True)
    messages.append(stream.chat_completion().message)
    print(" [stopped]" if scope.cancelled_caught else "")


async def reply(model: AsyncModel, messages: list[Any], config: StreamConfig, ctrl_c: CtrlC) -> None:
    """Answers, and forgets the oldest questions and answers where the conversation has outgrown the context."""
    recent = list(messages)
    while True:
        try:
            await answer(model, recent, config, ctrl_c)
            messages[:] = recent
            break
        except MullamaError as error:
            if error.code == "PROMPT_TOO_LONG" and len(recent) > 1:
                del recent[:2]
                continue
            print(error)
            messages.pop()  # this question cannot be answered; the next one may be
            break


async def talk(model: AsyncModel, messages: list[Any], config: StreamConfig, ctrl_c: CtrlC) -> None:
    while True:
        with ctrl_c.stops() as scope:
            line = await read_line()
        if scope.cancelled_caught:
            print("\n(Ctrl-D ends the chat.)")
        elif not line:
            break
        elif question := line.strip():
            messages.append({"role": "user", "content": question})
            await reply(model, messages, config, ctrl_c)


async def main(path: str | None, delay_ms: int) -> None:
    ctrl_c = CtrlC()
    config = StreamConfig(max_tokens=None, temperature=0, stream_delay_ms=delay_ms, timeout_ms=0)
    async with await AsyncModel.load(path) as model, anyio.create_task_group() as tasks:
        await tasks.start(ctrl_c.watch)
        print(f"This is {model.model.name}. Ctrl-C stops an answer, Ctrl-D ends the chat.")
        await talk(model, [], config, ctrl_c)
        tasks.cancel_scope.cancel()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", metavar="MODEL", help="a GGUF file (default: the model of mullama)")
    parser.add_argument("--backend", choices=["asyncio", "trio"], default="asyncio", help="default: %(default)s")
    parser.add_argument("--delay-ms", type=int, default=0, help="between two tokens (default: %(default)s)")
    options = parser.parse_args()
    try:
        anyio.run(functools.partial(main, options.model, options.delay_ms), backend=options.backend)
    except MullamaError as error:
        sys.exit(str(error))
