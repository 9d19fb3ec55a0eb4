"""/metrics: the engine's counters under vLLM's names (docs/kv-handoff.md section 4)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Callable

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from sysinfer.stats import EngineStats, Histogram

Family = tuple[str, str]  # name and help


class _Collector:
    """Turns EngineStats into metric families at each scrape."""

    def __init__(self, stats: EngineStats, model: str) -> None:
        self._stats, self._model = stats, model

    def collect(self) -> Iterator[Metric]:
        yield from self._gauges()
        yield from self._counters()
        yield from self._labelled()
        yield from self._histograms()

    def _gauges(self) -> Iterator[Metric]:
        stats = self._stats
        used = stats.blocks_used / stats.blocks_total if stats.blocks_total else 0.0
        for name, text, value in (
            ("vllm:num_requests_running", "Sequences in the running batch.", stats.running),
            ("vllm:num_requests_waiting", "Sequences that wait.", stats.waiting),
            ("vllm:kv_cache_usage_perc", "Part of the KV cache blocks in use, 0 to 1.", used),
            ("sysinfer:step_overhead_seconds", "Mean time of a step outside the model.", _mean(stats)),
        ):
            family = GaugeMetricFamily(name, text, labels=["model_name"])
            family.add_metric([self._model], value)
            yield family

    def _counters(self) -> Iterator[Metric]:
        stats = self._stats
        for name, text, value in (
            ("vllm:num_preemptions", "Sequences that lost their KV cache blocks.", stats.preemptions),
            ("vllm:prompt_tokens", "Prompt tokens processed.", stats.prompt_tokens),
            ("vllm:generation_tokens", "Tokens generated.", stats.generation_tokens),
            ("sysinfer:steps", "Model steps.", stats.steps),
            ("syshax_handoff_saved_tokens", "Tokens whose KV was published for another unit.", stats.saved_tokens),
            ("syshax_handoff_loaded_tokens", "Tokens whose KV came from another unit.", stats.loaded_tokens),
            ("syshax_handoff_restored_tokens", "Tokens whose KV was kept over a preemption.", stats.restored_tokens),
        ):
            family = CounterMetricFamily(name, text, labels=["model_name"])
            family.add_metric([self._model], value)
            yield family

    def _labelled(self) -> Iterator[Metric]:
        stats = self._stats
        sources = {
            "local_compute": stats.local_compute,
            "local_cache_hit": stats.local_cache_hit,
            "external_kv_transfer": stats.external_kv_transfer,
        }
        yield self._by(
            ("vllm:prompt_tokens_by_source", "Prompt tokens by where their KV came from."), "source", sources
        )
        yield self._by(("vllm:request_success", "Requests by finish reason."), "finished_reason", stats.finished)
        loads = ("syshax_handoff_load_failures", "Handoffs that were recomputed.")
        yield self._by(loads, "reason", stats.load_failures)
        yield self._by(("syshax_handoff_save_failures", "Handoffs that were not saved."), "reason", stats.save_failures)

    def _by(self, family: Family, label: str, values: Mapping[str, int]) -> Metric:
        metric = CounterMetricFamily(*family, labels=["model_name", label])
        for key, value in list(values.items()):
            metric.add_metric([self._model, key], value)
        return metric

    def _histograms(self) -> Iterator[Metric]:
        stats = self._stats
        families: tuple[tuple[str, str, Histogram], ...] = (
            ("vllm:time_to_first_token_seconds", "Time to the first token.", stats.ttft),
            ("vllm:inter_token_latency_seconds", "Time between tokens.", stats.itl),
            ("vllm:e2e_request_latency_seconds", "Time of whole requests.", stats.e2e),
        )
        for name, text, histogram in families:
            family = HistogramMetricFamily(name, text, labels=["model_name"])
            family.add_metric([self._model], histogram.cumulative(), histogram.sum)
            yield family


def _mean(stats: EngineStats) -> float:
    return stats.overhead_ns / stats.steps / 1e9 if stats.steps else 0.0


def scraper(stats: EngineStats, model: str) -> Callable[[], bytes]:
    """A function that gives the Prometheus text of now."""
    registry = CollectorRegistry()
    registry.register(_Collector(stats, model))
    return lambda: generate_latest(registry)
