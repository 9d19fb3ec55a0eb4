"""Client of the control socket. http.client over a unix socket: aiohttp would double the time a verb takes to start."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from .exits import UNREACHABLE, CommandError


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class Client:
    """Calls of one daemon. Every failure is a CommandError with the exit code that fits."""

    def __init__(self, path: str, timeout: float = 10.0) -> None:
        self.path = path
        self._timeout = timeout

    def get(self, *parts: str, query: str = "") -> Any:
        """GET /v1/PARTS."""
        return self._call("GET", parts, query, None)

    def post(self, *parts: str, body: Mapping[str, Any] | None = None) -> Any:
        """POST /v1/PARTS."""
        return self._call("POST", parts, "", body or {})

    def _call(self, method: str, parts: tuple[str, ...], query: str, body: Mapping[str, Any] | None) -> Any:
        target = "/v1/" + "/".join(quote(part, safe="") for part in parts) + (f"?{query}" if query else "")
        connection = _UnixConnection(self.path, self._timeout)
        try:
            connection.request(method, target, None if body is None else json.dumps(body))
            response = connection.getresponse()
            return _result(response.status, response.read())
        except socket.timeout as err:
            message = f"the daemon gave no answer within {self._timeout:g} s ({self.path})"
            raise CommandError(message, UNREACHABLE) from err
        except OSError as err:
            raise CommandError(self._unreachable(err), UNREACHABLE) from err
        except http.client.HTTPException as err:
            raise CommandError(f"the daemon's answer is not HTTP: {err!r} ({self.path})") from err
        finally:
            connection.close()

    def _unreachable(self, err: OSError) -> str:
        if isinstance(err, PermissionError):
            return f"no permission for {self.path}; use sudo, or join the group syshax"
        if isinstance(err, (FileNotFoundError, ConnectionRefusedError)):
            return f"the daemon does not run (no answer on {self.path}); systemctl start syshaxd, or syshax run"
        return f"the daemon can't be reached on {self.path}: {err.strerror or err}"


def _result(status: int, data: bytes) -> Any:
    try:
        value = json.loads(data)
    except ValueError as err:
        raise CommandError(f"the daemon answered {status} without JSON; its log tells more") from err
    if status < 400:
        return value
    error = value.get("error", {}) if isinstance(value, dict) else {}
    message = str(error.get("message", f"the daemon answered {status}"))
    faults = [_fault(problem) for problem in error.get("problems", ())]
    raise CommandError("\n".join([*faults, message]))


def _fault(problem: Mapping[str, Any]) -> str:
    from syshaxd.errors import Problem

    return str(Problem(**{name: problem[name] for name in ("message", "file", "line", "column", "key")}))
