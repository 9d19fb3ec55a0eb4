"""Read or change one key of the configuration.

`syshax config KEY` prints the value in force, `syshax config KEY VALUE` checks and writes it to zz-local.yaml of the
configuration folder, which is read last; files of yours are never touched. `syshax reload` applies it. Keys have
several spellings: gpu.port, services.gpu.port and units.gpu.port are one, model is models.default, host is
services.conductor.host. Lists take several values: syshax config gpu.device_ids 0 1. A value that begins with a dash
stands behind --, as in syshax config gpu.extra_args -- --dtype=half
"""

from __future__ import annotations

import argparse
from typing import Any

from syshaxd.config.diff import flatten
from syshaxd.config.edit import KeyFault, path_of, set_key
from syshaxd.config.emit import human, scalar_text
from syshaxd.config.load import LOCAL_FILE, Loaded
from syshaxd.config.nodes import Path, dotted, find, place
from syshaxd.config.schema import at, leaves

from .exits import OK, USAGE, CommandError
from .options import add_config, add_json, print_json, source


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    from syshaxd.config.reference import help_lines

    parser.epilog = "keys (NAME: of a unit), defaults, meanings:\n" + "\n".join(help_lines()).replace("%", "%%")
    parser.add_argument("key", nargs="?", help="for example gpu.port; without it, all keys that are set are listed")
    parser.add_argument("value", nargs="*", help="the new value; without it, the value in force is printed")
    parser.add_argument("--unset", action="store_true", help=f"take the key out of {LOCAL_FILE}")
    add_config(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Read, write or unset."""
    try:
        if args.unset and (args.value or not args.key):
            raise KeyFault("--unset takes a key and no value")
        if args.value or args.unset:
            return _write(args)
        return _read(args)
    except KeyFault as err:
        raise CommandError(str(err), USAGE) from err


def _write(args: argparse.Namespace) -> int:
    where = source(args)
    loaded, path = set_key(where.path, args.key, None if args.unset else args.value)
    value = _values(loaded, path).get(path)
    if args.json:
        print_json({"key": dotted(path), "value": _jsonable(value), "file": str(where.path / LOCAL_FILE)})
        return OK
    done = "taken out of" if args.unset else "written to"
    print(f"{dotted(path)} = {_shown(path, value)}, {done} {where.path / LOCAL_FILE}; syshax reload applies it")
    mark = place(loaded.root, path)
    if not args.unset and find(loaded.root, path) is not None and not mark.file.endswith(LOCAL_FILE):
        print(f"but {mark} is read later and sets it again: that value stays in force")
    return OK


def _read(args: argparse.Namespace) -> int:
    path = path_of(args.key) if args.key else ()
    loaded = source(args).read()
    values = _values(loaded, path)
    if not values:
        units = ", ".join(unit.name for unit in loaded.config.units)
        raise KeyFault(f"{args.key} is not set" + (f"; units are: {units}" if path[0] == "units" else ""))
    if args.json:
        print_json({dotted(key): _jsonable(value) for key, value in values.items()})
    elif tuple(values) == (path,):
        print(_shown(path, values[path]))
    else:
        for key, value in values.items():
            if path or find(loaded.root, key) is not None:
                print(f"{dotted(key)} = {_shown(key, value)}")
    return OK


def _values(loaded: Loaded, path: Path) -> dict[Path, Any]:
    """The values in force at and below a path."""
    flat = flatten(loaded.config)
    empty = [leaf.path for leaf in leaves() if leaf.schema["type"] == "object"]
    below = {key: value for key, value in flat.items() if key[: len(path)] == path}
    return below or ({path: {}} if _wild(path) in empty else {})


def _wild(path: Path) -> Path:
    return ("units", "NAME", *path[2:]) if path[:1] == ("units",) else path


def _shown(path: Path, value: Any) -> str:
    if isinstance(value, (tuple, list)):
        return "[" + ", ".join(_shown(path, item) for item in value) + "]"
    if isinstance(value, dict):
        return "{}"
    if isinstance(value, str):
        return value
    return human(value, at(path) or {}) or scalar_text(value)


def _jsonable(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
