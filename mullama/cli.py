"""The `mullama` command: streams the answer to a prompt to the terminal, measures; says in a line what went wrong.

Strategy: one function (`_generate`) does the work inside the event loop and lets every failure pass; another
(`_explain`) turns what comes out into a line and an exit status. Ctrl-C is a cancellation like any other: a
task waits for the signal and cancels the scope, so it ends the same way under asyncio and trio, and the
statistics of what had been generated are still there. Output goes straight to the file descriptor and waits
for room inside the loop, so a reader that has stopped (`| less`) does not keep Ctrl-C from working.

Exit status: 0 done, 1 failed, 2 wrong usage, 130 interrupted, 141 the reader of the output went away.
"""

from __future__ import annotations

import codecs
import contextlib
import dataclasses
import errno
import functools
import json
import os
import select
import signal
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

from .config import ContextParams, SamplerParams, StreamConfig
from .errors import InvalidParameter, MullamaError

if TYPE_CHECKING:
    import anyio
    import anyio.abc

    from . import TokenStream

_FAILED, _INTERRUPTED, _READER_GONE = 1, 128 + signal.SIGINT, 128 + 13


def main(args: Sequence[str] | None = None) -> int:
    """The entry point: runs the command and returns its exit status."""
    try:
        status = _cli.main(args, prog_name="mullama", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except BaseException as error:  # noqa: BLE001  what is not explained is raised again
        return _explain(error)
    return status if isinstance(status, int) else 0


def _explain(error: BaseException) -> int:
    """The exit status for a failure, after a line about it on standard error if there is something to say."""
    leaves = list(_leaves(error))
    for leaf in leaves:
        if isinstance(leaf, (KeyboardInterrupt, click.Abort)):
            return _INTERRUPTED
    for leaf in leaves:
        if isinstance(leaf, MullamaError):
            return _complain(str(leaf))
        if isinstance(leaf, OSError):
            _discard_output()
            if leaf.errno == errno.EPIPE:
                return _READER_GONE
            return _complain(f"{leaf.filename}: {leaf.strerror}" if leaf.filename else str(leaf))
    raise error


def _leaves(error: BaseException) -> Iterator[BaseException]:
    """The errors in a group of groups, as nurseries raise them; by attribute, for 3.10 has no such class."""
    inner = getattr(error, "exceptions", None)
    if inner is None:
        yield error
    else:
        for one in inner:
            yield from _leaves(one)


def _complain(message: str) -> int:
    with contextlib.suppress(OSError):  # nobody may be reading that either
        click.echo(f"mullama: {' '.join(message.split())}", err=True)
    return _FAILED


def _discard_output() -> None:
    """Python flushes standard output as it exits; what did not go out by now would only fail once more."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class _Output:
    """Standard output, written at once in the terminal's encoding; only `write` waits, inside the loop."""

    def __init__(self) -> None:
        if sys.stdout is None:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF), "standard output")
        self._fd = sys.stdout.fileno()
        self._encode = codecs.getincrementalencoder(sys.stdout.encoding)("replace").encode
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLOUT)
        self._in_line = False

    async def write(self, text: str) -> None:
        """Writes it all. If cancelled, a part of it may have been written."""
        import anyio

        data = self._encode(text)
        while data:
            if not self._poll.poll(0):
                await anyio.wait_writable(self._fd)
            data = data[self._put(data) :]
        self._in_line = not text.endswith("\n") if text else self._in_line

    def end_line(self) -> None:
        """A newline, if the last line has none; left out if it would have to wait."""
        if self._in_line and self._poll.poll(0):
            self._put(self._encode("\n"))
            self._in_line = False

    def _put(self, data: bytes) -> int:
        try:
            return os.write(self._fd, data[: select.PIPE_BUF])  # as much as a pipe that has room takes at once
        except BlockingIOError:
            return 0
        except OSError as error:
            raise OSError(error.errno, error.strerror, "standard output") from None


@dataclasses.dataclass
class _Job:
    """One `mullama run`: what to do, and what has come of it so far."""

    model: str | None
    n_gpu_layers: int
    context: ContextParams
    prompt: str
    config: StreamConfig
    echo: bool
    output: _Output
    stream: TokenStream | None = None
    interrupted: bool = False


async def _generate(job: _Job) -> None:
    import anyio

    async with anyio.create_task_group() as tasks:
        await tasks.start(_cancel_on_interrupt, job, tasks.cancel_scope)
        await _write_tokens(job)
        tasks.cancel_scope.cancel()


async def _cancel_on_interrupt(job: _Job, scope: anyio.CancelScope, *, task_status: anyio.abc.TaskStatus[None]) -> None:
    import anyio

    with anyio.open_signal_receiver(signal.SIGINT) as signals:
        task_status.started()
        async for _ in signals:
            job.interrupted = True
            scope.cancel()
            return  # and with it the receiver: a second Ctrl-C does what Python does by itself


async def _write_tokens(job: _Job) -> None:
    from . import AsyncModel

    async with await AsyncModel.load(job.model, n_gpu_layers=job.n_gpu_layers, context=job.context) as model:
        if job.echo:
            await job.output.write(job.prompt)
        async with model.generate_stream(job.prompt, job.config) as job.stream:
            async for token in job.stream:
                await job.output.write(token)


def _statistics(stream: TokenStream) -> str:
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


def _read_prompt() -> str:
    if sys.stdin is None or sys.stdin.isatty():
        raise click.UsageError("there is no prompt. Give one in quotation marks, or send text to standard input.")
    try:
        text = sys.stdin.buffer.read().decode()
    except OSError as error:
        raise click.UsageError(f"standard input cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError as error:
        raise click.UsageError(f"standard input is not UTF-8 text: {error.reason} at byte {error.start}.") from None
    return text.removesuffix("\n").removesuffix("\r")  # what `echo` adds belongs to no prompt


def _version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        import mullama

        click.echo(f"mullama {mullama.__version__} (llama.cpp {mullama.llama_cpp_version()})")
        ctx.exit()


_SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
# Where an option is called otherwise than the field that it sets.
_FIELDS = {"stop": "stop_sequences", "ctx": "n_ctx", "threads": "n_threads"}
_OPTIONS = {field: option for option, field in _FIELDS.items()}


def _given(**values: Any) -> dict[str, Any]:
    return {_FIELDS.get(name, name): value for name, value in values.items() if value is not None}


@contextlib.contextmanager
def _usage_errors() -> Iterator[None]:
    """What the configurations refuse is wrong usage here, and is called by the name of its option."""
    try:
        yield
    except InvalidParameter as error:
        field = (error.parameter or "").partition("[")[0]
        option = "--" + _OPTIONS.get(field, field).replace("_", "-")
        raise click.BadParameter(str(error), param_hint=option) from None


@click.group(context_settings=_SETTINGS)
@click.option(
    "--version",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=_version,
    help="Print the versions.",
)
def _cli() -> None:
    """Stream text from a language model, with llama.cpp inside."""


# What both commands ask for.
_MODEL = click.option(
    "-m", "--model", metavar="FILE", help="A GGUF file.  [default: the model that comes with mullama]"
)
_BACKEND = click.option(
    "--backend",
    type=click.Choice(["asyncio", "trio"]),
    default="asyncio",
    show_default=True,
    help="Event loop.",
)
_THREADS = click.option("--threads", type=int, metavar="N", help="Threads to compute with.  [default: physical cores]")
_GPU_LAYERS = click.option(
    "--gpu-layers",
    type=click.IntRange(min=-1),
    default=-1,
    metavar="N",
    help="Layers on the GPU, -1 for all.",
)


@_cli.command(context_settings=_SETTINGS)
@click.argument("prompt", required=False)
@_MODEL
@_BACKEND
@click.option("-n", "--max-tokens", type=int, metavar="N", help="At most N tokens, -1 for no limit.  [default: 256]")
@click.option("--temperature", type=float, metavar="T", help="0 is greedy.  [default: 0.8]")
@click.option("--top-k", type=int, metavar="K", help="Keep the K likeliest tokens, 0 for all.  [default: 40]")
@click.option("--top-p", type=float, metavar="P", help="Keep the likeliest up to P in all.  [default: 0.95]")
@click.option("--min-p", type=float, metavar="P", help="Keep those with P of the likeliest's.  [default: 0]")
@click.option("--repeat-penalty", type=float, metavar="R", help="Above 1, repeat less.  [default: 1]")
@click.option("--seed", type=int, metavar="S", help="For the same text again.  [default: a new one each time]")
@click.option("--ignore-eos", is_flag=True, help="Write on where the model would end.")
@click.option("--stop", multiple=True, metavar="TEXT", help="Stop before this text; may be given several times.")
@click.option(
    "--timeout-ms",
    type=int,
    default=0,
    metavar="MS",
    help="Give up after so long, 0 for never.  [default: 0]",
)
@click.option("--ctx", type=int, metavar="N", help="Context length in tokens.  [default: the model's, up to 4096]")
@_THREADS
@_GPU_LAYERS
@click.option("--echo", is_flag=True, help="Print the prompt first.")
@click.option("--stats", is_flag=True, help="Print token counts and timings to standard error at the end.")
def run(
    prompt: str | None,
    model: str | None,
    backend: str,
    max_tokens: int | None,
    stop: tuple[str, ...],
    timeout_ms: int,
    ctx: int | None,
    threads: int | None,
    gpu_layers: int,
    echo: bool,
    stats: bool,
    **sampling: float | None,
) -> int:
    """Stream what the model writes after PROMPT, or after the text on standard input."""
    import anyio

    with _usage_errors():
        params = SamplerParams(**_given(**sampling))
        context = ContextParams(n_seq_max=1, **_given(ctx=ctx, threads=threads))
        config = StreamConfig(params=params, timeout_ms=timeout_ms, **_given(max_tokens=max_tokens, stop=stop))
    if prompt is None:
        prompt = _read_prompt()
    job = _Job(model, gpu_layers, context, prompt, config, echo, _Output())
    try:
        anyio.run(functools.partial(_generate, job), backend=backend)
    finally:
        with contextlib.suppress(OSError):  # if the output fails, `write` has said so
            job.output.end_line()
        if stats and job.stream is not None:
            click.echo(_statistics(job.stream), err=True)
    return _INTERRUPTED if job.interrupted else 0


@_cli.command(context_settings=_SETTINGS)
@_MODEL
@click.option(
    "--streams",
    type=click.IntRange(1, 256),
    default=8,
    show_default=True,
    metavar="N",
    help="Measure 1, 2, 4 … up to N streams at once.",
)
@click.option(
    "--prompt",
    type=click.IntRange(min=1),
    default=128,
    show_default=True,
    metavar="N",
    help="Tokens of prompt of each.",
)
@click.option(
    "-n",
    "--max-tokens",
    "tokens",
    type=click.IntRange(min=2),
    default=128,
    show_default=True,
    metavar="N",
    help="Tokens that each generates.",
)
@click.option(
    "--repeat",
    type=click.IntRange(min=1),
    default=3,
    show_default=True,
    metavar="N",
    help="Runs, of which the median counts.",
)
@_THREADS
@_GPU_LAYERS
@_BACKEND
@click.option(
    "--upstream", metavar="FILE", help="Upstream's program.  [default: llama-batched-bench, if it is on the PATH]"
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def bench(model: str | None, backend: str, upstream: str | None, as_json: bool, **load: Any) -> None:
    """Measure prompt and generation speed at 1 … N streams, in turn with upstream's llama-batched-bench."""
    import anyio

    from . import _bench

    with _usage_errors():
        wanted = _bench.Load(**load)
        wanted.context()  # refuses what is out of range before anything is loaded
    upstream = _bench.find_upstream(upstream)
    show = sys.stderr.isatty()
    report = functools.partial(click.echo, err=True) if show else (lambda _: None)
    result = anyio.run(_bench.measure, model, wanted, upstream, report, backend=backend)
    click.echo(json.dumps(result, indent=2) if as_json else _bench.describe(result))
