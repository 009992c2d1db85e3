"""Lists and counting in the corpus: what is asked, and the lines or numbers that answer it."""

from __future__ import annotations

import random

from corpus_topics import LISTS

Exchange = tuple[str, str]
NUMBERS = "zero one two three four five six seven eight nine ten eleven twelve".split()


def listing(rng: random.Random) -> Exchange:
    """A list of things, one per line, numbered or in a sentence."""
    name = rng.choice(list(LISTS))
    items, count = LISTS[name], min(rng.choice((3, 3, 5, 5, 10, 10)), len(LISTS[name]))
    number = rng.choice((str(count), NUMBERS[count]))
    spelled = name.replace("color", "colour") if rng.random() < 0.3 else name
    shape = rng.random()
    if shape < 0.4:
        return f"List {number} {spelled}, one per line" + rng.choice((":", ".")), "\n".join(items[:count])
    if shape < 0.55:
        asked = rng.choice(
            ("Generate a list", "Write a list", "Make a list", f"List of {spelled}", f"Generate a list of {spelled}")
        )
        count = 5
        items = items if "of" in asked else LISTS["things"]
        return asked + rng.choice((":", ".")), "\n".join(f"{n}. {item}" for n, item in enumerate(items[:count], 1))
    if shape < 0.7:
        return f"List {number} {spelled}" + rng.choice((":", ".")), "\n".join(
            f"{n}. {i}" for n, i in enumerate(items[:count], 1)
        )
    if shape < 0.85:
        count = min(count, 6)
        asked = f"{rng.choice(('Name', 'Tell me', 'Give me'))} {rng.choice((str(count), NUMBERS[count]))} {spelled}."
        named = items[:count]
        return asked, upper_first(", ".join(named[:-1])) + f" and {named[-1]}."
    return rng.choice(("Name a {}.", "Give me a {}.", "Pick a {}.")).format("color" if name != "fruits" else "fruit"), (
        "Blue." if name != "fruits" else "Apple."
    )


def upper_first(text: str) -> str:
    """The text with a capital first letter."""
    return text[:1].upper() + text[1:]


def counting(rng: random.Random) -> Exchange:
    """Counting up or down."""
    shape = rng.random()
    if shape < 0.35:
        first, last = 1, 10
        asked = rng.choice(
            (
                "Count:",
                "Count.",
                "Count to ten.",
                "Count to 10.",
                "Count to ten:",
                "Count from 1 to 10.",
                "Count to 10:",
            )
        )
    elif shape < 0.85:
        first, last = 1, rng.choice((3, 4, 5, 5, 6, 7, 8, 12, 15, 20, 20, 20, 30, 50, 100))
        asked = rng.choice(
            (f"Count to {last}.", f"Count from 1 to {last}.", f"Count to {last}:", f"Count up to {last}.")
        )
    elif shape < 0.95:
        first = rng.randint(2, 30)
        last = first + rng.randint(2, 12)
        asked = f"Count from {first} to {last}."
    else:
        top = rng.choice((3, 5, 10, 10, 20))
        return f"Count down from {top}.", ", ".join(str(n) for n in range(top, 0, -1)) + "."
    return asked, ", ".join(str(n) for n in range(first, last + 1)) + "."
