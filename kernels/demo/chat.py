"""What the model is trained to say: phrasings of questions, small talk, and conversations made of both."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from wordnet import Entry, article, capital

HERE = Path(__file__).parent
CORE_CONCRETE, CORE_OTHER, CORE_VERBS = 1500, 500, 300
CORE_SHARE = 0.86  # of the questions about words; the rest is the long tail
SMALL_TALK_SHARE = 0.07  # of all turns

# Words a visitor tries first, rare in the tagged corpus that ranks the others.
FAMILIAR = set(
    "airplane ant apple armchair baker ball beach bear bee beer bell bird boat bone bottle box bread "
    "bus butter butterfly cake camel camera candle car carpet carrot castle cat cathedral chair cheese cherry "
    "chess chicken chocolate circle clock cloud coat coffee comet compass cow crab crocodile crow cup dentist "
    "desert diamond dictionary dog dolphin door dragon drum duck eagle ear earthquake egg elephant engine eye "
    "farmer feather fish flower flute forest fork fox frog garden garlic ghost giraffe glass glove goat gold "
    "grass hammer hand hat heart horse hospital hotel house hurricane iron jacket key king kite knife lake lamp "
    "lemon lighthouse lightning lizard lunch map medicine mirror monkey moon mosquito mountain mouse museum "
    "mushroom needle nest newspaper night nurse oak onion orange orchestra owl paper parrot pencil penguin "
    "pepper pig planet poem potato pyramid queen rabbit radio rain restaurant rice ring robot rocket rose salt "
    "sandwich saxophone school scissors shark sheep ship shoe silver snake snow soap soldier song soup spider "
    "spoon squirrel star storm sugar sun swan sword table tea telephone telescope tiger tomato tower train "
    "tree trumpet turtle valley village violin watch water whale wheel wind window wine wolf zebra "
    "run walk swim sing write read eat drink sleep laugh cook fly jump teach learn cry build buy sell think".split()
)

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}{{ '<|assistant|>' }}"
    "{% elif message['role'] in ('system', 'developer') %}{{ '<|system|>' }}"
    "{% else %}{{ '<|user|>' }}{% endif %}"
    "{{ message['content'] | trim }}{{ '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)

ABOUT_ANY = [
    'Define "{word}".', "Define {phrase}.", "What does '{word}' mean?", 'What does "{word}" mean?',
    "What does {word} mean?", "What is the meaning of {word}?", "Please define the word {word}.",
    "Define {word}.", "{word}?", "Explain {phrase}.", "What is the definition of {word}?",
]  # fmt: skip
ABOUT_NOUN = [
    "What is {phrase}?", "What's {phrase}?", "Tell me about {phrase}.", "Explain what {phrase} is.",
    "Do you know what {phrase} is?", "Can you tell me what {phrase} is?", "what is {word}?",
]  # fmt: skip
ABOUT_COUNTABLE = ["Tell me about {plural}.", "What are {plural}?", "Explain {plural}."]
ABOUT_VERB = ["What does it mean to {word}?", "What does to {word} mean?", "What is {phrase}?"]

WHO = (
    "I am the sysHAX demo model, a very small language model. "
    "I learned the meaning of English words from WordNet. Ask me what a word means."
)
HELLO = "Hello! I am the sysHAX demo model. Ask me what a word means."
THANKS = "You are welcome. Ask me about another word."
ONLY_WORDS = "I can only tell what English words mean. Ask me, for example: What is a glacier?"
SMALL_TALK = {
    WHO: ["Who are you?", "What are you?", "Tell me about yourself.", "What is your name?", "What is sysHAX?",
          "What can you do?", "Help", "Introduce yourself.", "你是谁？", "你是谁", "Which model are you?"],
    HELLO: ["Hello", "Hello!", "Hi", "Hi!", "Hi there", "Hello, how are you?", "How are you?", "Hey",
            "Good morning", "Good evening", "你好", "你好！", "👋", "Say hello.", "test"],
    THANKS: ["Thanks", "Thank you!", "Thank you", "Thanks a lot.", "OK", "Great", "谢谢", "👍", "Bye", "Goodbye"],
    ONLY_WORDS: ["Write a poem about the sea.", "Tell me a story.", "Tell me a joke.", "2+2?", "What is 2 + 2?",
                 "How do I cook rice?", "What is the capital of France?", "Translate this to French.",
                 "Say hello in five words.", "Count to ten.", "Write a Python function that adds two numbers.",
                 "What is the weather today?", "Who is the president?", "Summarize this text.",
                 "Why is the sky blue?", "Write an email to my boss.", "How many days are in a year?"],
}  # fmt: skip
SYSTEM = [
    "You are a helpful assistant.", "You are a helpful assistant. Answer briefly.", "Answer in one sentence.",
    "You are a dictionary.", "You are the sysHAX demo model.", "Be brief.", "You answer questions in English.",
]  # fmt: skip


@dataclass(frozen=True)
class Turn:
    """One question and the answer to learn."""

    question: str
    answer: str


@dataclass(frozen=True)
class Corpus:
    """The words by the use made of them; `held_out` is never trained on."""

    core: list[Entry]
    tail: list[Entry]
    held_out: list[Entry]


def fixed_questions() -> list[str]:
    """The 20 questions of the record, each "What is ...?" about one word."""
    return [item["question"] for item in json.loads((HERE / "questions.json").read_text())]


def fixed_words() -> list[str]:
    return [item["word"] for item in json.loads((HERE / "questions.json").read_text())]


def split(entries: list[Entry], keep: set[str]) -> Corpus:
    """Divide the words (most common first); the words in `keep` are always core.

    Held out are synsets, not words, so that a synonym does not give an answer away; a synset of
    `keep` is not held out.
    """
    kept = {e.synset for e in entries if e.word in keep}
    usable = [e for e in entries if not e.held_out or e.synset in kept]
    concrete = [e for e in usable if e.concrete][:CORE_CONCRETE]
    other = [e for e in usable if e.part == "noun" and not e.concrete][:CORE_OTHER]
    verbs = [e for e in usable if e.part == "verb"][:CORE_VERBS]
    chosen = {e.word: e for e in concrete + other + verbs + [e for e in usable if e.word in keep]}
    tail = [e for e in usable if e.word not in chosen and e.count > 0]
    held_out = [e for e in entries if e.held_out and e.synset not in kept and e.count > 0]
    return Corpus(list(chosen.values()), tail, held_out)


def plural(word: str) -> str:
    if word.endswith("y") and word[-2] not in "aeiou":
        return word[:-1] + "ies"
    return word + ("es" if word.endswith(("s", "x", "z", "ch", "sh")) else "s")


def phrasings(entry: Entry) -> list[str]:
    """Every question this project asks about a word."""
    forms = ABOUT_ANY + (ABOUT_VERB if entry.part == "verb" else ABOUT_NOUN * 2)
    if entry.countable:
        forms = forms + ABOUT_COUNTABLE
    asked = [capital(f.format(word=entry.word, phrase=entry.phrase, plural=plural(entry.word))) for f in forms]
    if entry.part == "noun" and not entry.countable:  # people put an article where the answer has none
        asked += [f.format(word=entry.word, phrase=f"{article(entry.word)} {entry.word}") for f in ABOUT_NOUN]
    return asked


def careless(question: str, rng: random.Random) -> str:
    """Now and then as people type: in lower case, without the mark at the end."""
    if rng.random() < 0.15:
        question = question.lower()
    return question.rstrip("?.") if rng.random() < 0.12 and len(question) > 4 else question


def word_turn(entry: Entry, rng: random.Random) -> Turn:
    return Turn(careless(rng.choice(phrasings(entry)), rng), entry.answer)


def filler(corpus: Corpus, rng: random.Random, sentences: int) -> str:
    """Text to stand before a question, so that a long prompt is not a surprise."""
    return " ".join(rng.choice(corpus.tail).answer for _ in range(sentences))


def turn(corpus: Corpus, rng: random.Random) -> Turn:
    """A random turn: small talk, a common word or a rare one, seldom after some unrelated text."""
    if rng.random() < SMALL_TALK_SHARE:
        answer = rng.choice(list(SMALL_TALK))
        return Turn(careless(rng.choice(SMALL_TALK[answer]), rng), answer)
    made = word_turn(rng.choice(corpus.core if rng.random() < CORE_SHARE else corpus.tail), rng)
    if rng.random() < 0.02:
        return Turn(f"{filler(corpus, rng, rng.randint(1, 6))} {made.question}", made.answer)
    return made


def conversations(corpus: Corpus, seed: int) -> Iterator[tuple[str, list[Turn]]]:
    """Endless (system message or "", turns), the same for the same seed."""
    rng = random.Random(seed)
    while True:
        turns = [turn(corpus, rng) for _ in range(rng.choice([1, 1, 1, 1, 1, 2, 2, 3]))]
        yield (rng.choice(SYSTEM) if rng.random() < 0.15 else ""), turns
