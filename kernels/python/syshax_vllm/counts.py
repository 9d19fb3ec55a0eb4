"""What is counted of the handoff, on its way to vLLM's /metrics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1.metrics import KVConnectorPromMetrics, KVConnectorStats


class Counts:
    """Totals since they were last taken."""

    def __init__(self) -> None:
        self.saved_tokens = 0
        self.loaded_tokens = 0
        self.load_failures: Counter[str] = Counter()
        self.save_failures: Counter[str] = Counter()

    def take(self) -> dict[str, Any]:
        """The counts as plain data, from zero again; empty where nothing was counted."""
        found = {name: value for name, value in vars(self).items() if value}
        self.__init__()  # type: ignore[misc]
        return {name: dict(value) if isinstance(value, Counter) else value for name, value in found.items()}


class HandoffStats(KVConnectorStats):  # type: ignore[misc]
    """Counts as vLLM carries them from the engine to the API server."""

    def reset(self) -> None:
        self.data: dict[str, Any] = {}

    def is_empty(self) -> bool:
        return not self.data

    def aggregate(self, other: KVConnectorStats) -> KVConnectorStats:
        for name, value in other.data.items():
            if isinstance(value, dict):
                self.data[name] = dict(Counter(self.data.get(name, {})) + Counter(value))
            else:
                self.data[name] = self.data.get(name, 0) + value
        return self

    def reduce(self) -> dict[str, int | float]:
        return {name: sum(v.values()) if isinstance(v, dict) else v for name, v in self.data.items()}


class HandoffMetrics(KVConnectorPromMetrics):  # type: ignore[misc]
    """The counters of docs/kv-handoff.md section 4."""

    def __init__(self, vllm_config: Any, metric_types: Any, labelnames: list[str], values: Mapping[int, Any]) -> None:
        super().__init__(vllm_config, metric_types, labelnames, values)
        plain = {
            "saved_tokens": "Tokens whose KV was published for another unit.",
            "loaded_tokens": "Tokens whose KV came from another unit or was kept over a preemption.",
        }
        failures = {
            "load_failures": "Handoffs that could not be taken up; the context was computed.",
            "save_failures": "Handoffs that could not be kept.",
        }
        self._plain = {n: self._counter_cls(f"syshax_handoff_{n}", text, labelnames) for n, text in plain.items()}
        labels = [*labelnames, "reason"]
        self._failures = {n: self._counter_cls(f"syshax_handoff_{n}", text, labels) for n, text in failures.items()}
        for counter in self._plain.values():
            for engine in values.values():
                counter.labels(*engine)

    def observe(self, transfer_stats_data: dict[str, Any], engine_idx: int = 0) -> None:
        values = self.per_engine_labelvalues[engine_idx]
        for name, value in transfer_stats_data.items():
            if name in self._plain:
                self._plain[name].labels(*values).inc(value)
            for reason, count in value.items() if name in self._failures else ():
                self._failures[name].labels(*values, reason).inc(count)
