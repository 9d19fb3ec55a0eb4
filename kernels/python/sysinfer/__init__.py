"""sysinfer: sysHAX's embedded CPU inference engine with an OpenAI server (docs/kv-handoff.md is its HTTP contract)."""

from __future__ import annotations

__version__ = "0.1.0"
