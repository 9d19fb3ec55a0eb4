"""Flags of vLLM's command line: grouped, and old ones said anew. Pure.

What depends on vLLM's version is left to the plugin's own start module, which runs inside that version.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

CPU_BLOCK = 32  # tokens; vLLM's CPU attention takes multiples of it
TRANSFER = "--kv-transfer-config"
_GONE: Mapping[str, tuple[bool, str]] = {  # flag: whether a value follows, and what stands in its place
    "--swap-space": (True, "preempted requests keep their KV in the pool: pd.pool_size is its size"),
    "--preemption-mode": (True, "preempted requests keep their KV in the pool, as with swap"),
    "--enable-auto-pd-offload": (False, "sysHAX does it: pd.auto_offload"),
    "--device": (True, "the installed vLLM knows its device"),
    "--num-scheduler-steps": (True, "vLLM schedules every step"),
}


class Flag(NamedTuple):
    """One flag of a command line with the words that belong to it."""

    name: str  # with dashes
    value: str | None
    words: tuple[str, ...]


class Translated(NamedTuple):
    """Arguments that today's vLLM takes."""

    arguments: tuple[str, ...]
    transfer: str  # the user's own --kv-transfer-config
    notes: tuple[str, ...]


def flags(words: tuple[str, ...]) -> Iterator[Flag]:
    """Groups words into flags; a word without a dash belongs to the flag before it."""
    group: list[str] = []
    for word in (*words, "--"):
        if word.startswith("--") and group:
            name, equals, value = group[0].partition("=")
            given = value if equals else " ".join(group[1:]) if len(group) > 1 else None
            yield Flag(name.replace("_", "-"), given, tuple(group))
            group = []
        group.append(word)


def translate(words: tuple[str, ...], on_cpu: bool) -> Translated:
    """The user's flags, old ones replaced."""
    kept: list[str] = []
    notes: list[str] = []
    transfer = ""
    for flag in flags(words):
        gone = _GONE.get(flag.name)
        if gone is not None:
            notes.append(f"{' '.join(flag.words)}: vLLM has this no more; {gone[1]}")
            kept += flag.words[2:] if gone[0] and "=" not in flag.words[0] else flag.words[1:]
        elif flag.name == TRANSFER:
            transfer = flag.value or ""
        elif flag.name == "--block-size" and on_cpu and flag.value != str(block_for_cpu(flag.value)):
            notes.append(f"{' '.join(flag.words)}: {block_note(flag.value)}")
            kept.append(f"--block-size={block_for_cpu(flag.value)}")
        else:
            kept += flag.words
    return Translated(tuple(kept), transfer, tuple(notes))


def block_for_cpu(value: str | None) -> object:
    """The next size that CPU attention takes; what is no number stays."""
    return -(-int(value) // CPU_BLOCK) * CPU_BLOCK if value and value.isdecimal() else value


def block_note(value: str | None) -> str:
    return f"vLLM's CPU attention takes multiples of {CPU_BLOCK}: {block_for_cpu(value)} is used"
