"""A YAML document as a tree in which every value knows where it stands."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Union

Path = tuple[Union[str, int], ...]
Value = Union[None, bool, int, float, str]


@dataclass(frozen=True)
class Mark:
    """A place in a file; line and column count from 1 (0: the file as a whole)."""

    file: str
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" if self.line else self.file


@dataclass(frozen=True)
class Scalar:
    """One value. `text` is what the file says; `bad` marks a value already complained about."""

    mark: Mark
    value: Value
    text: str = ""
    bad: bool = False


@dataclass(frozen=True)
class Sequence:
    """A list."""

    mark: Mark
    items: tuple["Node", ...] = ()


@dataclass(frozen=True)
class Map:
    """A section. `keys` holds the place of each key, `items` its value, both in file order."""

    mark: Mark
    keys: dict[str, Mark] = field(default_factory=dict)
    items: dict[str, "Node"] = field(default_factory=dict)


Node = Union[Scalar, Sequence, Map]


def dotted(path: Path) -> str:
    """("units", "gpu", "args", 0) -> "units.gpu.args[0]"."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def find(node: Node, path: Path) -> Node | None:
    """The value at a path, or None."""
    for part in path:
        child = _child(node, part)
        if child is None:
            return None
        node = child
    return node


def _child(node: Node, part: str | int) -> Node | None:
    if isinstance(node, Map) and isinstance(part, str):
        return node.items.get(part)
    if isinstance(node, Sequence) and isinstance(part, int) and part < len(node.items):
        return node.items[part]
    return None


def place(node: Node, path: Path, key: bool = False) -> Mark:
    """Where the value (or, with `key`, the key) at a path stands; the nearest section around it where it is absent."""
    mark = node.mark
    for depth, part in enumerate(path):
        child = _child(node, part)
        if child is None:
            return mark
        mark = node.keys[part] if isinstance(node, Map) and isinstance(part, str) else child.mark
        if depth == len(path) - 1 and not key:
            mark = child.mark
        node = child
    return mark


def merge(first: Node, second: Node) -> Node:
    """`second` over `first`: sections merge, everything else replaces. An empty section changes nothing."""
    if isinstance(first, Map) and isinstance(second, Scalar) and second.value is None and not second.bad:
        return first
    if not (isinstance(first, Map) and isinstance(second, Map)):
        return second
    items = dict(first.items)
    for name, child in second.items.items():
        items[name] = merge(items[name], child) if name in items else child
    return Map(first.mark, {**first.keys, **second.keys}, items)
