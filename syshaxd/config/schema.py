"""The JSON Schema as the rest of the package needs it: what stands at a path, and how to say what is allowed there."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any

from syshaxd.units import KINDS

from .nodes import Path
from .quantities import format_duration, format_size

Schema = Mapping[str, Any]
ANY_NAME = "NAME"  # stands in paths for a name the administrator chooses
_KINDS = {"string": "text", "integer": "a whole number", "number": "a number", "array": "a list", "object": "a section"}


@dataclass(frozen=True)
class Leaf:
    """One key that has a value. `path` has ANY_NAME where any name may stand."""

    path: Path
    schema: Schema

    @property
    def reload(self) -> str:
        """What a change needs: now (nothing), unit (its unit is replaced) or restart (of the daemon)."""
        return str(self.schema["x-reload"])


@functools.lru_cache(maxsize=1)
def schema() -> Schema:
    """The schema shipped beside this module, with the kinds of unit that there are."""
    loaded: Schema = json.loads((FilePath(__file__).parent / "schema.json").read_text(encoding="utf-8"))
    kind = loaded["properties"]["units"]["additionalProperties"]["properties"]["kind"]
    kind["enum"] = list(KINDS)
    kind["description"] = f"The inference server: {', '.join(f'{one.name} ({one.summary})' for one in KINDS.values())}."
    return loaded


def sub(parent: Schema | None, part: str | int) -> Schema | None:
    """The schema of a child, or None where the key is unknown. Aliases are unknown: they are moved away before."""
    if parent is None:
        return None
    if isinstance(part, int):
        return parent.get("items")
    child: Schema | None = parent.get("properties", {}).get(part)
    if child is None or "x-alias" in child:
        other = parent.get("additionalProperties")
        return other if isinstance(other, dict) else None
    return child


def at(path: Path) -> Schema | None:
    """The schema at a path, or None."""
    found: Schema | None = schema()
    for part in path:
        found = sub(found, part)
    return found


def leaves(parent: Schema | None = None, path: Path = ()) -> Iterator[Leaf]:
    """Every key with a value, in the schema's order."""
    node = schema() if parent is None else parent
    if "default" in node and "properties" not in node.get("additionalProperties", {}):
        yield Leaf(path, node)
        return
    for name, child in node.get("properties", {}).items():
        if "x-alias" not in child:
            yield from leaves(child, path + (name,))
    other = node.get("additionalProperties")
    if isinstance(other, dict):
        yield from leaves(other, path + (ANY_NAME,))


def is_section(node: Schema | None) -> bool:
    """Whether a section (not a value or a list) stands here."""
    return node is not None and node.get("type") == "object"


def children(node: Schema) -> tuple[str, ...]:
    """Known keys of a section, aliases included."""
    return tuple(node.get("properties", ()))


def allowed(node: Schema) -> str:
    """What may stand here, in words: "a whole number from 0 to 65535"."""
    if "enum" in node:
        return "one of " + ", ".join(_word(value) for value in node["enum"] if value is not None)
    unit = node.get("x-unit")
    if unit == "duration":
        return f"a duration such as 30s, 500ms or 5m{_bounds(node, format_duration)}"
    if unit == "size":
        return f"a size such as 16MiB or 64g{_bounds(node, format_size)}"
    return str(node.get("x-allowed") or f"{_type(node)}{_bounds(node, '{:g}'.format)}")


def _word(value: Any) -> str:
    return '""' if value == "" else str(value)


def _type(node: Schema) -> str:
    kind = node.get("type", "object")
    if kind == "boolean":
        return "true or false"
    first = next(name for name in ([kind] if isinstance(kind, str) else kind) if name != "null")
    return _KINDS.get(first, first)


def _bounds(node: Schema, show: Any) -> str:
    low, high = node.get("minimum"), node.get("maximum")
    if low is not None and high is not None:
        return f" from {_plain(low, show)} to {_plain(high, show)}"
    return f", at least {_plain(low, show)}" if low is not None else ""


def _plain(value: Any, show: Any) -> str:
    return str(value) if isinstance(value, int) and show == "{:g}".format else "0" if value == 0 else str(show(value))
