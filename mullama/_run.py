"""What `mullama run` does inside the event loop: streams an answer or a text to standard output.

Strategy: Ctrl-C is an ordinary cancellation. A task waits for the signal and cancels the scope, so that it works the same under
asyncio and trio, and statistics of what was generated are still available. Output is written directly to the file descriptor,
and waits for it to be writable inside the loop, so that Ctrl-C works even if the reader has stopped (`| less`).
"""

from __future__ import annotations

import codecs
import errno
import os
import select
import signal
import sys
from dataclasses import dataclass

import anyio
import anyio.abc
import click

from ._async import AsyncModel
from ._async_streams import ChatStream, TokenStream
from ._chat_records import ChatDelta
from .config import ContextParams, StreamConfig

__all__ = ["Job", "Output", "generate", "nothing_generated", "statistics"]

_DIM, _NORMAL = "\x1b[2m", "\x1b[0m"


class Output:
    """Standard output in the terminal's encoding, unbuffered; waits inside the loop until it is writable."""

    def __init__(self) -> None:
        if sys.stdout is None:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF), "standard output")
        self._fd = sys.stdout.fileno()
        self._is_terminal = os.isatty(self._fd)
        self._encode = codecs.getincrementalencoder(sys.stdout.encoding)("replace").encode
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLOUT)
        self._in_line = False
        self._dim = False

    async def write(self, text: str) -> None:
        """Write the text. Cancelled, part of it may have been written."""
        if self._dim:
            text = text.lstrip("\n")
            if not text:
                return
            self._dim = False
            text = f"{_NORMAL}\n\n{text}" if self._in_line else f"{_NORMAL}\n{text}"
        await self._write(text)

    async def write_thoughts(self, text: str) -> None:
        """Write the text dimmed if this is a terminal, else nothing. Cancelled, as `write`."""
        if text and self._is_terminal:
            prefix, self._dim = "" if self._dim else _DIM, True
            await self._write(prefix + text)

    def end_line(self) -> None:
        """Write a newline if the last line has none, unless it would have to wait."""
        end = (_NORMAL if self._dim else "") + ("\n" if self._in_line else "")
        if end and self._poll.poll(0):
            self._put(self._encode(end))
            self._in_line = self._dim = False

    async def _write(self, text: str) -> None:
        data = self._encode(text)
        while data:
            if not self._poll.poll(0):
                await anyio.wait_writable(self._fd)
            data = data[self._put(data) :]
        self._in_line = not text.endswith("\n") if text else self._in_line

    def _put(self, data: bytes) -> int:
        try:
            return os.write(self._fd, data[: select.PIPE_BUF])  # a writable pipe accepts this much at once
        except BlockingIOError:
            return 0
        except OSError as error:
            raise OSError(error.errno, error.strerror, "standard output") from None


@dataclass
class Job:
    """One `mullama run`: what to do, and its state."""

    model: str | None
    n_gpu_layers: int
    context: ContextParams
    prompt: str
    system: str | None
    config: StreamConfig
    raw: bool
    echo: bool
    output: Output
    stream: TokenStream | ChatStream | None = None
    interrupted: bool = False


async def generate(job: Job) -> None:
    """Do the job. SIGINT cancels it."""
    async with anyio.create_task_group() as tasks:
        await tasks.start(_cancel_on_interrupt, job, tasks.cancel_scope)
        await _write_answer(job)
        tasks.cancel_scope.cancel()


async def _cancel_on_interrupt(job: Job, scope: anyio.CancelScope, *, task_status: anyio.abc.TaskStatus[None]) -> None:
    with anyio.open_signal_receiver(signal.SIGINT) as signals:
        task_status.started()
        async for _ in signals:
            job.interrupted = True
            scope.cancel()
            return  # which restores the signal: a second Ctrl-C has Python's default effect


async def _write_answer(job: Job) -> None:
    async with await AsyncModel.load(job.model, n_gpu_layers=job.n_gpu_layers, context=job.context) as model:
        is_chat = not job.raw and model.model.chat_template is not None
        if job.system is not None and not is_chat:
            reason = "it needs a chat, and the model has no chat template."
            raise click.BadParameter(reason, click.get_current_context(), param_hint="'--system'")
        if job.echo:
            await job.output.write(f"{job.prompt}\n" if is_chat else job.prompt)
        if is_chat:
            said = {"system": job.system, "user": job.prompt}
            messages = [{"role": role, "content": text} for role, text in said.items() if text is not None]
            job.stream = model.chat_stream(messages, job.config)
        else:
            job.stream = model.generate_stream(job.prompt, job.config)
        async with job.stream as stream:
            async for piece in stream:
                if isinstance(piece, ChatDelta):
                    await job.output.write_thoughts(piece.reasoning_content)
                await job.output.write(str(piece))


def nothing_generated(stream: TokenStream | ChatStream) -> str | None:
    """Why a stream that was read to its end has no text; None if it has text."""
    end = stream.completion()
    message = stream.chat_completion().message if isinstance(stream, ChatStream) else None
    if end.text if message is None else message.content:
        return None
    if end.stop_sequence is not None:
        reason = f"it ended at the --stop text {end.stop_sequence!r}"
    elif end.finish_reason == "length":
        n_tokens = end.usage.completion_tokens
        option = "--max-tokens" if n_tokens == stream.config().max_tokens else "--ctx"
        reason = f"it ended after {n_tokens} {'token' if n_tokens == 1 else 'tokens'}; give a larger {option}"
    else:
        reason = "the model ended the text"
    what = "only reasoning was" if message is not None and message.reasoning_content else "nothing was"
    return f"{what} generated: {reason}"


def statistics(stream: TokenStream | ChatStream) -> str:
    """What `--stats` prints."""
    end = stream.completion()
    usage, timings = end.usage, end.timings
    reason = end.finish_reason if end.stop_sequence is None else f"{end.finish_reason} at {end.stop_sequence!r}"
    return "\n".join(
        (
            f"prompt:   {usage.prompt_tokens} tokens, {usage.cached_tokens} of them cached",
            f"queue:    {timings.queue_ms:.1f} ms",
            f"prefill:  {timings.prefill_ms:.1f} ms",
            f"tokens:   {usage.completion_tokens} in {timings.decode_ms:.1f} ms",
            f"speed:    {timings.tokens_per_second:.1f} tokens/s",
            f"finished: {reason}",
        )
    )
