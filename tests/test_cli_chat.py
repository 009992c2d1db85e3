"""`mullama run` with and without a chat: the template decides, thoughts are kept separate, and an empty answer is reported."""

from __future__ import annotations

import contextlib
import os
import pathlib
import pty
import re
import subprocess
import sys

import anyio
import pytest
from test_cli import COMMAND, PATIENCE, PROMPT, QUESTION, both, fails, run, succeeds

import mullama
from mullama import _run


@both
def test_a_prompt_is_one_message_of_a_user(backend: str) -> None:
    assert succeeds("run", "--backend", backend, *QUESTION) == "The capital of France is Paris.\n"


@both
def test_raw_goes_on_with_the_text(backend: str, model: mullama.Model) -> None:
    text = succeeds("run", "--backend", backend, "--raw", "--temperature", "0", "-n", "20", PROMPT)
    with mullama.Context(model, n_ctx=256) as context:
        assert text == context.generate(PROMPT, 20, mullama.SamplerParams.greedy()).text + "\n"


@both
def test_a_system_message(backend: str) -> None:
    assert succeeds("run", "--backend", backend, "--system", "Answer in one word.", *QUESTION) == "Paris.\n"


# -- when there is nothing to write


@both
@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--raw", "--temperature", "0", "The capital of France is Paris."], "the model ended the text"),
        (["--stop", "The capital", *QUESTION], "it ended at the --stop text 'The capital'"),
    ],
    ids=["end", "stop"],
)
def test_nothing_generated_is_no_failure(backend: str, options: list[str], reason: str) -> None:
    done = run("run", "--backend", backend, *options)
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr == f"mullama: nothing was generated: {reason}\n"


# -- other models: without a chat template, and with one that has the model think first

THINKING = """\
{%- for message in messages -%}
<|im_start|>{{ message.role }}
{% if message.reasoning_content %}<think>
{{ message.reasoning_content }}
</think>
{% endif %}{{ message.content }}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt %}<|im_start|>assistant
<think>
{% endif -%}
"""


def other_model(folder: pathlib.Path, *changes: str) -> str:
    """The bundled model with other metadata."""
    path = str(folder / "other.gguf")
    change = [sys.executable, "-m", "gguf.scripts.gguf_new_metadata", "--force", *changes]
    subprocess.run([*change, "--", str(mullama.default_model()), path], capture_output=True, check=True)
    return path


def test_a_model_without_a_template_goes_on_with_the_text(tmp_path: pathlib.Path) -> None:
    path = other_model(tmp_path, "--remove-metadata", "tokenizer.chat_template")
    options = ("-n", "20", "--seed", "1", PROMPT)
    assert succeeds("run", "-m", path, *options) == succeeds("run", "--raw", *options)
    line = fails(2, "run", "-m", path, "--system", "Answer in one word.", *QUESTION)
    assert line == "Error: Invalid value for '--system': it needs a chat, and the model has no chat template."


@both
def test_thoughts_are_left_out_of_a_pipe(backend: str, tmp_path: pathlib.Path) -> None:
    options = ("run", "-m", other_model(tmp_path, "--chat-template", THINKING), "--backend", backend, *QUESTION)
    done = run(*options)
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr == "mullama: only reasoning was generated: the model ended the text\n"
    assert "it ended after 3 tokens; give a larger --max-tokens" in run(*options, "-n", "3").stderr


@both
def test_thoughts_are_dimmed_on_a_terminal(backend: str, tmp_path: pathlib.Path) -> None:
    path = other_model(tmp_path, "--chat-template", THINKING)
    shown = at_a_terminal("run", "-m", path, "--backend", backend, *QUESTION)
    assert re.fullmatch(r"\x1b\[2m[^\x1b]+\x1b\[0m\r\n", shown)


def at_a_terminal(*args: str) -> str:
    """The output of a run in a terminal."""
    leader, follower = pty.openpty()
    try:
        process = subprocess.Popen([*COMMAND, *args], stdin=subprocess.DEVNULL, stdout=follower, stderr=subprocess.PIPE)
        os.close(follower)
        shown = read_all(leader)
        process.communicate(timeout=PATIENCE)
        assert process.returncode == 0
    finally:
        os.close(leader)
    return shown.decode()


def read_all(leader: int) -> bytes:
    """Everything written to a terminal, until its other end is closed."""
    shown = b""
    with contextlib.suppress(OSError):  # EIO
        while data := os.read(leader, 4096):
            shown += data
    return shown


def pieces_at_a_terminal(*pieces: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> str:
    """The output for the given thoughts and text."""
    leader, follower = pty.openpty()

    async def write(output: _run.Output) -> None:
        for kind, text in pieces:
            await (output.write_thoughts if kind == "thought" else output.write)(text)
        output.end_line()

    with os.fdopen(follower, "w", encoding="utf-8") as terminal:
        monkeypatch.setattr(sys, "stdout", terminal)
        output = _run.Output()
        monkeypatch.undo()
        anyio.run(write, output)
    shown = read_all(leader).decode()
    os.close(leader)
    return shown.replace("\r\n", "\n")


@pytest.mark.parametrize(
    ("pieces", "shown"),
    [
        ([("text", "Paris."), ("text", "")], "Paris.\n"),
        (
            [("thought", "France, "), ("thought", "so"), ("text", ""), ("text", "Paris")],
            "\x1b[2mFrance, so\x1b[0m\n\nParis\n",
        ),
        ([("thought", "So\n"), ("text", "\n"), ("text", "\nParis\n")], "\x1b[2mSo\n\x1b[0m\nParis\n"),
        ([("thought", ""), ("text", "Paris")], "Paris\n"),
        ([("thought", "So\n")], "\x1b[2mSo\n\x1b[0m"),
    ],
    ids=repr,
)
def test_thoughts_and_text_at_a_terminal(
    pieces: list[tuple[str, str]], shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert pieces_at_a_terminal(*pieces, monkeypatch=monkeypatch) == shown
