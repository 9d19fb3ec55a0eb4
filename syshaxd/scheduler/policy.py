"""What an operator set, as far as decisions depend on it."""

from __future__ import annotations

from dataclasses import dataclass

from syshaxd.config.types import Config, LimitsConfig, PdConfig, SchedulerConfig
from syshaxd.model.served import Models


@dataclass(frozen=True)
class Policy:
    """Input of every decision besides request and snapshot."""

    models: Models = Models()
    limits: LimitsConfig = LimitsConfig()
    pd: PdConfig = PdConfig()
    scheduler: SchedulerConfig = SchedulerConfig()


def policy_of(config: Config) -> Policy:
    """The decisions' part of a configuration."""
    return Policy(config.served, config.limits, config.pd, config.scheduler)
