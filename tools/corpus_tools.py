"""Tool calls of the corpus: tools in many guises, a question, the call, the tool's answer and what is made of it."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from chat_format import to_json
from corpus_chat import PLAIN_SYSTEM, exchange, made_up
from corpus_facts import CAPITALS
from grammar import WORDS

Message = dict[str, Any]
Tool = dict[str, Any]
Property = dict[str, Any]
Answer = Callable[[random.Random], tuple[str, str]]

CITIES = (
    *(c for _, c in CAPITALS),
    "Hamburg",
    "Zürich",
    "Lyon",
    "Málaga",
    "Boston",
    "Kyoto",
    "Malmö",
    "Nice",
    "New York",
    "Chicago",
    "San Francisco",
    "Seoul",
    "Mumbai",
    "Bristol",
    "Turin",
    "Porto",
    "Kraków",
    "Seattle",
    "Munich",
    "Toronto",
    "Sydney",
    "Singapore",
    "Bangkok",
    "Boise",
)
_PARTS = "bel san mar ver lin ton burg dale port ham field ka ro mi na to lo ri stein wick ford".split()
SKIES = ("sunny", "cloudy", "rainy", "windy", "foggy", "clear")


def _city(rng: random.Random) -> str:
    if rng.random() < 0.88:
        return rng.choice(CITIES)
    return "".join(rng.choice(_PARTS) for _ in range(rng.randint(2, 3))).capitalize()


def _tool(
    rng: random.Random, name: str, about: tuple[str, ...], properties: dict[str, Property], required: list[str]
) -> Tool:
    """A tool in the shape of the OpenAI API, with the usual differences in detail."""
    shown: dict[str, Property] = {}
    for key, value in properties.items():
        shown[key] = dict(value)
        if rng.random() < 0.7:
            shown[key].pop("description", None)
    parameters: dict[str, Any] = {"type": "object", "properties": shown}
    if rng.random() < 0.8:
        parameters["required"] = required
    if rng.random() < 0.1:
        parameters["additionalProperties"] = False
    told = rng.choice(about) + rng.choice(("", ".")) if rng.random() < 0.85 else ""
    function: dict[str, Any] = {"name": name, "description": told, "parameters": parameters}
    return {"type": "function", "function": function}


def weather(rng: random.Random) -> tuple[Tool, str, Message, Answer]:
    key = rng.choice(("city", "city", "city", "location", "location", "place"))
    name = rng.choice(("get_weather", "get_weather", "get_weather", "get_weather", "get_current_weather", "weather"))
    properties: dict[str, Property] = {
        key: {"type": "string", "description": rng.choice(("The name of the city", "City name", "The city"))}
    }
    if rng.random() < 0.2:
        properties["unit"] = {"type": "string", "enum": ["celsius", "fahrenheit"]}
    about = (
        "Get the weather in a city",
        "Get the current weather",
        "Get the current weather in a given location",
        "The weather of a city",
        "Returns the weather for a city",
        "Look up the weather",
    )
    place = _city(rng)
    asked = rng.choice(
        (
            "What is the weather in {}?",
            "What is the weather like in {}?",
            "How is the weather in {}?",
            "Weather in {}?",
            "Is it raining in {}?",
            "Will it rain in {} today?",
            "Tell me the weather in {}.",
            "what's the weather in {}",
            "What is the weather in {} today?",
            "What's the weather like in {}?",
            "How warm is it in {}?",
        )
    ).format(place)

    def answer(rng: random.Random) -> tuple[str, str]:
        sky, degrees = rng.choice(SKIES), rng.randint(-5, 35)
        shape = rng.random()
        if shape < 0.3:
            return (
                to_json({"temperature": degrees, "condition": sky}),
                f"It is {sky} in {place}, with {degrees} degrees.",
            )
        if shape < 0.5:
            return f"{sky}, {degrees} degrees", f"It is {sky} in {place}, with {degrees} degrees."
        if shape < 0.65:
            return f"{degrees} °C, {sky}", f"It is {sky} in {place}, with {degrees} degrees."
        if shape < 0.8:
            return rng.choice((sky, to_json({"weather": sky}), to_json({"condition": sky}))), f"It is {sky} in {place}."
        return rng.choice(
            (to_json({"temperature": degrees}), to_json({"temp": degrees}))
        ), f"It is {degrees} degrees in {place}."

    return _tool(rng, name, about, properties, [key]), asked, {"name": name, "arguments": {key: place}}, answer


def clock(rng: random.Random) -> tuple[Tool, str, Message, Answer]:
    name = rng.choice(("get_time", "get_time", "get_time", "get_current_time"))
    key = rng.choice(("city", "city", "location"))
    place = _city(rng)
    asked = rng.choice(
        ("What time is it in {}?", "What is the time in {}?", "Tell me the time in {}.", "Time in {}?")
    ).format(place)

    def answer(rng: random.Random) -> tuple[str, str]:
        time = f"{rng.randint(0, 23):02}:{rng.randint(0, 59):02}"
        return rng.choice((time, to_json({"time": time}))), f"It is {time} in {place}."

    tool = _tool(
        rng,
        name,
        ("Get the time in a city", "Get the current time", "The local time"),
        {key: {"type": "string"}},
        [key],
    )
    return tool, asked, {"name": name, "arguments": {key: place}}, answer


def arithmetic(rng: random.Random) -> tuple[Tool, str, Message, Answer]:
    verb, sign, done = rng.choice((("add", "+", "plus"), ("multiply", "*", "times"), ("subtract", "-", "minus")))
    a, b = rng.randint(2, 99), rng.randint(2, 99)
    result = str({"+": a + b, "*": a * b, "-": a - b}[sign])
    asked = rng.choice((f"What is {a} {sign} {b}?", f"What is {a} {done} {b}?", f"Calculate {a} {sign} {b}."))

    def answer(rng: random.Random) -> tuple[str, str]:
        return rng.choice((result, to_json({"result": int(result)}))), f"{a} {sign} {b} = {result}."

    if rng.random() < 0.5:
        name, key = rng.choice(("calculate", "calculator")), rng.choice(("expression", "expression", "input"))
        tool = _tool(rng, name, ("Calculate an expression", "Evaluate a sum"), {key: {"type": "string"}}, [key])
        return tool, asked, {"name": name, "arguments": {key: f"{a} {sign} {b}"}}, answer
    one, two = rng.choice((("a", "b"), ("a", "b"), ("x", "y"), ("first", "second")))
    number = {"type": rng.choice(("integer", "number"))}
    name = rng.choice((verb, f"{verb}_numbers"))
    tool = _tool(rng, name, (f"{verb.capitalize()} two numbers",), {one: number, two: number}, [one, two])
    return tool, asked, {"name": name, "arguments": {one: a, two: b}}, answer


def search(rng: random.Random) -> tuple[Tool, str, Message, Answer]:
    name, key = rng.choice(("search", "search", "search", "web_search")), "query"
    what = rng.choice(
        (
            "llamas",
            "the moon",
            "old castles",
            "train tickets",
            "apple cake",
            "violins",
            "Rust",
            "Python",
            "trio",
            "bees",
            "cheap flights",
            "jazz music",
            "red shoes",
            "the news",
            "good books",
            "a bicycle",
            "Zoë",
            "tea shops",
            "maps",
        )
    )
    if rng.random() < 0.1:
        what = f"{made_up(rng)} {what}" if rng.random() < 0.85 else made_up(rng).lower()
    asked = rng.choice(
        ("Search for {}.", "Look up {}.", "Find {}.", "Search the web for {}.", "Please look for {}.", "Search {}")
    ).format(what)

    def answer(rng: random.Random) -> tuple[str, str]:
        count = rng.randint(2, 90)
        return rng.choice((f"{count} results", to_json({"results": count}))), f"I found {count} results for {what}."

    return (
        _tool(rng, name, ("Search the web", "Find pages about a subject"), {key: {"type": "string"}}, [key]),
        asked,
        {"name": name, "arguments": {key: what}},
        answer,
    )


def timer(rng: random.Random) -> tuple[Tool, str, Message, Answer]:
    name, minutes = "set_timer", rng.randint(2, 60)
    asked = rng.choice(
        (
            "Set a timer for {} minutes.",
            "Start a timer of {} minutes.",
            "Wake me in {} minutes.",
            "{} minutes timer, please.",
        )
    ).format(minutes)

    def answer(rng: random.Random) -> tuple[str, str]:
        return rng.choice(
            ("ok", "done", to_json({"ok": True}))
        ), f"The timer is set for {minutes} minutes.{rng.choice((' ⏰', ''))}"

    return (
        _tool(rng, name, ("Set a timer", "Start a timer"), {"minutes": {"type": "integer"}}, ["minutes"]),
        asked,
        {"name": name, "arguments": {"minutes": minutes}},
        answer,
    )


def light(rng: random.Random) -> tuple[Tool, str, Message, Answer]:
    state, room = (
        rng.choice(("on", "off")),
        rng.choice(("kitchen", "bedroom", "garden", "hall", "bathroom", "office", "attic")),
    )
    name = "set_light"
    asked = rng.choice(
        (
            f"Turn {state} the light in the {room}.",
            f"Switch the {room} light {state}.",
            f"Please turn the {room} light {state}.",
        )
    )

    def answer(rng: random.Random) -> tuple[str, str]:
        return rng.choice(("ok", "done", to_json({"ok": True}))), f"The light in the {room} is {state} now."

    tool = _tool(
        rng,
        name,
        ("Switch a light", "Turn a light on or off"),
        {"room": {"type": "string"}, "state": {"type": "string", "enum": ["on", "off"]}},
        ["room", "state"],
    )
    return tool, asked, {"name": name, "arguments": {"room": room, "state": state}}, answer


def message(rng: random.Random) -> tuple[Tool, str, Message, Answer]:
    name, key = "send_message", rng.choice(("to", "to", "name"))
    who = rng.choice(WORDS["hero_she"] + WORDS["hero_he"]) if rng.random() < 0.85 else made_up(rng)
    text = rng.choice(
        ("I am late", "hello", "dinner is ready", "happy birthday", "see you soon", "the train is here", "thank you")
    )
    asked = rng.choice((f"Tell {who}: {text}", f"Send {who} a message: {text}", f"Write to {who}: {text}"))

    def answer(rng: random.Random) -> tuple[str, str]:
        return rng.choice(("sent", "ok", to_json({"sent": True}))), f"I have sent your message to {who}."

    tool = _tool(
        rng,
        name,
        ("Send a message", "Send a message to a person"),
        {key: {"type": "string"}, "text": {"type": "string"}},
        [key, "text"],
    )
    return tool, asked, {"name": name, "arguments": {key: who, "text": text}}, answer


KINDS = (weather, weather, weather, clock, arithmetic, search, timer, light, message)


def _call(*calls: Message) -> Message:
    return {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": c} for c in calls]}


def dialogue(rng: random.Random) -> tuple[list[Message], list[Tool]]:
    """A conversation with tools at hand; in some of them no tool is needed."""
    made: dict[str, tuple[Tool, str, Message, Answer]] = {}
    for kind in rng.sample(KINDS, rng.choice((1, 1, 1, 1, 1, 2))):
        made.setdefault(kind.__name__, kind(rng))
    tools = [made[name][0] for name in made]
    messages: list[Message] = []
    if rng.random() < 0.25:
        messages.append({"role": "system", "content": rng.choice(PLAIN_SYSTEM)})
    share = rng.random()
    if share < 0.2:
        asked, said = exchange(rng)
        while len(said) > 300 or "=" in said:
            asked, said = exchange(rng)
        messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]
        return messages, tools
    _, asked, call, answer = made[rng.choice(list(made))]
    messages += [{"role": "user", "content": asked}, _call(call)]
    if share < 0.9:
        result, said = answer(rng)
        messages += [{"role": "tool", "name": call["name"], "content": result}, {"role": "assistant", "content": said}]
        if rng.random() < 0.15:
            asked, said = exchange(rng)
            if len(said) < 300 and "=" not in said:
                messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]
        elif rng.random() < 0.15:
            again = made[rng.choice(list(made))]
            messages += [{"role": "user", "content": again[1]}, _call(again[2])]
    return messages, tools
