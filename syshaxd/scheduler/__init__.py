"""**Scheduler**: pure decisions over snapshots. It never acts; the Runner does."""

from __future__ import annotations

from .policy import Policy, policy_of
from .scheduler import Failed, Scheduler

__all__ = ["Failed", "Policy", "Scheduler", "policy_of"]
