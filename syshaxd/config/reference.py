"""The list of all keys, out of the schema: for `syshax config --help` and docs/config.md (python3 -m ... prints it)."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator

from .emit import human, scalar_text
from .nodes import dotted
from .schema import Leaf, Schema, allowed, leaves

_RELOAD = {"now": "reload", "unit": "reload; the unit is replaced", "restart": "restart of the daemon"}


def default_text(schema: Schema) -> str:
    """The default as it would be written in YAML."""
    value = schema["default"]
    if isinstance(value, (list, dict)):
        return "[]" if isinstance(value, list) else "{}"
    return human(value, schema) or scalar_text(value)


def help_lines() -> Iterator[str]:
    """One line a key: key, default, what it is."""
    for leaf in leaves():
        yield f"  {dotted(leaf.path):<42}{default_text(leaf.schema):<22}{leaf.schema['description']}"


def markdown() -> str:
    """Tables for docs/config.md, one a section."""
    parts: list[str] = []
    for section, group in itertools.groupby(leaves(), key=_section):
        parts.append(f"### {section}\n\n| key | default | allowed | takes effect | |\n|---|---|---|---|---|")
        parts.extend(_row(leaf) for leaf in group)
        parts.append("")
    return "\n".join(parts)


def _section(leaf: Leaf) -> str:
    return dotted(leaf.path[:-1]) or "top level"


def _row(leaf: Leaf) -> str:
    cells = (f"`{dotted(leaf.path)}`", f"`{default_text(leaf.schema)}`", allowed(leaf.schema), _RELOAD[leaf.reload])
    return "| " + " | ".join((*cells, leaf.schema["description"])) + " |"


if __name__ == "__main__":
    sys.stdout.write(markdown())
