"""Images of units: list, save into a file, load from a file, for sites without network.

Forms:
  syshax image list              images that the configured units want, and whether they are here
  syshax image save IMAGE FILE   write an image into a tar archive
  syshax image load FILE         read images from a tar archive
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Awaitable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable

from .exits import FAILURE, OK, USAGE, CommandError
from .options import add_config, add_json, print_json, source
from .table import table

if TYPE_CHECKING:
    from syshaxd.backends.engineapi import EngineApi


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    parser.add_argument("action", choices=("list", "save", "load"), nargs="?", default="list")
    parser.add_argument("words", nargs="*", metavar="IMAGE FILE", help="with save: both; with load: the file")
    parser.add_argument("--engine", choices=("podman", "docker"), default="", help="default: that of the units")
    parser.add_argument("--socket", metavar="PATH", default="", help="API socket of the engine")
    add_config(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Dispatch on the action."""
    wanted = {"list": 0, "save": 2, "load": 1}[args.action]
    if len(args.words) != wanted:
        usage = {"list": "no more words", "save": "IMAGE and FILE", "load": "FILE"}[args.action]
        raise CommandError(f"image {args.action} takes {usage}; found {len(args.words)} words", USAGE)
    return {"list": _list, "save": _save, "load": _load}[args.action](args)


def _list(args: argparse.Namespace) -> int:
    rows = []
    for unit in _units(args):
        found = _ask(_socket(unit.backend.value, unit.container.socket), _image_id(unit.container.image))
        rows.append({"unit": unit.name, "engine": unit.backend.value, "image": unit.container.image, "id": found})
    if args.json:
        print_json(rows)
    else:
        cells = [(row["unit"], row["engine"], row["image"], row["id"][:19] or "no") for row in rows]
        print(table(("UNIT", "ENGINE", "IMAGE", "HERE"), cells))
    return OK if all(row["id"] for row in rows) else FAILURE


def _save(args: argparse.Namespace) -> int:
    image, file = args.words
    path = Path(file)
    if path.exists():
        raise CommandError(f"{file} is there already; give another name, or remove it")
    partial = path.with_name(path.name + ".part")
    try:
        size = _ask(_engine_socket(args), lambda api: api.save(image, partial))
        partial.rename(path)
    finally:
        partial.unlink(missing_ok=True)
    print(f"{file}: {image}, {size / 1e9:.2f} GB")
    return OK


def _load(args: argparse.Namespace) -> int:
    print(_ask(_engine_socket(args), lambda api: api.load(Path(args.words[0]))))
    return OK


def _image_id(image: str) -> "Callable[[EngineApi], Awaitable[str]]":
    return lambda api: api.image_id(image)


def _units(args: argparse.Namespace) -> Any:
    units = source(args).load().units
    return [unit for unit in units if unit.backend.value in ("podman", "docker")]


def _engine_socket(args: argparse.Namespace) -> str:
    """--socket, --engine, or the engine of the first unit that runs in a container."""
    if args.socket or args.engine:
        return _socket(args.engine or "podman", args.socket)
    units = _units(args)
    if not units:
        raise CommandError("no unit runs in a container; say which engine is meant: --engine podman or docker", USAGE)
    return _socket(units[0].backend.value, units[0].container.socket)


def _socket(engine: str, socket: str) -> str:
    from syshaxd.backends.container import default_socket
    from syshaxd.backends.container_spec import EngineKind

    return socket or default_socket(EngineKind(engine))


def _ask(socket: str, question: "Callable[[EngineApi], Awaitable[Any]]") -> Any:
    """One conversation with an engine. Raises BackendError."""
    from syshaxd.backends.engineapi import EngineApi

    async def talk() -> Any:
        api = EngineApi(socket)
        try:
            return await question(api)
        finally:
            await api.close()

    return asyncio.run(talk())
