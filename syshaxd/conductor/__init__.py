"""**conductor**: the HTTP front (OpenAI API, /health, /metrics)."""

from __future__ import annotations

from .conductor import Conductor

__all__ = ["Conductor"]
