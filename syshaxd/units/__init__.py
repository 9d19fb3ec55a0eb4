"""Kinds of unit: all that the daemon knows of one inference server is in that server's file. README.md says how to add
one; nobody else asks what kind a unit is."""

from __future__ import annotations

from collections.abc import Mapping

from .base import Kind, Surroundings, python, served_name
from .openai import OPENAI
from .sysinfer import SYSINFER
from .vllm import VLLM

__all__ = ["KINDS", "OPENAI", "SYSINFER", "VLLM", "Kind", "Surroundings", "python", "served_name"]

KINDS: Mapping[str, Kind] = {kind.name: kind for kind in (SYSINFER, VLLM, OPENAI)}
