"""Reading and changing one key, by any of the spellings of the user's documents."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence as Several
from pathlib import Path as FilePath

from syshaxd.errors import ConfigError, Problem, SysHaxError

from .check import suggest_key
from .emit import emit, to_node
from .load import LOCAL_FILE, Document, Loaded, collect, interpret
from .nodes import Map, Mark, Node, Path, Scalar, dotted
from .schema import Schema, at, is_section, leaves
from .shape import canonical
from .strict import parse

_HEADER = "# Written by `syshax config` and read after all other files. Comments made here are lost.\n"
_WORDS = {"host": ("services", "conductor", "host"), "model": ("models", "default")}
_GONE = {
    "maxtokens": "each request says max_tokens itself; the longest context is units.NAME.max_model_len, the longest "
    "request limits.request_timeout",
    "temperature": "each request says temperature itself; without it the unit uses the model's own generation settings",
}


class KeyFault(SysHaxError):
    """The key can't be read or set. The text says why and what may have been meant."""


def path_of(key: str) -> Path:
    """A key in any spelling to its canonical path: gpu.port, services.gpu.port and units.gpu.port are one."""
    parts: list[str] = [part.strip() for part in key.split(".")]
    gone = parts[-1].replace("_", "").lower()
    if gone in _GONE and at(tuple(parts)) is None:
        raise KeyFault(f"{key}: there is no such key any more; {_GONE[gone]}")
    if len(parts) == 1 and parts[0] in _WORDS:
        return _WORDS[parts[0]]
    if parts[0] == "services" and len(parts) > 1 and parts[1] != "conductor":
        parts = parts[1:]
    if parts[0] in ("gpu", "cpu", "npu"):
        parts = ["units", *parts]
    if parts[0] == "conductor":
        parts = ["services", *parts]
    if parts[0] == "units" and len(parts) == 3 and parts[2] == "args":
        parts[2] = "extra_args"
    path = tuple(parts)
    if "" in parts or at(path) is None:
        raise KeyFault(f"{key}: unknown key{suggest_key(path)}; syshax config --help lists the keys")
    return path


def set_key(folder: FilePath, key: str, values: Several[str] | None) -> tuple[Loaded, Path]:
    """Write a key (None: take it out) into zz-local.yaml of a folder, once all files together have been checked."""
    path = path_of(key)
    if not os.path.isdir(folder):
        what = "is a file; name its folder" if os.path.exists(folder) else "does not exist; syshax init makes it"
        raise KeyFault(f"{folder} {what}")
    file = folder / LOCAL_FILE
    documents, problems, warnings = collect([folder])
    local = next((document for document in documents if document.name == str(file)), None)
    root = _local_root(local)
    new = _without(root, path) if values is None else _with(root, path, value_node(key, path, values))
    text = _HEADER + (emit(new) if isinstance(new, Map) and new.items else "")
    changed = [document for document in documents if document is not local] + [Document(str(file), text.encode())]
    try:
        loaded = interpret(sorted(changed, key=lambda document: _rank(document.name)), problems, warnings)
    except ConfigError as err:
        unchanged = Problem("not written, because of the faults above", str(file))
        raise ConfigError([*err.problems, unchanged]) from err
    write(file, text)
    return loaded, path


def value_node(key: str, path: Path, values: Several[str]) -> Node:
    """The words of a command line as the value of a key."""
    schema = at(path) or {}
    if is_section(schema) and "default" not in schema:
        raise KeyFault(f"{key} is a section; set one of its keys: {', '.join(_children(path))}")
    if schema.get("type") == "array" and not (len(values) == 1 and values[0].startswith("[")):
        return to_node(list(values))
    if len(values) != 1:
        raise KeyFault(f"{key} takes one value, not {len(values)}; put a value with spaces in quotes")
    return _one(key, schema, values[0])


def _one(key: str, schema: Schema, text: str) -> Node:
    if schema.get("type") == "string":
        return to_node(text)
    node, problems = parse(f"{key}", text.encode("utf-8", "surrogateescape"))
    if problems:
        raise KeyFault("; ".join(f"{key}: {one.message}" for one in problems))
    return node if node is not None else Scalar(Mark(key), None)


def _children(path: Path) -> list[str]:
    names = [leaf.path for leaf in leaves()]
    wild = tuple("NAME" if i == 1 and path[0] == "units" else part for i, part in enumerate(path))
    return sorted({str(name[len(wild)]) for name in names if name[: len(wild)] == wild and len(name) > len(wild)})


def _rank(name: str) -> tuple[bool, str]:
    base = os.path.basename(name)
    return base != "syshax.yaml", base


def _local_root(local: Document | None) -> Node:
    if local is None:
        return Map(Mark(LOCAL_FILE))
    root, problems = parse(local.name, local.data)
    if problems:
        raise ConfigError([*problems, Problem("repair or remove this file first", local.name)])
    return canonical(root)[0] if isinstance(root, Map) else Map(Mark(local.name))


def _with(node: Node, path: Path, value: Node) -> Node:
    if not path:
        return value
    name = str(path[0])
    given = node if isinstance(node, Map) else Map(node.mark)
    child = given.items.get(name, Map(given.mark))
    return Map(given.mark, {**given.keys, name: given.mark}, {**given.items, name: _with(child, path[1:], value)})


def _without(node: Node, path: Path) -> Node:
    """The tree without a key, and without sections that are empty then."""
    name = str(path[0])
    if not isinstance(node, Map) or name not in node.items:
        raise KeyFault(f"{dotted(path)} is not set in {LOCAL_FILE}; values of other files are changed there")
    items = dict(node.items)
    child = items.pop(name)
    rest = _without(child, path[1:]) if len(path) > 1 else None
    if isinstance(rest, Map) and rest.items:
        items[name] = rest
    return Map(node.mark, {key: mark for key, mark in node.keys.items() if key in items}, items)


def write(file: FilePath, text: str) -> None:
    """Replace a file as a whole: a reader sees the old or the new text, after a crash too. Mode and owner stay."""
    old = file.stat() if file.exists() else None
    try:
        descriptor, temporary = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)
    except OSError as err:
        raise KeyFault(f"can't write {file}: {err.strerror}; use sudo, or --config with a folder of your own") from err
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(text.encode("utf-8"))
            os.fchmod(stream.fileno(), old.st_mode & 0o7777 if old else 0o644)
            if old is not None and (old.st_uid, old.st_gid) != (os.geteuid(), os.getegid()):
                os.fchown(stream.fileno(), old.st_uid, old.st_gid)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, file)
    except OSError as err:
        os.unlink(temporary)
        raise KeyFault(f"can't write {file}: {err.strerror}; nothing was changed") from err
    _sync_folder(file.parent)


def _sync_folder(folder: FilePath) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
