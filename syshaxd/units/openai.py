"""Any other OpenAI server: it is reached and watched, and answers whole requests. No handoff, no abort by id."""

from __future__ import annotations

from syshaxd.model.abilities import Abilities

from .base import Kind


class OpenAI(Kind):
    """Nothing is known of it but the API it names itself by."""

    name = "openai"
    abilities = Abilities(reasoning_field="reasoning_content", token_ids=False, aborts=False, discards_tickets=False)


OPENAI = OpenAI()
