"""The process around the engine: how it exits, forks and spawns, and what it gets from llama.cpp's log."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

SETUP = """
import sys, threading, anyio
from mullama import *
model = Model.load()
context = Context(model, n_ctx=2304, n_seq_max=2, n_threads=2, n_ubatch=32)
ENDLESS = SamplerParams(ignore_eos=True, seed=1)
SLOW = StreamConfig(max_tokens=2000, params=ENDLESS, timeout_ms=0, stream_delay_ms=20)
FAST = StreamConfig(max_tokens=2000, params=ENDLESS, timeout_ms=0, buffer_size=2000)
PROMPT = "Once upon a time"
LONG = (model.tokenize("And the story went on.") * 2000)[:2000]
reading = threading.Event()
"""

DAEMON = """
threading.Thread(target=work, daemon=True).start()
assert reading.wait(60)
"""


def python(script: str, *args: str) -> subprocess.CompletedProcess[str]:
    """Run a script. Forking with threads is under test, so Python's warning about it is disabled."""
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", script, *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=110, check=False)


AT_EXIT = {
    "nothing but a context": "",
    "a stream that nobody reads": "stream = context.generate_stream(PROMPT, FAST)",
    "a paused stream": "stream = context.generate_stream(PROMPT, FAST.replace(buffer_size=1)); next(stream)",
    "a stream in its prompt": "stream = context.generate_stream(LONG, FAST)",
    "many streams, some queued": "streams = [context.generate_stream(PROMPT, FAST) for _ in range(8)]",
    "in the middle of a loop": """
for i, token in enumerate(context.generate_stream(PROMPT, FAST)):
    if i == 5:
        sys.exit(0)
""",
    "a stream in a cycle": """
class Holder: pass
holder = Holder(); holder.itself = holder; holder.stream = context.generate_stream(PROMPT, FAST); holder.context = context
""",
    "a daemon thread that reads": """
def work():
    for token in context.generate_stream(PROMPT, SLOW):
        reading.set()
"""
    + DAEMON,
    "a daemon thread that generates again and again": """
def work():
    while True:
        context.generate(PROMPT, 5, ENDLESS)
        reading.set()
"""
    + DAEMON,
    "a daemon thread that waits in the queue": """
running = [context.generate_stream(PROMPT, SLOW.replace(buffer_size=1)) for _ in range(2)]
def work():
    stream = context.generate_stream(PROMPT, SLOW)
    reading.set()
    next(stream)
"""
    + DAEMON,
    **{
        f"a daemon thread in which {backend} reads": f"""
async def read():
    async for token in AsyncContext(context).generate_stream(PROMPT, SLOW):
        reading.set()
async def main():
    async with anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(read)
def work():
    anyio.run(main, backend={backend!r})
"""
        + DAEMON
        for backend in ("asyncio", "trio")
    },
    **{
        f"{backend}, cut short by SystemExit": f"""
async def main():
    async with await AsyncModel.load() as other:
        stream = other.generate_stream(PROMPT, FAST)
        await stream.receive()
        global kept
        kept = AsyncContext(context).generate_stream(PROMPT, FAST)
        await kept.receive()
anyio.run(main, backend={backend!r})
sys.exit(0)
"""
        for backend in ("asyncio", "trio")
    },
    "asyncio without an end of its own": """
import asyncio
async def main():
    global model2, stream
    model2 = await AsyncModel.load()
    stream = model2.generate_stream(PROMPT, FAST)
    await stream.receive()
    task = asyncio.create_task(stream.receive())
asyncio.run(main())
""",
    "a thread that goes on for a moment": """
def work():
    stream = context.generate_stream(PROMPT, FAST.replace(max_tokens=50))
    reading.set()
    threading.main_thread().join()
    assert len(list(stream)) == 50
    assert len(context.generate(PROMPT, 5, ENDLESS).tokens) == 5
threading.Thread(target=work).start()
assert reading.wait(60)
""",
    "an exit handler that still generates": """
import atexit
@atexit.register
def last():
    assert len(context.generate(PROMPT, 5, ENDLESS).tokens) == 5
stream = context.generate_stream(PROMPT, FAST)
""",
    "the context in a module that is torn down": "sys.keep = context.generate_stream(PROMPT, FAST); del context, model",
}


@pytest.mark.parametrize("script", AT_EXIT.values(), ids=AT_EXIT.keys())
def test_exit_is_silent_and_quick(script: str) -> None:
    done = python(SETUP + script)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_exit_closes_contexts() -> None:
    """Before any handler that was registered earlier: next, C++ globals are destroyed, which an engine needs."""
    script = """
import atexit, threading
@atexit.register
def last():
    print([thread.name for thread in threading.enumerate() if "engine" in thread.name])
"""
    begins = "print([thread.name for thread in threading.enumerate() if 'engine' in thread.name])"
    done = python(script + SETUP + begins)
    assert (done.returncode, done.stdout, done.stderr) == (0, "['mullama-engine']\n[]\n", "")


def test_exit_does_not_wait_for_the_streams() -> None:
    """They would take minutes."""
    long = "stream = context.generate_stream(PROMPT, SLOW.replace(stream_delay_ms=600_000)); next(stream)"
    began = time.monotonic()
    assert python(SETUP + long).returncode == 0
    assert time.monotonic() - began < 100


FORK = """
import asyncio, os
stream = context.generate_stream(PROMPT, FAST.replace(max_tokens=30, buffer_size=4))
first = next(stream)
unread = context.generate_stream(PROMPT, SLOW)
tokens = AsyncContext(context).generate_stream(PROMPT, SLOW)
iterator = iter(context.generate_stream(PROMPT, SLOW))

async def receive():
    await tokens.receive()

CALLS = {
    "Model.load": Model.load,
    "tokenize": lambda: model.tokenize("a"),
    "detokenize": lambda: model.detokenize([5]),
    "metadata": model.metadata,
    "n_params": lambda: model.n_params,
    "Context": lambda: Context(model, n_ctx=256),
    "generate": lambda: context.generate(PROMPT, 5),
    "generate_stream": lambda: context.generate_stream(PROMPT, 5),
    "generate_streaming": lambda: context.generate_streaming(PROMPT, 5, print),
    "statistics": context.statistics,
    "clear_cache": context.clear_cache,
    "next": lambda: next(stream),
    "stream.next": unread.next,
    "try_next": stream.try_next,
    "cancel": stream.cancel,
    "completion": stream.completion,
    "tokens_per_second": stream.tokens_per_second,
    "close": stream.close,
    "AsyncModel.load": lambda: asyncio.run(AsyncModel.load()),
    "receive": lambda: asyncio.run(receive()),
    "receive_nowait": tokens.receive_nowait,
    "async generate": lambda: asyncio.run(AsyncContext(context).generate(PROMPT, 5)),
    "aclose": lambda: asyncio.run(tokens.aclose()),
}
child = os.fork()
if child == 0:
    for name, call in CALLS.items():
        try:
            call()
        except ForkError as e:
            assert e.code == "FORKED" and "spawn" in str(e)
        except BaseException as e:
            print(name, repr(e))
        else:
            print(name, "did not fail")
    context.close()  # there is nothing to close here, and a cleanup should not fail
    sys.exit(0) if sys.argv[1] == "exit" else os._exit(0)
assert os.waitpid(child, 0)[1] == 0
unread.close()
tokens.close()
iterator.close()
assert len([first, *stream]) == 30
assert len(context.generate(PROMPT, 5, ENDLESS).tokens) == 5
"""


@pytest.mark.skipif(not hasattr(sys.modules["os"], "fork"), reason="no fork here")
@pytest.mark.parametrize("how", ["exit", "_exit"])
def test_a_forked_child_gets_a_clear_error(how: str) -> None:
    """From every call; its exit is clean, and its parent continues undisturbed."""
    done = python(SETUP + FORK, how)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.skipif(not hasattr(sys.modules["os"], "fork"), reason="no fork here")
def test_forks_while_streams_run() -> None:
    """At any moment of the engine and of its log."""
    script = """
import os, time
streams = [context.generate_stream(PROMPT, FAST.replace(max_tokens=300)) for _ in range(2)]
children = []
for i in range(20):
    context.generate_stream(LONG, FAST).close()
    child = os.fork()
    if child == 0:
        del streams
        sys.exit(0)
    children.append(child)
for child in children:
    assert os.waitpid(child, 0)[1] == 0
assert [len(list(stream)) for stream in streams] == [300, 300]
"""
    done = python(SETUP + script)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_child_that_was_forked_before_loads_its_own() -> None:
    script = """
import os, sys
from mullama import Context, Model
child = os.fork() if hasattr(os, "fork") else 1
with Context(Model.load(), n_ctx=256, n_threads=1) as context:
    assert context.generate("Once", 5).tokens
if child == 0:
    sys.exit(0)
assert not hasattr(os, "fork") or os.waitpid(child, 0)[1] == 0
"""
    done = python(script)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_spawned_processes(tmp_path: object) -> None:
    """The fix that the error suggests."""
    script = tmp_path / "spawns.py"  # type: ignore[operator]
    script.write_text("""
import multiprocessing
from mullama import Context, Model

def work(n):
    with Context(Model.load(), n_ctx=256, n_threads=1) as context:
        return len(context.generate("Once upon a time", n).tokens)

if __name__ == "__main__":
    with Context(Model.load(), n_ctx=256, n_threads=1) as context:
        stream = context.generate_stream("Once", 5)
        with multiprocessing.get_context("spawn").Pool(2) as pool:
            print(pool.map(work, [1, 2, 3]))
            pool.close()
            pool.join()
        list(stream)
""")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=110, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "[1, 2, 3]\n", "")


def test_llama_cpp_is_silent_by_default() -> None:
    """Even if a load fails, a prompt is cancelled, and warnings would be printed."""
    script = """
context.generate_stream(LONG, FAST).close()
try:
    Model.load("/dev/null")
except ModelLoadError:
    pass
context.close()
"""
    done = python(SETUP + script)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_llama_cpp_can_be_heard() -> None:
    """In Python's logging, under its own name, with its levels."""
    script = """
import logging, sys
lines = []
class Handler(logging.Handler):
    def emit(self, record):
        lines.append(record)
logging.getLogger("mullama.llama_cpp").addHandler(Handler())
logging.getLogger("mullama.llama_cpp").setLevel(logging.DEBUG)
from mullama import Context, Model
model = Model.load()
loaded = len(lines)
assert loaded > 0
assert any("llama" in line.getMessage() for line in lines)
with Context(model, n_ctx=256, n_threads=1) as context:
    assert len(lines) > loaded
    context.generate("Once", 3)
assert {line.name for line in lines} == {"mullama.llama_cpp"}
assert all(line.getMessage() == line.getMessage().rstrip("\\n") for line in lines)
assert {line.levelno for line in lines} <= {logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR}
assert logging.INFO in {line.levelno for line in lines}
"""
    done = python(script)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
