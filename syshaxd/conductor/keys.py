"""API keys of clients: one a line in a file; empty lines and lines that begin with # do not count."""

from __future__ import annotations

import hmac

from syshaxd.config.regular import read_secret
from syshaxd.errors import ConfigError, Problem

from .answers import BadRequest


def read_keys(path: str) -> tuple[bytes, ...]:
    """The keys of a file; none for the path "". Raises ConfigError where they can't be used as they stand."""
    if not path:
        return ()
    try:
        lines = [line.strip() for line in read_secret(path).splitlines()]
    except (OSError, ValueError) as err:
        raise _unusable(f"cannot read {path}: {getattr(err, 'strerror', None) or err}") from err
    keys = tuple(line.encode() for line in lines if line and not line.startswith("#"))
    if not keys:
        raise _unusable(f"{path} holds no key; put one a line")
    return keys


def _unusable(why: str) -> ConfigError:
    return ConfigError([Problem(why, key="services.conductor.api_keys_file")])


def check_key(authorization: str, keys: tuple[bytes, ...]) -> None:
    """Raises BadRequest (401) unless a key matches; compares all of them in constant time."""
    if not keys:
        return
    scheme, _, given = authorization.partition(" ")
    matches = [hmac.compare_digest(given.strip().encode("utf-8", "surrogateescape"), key) for key in keys]
    if scheme.lower() != "bearer" or not any(matches):
        text = "expected Authorization: Bearer with a valid API key"
        raise BadRequest(text, "authorization", status=401, code="invalid_api_key")
