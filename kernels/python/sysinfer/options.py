"""The command line, with what the environment adds to it."""

from __future__ import annotations

import argparse
import ipaddress
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from syshax_contract.sysinfer_command import EngineSizing, add_options, out_of_range, sizing
from sysinfer import __version__
from sysinfer.engine_errors import SetupError
from sysinfer.env import Environment, parse_cpus

DESCRIPTION = """Serves a GGUF model on CPUs with the OpenAI API.

  sysinfer serve MODEL.gguf [options]     the unit of sysHAX
  sysinfer MODEL.gguf -t 0.0 -n 4096      the same on port 7860, with a default temperature and length
"""


@dataclass(frozen=True)
class Options:
    """Everything the start needs, checked."""

    model: Path
    served_name: str
    host: str
    port: int
    threads: int
    cpus: tuple[int, ...]
    nrc: int
    sizing: EngineSizing
    packed_cache: Path | None
    prefix_cache: bool
    temperature: float
    max_tokens: int | None
    chat_template: str | None
    api_keys: tuple[bytes, ...]
    pool_path: Path | None
    pool_bytes: int


def _parser(serve: bool) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "sysinfer", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"sysinfer {__version__}")
    add_options(parser, 8000 if serve else 7860)
    return parser


def parse_options(argv: Sequence[str], environment: Environment) -> Options:
    """Options of a command line; SetupError for values that don't fit, SystemExit for what argparse refuses."""
    serve = bool(argv) and argv[0] == "serve"
    given = _parser(serve).parse_args(argv[1:] if serve else argv)
    wrong = out_of_range(given)
    if wrong is not None:
        raise SetupError(wrong)
    threads, cpus = _binding(given.threads, given.cpus, environment)
    keys = _keys(given.api_key_file)
    _check_host(given.host, bool(keys))
    pool = (
        Path(environment.pool_dir) / environment.pool_name if environment.pool_dir and environment.pool_name else None
    )
    return Options(
        model=given.model, served_name=given.served_model_name or given.model.stem, host=given.host, port=given.port,
        threads=threads, cpus=cpus, nrc=environment.nrc, sizing=sizing(given, environment.quantize),
        prefix_cache=not given.no_prefix_cache,
        packed_cache=given.packed_cache or (Path(environment.packed_cache) if environment.packed_cache else None),
        temperature=given.temperature, max_tokens=given.max_tokens, chat_template=_template(given.chat_template),
        api_keys=keys, pool_path=pool, pool_bytes=environment.pool_bytes,
    )  # fmt: skip


def _binding(threads: int | None, cpus: str | None, environment: Environment) -> tuple[int, tuple[int, ...]]:
    """Threads and CPUs: both from the command line or both from the environment; as many threads as CPUs bound."""
    if cpus is not None:
        numbers, count, named = parse_cpus(cpus, "--cpus"), threads, "--threads"
    elif threads is not None:
        return threads, ()
    else:
        numbers, count, named = environment.cpus, environment.threads, "OMP_NUM_THREADS"
    if numbers and count is not None and count != len(numbers):
        raise SetupError(f"{named} is {count} and {len(numbers)} CPUs are bound; the two must be equal")
    return count or len(numbers) or len(os.sched_getaffinity(0)), numbers


def _check_host(host: str, has_keys: bool) -> None:
    try:
        loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError as err:
        raise SetupError(f"--host is {host!r}, expected an IP address or localhost") from err
    if not loopback and not has_keys:
        raise SetupError(f"--host {host} is reachable from other machines: it needs --api-key-file")


def _keys(path: Path | None) -> tuple[bytes, ...]:
    if path is None:
        return ()
    keys = tuple(line.strip().encode() for line in _read(path, "--api-key-file").splitlines() if line.strip())
    if not keys:
        raise SetupError(f"--api-key-file {path} holds no key")
    return keys


def _template(path: Path | None) -> str | None:
    return None if path is None else _read(path, "--chat-template")


def _read(path: Path, name: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as err:
        raise SetupError(f"{name} {path} can't be read: {err}") from err
