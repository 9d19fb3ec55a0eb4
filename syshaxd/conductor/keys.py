"""API keys of clients: one a line in a file; empty lines and lines that begin with # do not count."""

from __future__ import annotations

import hmac

from syshaxd.errors import SysHaxError

from .answers import BadRequest


def read_keys(path: str) -> tuple[bytes, ...]:
    """The keys of a file; none for the path ""."""
    if not path:
        return ()
    try:
        with open(path, encoding="utf-8") as file:
            lines = [line.strip() for line in file]
    except (OSError, UnicodeDecodeError) as err:
        raise SysHaxError(f"services.conductor.api_keys_file: cannot read {path}: {err}") from err
    keys = tuple(line.encode() for line in lines if line and not line.startswith("#"))
    if not keys:
        raise SysHaxError(f"services.conductor.api_keys_file: {path} holds no key; put one a line")
    return keys


def check_key(authorization: str, keys: tuple[bytes, ...]) -> None:
    """Raises BadRequest (401) unless a key matches; compares all of them in constant time."""
    if not keys:
        return
    scheme, _, given = authorization.partition(" ")
    matches = [hmac.compare_digest(given.strip().encode("utf-8", "surrogateescape"), key) for key in keys]
    if scheme.lower() != "bearer" or not any(matches):
        text = "expected Authorization: Bearer with a valid API key"
        raise BadRequest(text, "authorization", status=401, code="invalid_api_key")
