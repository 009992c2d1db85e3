"""The `mullama` command: its options, its messages for wrong usage and failures, and its exit status.

Strategy: `_run.py` and `_bench.py` do the work inside the event loop and let every failure propagate; `_explain` turns it into
a line and an exit status. Messages name the command's options, never the Python parameters behind them: click rejects values
out of range, before anything is loaded.

Exit status: 0 done, 1 failed, 2 wrong usage, 130 interrupted, 141 the reader of the output went away.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import click

from .config import ContextParams, SamplerParams, StreamConfig
from .errors import ChatError, ContextError, InvalidParameter, ModelLoadError, ModelNotFoundError, MullamaError

_FAILED, _INTERRUPTED, _READER_GONE = 1, 128 + signal.SIGINT, 128 + 13


def main(args: Sequence[str] | None = None) -> int:
    """The entry point: run the command and return its exit status."""
    try:
        status = _cli.main(args, prog_name="mullama", standalone_mode=False)
    except BaseException as error:  # noqa: BLE001  _explain raises others again
        return _explain(error)
    return status if isinstance(status, int) else 0


def _explain(error: BaseException) -> int:
    """The exit status of a failure, after a line about it on standard error where that helps."""
    leaves = list(_leaves(error))
    for leaf in leaves:
        if isinstance(leaf, (KeyboardInterrupt, click.Abort)):
            return _INTERRUPTED
    for leaf in leaves:
        if isinstance(leaf, click.ClickException):
            leaf.show()
            return leaf.exit_code
        if isinstance(leaf, MullamaError):
            _complain(_in_our_words(leaf))
            return _FAILED
        if isinstance(leaf, OSError):
            _discard_output()
            if leaf.errno == errno.EPIPE:
                return _READER_GONE
            _complain(f"{leaf.filename}: {leaf.strerror}" if leaf.filename else str(leaf))
            return _FAILED
    raise error


def _in_our_words(error: MullamaError) -> str:
    """The library's message, with a remedy for the command line."""
    remedy: str | None
    if error.code == "STREAM_TIMEOUT":
        return "timed out: it took longer than --timeout-ms"
    if error.code == "PROMPT_TOO_LONG":
        remedy = "Shorten it, or give a larger --ctx."
    elif isinstance(error, ModelNotFoundError):
        remedy = "Check the path after -m, or leave -m out for the model that comes with mullama."
    elif isinstance(error, ModelLoadError):
        remedy = error.hint  # it is about the file
    elif isinstance(error, ContextError) and "memory" in str(error):
        remedy = "Use a smaller context."
    elif isinstance(error, ChatError):
        remedy = "--raw does not use the chat template."
    else:
        remedy = None
    return f"{error.message}. {remedy}" if remedy else error.message


def _leaves(error: BaseException) -> Iterator[BaseException]:
    """The errors in nested exception groups, as nurseries raise them; by attribute, since 3.10 has no such class."""
    inner = getattr(error, "exceptions", None)
    if inner is None:
        yield error
    else:
        for one in inner:
            yield from _leaves(one)


def _complain(message: str) -> None:
    with contextlib.suppress(OSError):  # nobody may be reading that either
        click.echo(f"mullama: {' '.join(message.split())}", err=True)


def _discard_output() -> None:
    """Python flushes standard output as it exits; what is left would only fail again."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _checked_text(ctx: click.Context, param: click.Parameter, value: Any) -> Any:
    """Rejects texts that a model cannot be given."""
    for text in value if isinstance(value, tuple) else (value,):
        if text == "":
            raise click.BadParameter("it is empty.", ctx, param)
        try:
            (text or "").encode()
        except UnicodeEncodeError:  # bytes that Python could not decode
            raise click.BadParameter("it is not UTF-8 text.", ctx, param) from None
    return value


def _read_prompt() -> str:
    if sys.stdin is None or sys.stdin.isatty():
        raise click.UsageError("there is no prompt. Give one in quotation marks, or send text to standard input.")
    try:
        text = sys.stdin.buffer.read().decode()
    except OSError as error:
        raise click.UsageError(f"standard input cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError as error:
        raise click.UsageError(f"standard input is not UTF-8 text: {error.reason} at byte {error.start}.") from None
    text = text.removesuffix("\n").removesuffix("\r")  # what `echo` adds is not part of the prompt
    if not text:
        raise click.UsageError("there is no prompt: standard input is empty.")
    return text


def _version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        import mullama

        click.echo(f"mullama {mullama.__version__} (llama.cpp {mullama.llama_cpp_version()})")
        ctx.exit()


def _checked_max_tokens(ctx: click.Context, param: click.Parameter, value: int | None) -> int | None:
    if value == 0:
        raise click.BadParameter("0 is neither in the range x>=1 nor -1.", ctx, param)
    return value


_SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
# Options whose names differ from the fields that they set.
_FIELDS = {"stop": "stop_sequences", "ctx": "n_ctx", "threads": "n_threads"}
_OPTIONS = {field: option for option, field in _FIELDS.items()}


def _given(**values: Any) -> dict[str, Any]:
    return {_FIELDS.get(name, name): value for name, value in values.items() if value is not None}


@contextlib.contextmanager
def _usage_errors(ctx: click.Context) -> Iterator[None]:
    """Reports what only the configurations check (NaN, beyond 32 bits, too many stop texts) as errors of the option."""
    try:
        yield
    except InvalidParameter as error:
        field = (error.parameter or "").partition("[")[0]
        param = next((p for p in ctx.command.params if p.name == _OPTIONS.get(field, field)), None)
        message = error.message.removeprefix(f"{error.parameter} ").replace(" or None", "")
        raise click.BadParameter(f"{message}.", ctx, param) from None


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


# Options of both commands.
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
_THREADS = click.option(
    "--threads",
    type=click.IntRange(1, 512),
    metavar="N",
    help="Threads to compute with.  [default: physical cores]",
)
_GPU_LAYERS = click.option(
    "--gpu-layers",
    type=click.IntRange(-1, 9999),
    default=-1,
    metavar="N",
    help="Layers on the GPU, -1 for all.",
)


@_cli.command(context_settings=_SETTINGS)
@click.argument("prompt", required=False, callback=_checked_text)
@_MODEL
@_BACKEND
@click.option("--raw", is_flag=True, help="Continue the text of PROMPT instead of answering it.")
@click.option(
    "--system",
    callback=_checked_text,
    metavar="TEXT",
    help="The system message of the chat.  [default: none]",
)
@click.option(
    "-n",
    "--max-tokens",
    type=click.IntRange(min=-1),
    callback=_checked_max_tokens,
    metavar="N",
    help="At most N tokens, -1 for no limit.  [default: 256]",
)
@click.option("--temperature", type=click.FloatRange(min=0), metavar="T", help="0 is greedy.  [default: 0.8]")
@click.option(
    "--top-k",
    type=click.IntRange(min=0),
    metavar="K",
    help="Keep the K likeliest tokens, 0 for all.  [default: 40]",
)
@click.option(
    "--top-p",
    type=click.FloatRange(0, 1, min_open=True),
    metavar="P",
    help="Keep the likeliest tokens up to a total probability of P.  [default: 0.95]",
)
@click.option(
    "--min-p",
    type=click.FloatRange(0, 1),
    metavar="P",
    help="Keep tokens with P times the likeliest one's probability.  [default: 0]",
)
@click.option(
    "--repeat-penalty",
    type=click.FloatRange(1e-3, 1e3),
    metavar="R",
    help="Above 1, repeat less.  [default: 1]",
)
@click.option(
    "--seed",
    type=click.IntRange(0, 2**32 - 2),
    metavar="S",
    help="Random seed, to get the same text again.  [default: a new one each time]",
)
@click.option("--ignore-eos", is_flag=True, help="Continue where the model would end.")
@click.option(
    "--stop",
    callback=_checked_text,
    multiple=True,
    metavar="TEXT",
    help="Stop before this text; may be given several times.",
)
@click.option(
    "--timeout-ms",
    type=click.IntRange(min=0),
    default=0,
    metavar="MS",
    help="Time limit in milliseconds, 0 for none.  [default: 0]",
)
@click.option(
    "--ctx",
    type=click.IntRange(min=2),  # one token of prompt and one of text
    metavar="N",
    help="Context length in tokens.  [default: the model's, up to 4096]",
)
@_THREADS
@_GPU_LAYERS
@click.option("--echo", is_flag=True, help="Print the prompt first.")
@click.option("--stats", is_flag=True, help="Print token counts and timings to standard error at the end.")
@click.pass_context
def run(
    click_context: click.Context,
    /,
    prompt: str | None,
    model: str | None,
    backend: str,
    raw: bool,
    system: str | None,
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
    """Answer PROMPT, or the text on standard input, and stream the answer.

    A model without a chat template continues the text instead.
    """
    import anyio

    from . import _run

    if raw and system is not None:
        raise click.UsageError("--raw and --system cannot be combined: without a chat there is no system message.")
    with _usage_errors(click_context):
        params = SamplerParams(**_given(**sampling))
        context = ContextParams(n_seq_max=1, **_given(ctx=ctx, threads=threads))
        config = StreamConfig(params=params, timeout_ms=timeout_ms, **_given(max_tokens=max_tokens, stop=stop))
    if prompt is None:
        prompt = _read_prompt()
    job = _run.Job(model, gpu_layers, context, prompt, system, config, raw, echo, _run.Output())
    note = None
    try:
        anyio.run(functools.partial(_run.generate, job), backend=backend)
        if job.stream is not None and not job.interrupted:
            note = _run.nothing_generated(job.stream)
    finally:
        with contextlib.suppress(OSError):  # if the output fails, writing has reported it
            job.output.end_line()
        if note is not None:
            _complain(note)
        if stats and job.stream is not None:
            click.echo(_run.statistics(job.stream), err=True)
    return _INTERRUPTED if job.interrupted else 0


@_cli.command(context_settings=_SETTINGS)
@_MODEL
@click.option(
    "--streams",
    type=click.IntRange(1, 256),
    default=8,
    show_default=True,
    metavar="N",
    help="Measure 1, 2, 4 … up to N parallel streams.",
)
@click.option(
    "--prompt",
    type=click.IntRange(1, 1_000_000),
    default=128,
    show_default=True,
    metavar="N",
    help="Prompt tokens of each stream.",
)
@click.option(
    "-n",
    "--max-tokens",
    "tokens",
    type=click.IntRange(2, 1_000_000),
    default=128,
    show_default=True,
    metavar="N",
    help="Tokens that each stream generates.",
)
@click.option(
    "--repeat",
    type=click.IntRange(min=1),
    default=3,
    show_default=True,
    metavar="N",
    help="Number of runs; the median is reported.",
)
@_THREADS
@_GPU_LAYERS
@_BACKEND
@click.option(
    "--upstream", metavar="FILE", help="Upstream's program.  [default: llama-batched-bench, if it is on the PATH]"
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def bench(model: str | None, backend: str, upstream: str | None, as_json: bool, **load: Any) -> None:
    """Measure prompt and generation speed with 1 to N streams, alternating with upstream's llama-batched-bench."""
    import anyio

    from . import _bench

    wanted = _bench.Load(**load)
    upstream = _bench.find_upstream(upstream)
    show = sys.stderr.isatty()
    report: Callable[[str], None] = functools.partial(click.echo, err=True) if show else (lambda _: None)
    result = anyio.run(_bench.measure, model, wanted, upstream, report, backend=backend)
    click.echo(json.dumps(result, indent=2) if as_json else _bench.describe(result))
