"""The tokenizer (byte-level BPE, GPT-2's splitting) and the packing of conversations into rows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from chat import SMALL_TALK, SYSTEM, Corpus, Turn, phrasings
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

SPECIAL = ["<|pad|>", "<|begin|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
PAD, BEGIN, END, SYS, USER, ASSISTANT = range(6)
VOCABULARY = 4096

Pieces = list[tuple[list[int], bool]]  # token ids, and whether the model has to learn to say them


def train_tokenizer(corpus: Corpus, path: Path) -> Tokenizer:
    """Learn 4,096 tokens, all 256 bytes among them, from the training words; writes `path`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    lines = [s for e in corpus.core for s in (*phrasings(e), *[e.answer] * 10)]
    lines += [e.answer for e in corpus.tail] + SYSTEM * 20
    lines += [s for answer, asked in SMALL_TALK.items() for s in (answer, *asked)] * 20
    tokenizer.train_from_iterator(lines, trainer)
    tokenizer.save(str(path))
    return tokenizer


def pieces(tokenizer: Tokenizer, system: str, turns: list[Turn]) -> Pieces:
    """A conversation as the chat template spells it; only answers and their end are learnt."""
    made: Pieces = [([BEGIN], False)]
    if system:
        made.append(([SYS, *tokenizer.encode(system).ids, END], False))
    for turn in turns:
        made.append(([USER, *tokenizer.encode(turn.question).ids, END, ASSISTANT], False))
        made.append(([*tokenizer.encode(turn.answer).ids, END], True))
    return made


def flat(parts: Pieces) -> tuple[list[int], list[bool]]:
    """Token ids, and for each whether it is to be learnt."""
    ids = [t for part, _ in parts for t in part]
    return ids, [learn for part, learn in parts for _ in part]


def rows(tokenizer: Tokenizer, talk: Iterator[tuple[str, list[Turn]]], length: int) -> Iterator[torch.Tensor]:
    """Conversations end to end, cut into rows; shape (2, length + 1): ids, and 1 where learnt."""
    ids: list[int] = []
    learnt: list[bool] = []
    while True:
        while len(ids) < length + 1:
            more, marks = flat(pieces(tokenizer, *next(talk)))
            ids, learnt = ids + more, learnt + marks
        yield torch.tensor([ids[: length + 1], [int(m) for m in learnt[: length + 1]]])
        # A row starts with a conversation, so that positions 0.. are as at inference.
        ids, learnt = [], []
