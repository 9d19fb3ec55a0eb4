"""sysinfer, the engine that comes with sysHAX (kernels/python/sysinfer)."""

from __future__ import annotations

from syshaxd.model.abilities import Abilities, Feature

from .base import Kind


class Sysinfer(Kind):
    """Computes on CPUs; leaves reasoning in the text, where the Runner finds it."""

    name = "sysinfer"
    abilities = Abilities(features=frozenset({Feature.PROMPT_LOGPROBS, Feature.SEVERAL_PROMPTS}))


SYSINFER = Sysinfer()
