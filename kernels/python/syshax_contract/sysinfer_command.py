"""sysinfer's command line: its options, their defaults and ranges. The engine obeys it, the daemon plans by it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

KV_DTYPES = ("f16", "bf16", "f32", "q8_0")
WEIGHTS = ("keep", "q8_0", "q4_0", "f16", "f32")
BLOCK_SIZES = (8, 16, 32, 64, 128, 256)
_RANGES: tuple[tuple[str, float, float], ...] = (
    ("port", 0, 65535), ("threads", 1, 1024), ("max_model_len", 2, 1 << 24), ("kv_blocks", 1, 1 << 24),
    ("max_num_seqs", 1, 1024), ("max_num_batched_tokens", 1, 1 << 16), ("max_tokens", 1, 1 << 24),
    ("temperature", 0, 100),
)  # fmt: skip


@dataclass(frozen=True)
class EngineSizing:
    """Options that decide how much memory the engine takes. None: the engine's own choice."""

    weights: str = "keep"
    kv_dtype: str = "f16"
    block_size: int = 32
    kv_blocks: int | None = None
    max_model_len: int | None = None
    max_num_seqs: int = 16
    max_num_batched_tokens: int = 512  # at least max_num_seqs


def add_options(parser: argparse.ArgumentParser, port: int = 8000) -> None:
    """All options but --help and --version."""
    parser.add_argument("model", type=Path, metavar="MODEL", help="GGUF file")
    _add_server(parser, port)
    _add_engine(parser)


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
    add, own = parser.add_argument_group("engine").add_argument, EngineSizing()
    add("--threads", type=int, metavar="N", help="default: the CPUs bound, OMP_NUM_THREADS, or all of this process")
    binding = "bind one thread to each, e.g. 0-3,8 (also CUSTOM_CPU_AFFINITY, GOMP_CPU_AFFINITY)"
    add("--cpus", metavar="LIST", help=binding)
    add("--max-model-len", type=int, metavar="N", help="tokens of a sequence (default: the model's context)")
    add("--kv-blocks", type=int, metavar="N", help="blocks of the KV cache (default: by need and free memory)")

    def number(name: str, default: int, what: str) -> None:
        add(name, type=int, default=default, metavar="N", help=f"{what} (default %(default)s)")

    number("--block-size", own.block_size, "tokens of a block")
    number("--max-num-seqs", own.max_num_seqs, "sequences of a batch")
    number("--max-num-batched-tokens", own.max_num_batched_tokens, "tokens of a step")
    add("--kv-dtype", choices=KV_DTYPES, default=own.kv_dtype, help="type of the KV cache (default %(default)s)")
    add("--weights", "--quantize", choices=WEIGHTS, help="hold matrices as (default: SYSHAX_QUANTIZE, keep)")
    packed = "keep packed weights there for the next start (default: SYSHAX_PACKED_CACHE, none)"
    add("--packed-cache", type=Path, metavar="DIR", help=packed)
    add("--no-prefix-cache", action="store_true", help="compute equal prefixes again")


def out_of_range(given: argparse.Namespace) -> str | None:
    """What is wrong with the numbers of a command line; None: nothing."""
    for name, low, high in _RANGES:
        value = getattr(given, name)
        if value is not None and not low <= value <= high:
            return f"--{name.replace('_', '-')} is {value}, expected {low} to {high}"
    if given.block_size not in BLOCK_SIZES:
        return f"--block-size is {given.block_size}, expected a power of two from 8 to 256"
    return None


def sizing(given: argparse.Namespace, quantize: str) -> EngineSizing:
    """The sizing options of a command line. `quantize`: the environment's SYSHAX_QUANTIZE, "" where it is not set."""
    return EngineSizing(
        given.weights or quantize or "keep", given.kv_dtype, given.block_size, given.kv_blocks, given.max_model_len,
        given.max_num_seqs, max(given.max_num_batched_tokens, given.max_num_seqs),
    )  # fmt: skip


class CommandLineError(ValueError):
    """sysinfer would refuse to start with this command line; the text says why."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise CommandLineError(message)


def sizing_of(words: Sequence[str], quantize: str = "") -> EngineSizing:
    """The sizing options of the words after `sysinfer serve`. Raises CommandLineError, and prints nothing."""
    parser = _Parser("sysinfer", add_help=False)
    add_options(parser)
    given, _ = parser.parse_known_args(words)
    wrong = out_of_range(given)
    if wrong is not None:
        raise CommandLineError(wrong)
    if quantize not in ("", "q8_0", "q4_0"):
        raise CommandLineError(f"SYSHAX_QUANTIZE is {quantize!r}, expected q8_0 or q4_0")
    return sizing(given, quantize)
