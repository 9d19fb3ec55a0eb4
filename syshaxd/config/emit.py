"""A tree back to YAML text that reads as the same values, on its own or with the place each value comes from."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from .nodes import Map, Mark, Node, Scalar, Sequence
from .quantities import duration, format_duration, format_size, size
from .scalars import AmbiguousError, resolve
from .schema import Schema, is_section, schema, sub

_SAFE = re.compile(r"[A-Za-z0-9/._+-][A-Za-z0-9/._+=@%-]*(:[A-Za-z0-9/._+=@%-]+)*")
_ORIGIN_COLUMN = 56
DEFAULT = Mark("default")


def emit(root: Node, origins: bool = False) -> str:
    """YAML of a tree in canonical shape; with `origins`, each value's file and line stand behind it."""
    lines = [_line(depth, text, mark if origins else None) for depth, text, mark in _walk(root, schema(), 0)]
    return "".join(f"{line}\n" for line in lines)


def with_defaults(root: Node) -> Node:
    """The tree with every key that was not written, at its default."""
    return _filled(root, schema())


def to_node(value: Any, node_schema: Schema | None = None) -> Node:
    """Plain data as a tree without a place. Numbers of seconds and bytes get the unit people would write."""
    if isinstance(value, dict):
        items = {name: to_node(item) for name, item in value.items()}
        return Map(DEFAULT, {name: DEFAULT for name in items}, items)
    if isinstance(value, (list, tuple)):
        return Sequence(DEFAULT, tuple(to_node(item) for item in value))
    text = human(value, node_schema or {})
    return Scalar(DEFAULT, text if text is not None else value, str(value) if text is None else text)


def human(value: Any, node_schema: Schema) -> str | None:
    """ "5m" for 300 seconds, "1GiB" for 1073741824 bytes; None where the plain value is best, 0 for example."""
    if "x-unit" not in node_schema or isinstance(value, str) or not value:
        return None
    if node_schema["x-unit"] == "size":
        text = format_size(value)
        return text if size(text) == value else None
    text = format_duration(value)
    return text if "e" not in text and duration(text) == value else None


def scalar_text(value: Any) -> str:
    """One value in YAML, quoted where it must be."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return value if _reads_as_itself(value) else _quoted(value)
    if isinstance(value, float):
        return f"{int(value)}" if value == int(value) and abs(value) < 1e15 else repr(value)
    return str(value)


def _reads_as_itself(text: str) -> bool:
    try:
        safe = bool(_SAFE.fullmatch(text)) and text != "-" and not text.startswith(("---", "..."))
        return safe and resolve(text) == text
    except AmbiguousError:
        return False


def _quoted(text: str) -> str:
    return '"' + "".join(_escaped(char) for char in text) + '"'


def _escaped(char: str) -> str:
    if char in '"\\':
        return "\\" + char
    if char.isprintable() and char != "\ufeff":
        return char
    code = ord(char)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _line(depth: int, text: str, mark: Mark | None) -> str:
    line = "  " * depth + text
    return line if mark is None else f"{line:<{_ORIGIN_COLUMN}} # {mark}"


def _walk(node: Node, node_schema: Schema | None, depth: int) -> Iterator[tuple[int, str, Mark | None]]:
    """(depth, text, place) of each line of a section."""
    assert isinstance(node, Map)
    for name, child in node.items.items():
        key, inner = scalar_text(name), sub(node_schema, name)
        if isinstance(child, Map) and child.items:
            yield depth, f"{key}:", None
            yield from _walk(child, inner, depth + 1)
        else:
            yield depth, f"{key}: {_inline(child, inner)}", child.mark


def _inline(node: Node, node_schema: Schema | None) -> str:
    if isinstance(node, Sequence):
        return "[" + ", ".join(_inline(item, None) for item in node.items) + "]"
    if isinstance(node, Map):
        pairs = (f"{scalar_text(name)}: {_inline(child, None)}" for name, child in node.items.items())
        return "{" + ", ".join(pairs) + "}"
    if node.value is None:
        return "{}" if is_section(node_schema) else "null"
    return scalar_text(node.value) if isinstance(node.value, str) else node.text


def _filled(node: Node | None, node_schema: Schema) -> Node:
    if not is_section(node_schema):
        return node if node is not None else to_node(node_schema["default"], node_schema)
    given = node if isinstance(node, Map) else Map(DEFAULT)
    names = _names(given, node_schema)
    items = {}
    for name in names:
        inner = sub(node_schema, name)
        items[name] = given.items[name] if inner is None else _filled_child(given, name, inner)
    return Map(given.mark, {name: given.keys.get(name, DEFAULT) for name in names}, items)


def _filled_child(given: Map, name: str, inner: Schema) -> Node:
    child = given.items.get(name)
    if "default" not in inner and not is_section(inner):
        return child if child is not None else Scalar(DEFAULT, None)  # names the administrator chose, inside env
    return _filled(child, inner)


def _names(given: Map, node_schema: Schema) -> list[str]:
    known = [name for name, child in node_schema.get("properties", {}).items() if "x-alias" not in child]
    if "role" in known and "role" not in given.items:
        known.remove("role")  # it follows from the unit's name
    return known + [name for name in given.items if name not in known]
