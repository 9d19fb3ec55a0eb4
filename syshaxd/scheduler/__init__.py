"""**Scheduler**: pure decisions over snapshots. It never acts; the Runner does."""

from __future__ import annotations

from .policy import Policy, policy_of
from .scheduler import Failed, Scheduler
from .steptime import StepSample

__all__ = ["Failed", "Policy", "Scheduler", "StepSample", "policy_of"]
