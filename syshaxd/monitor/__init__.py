"""SystemMonitor: what units and host are doing right now."""

from __future__ import annotations

from .monitor import SystemMonitor
from .statspage import Page, PageReader

__all__ = ["Page", "PageReader", "SystemMonitor"]
