"""Everything that differs between the supported versions of vLLM. Nothing else asks for a version.

Run on 0.23.0, 0.27.1 and 0.32.0.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
import vllm
from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory
from vllm.distributed.kv_transfer.kv_connector.v1 import base

OLDEST, NEWEST = (0, 23, 0), (0, 32, 0)


def _numbers(text: str) -> tuple[int, ...]:
    match = re.match(r"(\d+)\.(\d+)\.(\d+)", text)
    return tuple(int(part) for part in match.groups()) if match else ()


def check_version(text: str) -> None:
    """Raises RuntimeError outside the supported range."""
    if not OLDEST <= _numbers(text) <= NEWEST:
        low, high = (".".join(map(str, version)) for version in (OLDEST, NEWEST))
        raise RuntimeError(f"sysHAX knows vLLM {low} to {high}, this is {text}: install one of those")


def abort_arguments() -> list[str]:
    """Server flags that make requests abortable by id; our own route where vLLM couples its own to token-only use."""
    if FAILS_BY_REQUEST:
        return ["--enable-scale-out"]
    return ["--middleware", "syshax_vllm.abort.AbortRequests"]


def vllm_version() -> str:
    return str(vllm.__version__)


# 0.23 asks the scheduler's side for its counts only in steps whose workers have given some; 0.27 asks in all.
WORKERS_COUNT_TOO = _numbers(str(vllm.__version__)) < (0, 27, 0)

# From 0.32 a failed load is named by its request, before that by its blocks.
_Results: Any = getattr(base, "KVConnectorTransferResults", None)
FAILS_BY_REQUEST = _Results is not None


def transfer_results(sent: set[str], received: set[str], failed: set[str]) -> Any:
    """What get_transfer_results() returns where vLLM has it."""
    return _Results(finished_sending=sent, finished_recving=received, failed_recving=failed)


def load_failed(output: Any, request_id: str, blocks: Sequence[int]) -> bool:
    """Whether a worker reported in this KVConnectorOutput that the load of the request failed."""
    if request_id in getattr(output, "failed_recving", ()):
        return True
    return not output.invalid_block_ids.isdisjoint(blocks)


def in_flight(request: Any) -> int:
    """Tokens scheduled whose step is not over; 0 where vLLM does not say."""
    return int(getattr(request, "num_in_flight_tokens", 0))


def cache_hit_source() -> Any:
    """The label under which loaded tokens are counted from 0.32 on; None before."""
    try:
        from vllm.v1.metrics.cache_hit_source import CacheHitSource
    except ImportError:
        return None
    return CacheHitSource.P2P


def make_known(connector: type) -> None:
    """Registers the connector by its name, under which MultiConnector looks for it when it hands counts on."""
    name, registry = connector.__name__, KVConnectorFactory._registry
    if name not in registry:
        KVConnectorFactory.register_connector(name, connector.__module__, name)


def write_cpu_cache(key: torch.Tensor, value: torch.Tensor, cache: torch.Tensor) -> None:
    """vLLM's own op that puts `key`, `value` [tokens, 1, D] into the one block of `cache` [1, 1, N, 2 * D]."""
    from vllm import _custom_ops as ops
    from vllm.v1.attention.backends.cpu_attn import _get_attn_isa

    n_tokens, _, head_size = key.shape
    isa = _get_attn_isa(key.dtype, n_tokens, head_size)
    k_cache, v_cache = cache.view(1, 1, 2 * n_tokens, head_size).chunk(2, dim=2)
    ops.cpu_attn_reshape_and_cache(key, value, k_cache, v_cache, torch.arange(n_tokens), isa)


def rope_of(config: Any) -> tuple[float, dict[str, Any] | None]:
    """rope_theta and scaling of a Hugging Face config, which transformers 5 keeps together in `rope_parameters`."""
    merged = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None)
    theta = getattr(config, "rope_theta", None)
    if theta is None:
        theta = (merged or {}).get("rope_theta", 10000.0)
    return float(theta), merged
