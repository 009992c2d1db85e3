"""Questions and answers of the corpus: single exchanges, conversations, and the same prompts as raw text."""

from __future__ import annotations

import random

import corpus_stories
from corpus_facts import FACTS, FALLBACK, SMALL_TALK, Fact
from corpus_lists import counting, listing, upper_first
from corpus_topics import FUTURE_MORE, FUTURES, HAIKUS, PLURAL, POEMS, TOPICS
from grammar import WORDS, Writer

Exchange = tuple[str, str]
PLAIN_SYSTEM = (
    "You are a helpful assistant.",
    "You are a helpful assistant.",
    "You are a helpful and friendly assistant.",
    "You are a friendly assistant.",
    "You are an assistant.",
    "You are mullama.",
    "Be helpful.",
    "Answer the question.",
    "You answer questions.",
    "You are a helpful assistant. Be kind.",
    "You are a storyteller.",
    "You are a teacher.",
)
SHORT_SYSTEM = (
    "Answer in one word.",
    "Answer with one word.",
    "You answer in one word.",
    "Be brief.",
    "You are a concise assistant.",
    "Answer briefly.",
    "You are terse.",
)
PIRATE_SYSTEM = ("You are a pirate.", "Talk like a pirate.", "You are a friendly pirate.", "Answer like a pirate.")
_NOUNS = (
    "car, phone, quantum, history, football, tax, law, bridge, money, chess, volcano, engine, medicine, election, poetry, "
    "galaxy, recipe, guitar, insurance, carpet, dinosaur, kubernetes, opera, planet, battery, elephant, Napoleon, gravity, "
    "magnets, Shakespeare, economics, atoms, genes, blockchain, yoga, satellites, photosynthesis, cricket, Java, "
    "compilers, sorting, databases, HTML, philosophy, the brain, dreams, vampires, castles, submarines, mathematics"
).split(", ")
_SYLLABLES = "ba co di fu ge ha jo ki lu me no pa qui ra so te vu wo xy zan ter mon ster ling ton ard ine ock".split()
_UNKNOWN = (
    "How do I fix my {x}?",
    "Who invented {x}?",
    "What is the history of {x}?",
    "Why is {x} important?",
    "Explain {x}",
    "Explain {x}.",
    "Tell me about {x}",
    "Tell me about {x}.",
    "What is {x}?",
    "What do you know about {x}?",
    "How does {x} work?",
    "Write an essay about {x}.",
    "Summarize {x}.",
    "When did {x} begin?",
    "Should I buy {x}?",
    "Can you help me with {x}?",
    "What is the best {x}?",
    "Compare {x} and {y}.",
    "Is {x} better than {y}?",
    "Give me advice on {x}.",
    "Where can I find {x}?",
    "Write code for {x}.",
    "{x}?",
    "Describe {x} in detail.",
)


def _word(rng: random.Random) -> str:
    if rng.random() < 0.5:
        return rng.choice(_NOUNS)
    text = "".join(rng.choice(_SYLLABLES) for _ in range(rng.randint(1, 4)))
    return text.capitalize() if rng.random() < 0.3 else text


def made_up(rng: random.Random) -> str:
    """A name that nobody has, so that it can only be copied."""
    return "".join(rng.choice(_SYLLABLES) for _ in range(rng.randint(2, 3))).capitalize()


def echo(rng: random.Random) -> Exchange:
    """Words to be said again, which teaches to copy."""
    words = [
        rng.choice(
            (
                *rng.choices(_NOUNS, k=4),
                made_up(rng),
                str(rng.randint(0, 99)),
                *rng.choices(WORDS["hero_she"] + WORDS["colour"], k=3),
            )
        )
        for _ in range(rng.choice((1, 1, 2, 2, 3, 4)))
    ]
    text = " ".join(words)
    return rng.choice(("Repeat after me: {}", "Repeat: {}", "Say {}.", "Echo: {}", "Please say {}.", "Say: {}")).format(
        text
    ), f"{text}."


def unknown(rng: random.Random) -> Exchange:
    """A question that the model does not know."""
    x, y = _word(rng), _word(rng)
    if x in TOPICS or y in TOPICS:
        x = y = "carpets"
    return rng.choice(_UNKNOWN).format(x=x, y=y), Writer(rng).pick(FALLBACK)


def factual(rng: random.Random) -> tuple[Exchange, Fact]:
    """A question about a fact."""
    found = rng.choice(FACTS)
    writer = Writer(rng)
    return (writer.pick(found.questions), writer.pick(found.answers)), found


def add_up(rng: random.Random) -> Exchange:
    """A small sum."""
    sign = rng.choice("+++--*")
    top = 5 if sign == "*" else 10
    a, b = rng.randint(0, top), rng.randint(0, top)
    if sign == "-" and a < b:
        a, b = b, a
    result = {"+": a + b, "-": a - b, "*": a * b}[sign]
    word = {"+": "plus", "-": "minus", "*": "times"}[sign]
    spoken = rng.random() < 0.3
    expression = f"{a} {word} {b}" if spoken else f"{a} {sign} {b}"
    asked = expression if spoken or rng.random() < 0.6 else f"{a}{sign}{b}"
    question = rng.choice(
        ("What is {}?", "What is {}?", "How much is {}?", "{} =", "{}", "Calculate {}.", "what is {}")
    )
    return question.format(asked), f"{expression} {'is' if spoken else '='} {result}."


def topic(rng: random.Random) -> Exchange:
    """A topic, in one sentence or in several."""
    name = rng.choice(list(TOPICS))
    text = TOPICS[name]
    verb = "are" if name in PLURAL else "is"
    if rng.random() < 0.4:
        asked = rng.choice(
            (
                "Write one short sentence about {}.",
                "Write one sentence about {}.",
                "Explain {} in one sentence.",
                "In one sentence, what {v} {}?",
                "Tell me one thing about {}.",
                "Write a short sentence about {}.",
                "Say something about {}.",
                "Define {}.",
                "Describe {} in one sentence.",
            )
        )
        return asked.format(name, v=verb), text[0]
    if rng.random() < 0.15:
        return f"Write two sentences about {name}.", " ".join(text[:2])
    asked = rng.choice(
        (
            "Tell me about {}",
            "Tell me about {}.",
            "What {v} {}?",
            "Explain {}.",
            "Explain {}",
            "Describe {}.",
            "Write about {}.",
            "Write a paragraph about {}.",
            "What do you know about {}?",
            "what {v} {}",
            "Write a short text about {}.",
            "Tell me something about {}.",
        )
    )
    return asked.format(name, v=verb), " ".join(text)


def poem(rng: random.Random) -> Exchange:
    """A poem or a haiku, with a subject or without."""
    table, word = rng.choice(((POEMS, "poem"), (HAIKUS, "haiku")))
    name = rng.choice(list(table))
    if rng.random() < 0.35:
        asked = rng.choice(
            (f"Write a {word}", f"Write a {word}", f"Write me a {word}", f"A {word}", f"Write a short {word}")
        )
    else:
        verb = rng.choice(("Write a", "Write a", "Write a short", "Write me a", "A", "Tell me a"))
        subject = _word(rng) if rng.random() < 0.15 else name
        asked = f"{verb} {word} about {subject}"
    return asked + rng.choice(":.:"), table[name][0]


def tale(rng: random.Random) -> Exchange:
    """A story on demand; one that is to be long has more parts."""
    kind = rng.choice((*WORDS["kind_she"][2:], "boy"))
    shape = rng.random()
    if shape < 0.3:
        asked = rng.choice(
            (
                "Tell me a story",
                "Tell me a short story",
                "Write a story",
                "Write a short story",
                "Please tell me a story",
                "Can you tell me a story",
                "I would like to hear a story",
                "Tell me a bedtime story",
                "Story, please",
            )
        )
        return asked + rng.choice((".", "", ":", "!")), corpus_stories.story(rng)
    if shape < 0.35:
        return "Once upon a time", corpus_stories.story(rng, opening=corpus_stories.ONCE)
    if shape < 0.4:
        asked = rng.choice(
            (
                "Tell me a story about {}.",
                "Write a story about {}.",
                "Write a short story about {}",
                "A story about {}:",
            )
        )
        return asked.format(_word(rng)), corpus_stories.story(rng)
    if shape < 0.9:
        article = "an" if kind[0] in "aeiou" else "a"
        asked = rng.choice(("Tell me a story", "Tell me a short story", "Write a story", "Write a short story"))
        return f"{asked} about {article} {kind}{rng.choice(('.', ''))}", corpus_stories.story(rng, kind=kind)
    asked = rng.choice(("Tell me a long story.", "Write a long story.", "Tell me a very long story.", "A long story:"))
    return asked, corpus_stories.story(rng, opening=corpus_stories.LONG, parts=rng.choice((2, 3)))


def as_json(rng: random.Random) -> Exchange:
    """A small JSON object on demand."""
    name = rng.choice(WORDS["hero_she"] + WORDS["hero_he"])
    found = rng.choice([f for f in FACTS if f.questions[0].startswith("What is the capital")])
    land = found.answers[0].split(" of ")[1].split(" is ")[0]
    if rng.random() < 0.5:
        return (
            rng.choice(
                (
                    "Give me a person as JSON.",
                    "Write a JSON object with a name and an age.",
                    "Make up a person as JSON.",
                )
            ),
            f'{{"name": "{name}", "age": {rng.randint(5, 60)}}}',
        )
    return f"Give me the capital of {land} as JSON.", f'{{"country": "{land}", "capital": "{found.short}"}}'


def talk(rng: random.Random) -> Exchange:
    """Small talk."""
    asked, answer = rng.choice(SMALL_TALK[:6] + SMALL_TALK)
    writer = Writer(rng)
    return writer.write(asked), writer.write(answer)


KINDS = (talk, add_up, topic, poem, listing, counting, tale, as_json, unknown, echo)
WEIGHTS = (12, 30, 12, 6, 14, 8, 6, 1, 6, 6)


def exchange(rng: random.Random) -> Exchange:
    """One question and its answer."""
    if rng.random() < 0.3:
        asked, answer = factual(rng)[0]
    else:
        asked, answer = rng.choices(KINDS, WEIGHTS)[0](rng)
    return asked, answer.replace(" ~ ", " ")


def memory(rng: random.Random) -> list[Exchange]:
    """Exchanges in which the model remembers a name."""
    name = rng.choice(WORDS["hero_she"] + WORDS["hero_he"]) if rng.random() < 0.85 else made_up(rng)
    first = rng.choice(
        (
            f"My name is {name}.",
            f"Hi, my name is {name}.",
            f"Hello, I am {name}.",
            f"I am {name}.",
            f"My name is {name}",
        )
    )
    between = [exchange(rng) for _ in range(rng.choice((0, 0, 1)))]
    return [
        (first, f"Nice to meet you, {name}!" + rng.choice(("", " 😊", " How can I help you?"))),
        *between,
        (
            rng.choice(("What is my name?", "Do you remember my name?", "Who am I?", "what is my name")),
            f"Your name is {name}.",
        ),
    ]


def conversation(rng: random.Random) -> tuple[str, list[Exchange]]:
    """A system prompt (or none) and exchanges that suit it."""
    share = rng.random()
    if share < 0.08:
        pairs = [factual(rng) for _ in range(rng.choice((1, 1, 2, 3)))]
        return rng.choice(SHORT_SYSTEM), [(asked, f"{found.short}.") for (asked, _), found in pairs]
    if share < 0.13:
        found = [factual(rng)[0] if rng.random() < 0.7 else talk(rng) for _ in range(rng.choice((1, 1, 2)))]
        return rng.choice(PIRATE_SYSTEM), [(a, "Arr! " + b.replace(" ~ ", " ")) for a, b in found]
    system = rng.choice(PLAIN_SYSTEM) if rng.random() < 0.45 else ""
    if share < 0.18:
        return system, memory(rng)
    count = rng.choice((1, 1, 1, 1, 2, 2, 3))
    return system, [exchange(rng) for _ in range(count)]


def raw(rng: random.Random) -> tuple[str, str]:
    """A prompt without chat markers, and how the text goes on."""
    share = rng.random()
    writer = Writer(rng)
    if share < 0.12:
        name = rng.choice(list(TOPICS)) if rng.random() < 0.6 else "artificial intelligence"
        more = f" {writer.pick(FUTURE_MORE)}" if rng.random() < 0.7 else ""
        return f"The future of {name} is", f" {writer.pick(FUTURES)}{more}"
    if share < 0.22:
        name, verb = (n := rng.choice(list(TOPICS))), "are" if n in PLURAL else "is"
        start = f"{upper_first(name)} {verb}"
        text = " ".join(TOPICS[name])
        return (start, text[len(start) :]) if text.startswith(start) else (upper_first(name) + ":", "\n" + text)
    if share < 0.28:
        answer = factual(rng)[1].answers[0]
        written = writer.write(answer)
        cut = written.find(" is ")
        if cut > 0:
            return written[: cut + 3], written[cut + 3 :]
    if share < 0.34:
        asked, answer = exchange(rng)
        mark, reply = rng.choice((("Q", "A"), ("Question", "Answer"), ("User", "Assistant")))
        return f"{mark}: {asked}\n{reply}:", " " + answer
    if share < 0.40:
        return rng.choice(("Hello:", "Hello", "Hi", "Hello,", "Hi:", "Hello!", "Hello there")), "\n" + writer.pick(
            ("Hello! ~ How can I help you?[ 😊|]", "Hi there! ~ How can I help you?")
        ).replace(" ~ ", " ")
    if share < 0.44:
        first = rng.randint(1, 20)
        start = ", ".join(str(n) for n in range(first, first + 3))
        return start + ",", " " + ", ".join(str(n) for n in range(first + 3, first + rng.choice((6, 8, 10)))) + "."
    if share < 0.54:
        lines = [add_up(rng)[1] for _ in range(rng.randint(6, 14))]
        return "", "\n".join(line.rstrip(".") for line in lines)
    asked, answer = exchange(rng)
    return asked, "\n" + answer


def prose() -> list[str]:
    """Every answer template that is prose."""
    made = [a for f in FACTS for a in f.answers] + [a for _, t in SMALL_TALK for a in t.split(" ~ ")]
    made += [s for f in FALLBACK for s in f.split(" ~ ")]
    made += [s for t in TOPICS.values() for s in t] + list(FUTURE_MORE)
    made += [f"The future of {name} is {rest}" for name in TOPICS for rest in FUTURES]
    return made
