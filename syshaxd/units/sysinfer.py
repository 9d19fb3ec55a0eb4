"""sysinfer, the engine that comes with sysHAX (kernels/python/sysinfer)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from syshax_contract.model_memory import SERVER_BYTES, engine_memory
from syshax_contract.sysinfer_command import CommandLineError, EngineSizing, sizing_of
from syshaxd.model.abilities import Abilities, Feature
from syshaxd.topology import format_cpu_list

from .base import PACKAGES_INSIDE, Kind, KindFault, Surroundings, options, python, served_name
from .memory import Memory

if TYPE_CHECKING:
    from syshax_contract.model_files import ModelFacts
    from syshaxd.config.types import UnitConfig


class Sysinfer(Kind):
    """Computes on CPUs; leaves reasoning in the text, where the Runner finds it."""

    name = "sysinfer"
    summary = "built in"
    abilities = Abilities(features=frozenset({Feature.PROMPT_LOGPROBS, Feature.SEVERAL_PROMPTS}))
    ours = True

    def faults(self, unit: "UnitConfig") -> Iterator[KindFault]:
        """See Kind."""
        if not unit.on_cpus:
            message = f"found {unit.accelerator}, but kind sysinfer computes on CPUs only; kind: vllm uses accelerators"
            yield KindFault("accelerator", message, ("kind",))

    def command(self, unit: "UnitConfig", around: Surroundings) -> tuple[str, ...]:
        """See Kind."""
        words = [python(unit), "-m", "sysinfer", "serve", unit.model_path]
        server = {
            "--served-model-name": served_name(unit, around.model_name),
            "--host": unit.host,
            "--port": around.port,
            "--cpus": format_cpu_list(around.binding.cpus) or None,
            "--threads": unit.cpu.threads,
            "--api-key-file": around.secret_file,
        }
        kept = {"--packed-cache": unit.packed_cache or None}
        return (*words, *options({**server, **_sizing_options(unit), **kept}), *unit.extra_args)

    def environment(self, unit: "UnitConfig", around: Surroundings) -> Mapping[str, str]:
        """See Kind."""
        return {"PYTHONPATH": PACKAGES_INSIDE} if around.plugin_dir and unit.backend.in_container else {}

    def kv_heads(self, facts: "ModelFacts" | None) -> int:
        """See Kind."""
        return facts.kv_heads if facts else 0

    def memory(self, unit: "UnitConfig", facts: "ModelFacts" | None, pool: int, host_memory: int) -> Memory:
        """As the engine itself will size it, by the same functions."""
        if facts is None:
            return Memory(pool=pool, activations=SERVER_BYTES)
        planned = engine_memory(facts, sizing(unit), host_memory or None)
        return Memory(planned.weights, planned.kv, pool, planned.activations)


def sizing(unit: "UnitConfig") -> EngineSizing:
    """The options that its command line will have. One that it would refuse is planned without the user's words."""
    own = options(_sizing_options(unit))
    quantize = unit.env.get("SYSHAX_QUANTIZE", "").strip().lower()
    try:
        return sizing_of([unit.model_path, *own, *unit.extra_args], quantize)
    except CommandLineError:
        return sizing_of([unit.model_path, *own])


def _sizing_options(unit: "UnitConfig") -> Mapping[str, object | None]:
    return {
        "--max-model-len": unit.max_model_len,
        "--kv-blocks": unit.kv_blocks,
        "--block-size": unit.block_size,
        "--quantize": unit.quantize or None,
    }


SYSINFER = Sysinfer()
