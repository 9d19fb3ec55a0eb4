"""The control socket: administration over HTTP and JSON on a unix socket, for the `syshax` command.

Who may open the socket may administer; the file's mode and group say who that is. docs/cli.md lists the calls.
"""

from __future__ import annotations

import asyncio
import grp
import json
import os
import socket
import stat
import struct
from collections.abc import Awaitable, Mapping, Sequence
from pathlib import Path
from typing import Any, Callable

from aiohttp import web

from syshaxd.errors import ConfigError, ControlError, Problem, SysHaxError
from syshaxd.log import Log
from syshaxd.model.ports import Control

GROUP = "syshax"
ACTIONS = ("restart", "stop", "start")
MAX_LOG_LINES = 10_000
LAST_CALLS = 1.0  # seconds
PATH_LIMIT = 107  # bytes the kernel keeps of a unix socket's path
_PEER = struct.Struct("3i")  # struct ucred: pid, uid, gid
_LOG = Log("control")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def control_app(control: Control) -> web.Application:
    """The calls of the control socket, served by `control`."""
    calls = _Calls(control)
    app = web.Application(middlewares=[_errors], client_max_size=64 * 1024)
    app.router.add_get("/v1/status", calls.status)
    app.router.add_post("/v1/reload", calls.reload)
    app.router.add_post("/v1/drain", calls.drain)
    app.router.add_post("/v1/pd/check", calls.pd_check)
    app.router.add_get("/v1/units", calls.units)
    app.router.add_get("/v1/units/{name}", calls.unit)
    app.router.add_get("/v1/units/{name}/command", calls.command)
    app.router.add_get("/v1/units/{name}/logs", calls.logs)
    app.router.add_post("/v1/units/{name}/{action}", calls.action)
    app.router.add_get("/v1/requests/{request_id}", calls.explain)
    return app


class ControlServer:
    """Owns the socket file from `start` to `stop`."""

    def __init__(self, control: Control) -> None:
        self._app = control_app(control)
        self._runner: web.AppRunner | None = None
        self._listening: asyncio.AbstractServer | None = None
        self._path: Path | None = None

    async def start(self, path: str | Path, group: str = GROUP) -> None:
        """Listen. SysHaxError where the path is unusable or another daemon listens there."""
        listener = listen(Path(path), group)
        self._runner, self._path = web.AppRunner(self._app, access_log=None), Path(path)
        await self._runner.setup()
        assert self._runner.server is not None
        self._listening = await asyncio.get_running_loop().create_unix_server(self._runner.server, sock=listener)

    async def stop(self) -> None:
        """Stop listening, take the file away, and give calls that are being answered a second."""
        if self._listening is not None and self._path is not None:
            self._listening.close()
            self._path.unlink(missing_ok=True)
        if self._runner is not None and self._runner.server is not None:
            await self._runner.server.shutdown(LAST_CALLS)
            await self._runner.cleanup()
        self._listening = self._runner = None


def listen(path: Path, group: str = GROUP) -> socket.socket:
    """A listening unix socket of mode 0660, given to `group` where that exists and we may."""
    if len(os.fsencode(path)) > PATH_LIMIT:
        raise SysHaxError(f"control_socket {path} is longer than {PATH_LIMIT} bytes; choose a shorter path")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
        _clear(path)
        old = os.umask(0o117)  # 0660 from the first moment on
        try:
            listener.bind(str(path))
        finally:
            os.umask(old)
        _give_to(path, group)
        listener.listen(64)
    except OSError as err:
        listener.close()
        raise SysHaxError(f"can't listen on control_socket {path}: {err.strerror or err}") from err
    except SysHaxError:
        listener.close()
        raise
    return listener


def _clear(path: Path) -> None:
    """Remove what a daemon that was killed left behind; refuse to take a live one's place."""
    if path.is_symlink():
        raise SysHaxError(f"control_socket {path} is a symbolic link; name the place itself, or remove the link")
    if not path.exists():
        return
    if not stat.S_ISSOCK(path.stat().st_mode):
        raise SysHaxError(f"control_socket {path} exists and is no socket; remove it or choose another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            path.unlink(missing_ok=True)
            return
    raise SysHaxError(f"another syshaxd listens on {path}; stop it, or give this one another control_socket")


def _give_to(path: Path, group: str) -> None:
    try:
        os.chown(path, -1, grp.getgrnam(group).gr_gid)
    except (KeyError, PermissionError):
        return  # in the foreground, as an ordinary user: the socket is the user's own


@web.middleware
async def _errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Errors as {"error": {"message", "problems"}}."""
    try:
        return await handler(request)
    except web.HTTPException as err:
        return _refused(err.status, f"{request.method} {request.path}: {err.reason}")
    except ConfigError as err:
        count = "1 fault" if len(err.problems) == 1 else f"{len(err.problems)} faults"
        return _refused(422, f"{count} in the configuration; nothing was changed", err.problems)
    except ControlError as err:
        return _refused(err.status, str(err))
    except SysHaxError as err:
        return _refused(500, str(err))


def _refused(status: int, message: str, problems: Sequence[Problem] = ()) -> web.Response:
    error: dict[str, Any] = {"message": message}
    if problems:
        error["problems"] = [
            {"file": one.file, "line": one.line, "column": one.column, "key": one.key, "message": one.message}
            for one in problems
        ]
    return web.json_response({"error": error}, status=status)


def _peer(request: web.Request) -> str:
    """Who asks, for the log."""
    sock = request.transport.get_extra_info("socket") if request.transport else None
    if sock is None:
        return "unknown"
    pid, uid, _ = _PEER.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
    return f"uid {uid}, pid {pid}"


class _Calls:
    def __init__(self, control: Control) -> None:
        self._control = control

    async def status(self, request: web.Request) -> web.Response:
        return web.json_response(self._control.status())

    async def reload(self, request: web.Request) -> web.Response:
        _LOG.info("reload asked for", by=_peer(request))
        return web.json_response(await self._control.reload())

    async def drain(self, request: web.Request) -> web.Response:
        timeout = _seconds((await _body(request)).get("timeout"))
        _LOG.info("drain asked for", timeout=timeout, by=_peer(request))
        return web.json_response(await self._control.drain(timeout))

    async def pd_check(self, request: web.Request) -> web.Response:
        _LOG.info("PD self-check asked for", by=_peer(request))
        return web.json_response(await self._control.pd_check())

    async def units(self, request: web.Request) -> web.Response:
        return web.json_response({"units": self._listed()})

    async def unit(self, request: web.Request) -> web.Response:
        return web.json_response(self._named(request))

    async def command(self, request: web.Request) -> web.Response:
        name = self._named(request)["name"]
        return web.json_response({"command": list(self._control.unit_command(name))})

    async def logs(self, request: web.Request) -> web.Response:
        name, lines = self._named(request)["name"], request.query.get("lines", "100")
        if not lines.isdecimal() or not 0 < int(lines) <= MAX_LOG_LINES:
            raise ControlError(400, f"lines={lines}: expected a number from 1 to {MAX_LOG_LINES}")
        return web.json_response({"lines": list(self._control.unit_logs(name, int(lines)))})

    async def action(self, request: web.Request) -> web.Response:
        name, action = self._named(request)["name"], request.match_info["action"]
        if action not in ACTIONS:
            raise ControlError(404, f"unknown action {action}; expected one of {', '.join(ACTIONS)}")
        _LOG.info("unit action asked for", unit=name, action=action, by=_peer(request))
        return web.json_response(await self._control.unit_action(name, action))

    async def explain(self, request: web.Request) -> web.Response:
        return web.json_response(self._control.explain(request.match_info["request_id"]))

    def _listed(self) -> list[Mapping[str, Any]]:
        return list(self._control.status().get("units", ()))

    def _named(self, request: web.Request) -> Mapping[str, Any]:
        units, name = self._listed(), request.match_info["name"]
        for unit in units:
            if unit.get("name") == name:
                return unit
        known = ", ".join(str(unit.get("name")) for unit in units) or "none"
        raise ControlError(404, f"no unit {name}; units are: {known}")


async def _body(request: web.Request) -> Mapping[str, Any]:
    text = await request.text()
    try:
        data = json.loads(text or "{}")
    except ValueError as err:
        raise ControlError(400, f"the body is not JSON: {err}") from err
    if not isinstance(data, dict):
        raise ControlError(400, "the body must be a JSON object")
    return data


def _seconds(value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < float("inf"):
        raise ControlError(400, f"timeout {value!r}: expected seconds, 0 or more")
    return float(value)
