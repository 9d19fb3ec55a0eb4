"""Load of a unit from its /metrics, in vLLM's names of today and of earlier versions.

A gauge that is missing stays None: vLLM renamed several, and a 0 in their place would look like an idle unit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from prometheus_client.parser import text_string_to_metric_families

from syshaxd.model.snapshot import UnitLoad

# Field of UnitLoad: names, newest first.
NAMES: Mapping[str, Sequence[str]] = {
    "running": ("vllm:num_requests_running",),
    "waiting": ("vllm:num_requests_waiting",),
    "kv_usage": ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"),
    "preemptions": ("vllm:num_preemptions_total", "vllm:num_preemptions"),
    "generation_tokens": ("vllm:generation_tokens_total", "vllm:generation_tokens"),
    "prompt_tokens": ("vllm:prompt_tokens_total", "vllm:prompt_tokens"),
}
CACHE_INFO = "vllm:cache_config_info"
_WANTED = tuple(name for names in NAMES.values() for name in names) + (CACHE_INFO,)


class MetricsError(ValueError):
    """What came is not Prometheus text."""


def parse_load(text: str, at: float) -> UnitLoad:
    """Load at monotonic second `at`. Series of one name (one an engine of a data-parallel unit) are added up."""
    values, tokens = _values(text)
    usage = values.get("kv_usage")
    return UnitLoad(
        at=at,
        source="metrics",
        running=_whole(values.get("running")),
        waiting=_whole(values.get("waiting")),
        kv_used=None if usage is None or tokens is None else round(usage * tokens),
        kv_total=tokens,
        kv_usage=usage,
        preemptions=_whole(values.get("preemptions")),
        generation_tokens=_whole(values.get("generation_tokens")),
        prompt_tokens=_whole(values.get("prompt_tokens")),
    )


def _values(text: str) -> tuple[Mapping[str, float], int | None]:
    """Value by field of UnitLoad, and the size of the KV cache in tokens."""
    series: dict[str, list[float]] = {}
    tokens: int | None = None
    # A vLLM has a thousand lines; only the wanted ones reach the parser.
    lines = [line for line in text.splitlines() if line.startswith(_WANTED)]
    try:
        for family in text_string_to_metric_families("\n".join(lines) + "\n"):
            for sample in family.samples:
                series.setdefault(sample.name, []).append(sample.value)
                if sample.name == CACHE_INFO:
                    tokens = (tokens or 0) + _cache_tokens(sample.labels)
    except (ValueError, KeyError, IndexError) as err:
        raise MetricsError(f"expected Prometheus text: {err}") from err
    return {field: _together(field, found) for field, found in _newest(series).items()}, tokens or None


def _newest(series: Mapping[str, list[float]]) -> Mapping[str, list[float]]:
    found = {field: next((series[name] for name in names if name in series), None) for field, names in NAMES.items()}
    return {field: values for field, values in found.items() if values}


def _together(field: str, values: Sequence[float]) -> float:
    return max(values) if field == "kv_usage" else sum(values)


def _cache_tokens(labels: Mapping[str, str]) -> int:
    blocks, size = labels.get("num_gpu_blocks", ""), labels.get("block_size", "")
    return int(blocks) * int(size) if blocks.isdigit() and size.isdigit() else 0


def _whole(value: float | None) -> int | None:
    return None if value is None or value != value else int(value)
