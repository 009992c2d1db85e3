"""The `mullama` command as a user runs it: its own process, the bundled model, real pipes, terminals and signals."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pathlib
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

import mullama

if sys.version_info < (3, 11):
    pass

PROMPT = "Once upon a time"
COMMAND = [sys.executable, "-m", "mullama"]
# More than any pipe holds, so this process cannot end before its reader lets it.
ENDLESS = ["run", "-n", "-1", "--ctx", "32768", "--ignore-eos", "--seed", "1", PROMPT]
QUESTION = ["--temperature", "0", "What is the capital of France?"]
PATIENCE = 60
FULL = pathlib.Path("/dev/full")

both = pytest.mark.parametrize("backend", ["asyncio", "trio"])
chat_and_raw = pytest.mark.parametrize("mode", [[], ["--raw"]], ids=["chat", "raw"])


def run(*args: str, **options: Any) -> subprocess.CompletedProcess[str]:
    options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE} | options
    if "input" in options:
        del options["stdin"]
    return subprocess.run(
        [*COMMAND, *args], stderr=subprocess.PIPE, encoding="utf-8", timeout=PATIENCE, check=False, **options
    )


def succeeds(*args: str, **options: Any) -> str:
    done = run(*args, **options)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def fails(status: int, *args: str, **options: Any) -> str:
    """The one line of its error message, after click's usage lines if the status is 2."""
    done = run(*args, **options)
    assert done.returncode == status, done.stderr
    lines = done.stderr.strip().splitlines()
    assert "Traceback" not in done.stderr
    assert len(lines) == 1 or (status == 2 and lines[0].startswith("Usage:"))
    return lines[-1]


@contextlib.contextmanager
def running(*args: str, stdout: int = subprocess.PIPE) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([*COMMAND, *args], stdin=subprocess.DEVNULL, stdout=stdout, stderr=subprocess.PIPE)
    try:
        yield process
    finally:
        process.kill()
        process.communicate(timeout=PATIENCE)


# -- what it writes


@both
@chat_and_raw
def test_streams_a_story(backend: str, mode: list[str]) -> None:
    text = succeeds("run", *mode, "--backend", backend, "-n", "40", "--seed", "7", PROMPT)
    assert len(text.split()) > 5
    assert text.endswith("\n")
    assert text.startswith(PROMPT) == (not mode)  # the answer is the whole text


def test_the_same_seed_is_the_same_story_under_both_backends() -> None:
    stories = {seed: succeeds("run", "-n", "60", "--seed", seed, PROMPT) for seed in ("1", "2", "3")}
    assert len(set(stories.values())) > 1
    assert succeeds("run", "-n", "60", "--seed", "2", "--backend", "trio", PROMPT) == stories["2"]


def test_greedy_needs_no_seed() -> None:
    first, second = (succeeds("run", "-n", "40", "--temperature", "0", PROMPT) for _ in range(2))
    assert first == second


def test_each_sampling_option_arrives() -> None:
    options = "--temperature 0.9 --top-k 1 --top-p 0.9 --min-p 0.1 --repeat-penalty 1 --seed 3".split()
    assert succeeds("run", "-n", "40", *options, PROMPT) == succeeds("run", "-n", "40", "--temperature", "0", PROMPT)


def test_context_and_threads() -> None:
    assert succeeds("run", "-n", "8", "--ctx", "256", "--threads", "1", "--gpu-layers", "0", PROMPT)


def test_echo_prints_the_prompt_first() -> None:
    options = ("run", "-n", "20", "--seed", "1", PROMPT)
    assert succeeds(*options, "--echo") == PROMPT + "\n" + succeeds(*options)
    assert succeeds(*options, "--raw", "--echo") == PROMPT + succeeds(*options, "--raw")


@both
@chat_and_raw
def test_the_prompt_from_standard_input(backend: str, mode: list[str]) -> None:
    options = ("run", *mode, "--backend", backend, "-n", "20", "--seed", "1")
    assert succeeds(*options, input=PROMPT) == succeeds(*options, PROMPT)


@pytest.mark.parametrize("end", ["", "\n", "\r\n"], ids=repr)
def test_a_line_break_at_the_end_of_standard_input(end: str) -> None:
    options = ("run", "-n", "20", "--seed", "1", "--echo", "--raw")
    assert succeeds(*options, input=PROMPT + end) == succeeds(*options, PROMPT)


def test_a_prompt_in_other_scripts() -> None:
    prompt = "Žluťoučký kůň 🐎 пил"
    assert succeeds("run", "-n", "4", "--echo", input=prompt).startswith(prompt)


def test_stop_texts_are_not_shown() -> None:
    options = ("run", "-n", "60", "--seed", "1", PROMPT)
    whole = succeeds(*options)
    word = whole.split()[6]
    done = run(*options, "--stop", "never there", "--stop", word, "--stats")
    assert done.stdout.rstrip("\n") == whole[: whole.index(word)].rstrip("\n")
    assert f"finished: stop at {word!r}" in done.stderr


@both
def test_stats_go_to_standard_error(backend: str) -> None:
    options = ("run", "--backend", backend, "-n", "16", "--ignore-eos", "--seed", "1", PROMPT)
    done = run(*options, "--stats")
    assert done.returncode == 0
    assert done.stdout == succeeds(*options)
    assert re.fullmatch(
        r"prompt:   \d+ tokens, 0 of them cached\n"
        r"queue:    \d+\.\d ms\n"
        r"prefill:  \d+\.\d ms\n"
        r"tokens:   16 in \d+\.\d ms\n"
        r"speed:    \d+\.\d tokens/s\n"
        r"finished: length\n",
        done.stderr,
    )


def test_a_regular_file_and_the_null_device(tmp_path: pathlib.Path) -> None:
    options = ("run", "-n", "20", "--seed", "1", PROMPT)
    with (tmp_path / "out").open("wb") as file:
        succeeds(*options, stdout=file)
    assert (tmp_path / "out").read_text(encoding="utf-8") == succeeds(*options)
    assert run(*options, stdout=subprocess.DEVNULL).returncode == 0


@pytest.mark.parametrize(("encoding", "shown"), [("ascii", b"caf? ?"), ("latin-1", b"caf\xe9 ?")])
def test_a_terminal_that_cannot_encode_it_all(encoding: str, shown: bytes) -> None:
    done = subprocess.run(
        [*COMMAND, "run", "-n", "4", "--echo", "café 🐎"],
        env={**os.environ, "PYTHONIOENCODING": encoding},
        capture_output=True,
        timeout=PATIENCE,
        check=True,
    )
    assert done.stdout.startswith(shown)
    assert done.stderr == b""


def test_version_names_both() -> None:
    version = succeeds("--version")
    assert version == f"mullama {mullama.__version__} (llama.cpp {mullama.llama_cpp_version()})\n"
    assert re.search(r"llama\.cpp b\d+", version)


def test_help_names_every_option() -> None:
    text = succeeds("run", "--help")
    words = (
        "--model --backend --raw --system --max-tokens --temperature --top-k --top-p --min-p --repeat-penalty --seed"
    )
    for option in [*words.split(), "--stop", "--timeout-ms", "--ctx", "--threads", "--gpu-layers", "--echo", "--stats"]:
        assert option in text


def test_the_demo() -> None:
    demo = pathlib.Path(__file__).parents[1] / "examples" / "demo.py"
    done = subprocess.run(
        [sys.executable, demo, "--delay-ms", "0", "--max-tokens", "40"],
        capture_output=True,
        encoding="utf-8",
        timeout=PATIENCE,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert [line for line in done.stdout.splitlines() if line.startswith("--- ")] == [
        "--- under asyncio",
        "--- under trio",
        "--- cut short: after 30 tokens the reader cancels its scope",
    ]
    assert done.stdout.count(PROMPT) == 3
    assert len(re.findall(r"[1-9][\d,]* tokens/s", done.stdout)) == 6
    assert "cancelled by its reader" in done.stdout


# -- how it ends


@both
@chat_and_raw
def test_ctrl_c_keeps_what_was_written(backend: str, mode: list[str]) -> None:
    with running(*ENDLESS, *mode, "--backend", backend, "--stats") as process:
        assert process.stdout is not None
        first = process.stdout.read(10)  # generation has started
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert len(first) == 10
    assert rest.endswith(b"\n")
    assert b"Traceback" not in errors
    assert b"finished: cancelled" in errors


@both
def test_ctrl_c_while_the_reader_stands_still(backend: str) -> None:
    reader, writer = os.pipe()
    if hasattr(fcntl, "F_SETPIPE_SZ"):
        fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, select.PIPE_BUF)  # soon full
    try:
        with running(*ENDLESS, "--backend", backend, stdout=writer) as process:
            deadline = time.monotonic() + PATIENCE
            while select.select([], [writer], [], 0)[1]:  # until the pipe is full
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.01)
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=PATIENCE)
        assert (process.returncode, errors) == (130, b"")
    finally:
        os.close(reader)
        os.close(writer)


@both
def test_a_closed_pipe_ends_it_quietly(backend: str) -> None:
    with running(*ENDLESS, "--backend", backend) as process:
        assert process.stdout is not None
        assert len(process.stdout.read(10)) == 10
        process.stdout.close()
        assert process.stderr is not None
        errors = process.stderr.read()
        assert (process.wait(PATIENCE), errors) == (141, b"")


@both
@pytest.mark.skipif(not FULL.exists(), reason="only Linux has /dev/full")
def test_a_full_disk(backend: str) -> None:
    with FULL.open("wb") as full:
        line = fails(1, "run", "--backend", backend, PROMPT, stdout=full)
    assert "standard output: No space left on device" in line


def test_a_closed_standard_output() -> None:
    shell = ["sh", "-c", 'exec "$@" >&-', "sh", *COMMAND, "run", PROMPT]
    done = subprocess.run(shell, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert (done.returncode, done.stderr) == (1, "mullama: standard output: Bad file descriptor\n")


@both
def test_a_deadline(backend: str) -> None:
    done = run(*ENDLESS, "--backend", backend, "--timeout-ms", "300")
    assert done.returncode == 1
    assert done.stdout.endswith("\n")
    assert done.stderr == "mullama: timed out: it took longer than --timeout-ms\n"
