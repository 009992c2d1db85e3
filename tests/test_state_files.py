"""State files: written atomically, and refused if they are damaged, foreign or for another context."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from anyio import CancelScope, from_thread
from conftest import serving
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from model_files import encoder, other_weights
from test_state import GREEDY, PROMPT, SMALL, Saved, only, saved, small

import mullama._prompt_cache as state_module
from mullama import Context, InvalidParameterType, Model, StateError

__all__ = ["saved", "small"]  # fixtures


def test_another_model(tmp_path: Path, saved: Saved) -> None:
    """One with the same metadata, and one that is entirely different."""
    for write in (other_weights, encoder):
        with Context(Model.load(write(tmp_path / f"{write.__name__}.gguf")), **SMALL) as context:
            with pytest.raises(StateError, match="another model"):
                context.load_state(saved[0])
            assert context.statistics().cached_cells == 0


# ---------------------------------------------------------------------------------------------------------- bad files


def refuses(context: Context, path: Path, data: bytes) -> None:
    path.write_bytes(data)
    before = context.statistics().cached_cells
    with pytest.raises(StateError):
        context.load_state(path)
    assert context.statistics().cached_cells == before


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    place=st.floats(0, 1, exclude_max=True), in_head=st.booleans(), how=st.sampled_from([*range(8), "cut", "longer"])
)
def test_a_damaged_file(
    place: float, in_head: bool, how: int | str, saved: Saved, small: Context, tmp_path: Path
) -> None:
    data = bytearray(saved[0].read_bytes())
    at = int(place * (data.index(b"\n") + 1 if in_head else len(data)))
    if isinstance(how, int):
        data[at] ^= 1 << how
    else:
        data[at:] = b"" if how == "cut" else data[at:] + b"\0"
    refuses(small, tmp_path / "damaged", bytes(data))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\n",
        b"GGUF" * 1000,
        b"null\n",
        b"[1]\n",
        b'"mullama state 1"\n',
        b"[" * 4000,
        b"{" * 10_000,
        bytes(10_000),
    ],
    ids=["empty", "a line", "a model", "null", "a list", "a string", "deep", "long", "zeros"],
)
def test_a_foreign_file(data: bytes, small: Context, tmp_path: Path) -> None:
    refuses(small, tmp_path / "foreign", data)


def test_what_is_no_file(small: Context, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(StateError):
        small.load_state(tmp_path / "pipe")
    with pytest.raises(FileNotFoundError):
        small.load_state(tmp_path / "none")
    with pytest.raises(IsADirectoryError):
        small.load_state(tmp_path)
    for use in (small.load_state, small.save_state):
        for path in (None, 3):
            with pytest.raises(InvalidParameterType):
                use(path)  # type: ignore[arg-type]


def test_bytes_of_a_right_checksum_that_mean_nothing(saved: Saved, small: Context, tmp_path: Path) -> None:
    """Written by another program: invalid tokens, sizes that are too large, missing parts."""
    line, _, body = saved[0].read_bytes().partition(b"\n")

    def signed(body: bytes) -> bytes:
        head = json.loads(line) | {"size": len(body), "sha256": hashlib.sha256(body).hexdigest()}
        return json.dumps(head).encode() + b"\n" + body

    n = int.from_bytes(body[:8], "little")
    size_at = 8 + 4 * n
    assert small.load_state(saved[0]) == n
    small.clear_cache()
    small.save_state(tmp_path / "nothing")  # the engine works sequentially: it has cleared the cache now
    for bad in (
        b"\x01",
        body[:-1],
        body[: size_at + 8],
        (0).to_bytes(8, "little") + body[8:],
        (2**62).to_bytes(8, "little") + body[8:],
        (n - 1).to_bytes(8, "little") + body[8:],
        body[:8] + (2**31 - 1).to_bytes(4, "little") + body[12:],
        body[:size_at] + (2**64 - 1).to_bytes(8, "little") + body[size_at + 8 :],
        body[: size_at + 8] + bytes(len(body) - size_at - 8),
        body[:8] + body[8:] + b"more",
    ):
        refuses(small, tmp_path / "bad", signed(bad))
    seen = random.Random(1)
    for _ in range(100):
        cut = seen.randrange(size_at + 8, len(body))
        refuses(
            small,
            tmp_path / "bad",
            signed(body[:size_at] + (cut - size_at - 8).to_bytes(8, "little") + body[size_at + 8 : cut]),
        )


# ---------------------------------------------------------------------------------------------------------- atomic writes

PROGRAM = """
import os, resource, signal, sys
from mullama import Context, Model, SamplerParams
how, path = sys.argv[1:]
with Context(Model.load(), n_ctx=256, n_seq_max=2, n_threads=1) as context:
    context.generate("Once upon a time", 3, SamplerParams.greedy(ignore_eos=True))
    if how == "full":
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
    elif how == "killed":
        os.fsync = lambda handle: os.kill(os.getpid(), signal.SIGKILL)
    elif how == "killed between":
        os.link = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
    try:
        context.save_state(path)
    except OSError as e:
        print(e.errno)
"""


@pytest.mark.parametrize(
    ("how", "code", "said"),
    [("full", 0, f"{errno.EFBIG}\n"), ("killed", -signal.SIGKILL, ""), ("killed between", -signal.SIGKILL, "")],
)
def test_what_was_there_stays(how: str, code: int, said: str, tmp_path: Path) -> None:
    if how != "full" and not hasattr(os, "O_TMPFILE"):
        pytest.skip("a file without a name is a thing of Linux")
    path = tmp_path / "state"
    path.write_text("what was there before")
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, how, path], capture_output=True, text=True, timeout=100, check=False
    )
    assert (run.returncode, run.stdout) == (code, said), run.stderr
    assert path.read_text() == "what was there before"
    assert only(path)


def test_where_nothing_can_be_written(small: Context, tmp_path: Path) -> None:
    small.generate(PROMPT, 3, GREEDY)
    with pytest.raises(FileNotFoundError):
        small.save_state(tmp_path / "none" / "state")
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError):
        small.save_state(tmp_path / "folder")
    assert only(tmp_path / "folder")
    name = tmp_path / "folder" / ("x" * 255)
    small.save_state(name)
    assert only(name)
    assert small.load_state(name) > 0


def test_without_nameless_files(small: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on other systems: nothing is left behind there either, unless the process is killed."""
    monkeypatch.delattr(os, "O_TMPFILE", raising=False)
    path = tmp_path / "state"
    small.generate(PROMPT, 3, GREEDY)
    small.save_state(path)
    cells = small.load_state(path)
    assert cells > 0

    def fail(_: int) -> None:
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="no space"):
        small.save_state(path)
    assert small.load_state(path) == cells
    assert only(path)


def test_stopping_it(small: Context, tmp_path: Path) -> None:
    path = tmp_path / "state"
    path.write_text("before")
    small.generate(PROMPT, 3, GREEDY)
    stop = threading.Event()
    stop.set()
    with pytest.raises(InterruptedError):
        small.save_state(path, stop=stop)
    assert path.read_text() == "before"
    assert only(path)


@pytest.mark.anyio
async def test_cancelling_it(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state"
    path.write_text("before")
    pieces = state_module._pieces
    passes = 0

    def slowly(file: Path, state: bytes, stop: threading.Event) -> Iterator[memoryview]:
        nonlocal passes
        passes += 1
        for i, piece in enumerate(pieces(file, state, stop)):
            if passes == 2 and i == 1:  # one chunk is written
                from_thread.run_sync(scope.cancel)
                assert stop.wait(60)
            yield piece

    monkeypatch.setattr(state_module, "_CHUNK", 1000)
    monkeypatch.setattr(state_module, "_pieces", slowly)
    async with serving(model, **SMALL) as context:
        await context.generate(PROMPT, 3, GREEDY)
        with CancelScope() as scope:
            await context.save_state(path)
        assert scope.cancelled_caught
        assert passes == 2
        assert path.read_text() == "before"
        assert only(path)
        with CancelScope() as scope:
            scope.cancel()
            await context.save_state(path)
        assert scope.cancelled_caught
        await context.save_state(path)  # saving works again
        assert await context.load_state(path) > 0
