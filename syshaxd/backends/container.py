"""Units in containers, by the API of Podman or Docker (docs/containers.md). They outlive the daemon and are adopted.

The container's labels are the only record: unit, digest of its configuration, owner (the daemon's state folder), URL.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Callable

from syshaxd import log as logging
from syshaxd.errors import BackendError, DeadlineError
from syshaxd.tasks import cancelled, within

from .backend import Adopted, Capabilities, Exit, LaunchSpec, LineSplitter, OnLine, Running
from .container_spec import (
    CONTRACT_LABEL,
    DIGEST_LABEL,
    NAME_LABEL,
    OWNER_LABEL,
    UNIT_LABEL,
    URL_LABEL,
    ContainerSpec,
    EngineKind,
)  # fmt: skip
from .engineapi import Container, EngineApi, EngineGone, EngineRefused
from .pidfd import has_ended, process_end
from .process import tree_activity

LOOK = 5.0  # seconds after which a container that says nothing is looked at
SEEN_LOOK = 30.0  # the same where its process can be watched
RETRY = 0.2, 3.0  # seconds between attempts to reach an engine that is away: first, longest
STUBBORN = 3.0  # seconds in which a killed container has to end; then it is removed by force
LAST_WORDS = 2.0  # seconds for the engine to hand over what a container wrote before it ended
TAIL = 50  # lines of an adopted container that are read again, so that its last words are known
SOCKETS: Mapping[EngineKind, tuple[str, ...]] = {
    EngineKind.PODMAN: ("/run/syshax-podman/podman.sock", "/run/podman/podman.sock"),
    EngineKind.DOCKER: ("/run/docker.sock", "/var/run/docker.sock"),
}
OF_THE_START = (URL_LABEL, CONTRACT_LABEL)  # labels that tell of one start, not of what the configuration wants
ASIDE = "-old-"  # in the name of a dead container that can't be removed yet

log = logging.Log("backends")


def default_socket(kind: EngineKind) -> str:
    """Where the engine's API usually is: the first place that exists, or else the first one."""
    places = SOCKETS[kind]
    return next((place for place in places if Path(place).exists()), places[0])


class ContainerBackend:
    """Backend for kinds `podman` and `docker`. `owner` tells this daemon's containers from another's."""

    capabilities = Capabilities(survives_daemon=True, reports_activity=True)

    def __init__(self, kind: EngineKind, owner: str) -> None:
        self._kind = kind
        self._owner = owner
        self._engines: dict[str, EngineApi] = {}

    async def start(self, spec: LaunchSpec, on_line: OnLine) -> Running:
        """See Backend. What is left of an earlier container of this unit is removed first."""
        wanted = self._labelled(spec)
        api = await self._engine(wanted)
        await ensure_image(api, wanted.image, wanted.pull, on_line)
        for left_over in await self._ours(api, {OWNER_LABEL: self._owner}, wanted.name):
            if left_over.labels.get(UNIT_LABEL) == spec.unit:
                await clear_away(api, left_over)
            elif ASIDE in left_over.name and not left_over.running:
                with contextlib.suppress(EngineRefused):  # another still lives in its IPC namespace
                    await api.remove(left_over.id)
        try:
            made = await api.create(wanted)
        except EngineRefused as err:
            raise BackendError(_explained(spec.unit, wanted, err)) from err
        try:
            return await self._started(api, made, wanted, on_line)
        except BaseException:
            await asyncio.shield(api.remove(made))
            raise

    async def adopt(self, spec: LaunchSpec, on_line: OnLine) -> Adopted | None:
        """See Backend."""
        wanted = self._labelled(spec)
        api = await self._engine(wanted)
        for found in await self._ours(api, self._identity(spec), wanted.name):
            labels = {NAME_LABEL: found.name, **found.labels}
            same = all(labels.get(name) == text for name, text in wanted.labels.items() if name not in OF_THE_START)
            if found.running and same:
                log.info("adopted a running container", unit=spec.unit, container=found.id[:12])
                unit = ContainerUnit(api, found, on_line, TAIL)
                return Adopted(unit, labels.get(URL_LABEL, spec.url), labels.get(CONTRACT_LABEL, ""))
        return None

    async def close(self) -> None:
        """See Backend."""
        for api in self._engines.values():
            await api.close()
        self._engines.clear()

    @staticmethod
    async def _ours(api: EngineApi, labels: Mapping[str, str], wanted: str) -> tuple[Container, ...]:
        """Containers that a daemon made: one of an image committed from a unit has all labels but the right name."""
        return tuple(one for one in await api.find(labels) if _made_here(one, wanted))

    async def _started(self, api: EngineApi, made: str, spec: ContainerSpec, on_line: OnLine) -> Running:
        unit = spec.labels[UNIT_LABEL]
        try:
            await api.start(made)
        except EngineRefused as err:
            raise BackendError(_explained(unit, spec, err)) from err
        found = await api.inspect(made)
        if found is None:
            raise BackendError(f"unit {unit}: its container {made[:12]} vanished while it was started")
        if spec.wants_gpu and found.running and await api.run_inside(made, GPU_TEST) != 0:
            raise BackendError(f"unit {unit}: a GPU was asked for, but there is none in the container; {_GPU_ADVICE}")
        return ContainerUnit(api, found, on_line, -1)

    async def _engine(self, spec: ContainerSpec) -> EngineApi:
        socket = spec.socket or default_socket(self._kind)
        api = self._engines.get(socket)
        if api is None:
            api = self._engines[socket] = EngineApi(socket)
        version = await api.version()
        if version.kind is not self._kind:
            raise BackendError(f"{socket}: expected {self._kind.value}, found {version.kind.value} {version.release}")
        return api

    def _identity(self, spec: LaunchSpec) -> Mapping[str, str]:
        return {UNIT_LABEL: spec.unit, OWNER_LABEL: self._owner}

    def _labelled(self, spec: LaunchSpec) -> ContainerSpec:
        if spec.container is None:
            raise BackendError(f"unit {spec.unit}: expected a container to start, found a command")
        own = {DIGEST_LABEL: spec.digest, URL_LABEL: spec.url, NAME_LABEL: spec.container.name}
        if spec.contract:
            own[CONTRACT_LABEL] = spec.contract
        return replace(spec.container, labels={**spec.container.labels, **self._identity(spec), **own})


GPU_TEST = ("sh", "-c", "test -e /dev/nvidiactl || test -e /dev/dxg")
_GPU_ADVICE = "`syshax doctor` tests the NVIDIA container toolkit and its CDI file"


async def ensure_image(api: EngineApi, image: str, policy: str, on_line: OnLine) -> None:
    """Pull it where the policy (always, missing, never) says so. Raises BackendError."""
    here = await api.image_id(image)
    if policy == "never" and not here:
        raise BackendError(f"image {image} is not here, and pull is never; `syshax image load FILE` brings it in")
    if policy == "always" or not here:
        log.info("pulling image", image=image)
        began = time.monotonic()
        try:
            await api.pull(image, on_line)
        except EngineRefused as err:
            raise BackendError(f"{err}; `syshax image load FILE` brings an image in without network") from err
        if not await api.image_id(image):
            raise BackendError(f"image {image} is not here though its pull ended without an error")
        log.info("image is here", image=image, seconds=time.monotonic() - began)


def _made_here(found: Container, wanted: str) -> bool:
    """`wanted`: the name of the unit's container. One of a daemon that gave no name label is known by that."""
    own = found.labels.get(NAME_LABEL, wanted)
    return found.name == own or found.name.startswith(f"{own[:200]}{ASIDE}")


async def clear_away(api: EngineApi, left_over: Container) -> None:
    """Remove a container. Podman keeps one whose IPC namespace another has joined: that one gives up its name."""
    try:
        await api.remove(left_over.id)
    except EngineRefused:
        if ASIDE not in left_over.name:
            await api.rename(left_over.id, f"{left_over.name[:200]}{ASIDE}{left_over.id[:8]}")


def _explained(unit: str, spec: ContainerSpec, err: EngineRefused) -> str:
    text = str(err)
    lower = text.lower()
    if "name" in lower and "in use" in lower:
        return (
            f"unit {unit}: a container named {spec.name} is there already and is not ours: {text}; "
            "remove it, or set container.name"
        )
    if "address already in use" in lower or "port is already allocated" in lower:
        return f"unit {unit}: its port is taken: {text}; free it, or leave port out, so that a free one is chosen"
    if spec.wants_gpu and ("cdi" in lower or "nvidia" in lower or "device driver" in lower):
        return f"unit {unit}: no GPU for its container: {text}; {_GPU_ADVICE}"
    return f"unit {unit}: cannot run its container of {spec.image}: {text}"


@dataclass
class _Seen:
    """What the watcher has found out so far."""

    code: int | None = None
    lost: bool = False  # its main process is gone though the engine says that it runs
    removed: bool = False  # by somebody else


class ContainerUnit:
    """Running, for a container. One task follows its output, one waits for its end; an engine that is away ends
    neither."""

    def __init__(self, api: EngineApi, found: Container, on_line: OnLine, tail: int) -> None:
        self._api = api
        self._id = found.id
        self._pid = found.pid
        self._visible = found.pid > 0 and not has_ended(found.pid)  # not where the engine is in another PID namespace
        self._lines = LineSplitter(on_line)
        self._asked = False
        loop = asyncio.get_running_loop()
        self._follower = loop.create_task(self._follow(tail), name=f"container.{found.name}.log")
        self._ended = loop.create_task(self._watch(), name=f"container.{found.name}")

    @property
    def pid(self) -> int | None:
        """See Running."""
        return self._pid or None

    @property
    def container(self) -> str:
        """See Running."""
        return self._id

    async def wait(self) -> Exit:
        """See Running."""
        return await asyncio.shield(self._ended)

    async def stop(self, grace: float) -> Exit:
        """See Running."""
        self._ask()
        if not self._ended.done():
            with contextlib.suppress(EngineRefused, EngineGone):  # ended meanwhile, or away: kill() and wait() tell
                await self._api.stop(self._id, max(1, round(grace)))
        return await self.kill()

    async def kill(self) -> Exit:
        """See Running. Goes on until the engine has answered: a container has no other way to end."""
        self._ask()
        end: Callable[[str], Awaitable[None]] = self._api.kill
        pause = RETRY[0]
        while not self._ended.done():
            try:
                await end(self._id)
                await asyncio.wait({self._ended}, timeout=STUBBORN)
                end = self._api.remove  # no signal reaches one that somebody paused
            except BackendError:  # the engine is away, or busy with it
                await asyncio.wait({self._ended}, timeout=pause)
                pause = min(2 * pause, RETRY[1])
        return await self.wait()

    def _ask(self) -> None:
        """What ended before we asked has ended by itself."""
        self._asked = self._asked or not (self._visible and has_ended(self._pid))

    def activity(self) -> int | None:
        """See Running. None where the container's processes can't be seen."""
        return tree_activity(self._pid) if self._pid else None

    async def release(self) -> None:
        """See Running. The container goes on."""
        await cancelled(self._ended)
        await cancelled(self._follower)

    async def _follow(self, tail: int) -> None:
        """Its output, taken up again after the engine was away."""
        pause, heard = RETRY[0], 0.0

        def feed(data: bytes) -> None:
            nonlocal heard
            heard = time.time()
            self._lines.feed(data)

        while True:
            try:
                await self._api.output(self._id, feed, tail, heard)
            except EngineRefused:
                break
            except BackendError:
                pass
            else:
                if not await self._runs():
                    break
            tail = -1
            await asyncio.sleep(pause)
            pause = min(2 * pause, RETRY[1])
        self._lines.end()

    async def _runs(self) -> bool:
        """Whether it still runs, as far as anyone knows."""
        try:
            found = await self._api.inspect(self._id)
        except BackendError:
            return True
        return found is not None and found.running

    async def _watch(self) -> Exit:
        try:
            seen = await self._await_end()
            last = await self._last_state(seen)
            await asyncio.wait({self._follower}, timeout=0.1 if seen.lost else LAST_WORDS)
            seen.removed = await self._is_gone()
        finally:
            await cancelled(self._follower)
        with contextlib.suppress(BackendError):  # the next start clears it away
            await self._api.remove(self._id)
        return self._exit(seen, last)

    async def _await_end(self) -> _Seen:
        pause, missed = RETRY[0], 0
        while True:
            try:
                seen = await self._look(missed > 0)
            except EngineRefused as err:
                if err.status == 404:
                    return _Seen()
            except BackendError:  # the engine is away
                pass
            else:
                if seen is not None:
                    return seen
                pause, missed = RETRY[0], missed + 1 if self._visible and has_ended(self._pid) else 0
                continue
            await asyncio.sleep(pause)
            pause = min(2 * pause, RETRY[1])

    async def _look(self, missed: bool) -> _Seen | None:
        """How it ended; None where it runs. `missed`: its process was gone at the look before."""
        code = None
        if not self._visible or await self._process_ended(SEEN_LOOK):
            code = await self._api.wait(self._id, LOOK)
        if code is not None:
            return _Seen(code)
        found = await self._api.inspect(self._id)
        if found is None:
            return _Seen()
        if not found.running:
            return _Seen(found.exit_code)
        return _Seen(lost=True) if missed and has_ended(self._pid) else None

    async def _process_ended(self, seconds: float) -> bool:
        """Whether its process ends within so many seconds: nobody has to be asked for that."""
        try:
            await within(seconds, "end of a container's process", process_end(self._pid))
        except DeadlineError:
            return False
        except OSError:  # no pidfd to be had: the engine is asked
            return True
        return True

    async def _is_gone(self) -> bool:
        with contextlib.suppress(BackendError):
            return await self._api.inspect(self._id) is None
        return False

    async def _last_state(self, seen: _Seen) -> Container | None:
        if seen.lost:
            return None
        with contextlib.suppress(BackendError):
            return await self._api.inspect(self._id)
        return None

    def _exit(self, seen: _Seen, last: Container | None) -> Exit:
        if seen.lost:
            return Exit(None, self._asked, detail="its process is gone, and the engine did not notice")
        if seen.removed and not self._asked:
            return Exit(None, detail="its container was removed")
        if last is None:
            return Exit(seen.code, self._asked)
        out_of_memory = last.oom_killed and not self._asked
        return Exit(last.exit_code, self._asked, out_of_memory, last.error)
