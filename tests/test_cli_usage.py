"""What the `mullama` command refuses, in its own words, and how it reports failures."""

from __future__ import annotations

import os
import pathlib
import pty
import re
import subprocess
import sys

import pytest
from test_cli import COMMAND, PATIENCE, PROMPT, both, chat_and_raw, fails, run

import mullama
from mullama import cli

if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup, ExceptionGroup


# -- what it refuses


def test_no_prompt_at_a_terminal() -> None:
    leader, follower = pty.openpty()
    try:
        assert "standard input" in fails(2, "run", stdin=follower)
    finally:
        os.close(leader)
        os.close(follower)


def test_an_empty_prompt() -> None:
    assert fails(2, "run", "") == "Error: Invalid value for '[PROMPT]': it is empty."
    assert fails(2, "run", input="\n") == "Error: there is no prompt: standard input is empty."


@pytest.mark.parametrize("args", [["ab\udcff"], ["--system", "ab\udcff", "x"], ["--stop", "ab\udcff", "x"]], ids=repr)
def test_arguments_that_are_no_text(args: list[str]) -> None:
    assert fails(2, "run", *args).endswith("it is not UTF-8 text.")


def test_standard_input_that_is_no_text() -> None:
    done = subprocess.run([*COMMAND, "run"], input=b"ab\xff", capture_output=True, timeout=PATIENCE, check=False)
    assert done.returncode == 2
    assert b"not UTF-8 text" in done.stderr
    assert b"byte 2" in done.stderr


@both
@pytest.mark.parametrize("make", ["missing", "directory", "text"])
def test_models_that_cannot_be_loaded(backend: str, make: str, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "model.gguf"
    if make == "directory":
        path.mkdir()
    elif make == "text":
        path.write_text("This is no model.", encoding="utf-8")
    line = fails(1, "run", "--backend", backend, "-m", str(path), PROMPT)
    assert line.startswith(f"mullama: cannot load the model '{path}': ")
    assert ("-m" in line) == (make == "missing")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--max-tokens", "0"),
        ("--max-tokens", "-2"),
        ("--max-tokens", "3000000000"),
        ("--max-tokens", "many"),
        ("--temperature", "-1"),
        ("--temperature", "nan"),
        ("--temperature", "1e-9"),
        ("--top-k", "-1"),
        ("--top-k", "2.5"),
        ("--top-p", "0"),
        ("--top-p", "3"),
        ("--top-p", "nan"),
        ("--min-p", "2"),
        ("--repeat-penalty", "0"),
        ("--seed", "-1"),
        ("--seed", "4294967295"),
        ("--stop", ""),
        ("--system", ""),
        ("--timeout-ms", "-1"),
        ("--timeout-ms", "3000000000"),
        ("--stop", "a" * 5000),
        ("--ctx", "1"),
        ("--ctx", "3000000000"),
        ("--threads", "0"),
        ("--threads", "513"),
        ("--gpu-layers", "-2"),
        ("--backend", "curio"),
    ],
)
def test_options_out_of_range(option: str, value: str) -> None:
    line = fails(2, "run", option, value, PROMPT)
    assert re.match(rf"Error: Invalid value for ('-\w' / )?'{option}': \S", line)
    assert not re.search(r"\w_\w|None", line), "a word of Python's"


@pytest.mark.parametrize(
    ("option", "least", "most"),
    [
        ("--temperature", "0", "1000000"),
        ("--min-p", "0", "1"),
        ("--top-p", "0.0001", "1"),
        ("--repeat-penalty", "0.001", "1000"),
        ("--seed", "0", "4294967294"),
        ("--top-k", "0", "2147483647"),
        ("--max-tokens", "-1", "2147483647"),
        ("--threads", "1", "8"),
        ("--ctx", "256", "4096"),
        ("--gpu-layers", "-1", "9999"),
        ("--timeout-ms", "60000", "2147483647"),
    ],
)
def test_options_at_the_ends_of_their_range(option: str, least: str, most: str) -> None:
    for value in (least, most):
        done = run("run", "--stop", " ", option, value, PROMPT)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("args", [["run", "--no-such-option", "x"], ["no-such-command"], ["run", "a", "b"]], ids=str)
def test_wrong_usage(args: list[str]) -> None:
    fails(2, *args)


@both
@chat_and_raw
def test_a_prompt_longer_than_the_context(backend: str, mode: list[str]) -> None:
    line = fails(1, "run", *mode, "--backend", backend, "--ctx", "256", input="once upon a time " * 1000)
    assert re.fullmatch(r"mullama: the prompt has .* holds 256\. Shorten it, or give a larger --ctx\.", line)


def test_a_context_too_large_for_the_memory() -> None:
    line = fails(1, "run", "--ctx", "2147483647", PROMPT)
    assert line.endswith("Use a smaller context.")
    assert "n_ctx" not in line


def test_raw_has_no_system_message() -> None:
    assert "--raw and --system" in fails(2, "run", "--raw", "--system", "Answer in one word.", PROMPT)


# -- from inside


def test_main_returns_the_status(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert cli.main(["run", "--top-k", "-1", "x"]) == 2
    out, err = capsys.readouterr()
    assert out.startswith("mullama ")
    assert "--top-k" in err


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (KeyboardInterrupt(), 130),
        (BaseExceptionGroup("", [BaseExceptionGroup("", [KeyboardInterrupt()])]), 130),
        (BaseExceptionGroup("", [mullama.ContextError("no"), KeyboardInterrupt()]), 130),
        (ExceptionGroup("", [mullama.ContextError("no")]), 1),
        (mullama.ModelNotFoundError("no", path="x"), 1),
    ],
    ids=repr,
)
def test_what_comes_out_of_an_event_loop_is_explained(error: BaseException, status: int) -> None:
    assert cli._explain(error) == status


def test_what_is_a_mistake_of_ours_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        cli._explain(ZeroDivisionError())
