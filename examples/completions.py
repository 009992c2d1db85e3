"""`Llama`, for those who know llama-crab: completions with a callback, errors of the output, log-probabilities.

python examples/completions.py [MODEL]
"""

from __future__ import annotations

import sys
from math import exp

from mullama import CompletionChunk, CompletionOptions, Llama, LlamaParams, StreamControl

PROMPT = "Write one short sentence about Rust."


def show(chunk: CompletionChunk) -> None:
    print(chunk.text, end="", flush=True)


def what_it_does(llama: Llama) -> None:
    """An output that breaks raises here, and the generation has been stopped by then."""
    llama.create_completion_stream(PROMPT, CompletionOptions(max_tokens=64, stop=["\n\n"]), show)
    print()


def capturing_errors(llama: Llama) -> None:
    """Where the completion is wanted besides the error: keep the error, stop, and raise it afterwards."""
    write_error: OSError | None = None

    def write(chunk: CompletionChunk) -> StreamControl:
        nonlocal write_error
        try:
            show(chunk)
        except OSError as error:
            write_error = error
            return StreamControl.STOP
        return StreamControl.CONTINUE

    completion = llama.create_completion_stream(PROMPT, CompletionOptions(max_tokens=64), write)
    print(f"\n{len(completion.tokens)} tokens, {completion.finish_reason}")
    if write_error is not None:
        raise write_error


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

    completion = llama.create_completion_stream("List 10 colors, one per line:", CompletionOptions(), watch)
    print("stopped:", stopped)
    assert completion.text.startswith(text)  # what was generated so far


def log_probabilities(llama: Llama) -> None:
    def confidence(chunk: CompletionChunk) -> None:
        assert chunk.logprobs is not None
        own, *likeliest = chunk.logprobs
        others = " ".join(f"{other.text!r}" for other in likeliest)
        print(f"{chunk.text!r:12} {exp(own.logprob):6.1%}   of {others}")

    options = CompletionOptions(max_tokens=8, logprobs=True, top_logprobs=4)
    llama.create_completion_stream("The capital of France is", options, confidence)


def main(path: str | None = None) -> None:
    with Llama.load(LlamaParams(path), n_ctx=512) as llama:
        for example in (what_it_does, capturing_errors, stopping_early, log_probabilities):
            print(f"\n--- {example.__name__.replace('_', ' ')}")
            example(llama)


if __name__ == "__main__":
    main(*sys.argv[1:2])
