"""Keeps every unit as the configuration wants it: starts, probes, restarts, replaces, stops."""

from __future__ import annotations

from .supervisor import Applied, Supervisor, desired_units

__all__ = ["Applied", "Supervisor", "desired_units"]
