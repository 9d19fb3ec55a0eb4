"""A thin client of the Docker-compatible REST API, which Podman serves too, over the engine's unix socket.

Reference: Docker Engine API 1.40. Every failure becomes BackendError (EngineGone, EngineRefused), with its cause.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Awaitable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, TypeVar
from urllib.parse import quote

import aiohttp

from syshaxd.errors import BackendError

from .container_spec import ContainerSpec, EngineKind, create_request

T = TypeVar("T")
OLDEST, NEWEST = (1, 40), (1, 51)  # API versions this client speaks
CALL_TIMEOUT = 30.0  # seconds for a call that only looks
WORK_TIMEOUT = 120.0  # create, start, delete: an engine on a busy disk takes its time
PULL_STALL = 300.0  # seconds without a word from a pull
HEADER = 8  # bytes before each frame of a log: stream, three zeros, length (big endian)
MAX_FRAME = 16 * 1024 * 1024


class EngineGone(BackendError):
    """Nobody answers on the socket, or the connection broke: says nothing about containers."""

    passing = True


class EngineRefused(BackendError):
    """The engine answered with an error."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Version:
    """The engine: Podman or Docker, its own version, and the API version both sides speak."""

    kind: EngineKind
    release: str
    api: str


@dataclass(frozen=True)
class Container:
    """What the engine says of a container. `exit_code` counts when it does not run."""

    id: str
    name: str
    running: bool
    pid: int
    exit_code: int
    oom_killed: bool
    error: str
    labels: Mapping[str, str]


class Frames:
    """Takes the multiplexed stream of a container's output apart (Docker Engine API, `ContainerAttach`)."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, data: bytes) -> bytes:
        """What the container wrote, both its streams joined, as far as whole frames are there. Raises BackendError."""
        self._rest += data
        payload = bytearray()
        while len(self._rest) >= HEADER:
            size = int.from_bytes(self._rest[4:HEADER], "big")
            if self._rest[0] > 3 or any(self._rest[1:4]) or size > MAX_FRAME:
                raise BackendError(f"expected a log frame, found {bytes(self._rest[:HEADER])!r}")
            if len(self._rest) < HEADER + size:
                break
            payload += self._rest[HEADER : HEADER + size]
            del self._rest[: HEADER + size]
        return bytes(payload)


class EngineApi:
    """One engine. `close` it after use."""

    def __init__(self, socket: str) -> None:
        self.socket = socket
        self._session: aiohttp.ClientSession | None = None
        self._version: Version | None = None
        self._asking = asyncio.Lock()  # units that start together ask once

    async def close(self) -> None:
        """End all calls."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    # ---- the engine

    async def version(self) -> Version:
        """Who answers; asked once, and again after the engine was away."""
        async with self._asking:
            if self._version is None:
                answer = await self._podman() or await self._json("GET", "/version", CALL_TIMEOUT)
                self._version = negotiated(answer, self.socket)
            return self._version

    async def _podman(self) -> Mapping[str, Any] | None:
        """What Podman's /version says, from the headers of /_ping: for /version it starts its helpers, which takes a
        third of a second. None: another engine."""
        limits = aiohttp.ClientTimeout(total=CALL_TIMEOUT)

        async def call() -> Mapping[str, str]:
            async with self._http().get("http://engine/_ping", timeout=limits) as response:
                return response.headers

        headers = await self._mapped("GET /_ping", call())
        release = headers.get("Libpod-API-Version")
        if release is None:
            return None
        return {"ApiVersion": headers.get("API-Version", ""), "Version": release, "Components": [{"Name": "Podman"}]}

    # ---- containers

    async def create(self, spec: ContainerSpec) -> str:
        """Make the container; its id."""
        kind = (await self.version()).kind
        path = f"containers/create?name={quote(spec.name)}"
        if kind is EngineKind.PODMAN:
            path = "/v4.0.0/libpod/containers/create"
        answer = await self._call("POST", path, WORK_TIMEOUT, body=create_request(spec, kind))
        return str(answer["Id"])

    async def start(self, container: str) -> None:
        """Run it."""
        await self._call("POST", f"containers/{container}/start", WORK_TIMEOUT)

    async def stop(self, container: str, grace: int) -> None:
        """SIGTERM, and SIGKILL after `grace` seconds. `t` is always sent: Podman's default can be 0."""
        await self._call("POST", f"containers/{container}/stop?t={grace}", grace + CALL_TIMEOUT)

    async def kill(self, container: str, name: str = "SIGKILL") -> None:
        """Send it a signal. Not an error where it does not run or is gone."""
        with contextlib.suppress(EngineRefused):
            await self._call("POST", f"containers/{container}/kill?signal={name}", CALL_TIMEOUT)

    async def remove(self, container: str) -> None:
        """Kill it and delete it: deleting alone would wait for its stop timeout. Not an error where it is gone."""
        await self.kill(container)
        try:
            await self._call("DELETE", f"containers/{container}?force=true&v=true", WORK_TIMEOUT)
        except EngineRefused as err:
            if err.status != 404:
                raise

    async def rename(self, container: str, name: str) -> None:
        """Give it another name."""
        await self._call("POST", f"containers/{container}/rename?name={quote(name)}", CALL_TIMEOUT)

    async def wait(self, container: str, seconds: float) -> int | None:
        """Its exit status once it has ended; None where it still runs after `seconds`, or may do so."""
        try:
            answer = await self._call("POST", f"containers/{container}/wait", seconds)
        except EngineGone as err:
            if isinstance(err.__cause__, asyncio.TimeoutError):
                return None
            raise
        return int(answer.get("StatusCode", -1))

    async def inspect(self, container: str) -> Container | None:
        """The container as it is now, by id or name; None where there is none."""
        try:
            answer = await self._call("GET", f"containers/{container}/json", CALL_TIMEOUT)
        except EngineRefused as err:
            if err.status == 404:
                return None
            raise
        return _container(answer)

    async def find(self, labels: Mapping[str, str]) -> tuple[Container, ...]:
        """All containers, running or not, that have these labels."""
        filters = json.dumps({"label": [f"{name}={value}" for name, value in labels.items()]})
        rows = await self._call("GET", f"containers/json?all=true&filters={quote(filters)}", CALL_TIMEOUT)
        found = [await self.inspect(row["Id"]) for row in rows]
        return tuple(one for one in found if one is not None)

    async def output(self, container: str, on_data: Callable[[bytes], None], tail: int, since: float = 0.0) -> None:
        """Follow what it writes until it ends: the last `tail` lines (-1: all) since then, and all that comes.

        No deadline: a unit may be silent for days. The caller owns the task that waits here.
        """
        words = f"stdout=true&stderr=true&follow=true&tail={'all' if tail < 0 else tail}"
        words += f"&since={int(since)}" if since else ""
        frames = Frames()
        async for data in self._stream("GET", f"containers/{container}/logs?{words}", None):
            on_data(frames.feed(data))

    async def run_inside(self, container: str, command: tuple[str, ...]) -> int:
        """Exit status of a command in a running container."""
        body = {"Cmd": list(command), "AttachStdout": True, "AttachStderr": True}
        made = await self._call("POST", f"containers/{container}/exec", CALL_TIMEOUT, body=body)
        async for _ in self._stream("POST", f"exec/{made['Id']}/start", CALL_TIMEOUT, body={"Detach": False}):
            pass
        return int((await self._call("GET", f"exec/{made['Id']}/json", CALL_TIMEOUT)).get("ExitCode") or 0)

    # ---- images

    async def image_id(self, image: str) -> str:
        """Id of an image that is here; "" where it is not."""
        try:
            answer = await self._call("GET", f"images/{quote(image, safe='/:@')}/json", CALL_TIMEOUT)
        except EngineRefused as err:
            if err.status == 404:
                return ""
            raise
        return str(answer["Id"])

    async def images(self) -> tuple[Mapping[str, Any], ...]:
        """All images that are here, as the engine lists them."""
        return tuple(await self._call("GET", "images/json", CALL_TIMEOUT))

    async def pull(self, image: str, on_progress: Callable[[str], None]) -> None:
        """Get an image. Docker refuses at once what Podman reports inside the stream: both are EngineRefused."""
        name, tag = split_reference(image)
        progress = PullProgress(image)
        path = f"images/create?fromImage={quote(name)}&tag={quote(tag)}"
        async for event in self._lines("POST", path, PULL_STALL):
            if event.get("error"):
                raise EngineRefused(500, f"cannot pull {image}: {event['error']}")
            line = progress.saw(event, time.monotonic())
            if line:
                on_progress(line)

    async def save(self, image: str, file: Path) -> int:
        """Write an image into a tar archive; bytes written."""
        size = 0
        with _opened(file, "xb") as out:
            async for data in self._stream("GET", f"images/{quote(image, safe='/:@')}/get", PULL_STALL):
                out.write(data)
                size += len(data)
        return size

    async def load(self, file: Path) -> str:
        """Read images from a tar archive; what the engine says of it."""
        said = []
        with _opened(file, "rb") as source:
            headers = {"Content-Type": "application/x-tar"}
            async for event in self._lines("POST", "images/load", PULL_STALL, data=source, headers=headers):
                if event.get("error"):
                    raise EngineRefused(500, f"cannot load {file}: {event['error']}")
                said.append(str(event.get("stream", "")).strip())
        return " ".join(word for word in said if word)

    # ---- the wire

    async def _call(self, method: str, path: str, timeout: float, body: Mapping[str, Any] | None = None) -> Any:
        return await self._json(method, await self._versioned(path), timeout, body)

    async def _versioned(self, path: str) -> str:
        return path if path.startswith("/") else f"/v{(await self.version()).api}/{path}"

    async def _json(self, method: str, path: str, timeout: float, body: Mapping[str, Any] | None = None) -> Any:
        limits = aiohttp.ClientTimeout(total=timeout)

        async def call() -> Any:
            async with self._http().request(method, "http://engine" + path, json=body, timeout=limits) as response:
                data = await response.read()
                raise_for(response.status, data, f"{method} {path}")
                return json.loads(data) if data.strip() else data

        return await self._mapped(f"{method} {path}", call())

    async def _stream(self, method: str, path: str, stall: float | None, **options: Any) -> AsyncIterator[bytes]:
        """Pieces of an answer; `stall`: longest silence in seconds."""
        limits = aiohttp.ClientTimeout(total=None, sock_connect=CALL_TIMEOUT, sock_read=stall)
        body = {"json": options["body"]} if "body" in options else {}
        rest = {name: value for name, value in options.items() if name != "body"}
        path = await self._versioned(path)
        what = f"{method} {path}"
        request = self._http().request(method, "http://engine" + path, timeout=limits, **body, **rest)
        response = await self._mapped(what, request)
        try:
            if response.status >= 400:
                raise_for(response.status, await self._mapped(what, response.read()), what)
            while True:
                data = await self._mapped(what, response.content.readany())
                if not data:
                    return
                yield data
        finally:
            response.close()

    async def _lines(
        self, method: str, path: str, stall: float | None, **options: Any
    ) -> AsyncIterator[Mapping[str, Any]]:
        """JSON objects of an answer, one a line."""
        rest = b""
        async for data in self._stream(method, path, stall, **options):
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                if line.strip():
                    yield _object(line)
        if rest.strip():
            yield _object(rest)

    def _http(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.UnixConnector(path=self.socket, limit=0, force_close=True), auto_decompress=False
            )
        return self._session

    async def _mapped(self, what: str, work: Awaitable[T]) -> T:
        try:
            return await work
        except asyncio.TimeoutError as err:
            raise EngineGone(f"{self.socket}: {what}: no answer in time") from err
        except (aiohttp.ClientError, OSError) as err:
            self._version = None
            raise EngineGone(f"cannot talk to the container engine at {self.socket}: {err}; does it run?") from err
        except ValueError as err:
            raise BackendError(f"{self.socket}: {what}: expected JSON: {err}") from err


class PullProgress:
    """A pull in words, at most one line in 5 seconds."""

    EVERY = 5.0

    def __init__(self, image: str) -> None:
        self._image = image
        self._layers: dict[str, tuple[int, int]] = {}  # id: bytes done, bytes in all
        self._said = 0.0

    def saw(self, event: Mapping[str, Any], now: float) -> str:
        """A line to show, or ""."""
        detail = event.get("progressDetail")
        if isinstance(detail, Mapping) and detail.get("total"):
            self._layers[str(event.get("id"))] = (int(detail.get("current") or 0), int(detail["total"]))
        if self._said and now - self._said < self.EVERY:
            return ""
        self._said = now
        done, total = (sum(layer[index] for layer in self._layers.values()) for index in (0, 1))
        size = f": {done / 1e9:.2f} of {total / 1e9:.2f} GB" if total else ""
        return f"pulling {self._image}{size}"


def negotiated(answer: Mapping[str, Any], socket: str) -> Version:
    """The newest API version both sides speak. Raises BackendError where there is none."""
    components = [str(item.get("Name", "")) for item in answer.get("Components") or ()]
    kind = EngineKind.PODMAN if any("podman" in name.lower() for name in components) else EngineKind.DOCKER
    newest, oldest = _numbers(answer.get("ApiVersion", "")), _numbers(answer.get("MinAPIVersion", ""))
    chosen = min(newest, NEWEST)
    if newest < OLDEST or chosen < oldest:
        found = f"{answer.get('MinAPIVersion', '?')} to {answer.get('ApiVersion', '?')}"
        raise BackendError(
            f"{socket}: API versions {found}; expected one of {_dotted(OLDEST)} to {_dotted(NEWEST)} "
            "(Docker 19.03, Podman 4.1, or later)"
        )
    return Version(kind, str(answer.get("Version", "")), _dotted(chosen))


def raise_for(status: int, body: bytes, what: str) -> None:
    """EngineRefused with the engine's own words for a status that is an error."""
    if status < 400:
        return
    try:
        message = json.loads(body).get("message", "")
    except (ValueError, AttributeError):
        message = body.decode("utf-8", "replace").strip()[:500]
    raise EngineRefused(status, message or f"{what}: status {status}")


def split_reference(image: str) -> tuple[str, str]:
    """An image reference as (name, tag or digest); the tag is `latest` where none is given."""
    if "@" in image:
        name, _, digest = image.partition("@")
        return name, digest
    head, colon, tag = image.rpartition(":")
    return (head, tag) if colon and "/" not in tag else (image, "latest")


def _container(answer: Mapping[str, Any]) -> Container:
    state = answer.get("State") or {}
    return Container(
        id=str(answer["Id"]),
        name=str(answer.get("Name", "")).lstrip("/"),
        running=bool(state.get("Running")),
        pid=int(state.get("Pid") or 0),
        exit_code=int(state.get("ExitCode") or 0),
        oom_killed=bool(state.get("OOMKilled")),
        error=str(state.get("Error") or ""),
        labels=(answer.get("Config") or {}).get("Labels") or {},
    )


def _object(line: bytes) -> Mapping[str, Any]:
    try:
        value = json.loads(line)
    except ValueError as err:
        raise BackendError(f"expected a JSON object from the container engine, found {line[:100]!r}") from err
    return value if isinstance(value, dict) else {}


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in str(text).split("."))
    except ValueError:
        return ()


def _dotted(numbers: tuple[int, ...]) -> str:
    return ".".join(str(number) for number in numbers)


def _opened(file: Path, mode: str) -> Any:
    try:
        return open(file, mode)
    except OSError as err:
        raise BackendError(f"cannot open {file}: {err.strerror}") from err
