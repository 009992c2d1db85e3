"""Measures the default model with llama.cpp: accepted sentences, stories that end, right answers, tool calls."""

from __future__ import annotations

import argparse
import json
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import xllamacpp

import corpus_stories
import corpus_tools
from chat_format import Message, Tool, render
from corpus import accepts, sentences
from corpus_chat import add_up, exchange, raw
from corpus_facts import FACTS, SMALL_TALK
from grammar import Writer

ROOT = Path(__file__).resolve().parent.parent
HELD_OUT = "measured"  # the seeds of the corpus start with a number, so these questions are drawn independently of it
USUAL = {"temperature": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.0}
GREEDY = {"temperature": 0.0}


class Subject:
    """The model under llama.cpp's own server code."""

    def __init__(self, path: Path, threads: int) -> None:
        params = xllamacpp.CommonParams()
        params.model.path = str(path)
        params.n_ctx, params.n_parallel, params.verbosity = 2048, 1, 0
        params.cpuparams.n_threads = threads
        self.server = xllamacpp.Server(params)

    def complete(self, prompt: str, how: dict[str, float], limit: int = 700) -> dict[str, Any]:
        """One completion: the server's record of it."""
        said: list[Any] = []
        self.server.handle_completions(json.dumps({"prompt": prompt, "max_tokens": limit, **how}), said.append)
        found: dict[str, Any] = json.loads(said[-1]) if isinstance(said[-1], (str, bytes)) else said[-1]
        return found

    def write(self, prompt: str, how: dict[str, float]) -> tuple[str, bool, int]:
        """Text, whether it ended by itself, and its number of tokens."""
        record = self.complete(prompt, how)
        choice = record["choices"][0]
        return choice["text"], choice["finish_reason"] == "stop", record["usage"]["completion_tokens"]

    def say(self, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> str:
        """The greedy answer in chat."""
        prompt = "".join(text for text, _ in render(messages, tools)) + "<|im_start|>assistant\n"
        return self.write(prompt, GREEDY)[0]


def stories(subject: Subject, prompts: Sequence[str], how: dict[str, float]) -> dict[str, float]:
    """Fractions of accepted sentences and of stories that end by themselves, and how many stories differ."""
    good = told = ended = 0
    lengths: list[int] = []
    texts: Counter[str] = Counter()
    for seed, prompt in enumerate(prompts):
        text, own, tokens = subject.write(prompt, {**how, "seed": seed + 1})
        found = sentences(prompt + text)
        told, good, ended = told + len(found), good + sum(map(accepts, found)), ended + own
        lengths.append(tokens)
        texts[prompt + text] += 1
    lengths.sort()
    return {
        "stories": len(prompts), "sentences": told, "accepted": round(good / told, 4),
        "ended": round(ended / len(prompts), 4), "different": len(texts),
        "tokens_min": lengths[0], "tokens_median": lengths[len(lengths) // 2], "tokens_max": lengths[-1],
    }  # fmt: skip


def share(found: Sequence[bool]) -> float:
    """The fraction of true values."""
    return round(sum(found) / len(found), 4)


def answers(subject: Subject) -> dict[str, float]:
    """Fractions of right answers, sampled greedily: all facts, and sums."""
    facts = []
    for fact in FACTS:
        asked = Writer(random.Random(HELD_OUT)).write(fact.questions[0])
        facts.append(subject.say([{"role": "user", "content": asked}]) in fact.answers)
    sums = []
    for number in range(150):
        asked, answer = add_up(random.Random(f"{HELD_OUT}/{number}"))
        sums.append(subject.say([{"role": "user", "content": asked}]) == answer)
    return {"facts": len(facts), "facts_right": share(facts), "sums_right": share(sums)}


def calls(subject: Subject, count: int) -> dict[str, float]:
    """Fractions of turns in tool dialogues in which the model's output exactly matches the corpus."""
    right: dict[str, list[bool]] = {"call": [], "answer": [], "no_call": []}
    for number in range(count):
        messages, tools = corpus_tools.dialogue(random.Random(f"{HELD_OUT}/{number}"))
        for at, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            said = subject.say(messages[:at], tools)
            wanted = render([message])[1][0].removesuffix("<|im_end|>")
            if message.get("tool_calls"):
                right["call"].append(said == wanted)
            elif messages[at - 1]["role"] == "tool":
                right["answer"].append(said == wanted)
            else:
                right["no_call"].append("<tool_call>" not in said)
    return {f"tools_{name}_right": share(found) for name, found in right.items()}


def samples(subject: Subject) -> None:
    """Print a few texts for a person to read."""
    for how in (GREEDY, USUAL | {"seed": 1}, USUAL | {"seed": 2}):
        print("Once upon a time" + subject.write("Once upon a time", how)[0], end="\n---\n")
    for number in range(12):
        asked, _ = (exchange, raw)[number % 2](random.Random(f"{HELD_OUT}/{number}"))
        said = subject.say([{"role": "user", "content": asked}]) if number % 2 == 0 else subject.write(asked, GREEDY)[0]
        print(f"{asked!r} -> {said!r}")
    for asked, _ in SMALL_TALK:
        question = Writer(random.Random(HELD_OUT)).write(asked)
        print(f"{question!r} -> {subject.say([{'role': 'user', 'content': question}])!r}")


def main() -> None:
    """Print the figures as JSON, and texts if requested."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=ROOT / "mullama" / "models" / "default.gguf")
    parser.add_argument("--stories", type=int, default=200)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--samples", action="store_true", help="print texts too")
    args = parser.parse_args()
    subject = Subject(args.model, args.threads)
    if args.samples:
        samples(subject)
    openings = [
        " ".join(corpus_stories.story(random.Random(f"{HELD_OUT}/{number}")).split()[:8])
        for number in range(args.stories)
    ]
    figures: dict[str, Any] = {
        "greedy_once": stories(subject, ["Once upon a time"], GREEDY),
        "greedy_openings": stories(subject, openings, GREEDY),
        "sampled": stories(subject, ["Once upon a time"] * args.stories, USUAL),
        **answers(subject),
        **calls(subject, args.stories),
    }
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
