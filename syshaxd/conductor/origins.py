"""Against pages of a browser that reach for a server on loopback: under a name that was made to point there (DNS
rebinding), or from a foreign origin. Where clients need a key, that protects; the check is for where they don't."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from urllib.parse import urlsplit

from .answers import BadRequest

ANY = "*"


def check_origin(headers: Mapping[str, str], allowed: Sequence[str]) -> None:
    """Raises BadRequest (403) for a Host or an Origin that is neither an address, nor localhost, nor configured."""
    if ANY in allowed:
        return
    for name, value in (("Host", f"//{headers.get('Host', '')}"), ("Origin", headers.get("Origin", ""))):
        if value not in ("", "//") and not _is_ours(_host(value), allowed, foreign_addresses=name == "Host"):
            text = f"{name} {headers[name]!r} is not served; services.conductor.allowed_hosts can allow it"
            raise BadRequest(text, name.lower(), status=403, code="host_not_allowed")


def _host(url: str) -> str:
    try:
        return (urlsplit(url).hostname or "").rstrip(".")
    except ValueError:
        return ""


def _is_ours(host: str, allowed: Sequence[str], foreign_addresses: bool) -> bool:
    """Whether the name can mean this server only. An address as Host was typed by somebody; a page can't forge it."""
    if host == "localhost" or host in (name.lower() for name in allowed):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback or foreign_addresses
    except ValueError:
        return False
