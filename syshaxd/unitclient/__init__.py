"""The only HTTP client toward a unit (docs/kv-handoff.md section 1)."""

from __future__ import annotations

from .client import Answer, Generated, ModelCard, Target, Tokenized, UnitClient
from .events import Chunk, Usage, remote_kv, transfer_params
from .unit_stream import AnswerStream, Deadlines, UnitStream

__all__ = [
    "Answer",
    "AnswerStream",
    "Chunk",
    "Deadlines",
    "Generated",
    "ModelCard",
    "Target",
    "Tokenized",
    "UnitClient",
    "UnitStream",
    "Usage",
    "remote_kv",
    "transfer_params",
]
