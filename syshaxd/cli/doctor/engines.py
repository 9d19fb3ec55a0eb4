"""Checks that ask the container engines."""

from __future__ import annotations

import asyncio

from syshaxd.backends.container import default_socket
from syshaxd.backends.container_spec import EngineKind
from syshaxd.backends.engineapi import EngineApi
from syshaxd.config.types import Config, UnitConfig
from syshaxd.errors import BackendError

from .findings import Finding, error, good, warning

SERVICES = {EngineKind.PODMAN: "systemctl start syshax-podman.socket", EngineKind.DOCKER: "systemctl start docker"}


def engine_findings(config: Config) -> list[Finding]:
    """Sockets, versions, and images of all units in containers."""
    units: dict[str, list[UnitConfig]] = {}
    for unit in config.units:
        if unit.backend.in_container:
            kind = EngineKind(unit.backend.value)
            units.setdefault(unit.container.socket or default_socket(kind), []).append(unit)
    return asyncio.run(_ask_all(units)) if units else []


async def _ask_all(units: dict[str, list[UnitConfig]]) -> list[Finding]:
    return [finding for socket, on_it in units.items() for finding in await _ask(socket, on_it)]


async def _ask(socket: str, units: list[UnitConfig]) -> list[Finding]:
    kind = EngineKind(units[0].backend.value)
    api = EngineApi(socket)
    try:
        version = await api.version()
        if version.kind is not kind:
            return [error(f"{kind.value} socket", f"{socket} is that of {version.kind.value}", "set container.socket")]
        findings = [good(f"{kind.value} socket", f"{socket}: {version.release}, API {version.api}")]
        return findings + [await _image(api, unit) for unit in units]
    except BackendError as err:
        advice = f"{SERVICES[kind]}; the user needs the right to use {socket}"
        return [error(f"{kind.value} socket", str(err), advice)]
    finally:
        await api.close()


async def _image(api: EngineApi, unit: UnitConfig) -> Finding:
    section, subject = unit.container, f"{unit.name}: image"
    found = await api.image_id(section.image)
    if found:
        return good(subject, f"{section.image} ({found[:19]})")
    if section.pull == "never":
        return error(subject, f"{section.image} is not here, and pull is never", "syshax image load FILE")
    advice = "it is pulled at the first start; or: syshax image load FILE"
    return warning(subject, f"{section.image} is not here", advice)
