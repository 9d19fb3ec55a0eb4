"""A unit: one supervised inference server, its role and its life."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from .abilities import Abilities


class Role(enum.Enum):
    """Which side of the host a unit serves from."""

    ACCELERATOR = "accelerator"
    CPU = "cpu"


class BackendKind(enum.Enum):
    """How a unit is run."""

    PROCESS = "process"
    PODMAN = "podman"
    DOCKER = "docker"
    EXTERNAL = "external"

    @property
    def starts(self) -> bool:
        """Whether sysHAX starts the unit; else somebody else runs it."""
        return self is not BackendKind.EXTERNAL

    @property
    def in_container(self) -> bool:
        """Whether the unit has a file system and a network of its own."""
        return self in (BackendKind.PODMAN, BackendKind.DOCKER)


class UnitState(enum.Enum):
    """Life of a unit; transitions are in `syshaxd.supervisor`."""

    STOPPED = "stopped"
    STARTING = "starting"
    WARMING = "warming"
    READY = "ready"
    DRAINING = "draining"
    STOPPING = "stopping"
    FAILED = "failed"


@dataclass(frozen=True)
class Granted:
    """What a unit says it got of its binding, in its model card. `unbound`: ranges of weights or KV off their node."""

    threads: int
    pinned: int
    nodes: int
    unbound: int
    isa: str = ""


@dataclass(frozen=True)
class Failure:
    """Why a unit failed, kept after it serves again. `at`: Unix time; `last_log`: the last 50 lines it had written."""

    reason: str
    at: float
    last_log: tuple[str, ...] = ()


@dataclass(frozen=True)
class UnitView:
    """What the rest of the daemon may know of a unit. Written by the unit's own task only, replaced whole."""

    name: str
    role: Role
    kind: str  # a name in syshaxd.units.KINDS, to be shown; what it can do is in `abilities`
    backend: BackendKind
    state: UnitState
    url: str  # base URL without /v1; "" while unknown
    epoch: int = 0  # grows at every start; a stream started in an older epoch is on a dead unit
    model: str = ""  # served name
    pool_file: str = ""  # path of its outbox on this host; "" where it can't hand over
    pid: int | None = None
    container: str = ""
    since: float = 0.0  # monotonic seconds of the last state change
    restarts: int = 0
    reason: str = ""  # last error, one sentence; kept until the next READY
    last_log: tuple[str, ...] = ()  # while failed the last 50 lines, on its way up the last one
    last_failure: Failure | None = None
    digest: str = ""
    pending: str = ""  # what is still to be done to it, and why
    nixl: bool = False  # its KV cache goes to and comes from other units by vLLM's NixlConnector
    granted: Granted | None = None  # None where the unit does not say
    max_num_seqs: int | None = None  # as configured, for a unit that does not tell
    max_step_tokens: int | None = None
    abilities: Abilities = Abilities()

    @property
    def ready(self) -> bool:
        """Whether requests may be sent to it."""
        return self.state is UnitState.READY

    @property
    def settled(self) -> bool:
        """Whether it is where it stays until something happens to it."""
        return self.state in (UnitState.READY, UnitState.FAILED, UnitState.STOPPED)

    @property
    def max_model_len(self) -> int | None:
        """Tokens of prompt and answer together; None while it has not told."""
        return self.abilities.max_context

    @property
    def can_hand_over(self) -> bool:
        """Whether its KV cache can be given to, or taken from, another unit, also in the middle of a request."""
        return bool(self.pool_file)

    @property
    def can_split(self) -> bool:
        """Whether it can prefill for another unit, or decode after one."""
        return self.can_hand_over or self.nixl
