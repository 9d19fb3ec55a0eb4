"""Every refusal comes from the one list, and each question is answered in one place."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import syshaxd
from syshaxd.admission import admit
from syshaxd.admission.refusals import Refusal, error_of
from syshaxd.model.plan import Queue, Refuse
from syshaxd.model.request import Route

ROOT = Path(syshaxd.__file__).parent
SERVED = ("m", "n")


def code(answer: Any) -> Any:
    return (answer.status, answer.reason.code) if isinstance(answer, Refuse) else answer


def test_at_the_door() -> None:
    def ask(**changed: Any) -> Any:
        asked: dict[str, Any] = {"model": "m", "served": SERVED, "open_": True, **changed}
        return code(admit.at_the_door(**asked))

    assert ask() is None
    assert ask(open_=False, model="x") == (503, "draining")
    assert ask(model="x") == (404, "model_not_found")
    assert admit.beyond_the_limit(7, 8, 3.0) is None
    assert isinstance(admit.beyond_the_limit(8, 8, 3.0), Queue), "it waits: more than max_in_flight is no refusal"
    assert code(admit.of_size(10, 10)) is None and code(admit.of_size(11, 10)) == (413, "request_too_large")


def test_who_waits_and_who_is_refused() -> None:
    busy = admit.Busy("busy", "gpu: full", 3.0)
    held = admit.wait_or_refuse(busy, 4, 5)
    assert isinstance(held, Queue) and (held.reason.code, held.reason.text, held.deadline) == ("busy", "gpu: full", 3.0)
    full = admit.wait_or_refuse(busy, 5, 5)
    assert code(full) == (429, "queue_full") and full.reason.text.startswith("gpu: full; 5 requests queue already")
    hopeless = admit.wait_or_refuse(admit.Busy("queue_kv", "KV 900 %", 3.0, Refusal.KV, 7.5), 0, 5)
    assert isinstance(hopeless, Refuse) and code(hopeless) == (429, "refuse_kv")
    assert (hopeless.retry_after, hopeless.reason.text) == (7.5, "KV 900 %")
    assert code(admit.after_the_last_ask(Queue(busy_reason(), 1.0))) == (429, "queue_timeout")
    assert code(admit.place(admit.behind_others(2.0), 5, 5)) == (429, "queue_full")


def busy_reason() -> Any:
    held = admit.wait_or_refuse(admit.Busy("busy", "gpu: full", 3.0), 0, 1)
    return held.reason


def test_where_no_unit_can() -> None:
    assert isinstance(admit.nobody(True, 30.0), Queue) and code(admit.nobody(False, 30.0)) == (503, "no_unit_ready")
    assert code(admit.route_not_ready(Route.CPU)) == (503, "route_not_ready")
    never, not_now = admit.no_split("echo", True), admit.no_split("pd is off", False)
    assert (code(never), code(not_now)) == ((400, "split_impossible"), (503, "split_impossible"))


@pytest.mark.parametrize("refusal", list(Refusal))
def test_what_the_client_can_mend_is_not_to_be_tried_again_and_the_rest_says_when(refusal: Refusal) -> None:
    names: dict[str, Any] = {name: 1 for name in re.findall(r"{(\w+)", refusal.value.sentence)}
    error = error_of(refusal.told(**names))
    assert (error.retry_after is None) == (error.status not in (429, 503)), refusal
    assert "{" not in str(error) and error.code and str(error)
    assert error_of(refusal.told(9.0, **names)).retry_after == 9.0


def test_a_refusal_has_one_home() -> None:
    """Of requests that generate; the control socket and unknown URLs have statuses of their own."""
    made = re.compile(r"(RequestError|Refuse|BadRequest)\([^)]*\b(413|429|503)\b")
    found = [
        f"{file.relative_to(ROOT)}: {line.strip()}"
        for file in ROOT.rglob("*.py")
        if file.parent.name not in ("admission", "simulation")  # the simulator's rivals have refusals of their own
        for line in file.read_text().splitlines()
        if made.search(line)
    ]
    assert found == []
