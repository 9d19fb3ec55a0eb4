"""The command line, with what the environment adds to it."""

from __future__ import annotations

import argparse
import ipaddress
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Optional, Sequence, Tuple

from sysinfer import __version__
from sysinfer.env import Environment, parse_cpus
from sysinfer.errors import SetupError

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
    cpus: Tuple[int, ...]
    nrc: int
    max_model_len: Optional[int]
    kv_blocks: Optional[int]
    block_size: int
    max_num_seqs: int
    max_num_batched_tokens: int
    kv_dtype: str
    weights: str
    packed_cache: Optional[Path]
    prefix_cache: bool
    temperature: float
    max_tokens: Optional[int]
    chat_template: Optional[str]
    api_keys: Tuple[bytes, ...]
    pool_path: Optional[Path]
    pool_bytes: int


def _parser(serve: bool) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "sysinfer", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"sysinfer {__version__}")
    parser.add_argument("model", type=Path, metavar="MODEL", help="GGUF file")
    _add_server(parser, 8000 if serve else 7860)
    _add_engine(parser)
    return parser


def _add_server(parser: argparse.ArgumentParser, port: int) -> None:
    add = parser.add_argument_group("server").add_argument
    add("--served-model-name", metavar="NAME", help="name in the API (default: the file's name)")
    add("--host", default="127.0.0.1", help="address to listen on; others than loopback need --api-key-file")
    add("--port", type=int, default=port, help="0 takes a free one (default %(default)s)")
    add("--api-key-file", type=Path, metavar="FILE", help="file of accepted keys, one a line")
    add("--chat-template", type=Path, metavar="FILE", help="Jinja template instead of the model's own")
    add("-t", "--temperature", type=float, default=1.0, help="for requests that name none (default %(default)s)")
    add("-n", "--max-tokens", type=int, metavar="N", help="for requests that name none")


def _add_engine(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("engine").add_argument
    add("--threads", type=int, metavar="N", help="default: the CPUs bound, OMP_NUM_THREADS, or all of this process")
    add(
        "--cpus",
        metavar="LIST",
        help="bind one thread to each, e.g. 0-3,8 (also CUSTOM_CPU_AFFINITY, GOMP_CPU_AFFINITY)",
    )
    add("--max-model-len", type=int, metavar="N", help="tokens of a sequence (default: the model's context)")
    add("--kv-blocks", type=int, metavar="N", help="blocks of the KV cache (default: by need and free memory)")
    add("--block-size", type=int, default=32, metavar="N", help="tokens of a block (default %(default)s)")
    add("--max-num-seqs", type=int, default=16, metavar="N", help="sequences of a batch (default %(default)s)")
    add("--max-num-batched-tokens", type=int, default=512, metavar="N", help="tokens of a step (default %(default)s)")
    kinds = ("f16", "bf16", "f32", "q8_0")
    add("--kv-dtype", choices=kinds, default="f16", help="type of the KV cache (default %(default)s)")
    add(
        "--weights",
        "--quantize",
        choices=("keep", "q8_0", "q4_0", "f16", "f32"),
        help="hold matrices as (default: SYSHAX_QUANTIZE, keep)",
    )
    add(
        "--packed-cache",
        type=Path,
        metavar="DIR",
        help="keep packed weights there for the next start (default: SYSHAX_PACKED_CACHE, none)",
    )
    add("--no-prefix-cache", action="store_true", help="compute equal prefixes again")


def parse_options(argv: Sequence[str], environment: Environment) -> Options:
    """Options of a command line; SetupError for values that don't fit, SystemExit for what argparse refuses."""
    serve = bool(argv) and argv[0] == "serve"
    given = _parser(serve).parse_args(argv[1:] if serve else argv)
    _check(given)
    threads, cpus = _binding(given.threads, given.cpus, environment)
    keys = _keys(given.api_key_file)
    _check_host(given.host, bool(keys))
    pool = (
        Path(environment.pool_dir) / environment.pool_name if environment.pool_dir and environment.pool_name else None
    )
    return Options(
        model=given.model, served_name=given.served_model_name or given.model.stem, host=given.host, port=given.port,
        threads=threads, cpus=cpus, nrc=environment.nrc, max_model_len=given.max_model_len, kv_blocks=given.kv_blocks,
        block_size=given.block_size, max_num_seqs=given.max_num_seqs,
        max_num_batched_tokens=max(given.max_num_batched_tokens, given.max_num_seqs), kv_dtype=given.kv_dtype,
        weights=given.weights or environment.quantize or "keep", prefix_cache=not given.no_prefix_cache,
        packed_cache=given.packed_cache or (Path(environment.packed_cache) if environment.packed_cache else None),
        temperature=given.temperature, max_tokens=given.max_tokens, chat_template=_template(given.chat_template),
        api_keys=keys, pool_path=pool, pool_bytes=environment.pool_bytes,
    )  # fmt: skip


_RANGES = (("port", 0, 65535), ("threads", 1, 1024), ("max_model_len", 2, 1 << 24), ("kv_blocks", 1, 1 << 24),
           ("max_num_seqs", 1, 1024), ("max_num_batched_tokens", 1, 1 << 16), ("max_tokens", 1, 1 << 24),
           ("temperature", 0, 100))  # fmt: skip


def _check(given: argparse.Namespace) -> None:
    for name, low, high in _RANGES:
        value = getattr(given, name)
        if value is not None and not low <= value <= high:
            raise SetupError(f"--{name.replace('_', '-')} is {value}, expected {low} to {high}")
    if given.block_size not in (8, 16, 32, 64, 128, 256):
        raise SetupError(f"--block-size is {given.block_size}, expected a power of two from 8 to 256")


def _binding(threads: Optional[int], cpus: Optional[str], environment: Environment) -> Tuple[int, Tuple[int, ...]]:
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


def _keys(path: Optional[Path]) -> Tuple[bytes, ...]:
    if path is None:
        return ()
    keys = tuple(line.strip().encode() for line in _read(path, "--api-key-file").splitlines() if line.strip())
    if not keys:
        raise SetupError(f"--api-key-file {path} holds no key")
    return keys


def _template(path: Optional[Path]) -> Optional[str]:
    return None if path is None else _read(path, "--chat-template")


def _read(path: Path, name: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as err:
        raise SetupError(f"{name} {path} can't be read: {err}") from err
