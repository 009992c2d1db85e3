"""Correct user code passes a strict type checker, and wrong code does not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Each `type: ignore` must be needed: mypy --strict says where one is not.
USERS = """
from typing import Any

import mullama
from mullama import (
    ChatCompletion, Completion, CompletionOptions, Context, FinishDetail, FinishReason, Llama, LlamaParams, Message, Model,
    Tool,
)


def talk(context: Context) -> None:
    messages: list[Message] = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    answer = context.chat(messages)
    messages.append(answer.message)
    messages.append({"role": "user", "content": [{"type": "text", "text": "Again"}]})
    messages += [answer.message, answer.message.to_dict()]
    context.chat(messages)


def talk_without_a_word_of_types(context: Context) -> None:
    messages = [{"role": "user", "content": "Hello"}]
    answer = context.chat(messages)
    messages.append(answer.message.to_dict())
    context.chat(messages)
    context.chat([*messages, answer.message, {"role": "user", "content": "Again"}])


async def talk_in_a_task(model: mullama.AsyncModel) -> None:
    messages: list[Message] = [{"role": "user", "content": "Hello"}]
    messages.append((await model.chat(messages)).message)
    await model.chat(messages)


def tools(context: Context) -> None:
    weather: Tool = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
    several: list[Tool] = [weather]
    context.chat([{"role": "user", "content": "Hello"}], tools=several)
    context.chat([{"role": "user", "content": "Hello"}], tool=several)  # type: ignore[call-arg]


def reasons(completion: Completion, answer: ChatCompletion) -> FinishReason:
    detail: FinishDetail | None = completion.finish_detail
    assert detail != "full"  # type: ignore[comparison-overlap]
    if answer.finish_reason == "tool_calls":
        return completion.finish_reason
    return answer.finish_reason


def failures(context: Context) -> str:
    try:
        return context.generate("Hello").text
    except mullama.StreamTimeoutError as error:
        return error.completion.text if error.completion is not None else ""
    except mullama.MullamaError as error:
        error.completion.text  # type: ignore[union-attr]
        return ""


def openai(completion: Completion, answer: ChatCompletion, model: Model) -> dict[str, Any]:
    completion.to_dict(model="small", id="cmpl-1", created=1, token_bytes=model.token_bytes)
    return answer.to_dict(name="small")  # type: ignore[call-arg]


def llamas() -> None:
    llama = Llama("model.gguf", n_ctx=512)
    Llama(LlamaParams("model.gguf", n_gpu_layers=0))
    ids: list[int] = llama.tokenize("Hello")
    llama.create_completion(llama.detokenize(ids), CompletionOptions(12, stop="."))
    CompletionOptions(max_tokens="12")  # type: ignore[arg-type]
    Llama.load("model.gguf", n_ctx=512).close()
"""


@pytest.mark.skipif(not (ROOT / "pyproject.toml").is_file(), reason="tests are run without a checkout")
def test_what_users_write(tmp_path: Path) -> None:
    file = tmp_path / "users.py"
    file.write_text(USERS)
    command = [sys.executable, "-m", "mypy", "--strict", file]  # with the checkout's settings, and its cache
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
