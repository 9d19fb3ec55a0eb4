"""Memory of the host that a unit will hold. An upper bound: a unit starts with less and grows to this."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Memory:
    """Bytes a unit will hold. `activations` has the server itself in it."""

    weights: int = 0
    kv: int = 0
    pool: int = 0
    activations: int = 0

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.kv + self.pool + self.activations
