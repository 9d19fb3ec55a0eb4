"""What every stream needs from the rest of the daemon."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from syshaxd.admission.queue import RequestQueue
from syshaxd.config.types import Config
from syshaxd.log import Log
from syshaxd.metrics import MetricsService
from syshaxd.model.ports import Snapshots, Units
from syshaxd.model.request import Endpoint
from syshaxd.model.unit import UnitView
from syshaxd.scheduler import Scheduler
from syshaxd.tasks import TaskSet
from syshaxd.unitclient import Target, UnitClient

from .ledger import InFlightLedger
from .suspicions import Suspicions


class Settings(Protocol):
    """What holds at this moment: the configuration, and whether streams are being ended."""

    config: Config
    ending: bool


@dataclass(frozen=True)
class Services:
    """Made once by Runner."""

    client: UnitClient
    units: Units
    snapshots: Snapshots
    scheduler: Scheduler
    metrics: MetricsService
    ledger: InFlightLedger
    settings: Settings
    tasks: TaskSet
    queue: RequestQueue
    suspicions: Suspicions
    log: Log

    @property
    def config(self) -> Config:
        """The configuration in force at this moment."""
        return self.settings.config

    def target(self, view: UnitView) -> Target:
        """How to reach a unit."""
        return Target(view.name, view.url, self.units.api_key(view.name))

    def view(self, name: str) -> UnitView | None:
        """The unit as it is now; None when it is not configured any more."""
        return next((view for view in self.units.views() if view.name == name), None)

    def ready(self, name: str) -> UnitView | None:
        """The same, None unless it is READY."""
        view = self.view(name)
        return view if view is not None and view.ready else None

    def parses(self, unit: UnitView, endpoint: Endpoint) -> bool:
        """Whether the unit itself tells reasoning from content: the state of its parser can't be moved."""
        return endpoint is Endpoint.CHAT and bool(unit.abilities.reasoning_field) and self.reasoning(unit.name)

    def reasoning(self, unit: str) -> bool:
        """Whether a parser of reasoning is configured for this unit; where it has none itself, the Runner splits."""
        return any(config.reasoning_parser for config in self.config.units if config.name == unit)
