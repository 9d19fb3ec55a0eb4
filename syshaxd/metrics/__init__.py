"""**MetricsService**: counts and times what happened; Prometheus text (docs/metrics.md)."""

from __future__ import annotations

from .service import MetricsService

__all__ = ["MetricsService"]
