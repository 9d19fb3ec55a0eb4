"""What a unit asks of the binding: its `cpu` section and the variables of the user's guides in its `env`. Pure.

Both ways may say the same; where they differ, both are named and nothing is guessed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from syshaxd.config.types import UnitConfig
from syshaxd.topology import add_range, format_cpu_list, parse_cpu_list
from syshaxd.units import KINDS
from syshaxd.units.base import CPU_LISTS, THREADS

_PART = re.compile(r"(\d{1,9})(?:-(\d{1,9})(?::(\d{1,9}))?)?", re.ASCII)


@dataclass(frozen=True)
class Inputs:
    """What was said. `affinity`: auto, none or a list in the kernel's notation; `rank_cpus`: vLLM's own cut."""

    affinity: str = "auto"
    threads: int | None = None
    rank_cpus: tuple[frozenset[int], ...] = ()
    problems: tuple[str, ...] = ()


def _decided(unit: UnitConfig, bound: bool) -> frozenset[str]:
    """Variables of `env` that the binding takes over: what they say is in the plan, and comes back from there."""
    if not unit.on_cpus:
        return frozenset()
    if not bound:  # `auto` would bind it after all, or is not known to its libraries
        return frozenset(name for name in CPU_LISTS if unit.env.get(name, "").strip() == "auto")
    ranks = KINDS[unit.kind].rank_variable
    return frozenset((*CPU_LISTS, THREADS, *([ranks] if ranks else [])))


def affinity_none(unit: UnitConfig) -> bool:
    """Whether the unit is not to be bound."""
    return unit.cpu.affinity == "none" or unit.env.get(KINDS[unit.kind].rank_variable) == "nobind"


def read_inputs(unit: UnitConfig) -> Inputs:
    """The unit's wishes. Variables count on CPU units only: an accelerator unit's threads are its own affair."""
    if not unit.on_cpus:
        return Inputs(unit.cpu.affinity, unit.cpu.threads)
    problems: list[str] = []
    ranks = _ranks(unit, problems)
    affinity = _affinity(unit, ranks, problems)
    threads = _threads(unit, problems)
    return Inputs(affinity, threads, ranks, tuple(problems))


def parse_affinity(text: str) -> frozenset[int]:
    """CPU numbers as libgomp takes them: `0-3,8`, `0 2 4`, `0-14:2`. ValueError on anything else."""
    cpus: set[int] = set()
    for part in filter(None, re.split(r"[\s,]+", text.strip())):
        match = _PART.fullmatch(part)
        first, last, step = (int(group) if group else None for group in match.groups()) if match else (None, None, None)
        if first is None or step == 0 or (last is not None and last < first):
            raise ValueError(f"{part!r} is not a CPU or a range of CPUs; expected a list such as 0-3,8 or 0-14:2")
        add_range(cpus, part, range(first, (first if last is None else last) + 1, step or 1))
    if not cpus:
        raise ValueError("expected a list such as 0-3,8 or 0-14:2, found no CPU")
    return frozenset(cpus)


def _affinity(unit: UnitConfig, ranks: tuple[frozenset[int], ...], problems: list[str]) -> str:
    """cpu.affinity, or what the variables say where it is auto."""
    said = list(_said(unit, ranks, problems))
    if unit.cpu.affinity != "auto":
        said.insert(0, ("cpu.affinity", _named(unit.cpu.affinity)))
    if not said:
        return "none" if affinity_none(unit) else "auto"
    first, cpus = said[0]
    for name, other in said[1:]:
        if other != cpus:
            words = f"{first} says {_words(cpus)}, env.{name} says {_words(other)}"
            problems.append(f"unit {unit.name}: {words}; say it once, or the same")
    return unit.cpu.affinity if cpus is None else format_cpu_list(cpus)


def _said(
    unit: UnitConfig, ranks: tuple[frozenset[int], ...], problems: list[str]
) -> Iterator[tuple[str, frozenset[int] | None]]:
    """Variables that name CPUs; `auto` says nothing."""
    for name in CPU_LISTS:
        text = unit.env.get(name, "").strip()
        if not text or text == "auto":
            continue
        try:
            yield name, parse_affinity(text)
        except ValueError as err:
            problems.append(f"unit {unit.name}: env.{name} is {text!r}: {err}{', or auto' * (name == CPU_LISTS[0])}")
    if ranks:
        yield KINDS[unit.kind].rank_variable, frozenset().union(*ranks)


def _named(affinity: str) -> frozenset[int] | None:
    """None for `none`, and for a list that is faulty in itself, which the plan tells."""
    try:
        return None if affinity == "none" else parse_cpu_list(affinity)
    except ValueError:
        return None


def _words(cpus: frozenset[int] | None) -> str:
    return "not to bind" if cpus is None else f"CPUs {format_cpu_list(cpus)}"


def _ranks(unit: UnitConfig, problems: list[str]) -> tuple[frozenset[int], ...]:
    """vLLM's list of a rank each, joined by |."""
    variable = KINDS[unit.kind].rank_variable
    text = unit.env.get(variable, "").strip()
    if text in ("", "auto", "nobind"):
        return ()
    try:
        parts = tuple(parse_affinity(part) for part in text.split("|"))
        both: set[int] = set()
        for part in parts:
            if both & part:
                raise ValueError(f"two ranks share CPUs {format_cpu_list(both & part)}")
            both |= part
    except ValueError as err:
        problems.append(f"unit {unit.name}: env.{variable} is {text!r}: {err}")
        return ()
    if len(parts) != unit.tensor_parallel_size:
        count = f"{len(parts)} lists for tensor_parallel_size {unit.tensor_parallel_size}"
        problems.append(f"unit {unit.name}: env.{variable} has {count}; give each rank one")
        return ()
    return parts


def _threads(unit: UnitConfig, problems: list[str]) -> int | None:
    """cpu.threads, or OMP_NUM_THREADS, which counts the threads of one rank."""
    text, each = unit.env.get(THREADS, "").strip(), KINDS[unit.kind].ranks(unit)
    if not text:
        return unit.cpu.threads
    if not (text.isascii() and text.isdecimal() and 0 < int(text) < 1 << 16):
        problems.append(f"unit {unit.name}: env.{THREADS} is {text!r}, expected a whole number from 1")
        return unit.cpu.threads
    threads = int(text) * each
    if unit.cpu.threads not in (None, threads):
        ranks = f" for each of {each} ranks" if each > 1 else ""
        words = f"cpu.threads is {unit.cpu.threads}, env.{THREADS} is {text}{ranks}"
        problems.append(f"unit {unit.name}: {words}; say it once, or the same")
    return threads


def own_environment(unit: UnitConfig, bound: bool) -> Mapping[str, str]:
    """The unit's `env` less what the binding decides; `bound`: whether the plan gives it CPUs."""
    taken = _decided(unit, bound)
    return {name: value for name, value in unit.env.items() if name not in taken}
