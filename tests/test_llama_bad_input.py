"""What `Llama` refuses: options and parameters when they are created, and calls before they do anything."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import pytest
from conftest import assert_idle

from mullama import (
    CompletionOptions,
    InvalidParameter,
    Llama,
    LlamaParams,
    SamplerParams,
)

PROMPT = "Once upon a time"
USER = [{"role": "user", "content": "Tell me a story."}]


@pytest.fixture(scope="module")
def llama() -> Iterator[Llama]:
    with Llama(n_ctx=512, n_threads=2) as llama:
        yield llama
        assert_idle(llama.context)


# ------------------------------------------------------------------------------ options are checked when they are created


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"max_tokens": "12"}, "max_tokens must be an integer"),
        ({"max_tokens": 0}, "max_tokens must be an integer from 1"),
        ({"stop": 3}, "stop must be an iterable of strings"),
        ({"stop": ""}, r"stop\[0\] must be a non-empty string"),
        ({"stop": ["a", 5]}, r"stop\[1\] must be a string"),
        ({"sampler": {"temperature": 0}}, "sampler must be a SamplerParams"),
        ({"sampler": None}, "sampler must be a SamplerParams"),
        ({"logprobs": 1}, "logprobs must be True or False"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs must be an integer from 0 to 20"),
        ({"top_logprobs": 3}, "top_logprobs=3 does nothing without logprobs"),
        ({"echo": "no"}, "echo must be True or False"),
        ({"suffix": 3}, "suffix must be a str or None"),
        ({"min_tokens": -1}, "min_tokens must be an integer from 0"),
        ({"max_tokens": 3, "min_tokens": 5}, "min_tokens=5 is more than max_tokens=3"),
        ({"n": 0}, "n must be an integer from 1"),
        ({"timeout_ms": 0.5}, "timeout_ms must be an integer"),
    ],
    ids=str,
)
def test_options_that_are_wrong(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidParameter, match=words) as caught:
        CompletionOptions(**wrong)
    assert str(caught.value.parameter).split("[")[0] in wrong
    with pytest.raises(InvalidParameter, match=words):
        CompletionOptions().replace(**wrong)


def test_options_and_parameters_that_are_right() -> None:
    assert CompletionOptions(stop="a") == CompletionOptions(stop=["a"])
    assert CompletionOptions(64, "a").replace(max_tokens=-1).max_tokens is None
    assert CompletionOptions() == CompletionOptions(256, (), SamplerParams())
    assert LlamaParams("x.gguf", 0).path == "x.gguf"


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"path": 5}, "path must be a str or os.PathLike"),
        ({"path": ""}, "path must be a file name"),
        ({"n_gpu_layers": -2}, "n_gpu_layers must be an integer from -1"),
        ({"context": {"n_ctx": 5}}, "context must be a ContextParams"),
    ],
    ids=str,
)
def test_parameters_that_are_wrong(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidParameter, match=words) as caught:
        LlamaParams(**wrong)
    assert caught.value.parameter == min(wrong)


def test_what_a_chat_cannot_do(llama: Llama) -> None:
    for wrong in ({"echo": True}, {"suffix": "The end."}):
        for call in (
            lambda asked: llama.create_chat_completion(USER, asked),
            lambda asked: llama.create_chat_completion_stream(USER, asked, print),  # type: ignore[arg-type]
        ):
            with pytest.raises(InvalidParameter, match="in a chat") as caught:
                call(CompletionOptions(**wrong))  # type: ignore[arg-type]
            assert caught.value.parameter == min(wrong)


# ------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize("given", [{"max_tokens": 3}, 3, "text"], ids=repr)
def test_options_of_another_type(llama: Llama, given: Any) -> None:
    for call in (
        lambda: llama.create_completion(PROMPT, given),
        lambda: llama.create_completion_stream(PROMPT, given, print),  # type: ignore[arg-type]
        lambda: llama.create_chat_completion(USER, given),
    ):
        with pytest.raises(InvalidParameter, match="options must be a CompletionOptions"):
            call()


@pytest.mark.parametrize("callback", [None, "print"], ids=repr)
def test_a_callback_that_cannot_be_called(llama: Llama, callback: Any) -> None:
    before = llama.context.statistics().tokens_in
    for call in (
        lambda: llama.create_completion_stream(PROMPT, None, callback),
        lambda: llama.create_chat_completion_stream(USER, None, callback),
    ):
        with pytest.raises(InvalidParameter, match="callback must be a function"):
            call()
    assert llama.context.statistics().tokens_in == before


def test_several_where_there_is_one(llama: Llama) -> None:
    for call in (
        lambda: llama.create_completion_stream(PROMPT, CompletionOptions(n=2), sys.stdout.write),  # type: ignore[arg-type]
        lambda: llama.create_chat_completion(USER, CompletionOptions(n=2)),
    ):
        with pytest.raises(InvalidParameter, match="n must be 1 here, not 2"):
            call()
