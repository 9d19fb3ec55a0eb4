"""A name means one thing within a world (what one process imports); broad `except` clauses say why or raise again."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import counts
import pytest


@pytest.mark.parametrize("world", counts.WORLDS)
def test_no_class_name_is_doubled(world: str) -> None:
    assert counts.doubled(counts.classes(world)) == {}


@pytest.mark.parametrize("world", counts.WORLDS)
def test_no_file_name_is_doubled(world: str) -> None:
    """But for the verbs of `syshax`, each a file of its name in cli/."""
    paths = [(word, place) for word, place in counts.files(world) if not place.startswith("syshaxd/cli/")]
    assert counts.doubled(paths) == {}


def broad_handlers(path: Path) -> Iterator[str]:
    """Handlers of every exception that neither raise again nor have a comment on their line."""
    text = path.read_text(encoding="utf-8")
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.ExceptHandler):
            continue
        broad = node.type is None or isinstance(node.type, ast.Name) and node.type.id in ("Exception", "BaseException")
        raises = any(isinstance(inner, ast.Raise) for inner in ast.walk(node))
        if broad and not raises and "#" not in text.splitlines()[node.lineno - 1]:
            yield f"{counts.name(path)}:{node.lineno}"


def test_broad_handlers_raise_again_or_say_why() -> None:
    paths = [path for folder in ("syshaxd", "kernels/python") for path in counts.sources(folder)]
    assert [place for path in paths for place in broad_handlers(path)] == []
