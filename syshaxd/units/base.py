"""What a kind of unit says of itself. The defaults are those of somebody else's OpenAI server. Pure."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from syshaxd.errors import BackendError
from syshaxd.model.abilities import Abilities
from syshaxd.topology import format_cpu_list

from .memory import Memory

if TYPE_CHECKING:
    from syshax_contract.model_files import ModelFacts
    from syshaxd.config.types import UnitConfig
    from syshaxd.supervisor.binding.binding_plan import Binding

PACKAGES_INSIDE = "/opt/syshax/python"  # where a container has our Python packages
THREADS = "OMP_NUM_THREADS"
CPU_LISTS = ("CUSTOM_CPU_AFFINITY", "GOMP_CPU_AFFINITY")  # of the users' guides, and libgomp's


@dataclass(frozen=True)
class Surroundings:
    """What a start needs besides the unit's own configuration. `port` 0 and `secret_file` "": not chosen yet."""

    model_name: str
    pool_dir: str
    pool_bytes: int
    binding: "Binding"
    port: int = 0
    secret_file: str = ""
    environ: Mapping[str, str] = field(default_factory=dict)  # the daemon's own
    api_key: str = field(default="", repr=False)  # what is in secret_file, for servers that take it by environment
    donor: str = ""  # container whose IPC namespace the unit joins
    pool_group: str = ""  # group id of the pool folder
    plugin_dir: str = ""  # folder with our Python packages, for containers and vLLM
    transport: str = "pool"  # kv.transport
    side_channel_host: str = ""
    side_channel_port: int = 0  # of NIXL; 0: not chosen yet


class KindFault(NamedTuple):
    """A key of the unit that this kind can't do as it stands; `also`: other keys it is about."""

    key: str
    message: str
    also: tuple[str, ...] = ()
    on_key: bool = False


class Kind:
    """One inference server. Without state: every answer is a function of what is passed in."""

    name = ""
    summary = ""  # for the reference of the configuration
    abilities = Abilities()  # before the unit has been asked; see syshaxd.model.abilities
    ours = False  # our packages run in it: it has an outbox, and speaks a version of the handoff contract
    knows_nixl = False
    inherits_pythonpath = True  # of the daemon
    rank_variable = ""  # in which its ranks' CPUs can be named, "a|b"; "": it has no ranks
    warm_ups: Sequence[Mapping[str, Any]] = ()  # requests before its first real one; it may refuse them

    # ---- configuration

    def faults(self, unit: "UnitConfig") -> Iterator[KindFault]:
        """What is wrong with a unit of this kind, beside the rules that hold for all."""
        if unit.packed_cache:
            message = f"has no effect on a unit of kind {self.name}; only sysinfer packs weights"
            yield KindFault("packed_cache", message, ("kind",), on_key=True)

    def notes(self, unit: "UnitConfig") -> tuple[str, ...]:
        """What a person should know of its start: one line each."""
        return ()

    # ---- start

    def command(self, unit: "UnitConfig", around: Surroundings) -> tuple[str, ...]:
        """The whole start command. Raises BackendError where there is none."""
        what = f"kind {self.name} with backend {unit.backend.value}"
        way_out = f"give units.{unit.name}.command, or use backend: external with a url"
        raise BackendError(f"unit {unit.name}: there is no built-in way to start {what}; {way_out}")

    def environment(self, unit: "UnitConfig", around: Surroundings) -> Mapping[str, str]:
        """Variables besides those of the binding and of the handoff, which both say more."""
        return {}

    def binding_environment(self, binding: "Binding") -> Mapping[str, str]:
        """Names of the user's documents and of OpenMP; empty for a unit that is not bound."""
        if not binding.cpus:
            return {}
        cpus = format_cpu_list(binding.cpus)
        return {THREADS: str(binding.threads), **{name: cpus for name in CPU_LISTS}}

    # ---- handoff

    def pool_file(self, unit: "UnitConfig", around: Surroundings) -> str:
        """Path of the unit's outbox; "" where it has none."""
        has_outbox = self.ours and unit.backend.starts and around.pool_bytes > 0 and around.transport == "pool"
        return f"{around.pool_dir}/{unit.name}.pool" if has_outbox else ""

    def uses_nixl(self, around: Surroundings) -> bool:
        """Whether its KV cache goes by NIXL. An external unit is taken to have been started so."""
        return self.knows_nixl and around.transport == "nixl"

    def handoff_environment(self, unit: "UnitConfig", around: Surroundings) -> Mapping[str, str]:
        """What the server must know of where KV goes."""
        if not self.pool_file(unit, around):
            return {}
        return {
            "SYSHAX_POOL_DIR": around.pool_dir,
            "SYSHAX_POOL_NAME": f"{unit.name}.pool",
            "SYSHAX_POOL_BYTES": str(around.pool_bytes),
        }

    # ---- CPUs and memory

    def ranks(self, unit: "UnitConfig") -> int:
        """Parts that it cuts its CPUs into."""
        return unit.tensor_parallel_size if self.rank_variable and unit.on_cpus else 1

    def kv_heads(self, facts: "ModelFacts" | None) -> int:
        """KV heads that it spreads over nodes; 0: it does not."""
        return 0

    def memory(self, unit: "UnitConfig", facts: "ModelFacts" | None, pool: int, host_memory: int) -> Memory:
        """What a unit takes of the host. `facts` None: its model is unknown, or is held by an accelerator.
        `host_memory`: bytes of all its nodes, for what an engine sizes by itself; 0: unknown."""
        return Memory()


def served_name(unit: "UnitConfig", default: str) -> str:
    """The model name under which the unit answers."""
    return unit.served_name or default or unit.model_path.rstrip("/").rpartition("/")[2]


def python(unit: "UnitConfig") -> str:
    """The interpreter of a server of ours: on the host the daemon's own."""
    return unit.python or "python3" if unit.backend.in_container else sys.executable


def options(values: Mapping[str, object | None]) -> tuple[str, ...]:
    """Words of a command line; what is None is left out."""
    return tuple(word for name, value in values.items() if value is not None for word in (name, str(value)))
