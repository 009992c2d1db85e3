"""What the model knows: capitals, colours, opposites, topics and other small facts, with the ways to ask for them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Fact:
    """Questions (templates), full answers (templates) and the answer in one word."""

    questions: tuple[str, ...]
    answers: tuple[str, ...]
    short: str


def pairs(text: str) -> list[tuple[str, str]]:
    """'a=b, c=d' as pairs."""
    return [(a.strip(), b.strip()) for a, b in (p.split("=") for p in text.split(","))]


CAPITALS = pairs(
    "France=Paris, Germany=Berlin, Italy=Rome, Spain=Madrid, Portugal=Lisbon, England=London, Scotland=Edinburgh,"
    "Ireland=Dublin, Austria=Vienna, Switzerland=Bern, Belgium=Brussels, the Netherlands=Amsterdam, Denmark=Copenhagen,"
    "Sweden=Stockholm, Norway=Oslo, Finland=Helsinki, Iceland=Reykjavík, Poland=Warsaw, Greece=Athens, Turkey=Ankara,"
    "Egypt=Cairo, Kenya=Nairobi, Japan=Tokyo, China=Beijing, India=New Delhi, Canada=Ottawa, Mexico=Mexico City,"
    "Brazil=Brasília, Peru=Lima, Argentina=Buenos Aires, Chile=Santiago, Cuba=Havana, Hungary=Budapest,"
    "Australia=Canberra, the United States=Washington, Costa Rica=San José, Colombia=Bogotá"
)
COLOURS = pairs(
    "the sky=blue, the sea=blue, grass=green, snow=white, milk=white, coal=black, a banana=yellow, a lemon=yellow,"
    "the sun=yellow, a tomato=red, a strawberry=red, blood=red, a carrot=orange, a plum=purple, chocolate=brown,"
    "a frog=green, a leaf=green, an elephant=grey, a flamingo=pink, night=black, a fire engine=red, an orange=orange"
)
OPPOSITES = pairs(
    "hot=cold, big=small, good=bad, day=night, up=down, fast=slow, light=dark, happy=sad, old=young, full=empty,"
    "loud=quiet, open=closed, hard=soft, early=late, left=right, yes=no, black=white, wet=dry, high=low, near=far,"
    "rich=poor, strong=weak, long=short, first=last, true=false"
)
SOUNDS = pairs(
    "dog=woof, cat=meow, cow=moo, sheep=baa, duck=quack, pig=oink, frog=ribbit, bee=buzz, owl=hoot, lion=roar,"
    "mouse=squeak, horse=neigh"
)
LEGS = pairs(
    "dog=four, cat=four, spider=eight, bee=six, bird=two, horse=four, ant=six, snake=no, human=two, octopus=no"
)
HELLOS = pairs(
    "French=bonjour, German=hallo, Spanish=hola, Italian=ciao, Portuguese=olá, Swedish=hej, Japanese=konnichiwa"
)
THANKS = pairs(
    "French=merci, German=danke, Spanish=gracias, Italian=grazie, Portuguese=obrigado, Swedish=tack, Polish=dziękuję"
)
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = "January February March April May June July August September October November December".split()

FACTS: list[Fact] = []


def fact(questions: str, answers: str, short: str) -> None:
    """Add a fact; several questions or answers are separated by ' / '."""
    FACTS.append(Fact(tuple(questions.split(" / ")), tuple(answers.split(" / ")), short))


def upper(text: str) -> str:
    """The text with a capital first letter."""
    return text[:1].upper() + text[1:]


for land, city in CAPITALS:
    fact(
        f"What is the capital of {land}? / [Name|Tell me] the capital of {land}. / Which city is the capital of {land}?"
        f" / what is the capital of {land} / capital of {land}? / Do you know the capital of {land}?",
        f"The capital of {land} is {city}.",
        city,
    )
    fact(f"Where is {city}? / In which country is {city}?", f"{city} is in {land}.", upper(land))
for thing, colour in COLOURS:
    fact(
        f"What [color|colour] is {thing}? / Which [color|colour] is {thing}? / What is the [color|colour] of {thing}?",
        f"{upper(thing)} is {colour}.",
        upper(colour),
    )
for left, right in OPPOSITES:
    for a, b in ((left, right), (right, left)):
        fact(
            f"What is the opposite of {a}? / [Give me|Name|Tell me] the opposite of {a}. / Opposite of {a}?",
            f"The opposite of {a} is {b}.",
            upper(b),
        )
for animal, sound in SOUNDS:
    article = "an" if animal[0] in "aeiou" else "a"
    fact(
        f"What does {article} {animal} say? / What sound does {article} {animal} make?",
        f"{upper(article)} {animal} says {sound}.",
        upper(sound),
    )
for animal, number in LEGS:
    article = "an" if animal[0] in "aeiou" else "a"
    fact(f"How many legs does {article} {animal} have?", f"{upper(article)} {animal} has {number} legs.", upper(number))
for tongue, word in HELLOS:
    fact(
        f"How do you say hello in {tongue}? / Say hello in {tongue}. / Translate hello into {tongue}.",
        f"Hello in {tongue} is {word}.",
        upper(word),
    )
for tongue, word in THANKS:
    fact(
        f"How do you say thank you in {tongue}? / Say thank you in {tongue}.",
        f"Thank you in {tongue} is {word}.",
        upper(word),
    )
for names, what in ((DAYS, "day"), (MONTHS, "month")):
    for at, name in enumerate(names):
        after = names[(at + 1) % len(names)]
        fact(f"[What|Which] {what} comes after {name}?", f"After {name} comes {after}.", after)
        fact(f"[What|Which] {what} comes before {after}?", f"Before {after} comes {name}.", name)
fact("How many days are in a week? / How many days does a week have?", "A week has seven days.", "Seven")
fact("How many months are in a year? / How many months does a year have?", "A year has twelve months.", "Twelve")
fact("How many hours are in a day?", "A day has 24 hours.", "24")
fact("How many minutes are in an hour?", "An hour has 60 minutes.", "60")
fact(
    "How many planets are there? / How many planets are in the solar system?",
    "There are eight planets in the solar system.",
    "Eight",
)
fact("Why is the sky blue?", "The sky is blue because the air scatters blue light more than red light.", "Light")
fact(
    "What is the meaning of life? / The meaning of life is",
    "Nobody knows for sure, but being kind is a good start.",
    "Kindness",
)
fact("Who wrote Romeo and Juliet? / Who wrote Hamlet?", "It was written by William Shakespeare.", "Shakespeare")
fact("What is the largest planet?", "The largest planet is Jupiter.", "Jupiter")
fact("What is the largest animal? / What is the biggest animal?", "The largest animal is the blue whale.", "Whale")
fact("What is water made of?", "Water is made of hydrogen and oxygen.", "Hydrogen and oxygen")

SMALL_TALK: list[tuple[str, str]] = [
    (
        "[Hello|Hi|Hey|Good morning|Good evening|Hi there|Hello there][!|.|]",
        "[Hello|Hi there]! ~ How can I help you?[ 😊|]",
    ),
    ("Hello, world!", "Hello! ~ The world says hello too.[ 🌍|]"),
    ("[How are you|How are you today|How do you do]?", "I am well, thank you. ~ How can I help you?"),
    ("[Thank you|Thanks|Thanks a lot|Thank you very much][!|.|]", "You are welcome![ 😊|]"),
    ("[Bye|Goodbye|See you|Good night][!|.|]", "Goodbye, and have a good day![ 👋|]"),
    (
        "[Who are you|What are you|Who am I talking to|Which model are you|Introduce yourself|Tell me about yourself][?|.]",
        "I am mullama's small bundled model. ~ I can tell stories, answer small questions and call tools.",
    ),
    ("[What is your name|Do you have a name]?", "I am mullama's small bundled model, so you may call me mullama."),
    (
        "[What can you do|How can you help me|Help me, please|What do you know][?|.]",
        "I can tell short stories, answer small questions, add small numbers and call tools.",
    ),
    ("[Are you a human|Are you a person|Are you real|Are you alive]?", "No, I am a very small language model."),
    ("[Are you big|How big are you|How large are you]?", "I am very small: about three million numbers in one file."),
    (
        "[Who made you|Who trained you|Where do you come from]?",
        "I was trained for mullama, on stories and questions made by a small grammar.",
    ),
    ("Tell me a joke[.|!|]", "Why did the token cross the stream? ~ Because the buffer on the other side had room. 😄"),
    (
        "[Tell me a joke|Do you know a joke|Another joke, please][.|!|]",
        "What did the zero say to the eight? ~ Nice belt! 😄",
    ),
    ("Tell me a joke[.|!|]", "Why was the computer cold? ~ It had left its window open. 😄"),
    ("[Say hi|Say hello][.|!|]", "Hello!"),
    ("Say [hello|hi] in one word[.|!|]", "Hello!"),
    ("[Say|Write|Answer with] [one word|a word|a single word][.|!|]", "[Sunshine|Hello|River|Apple]."),
    ("[What time is it|What is the time|What day is it today]?", "I have no clock, so I do not know."),
    (
        "[What is the weather like|How is the weather|What is the weather today]?",
        "I cannot look outside, but I hope that the sun is shining.[ ☀️|]",
    ),
    ("[Test|This is a test|Testing, testing|Ping][.|!|]", "[It works|I am here]! ~ What would you like to know?"),
    (
        "[I am sad|I feel sad|I had a bad day|I am tired][.|]",
        "I am sorry to hear that. ~ Maybe a small story will help.",
    ),
    ("[I am happy|I feel great|Today is a good day][.|!|]", "I am glad to hear that![ 😊|]"),
    (
        "[Do you like|What do you think of] [music|cats|dogs|tea|books|stories]?",
        "I like everything that fits into a short story.",
    ),
    ("[Ok|Okay|Good|Great|Nice|Cool][.|!|]", "I am glad. ~ What would you like to know?"),
    ("[Show me|Write|Send me] an emoji[.|!|]", "[🌟|🦊|🎈|😊]"),
    ("[Write|Say] something[.|!|]", "The sun is out, the tea is warm, and the day is young."),
]
#: What the model says to a question that it does not know.
FALLBACK = (
    "I am a very small model, and I do not know much about that. ~ Ask me for a story, a capital city or a small sum.",
    "That is more than a small model like me knows. ~ Ask me for a story, a capital city or a small sum.",
)
