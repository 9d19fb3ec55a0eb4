"""Own registry, own names. Everything that is counted is counted through a method here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from syshaxd.model.unit import UnitState, UnitView

# Bounds in seconds: a token every 2 ms to a prompt of minutes, roughly doubling.
_SHORT = (0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0)
_RATIO = (0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0, 2.0, 5.0)
_LONG = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0)


class MetricsService:
    """One per daemon. Label values come from closed sets, never from clients."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = self._counter("syshax_requests", "Requests ended", "endpoint", "route", "status")
        self._decisions = self._counter("syshax_scheduler_decisions", "Decisions of the scheduler", "plan", "reason")
        self._handoffs = self._counter("syshax_handoffs", "Handoffs begun and how they ended", "kind", "result")
        self._kv = self._counter("syshax_handoff_kv", "KV handed over and what became of it", "kind", "result")
        self._kv_tokens = self._counter(
            "syshax_handoff_kv_tokens", "Context tokens of these, by where KV came from", "source"
        )
        self._stays = self._counter("syshax_move_refusals", "Requests that may not be handed over", "reason")
        self._unit_errors = self._counter("syshax_unit_errors", "Failed calls to units", "unit", "kind")
        self._prompt = self._counter("syshax_prompt_tokens", "Prompt tokens of requests served", "route")
        self._output = self._counter("syshax_generation_tokens", "Tokens delivered", "route")
        self._too_low = self._counter("syshax_predictions_too_low", "Tested predictions below what came", "what")
        self._client_gone = self._counter("syshax_client_disconnects", "Requests whose client left before the end")
        self._ttft = self._histogram("syshax_time_to_first_token_seconds", "Arrival to first token", _LONG)
        self._itl = self._histogram("syshax_inter_token_latency_seconds", "Token to token", _SHORT)
        self._tpot = self._histogram("syshax_request_time_per_output_token_seconds", "Mean of a request", _SHORT)
        self._e2e = self._histogram("syshax_e2e_request_latency_seconds", "Arrival to end", _LONG)
        self._gap = self._histogram("syshax_handoff_gap_seconds", "Pause in a stream at a handoff", _LONG, "kind")
        self._queue_time = self._histogram("syshax_queue_seconds", "Time held in the daemon's queue", _LONG)
        self._error = self._histogram("syshax_prediction_error_ratio", "Absolute error by observed", _RATIO, "what")
        self._in_flight = self._gauge("syshax_requests_in_flight", "Requests being served", "unit")
        self._queued = self._gauge("syshax_requests_queued", "Requests held in the daemon's queue")
        self._unit_state = self._gauge("syshax_unit_state", "1 for the state a unit is in", "unit", "state")
        self._pd = self._gauge("syshax_pd_enabled", "1 while splits and moves with KV are allowed")

    def request_ended(self, endpoint: str, route: str, status: int) -> None:
        """One request, by its final route ("none": refused) and HTTP status (499: the client left)."""
        self._requests.labels(endpoint, route, str(status)).inc()
        if status == 499:
            self._client_gone.inc()

    def decided(self, plan: str, reason: str) -> None:
        """One decision: plan is whole, split, queue, refuse, move or stay (a split that was given up)."""
        self._decisions.labels(plan, reason).inc()

    def handed_over(self, kind: str, result: str) -> None:
        """One handoff: kind split, offload, return, drain or failover; result ok, finished_first or what failed."""
        self._handoffs.labels(kind, result).inc()

    def kv_taken_over(self, kind: str, result: str, loaded: int, computed: int) -> None:
        """KV that a unit was to load, as it tells at its end: result loaded, recomputed or why it was lost."""
        self._kv.labels(kind, result).inc()
        self._kv_tokens.labels("handoff").inc(loaded)
        self._kv_tokens.labels("computed").inc(computed)

    def stays(self, reason: str) -> None:
        """One request that must not be handed over, by the rule that says so."""
        self._stays.labels(reason).inc()

    def unit_failed(self, unit: str, kind: str) -> None:
        """One failed call of a request to a unit."""
        self._unit_errors.labels(unit, kind).inc()

    def first_token(self, seconds: float) -> None:
        """TTFT of one request."""
        self._ttft.observe(seconds)

    def next_token(self, seconds: float, count: int = 1) -> None:
        """ITL of one token, or of several that all have it."""
        for _ in range(count):
            self._itl.observe(seconds)

    def served(self, route: str, prompt_tokens: int, output_tokens: int, seconds: float, tpot: float | None) -> None:
        """A request that came to its end: sizes in tokens, times in seconds."""
        self._prompt.labels(route).inc(prompt_tokens)
        self._output.labels(route).inc(output_tokens)
        self._e2e.observe(seconds)
        if tpot is not None:
            self._tpot.observe(tpot)

    def gap(self, kind: str, seconds: float) -> None:
        """Pause that a client saw at a handoff."""
        self._gap.labels(kind).observe(seconds)

    def predicted(self, what: str, expected: float, observed: float) -> None:
        """One prediction against what came, seconds; what: ttft or tpot. `observed` must not be 0."""
        self._error.labels(what).observe(abs(expected - observed) / observed)
        self._too_low.labels(what).inc(expected < observed)

    def queued_for(self, seconds: float) -> None:
        """How long one request was held."""
        self._queue_time.observe(seconds)

    def render(
        self, units: Iterable[UnitView], in_flight: Mapping[str, int], queued: int, pd_enabled: bool
    ) -> tuple[bytes, str]:
        """Prometheus text and its content type; the gauges are set from the arguments."""
        self._queued.set(queued)
        self._pd.set(pd_enabled)
        self._unit_state.clear()
        self._in_flight.clear()
        for unit in units:
            self._in_flight.labels(unit.name).set(in_flight.get(unit.name, 0))
            for state in UnitState:
                self._unit_state.labels(unit.name, state.value).set(unit.state is state)
        return generate_latest(self.registry), CONTENT_TYPE_LATEST

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(name, text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: Sequence[float], *labels: str) -> Histogram:
        return Histogram(name, text, labels, buckets=buckets, registry=self.registry)
