"""Saving and loading a context's cached prefixes: they are reused, written atomically, and never do harm."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio import create_task_group, to_thread
from conftest import ENDLESS, serving, until

from mullama import (
    AsyncContext,
    ClosedError,
    Context,
    Model,
    SamplerParams,
    StateError,
    StreamConfig,
)

PROMPT = "Once upon a time there was a little dog who lived in a house by the sea"
OTHER = "What is the capital of France? Nobody in the small town could say"
GREEDY = SamplerParams.greedy(ignore_eos=True)
SMALL: dict[str, Any] = {"n_ctx": 256, "n_seq_max": 2, "n_threads": 2}


def config(max_tokens: int | None = 12, params: SamplerParams = GREEDY, **changes: Any) -> StreamConfig:
    return StreamConfig(**{"max_tokens": max_tokens, "params": params, "timeout_ms": 0} | changes)


Saved = tuple[Path, tuple[int, ...]]


@pytest.fixture(scope="module")
def saved(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """A state of a context like SMALL that has seen PROMPT, and the tokens that follow it."""
    path = tmp_path_factory.mktemp("saved") / "state"
    with Context(model, **SMALL) as context:
        tokens = context.generate(PROMPT, config()).tokens
        context.save_state(path)
    return path, tokens


@pytest.fixture
def small(model: Model) -> Iterator[Context]:
    with Context(model, **SMALL) as context:
        yield context
        assert context.generate(PROMPT, 3, GREEDY).tokens


def only(path: Path) -> bool:
    """There are no other files in its folder."""
    return [file.name for file in path.parent.iterdir()] == [path.name]


# ---------------------------------------------------------------------------------------------------------- the round trip


def test_a_new_context_goes_on_where_the_old_one_was(model: Model, tmp_path: Path) -> None:
    path = tmp_path / "state"
    with Context(model, **SMALL) as old:
        first, other = old.generate(PROMPT, config()), old.generate(OTHER, config())
        cells = old.statistics().cached_cells
        old.save_state(path)
    with Context(model, **SMALL) as new:
        assert new.load_state(os.fspath(path)) == cells == new.statistics().cached_cells
        for completion, prompt in ((first, PROMPT), (other, OTHER)):
            again = new.generate(prompt, config())
            assert again.usage.cached_tokens == again.usage.prompt_tokens - 1
            assert again.tokens == completion.tokens
        new.clear_cache()
        assert new.generate(PROMPT, config()).usage.cached_tokens == 0
    assert only(path)


@pytest.mark.anyio
async def test_awaiting_it(model: Model, tmp_path: Path) -> None:
    path = tmp_path / "state"
    async with serving(model, **SMALL) as old:
        first = await old.generate(PROMPT, config())
        await old.save_state(path)
    async with serving(model, **SMALL) as new:
        assert await new.load_state(path) >= first.usage.prompt_tokens
        again = await new.generate(PROMPT, config())
        assert again.usage.cached_tokens == again.usage.prompt_tokens - 1
        assert again.tokens == first.tokens


def test_a_context_without_anything_cached(model: Model, tmp_path: Path, small: Context) -> None:
    small.save_state(tmp_path / "state")
    assert small.load_state(tmp_path / "state") == 0


def test_streams_run_meanwhile(model: Model, tmp_path: Path) -> None:
    """Running streams are neither saved nor disturbed; loaded prefixes take no slots from them."""
    path = tmp_path / "state"
    params = SMALL | {"n_seq_max": 3}
    with Context(model, **params) as context:
        alone = [context.generate(prompt, config(60)).tokens for prompt in ("A dog", "A cat")]
        context.clear_cache()
        first = context.generate(PROMPT, config())
        streams = [context.generate_stream(prompt, config(60, buffer_size=2)) for prompt in ("A dog", "A cat")]
        heads = [next(stream) for stream in streams]
        context.save_state(path)
        context.clear_cache()
        assert context.load_state(path) == first.usage.prompt_tokens + len(first.tokens) - 1
        for head, stream, tokens in zip(heads, streams, alone, strict=True):
            assert (head.token_id, *(token.token_id for token in stream)) == tokens
        again = context.generate(PROMPT, config())
        assert again.usage.cached_tokens == again.usage.prompt_tokens - 1
        assert again.tokens == first.tokens


# ---------------------------------------------------------------------------------------------------------- other contexts


def test_what_has_no_place_is_left_out(model: Model, tmp_path: Path) -> None:
    path = tmp_path / "state"
    long, short = list(range(300, 500)), list(range(600, 620))
    with Context(model, **SMALL | {"n_ctx": 512}) as wide:
        for prompt in (long, short):
            wide.generate(prompt, 1, GREEDY)
        wide.save_state(path)
    with Context(model, **SMALL | {"n_ctx": 100}) as narrow:  # has enough cells: llama.cpp rounds them up to 256
        assert narrow.load_state(path) == len(short)
        assert narrow.generate(short, 1, GREEDY).usage.cached_tokens == len(short) - 1
    with Context(model, **SMALL) as busy, busy.generate_stream("Once", config(None, ENDLESS, buffer_size=1)) as one:
        next(one)
        assert busy.load_state(path) == len(long)
        with busy.generate_stream("Then", config(None, ENDLESS, buffer_size=1)) as two:
            next(two)
            assert busy.load_state(path) == 0
    with Context(model, **SMALL, reuse_prefix=False) as forgetful:
        assert forgetful.load_state(path) == 0
        assert forgetful.statistics().cached_cells == 0


def test_cells_that_are_shared(model: Model, tmp_path: Path) -> None:
    """Loaded prefixes replace older ones, but never cells that are reserved for a running stream."""
    path = tmp_path / "state"
    params = {"n_ctx": 256, "n_cells": 512, "n_seq_max": 4, "n_threads": 2}
    prompts = [[300 + i, *range(400, 519)] for i in range(3)]  # of 120 tokens
    with Context(model, **params) as context:
        expected = [context.generate(prompt, config(8)).tokens for prompt in prompts]
        context.save_state(path)
        cells = context.statistics().cached_cells
        assert cells == 3 * 127
        assert context.load_state(path) == cells
    with Context(model, **params) as context:
        for i in range(4):
            context.generate([700 + i, *range(900, 1010)], 1, GREEDY)  # now it is full of others
        assert context.load_state(path) == cells
        assert [context.generate(prompt, config(8)).tokens for prompt in prompts] == expected
        with context.generate_stream("Once", config(None, ENDLESS)) as stream:
            next(stream)  # 256 cells are reserved for it
            assert context.load_state(path) == 2 * 127
            got = 1 + sum(1 for _ in stream)
        assert stream.completion().finish_reason == "length"
        assert got + stream.completion().usage.prompt_tokens == 257


@pytest.mark.parametrize(
    ("changes", "name"),
    [({"n_seq_max": 3}, "n_seq_max"), ({"n_cells": 300}, "shares its cells")],
    ids=["slots", "cells"],
)
def test_a_context_of_another_layout(changes: dict[str, Any], name: str, model: Model, saved: Saved) -> None:
    with Context(model, **SMALL | changes) as context:
        with pytest.raises(StateError, match=name):
            context.load_state(saved[0])
        assert context.generate(PROMPT, config()).tokens == saved[1]


# ---------------------------------------------------------------------------------------------------------- closing


@pytest.mark.anyio
async def test_of_a_closed_context(model: Model, saved: Saved, tmp_path: Path) -> None:
    context = await AsyncContext.create(model, **SMALL)
    await context.aclose()
    for use in (lambda: context.save_state(tmp_path / "new"), lambda: context.load_state(saved[0])):
        with pytest.raises(ClosedError):
            await use()
    for sync in (lambda: context.context.save_state(tmp_path / "new"), lambda: context.context.load_state(saved[0])):
        with pytest.raises(ClosedError):
            sync()
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("busy", [False, True])
def test_closing_at_the_same_time(busy: bool, model: Model, saved: Saved, tmp_path: Path) -> None:
    """Each call succeeds or raises ClosedError; none hangs or raises anything else."""
    for turn in range(10):
        context = Context(model, **SMALL)
        results: list[object] = []
        barrier = threading.Barrier(5)

        def work(
            call: Callable[[], object], barrier: threading.Barrier = barrier, results: list[object] = results
        ) -> None:
            barrier.wait()
            try:
                while True:
                    call()
            except BaseException as e:
                results.append(e)

        calls: list[Callable[[], object]] = [
            lambda c=context, t=turn: c.save_state(tmp_path / f"{t}"),  # type: ignore[misc]
            lambda c=context: c.load_state(saved[0]),  # type: ignore[misc]
            lambda c=context: c.decode([1]) if len(c._shared._decoded) < 200 else c.reset(),  # type: ignore[misc]
            lambda c=context: c.clear_cache(),  # type: ignore[misc]
        ]
        threads = [threading.Thread(target=work, args=(call,), daemon=True) for call in calls]
        for thread in threads:
            thread.start()
        if busy:
            context.generate_stream(PROMPT, config(None, ENDLESS)).cancel()
        barrier.wait()
        context.load_state(saved[0])
        context.close()
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive()
        assert {type(result) for result in results} == {ClosedError}, results


@pytest.mark.anyio
async def test_two_contexts_at_once(model: Model, saved: Saved, tmp_path: Path) -> None:
    path, tokens = saved

    async def work(context: AsyncContext, i: int) -> None:
        for _ in range(5):
            await context.load_state(path)
            assert (await context.generate(PROMPT, config())).tokens == tokens
            await context.save_state(tmp_path / str(i % 2))  # two write to the same path: either file is complete
            await context.load_state(tmp_path / str(i % 2))
            context.clear_cache()

    async with serving(model, **SMALL) as one, serving(model, **SMALL) as two:
        async with create_task_group() as tasks:
            for i in range(4):
                tasks.start_soon(work, one if i < 2 else two, i)
        await until(lambda: one.statistics().busy == 0)


FORKED = """
import os, sys
from mullama import Context, ForkError, Model
with Context(Model.load(), n_ctx=256, n_threads=1) as context:
    context.save_state(sys.argv[1])
    pid = os.fork()
    if pid == 0:
        wrong = 0
        for use in (lambda: context.save_state(sys.argv[1]), lambda: context.load_state(sys.argv[1]),
                    lambda: context.decode([1]), lambda: context.embed("a")):
            try:
                use()
            except ForkError:
                continue
            wrong += 1
        os._exit(wrong)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    context.load_state(sys.argv[1])
"""


def test_after_a_fork(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-W", "ignore", "-c", FORKED, tmp_path / "state"], timeout=100, check=True)


@pytest.mark.anyio
async def test_the_loop_runs_meanwhile(model: Model, saved: Saved) -> None:
    """Even while the engine is busy with a long step."""
    async with serving(model, n_ctx=2048, n_seq_max=2, n_threads=1) as context:
        loaded = anyio.Event()
        async with create_task_group() as tasks:

            async def load() -> None:
                with pytest.raises(FileNotFoundError):
                    await context.load_state("none")
                await to_thread.run_sync(context.context._shared.engine.native().save_state)
                loaded.set()

            async with context.generate_stream(list(range(300, 1500)), config(1)) as stream:
                tasks.start_soon(load)
                await stream.receive()
            await loaded.wait()


def test_a_place_that_cannot_be_written_is_named(context: Context, tmp_path: Path) -> None:
    """And not the path of the temporary file, which the user does not know."""
    for path, type_ in ((tmp_path / "none" / "x", FileNotFoundError), (tmp_path, IsADirectoryError)):
        with pytest.raises(type_) as caught:
            context.save_state(path)
        assert (caught.value.filename, caught.value.filename2) == (str(path), None)
        assert ".mullama-" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
