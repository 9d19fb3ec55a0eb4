"""Data sets of random text with exact token lengths: groups of prompts that share a prefix (prefix cache tests)."""

from __future__ import annotations

import json
import random
import string
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

from .completions_client import BenchError, BenchRequest, CompletionsClient

WORD_LENGTHS = (3, 8)
REPAIRS = 8


@dataclass(frozen=True)
class Shape:
    """How many prompts of how many tokens."""

    groups: int
    prompts_per_group: int
    prefix: int
    suffix: int
    seed: int


def _words(draw: random.Random, count: int) -> str:
    letters = string.ascii_letters + string.digits
    return "".join(" " + "".join(draw.choices(letters, k=draw.randint(*WORD_LENGTHS))) for _ in range(count))


async def exact_text(endpoint: CompletionsClient, draw: random.Random, tokens: int) -> str:
    """Random text that the unit's tokenizer cuts into exactly `tokens` tokens, checked by tokenizing it again."""
    if tokens <= 0:
        return ""
    for _ in range(REPAIRS):
        ids: list[int] = []
        while len(ids) < tokens:
            ids.extend(await endpoint.tokenize(_words(draw, max(8, (tokens - len(ids)) // 4))))
        text = await endpoint.detokenize(ids[:tokens])
        # A cut inside a word may merge differently when read again: pad or cut until the count is right.
        for _ in range(REPAIRS):
            again = list(await endpoint.tokenize(text))
            if len(again) == tokens:
                return text
            text = await endpoint.detokenize(again[:tokens]) if len(again) > tokens else text + _words(draw, 1)[:2]
    raise BenchError(f"no random text of exactly {tokens} tokens was found in {REPAIRS} tries")


async def generate(endpoint: CompletionsClient, shape: Shape, progress: Callable[[int, int], None]) -> list[str]:
    """All prompts, each of exactly prefix + suffix tokens, shuffled by the seed."""
    draw = random.Random(shape.seed)
    prompts: list[str] = []
    for _ in range(shape.groups):
        prefix = await exact_text(endpoint, draw, shape.prefix)
        for _ in range(shape.prompts_per_group):
            prompts.append(await _prompt(endpoint, draw, prefix, shape))
            progress(len(prompts), shape.groups * shape.prompts_per_group)
    draw.shuffle(prompts)
    return prompts


async def _prompt(endpoint: CompletionsClient, draw: random.Random, prefix: str, shape: Shape) -> str:
    """Tokens may merge where the two parts meet: then the suffix is made again, longer or shorter by the difference."""
    total, suffix = shape.prefix + shape.suffix, shape.suffix
    for _ in range(REPAIRS):
        text = prefix + await exact_text(endpoint, draw, suffix)
        missing = total - len(await endpoint.tokenize(text))
        if not missing:
            return text
        suffix = max(1, suffix + missing)
    raise BenchError(f"no random prompt of exactly {total} tokens was found in {REPAIRS} tries")


def save(prompts: Sequence[str], path: Path) -> None:
    """One JSON object a line, {"prompt": text}, as `vllm bench serve --dataset-name custom` reads it."""
    try:
        with path.open("w", encoding="utf-8") as out:
            for prompt in prompts:
                out.write(json.dumps({"prompt": prompt}, ensure_ascii=False) + "\n")
    except OSError as error:
        raise BenchError(f"{path}: can't be written: {error.strerror}") from error


def load(path: Path, count: int, output_tokens: int) -> list[BenchRequest]:
    """The first `count` prompts of a file, over again from its start where it is shorter."""
    try:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        prompts = [str(json.loads(line)["prompt"]) for line in lines]
    except OSError as error:
        raise BenchError(f"{path}: can't be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise BenchError(f'{path}: expected JSON lines with "prompt": {error}') from error
    if not prompts:
        raise BenchError(f"{path}: holds no prompt")
    return [BenchRequest(prompts[i % len(prompts)], 0, output_tokens) for i in range(count)]


async def random_asks(
    endpoint: CompletionsClient, count: int, prompt_tokens: int, output_tokens: int, seed: int
) -> list[BenchRequest]:
    """Prompts of random token ids taken from random text, so that they are ids the model really has."""
    draw = random.Random(seed)
    pool: list[int] = []
    while len(pool) < prompt_tokens + 256:
        pool.extend(await endpoint.tokenize(_words(draw, 512)))
    asks = []
    for _ in range(count):
        start = draw.randrange(len(pool) - prompt_tokens)
        ids = pool[start : start + prompt_tokens]
        # A random first token keeps prompts from sharing a cached prefix.
        ids[0] = draw.choice(pool)
        asks.append(BenchRequest(ids, prompt_tokens, output_tokens))
    return asks
