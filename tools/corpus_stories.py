"""The stories of the corpus: words, plots and how a plot becomes a short or a long story."""

# A plot is a list of steps, a step a list of options, an option one or more sentences joined by " ~ ".
# "" as an option means that the step may be left out; PARAGRAPH begins a new paragraph.

from __future__ import annotations

import random

from grammar import Writer, define

Step = list[str]
Plot = list[Step]
PARAGRAPH: Step = ["\n\n"]

_ANIMALS = "fox, rabbit, mouse, cat, bear, hedgehog, owl, frog, duck, squirrel, robot, dragon, penguin, badger"
define("hero_she", "Zoë, Mia, Anna, Lily, Chloé, Emma, Nora, Inês, Renée, Ella, Ruby, Maja, Clara, Ida")
define("hero_he", "René, Tom, Ben, Max, Leo, José, Noah, Finn, André, Oskar, Søren, Hugo, Sam, Paul")
define("kind_she", "girl, girl, girl, " + _ANIMALS, sticky=True)
define("kind_he", "boy, boy, boy, " + _ANIMALS, sticky=True)
define("adj", "kind, curious, brave, shy, clever, cheerful, gentle, young, careful, happy, friendly, little")
define("trait", "kind, clever, cheerful, gentle, friendly, brave, helpful, patient")
define("size", "small, little, quiet, pretty, sunny, tiny")
define("home", "village, town, valley, mountain village, harbour town, garden town", sticky=True)
define("wild", "forest, river, lake, sea, meadow, hills", sticky=True)
define("time", "morning, afternoon, evening, day, Sunday, windy day, spring morning, summer evening")
define(
    "thing",
    "red scarf, blue kite, silver key, small drum, picture book, wooden boat, golden bell, green hat, "
    "yellow lamp, music box",
    sticky=True,
)
define("room", "bed, table, sofa, cupboard, stairs, big chair, rug, window seat")
define("spot", "garden, kitchen, attic, shed, barn, cellar, hall")
define("tree", "oak tree, apple tree, rose bush, stone wall, wooden bench, hay cart, old bridge, tall pine")
define("food", "bread, apple cake, pancakes, honey cookies, plum cake, berry pie, waffles", sticky=True)
define("item", "flour, honey, butter, milk, sugar, cream, salt", sticky=True)
define("pet", "kitten, puppy, lamb, duckling, sparrow, foal, fawn, piglet, chick", sticky=True)
define("pethurt", "cold and wet, tired and hungry, lost and afraid, small and alone, hungry and cold")
define("seed", "sunflower, pumpkin, apple tree, bean, rose, cherry tree, tulip", sticky=True)
define(
    "skill",
    "play the flute, ride a bicycle, swim, paint, sing, skate, dance, juggle, play the violin, fly a kite, row a boat",
    sticky=True,
)
define("feel", "happy, proud, glad, thankful, pleased, cheerful")
define("colour", "red, blue, green, yellow, golden, silver, white, purple, orange")
define("craft", "boat, raft, balloon, sled, cart, little ship", sticky=True)
define("goal", "island, top of the hill, old tower, far shore, hidden waterfall, edge of the forest", sticky=True)
define("emoji", ["🌟", "🌈", "🦊", "🎈", "🌻", "🌙", "🍎", "🎉", "❤️", "🐦", "☀️", "😊"])

WHO = "a(n) {adj} {kind} [named|called] {hero}"
FRIEND = "{friend}, a(n) {adj} {friendkind} [from next door|who lived nearby|from the {wild}]"

ONCE: Step = [
    f"Once upon a time, there was {WHO}.",
    f"Once upon a time, {WHO} lived in a {{size}} {{home}} [by|near] the {{wild}}.",
    f"Once upon a time, in a {{size}} {{home}} near the {{wild}}, there lived {WHO}.",
    f"Once upon a time, there was {WHO}. ~ {{He}} lived in a {{size}} {{home}} [by|near] the {{wild}}.",
    f"Once upon a time there was {WHO} who lived near the {{wild}}.",
    f"Once upon a time, in a land far away, there lived {WHO}.",
]
OTHER: Step = [
    f"There was once {WHO}, and {{he}} lived in a {{size}} {{home}}.",
    f"In a {{size}} {{home}} near the {{wild}} lived {WHO}.",
    "{hero} was a(n) {adj} {kind} who lived in a {size} {home} near the {wild}.",
    f"Far away, near the {{wild}}, there was {WHO}.",
    f"One {{time}}, {WHO} woke up very early.",
    f"In a land far away, there lived {WHO}.",
    "The little {kind} was called {hero} and lived near the {wild}.",
    f"It was a [dark and stormy|long and quiet] night, and {WHO} looked out of the window.",
]
LONG: Step = [
    f"Long ago, in a {{size}} {{home}} near the {{wild}}, there lived {WHO}.",
    f"Long, long ago, there was {WHO} who lived in a {{size}} {{home}}.",
]
CHARACTER: Step = [
    "",
    "{He} liked to [sing|read|walk|draw|count the stars|watch the clouds|tell stories] [in the evening|every day|when it rained].",
    "Everyone knew {him}, because {he} was so {trait}.",
    "Every morning, {he} [opened the window|looked out of the window] and said good morning to the {wild}.",
    "{He} had [a {colour} coat|a {colour} hat|a pair of {colour} boots] and a very big heart.",
]

LOST: Plot = [
    [
        "{hero} had a {thing}, and {he} loved it [very much|more than anything].",
        "{His} {thing} was the best thing that {he} had.",
        "For {his} birthday, {he} got a {thing} from {his} grandmother.",
    ],
    ["One {time}, the {thing} was gone.", "But one {time}, {he} could not find {his} {thing}."],
    [
        "{He} looked under the {room} and behind the {room}, but it was not there.",
        "{He} looked in the {spot1} and in the {spot2}, but [found nothing|it was not there].",
        "{He} looked everywhere, even under the {room}.",
    ],
    ["", "{hero} sat down and felt [very sad|like crying].", "A small tear ran down {his} cheek."],
    PARAGRAPH,
    [f"Then {{he}} met {FRIEND}.", f"Just then, {FRIEND}, came by."],
    [
        '"Have you seen my {thing}?" asked {hero}. ~ "No, but I will help you look for it," said {friend}.',
        '"I have lost my {thing}," said {hero}. ~ "Do not worry," said {friend}. ~ "We will look for it together."',
    ],
    [
        "",
        "They looked [all afternoon|for a long time|until the sun went down].",
        "Together they looked in the {spot3} and behind the {tree}.",
    ],
    [
        "At last, under the {tree}, they saw something in the grass. ~ It was the {thing}!",
        "And there it was, right next to the {tree}!",
        "In the end, {friend} found the {thing} behind the {tree}.",
    ],
    PARAGRAPH,
    [
        "",
        '"Thank you, {friend}!" said {hero}.',
        "{hero} hugged {friend} and laughed.",
        "{hero} was so {feel} that {he} danced all the way home.",
    ],
    [
        "From that day on, {hero} took good care of {his} {thing}.",
        "From that day on, {hero} and {friend} were best friends.",
    ],
]
PET: Plot = [
    ["One {time}, {he} heard a small sound behind the {tree}.", "One {time}, {he} went for a walk near the {wild}."],
    ["There sat a little {pet}, {pethurt}.", "Under the {tree} {he} saw a little {pet}, {pethurt}."],
    ["", '"Do not be afraid," said {hero} softly.', '"Hello, little {pet}," said {hero}. ~ "Are you all right?"'],
    [
        "{He} gave the {pet} [some warm milk|a piece of bread|a soft blanket] and sat down beside it.",
        "{He} put {his} {colour} scarf around the {pet} and carried it home.",
    ],
    PARAGRAPH,
    ["The next morning, the {pet} felt [much better|strong again].", "Soon the {pet} was warm and began to play."],
    [
        f"Together with {FRIEND}, {{he}} looked for its mother.",
        "But {hero} knew that its mother must be looking for it.",
    ],
    ["", "They walked and walked, and they called and listened.", "They asked every bird and every bee on the way."],
    [
        "At last they heard an answer from behind the {tree}. ~ It was the mother of the little {pet}!",
        "Then the {pet} lifted its head, because it had heard its mother.",
    ],
    PARAGRAPH,
    ["", "The {pet} ran to its mother as fast as it could.", "How happy the two of them were!"],
    ["{hero} was a little sad, but also very {feel}.", "{hero} waved until they were out of sight."],
    ["", "Every spring, the {pet} came back to visit {him}.", "And {he} never forgot {his} little friend."],
]
BAKE: Plot = [
    [
        "One {time}, {he} wanted to make {food} for {his} [grandmother|grandfather|friends|neighbours].",
        "One {time}, {hero} had an idea. ~ {He} wanted to make {food} for everyone in the {home}.",
    ],
    ["But there was no {item} in the kitchen.", "{He} looked in the cupboard, but there was no {item} left."],
    [f"So {{he}} went to see {FRIEND}.", f"So {{he}} knocked at the door of {FRIEND}."],
    ['"Do you have any {item}?" asked {hero}.', '"May I have some of your {item}?" asked {hero}.'],
    ['"Yes, of course," said {friend}. ~ "May I help you?"', '"You may have all of it," said {friend}.'],
    PARAGRAPH,
    [
        "",
        "Together they [stirred|mixed|worked] and sang all [morning|afternoon].",
        "They washed their hands and began at once.",
    ],
    ["Soon the whole house smelled of {food}.", "A sweet smell went through the window and down the street."],
    [
        "",
        "{hero} burned {his} thumb a little, but {he} only laughed.",
        "There was flour on the table, on the floor and on {his} nose.",
    ],
    [
        "",
        "One by one, the neighbours came to see what it was.",
        "All the neighbours came and sat down at the long table.",
    ],
    PARAGRAPH,
    ["There was enough for everyone, and nobody went home hungry.", "They ate and talked until the moon came up."],
    ["", '"Nothing in the world tastes better," said {friend}.', '"Next time we will make even more," said {hero}.'],
    [
        "{hero} was {feel}, because good things are better when you share them.",
        "That night, {hero} fell asleep with a smile.",
    ],
]
SEED: Plot = [
    [
        "One {time}, {he} found a tiny seed [on the road|in {his} pocket|under the {tree}].",
        "In spring, {his} grandfather gave {him} a tiny seed.",
    ],
    [
        "{He} put it into the earth and gave it some water.",
        "{He} made a little hole in the garden and put the seed inside.",
    ],
    [
        "Every day, {he} went out to look, but nothing happened.",
        "The first day nothing happened, and the second day nothing happened.",
    ],
    [f"{FRIEND}, came to look too.", f"{{He}} showed the place to {FRIEND}."],
    ['"Be patient," said {friend}. ~ "Good things need time."', '"Maybe it is still asleep," said {friend}.'],
    PARAGRAPH,
    [
        "",
        "So {hero} waited, and it rained, and the sun came out again.",
        "{hero} waited and sang a little song for the seed every evening.",
    ],
    [
        "Then, one morning, there was something green in the earth!",
        "After seven days, a small green leaf looked out of the earth.",
    ],
    ["", "It grew and grew until it was taller than {hero}.", "Every day it was a little taller than the day before."],
    PARAGRAPH,
    [
        "It was a(n) {seed}, the most beautiful one in the whole {home}.",
        "In summer, everyone could see that it was a(n) {seed}.",
    ],
    ["", "{hero} and {friend} sat beside it and listened to the bees.", "Birds and bees came from far away to see it."],
    [
        '"Good things only need time," said {hero} with a smile.',
        "And in autumn, {he} gave a new seed to every child in the {home}.",
    ],
]
SKILL: Plot = [
    ["More than anything, {he} wanted to learn to {skill}.", "{hero} had one big wish. ~ {He} wanted to {skill}."],
    ["But {he} was afraid that everyone would laugh.", "The first time {he} tried, it went all wrong."],
    ["", '"I will never learn it," said {hero}.', '"It is too hard for me," said {hero} with a sigh.'],
    [f"One {{time}}, {{he}} talked about it with {FRIEND}.", f"{FRIEND}, heard this and smiled."],
    [
        '"Nobody can do it the first time," said {friend}.',
        '"Try a little every day," said {friend}. ~ "I will stay with you."',
    ],
    PARAGRAPH,
    [
        "So they met near the {wild} every [morning|evening] and tried again.",
        "So {hero} tried once, and twice, and ten times more.",
    ],
    ["", "Some days were good, and some days were hard.", "Step by step, it became a little easier."],
    ["", "When it rained, they sat in the {spot} and told each other stories."],
    ["Then, one {time}, it worked!", "And one {time}, without thinking about it at all, {he} could do it."],
    PARAGRAPH,
    [
        "",
        "At the summer party, {he} showed it to the whole {home}, and everyone clapped.",
        '"Look, I can {skill}!" called {hero}.',
    ],
    ["{hero} was {feel}, and {friend} was even more {feel}.", "Nobody laughed, and {friend} clapped the loudest."],
    [
        "",
        "Now {he} teaches the little ones, and {he} tells them to try a little every day.",
        "Since then, {hero} has not been afraid of new things.",
    ],
]
NIGHT: Plot = [
    ["One [summer|quiet|warm] night, {he} could not sleep.", "One night, it was so quiet that {hero} woke up."],
    ["{He} went to the window and looked at the sky.", "{He} put on {his} {colour} coat and went outside."],
    [
        "The stars were [so bright that they lit the whole garden|brighter than ever before].",
        "The moon stood over the {wild} like a big lamp.",
    ],
    [f"On the garden wall sat {FRIEND}."],
    [
        '"Can you not sleep either?" asked {friend}.',
        '"Sit down beside me," said {friend}. ~ "I will show you something."',
    ],
    PARAGRAPH,
    [
        "They counted the stars, and at one hundred they began again.",
        "{friend} knew a story about every star, and {hero} listened.",
    ],
    [
        "",
        "A star fell from the sky, and each of them made a wish.",
        "Far away, an owl called, and the wind went softly through the trees.",
    ],
    [
        "",
        '"What did you wish for?" asked {hero}. ~ "That is a secret," said {friend} and smiled.',
        '"What is behind the sky?" asked {hero}. ~ "Nobody knows, but it must be beautiful," said {friend}.',
    ],
    PARAGRAPH,
    ["", "Soon {his} eyes grew heavy.", "When the moon went down, {he} was very tired."],
    [
        "{hero} went back to bed and slept until the sun came up.",
        "{He} said good night to {friend} and to the {wild}, and then {he} slept.",
    ],
]
JOURNEY: Plot = [
    [
        "All {his} life, {he} had wanted to see the {goal}.",
        "From {his} window, {he} could see the {goal}, but {he} had never been there.",
    ],
    [
        f"So {{he}} built a {{craft}}, together with {FRIEND}.",
        f"One {{time}}, {{he}} went to {FRIEND}. ~ Together they built a {{craft}}.",
    ],
    ["", "They packed bread, cheese and a {colour} blanket.", "They took a map, a lamp and a bag of apples."],
    ["", '"Are you ready?" asked {friend}.', '"Let us go before the sun is too hot," said {hero}.'],
    PARAGRAPH,
    ["", "At first, everything went well.", "The wind was soft, and the way was easy."],
    ["Then the sky turned dark, and it began to rain.", "But at noon, a big storm came up."],
    ["{hero} was afraid, but {he} held on to the {craft}.", '"Hold my hand," called {friend}.'],
    [
        "",
        "They sang as loudly as they could, until the storm was over.",
        "They waited side by side until the rain stopped.",
    ],
    PARAGRAPH,
    [
        "When the clouds went away, they saw the {goal} right in front of them.",
        "And then the sun came out, and there was the {goal}!",
    ],
    ["It was even more beautiful than {hero} had thought.", "{hero} could not say a word, so beautiful was it."],
    [
        "",
        "They ate their bread and looked at the {wild} far below.",
        "They stayed there until the evening and felt like kings.",
    ],
    [
        "At home, they told everyone about it, and the story grew a little every time.",
        '"Where shall we go tomorrow?" asked {hero}.',
    ],
]
PLOTS: dict[str, Plot] = {
    "lost": LOST,
    "pet": PET,
    "bake": BAKE,
    "seed": SEED,
    "skill": SKILL,
    "night": NIGHT,
    "journey": JOURNEY,
}
LINK: Step = [
    "The next day, something new happened.",
    "A few weeks later, there was more to tell.",
    "But that is not the end of the story.",
    "When the next summer came, {hero} was a little older.",
]
CLOSING: Step = ["And that is the end of the story.", "And they lived happily ever after.", "What a good day that was!"]
#: Words bound anew for each part of a long story.
FRESH = ("thing", "food", "item", "pet", "seed", "skill", "craft", "goal", "friend", "friendkind")


def _join(pieces: list[str]) -> str:
    text = ""
    for piece in pieces:
        text += piece if not text or piece == "\n\n" or text.endswith("\n") else " " + piece
    return text


def _steps(writer: Writer, steps: Plot, keep: float = 1.0) -> list[str]:
    """Write steps; one that may be left out stays with the probability `keep`."""
    made: list[str] = []
    for step in steps:
        if "" not in step:
            made.append(writer.pick(step).replace(" ~ ", " "))
        elif writer.rng.random() < keep:
            made.append(writer.pick([option for option in step if option]).replace(" ~ ", " "))
    return made


def story(rng: random.Random, *, opening: Step | None = None, parts: int = 1, kind: str = "") -> str:
    """One story; more parts make it longer, and `kind` says what the hero is (a fox, a girl …)."""
    writer = Writer(rng)
    if kind:
        writer.genders["hero"] = {"girl": "she", "boy": "he"}.get(kind, writer.genders["hero"])
        writer.bound["kind"] = kind
    keep = rng.choice((0.0, 0.2, 0.4, 0.6))
    pieces = _steps(writer, [opening or (ONCE if rng.random() < 0.7 else OTHER)])
    pieces += _steps(writer, [CHARACTER], keep)
    for part, name in enumerate(rng.sample(sorted(PLOTS), parts)):
        if part:
            for slot in FRESH:
                writer.bound.pop(slot, None)
            writer.genders["friend"] = rng.choice(("she", "he"))
            pieces += ["\n\n", *_steps(writer, [LINK])]
        plot = PLOTS[name] if keep or parts > 1 else [step for step in PLOTS[name] if step is not PARAGRAPH]
        pieces += _steps(writer, plot, keep)
    if rng.random() < 0.25:
        pieces += _steps(writer, [CLOSING])
    if rng.random() < 0.3:
        pieces.append(writer.word("emoji"))
    return _join(pieces)


def templates() -> list[str]:
    """Every sentence template of the stories."""
    steps = [ONCE, OTHER, LONG, CHARACTER, LINK, CLOSING] + [s for plot in PLOTS.values() for s in plot]
    return [t for step in steps for option in step for t in option.split(" ~ ") if t.strip()]
