"""vLLM with our plugin (kernels/python/syshax_vllm), on an accelerator or on CPUs."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from syshax_contract.gguf import F32
from syshax_contract.model_memory import kv_bytes
from syshaxd.errors import BackendError
from syshaxd.model.abilities import Abilities
from syshaxd.topology import format_cpu_list

from .base import PACKAGES_INSIDE, THREADS, Kind, Surroundings, options, served_name
from .memory import Memory
from .vllm_flags import CPU_BLOCK, TRANSFER, block_for_cpu, block_note, flags, translate

if TYPE_CHECKING:
    from syshax_contract.model_files import ModelFacts
    from syshaxd.config.types import UnitConfig
    from syshaxd.supervisor.binding.binding_plan import Binding

_BOTH_WAYS: Mapping[str, Any] = {"kv_role": "kv_both", "kv_load_failure_policy": "recompute"}
POOL: Mapping[str, Any] = {
    "kv_connector": "SyshaxConnector",
    "kv_connector_module_path": "syshax_vllm.connector",
    **_BOTH_WAYS,
}
NIXL: Mapping[str, Any] = {"kv_connector": "NixlConnector", **_BOTH_WAYS}
MODULE = ("-m", "syshax_vllm.serve")
INSIDE = (f"{PACKAGES_INSIDE}/syshax_vllm",)  # puts its folder before the PYTHONPATH of the image
CPU_KV_SPACE = 4  # GiB, where nothing is said: vLLM's own choice is a share of all memory
MIB = 1 << 20
SERVER = 1280 * MIB  # API server and engine; measured 1.2 GiB with 0.32.0
RANK = 768 * MIB  # one worker without weights and KV
_DTYPES = {"float32": 4, "float": 4, "float16": 2, "half": 2, "bfloat16": 2}
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


class Vllm(Kind):
    """Parses reasoning itself where a parser is configured; takes no order to drop a ticket."""

    name = "vllm"
    summary = "with our plugin"
    abilities = Abilities(reasoning_field="reasoning", discards_tickets=False)
    ours = True
    knows_nixl = True
    inherits_pythonpath = False  # it has packages for the daemon's Python
    rank_variable = "VLLM_CPU_OMP_THREADS_BIND"
    # vLLM compiles these parts at their first use (with --enforce-eager too), for half a minute on a small host, in
    # which no request goes on. A prompt of several tokens, since one and several rows are compiled apart.
    warm_ups = (
        {"logprobs": 1},
        {"prompt_logprobs": 1, "prompt": "The quick brown fox jumps over the lazy dog."},
        {"temperature": 1.0},
    )

    def notes(self, unit: "UnitConfig") -> tuple[str, ...]:
        """Old flags of the user's that were said anew, and what has no effect."""
        found = translate(unit.extra_args, unit.on_cpus).notes
        size = str(unit.block_size) if unit.block_size else None
        if unit.on_cpus and size is not None and size != str(block_for_cpu(size)):
            found = (*found, f"block_size {size}: {block_note(size)}")
        if unit.quantize:
            found = (*found, f"quantize {unit.quantize}: the plugin does not quantise; kind sysinfer does")
        return found

    def command(self, unit: "UnitConfig", around: Surroundings) -> tuple[str, ...]:
        """See Kind. The secret goes by the environment, never here."""
        extra = translate(unit.extra_args, unit.on_cpus)
        size = unit.block_size
        words = options(
            {
                "--model": unit.model_path,
                "--served-model-name": served_name(unit, around.model_name),
                "--host": unit.host,
                "--port": around.port,
                "--max-model-len": unit.max_model_len,
                "--tensor-parallel-size": unit.tensor_parallel_size if unit.tensor_parallel_size > 1 else None,
                "--block-size": block_for_cpu(str(size)) if size and unit.on_cpus else size,
                "--num-gpu-blocks-override": unit.kv_blocks,
                "--reasoning-parser": unit.reasoning_parser or None,
                TRANSFER: self._transfer(unit, around, extra.transfer),
            }
        )
        start = INSIDE if unit.backend.in_container else MODULE
        return (unit.python or "python3", *start, *words, *extra.arguments)

    def environment(self, unit: "UnitConfig", around: Surroundings) -> Mapping[str, str]:
        """See Kind."""
        found = {
            "VLLM_NO_USAGE_STATS": "1",
            "DO_NOT_TRACK": "1",
            "HF_HUB_OFFLINE": "1",
            "TRANSFORMERS_OFFLINE": "1",
            "VLLM_HOST_IP": "127.0.0.1",
        }
        if unit.on_cpus:
            found.update(VLLM_CPU_KVCACHE_SPACE=str(CPU_KV_SPACE), GLOO_SOCKET_IFNAME="lo")
            found[self.rank_variable] = "nobind"  # the binding, where there is one, says otherwise
            if unit.cpu.threads:
                found[THREADS] = str(unit.cpu.threads)
        if around.api_key:
            found["VLLM_API_KEY"] = around.api_key
        if unit.backend.in_container and unit.on_cpus and unit.quantize:
            found.update({"INFERENCE_OP_MODE": "fused", "SYSHAX_QUANTIZE": unit.quantize})
        if around.plugin_dir and not unit.backend.in_container:
            found["PYTHONPATH"] = around.plugin_dir
        return found

    def binding_environment(self, binding: "Binding") -> Mapping[str, str]:
        """One list a rank, joined by `|`, nodes in rank order; we reserve cores, not vLLM."""
        if not binding.cpus:
            return {}
        return {
            **super().binding_environment(binding),
            THREADS: str(len(binding.rank_cpus[0])),
            self.rank_variable: "|".join(format_cpu_list(part) for part in binding.rank_cpus),
            "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
            "CPU_VISIBLE_MEMORY_NODES": ",".join(str(node) for node in binding.memory_nodes),
        }

    def handoff_environment(self, unit: "UnitConfig", around: Surroundings) -> Mapping[str, str]:
        """With NIXL: where the unit tells others of its KV cache; the address goes to them with each request."""
        if not self.uses_nixl(around):
            return super().handoff_environment(unit, around)
        host, port = around.side_channel_host, around.side_channel_port
        return {"VLLM_NIXL_SIDE_CHANNEL_HOST": host, "VLLM_NIXL_SIDE_CHANNEL_PORT": str(port)}

    def memory(self, unit: "UnitConfig", facts: "ModelFacts" | None, pool: int, host_memory: int) -> Memory:
        """See Kind."""
        if not unit.on_cpus or facts is None:
            return Memory(pool=pool, activations=SERVER)
        ranks = unit.tensor_parallel_size
        kv = ranks * _kv(unit, facts, ranks)
        return Memory(_weights(unit, facts), kv, pool, SERVER + ranks * RANK)

    def _transfer(self, unit: "UnitConfig", around: Surroundings, users: str) -> str | None:
        if self.uses_nixl(around):
            buffer = {"kv_buffer_device": "cpu"} if unit.on_cpus else {}
            return json.dumps({**NIXL, **buffer, **(_parsed(users) if users else {})})
        return transfer_config(users) if self.pool_file(unit, around) else users or None


def transfer_config(users: str) -> str:
    """Our connector, the user's own beside it."""
    if not users:
        return json.dumps(POOL)
    connectors = [dict(POOL), _parsed(users)]
    both = {**POOL, "kv_connector": "MultiConnector", "kv_connector_extra_config": {"connectors": connectors}}
    return json.dumps({key: value for key, value in both.items() if key != "kv_connector_module_path"})


def _parsed(users: str) -> Mapping[str, Any]:
    try:
        found = json.loads(users)
    except ValueError as err:
        raise BackendError(f"{TRANSFER} in extra_args is no JSON ({err}): {users}") from err
    if not isinstance(found, dict):
        raise BackendError(f"{TRANSFER} in extra_args: expected a JSON object, found {users}")
    return found


# ---- memory of a vLLM on CPUs --------------------------------------------------------------------------------------
def _weights(unit: "UnitConfig", facts: "ModelFacts") -> int:
    """In the type asked for. vLLM reads GGUF into floats on CPUs."""
    width = _DTYPES.get(_given(unit).get("--dtype", "auto"), 0)
    return sum(part.elements * (width or (4 if part.type == F32 else 2)) for part in facts.parts)


def _kv(unit: "UnitConfig", facts: "ModelFacts", ranks: int) -> int:
    """Of one rank: the number of blocks where it is given, else the space."""
    given = _given(unit)
    blocks = _int(given, "--num-gpu-blocks-override", unit.kv_blocks or 0)
    if blocks:
        size = -(-_int(given, "--block-size", unit.block_size or CPU_BLOCK) // CPU_BLOCK) * CPU_BLOCK
        kept_as = given.get("--kv-cache-dtype", "auto")
        kind = given.get("--dtype", "auto") if kept_as == "auto" else kept_as
        return blocks * kv_bytes(facts, size, kind) // ranks
    if "--kv-cache-memory-bytes" in given:
        return _size(given["--kv-cache-memory-bytes"])
    space = unit.env.get("VLLM_CPU_KVCACHE_SPACE", "")
    return (int(space) if space.isdecimal() and int(space) else CPU_KV_SPACE) << 30


def _given(unit: "UnitConfig") -> Mapping[str, str]:
    return {flag.name: flag.value or "" for flag in flags(unit.extra_args)}


def _int(given: Mapping[str, str], name: str, default: int) -> int:
    text = given.get(name, "")
    return int(text) if text.isdecimal() and len(text) < 12 and int(text) else default


def _size(text: str) -> int:
    """A size as vLLM reads it: 4G is 2^30 times 4, 4g 10^9 times 4; 0 where it is none."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kmgtKMGT]?)i?[bB]?", text)
    if match is None:
        return 0
    base = 1024 if match[2].isupper() else 1000
    return int(float(match[1]) * base ** _POWERS[match[2].lower()])


VLLM = Vllm()
