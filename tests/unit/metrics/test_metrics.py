"""What /metrics shows is what docs/metrics.md lists."""

from __future__ import annotations

import re
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from syshaxd.metrics import MetricsService
from syshaxd.model.unit import BackendKind, Role, UnitState, UnitView

DOCUMENT = Path(__file__).resolve().parents[3] / "docs/metrics.md"
UNIT = UnitView("gpu", Role.ACCELERATOR, "vllm", BackendKind.EXTERNAL, UnitState.READY, "")


def shown(service: MetricsService) -> str:
    text, content_type = service.render([UNIT], {"gpu": 2}, 3, True)
    assert content_type.startswith("text/plain")
    return text.decode()


def test_the_document_lists_every_metric_with_its_labels() -> None:
    service = MetricsService()
    families = {metric.name: metric for metric in service.registry.collect()}
    documented = re.findall(r"^\| `(syshax_\w+)` \| (\w+) \|([^|]*)\|", DOCUMENT.read_text(), re.M)
    kinds = {name + ("_total" if metric.type == "counter" else ""): metric.type for name, metric in families.items()}
    assert {name: kind for name, kind, _ in documented} == kinds


def test_counts() -> None:
    service = MetricsService()
    service.request_ended("/v1/completions", "cpu", 200)
    service.request_ended("/v1/completions", "none", 499)
    service.decided("split", "accelerator_full")
    service.handed_over("offload", "ok")
    service.served("cpu", 10, 5, 1.5, 0.1)
    service.first_token(0.2)
    service.next_token(0.01)
    text = shown(service)
    samples = {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert samples["syshax_generation_tokens_total", (("route", "cpu"),)] == 5
    assert samples["syshax_client_disconnects_total", ()] == 1
    assert samples["syshax_requests_in_flight", (("unit", "gpu"),)] == 2
    assert samples["syshax_unit_state", (("state", "ready"), ("unit", "gpu"))] == 1
    assert samples["syshax_unit_state", (("state", "failed"), ("unit", "gpu"))] == 0
    assert samples["syshax_time_to_first_token_seconds_count", ()] == 1
    assert samples["syshax_requests_queued", ()] == 3


def test_two_services_do_not_share() -> None:
    first, second = MetricsService(), MetricsService()
    first.request_ended("/v1/completions", "cpu", 200)
    assert 'status="200"' not in shown(second)
