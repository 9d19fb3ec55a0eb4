"""**Engine**: composition root, start and stop order, signals, reload, sd_notify, watchdog."""

from __future__ import annotations

from .engine import Engine, EngineSurroundings
from .inherited_sockets import inherited_sockets

__all__ = ["Engine", "EngineSurroundings", "inherited_sockets"]
