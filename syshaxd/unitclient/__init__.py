"""The only HTTP client toward a unit (docs/kv-handoff.md section 1)."""

from __future__ import annotations

from .client import Answer, Generated, ModelCard, Target, Tokenized, UnitClient
from .events import Chunk, Usage
from .stream import Deadlines, PendingCall, UnitStream

__all__ = [
    "Answer",
    "Chunk",
    "Deadlines",
    "Generated",
    "ModelCard",
    "PendingCall",
    "Target",
    "Tokenized",
    "UnitClient",
    "UnitStream",
    "Usage",
]
