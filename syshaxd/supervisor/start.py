"""One start of a unit: from what the configuration wants to a process that can be asked."""

from __future__ import annotations

import contextlib
import functools
import sys
import time
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Callable
from urllib.parse import urlsplit

from syshaxd import log as logging
from syshaxd.backends.backend import Backend, LaunchSpec, OnLine, Running
from syshaxd.config.types import UnitConfig
from syshaxd.errors import BackendError
from syshaxd.model.abilities import Abilities
from syshaxd.model.snapshot import InFlight
from syshaxd.model.unit import BackendKind, Granted
from syshaxd.monitor import PageReader
from syshaxd.unitclient import Target, UnitClient
from syshaxd.units import KINDS, Kind, Surroundings, served_name

from . import files, recipes
from .probe import Probe
from .unit_container import donor_of

log = logging.Log("supervisor")
_NO_PACKAGES = (
    "its container gets our Python packages from the folder that has syshax_kernels, and no folder of PYTHONPATH or "
    "sys.path has it; reinstall sysHAX"
)


@dataclass(frozen=True)
class Desired:
    """What the configuration wants of one unit. Replaced whole."""

    config: UnitConfig
    around: Surroundings
    state_dir: str
    drain_timeout: float
    stall_timeout: float
    idle_start: float = 120.0  # seconds without a sign of work before a start is given up

    @functools.cached_property  # asked for at every look of the supervisor, a millisecond each
    def digest(self) -> str:
        """Changes when the unit has to be replaced."""
        return recipes.digest(self.config, self.around)

    @property
    def kind(self) -> Kind:
        """All that is known of its server."""
        return KINDS[self.config.kind]


@dataclass(frozen=True)
class Tools:
    """What all units share."""

    backends: Mapping[BackendKind, Backend]
    client: UnitClient
    in_flight: Callable[[], Sequence[InFlight]]
    changed: Callable[[], None]  # a view changed
    environ: Mapping[str, str]
    donor: Callable[[str], Awaitable[str]]  # container of a unit whose IPC namespace is joined, once it runs
    clock: Callable[[], float] = time.monotonic


@dataclass
class Start:
    """One start of the unit and what hangs on it."""

    spec: LaunchSpec
    running: Running
    probe: Probe
    pool_file: str
    page: PageReader | None
    began: float
    contract: str  # that its packages speak
    abilities: Abilities
    api_key: str = field(repr=False)
    granted: Granted | None = None
    outbox: int | None = None  # its inode, once the unit has written its header

    @property
    def donor(self) -> str:
        """The container whose IPC namespace it has joined."""
        ipc = self.spec.container.ipc if self.spec.container else ""
        return ipc[len("container:") :] if ipc.startswith("container:") else ""

    @property
    def of_other_release(self) -> bool:
        """Whether it was adopted and speaks another contract."""
        return self.contract != self.spec.contract

    def bury(self) -> None:
        """The process is gone: nobody shall find its outbox."""
        if self.page is not None:
            self.page.close()
        if self.pool_file:
            try:
                files.remove_outbox(self.pool_file)
            except OSError as err:
                log.warning("its outbox can't be removed", path=self.pool_file, reason=err.strerror)

    def outbox_lost(self) -> bool:
        """Whether the outbox that it works with is not at its path any more, or has lost its header: nobody can take
        KV from it, and only a new start makes another."""
        try:
            return self.outbox is not None and files.outbox_identity(self.pool_file) != self.outbox
        except OSError:
            return False

    def see_outbox(self) -> None:
        """Remember the outbox that the unit has made; without one there is nothing to lose."""
        with contextlib.suppress(OSError):
            self.outbox = files.outbox_identity(self.pool_file) if self.pool_file else None


async def begin(desired: Desired, tools: Tools, on_line: OnLine) -> Start:
    """Start the unit, or adopt the one that runs already. Raises BackendError."""
    config, kind = desired.config, desired.kind
    around = await _decided(desired, tools)
    for note in kind.notes(config):
        log.warning(note, unit=config.name)
    pool_file = kind.pool_file(config, around)
    spec, running, contract = await _launched(config, around, backend_of(config, tools), on_line)
    probe = Probe(tools.client, Target(config.name, spec.url, around.api_key), served_name(config, around.model_name))
    page = PageReader(pool_file) if pool_file else None
    now, secret = tools.clock(), around.api_key
    return Start(spec, running, probe, pool_file, page, now, contract, kind.abilities, secret)


def backend_of(config: UnitConfig, tools: Tools) -> Backend:
    """Who runs it. Raises BackendError."""
    backend = tools.backends.get(config.backend)
    if backend is None:
        raise BackendError(f"unit {config.name}: backend {config.backend.value} is not available here")
    return backend


def surroundings(desired: Desired, environ: Mapping[str, str]) -> Surroundings:
    """With what can be said before a start."""
    around, backend = desired.around, desired.config.backend
    if not backend.starts:
        return around
    group = files.group_of(around.pool_dir) if backend.in_container else ""
    return replace(around, plugin_dir=files.plugin_dir(environ, sys.path), pool_group=group)


async def _decided(desired: Desired, tools: Tools) -> Surroundings:
    """With what is chosen at a start: secret, ports, and what only a container needs."""
    config, around = desired.config, surroundings(desired, tools.environ)
    secret = config.api_key_file
    if not secret and config.backend.starts:
        secret = str(files.ensure_secret(desired.state_dir, config.name))
    api_key = files.read_secret(secret)
    port = config.port or (files.free_port(config.host) if config.backend.starts else 0)
    around = replace(around, port=port, secret_file=secret, environ=tools.environ, api_key=api_key)
    if desired.kind.uses_nixl(around) and config.backend.starts:
        side_channel = config.side_channel_port or files.free_port(around.side_channel_host)
        around = replace(around, side_channel_port=side_channel)
    return await _for_container(desired, around, tools) if config.backend.in_container else around


async def _for_container(desired: Desired, around: Surroundings, tools: Tools) -> Surroundings:
    """The pool folder and its group, our packages, the container it joins."""
    config = desired.config
    if not around.plugin_dir and not config.command:
        raise BackendError(f"unit {config.name}: {_NO_PACKAGES}")
    if desired.kind.pool_file(config, around):
        files.make_pool_folder(around.pool_dir)
    donor = await tools.donor(donor_of(config)) if donor_of(config) else ""
    return replace(around, pool_group=files.group_of(around.pool_dir), donor=donor)


async def _launched(
    config: UnitConfig, around: Surroundings, backend: Backend, on_line: OnLine
) -> tuple[LaunchSpec, Running, str]:
    """What was started or adopted, and the contract that it speaks."""
    spec = recipes.launch_spec(config, around)
    adopted = await backend.adopt(spec, on_line) if backend.capabilities.survives_daemon else None
    if adopted is not None:
        around = replace(around, port=urlsplit(adopted.url).port or around.port)
        return replace(recipes.launch_spec(config, around), url=adopted.url), adopted.running, adopted.contract
    pool_file = KINDS[config.kind].pool_file(config, around)
    if pool_file:
        files.make_outbox(pool_file)
    return spec, await backend.start(spec, on_line), spec.contract
