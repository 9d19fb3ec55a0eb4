"""vLLM with our plugin (kernels/python/syshax_vllm), on an accelerator or on CPUs."""

from __future__ import annotations

from syshaxd.model.abilities import Abilities

from .base import Kind


class Vllm(Kind):
    """Parses reasoning itself where a parser is configured; takes no order to drop a ticket."""

    name = "vllm"
    abilities = Abilities(reasoning_field="reasoning", discards_tickets=False)


VLLM = Vllm()
