"""Any other OpenAI server: it is reached and watched, and answers whole requests. No handoff, no abort by id."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from syshaxd.model.abilities import Abilities

from .base import Kind, KindFault

if TYPE_CHECKING:
    from syshaxd.config.types import UnitConfig


class OpenAI(Kind):
    """Nothing is known of it but the API it names itself by."""

    name = "openai"
    summary = "any other OpenAI server; no handoff"
    abilities = Abilities(reasoning_field="reasoning_content", token_ids=False, aborts=False, discards_tickets=False)

    def faults(self, unit: "UnitConfig") -> Iterator[KindFault]:
        """See Kind."""
        yield from super().faults(unit)
        if unit.backend.starts and not unit.command:
            message = "found kind openai without command; no start command is known: give command, or backend: external"
            yield KindFault("kind", message, ("command", "backend"))


OPENAI = OpenAI()
