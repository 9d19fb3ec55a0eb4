"""How a READY unit is judged, and how long a start may take."""

from __future__ import annotations

from syshaxd.config.types import HealthConfig
from syshaxd.model.request import Endpoint, RequestInfo
from syshaxd.model.snapshot import InFlight
from syshaxd.monitor import Page
from syshaxd.supervisor.probe import Activity, Deadline
from syshaxd.supervisor.vitals import Pulse, Vitals, pulse

HEALTH = HealthConfig(interval=1.0, failures=3, canary_interval=60.0)


def _entry(first_token: float | None, tokens: int = 0) -> InFlight:
    info = RequestInfo("r", Endpoint.CHAT, "m", True, 10, None)
    return InFlight(info, "cpu", 0.0, first_token, 10, tokens)


def _page(steps: int, running: int) -> Page:
    return Page(*(0,) * 23)._replace(steps=steps, running=running)


def test_a_slow_client_does_not_make_its_unit_look_stalled() -> None:
    assert pulse(_page(5, 0), [_entry(first_token=1.0, tokens=9)]).held == 0
    assert pulse(_page(5, 0), [_entry(first_token=None)]).held == 1, "sent, and the unit says it runs nothing"
    assert pulse(None, [_entry(None)]).certain is False


def test_stalled_means_held_without_progress() -> None:
    vitals = Vitals(0.0)
    assert vitals.saw_pulse(Pulse(2, "a", True), 0.0, 30.0) is None
    assert vitals.saw_pulse(Pulse(2, "b", True), 29.0, 30.0) is None
    assert vitals.saw_pulse(Pulse(2, "b", True), 59.0, 30.0) is None
    reason = vitals.saw_pulse(Pulse(2, "b", True), 60.0, 30.0)
    assert reason == "stalled: it holds 2 requests and has made no token for 31 s"


def test_an_idle_unit_never_stalls_and_the_clock_starts_with_the_request() -> None:
    vitals = Vitals(0.0)
    assert vitals.saw_pulse(Pulse(0, "a", True), 1000.0, 30.0) is None
    assert vitals.saw_pulse(Pulse(1, "a", True), 1001.0, 30.0) is None
    assert vitals.saw_pulse(Pulse(1, "a", True), 1031.0, 30.0) is not None


def test_without_the_units_own_word_a_stall_is_not_certain() -> None:
    assert Vitals(0.0).saw_pulse(Pulse(1, "a", False), 1000.0, 30.0) is None


def test_health_has_three_chances_a_suspect_has_one() -> None:
    vitals = Vitals(0.0)
    assert [vitals.saw_health("timeout", HEALTH, False) for _ in range(3)] == [None, None, "unhealthy: timeout"]
    assert vitals.saw_health(None, HEALTH, False) is None and vitals.answers
    assert vitals.saw_health("timeout", HEALTH, True) == "unhealthy: timeout"


def test_traffic_spares_the_canary() -> None:
    vitals = Vitals(0.0)
    vitals.saw_pulse(Pulse(1, "a", True), 0.0, 30.0)
    vitals.saw_pulse(Pulse(1, "b", True), 50.0, 30.0)
    assert not vitals.canary_due(100.0, HEALTH, suspected=False)
    assert vitals.canary_due(100.0, HEALTH, suspected=True)
    assert vitals.canary_due(110.0, HEALTH, suspected=False)
    assert not vitals.canary_due(110.0, HealthConfig(canary_interval=0.0), suspected=False), "0: never"


def test_a_busy_unit_may_be_late_with_the_canary() -> None:
    vitals = Vitals(0.0)
    vitals.saw_pulse(Pulse(1, "a", True), 100.0, 30.0)
    vitals.saw_pulse(Pulse(1, "b", True), 110.0, 30.0)
    assert vitals.saw_canary("no answer in time", began=105.0, now=165.0) is None
    assert vitals.saw_canary("no answer in time", began=120.0, now=180.0) == "does not generate: no answer in time"


def test_a_start_has_a_limit_and_must_show_work() -> None:
    deadline = Deadline(0.0, limit=600.0, idle=60.0)
    for second in range(0, 300, 10):
        deadline.saw(Activity(lines=0, busy=second), float(second))
        assert deadline.passed(float(second)) is None
    assert deadline.passed(349.0) is None
    assert "did nothing for 60 s while starting" in (deadline.passed(351.0) or "")
    deadline.saw(Activity(lines=1, busy=None), 599.0)
    assert deadline.passed(599.0) is None
    assert deadline.passed(601.0) == "did not answer within 600 s (start_timeout)"
    assert deadline.left(590.0) == 10.0
