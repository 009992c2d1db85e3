"""Embeddings: their shape, poolings and lengths, one by one or in batches, with decoders and encoders; and similarity."""

from __future__ import annotations

import math
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from anyio import CancelScope, create_task_group
from conftest import ENDLESS, serving, until
from hypothesis import given, settings
from hypothesis import strategies as st
from model_files import adapter, encoder

from mullama import (
    AsyncContext,
    AsyncModel,
    ClosedError,
    Context,
    ContextError,
    InvalidParameter,
    InvalidParameterType,
    Model,
    SamplerParams,
    StreamConfig,
    TokenizationError,
    cosine_similarity,
)

TEXTS = ["Once upon a time", "The little dog", "a", "Rain, é, 😀 and snow", "The little dog", "x " * 60]
CLOSE: dict[str, Any] = {"atol": 0.02}


def lengths(rows: np.ndarray) -> list[float]:
    return [float(length) for length in np.linalg.norm(rows.astype(np.float64), axis=-1)]


# ---------------------------------------------------------------------------------------------------------- shape


@pytest.mark.parametrize("pooling", [None, "mean", "cls", "last"])
def test_rows_of_float32(pooling: str | None, context: Context) -> None:
    rows = context.embed_batch(TEXTS, pooling=pooling)
    assert (rows.shape, rows.dtype) == ((len(TEXTS), context.model.n_embd), np.float32)
    assert lengths(rows) == pytest.approx([1] * len(TEXTS), abs=1e-5)
    raw = context.embed_batch(TEXTS, normalize=False, pooling=pooling)
    assert lengths(raw) != pytest.approx([1] * len(TEXTS), abs=1e-2)
    np.testing.assert_allclose(raw / np.linalg.norm(raw, axis=1, keepdims=True), rows, atol=1e-5)
    assert context.embed_batch([], pooling=pooling).shape == (0, context.model.n_embd)
    one = context.embed(TEXTS[0], pooling=pooling)
    assert (one.shape, one.dtype) == ((context.model.n_embd,), np.float32)
    rows += 1  # the array belongs to the caller
    np.testing.assert_allclose(rows[1], rows[4], **CLOSE)


def test_poolings_differ_where_they_should(context: Context) -> None:
    by = {pooling: context.embed("The little dog sleeps", pooling=pooling) for pooling in (None, "mean", "cls", "last")}
    np.testing.assert_allclose(by[None], by["mean"], atol=1e-6)  # the model does not define one
    for one, other in (("mean", "cls"), ("mean", "last"), ("cls", "last")):
        assert not np.allclose(by[one], by[other], atol=0.05)
    # The first token attends only to itself, so it is the same for all texts; the last one differs.
    first = context.embed_batch(["The little dog", "Rain and snow"], pooling="cls")
    np.testing.assert_allclose(first[0], first[1], **CLOSE)
    last = context.embed_batch(["The little dog", "Rain and snow"], pooling="last")
    assert not np.allclose(last[0], last[1], atol=0.05)


def test_the_model_says_how_to_pool(tmp_path: Path) -> None:
    texts = ["hello world", "a dog"]
    for own, name in ((gguf.PoolingType.CLS, "cls"), (gguf.PoolingType.MEAN, "mean"), (gguf.PoolingType.LAST, "last")):
        with Context(Model.load(encoder(tmp_path / f"{name}.gguf", pooling=own)), n_ctx=64, n_threads=1) as context:
            rows = {pooling: context.embed_batch(texts, pooling=pooling) for pooling in (None, "mean", "cls", "last")}
        np.testing.assert_allclose(rows[None], rows[name], atol=1e-6)
        assert sum(np.allclose(rows[None], other, atol=1e-4) for other in rows.values()) == 2


# ---------------------------------------------------------------------------------------------------------- one or many


@pytest.mark.parametrize("n_ctx", [40, 100, 256, 300, 1024])
def test_a_batch_is_what_its_texts_are_one_by_one(n_ctx: int, model: Model) -> None:
    """More texts than fit into a batch, and more tokens."""
    texts = [f"{'dog ' * (i % 9)}number {i}" for i in range(50)]
    with Context(model, n_ctx=n_ctx, n_seq_max=1, n_threads=2) as context:
        rows = context.embed_batch(texts, pooling="last")
        for i in (0, 8, 15, 16, 17, 49):
            np.testing.assert_allclose(context.embed(texts[i], pooling="last"), rows[i], **CLOSE)
        assert len({row.tobytes() for row in rows}) == 50
        assert context.embed_batch(iter(texts)).shape == (50, model.n_embd)  # type: ignore[arg-type]


def test_a_text_as_long_as_the_context(model: Model) -> None:
    """Longer than the initial buffer, too; and one more token is too much."""
    for n_ctx in (300, 1500):
        with Context(model, n_ctx=n_ctx, n_seq_max=1, n_threads=2) as context:
            (token,) = model.tokenize(" a", add_special=False)[-1:]
            text = model.detokenize([token] * 8)
            n, each = len(model.tokenize(text)), len(model.tokenize(text * 2)) - len(model.tokenize(text))
            fits = text * ((n_ctx - n) // each + 1)
            assert n_ctx - each < len(model.tokenize(fits)) <= n_ctx
            rows = context.embed_batch(["short", fits, "short"])
            np.testing.assert_allclose(rows[0], rows[2], **CLOSE)
            with pytest.raises(ContextError, match=rf"texts\[1\] has .* holds {n_ctx}") as caught:
                context.embed_batch(["short", fits + text])
            assert caught.value.code == "PROMPT_TOO_LONG"
            np.testing.assert_allclose(context.embed("short"), rows[0], **CLOSE)


def test_wrong_texts(context: Context) -> None:
    for wrong in ("text", b"text", 3, None, [3], [None], [b"a"], [["a"]]):
        with pytest.raises(InvalidParameterType) as caught:
            context.embed_batch(wrong)  # type: ignore[arg-type]
        assert str(caught.value.parameter).startswith("texts")
    with pytest.raises(InvalidParameter, match=r"texts\[1\]"):
        context.embed_batch(["a", ""])
    with pytest.raises(InvalidParameter):
        context.embed("")
    for bad in ("\ud800", "a\0b"):
        with pytest.raises(TokenizationError):
            context.embed(bad)
    for pooling in ("max", "", 3, ["mean"]):
        with pytest.raises(InvalidParameter) as refused:
            context.embed("a", pooling=pooling)  # type: ignore[arg-type]
        assert refused.value.parameter == "pooling"
    with pytest.raises(InvalidParameterType):
        context.embed("a", normalize=1)  # type: ignore[arg-type]


# ---------------------------------------------------------------------------------------------------------- which models


def test_an_encoder(tmp_path: Path) -> None:
    """It is bidirectional, has 512 positions, and cannot generate: that raises an error."""
    model = Model.load(encoder(tmp_path / "bert.gguf", pooling=gguf.PoolingType.MEAN))
    with Context(model, n_ctx=512, n_threads=1) as context:
        texts = [f"number {i} of the dogs" for i in range(40)]
        rows = context.embed_batch(texts)
        assert rows.shape == (40, 32)
        for i in (0, 15, 16, 39):
            np.testing.assert_allclose(context.embed(texts[i]), rows[i], atol=1e-3)
        firsts = context.embed_batch(["hello dog", "hello world"], pooling="cls")
        assert not np.allclose(firsts[0], firsts[1], atol=1e-3)  # the first token has seen the second
        assert context.embed("dog " * 510).shape == (32,)
        with pytest.raises(ContextError, match="holds 512"):
            context.embed("dog " * 511)
        for generate in (lambda: context.generate("dog"), lambda: context.decode([5])):
            with pytest.raises(ContextError, match="cannot generate: bert"):
                generate()
    with pytest.raises(ContextError, match="512 positions"):
        Context(model, n_ctx=513)


@pytest.mark.anyio
async def test_only_a_vocabulary() -> None:
    with pytest.raises(ContextError):
        Context(Model.load(vocab_only=True))
    async with await AsyncModel.load(vocab_only=True) as model:
        with pytest.raises(ContextError):
            await model.embed("a")


# ---------------------------------------------------------------------------------------------------------- meanwhile


def test_threads(context: Context) -> None:
    expected = context.embed_batch(TEXTS)
    barrier = threading.Barrier(6)

    def work(i: int) -> None:
        barrier.wait()
        for k in range(10):
            pooling = (None, "mean", "last")[(i + k) % 3]
            rows = context.embed_batch(TEXTS, pooling=pooling)
            if pooling != "last":
                np.testing.assert_allclose(rows, expected, **CLOSE)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(6)))


@pytest.mark.anyio
async def test_generation_and_the_loop_go_on(actx: AsyncContext, tmp_path: Path) -> None:
    lora = actx.model.load_lora(adapter(tmp_path / "a.gguf", size=5.0))
    plain = await actx.embed_batch(TEXTS)
    config = StreamConfig(max_tokens=None, params=ENDLESS, timeout_ms=0, buffer_size=1, lora=lora)
    done = False

    async def embed() -> None:
        nonlocal done
        try:
            rows = await actx.embed_batch(TEXTS * 10)
            np.testing.assert_allclose(rows, np.tile(plain, (10, 1)), **CLOSE)  # adapters apply to streams only
        finally:
            done = True

    async with actx.generate_stream("Once", config) as stream, create_task_group() as tasks:
        tasks.start_soon(embed)
        meanwhile = 0
        while not done:
            await stream.receive()
            meanwhile += 1
        assert meanwhile > 2
    one = await actx.embed(TEXTS[0])
    np.testing.assert_allclose(one, plain[0], **CLOSE)


@pytest.mark.anyio
async def test_cancelled(actx: AsyncContext) -> None:
    with CancelScope() as scope:
        scope.cancel()
        await actx.embed("a")
    assert scope.cancelled_caught
    assert (await actx.embed("a")).shape == (actx.model.n_embd,)


# Many more than are computed before an interruption; `began` is set when the last one was taken.
def many_texts(began: threading.Event) -> Iterator[str]:
    yield from ["the little dog " * 100] * 2000
    began.set()


@pytest.mark.anyio
async def test_cancelled_while_it_computes(actx: AsyncContext) -> None:
    began = threading.Event()
    async with create_task_group() as tasks:
        tasks.start_soon(actx.embed_batch, many_texts(began))
        await until(began.is_set)
        tasks.cancel_scope.cancel()
    assert tasks.cancel_scope.cancelled_caught
    assert (await actx.embed("a")).shape == (actx.model.n_embd,)


def test_the_program_ends_while_it_computes() -> None:
    """In a thread that nobody joins, which Python freezes as soon as it needs the GIL."""
    program = """
import threading
import mullama
began = threading.Event()
def texts():
    yield from ["the little dog " * 100] * 2000
    began.set()
context = mullama.Context(mullama.Model.load(), n_ctx=512)
threading.Thread(target=lambda: context.embed_batch(texts()), daemon=True).start()
began.wait()
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


@pytest.mark.anyio
async def test_of_a_closed_context(model: Model) -> None:
    async with serving(model, n_ctx=64) as context:
        await context.embed("a")
    with pytest.raises(ClosedError):
        await context.embed("a")
    with pytest.raises(ClosedError):
        context.context.embed_batch([])


def test_closed_while_it_computes(model: Model) -> None:
    context = Context(model, n_ctx=1024, n_threads=1)
    began = threading.Event()

    def work() -> object:
        try:
            while True:
                rows = context.embed_batch(TEXTS)
                began.set()
                assert rows.shape == (len(TEXTS), model.n_embd)
        except ClosedError as e:
            return e

    with ThreadPoolExecutor(3) as pool:
        results = [pool.submit(work) for _ in range(3)]
        assert began.wait(60)
        context.close()
        assert [type(result.result(60)) for result in results] == [ClosedError] * 3


def test_the_same_after_a_generation(context: Context) -> None:
    before = context.embed_batch(TEXTS)
    context.generate("Once", 20, SamplerParams.greedy())
    assert (context.embed_batch(TEXTS) == before).all()


# ---------------------------------------------------------------------------------------------------------- similarity


def test_what_is_alike(context: Context) -> None:
    rows = context.embed_batch(TEXTS)
    table = cosine_similarity(rows, rows)
    assert table.shape == (len(TEXTS), len(TEXTS))
    np.testing.assert_allclose(np.diag(table), 1, atol=1e-5)
    np.testing.assert_allclose(table, table.T)
    assert table[1, 4] == pytest.approx(1, abs=1e-3)
    assert table[1, 4] > table[1, 0]
    assert cosine_similarity(rows[0], rows[1]) == pytest.approx(float(table[0, 1]))


def test_shapes() -> None:
    a, rows = np.array([1.0, 0, 0]), np.array([[1.0, 0, 0], [0, 1, 0]])
    single = cosine_similarity(a, [3, 4, 0])
    assert type(single) is float
    assert single == pytest.approx(0.6)
    assert cosine_similarity(a, rows).tolist() == [1, 0]
    assert cosine_similarity(rows, a).tolist() == [1, 0]
    assert cosine_similarity(rows, np.ones((5, 3))).shape == (2, 5)
    assert cosine_similarity(np.zeros((0, 3)), rows).shape == (0, 2)
    assert cosine_similarity([1, 2], [-1, -2]) == pytest.approx(-1.0)
    assert cosine_similarity([0, 0], [1, 2]) == 0.0
    assert cosine_similarity([[0, 0], [1, 0]], [[0, 0], [1, 0]]).tolist() == [[0, 0], [0, 1]]


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ([1, 2], [1, 2, 3]),
        ([[1, 2]], [1, 2, 3]),
        (1, 2),
        ([1], 2),
        (np.zeros((2, 2, 2)), [1, 2]),
        ("text", "text"),
        (None, [1]),
        ([[1, 2], [3]], [1, 2]),
        ([1j], [1]),
        ([math.nan, 1], [1, 2]),
        ([1, 2], [math.inf, 1]),
    ],
)
def test_what_is_no_vector(a: Any, b: Any) -> None:
    with pytest.raises(InvalidParameter):
        cosine_similarity(a, b)


@settings(deadline=None, max_examples=50)
@given(
    st.integers(1, 8).flatmap(lambda n: st.tuples(*[st.lists(st.floats(-1e300, 1e300), min_size=n, max_size=n)] * 2)),
    st.sampled_from([1e-300, 1.0, 1e7]),
)
def test_it_is_a_cosine(pair: tuple[list[float], list[float]], factor: float) -> None:
    """For any numbers: from -1 to 1, symmetric, and 1 with itself."""
    a, b = pair
    result = cosine_similarity(a, b)
    assert -1 <= result <= 1
    assert result == pytest.approx(cosine_similarity(b, a), abs=1e-9)
    scaled = [x * factor for x in a]
    if any(scaled) and all(map(math.isfinite, scaled)):
        assert cosine_similarity(a, a) == pytest.approx(1, abs=1e-9)
