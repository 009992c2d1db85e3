"""`Llama`, for those who know llama-crab: completions with a callback, errors of the output, log-probabilities.

python examples/completions.py [MODEL]
"""

from __future__ import annotations

import errno
import io
import os
import sys
from math import exp

from mullama import CompletionChunk, CompletionOptions, Llama, LlamaParams, SamplerParams, StreamControl

PROMPT = "Write one short sentence about Rust."


EXACT = SamplerParams.greedy()  # always the likeliest token: the same text in every run


def show(chunk: CompletionChunk) -> None:
    print(chunk.text, end="", flush=True)


class Full(io.StringIO):
    """An output that has no room for more than thirty characters."""

    def write(self, text: str) -> int:
        if len(self.getvalue()) + len(text) > 30:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(text)


def what_it_does(llama: Llama) -> None:
    """An output that breaks raises here, and the generation has been stopped by then."""
    llama.create_completion_stream(PROMPT, CompletionOptions(max_tokens=64, stop=["\n\n"], sampler=EXACT), show)
    print()
    output = Full()

    def write(chunk: CompletionChunk) -> None:
        output.write(chunk.text)

    try:
        llama.create_completion_stream(PROMPT, CompletionOptions(sampler=EXACT), write)
    except OSError as error:
        print("The output broke:", error)


def capturing_errors(llama: Llama) -> None:
    """Where the completion is wanted besides the error: keep the error, stop, and raise it afterwards."""
    output = Full()
    write_error: OSError | None = None

    def write(chunk: CompletionChunk) -> StreamControl:
        nonlocal write_error
        try:
            output.write(chunk.text)
        except OSError as error:
            write_error = error
            return StreamControl.STOP
        return StreamControl.CONTINUE

    completion = llama.create_completion_stream(PROMPT, CompletionOptions(max_tokens=64, sampler=EXACT), write)
    print(f"Written: {output.getvalue().strip()!r}")
    print(f"Generated: {completion.text.strip()!r}, {completion.finish_reason}")
    if write_error is not None:
        print("The error:", write_error)  # or raise it


def stopping_early(llama: Llama) -> None:
    text, stopped = "", False

    def watch(chunk: CompletionChunk) -> StreamControl:
        nonlocal text, stopped
        show(chunk)
        text += chunk.text
        if text.count("\n") >= 4:
            stopped = True
            return StreamControl.STOP
        return StreamControl.CONTINUE

    options = CompletionOptions(sampler=EXACT)
    completion = llama.create_completion_stream("List 10 colors, one per line:", options, watch)
    print("stopped:", stopped)
    assert completion.text.startswith(text)  # what was generated so far


def log_probabilities(llama: Llama) -> None:
    def confidence(chunk: CompletionChunk) -> None:
        assert chunk.logprobs is not None
        own, *likeliest = chunk.logprobs
        others = " ".join(f"{other.text!r}" for other in likeliest)
        print(f"{chunk.text!r:12} {exp(own.logprob):6.1%}   of {others}")

    options = CompletionOptions(max_tokens=8, sampler=EXACT, logprobs=True, top_logprobs=4)
    llama.create_completion_stream("The capital of France is", options, confidence)


def main(path: str | None = None) -> None:
    with Llama.load(LlamaParams(path), n_ctx=512) as llama:
        for example in (what_it_does, capturing_errors, stopping_early, log_probabilities):
            print(f"\n--- {example.__name__.replace('_', ' ')}")
            example(llama)


if __name__ == "__main__":
    main(*sys.argv[1:2])
