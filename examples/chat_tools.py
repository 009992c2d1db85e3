"""A chat that streams and calls functions: tool calls arrive in fragments, are run here, and their results go back.

python examples/chat_tools.py [MODEL]
"""

from __future__ import annotations

import functools
import json
import sys
from typing import Any

import anyio

from mullama import AsyncModel, ChatCompletion, SamplerParams

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather in a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


def get_weather(city: str) -> dict[str, Any]:
    return {"temperature": len(city) + 12, "condition": "sunny"}


FUNCTIONS = {"get_weather": get_weather}


async def answer(model: AsyncModel, messages: list[Any]) -> ChatCompletion:
    """Shows one answer of the model as it comes."""
    async with model.chat_stream(messages, 200, SamplerParams.greedy(), tools=[WEATHER]) as stream:
        async for delta in stream:
            print(delta.reasoning_content + delta.content, end="", flush=True)
            for piece in delta.tool_calls:
                print(f"{piece.name}: " if piece.name else "", piece.arguments, sep="", end="", flush=True)
    print()
    return stream.chat_completion()


def call(name: str, arguments: str) -> str:
    try:
        return json.dumps(FUNCTIONS[name](**json.loads(arguments)))
    except (KeyError, TypeError, ValueError) as error:
        return json.dumps({"error": str(error)})  # the model may do better


async def main(path: str | None = None) -> None:
    async with await AsyncModel.load(path) as model:
        for question in ("Hello!", "What is the weather in Paris?"):
            print(">", question)
            messages: list[Any] = [{"role": "user", "content": question}]
            for _ in range(4):  # rounds, at most
                completion = await answer(model, messages)
                messages.append(completion.message)
                if completion.finish_reason != "tool_calls":
                    break
                for wanted in completion.message.tool_calls:
                    result = call(wanted.name, wanted.arguments)
                    messages.append({"role": "tool", "tool_call_id": wanted.id, "content": result})


if __name__ == "__main__":
    for backend in ("asyncio", "trio"):
        anyio.run(functools.partial(main, *sys.argv[1:2]), backend=backend)
