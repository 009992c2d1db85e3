"""Grammars: what they allow, what happens if one cannot continue, and how bad ones are refused."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from conftest import ENDLESS, assert_idle, serving

from mullama import (
    AsyncContext,
    Completion,
    Context,
    InvalidParameter,
    Model,
    SamplerParams,
    SamplingError,
    StreamConfig,
    TokenIterator,
)

PROMPT = "Once upon a time"
DEAD = 'root ::= "ab" <[99999999]>'  # after "ab", only a token that does not exist


@pytest.fixture(scope="module")
def ctx(model: Model) -> Iterator[Context]:
    with Context(model, n_ctx=1024, n_seq_max=4, n_threads=2) as context:
        yield context
        assert_idle(context)


def constrained(grammar: str, **changes: Any) -> SamplerParams:
    return SamplerParams(**{"temperature": 2.0, "top_k": 0, "top_p": 1.0, "grammar": grammar, "seed": 1} | changes)


def say(context: Context, grammar: str, n: int | None = 300, seed: int = 1, **config: Any) -> Completion:
    return context.generate(
        PROMPT, config=StreamConfig(max_tokens=n, params=constrained(grammar, seed=seed), timeout_ms=0, **config)
    )


def text_until_it_fails(stream: TokenIterator, why: str) -> str:
    text = []
    try:
        for token in stream:
            text.append(token)  # noqa: PERF402  those before the failure count
    except SamplingError as e:
        failure = e
    else:
        pytest.fail(f"it did not fail after {text}")
    assert why in str(failure)
    assert stream.completion().finish_reason == "error"
    assert stream.completion().text == "".join(text)
    return "".join(text)


# ------------------------------------------------------------------------------------------ what they allow

LANGUAGES = {
    'root ::= "yes" | "no" | "it depends"': r"yes|no|it depends",
    'root ::= [a-z]{3,5} "-" [0-9]+ "!"{2}': r"[a-z]{3,5}-[0-9]+!!",
    'root ::= ("é" | "日本" | "😀"){1,4} "."': r"(é|日本|😀){1,4}\.",
    r'root ::= "\"" [^"\\\x00-\x1F]{0,9} "\"" "\n"?': r'"[^"\\\x00-\x1f]{0,9}"\n?',
    'root ::= item ("," item){0,4}  # a comment\nitem ::= [a-c] | "(" root ")"': None,
    "root ::= one\none ::= .{2}\n\n": r"(?s)..",
    'root ::= ("a"? "b"?){3} "c"': r"(a?b?){3}c",
    'root ::= ""': r"",
    'root ::= | "a"': r"|a",
    r'root ::= "\x41\u00e9\U0001F600\t\\\"" [\]\-x^]': 'A\u00e9\U0001f600\t\\\\"[\\]\\-x^]',
    'root ::= ("ab" | "abc") ("d" | "cd")': r"(ab|abc)(d|cd)",
    "root ::= <|im_start|> [a-b]{2}": None,
}


@pytest.mark.parametrize("grammar", LANGUAGES)
def test_what_ends_by_itself_is_of_the_language(ctx: Context, grammar: str) -> None:
    said = [say(ctx, grammar, seed=seed) for seed in range(5)]
    ended = [completion for completion in said if completion.finish_reason == "stop"]
    assert ended
    for completion in ended:
        assert ctx.model.token_is_eog(completion.tokens[-1])
        if LANGUAGES[grammar] is not None:
            assert re.fullmatch(LANGUAGES[grammar], completion.text), completion.text
        else:
            assert completion.text.count("(") == completion.text.count(")")
            assert set(completion.text) <= set("abc,()")


def test_cut_short_it_is_the_beginning_of_something(ctx: Context) -> None:
    grammar = 'root ::= ("ab" [0-9] "cd ")*'
    for n in range(1, 12):
        completion = say(ctx, grammar, n, seed=n)
        if completion.finish_reason == "length":
            assert len(completion.tokens) == n
        rest = re.sub(r"\A(ab[0-9]cd )*", "", completion.text)
        assert re.fullmatch(r"(a(b([0-9](c(d)?)?)?)?)?", rest), completion.text


def test_without_one_nothing_is_constrained(ctx: Context) -> None:
    """Nor by the grammar of the slot's previous stream."""
    plain = SamplerParams(seed=3, ignore_eos=True)
    before = ctx.generate(PROMPT, 20, plain).text
    assert re.fullmatch("[0-9]{30}", say(ctx, "root ::= [0-9]{30}").text)
    assert ctx.generate(PROMPT, 20, plain).text == before


def test_streams_with_different_grammars_at_once(ctx: Context) -> None:
    sets = ["0-9", "a-f", "x-z", "A-C"]
    streams = [
        ctx.generate_stream(PROMPT, config=StreamConfig(params=constrained(f"root ::= [{one}]{{20}}"), timeout_ms=0))
        for one in sets
    ]
    for one, stream in zip(sets, streams, strict=True):
        assert re.fullmatch(f"[{one}]{{20}}", "".join(map(str, stream)))


def test_many_completions_of_one_prompt(ctx: Context) -> None:
    completions = ctx.generate_many(PROMPT, 6, 50, constrained("root ::= [0-9]{12}"))
    assert all(re.fullmatch("[0-9]{12}", completion.text) for completion in completions)
    assert len({completion.text for completion in completions}) == 6


@pytest.mark.parametrize(
    "changes", [{"temperature": 0.0}, {"mirostat": 2}, {"samplers": ["top_k"], "top_k": 1}, {"min_p": 0.9}], ids=repr
)
def test_whatever_the_sampling(ctx: Context, changes: dict[str, Any]) -> None:
    """What the chain would choose by itself does not match: it chooses again among the tokens that do."""
    text = ctx.generate(PROMPT, 40, constrained("root ::= [#%&=]{7}", **changes)).text
    assert re.fullmatch("[#%&=]{7}", text)


@pytest.mark.anyio
async def test_awaited(actx: AsyncContext) -> None:
    for seed in range(3):
        completion = await actx.generate(PROMPT, 20, constrained('root ::= "yes" | "no"', seed=seed))
        assert (completion.text, completion.finish_reason) in [("yes", "stop"), ("no", "stop")]


# ------------------------------------------------------------------------------------------ with other ends


def test_a_stop_string_ends_it_before_the_grammar_does(ctx: Context) -> None:
    for seed in range(4):
        completion = say(ctx, "root ::= [a-d]{100}", seed=seed, stop_sequences=["b", "cc"])
        assert completion.finish_reason == "stop"
        assert completion.stop_sequence in ("b", "cc")
        assert not re.search("b|cc", completion.text)
        assert re.fullmatch("[acd]*", completion.text)


def test_a_stop_string_that_the_grammar_cannot_say(ctx: Context) -> None:
    completion = say(ctx, 'root ::= "abc"', stop_sequences=["abcd", "x"])
    assert (completion.text, completion.finish_reason, completion.stop_sequence) == ("abc", "stop", None)


def test_min_tokens_that_the_grammar_can_reach(ctx: Context) -> None:
    for least in (1, 5, 20):
        completion = say(ctx, "root ::= [a-c]*", 100, min_tokens=least)
        assert len(completion.tokens) > least or completion.finish_reason == "length"
        assert re.fullmatch("[a-c]*", completion.text)


@pytest.mark.parametrize("changes", [{"min_tokens": 50}, {"ignore_eos": True}], ids=repr)
def test_an_end_that_is_forbidden_where_the_grammar_has_nothing_else(ctx: Context, changes: dict[str, Any]) -> None:
    ignore = {"ignore_eos": changes.pop("ignore_eos", False)}
    config = StreamConfig(params=constrained('root ::= "abc"', **ignore), **changes)
    with ctx.generate_stream(PROMPT, config=config) as stream:
        assert text_until_it_fails(stream, "no token is left") == "abc"


# ------------------------------------------------------------------------------------------ if it cannot continue


def test_only_that_stream_ends(ctx: Context) -> None:
    with ctx.generate_stream(PROMPT, 300, ENDLESS) as neighbour:
        usual = ctx.generate(PROMPT, 300, ENDLESS).tokens
        seen = [next(neighbour)]
        for seed in range(6):
            with ctx.generate_stream(PROMPT, 50, constrained(DEAD, seed=seed)) as stream:
                assert text_until_it_fails(stream, "no token is left") == "ab"
            assert len(stream.completion().logprobs) == len(stream.completion().tokens) > 0
            seen.append(next(neighbour))
        seen += list(neighbour)
        assert len(seen) == 300 == len(usual)
    assert re.fullmatch("[0-9]{5}", say(ctx, "root ::= [0-9]{5}").text), "the slots serve again"


@pytest.mark.anyio
async def test_awaited_only_that_stream_ends(model: Model) -> None:
    async with (
        serving(model, n_ctx=512, n_seq_max=2) as context,
        context.generate_stream(PROMPT, 100, ENDLESS) as neighbour,
    ):
        await neighbour.receive()
        for _ in range(3):
            async with context.generate_stream(PROMPT, 50, constrained(DEAD)) as stream:
                seen: list[str] = []
                mapped = stream.map(lambda token, seen=seen: seen.append(token))  # those before the failure
                with pytest.raises(SamplingError, match="no token is left"):
                    [item async for item in mapped]
            assert "".join(seen) == "ab"
        assert len(await neighbour.collect()) == 99


def test_readings_that_multiply_end_that_stream(ctx: Context) -> None:
    """Each "a" doubles the number of parses. Without a limit, the engine would soon do nothing else."""
    (a,) = (t for t in range(ctx.model.n_vocab) if ctx.model.token_bytes(t) == b"a" and t > 260)
    loud = constrained('root ::= "a" root "b" | "a" root "c" | "d"', logit_bias={a: 1e6})
    with ctx.generate_stream(PROMPT, config=StreamConfig(max_tokens=200, params=ENDLESS, timeout_ms=0)) as neighbour:
        next(neighbour)
        with ctx.generate_stream(PROMPT, config=StreamConfig(params=loud, timeout_ms=0)) as stream:
            assert set(text_until_it_fails(stream, "too many ways")) == {"a"}
        assert len(list(neighbour)) == 199


EXPLODING = "root ::= c\nc ::= [a-z] (c (c) | c c)"  # doubles with each character, even within a token


@pytest.mark.parametrize("seed", range(3))
def test_readings_that_multiply_within_a_token_end_that_stream(ctx: Context, seed: int) -> None:
    """One token of ten letters would take hours. The same context works again at once."""
    with ctx.generate_stream(PROMPT, config=StreamConfig(max_tokens=200, params=ENDLESS, timeout_ms=0)) as neighbour:
        next(neighbour)
        config = StreamConfig(params=constrained(EXPLODING, seed=seed), max_tokens=None, timeout_ms=0)
        with ctx.generate_stream(PROMPT, config=config) as stream:
            assert re.fullmatch("[a-z]*", text_until_it_fails(stream, "too many ways"))
        assert len(list(neighbour)) == 199
    assert say(ctx, 'root ::= "a"{5}').text == "aaaaa"


@pytest.mark.anyio
async def test_awaited_readings_that_multiply_end_that_stream(model: Model) -> None:
    async with (
        serving(model, n_ctx=512, n_seq_max=2) as context,
        context.generate_stream(PROMPT, config=StreamConfig(max_tokens=100, params=ENDLESS, timeout_ms=0)) as neighbour,
    ):
        for ask in (context.generate, context.chat):
            prompt: Any = PROMPT if ask == context.generate else [{"role": "user", "content": "Hello"}]
            config = StreamConfig(params=constrained(EXPLODING), max_tokens=None, timeout_ms=0)
            with pytest.raises(SamplingError, match="too many ways"):
                await ask(prompt, config=config)
        assert len(await neighbour.collect()) == 100


# ------------------------------------------------------------------------------------------ bad ones

ROW = "".join(f"r{i} ::= r{i + 1} | r{i + 1}\n" for i in range(60))
BAD: dict[str, str] = {
    "empty": "   \n\n",
    "a comment alone": "# nothing",
    "no root": 'x ::= "a"',
    "no rule": 'root = "a"',
    "not a name": '_x ::= "a"\nroot ::= _x',
    "a reference to nowhere": "root ::= x",
    "an open literal": 'root ::= "a',
    "an open set": "root ::= [a-",
    "an open group": 'root ::= ("a" | "b"',
    "a closed group": 'root ::= "a")',
    "an unknown escape": r'root ::= "\q"',
    "too few digits": r'root ::= "\x4"',
    "nothing to repeat": "root ::= *",
    "a repetition of nothing": 'root ::= ""*',
    "a repetition of no number": 'root ::= "a"{x}',
    "an open repetition": 'root ::= "a"{1,2',
    "more than fits": 'root ::= "a"{1000000}',
    "fewer than at least": 'root ::= "a"{2,1}',
    "a number beyond any": 'root ::= "a"{99999999999999999999999999}',
    "repetitions of repetitions": 'root ::= "a"{1000}{1000}',
    "groups of repetitions": 'root ::= ((("a"{0,100}){0,100}){0,100}){0,100}',
    "more memory than there is": 'root ::= "' + "a" * 100_000 + '"{0,2000}',
    "left recursion": 'root ::= root "a" | "b"',
    "left recursion by another": 'root ::= x\nx ::= y "c"\ny ::= x "b" | "a"',
    "left recursion where it is not reached": 'root ::= "a"\nx ::= x',
    "left recursion behind what may be empty": 'root ::= a root "x" | "y"\na ::= b\nb ::= "" | "z"',
    "deep groups": "root ::= " + "(" * 100_000,
    "deep groups that are closed": "root ::= " + "(" * 5000 + '"a"' + ")" * 5000,
    "a long row": "".join(f"r{i} ::= r{i + 1}\n" for i in range(20_000)) + 'r20000 ::= "a"\nroot ::= r0',
    "doubled": ROW + 'r60 ::= "a"\nroot ::= r0',
    "doubled, apart": ROW.replace(" |", ' "x" |') + 'r60 ::= "a"\nroot ::= r0',
    "doubled, behind a character": ROW.replace(" |", ' "x" |') + 'r60 ::= "a"\nroot ::= "b" r0',
    "another library's": '%llguidance {}\nstart: "a"',
    "two rules in a line": 'root ::= "a" x ::= "b"',
    "no token": "root ::= <[12",
    "a token that there is not": "root ::= <no such token at all>",
    "a token of two tokens": "root ::= !<once>",
    "a token without an end": "root ::= <tool_call",
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_one_is_refused_before_anything_runs(ctx: Context, name: str, capfd: pytest.CaptureFixture[str]) -> None:
    before = ctx.statistics()
    for start in (ctx.generate, ctx.generate_stream):
        with pytest.raises(InvalidParameter) as caught:
            start(PROMPT, 5, SamplerParams(grammar=BAD[name]))
        assert caught.value.parameter == "grammar"
        assert len(str(caught.value)) < 1000
    assert ctx.statistics() == before
    assert capfd.readouterr() == ("", ""), "llama.cpp's parser would print it"


@pytest.mark.parametrize("grammar", ["", "a\0b", 3, ["root"], "x" * 2**21, "\ud800"], ids=repr)
def test_what_is_no_text_is_refused_at_once(grammar: Any) -> None:
    with pytest.raises(InvalidParameter, match="grammar"):
        SamplerParams(grammar=grammar)


def test_a_token_that_there_is_not(ctx: Context) -> None:
    with pytest.raises(InvalidParameter, match="grammar"):
        say(ctx, "root ::= <no such token at all>")
    with pytest.raises(SamplingError):
        say(ctx, f"root ::= <[{ctx.model.n_vocab}]>")


def test_the_message_says_where(ctx: Context) -> None:
    with pytest.raises(InvalidParameter, match="line 3: "):
        say(ctx, 'root ::= "a"\n\nx ::= ]')
    with pytest.raises(InvalidParameter, match="'nowhere'"):
        say(ctx, "root ::= nowhere")


@pytest.mark.anyio
async def test_a_bad_one_is_refused_where_it_is_read(actx: AsyncContext) -> None:
    """For it is compiled in a worker."""
    async with actx.generate_stream(PROMPT, 5, SamplerParams(grammar='root ::= "a"{2,1}')) as stream:
        with pytest.raises(InvalidParameter):
            await stream.receive()
    with pytest.raises(InvalidParameter):
        await actx.generate_many(PROMPT, 3, 5, SamplerParams(grammar="root ::= x"))


def test_large_ones_that_are_good(ctx: Context) -> None:
    words = " | ".join(f'"w{i} "' for i in range(2000))
    text = say(ctx, f"root ::= word{{3}}\nword ::= {words}", 60).text
    assert re.fullmatch(r"(w[0-9]{1,4} ){3}", text)
    deep = "root ::= " + "(" * 150 + '"a"' + ")" * 150
    assert say(ctx, deep).text == "a"
    assert re.fullmatch("x{500,2000}", say(ctx, 'root ::= "x"{500,2000}', 900).text + "x" * 500)
