"""What a unit is, only its own file asks: nothing else of the daemon compares the name of a kind or of a device."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from syshaxd.units import KINDS
from syshaxd.units.accelerators import ACCELERATORS

DAEMON = Path(__file__).resolve().parents[2] / "syshaxd"
NAMES = {*KINDS, *ACCELERATORS} - {"none"}


def compared(path: Path) -> Iterator[str]:
    """Comparisons with such a name."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Compare) and not isinstance(node.left, ast.Constant):  # a text may hold such a word
            sides = [side for whole in (node.left, *node.comparators) for side in ast.walk(whole)]
            if any(isinstance(side, ast.Constant) and side.value in NAMES for side in sides):
                yield f"{path.relative_to(DAEMON)}:{node.lineno}"


def test_nobody_asks_what_kind_a_unit_is() -> None:
    files = [path for path in DAEMON.rglob("*.py") if path.parent.name != "units"]
    assert len(files) > 100
    assert [place for path in files for place in compared(path)] == []
