"""sysHAX daemon: one OpenAI endpoint out of a host's accelerator and its CPUs."""

from __future__ import annotations

__version__ = "0.3.0"
