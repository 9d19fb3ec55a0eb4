"""Counts that show whether one fact still stands in one place: `python packaging/dev/counts.py`.

A world is what one process imports: the daemon, a sysinfer unit, the plugin in a vLLM unit. Style tests hold it.
"""

from __future__ import annotations

import ast
import collections
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SHARED = tuple(f"kernels/python/syshax_{part}" for part in ("contract", "handoff", "kernels"))
WORLDS: Mapping[str, tuple[str, ...]] = {
    "daemon": ("syshaxd",),
    "sysinfer": (*SHARED, "kernels/python/sysinfer"),
    "vllm": (*SHARED, "kernels/python/syshax_vllm"),
}
NO_NAME = ("__init__.py", "__main__.py")
Places = Mapping[str, list[str]]


def sources(folder: str, pattern: str = "*.py") -> Iterator[Path]:
    """Files of a folder, in order."""
    return iter(sorted(path for path in (ROOT / folder).rglob(pattern) if "__pycache__" not in path.parts))


def world_files(world: str) -> Iterator[Path]:
    """Files of a world."""
    return (path for folder in WORLDS[world] for path in sources(folder))


def name(path: Path) -> str:
    """Path inside the project."""
    return str(path.relative_to(ROOT))


def tree(path: Path) -> ast.Module:
    """A file, parsed."""
    return ast.parse(path.read_text(encoding="utf-8"))


def doubled(pairs: Iterable[tuple[str, str]]) -> Places:
    """Names that stand in several places."""
    found: dict[str, list[str]] = collections.defaultdict(list)
    for word, place in pairs:
        found[word].append(place)
    return {word: places for word, places in sorted(found.items()) if len(places) > 1}


def classes(world: str) -> Iterator[tuple[str, str]]:
    """Each class of a world, with its file."""
    for path in world_files(world):
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.ClassDef):
                yield node.name, name(path)


def files(world: str) -> Iterator[tuple[str, str]]:
    """Each file name of a world, with its path."""
    return ((path.name, name(path)) for path in world_files(world) if path.name not in NO_NAME)


def mentions(pattern: str, folder: str, outside: tuple[str, ...] = (), files_like: str = "*.py") -> Mapping[str, int]:
    """How often a pattern stands in each file of a folder, without those under `outside`."""
    paths = (path for path in sources(folder, files_like) if not name(path).startswith(outside or ("\0",)))
    counted = {name(path): len(re.findall(pattern, path.read_text(encoding="utf-8"))) for path in paths}
    return {path: count for path, count in counted.items() if count}


def rewritten_attributes(path: Path, owner: str) -> set[str]:
    """Attributes of a class that other methods than __init__ assign."""
    (found,) = [node for node in ast.walk(tree(path)) if isinstance(node, ast.ClassDef) and node.name == owner]
    methods = [node for node in found.body if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
    return {
        node.attr
        for method in methods
        if method.name != "__init__"
        for node in ast.walk(method)
        if isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Store)
        and isinstance(node.value, ast.Name)
        and node.value.id == "self"
    }


def private_functions(path: Path) -> Iterator[tuple[str, int]]:
    """Each function of a file whose name begins with one underscore, and how often the file names it."""
    nodes = list(ast.walk(tree(path)))
    used = collections.Counter(
        node.id if isinstance(node, ast.Name) else node.attr
        for node in nodes
        if isinstance(node, (ast.Name, ast.Attribute)) and isinstance(node.ctx, ast.Load)
    )
    for node in nodes:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and re.match("_[^_]", node.name):
            yield node.name, used[node.name]


def show(what: str, count: object, where: Iterable[str] = ()) -> None:
    """A count, and the places that make it up."""
    print(f"{what}: {count}")
    for place in where:
        print(f"    {place}")


def main() -> None:
    """All counts."""
    kinds = mentions(r"\bUnitKind\.", "syshaxd", ("syshaxd/units/",))
    show("mentions of a unit kind outside syshaxd/units", sum(kinds.values()), kinds)
    homes = mentions(r"\b(Refuse|RequestError)\(\s*\w*\(?(429|503)|\bRefuse\(", "syshaxd", ("syshaxd/model/",))
    show("homes of a refusal (429, 503)", len(homes), homes)
    formats = {**mentions("(?i)q4_0", "kernels/src", (), "*.[ch]*"), **mentions("(?i)q4_0", "kernels/python")}
    show("files that name the weight format q4_0", len(formats), formats)
    changed = rewritten_attributes(ROOT / "syshaxd/runner/stream.py", "Stream")
    show("attributes of Stream rewritten after its making", len(changed), sorted(changed))
    for world in WORLDS:
        for what, pairs in (("class", classes(world)), ("file", files(world))):
            twice = doubled(pairs)
            show(f"{what} names doubled in the world {world}", len(twice), (f"{k}: {v}" for k, v in twice.items()))
    mirrors = {**mentions("(?i)mirror", "syshaxd"), **mentions("(?i)mirror", "kernels/python")}
    show("mentions of a mirror of something elsewhere", sum(mirrors.values()), mirrors)
    uses = [
        used
        for folder in ("syshaxd", "kernels/python")
        for path in sources(folder)
        for _, used in private_functions(path)
    ]
    once = sum(used == 1 for used in uses)
    show("private functions called once", f"{once} of {len(uses)} ({once / len(uses):.0%})")


if __name__ == "__main__":
    main()
