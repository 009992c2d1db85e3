"""`Llama`, with the names of llama-crab and llama-cpp-python: each call is one of `Context`."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import assert_idle
from test_good_files import VOCABULARIES, rewritten

from mullama import (
    ChatDelta,
    CompletionChunk,
    CompletionOptions,
    ContextParams,
    InvalidParameter,
    Llama,
    LlamaParams,
    Model,
    ModelNotFoundError,
    SamplerParams,
    StreamControl,
    StreamingError,
    TokenizationError,
    default_model,
)

PROMPT = "Once upon a time"
GREEDY = SamplerParams.greedy(ignore_eos=True)
USER = [{"role": "user", "content": "Tell me a story."}]


def options(max_tokens: int | None = 12, **changes: Any) -> CompletionOptions:
    return CompletionOptions(max_tokens, **({"sampler": GREEDY} | changes))


@pytest.fixture(scope="module")
def shared() -> Iterator[Llama]:
    with Llama.load(LlamaParams(context=ContextParams(n_ctx=512, n_seq_max=1, n_threads=2))) as llama:
        yield llama


@pytest.fixture
def llama(shared: Llama) -> Iterator[Llama]:
    yield shared
    assert_idle(shared.context)


# ------------------------------------------------------------------------------ loading


@pytest.mark.parametrize("make", [Llama, Llama.load], ids=["Llama", "load"])
def test_made_of_a_path_or_of_parameters(make: Callable[..., Llama]) -> None:
    for given in (None, default_model(), str(default_model()), LlamaParams(default_model())):
        with make(given, n_ctx=300, n_threads=1) as llama:
            assert llama.context.n_ctx == 300
            assert llama.context.statistics().slots == 1
            assert llama.model.path == default_model()
    params = LlamaParams(n_gpu_layers=0, context=ContextParams(n_ctx=256, n_seq_max=2))
    with make(params, n_gpu_layers=-1, n_threads=1) as llama:
        assert (llama.context.statistics().slots, llama.context.n_threads) == (2, 1)


@pytest.mark.parametrize("make", [Llama, Llama.load], ids=["Llama", "load"])
def test_what_it_cannot_be_made_of(make: Callable[..., Llama], tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError):
        make(tmp_path / "none.gguf")
    with pytest.raises(InvalidParameter, match="n_context"):
        make(n_context=512)
    with pytest.raises(InvalidParameter, match="path must be"):
        make(5)
    with pytest.raises(InvalidParameter, match="n_gpu_layers must be an integer"):
        make(n_gpu_layers="all")


def test_its_repr_names_its_context(llama: Llama) -> None:
    assert repr(llama) == f"<mullama.Llama with {llama.context!r}>"


def test_tokens_are_the_models(llama: Llama) -> None:
    ids = llama.tokenize(PROMPT)
    assert ids == llama.model.tokenize(PROMPT)
    assert llama.tokenize("</s>", add_special=False, parse_special=True) == [llama.model.token_eos]
    assert llama.detokenize(ids) == PROMPT
    assert llama.detokenize([llama.model.token_eos], special=True) == "</s>"
    assert llama.token_bytes(ids[1]) == llama.model.token_bytes(ids[1])
    assert [llama.token_is_eog(token) for token in (ids[1], llama.model.token_eos)] == [False, True]


# ------------------------------------------------------------------------------ completions


def test_a_completion_is_the_contexts(llama: Llama) -> None:
    completion = llama.create_completion(PROMPT, options())
    assert completion.tokens == llama.context.generate(PROMPT, 12, GREEDY).tokens
    assert (completion.finish_reason, len(completion.tokens)) == ("length", 12)
    assert llama.create_completion(PROMPT).usage.completion_tokens <= 256


def test_a_stream_of_chunks(llama: Llama) -> None:
    chunks: list[CompletionChunk] = []
    completion = llama.create_completion_stream(PROMPT, options(), chunks.append)  # type: ignore[arg-type]
    assert "".join(chunk.text for chunk in chunks) == completion.text
    assert tuple(chunk.token for chunk in chunks) == completion.tokens
    assert [chunk.stop_reason for chunk in chunks] == [None] * 11 + ["length"]
    assert all(chunk.logprobs is None for chunk in chunks)
    assert completion.text == llama.create_completion(PROMPT, options()).text


@pytest.mark.parametrize("top", [0, 3])
def test_logprobs_on_every_chunk_where_asked_for(llama: Llama, top: int) -> None:
    chunks: list[CompletionChunk] = []
    asked = options(logprobs=True, top_logprobs=top)
    completion = llama.create_completion_stream(PROMPT, asked, chunks.append)  # type: ignore[arg-type]
    assert len(chunks) == 12
    for chunk, logprob in zip(chunks, completion.logprobs, strict=True):
        assert chunk.logprobs is not None
        own, *likeliest = chunk.logprobs
        assert (own.token_id, own.logprob) == (chunk.token, logprob)
        assert own.bytes == llama.model.token_bytes(chunk.token)
        assert len(likeliest) == top
        assert top == 0 or likeliest[0] == own, "greedy takes the likeliest"
        assert [c.logprob for c in likeliest] == sorted((c.logprob for c in likeliest), reverse=True)


def test_stop_as_one_string_or_several(llama: Llama) -> None:
    text = llama.create_completion(PROMPT, options(30)).text
    stop = text[10:13]
    for given in (stop, [stop], ("@@", stop)):
        chunks: list[CompletionChunk] = []
        completion = llama.create_completion_stream(PROMPT, options(30, stop=given), chunks.append)  # type: ignore[arg-type]
        assert completion.text == text[: text.index(stop)]
        assert (completion.stop_sequence, chunks[-1].stop_reason) == (stop, "stop")
    assert CompletionOptions(64, stop="\n\n").stream_config().stop_sequences == ("\n\n",)
    with pytest.raises(InvalidParameter, match="non-empty"):
        llama.create_completion(PROMPT, options(stop=[""]))


def test_echo(llama: Llama) -> None:
    plain = llama.create_completion(PROMPT, options()).text
    assert llama.create_completion(PROMPT, options(echo=True)).text == PROMPT + plain
    chunks: list[CompletionChunk] = []
    completion = llama.create_completion_stream(PROMPT, options(echo=True), chunks.append)  # type: ignore[arg-type]
    assert completion.text == "".join(chunk.text for chunk in chunks) == PROMPT + plain
    assert (chunks[0].text, chunks[0].token, len(chunks)) == (PROMPT, -1, 13)


def test_offsets_after_an_echo(llama: Llama) -> None:
    completion = llama.create_completion(PROMPT, options(echo=True))
    choice = completion.to_choice(token_bytes=llama.token_bytes)
    logprobs = choice["logprobs"]
    assert logprobs["text_offset"][0] == len(PROMPT) == completion.n_echoed
    each = zip(logprobs["text_offset"], logprobs["tokens"], strict=True)
    assert all(choice["text"].startswith(token, offset) for offset, token in each)


def test_echo_stopped_at_once_calls_back_no_more(llama: Llama) -> None:
    calls: list[str] = []

    def callback(chunk: CompletionChunk) -> StreamControl:
        calls.append(chunk.text)
        return StreamControl.STOP

    completion = llama.create_completion_stream(PROMPT, options(None, echo=True), callback)
    assert calls == [PROMPT]
    assert completion.finish_reason == "cancelled"
    assert completion.text.startswith(PROMPT)


def test_min_tokens(llama: Llama) -> None:
    end = {token: 100.0 for token in range(llama.model.n_vocab) if llama.model.token_is_eog(token)}
    eager = SamplerParams.greedy(logit_bias=end)
    assert len(llama.create_completion(PROMPT, options(20, sampler=eager)).tokens) == 1
    completion = llama.create_completion(PROMPT, options(20, sampler=eager, min_tokens=5))
    assert (completion.finish_reason, len(completion.tokens)) == ("stop", 6)
    with pytest.raises(InvalidParameter, match="min_tokens=5 is more than max_tokens=3"):
        llama.create_completion(PROMPT, options(3, min_tokens=5))


def test_logit_bias(llama: Llama) -> None:
    first = llama.create_completion(PROMPT, options()).tokens[0]
    never = SamplerParams.greedy(logit_bias={first: float("-inf")}, ignore_eos=True)
    assert first not in llama.create_completion(PROMPT, options(sampler=never)).tokens
    always = SamplerParams.greedy(logit_bias={first: 1000.0}, ignore_eos=True)
    assert set(llama.create_completion(PROMPT, options(sampler=always)).tokens) == {first}


def test_several_completions_of_one_prompt(llama: Llama) -> None:
    warm = SamplerParams(temperature=1.5, seed=7, ignore_eos=True)
    several = llama.create_completions(PROMPT, options(n=3, sampler=warm, echo=True))
    assert len({completion.text for completion in several}) == 3
    assert all(completion.text.startswith(PROMPT) for completion in several)
    alone = [llama.create_completion(PROMPT, options(sampler=warm.replace(seed=7 + k))) for k in range(3)]
    assert [completion.tokens for completion in several] == [completion.tokens for completion in alone]
    assert llama.create_completion(PROMPT, options(n=2, sampler=warm)).tokens == several[0].tokens


def test_time_limit(llama: Llama) -> None:
    with pytest.raises(StreamingError) as caught:
        llama.create_completion(PROMPT, options(None, timeout_ms=1))
    assert caught.value.code == "STREAM_TIMEOUT"


# ------------------------------------------------------------------------------ the examples of llama-crab


def test_streaming_to_a_file_and_a_write_error(llama: Llama) -> None:
    stdout = io.StringIO()

    def write(chunk: CompletionChunk) -> None:
        stdout.write(chunk.text)
        stdout.flush()

    asked = CompletionOptions(64, stop="\n\n", sampler=GREEDY)
    completion = llama.create_completion_stream("Write one short sentence.", asked, write)
    assert stdout.getvalue() == completion.text
    stdout.close()
    with pytest.raises(ValueError, match="closed file"):  # needs no capturing in Python: it propagates by itself
        llama.create_completion_stream("Write one short sentence.", asked, write)


def test_capturing_an_error_and_stopping(llama: Llama) -> None:
    errors: list[OSError] = []

    def callback(chunk: CompletionChunk) -> StreamControl:
        try:
            raise BrokenPipeError("nobody reads")
        except OSError as e:
            errors.append(e)
            return StreamControl.STOP

    completion = llama.create_completion_stream("List 10 colors:", options(None), callback)
    assert len(errors) == 1
    assert completion.finish_reason == "cancelled"
    assert completion.tokens


def test_stopping_early_leaves_what_was_generated(llama: Llama) -> None:
    texts: list[str] = []

    def callback(chunk: CompletionChunk) -> bool:
        texts.append(chunk.text)
        return len(texts) < 5

    completion = llama.create_completion_stream(PROMPT, options(256), callback)
    assert len(texts) == 5
    assert completion.text.startswith("".join(texts))
    assert completion.text.strip()


# ------------------------------------------------------------------------------ filling in


@pytest.fixture(scope="module")
def filler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Llama]:
    """The bundled model with infilling tokens; it was not trained for infilling."""
    marks = {f"tokenizer.ggml.fim_{name}_token_id": 1500 + i for i, name in enumerate(("pre", "suf", "mid"))}
    path = rewritten(tmp_path_factory.mktemp("fim") / "fim.gguf", marks)
    with Llama.load(path, n_ctx=256, n_threads=2) as llama:
        yield llama


def test_suffix(filler: Llama) -> None:
    model = filler.model
    prompt = model.infill_prompt("Once upon", " happily ever after.")
    head, tail = (
        model.tokenize("Once upon", add_special=False),
        model.tokenize(" happily ever after.", add_special=False),
    )
    assert prompt == [model.token_bos, 1500, *head, 1501, *tail, 1502]
    completion = filler.create_completion("Once upon", options(suffix=" happily ever after."))
    assert completion.tokens == filler.context.generate(prompt, 12, GREEDY).tokens
    assert completion.usage.prompt_tokens == len(prompt)
    for echo in (False, True):
        seen: list[str] = []
        asked = options(suffix=" happily ever after.", echo=echo)
        filler.create_completion_stream("Once upon", asked, lambda chunk, seen=seen: seen.append(chunk.text))  # type: ignore[misc]
        assert "".join(seen) == "Once upon" * echo + completion.text


def test_suffix_alone_and_special_names_in_the_texts(filler: Llama) -> None:
    assert filler.create_completion("", options(suffix="The end.")).tokens
    marks = {1500, 1501, 1502, *(t for t in range(3, filler.model.n_vocab) if filler.model.token_is_eog(t))}
    prompt = filler.model.infill_prompt("a <|im_end|> b", "c </s> d")
    assert [token for token in prompt if token in marks] == [1500, 1501, 1502], "texts are only texts"


def test_suffix_of_vocabularies(llama: Llama) -> None:
    with pytest.raises(TokenizationError, match="no fill-in-the-middle tokens"):
        llama.create_completion(PROMPT, options(suffix="The end."))
    for name, shape in {
        "starcoder": b"<fim_prefix>%b<fim_suffix>%b<fim_middle>",  # separates its texts without a BOS token
        "deepseek-coder": "<｜begin▁of▁sentence｜><｜fim▁begin｜>%b<｜fim▁hole｜>%b<｜fim▁end｜>".encode(),
    }.items():
        coder = Model.load(VOCABULARIES / f"ggml-vocab-{name}.gguf", vocab_only=True)
        prompt = coder.infill_prompt("def f(", "return x")
        assert b"".join(map(coder.token_bytes, prompt)) == shape % (b"def f(", b"return x")
    with pytest.raises(TokenizationError, match="lone surrogate"):
        coder.infill_prompt("\ud800", "")
    with pytest.raises(InvalidParameter, match="text must be a str"):
        coder.infill_prompt("a", 3)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------ chats


def test_a_chat_is_the_contexts(llama: Llama) -> None:
    answer = llama.create_chat_completion(USER, options(20))
    assert (
        answer == llama.context.chat(USER, 20, GREEDY) or answer.message == llama.context.chat(USER, 20, GREEDY).message
    )
    deltas: list[ChatDelta] = []
    streamed = llama.create_chat_completion_stream(USER, options(20), deltas.append)  # type: ignore[arg-type]
    assert streamed.message == answer.message
    assert "".join(str(delta) for delta in deltas) == answer.message.content
    assert streamed.completion.tokens == tuple(delta.token.token_id for delta in deltas)


def test_a_chat_is_stopped_by_its_callback(llama: Llama) -> None:
    seen: list[ChatDelta] = []

    def callback(delta: ChatDelta) -> bool:
        seen.append(delta)
        return len(seen) < 4

    answer = llama.create_chat_completion_stream(USER, options(None), callback)
    assert answer.finish_reason == "cancelled"
    assert answer.message.content == "".join(str(delta) for delta in seen)
    assert len(seen) == 4
