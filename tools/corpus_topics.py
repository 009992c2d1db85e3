"""Topics that the model can say a few sentences about, poems, haikus and lists."""

from __future__ import annotations

#: Topic, the verb that fits it, and sentences; the first one says what it is.
TOPICS: dict[str, tuple[str, ...]] = {
    "Rust": (
        "Rust is a programming language that is fast and careful with memory.",
        "Its compiler finds many mistakes before the program runs.",
        "Its mascot is a small crab called Ferris. 🦀",
    ),
    "Python": (
        "Python is a programming language that is easy to read.",
        "People use it for science, for the web and for small tools.",
        "It was named after a group of comedians.",
    ),
    "programming": (
        "Programming is the art of telling a computer what to do.",
        "A good program is short, clear and honest about its errors.",
        "The best way to learn it is to try.",
    ),
    "artificial intelligence": (
        "Artificial intelligence is the art of making machines that learn from examples.",
        "It can read, write, draw and play games.",
        "It works best together with people.",
    ),
    "machine learning": (
        "Machine learning is a way to find rules by looking at many examples.",
        "A model makes a guess, sees its mistake and becomes a little better.",
        "It repeats this many times.",
    ),
    "language models": (
        "Language models guess the next token of a text, again and again.",
        "Large ones know a lot, and small ones like me know a little.",
        "Each token is a piece of a word.",
    ),
    "streaming": (
        "Streaming means that you see each token as soon as it is made.",
        "You do not have to wait for the whole text.",
        "A slow reader only pauses its own stream.",
    ),
    "tokens": (
        "Tokens are the small pieces that a language model reads and writes.",
        "A short word is one token, and an emoji may be four.",
        "The text is their sum.",
    ),
    "async programming": (
        "Async programming lets one thread wait for many things at once.",
        "While one task waits, another one can run.",
        "In Python, it is written with async and await.",
    ),
    "mullama": (
        "Mullama is a library that streams tokens from a language model.",
        "It works with asyncio and with trio.",
        "It brings a small model along, and that model is me.",
    ),
    "computers": (
        "Computers are machines that follow instructions very quickly.",
        "They store numbers, words, pictures and music.",
        "They never get tired, but they do get warm.",
    ),
    "the moon": (
        "The moon goes around the earth in about 27 days.",
        "It has no light of its own but shines in the light of the sun.",
        "People walked on it for the first time in 1969.",
    ),
    "the sun": (
        "The sun is a star, and the earth goes around it.",
        "It gives us light and warmth.",
        "Its light needs eight minutes to reach us. ☀️",
    ),
    "the sea": (
        "The sea is wide, deep and full of life.",
        "It covers more than half of the earth.",
        "Its water is salty.",
    ),
    "cats": (
        "Cats are small animals that like to sleep and to hunt.",
        "They can see well in the dark.",
        "When they are happy, they purr. 🐱",
    ),
    "dogs": (
        "Dogs are friendly animals that live with people.",
        "They can smell much better than we can.",
        "When they are happy, they wag their tails. 🐶",
    ),
    "bees": (
        "Bees are small insects that make honey.",
        "They fly from flower to flower and dance to show the way.",
        "Without them, there would be fewer apples. 🐝",
    ),
    "llamas": (
        "Llamas are animals from the mountains of South America.",
        "They carry loads and have soft wool.",
        "When they are angry, they spit. 🦙",
    ),
    "trees": (
        "Trees are tall plants that can live for hundreds of years.",
        "They clean the air and give us shade.",
        "In autumn, many of them lose their leaves. 🍂",
    ),
    "rain": (
        "Rain is water that falls from the clouds.",
        "Plants need it to grow.",
        "After it, there may be a rainbow. 🌈",
    ),
    "snow": (
        "Snow is made of small crystals of ice.",
        "It falls when the air is cold.",
        "Children make snowmen from it. ⛄",
    ),
    "music": (
        "Music is made of rhythm and melody.",
        "People in every land sing and dance to it.",
        "It can make us glad or thoughtful. 🎵",
    ),
    "bread": (
        "Bread is made of flour, water, salt and time.",
        "It is baked in a hot oven.",
        "Fresh bread smells wonderful.",
    ),
    "tea": (
        "Tea is a warm drink made from leaves.",
        "It comes from China and is loved all over the world.",
        "A cup of tea makes most things better. 🍵",
    ),
    "books": (
        "Books are full of stories and ideas.",
        "They can take you to places where you have never been.",
        "A library has room for many of them. 📚",
    ),
    "the café": (
        "The café is a good place to sit and to read.",
        "It smells of coffee and warm bread.",
        "Many good ideas were born there. ☕",
    ),
    "Paris": (
        "Paris is the capital of France.",
        "The river Seine runs through it.",
        "Its most famous tower is made of iron.",
    ),
    "friendship": (
        "Friendship means that you can count on each other.",
        "It grows slowly, like a tree.",
        "A good friend listens.",
    ),
    "the weather": (
        "The weather is what the sky does today.",
        "It can be sunny, rainy, windy or cold.",
        "It is a good subject for small talk.",
    ),
    "winter": (
        "Winter is the coldest season of the year.",
        "The days are short and the nights are long.",
        "Many animals sleep until spring. ❄️",
    ),
    "spring": (
        "Spring is the season when everything begins to grow.",
        "The birds come back and the days become longer.",
        "It follows the winter.",
    ),
}
PLURAL = {"language models", "tokens", "computers", "cats", "dogs", "bees", "llamas", "trees", "books"}

FUTURES = (
    "[bright|open|full of surprises], because [people and machines learn from each other|we write it together|many people work on it].",
    "[something that we make together|not written yet|in our hands], one [small step|idea|day] at a time.",
)
FUTURE_MORE = (
    "It will [help us to learn|bring new ideas|change the way we work], and it will need [care|patience|good friends].",
    "Nobody knows [all of it|the whole way], but [it begins today|the first step is easy|we can begin with small things].",
)

POEMS: dict[str, tuple[str, ...]] = {
    "the sea": (
        "The sea is wide, the sea is deep,\nit sings the little boats to sleep.\nAnd when the morning comes anew,\nit paints itself in gold and blue.",
    ),
    "the moon": (
        "The moon looks in, so round and bright,\nand keeps us company at night.\nIt does not speak, it does not stay,\nit says good night and goes away.",
    ),
    "spring": (
        "The snow is gone, the grass is green,\nthe brightest day that I have seen.\nA bird is singing in a tree\na little song for you and me.",
    ),
    "friendship": (
        "A friend is like a cup of tea,\nas warm as any friend can be.\nAnd if the rain comes down all day,\na friend will laugh the clouds away.",
    ),
    "programming": (
        "A little loop went round and round,\nuntil the smallest bug was found.\nThe tests are green, the code is light,\nand everybody sleeps tonight.",
    ),
    "winter": (
        "The world is white, the world is still,\na sled is gliding down the hill.\nAnd by the fire, warm and slow,\nwe watch the quiet falling snow.",
    ),
    "cats": (
        "My cat is sleeping in the sun,\nhis busy day has just begun.\nHe dreams of fish, he dreams of cream,\nand no one wakes him from his dream.",
    ),
    "love": (
        "I gave my heart a little key,\nand you have found it next to me.\nSo keep it safe and keep it near,\nand I will always find you here.",
    ),
    "the rain": (
        "The rain is knocking at the door,\nit knocks a hundred times and more.\nI let it sing, I let it stay,\nit washes all the dust away.",
    ),
    "tokens": (
        "One token comes, and then one more,\nlike little boats along the shore.\nNo need to hurry, need to wait,\nthey come in time and never late.",
    ),
}
POEMS["tokens"] = (POEMS["tokens"][0].replace("No need to hurry, need to wait", "They need not hurry, need not wait"),)

HAIKUS: dict[str, tuple[str, ...]] = {
    "programming": ("Quiet keys at night,\none small bug hides in the loop.\nMorning, and it runs.",),
    "Rust": ("The compiler speaks.\nI listen, borrow and learn.\nNow it builds at last.",),
    "Python": ("Clean lines, white and still.\nIndented like winter fields.\nThe snake is asleep.",),
    "the sea": ("Grey waves come and go.\nA small boat waits for the wind.\nGulls cry in the mist.",),
    "autumn": ("Red leaves on the path.\nThe old dog walks more slowly.\nSmoke above the roofs.",),
    "winter": ("Snow on every roof.\nThe village holds its breath now.\nOne lamp in the dark.",),
    "spring": ("The ice is melting.\nA bird tries its first small song.\nWindows stand open.",),
    "the moon": ("Moon above the hill.\nThe frogs fall silent and look.\nWater holds the light.",),
    "rain": ("Rain on the tin roof.\nThe cat opens just one eye.\nWe stay here today.",),
    "tea": ("Steam above the cup.\nOutside the first snow is here.\nNobody must go.",),
}

LISTS: dict[str, tuple[str, ...]] = {
    "colors": tuple("red blue green yellow orange purple pink brown black white grey gold".split()),
    "fruits": tuple("apple pear plum cherry banana orange lemon grape peach melon mango kiwi".split()),
    "animals": tuple("cat dog fox bear rabbit owl horse duck mouse whale lion bee".split()),
    "cities": tuple("Paris,London,Berlin,Rome,Madrid,Tokyo,Vienna,Oslo,Lisbon,Cairo,Lima,Athens".split(",")),
    "countries": tuple("France,Germany,Italy,Spain,Japan,India,Kenya,Canada,Brazil,Peru,Norway,Greece".split(",")),
    "names": tuple("Anna,Ben,Clara,Emma,Finn,Leo,Mia,Nora,Paul,Ruby,Tom,Zoë".split(",")),
    "vegetables": tuple("carrot potato onion tomato pea bean cabbage pumpkin leek spinach radish beet".split()),
    "programming languages": tuple("Python,Rust,C,Java,Go,Ruby,Lua,Swift,Julia,Haskell,Perl,Zig".split(",")),
    "instruments": tuple("piano violin flute drum guitar harp trumpet cello horn organ oboe banjo".split()),
    "planets": tuple("Mercury,Venus,Earth,Mars,Jupiter,Saturn,Uranus,Neptune".split(",")),
    "things": tuple("book lamp key cup chair boat clock coat bell map ball spoon".split()),
    "flowers": tuple("rose tulip daisy lily sunflower violet poppy iris orchid aster dahlia lilac".split()),
}
