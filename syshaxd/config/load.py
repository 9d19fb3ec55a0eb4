"""Files in, one checked configuration out, or every problem at once."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Any, Union

from syshaxd.errors import ConfigError, Problem

from .build import build
from .check import check
from .nodes import Map, Mark, Node, Path, merge
from .regular import read_regular
from .rules import broken_rules
from .schema import schema
from .shape import bad_paths, canonical, infer, plain, problem
from .strict import parse
from .types import Config

DEFAULT_DIR = "/etc/syshax"
ENVIRONMENT = "SYSHAX_CONFIG"
MAIN_FILE = "syshax.yaml"
LOCAL_FILE = "zz-local.yaml"
PathLike = Union[str, "os.PathLike[str]"]


@dataclass(frozen=True)
class Document:
    """One file, read: its name as shown in problems, and its bytes."""

    name: str
    data: bytes


@dataclass(frozen=True)
class Loaded:
    """A checked configuration and where its values come from. `root` is the merged tree in canonical shape."""

    config: Config
    root: Node
    files: tuple[str, ...]
    warnings: tuple[Problem, ...] = field(default=())


def load(paths: PathLike | Sequence[PathLike]) -> Config:
    """The configuration in files or folders, later ones over earlier ones. ConfigError holds every problem."""
    return read(paths).config


def read(paths: PathLike | Sequence[PathLike]) -> Loaded:
    """Like `load`, with the place of each value."""
    several = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
    documents, problems, warnings = collect([FilePath(path) for path in several])
    if not documents and not problems:
        where = ", ".join(str(path) for path in several)
        problems = [Problem(f"no configuration: no *.yaml in {where}; syshax init writes one", where)]
    return interpret(documents, problems, warnings)


def loads(text: str, name: str = "<text>") -> Config:
    """The configuration in a text."""
    return interpret([Document(name, text.encode("utf-8", "surrogatepass"))]).config


def collect(paths: Sequence[FilePath]) -> tuple[list[Document], list[Problem], list[Problem]]:
    """The documents, what could not be read, and what should be looked at."""
    documents: list[Document] = []
    problems: list[Problem] = []
    warnings: list[Problem] = []
    for path in paths:
        for file in files_of(path, problems, warnings):
            try:
                documents.append(Document(str(file), read_regular(file)))
            except OSError as err:
                problems.append(Problem(f"can't be read: {err.strerror or err}", str(file)))
    return documents, problems, warnings


def files_of(path: FilePath, problems: list[Problem], warnings: list[Problem]) -> list[FilePath]:
    """The files a path stands for, in the order they are merged: syshax.yaml, then the others by name."""
    if not os.path.isdir(path):  # Path.is_dir raises where a folder above can't be searched
        return [path]
    try:
        names = sorted(os.listdir(path))
    except OSError as err:
        problems.append(Problem(f"can't be listed: {err.strerror or err}", str(path)))
        return []
    for name in names:
        if name.endswith(".yml") and not name.startswith("."):
            warnings.append(Problem("is not read; configuration files are named *.yaml", str(path / name)))
    chosen = [name for name in names if name.endswith(".yaml") and not name.startswith(".")]
    return [path / name for name in sorted(chosen, key=lambda name: (name != MAIN_FILE, name))]


def interpret(
    documents: Sequence[Document], problems: Sequence[Problem] = (), warnings: Sequence[Problem] = ()
) -> Loaded:
    """Documents to a configuration. ConfigError with every problem, those given included."""
    faults = list(problems)
    readable = not faults
    root: Node = Map(Mark(documents[0].name if documents else ""))
    for document in documents:
        node, found = parse(document.name, document.data)
        faults.extend(found)
        readable = readable and (node is not None or not found)
        readable = readable and (node is None or isinstance(node, Map))
        if node is not None and _is_section(node, faults):
            node, moved = canonical(node)  # per file: another file may use the other spelling
            faults.extend(moved)
            root = merge(root, node)
    config = _judge(root, faults, readable)
    if faults or config is None:
        raise ConfigError(_in_order(faults, [document.name for document in documents]))
    return Loaded(config, root, tuple(document.name for document in documents), tuple(warnings))


def _is_section(node: Node, faults: list[Problem]) -> bool:
    if isinstance(node, Map):
        return True
    if not getattr(node, "bad", False):
        mark = node.mark
        message = "found a list or a single value; a file holds KEY: VALUE lines, such as models: {default: NAME}"
        faults.append(Problem(message, mark.file, mark.line, mark.column))
    return False


def _judge(root: Node, faults: list[Problem], readable: bool) -> Config | None:
    """Schema first, then, on what passed it, the rules. None where nothing could be built."""
    data = plain(root, schema())
    found, wrong = check(root, data)
    faults.extend(found)
    wrong |= bad_paths(root)
    if not readable:
        return None  # a rule that misses something may only miss the file that could not be read
    config, missing = _build(_prune(data, wrong), wrong)
    faults.extend(problem(root, path, message, key=True) for path, message in missing)
    wrong.update(path for path, _ in missing)
    for fault in broken_rules(config, root):
        if not any(_touches(path, wrong) for path in (fault.path, *fault.also)):
            faults.append(problem(root, fault.path, fault.message, fault.on_key))
    return config


def _build(data: dict[str, Any], wrong: set[Path]) -> tuple[Config, list[tuple[Path, str]]]:
    """The configuration, with a stand-in for roles that are missing, and those."""
    missing: list[tuple[Path, str]] = []
    full = infer(data)
    for name, unit in full["units"].items():
        if "role" not in unit:
            unit["role"] = "accelerator"
            path: Path = ("units", name)
            if not _touches(path + ("role",), wrong):
                missing.append((path, "no role; give role: accelerator or role: cpu"))
    return build(full), missing


def _prune(data: Any, wrong: set[Path], path: Path = ()) -> Any:
    """`data` without the values at fault."""
    if isinstance(data, dict):
        items = data.items()
        return {key: _prune(value, wrong, path + (key,)) for key, value in items if path + (key,) not in wrong}
    if isinstance(data, list):
        return [_prune(value, wrong, path + (i,)) for i, value in enumerate(data) if path + (i,) not in wrong]
    return data


def _touches(path: Path, wrong: set[Path]) -> bool:
    """Whether something at, above or below the path is at fault."""
    return any(path[: len(other)] == other or other[: len(path)] == path for other in wrong)


def _in_order(faults: list[Problem], names: Sequence[str]) -> list[Problem]:
    order = {name: i for i, name in enumerate(names)}
    return sorted(faults, key=lambda fault: (order.get(fault.file, -1), fault.line, fault.column, fault.message))
