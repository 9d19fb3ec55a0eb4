"""Reads the WordNet 3.0 database files and makes one readable sentence per word."""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass
from pathlib import Path

WORDNET = Path("/usr/share/wordnet")  # where Debian's wordnet-base puts it
HELD_OUT_SHARE = 50  # one synset in this many is kept out of training
NOUN_FIRST = 4  # "What is a hammer?" asks for the noun, unless the verb is this much more common
MAX_WORDS = 26  # longer definitions are left out: a small model blurs them

# Lexicographer files (lexnames(5)) whose nouns are mostly countable things.
COUNTABLE = {"05", "06", "08", "14", "15", "17", "18", "20"}
# Those a visitor is likely to ask about: the above, and food, substances, weather, time.
CONCRETE = COUNTABLE | {"13", "19", "27", "28"}
MASS = {"12", "13", "27"}  # feelings, food, substances: "Bread is food made from ..."
ANIMALS = "05"
ARTICLES = ("a ", "an ", "any ", "one ", "either ", "each ", "someone ", "something ")
# Starts of a definition that take no article: one is there, or the word is a plural.
ONE_OR_MANY = (
    r"(a|an|any|the|one|either|each|some|all|animals|domesticated bovine)\b"
    r"|.*\b(animals|vertebrates|mammals|birds|group)\b"
)


@dataclass(frozen=True)
class Entry:
    """A word, its first sense and the answer made of it; `count` is its tag count in SemCor."""

    word: str
    part: str  # "noun" or "verb"
    synset: str  # part and byte offset in the data file
    lexfile: str
    definition: str
    count: int

    @property
    def countable(self) -> bool:
        return self.part == "noun" and self.lexfile in COUNTABLE and self.definition.startswith(ARTICLES)

    @property
    def concrete(self) -> bool:
        return self.part == "noun" and self.lexfile in CONCRETE

    @property
    def phrase(self) -> str:
        """The word as it stands in a sentence: "a glacier", "bread", "to run"."""
        if self.part == "verb":
            return f"to {self.word}"
        return f"{article(self.word)} {self.word}" if self.countable else self.word

    @property
    def answer(self) -> str:
        """The definition as a sentence: "A glacier is a slowly moving mass of ice."."""
        if self.part == "verb":
            return f"To {self.word} is to {self.definition}."
        if self.countable or self.lexfile in MASS or self.definition.startswith("the "):
            return f"{capital(self.phrase)} is {self.definition}."
        return f'The word "{self.word}" means {self.definition}.'

    @property
    def held_out(self) -> bool:
        return zlib.crc32(self.synset.encode()) % HELD_OUT_SHARE == 0


def article(word: str) -> str:
    return "an" if word[0] in "aeiou" and not re.match(r"uni|eu|use|one", word) else "a"


def capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def definition_of(gloss: str) -> str:
    """The first clause of a gloss, without remarks in brackets; "" where it is not plain or too long."""
    clause = re.sub(r"\([^)]*\)", "", re.split('[;:"]', gloss)[0])
    clause = re.sub(r"\s+", " ", clause).replace(" ,", ",").strip(" .,:")
    clause = clause.removeprefix("to ")
    readable = re.fullmatch(r"[A-Za-z0-9 ,.'\-/]+", clause) and 2 <= len(clause.split()) <= MAX_WORDS
    return clause if readable else ""


def tag_counts(root: Path) -> dict[tuple[str, str], int]:
    """Tag count of each word's first sense, by ("noun" or "verb", word)."""
    parts = {"1": "noun", "2": "verb"}
    counts = {}
    for line in (root / "cntlist.rev").read_text().splitlines():
        key, sense, count = line.split()
        word, rest = key.split("%")
        if sense == "1" and rest[0] in parts:
            counts[parts[rest[0]], word.replace("_", " ")] = int(count)
    return counts


def synsets(root: Path, part: str) -> dict[str, list[str]]:
    """Offset -> [lexicographer file, lemmas as spelled, gloss] for one part of speech."""
    found = {}
    for line in (root / f"data.{part}").read_text().splitlines():
        if line.startswith(" "):  # the licence at the head of the file
            continue
        head, gloss = line.split(" | ", 1)
        field = head.split()
        lemmas = field[4 : 4 + 2 * int(field[3], 16) : 2]
        found[field[0]] = [field[1], " ".join(lemmas), gloss]
    return found


def entries_of(root: Path, part: str, counts: dict[tuple[str, str], int]) -> list[Entry]:
    """First senses of the words of one part of speech: lower-case words with a readable definition."""
    known, made = synsets(root, part), []
    for line in (root / f"index.{part}").read_text().splitlines():
        if line.startswith(" "):
            continue
        field = line.split()
        offset = field[6 + int(field[3])]  # the first sense follows p_cnt pointers and two counts
        lexfile, lemmas, gloss = known[offset]
        definition, word = definition_of(gloss), field[0].replace("_", " ")
        if lexfile == ANIMALS and definition and not re.match(ONE_OR_MANY, definition):
            definition = f"{article(definition)} {definition}"  # "large feline ..." and the like
        common = re.fullmatch(r"[a-z][a-z ]+", word) and field[0] in lemmas.split()
        if definition and common:
            made.append(Entry(word, part, f"{part}{offset}", lexfile, definition, counts.get((part, word), 0)))
    return made


def read_entries(root: Path = WORDNET) -> list[Entry]:
    """All usable words, each once (as noun or verb, whichever is more common), most common first.

    Raises OSError where wordnet-base is not installed.
    """
    counts = tag_counts(root)
    entries = entries_of(root, "noun", counts) + entries_of(root, "verb", counts)
    entries.sort(key=lambda e: (e.count + 1) * NOUN_FIRST if e.part == "noun" else e.count)
    chosen = {e.word: e for e in entries}.values()
    return sorted(chosen, key=lambda e: (-e.count, e.word))
