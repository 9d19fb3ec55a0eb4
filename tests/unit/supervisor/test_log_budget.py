"""Lines of a unit that go into the log."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from syshaxd.supervisor.log_budget import LineBudget


def test_a_burst_and_then_a_trickle() -> None:
    budget = LineBudget(burst=3, rate=1)
    assert [budget.take(10.0) for _ in range(5)] == [0, 0, 0, None, None]
    assert budget.take(11.0) == 2, "two were left out before this one"
    assert budget.take(11.5) is None
    assert [budget.take(100.0) for _ in range(4)] == [1, 0, 0, None]


@given(st.lists(st.floats(0, 5), max_size=200))
def test_never_more_than_the_budget_and_every_line_is_accounted_for(pauses: list[float]) -> None:
    budget, now, taken = LineBudget(burst=5, rate=2), 0.0, []
    for pause in pauses:
        now += pause
        taken.append((now, budget.take(now)))
    logged: list[tuple[float, int]] = [(at, missed) for at, missed in taken if missed is not None]
    assert len(logged) <= 5 + 2 * now + 1e-6
    last = max((index for index, (_, missed) in enumerate(taken) if missed is not None), default=-1)
    assert len(logged) + sum(missed for _, missed in logged) == last + 1
