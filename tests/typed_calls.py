"""Calls that type checkers must reject, and others that they must accept; only checked by `make types`, never run."""

from __future__ import annotations

from mullama import AsyncModel, Context, Model, SamplerParams, StreamControl, TokenData


def refused(model: Model, context: Context) -> None:
    Model("model.gguf")  # type: ignore[call-arg]
    AsyncModel("model.gguf")  # type: ignore[arg-type]
    Context(model, n_contxt=3)  # type: ignore[call-arg]
    Context(model, n_ctx="3")  # type: ignore[arg-type]
    context.generate()  # type: ignore[call-arg]
    context.generate("x", temprature=0.3)  # type: ignore[call-arg]
    context.generate("x", seed="a")  # type: ignore[arg-type]
    context.chat([], tols=[])  # type: ignore[call-arg]


async def taken(model: Model) -> None:
    def watch(token: TokenData) -> StreamControl:
        return StreamControl.STOP

    context = Context(model, n_ctx=512)
    context.generate(prompt="x", max_tokens=3, temperature=0.3, stop="\n")
    context.generate_many("x", n=3, params=SamplerParams(), seed=None)
    context.generate_streaming("x", watch)
    context.generate_streaming("x", 5, watch, top_logprobs=1)
    async with await AsyncModel.load("model.gguf", n_ctx=512) as loaded:
        await loaded.chat([], temperature=0, tools=[], thinking=False)
        upper: list[str] = await loaded.generate_stream("x").map(str.upper).collect()
        print(upper)
