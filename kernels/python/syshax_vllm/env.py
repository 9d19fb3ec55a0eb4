"""The only reader of the process environment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Pool:
    """Where handoffs go. An empty `name`: this unit keeps none of its own."""

    folder: Path
    name: str = ""
    size: int = 0  # bytes

    @property
    def outbox(self) -> Path:
        return self.folder / self.name


def read_pool(values: Mapping[str, str]) -> Pool | None:
    """The pool that the daemon gave this unit; None without one. Raises ValueError for a size that is no number."""
    folder = values.get("SYSHAX_POOL_DIR", "")
    if not folder:
        return None
    size = values.get("SYSHAX_POOL_BYTES", "") or "0"
    if not size.isdecimal():
        raise ValueError(f"SYSHAX_POOL_BYTES is {size!r}, expected a number of bytes")
    return Pool(Path(folder), values.get("SYSHAX_POOL_NAME", ""), int(size))


def own_pool() -> Pool | None:
    """read_pool() of this process."""
    return read_pool(os.environ)


def own_secret() -> str:
    """The key that vLLM's server asks its clients for; "" for none."""
    return os.environ.get("VLLM_API_KEY", "")
