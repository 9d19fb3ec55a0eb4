"""How vLLM is started with our plugin: command, environment, and old flags said anew. Pure.

What depends on vLLM's version is left to the plugin's own start module, which runs inside that version.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from syshaxd.config.types import UnitConfig
from syshaxd.errors import BackendError

OURS: Mapping[str, Any] = {
    "kv_connector": "SyshaxConnector",
    "kv_connector_module_path": "syshax_vllm.connector",
    "kv_role": "kv_both",
    "kv_load_failure_policy": "recompute",
}
NIXL: Mapping[str, Any] = {
    "kv_connector": "NixlConnector",
    "kv_role": "kv_both",
    "kv_load_failure_policy": "recompute",
}
CPU_BLOCK = 32  # tokens; vLLM's CPU attention takes multiples of it
CPU_KV_SPACE = 4  # GiB, where nothing is said: vLLM's own choice is a share of all memory
MODULE = ("-m", "syshax_vllm.serve")
_TRANSFER = "--kv-transfer-config"
_GONE: Mapping[str, tuple[bool, str]] = {  # flag: whether a value follows, and what stands in its place
    "--swap-space": (True, "preempted requests keep their KV in the pool: pd.pool_size is its size"),
    "--preemption-mode": (True, "preempted requests keep their KV in the pool, as with swap"),
    "--enable-auto-pd-offload": (False, "sysHAX does it: pd.auto_offload"),
    "--device": (True, "the installed vLLM knows its device"),
    "--num-scheduler-steps": (True, "vLLM schedules every step"),
}


class Flag(NamedTuple):
    """One flag of a command line with the words that belong to it."""

    name: str  # with dashes
    value: str | None
    words: tuple[str, ...]


class Translated(NamedTuple):
    """Arguments that today's vLLM takes."""

    arguments: tuple[str, ...]
    transfer: str  # the user's own --kv-transfer-config
    notes: tuple[str, ...]


def flags(words: tuple[str, ...]) -> Iterator[Flag]:
    """Groups words into flags; a word without a dash belongs to the flag before it."""
    group: list[str] = []
    for word in (*words, "--"):
        if word.startswith("--") and group:
            name, equals, value = group[0].partition("=")
            given = value if equals else " ".join(group[1:]) if len(group) > 1 else None
            yield Flag(name.replace("_", "-"), given, tuple(group))
            group = []
        group.append(word)


def translate(words: tuple[str, ...], on_cpu: bool) -> Translated:
    """The user's flags, old ones replaced."""
    kept: list[str] = []
    notes: list[str] = []
    transfer = ""
    for flag in flags(words):
        gone = _GONE.get(flag.name)
        if gone is not None:
            notes.append(f"{' '.join(flag.words)}: vLLM has this no more; {gone[1]}")
            kept += flag.words[2:] if gone[0] and "=" not in flag.words[0] else flag.words[1:]
        elif flag.name == _TRANSFER:
            transfer = flag.value or ""
        elif flag.name == "--block-size" and on_cpu and flag.value != str(_block(flag.value)):
            notes.append(f"{' '.join(flag.words)}: {_block_note(flag.value)}")
            kept.append(f"--block-size={_block(flag.value)}")
        else:
            kept += flag.words
    return Translated(tuple(kept), transfer, tuple(notes))


def _block(value: str | None) -> object:
    """The next size that CPU attention takes; what is no number stays."""
    return -(-int(value) // CPU_BLOCK) * CPU_BLOCK if value and value.isdecimal() else value


def _block_note(value: str | None) -> str:
    return f"vLLM's CPU attention takes multiples of {CPU_BLOCK}: {_block(value)} is used"


def notes(unit: UnitConfig) -> tuple[str, ...]:
    """What a person should know of a start: one line each."""
    on_cpu = unit.accelerator == "none"
    found = translate(unit.extra_args, on_cpu).notes
    size = str(unit.block_size) if unit.block_size else None
    if on_cpu and size != _text(_block(size)):
        found = (*found, f"block_size {size}: {_block_note(size)}")
    if unit.quantize:
        found = (*found, f"quantize {unit.quantize}: the plugin does not quantise; kind sysinfer does")
    return found


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def command(
    unit: UnitConfig, served: str, port: int, transport: str, start: tuple[str, ...] = MODULE
) -> tuple[str, ...]:
    """The whole start command. The secret goes by the environment, never here. `transport`: pool, nixl, or "" for no
    handoff; `start`: how Python finds the plugin."""
    on_cpu = unit.accelerator == "none"
    extra = translate(unit.extra_args, on_cpu)
    size = unit.block_size
    options: Mapping[str, object | None] = {
        "--model": unit.model_path,
        "--served-model-name": served,
        "--host": unit.host,
        "--port": port,
        "--max-model-len": unit.max_model_len,
        "--tensor-parallel-size": unit.tensor_parallel_size if unit.tensor_parallel_size > 1 else None,
        "--block-size": _block(str(size)) if size and on_cpu else size,
        "--num-gpu-blocks-override": unit.kv_blocks,
        "--reasoning-parser": unit.reasoning_parser or None,
        _TRANSFER: _transfer(transport, extra.transfer, on_cpu),
    }
    words = [word for name, value in options.items() if value is not None for word in (name, str(value))]
    return (unit.python or "python3", *start, *words, *extra.arguments)


def _transfer(transport: str, users: str, on_cpu: bool) -> str | None:
    if transport == "nixl":
        buffer = {"kv_buffer_device": "cpu"} if on_cpu else {}
        return json.dumps({**NIXL, **buffer, **(_parsed(users) if users else {})})
    return transfer_config(users) if transport == "pool" else users or None


def nixl_environment(host: str, port: int) -> Mapping[str, str]:
    """Where the unit tells others of its KV cache: the address goes to them with each request."""
    return {"VLLM_NIXL_SIDE_CHANNEL_HOST": host, "VLLM_NIXL_SIDE_CHANNEL_PORT": str(port)}


def _parsed(users: str) -> Mapping[str, Any]:
    try:
        found = json.loads(users)
    except ValueError as err:
        raise BackendError(f"{_TRANSFER} in extra_args is no JSON ({err}): {users}") from err
    if not isinstance(found, dict):
        raise BackendError(f"{_TRANSFER} in extra_args: expected a JSON object, found {users}")
    return found


def transfer_config(users: str) -> str:
    """Our connector, the user's own beside it."""
    if not users:
        return json.dumps(OURS)
    connectors = [dict(OURS), _parsed(users)]
    both = {**OURS, "kv_connector": "MultiConnector", "kv_connector_extra_config": {"connectors": connectors}}
    return json.dumps({key: value for key, value in both.items() if key != "kv_connector_module_path"})


def environment(unit: UnitConfig, plugin: str, secret: str) -> Mapping[str, str]:
    """What vLLM needs besides the binding and the pool. `plugin` "": the start command names its folder."""
    found = {
        **({"PYTHONPATH": plugin} if plugin else {}),
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "VLLM_HOST_IP": "127.0.0.1",
    }
    if unit.accelerator == "none":
        found.update(VLLM_CPU_KVCACHE_SPACE=str(CPU_KV_SPACE), GLOO_SOCKET_IFNAME="lo")
        found["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"  # the binding, where there is one, says otherwise
        if unit.cpu.threads:
            found["OMP_NUM_THREADS"] = str(unit.cpu.threads)
    if secret:
        found["VLLM_API_KEY"] = secret
    return found
