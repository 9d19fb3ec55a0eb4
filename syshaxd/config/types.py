"""The configuration as frozen values. Durations are seconds, sizes bytes.

Defaults here are the documented ones; schema.json beside this file says what is allowed and what a reload may change.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Optional

from syshaxd.model.served import Model, Models
from syshaxd.model.unit import BackendKind, Role


@dataclass(frozen=True)
class ConductorConfig:
    """`services.conductor`: the HTTP front."""

    host: str = "127.0.0.1"
    port: int = 8010
    max_body: int = 16 * 1024 * 1024
    api_keys_file: str = ""
    allowed_hosts: tuple[str, ...] = ()


@dataclass(frozen=True)
class LimitsConfig:
    """`limits`: bounds on what clients may hold."""

    max_in_flight: int = 2048
    max_queue: int = 256
    queue_timeout: float = 30.0
    request_timeout: float = 3600.0
    connect_timeout: float = 5.0
    first_token_timeout: float = 300.0
    stall_timeout: float = 30.0  # no token for this long while a unit holds the request
    max_silence: float = 2.0  # of a stream toward its client, before headers or a comment line are sent


@dataclass(frozen=True)
class PdConfig:
    """`pd`: prefill/decode split and moves (docs/kv-handoff.md)."""

    enabled: bool = True
    precision: str = "mixed"  # exact | mixed
    self_check: bool = True
    top1_agreement: float = 0.9
    max_logprob_diff: float = 0.1
    auto_offload: bool = True
    offload_above: float = 0.9  # KV usage of the accelerator unit
    return_below: float = 0.6
    max_moves: int = 4
    move_deadline: float = 10.0
    pool_dir: str = "/dev/shm/syshax"
    pool_size: int = 1024 * 1024 * 1024


@dataclass(frozen=True)
class KvConfig:
    """`kv`: how KV cache gets from unit to unit."""

    transport: str = "pool"  # pool | nixl
    side_channel_host: str = "127.0.0.1"


@dataclass(frozen=True)
class ThresholdConfig:
    """`scheduler.threshold`: the original rule, repaired."""

    max_num_seqs: Optional[int] = None  # running requests at which the accelerator counts as full; None: the unit says
    kv_usage: float = 0.9
    waiting: int = 1
    cpu_max_num_seqs: int = 16
    cpu_kv_usage: float = 0.9


@dataclass(frozen=True)
class SloConfig:
    """`scheduler.slo.<tier>`: limits the predictive decider keeps, seconds."""

    ttft: float = 2.0
    tpot: float = 0.1


@dataclass(frozen=True)
class SchedulerConfig:
    """`scheduler`: which decider, and its inputs."""

    decider: str = "predictive"  # predictive | threshold
    safety: float = 0.85
    threshold: ThresholdConfig = ThresholdConfig()
    slo: Mapping[str, SloConfig] = field(default_factory=dict)


@dataclass(frozen=True)
class MonitorConfig:
    """`monitor`: how often units and host are looked at."""

    interval: float = 0.25
    metrics_interval: float = 5.0
    metrics_timeout: float = 2.0


@dataclass(frozen=True)
class LifecycleConfig:
    """`lifecycle`: stop, drain, adoption."""

    drain_timeout: float = 30.0
    on_stop: str = "stop"  # stop | keep


@dataclass(frozen=True)
class HealthConfig:
    """`units.NAME.health`."""

    interval: float = 2.0
    timeout: float = 2.0
    failures: int = 3
    canary_interval: float = 60.0
    canary_timeout: float = 60.0


@dataclass(frozen=True)
class RestartConfig:
    """`units.NAME.restart`: exponential backoff between `backoff` and `backoff_max`, start limit."""

    backoff: float = 1.0
    backoff_max: float = 300.0
    limit: int = 10  # failed starts in a row before FAILED stays


@dataclass(frozen=True)
class CpuConfig:
    """`units.NAME.cpu`: binding. `affinity`: "auto", "none" or a CPU list such as 0-39,80-119."""

    affinity: str = "auto"
    threads: Optional[int] = None
    reserved: str = ""
    memory_nodes: str = ""


@dataclass(frozen=True)
class ContainerConfig:
    """`units.NAME.container` for podman and docker."""

    image: str = ""
    pull: str = "missing"  # always | missing | never
    socket: str = ""
    name: str = ""
    ipc: str = "private"  # private | shareable | host | unit:NAME
    shm_size: int = 0
    memory: int = 0  # bytes; 0: no limit
    network: str = "bridge"  # bridge | host
    soc: str = "auto"  # auto | a2 | a3 | 300i: Ascend boards
    devices: tuple[str, ...] = ()
    mounts: tuple[str, ...] = ()
    privileged: bool = False


@dataclass(frozen=True)
class UnitConfig:
    """`units.NAME`."""

    name: str
    role: Role
    kind: str = "sysinfer"  # a name in syshaxd.units.KINDS
    backend: BackendKind = BackendKind.PROCESS
    accelerator: str = "none"  # nvidia | ascend | none
    model_path: str = ""
    served_name: str = ""
    host: str = "127.0.0.1"
    port: int = 0  # 0: chosen at start
    url: str = ""  # external units; built of host and port where only those are given
    api_key_file: str = ""
    device_ids: tuple[str, ...] = ()
    tensor_parallel_size: int = 1
    max_model_len: Optional[int] = None
    kv_blocks: Optional[int] = None
    max_num_seqs: Optional[int] = None  # what it was started with, where it does not tell
    max_num_batched_tokens: Optional[int] = None
    block_size: Optional[int] = None
    quantize: str = ""  # q8_0 | q4_0 | ""
    packed_cache: str = ""  # folder; only kind sysinfer
    reasoning_parser: str = ""  # vLLM's name of one, such as deepseek_r1
    side_channel_port: int = 0  # NIXL; 0: chosen at start
    python: str = ""  # of a vLLM, or of any unit in a container; the one on PATH where empty
    command: tuple[str, ...] = ()  # instead of the built-in launch recipe
    env: Mapping[str, str] = field(default_factory=dict)
    extra_args: tuple[str, ...] = ()
    start_timeout: float = 3600.0
    stop_timeout: float = 30.0
    cpu: CpuConfig = CpuConfig()
    health: HealthConfig = HealthConfig()
    restart: RestartConfig = RestartConfig()
    container: ContainerConfig = ContainerConfig()

    @property
    def on_cpus(self) -> bool:
        """Whether it computes on CPUs; else these only feed its devices."""
        return self.accelerator == "none"


@dataclass(frozen=True)
class ModelConfig:
    """`models.served.NAME`."""

    aliases: tuple[str, ...] = ()
    units: tuple[str, ...] = ()  # none: those whose served_name it is
    clip_max_tokens: bool = False


@dataclass(frozen=True)
class LogConfig:
    """`log`."""

    level: str = "info"
    access: bool = True


@dataclass(frozen=True)
class Config:
    """The whole, merged and checked configuration. Written by Engine only, replaced whole."""

    conductor: ConductorConfig = ConductorConfig()
    model_name: str = ""  # models.default
    model_path: str = ""  # models.path; already filled in for units that name none of their own
    models: Mapping[str, ModelConfig] = field(default_factory=dict)  # models.served
    units: tuple[UnitConfig, ...] = ()
    limits: LimitsConfig = LimitsConfig()
    pd: PdConfig = PdConfig()
    kv: KvConfig = KvConfig()
    scheduler: SchedulerConfig = SchedulerConfig()
    monitor: MonitorConfig = MonitorConfig()
    lifecycle: LifecycleConfig = LifecycleConfig()
    log: LogConfig = LogConfig()
    control_socket: str = "/run/syshax/control.sock"
    state_dir: str = "/var/lib/syshax"

    @property
    def served(self) -> Models:
        """The models, the default first, also where only models.default names one."""
        named = {**({self.model_name: ModelConfig()} if self.model_name else {}), **self.models}
        return Models(tuple(Model(name, one.aliases, one.units, one.clip_max_tokens) for name, one in named.items()))
