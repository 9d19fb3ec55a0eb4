"""Parts of Engine one by one: listeners, cleanup, reload coalescing, status, watchdog, and the judgement of a split."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from syshaxd.config.types import PdConfig
from syshaxd.engine.cleanup import Cleanup
from syshaxd.engine.inherited_sockets import inherited_sockets
from syshaxd.engine.pd_guard import PdGuard, pairs_of
from syshaxd.engine.reload import Reloader
from syshaxd.engine.selfcheck import SelfCheck, Verdict, compare, judge, outbox_fault
from syshaxd.engine.service_manager import Patience, Watchdog
from syshaxd.engine.status import status_line, unit_json
from syshaxd.errors import SysHaxError, UnitError, UnitErrorKind
from syshaxd.model.snapshot import PdStatus, Snapshot, UnitLoad, UnitSnapshot
from syshaxd.model.unit import BackendKind, Role, UnitState, UnitView
from syshaxd.sdnotify import Notifier
from syshaxd.unitclient import UnitClient


def _view(name: str, state: UnitState = UnitState.READY, role: Role = Role.CPU, epoch: int = 1) -> UnitView:
    url, pool = "http://127.0.0.1:1", f"/p/{name}.pool"
    return UnitView(name, role, "sysinfer", BackendKind.PROCESS, state, url, epoch, pool_file=pool)


# ---- listeners


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))
        made.listen()
        yield made


def _environ(count: int, pid: int | None = None) -> dict[str, str]:
    return {"LISTEN_FDS": str(count), "LISTEN_PID": str(pid or os.getpid()), "LISTEN_FDNAMES": "api", "PATH": "/bin"}


def test_a_listening_socket_is_taken_over(listener: socket.socket) -> None:
    environ = _environ(1)
    descriptor = os.dup(listener.fileno())
    (taken,) = inherited_sockets(environ, first=descriptor)
    with taken:
        assert taken.getsockname() == listener.getsockname() and not taken.get_inheritable()
    assert environ == {"PATH": "/bin"}


def test_sockets_meant_for_another_process_are_left_alone(listener: socket.socket) -> None:
    assert inherited_sockets(_environ(1, pid=1), first=listener.fileno()) == ()


def test_what_does_not_listen_is_refused() -> None:
    with socket.socket() as plain, pytest.raises(SysHaxError, match="does not listen; expected ListenStream="):
        inherited_sockets(_environ(1), first=plain.fileno())
    with open(os.devnull, "rb") as file, pytest.raises(SysHaxError, match="which is no socket"):
        inherited_sockets(_environ(1), first=file.fileno())


# ---- cleanup


async def test_cleanup_goes_backward_and_past_failures() -> None:
    order: list[str] = []
    cleanup = Cleanup()

    def step(name: str, error: BaseException | None = None, hang: bool = False) -> None:
        async def undo() -> None:
            order.append(name)
            if error is not None:
                raise error
            if hang:
                await asyncio.Event().wait()

        cleanup.add(name, undo, 0.05)

    step("first")
    step("second", error=ValueError("broken"))
    step("third", hang=True)
    step("fourth")
    assert await cleanup.run() == ("third", "second")
    assert order == ["fourth", "third", "second", "first"]
    assert await cleanup.run() == ()


# ---- reload


class Loads:
    """A reload that can be held, and that fails when told to."""

    def __init__(self) -> None:
        self.may_end = asyncio.Event()
        self.begun = asyncio.Event()
        self.error: SysHaxError | None = None
        self.count = 0

    async def __call__(self) -> Mapping[str, Any]:
        self.count += 1
        self.begun.set()
        await self.may_end.wait()
        if self.error is not None:
            raise self.error
        return {"number": self.count}


@pytest.fixture
async def loads() -> Loads:
    return Loads()


async def test_many_requests_become_two_reloads(loads: Loads) -> None:
    reloader = Reloader(loads)
    task = asyncio.ensure_future(reloader.run())
    reloader.request()
    await loads.begun.wait()
    late = [asyncio.ensure_future(reloader.wait()) for _ in range(50)]
    for _ in range(100):
        reloader.request()
    await asyncio.sleep(0)
    loads.may_end.set()
    results = await asyncio.wait_for(asyncio.gather(*late), 5)
    assert {result["number"] for result in results} == {2}, "each saw a reload that began after it asked"
    assert reloader.runs == 2
    task.cancel()
    await asyncio.wait({task})


async def test_a_failed_reload_tells_who_asked_and_goes_on(loads: Loads) -> None:
    reloader = Reloader(loads)
    task = asyncio.ensure_future(reloader.run())
    loads.may_end.set()
    loads.error = SysHaxError("no")
    with pytest.raises(SysHaxError, match="no"):
        await reloader.wait()
    loads.error = None
    assert (await reloader.wait())["number"] == 2
    loads.may_end.clear()
    left = asyncio.ensure_future(reloader.wait())
    while loads.count < 3:
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait({task, left})
    assert left.cancelled(), "the daemon stops: nobody waits for ever"


# ---- status


def _snapshot(*units: UnitSnapshot, pd: PdStatus = PdStatus()) -> Snapshot:
    return Snapshot(at=10.0, units=units, queued=3, pd=pd)


def test_status_line_says_what_matters() -> None:
    load = UnitLoad(at=9.0, source="page", running=41, waiting=2, kv_usage=0.634)
    gpu = UnitSnapshot(_view("gpu", role=Role.ACCELERATOR), load, in_flight=40)
    cpu = UnitSnapshot(replace(_view("cpu", UnitState.FAILED), reason="exited with status 1"))
    line = status_line(_snapshot(gpu, cpu, pd=PdStatus(False, "no pair")), max_queue=256)
    assert line == (
        "gpu: ready kv 63% run 41 wait 2 | cpu: failed (exited with status 1) | queue 3/256 | pd off: no pair"
    )
    line = status_line(_snapshot(UnitSnapshot(_view("cpu"), None, in_flight=5)), 9, "reload rejected")
    assert line == "reload rejected | cpu: ready run 5 | queue 3/9 | pd on"


def test_unit_json_keeps_missing_signals_missing() -> None:
    unit = unit_json(UnitSnapshot(replace(_view("cpu"), since=4.0)), 10.0)
    assert (unit["age"], unit["kv_usage"], unit["running"], unit["state"]) == (6.0, None, None, "ready")


# ---- watchdog, patience


class Heard(Notifier):
    """What the service manager would hear."""

    def __init__(self, watchdog: float | None = None) -> None:
        super().__init__(watchdog)
        self.words: list[str] = []

    def watchdog(self) -> None:
        self.words.append("watchdog")

    def extend_timeout(self, seconds: float) -> None:
        self.words.append(f"extend {seconds:g}")


def test_the_watchdog_is_fed_only_while_the_reconcile_loop_turns() -> None:
    notifier = Heard(watchdog=30.0)
    watchdog = Watchdog(notifier, 0.0)
    for second in range(60):
        watchdog.beat(turns=second, now=float(second))
    assert len(notifier.words) == 6
    notifier.words.clear()
    for second in range(60, 120):
        watchdog.beat(turns=59, now=float(second))
    assert len(notifier.words) <= 2, "stuck since second 59, so at most half a period longer"
    assert watchdog.beat(turns=60, now=120.0)


def test_without_a_watchdog_nothing_is_sent() -> None:
    assert not Watchdog(Heard(), 0.0).beat(1, 1.0)


def test_more_time_is_asked_for_while_a_unit_loads() -> None:
    notifier = Heard()
    patience = Patience(notifier)
    for second in range(46):
        patience.beat((_view("gpu", UnitState.STARTING),), float(second))
    assert notifier.words == ["extend 30"] * 3
    patience.beat((_view("gpu", UnitState.FAILED),), 100.0)
    assert len(notifier.words) == 3, "what has failed needs no time"


# ---- the judgement of a split

GOOD = Verdict("gpu", "cpu", top1=1.0, difference=0.0, loaded=180, prompt=181)
EXACT, MIXED = PdConfig(precision="exact"), PdConfig(precision="mixed", top1_agreement=0.9, max_logprob_diff=0.1)


@pytest.mark.parametrize(
    ("verdict", "config", "reason"),
    [
        (GOOD, EXACT, ""),
        (GOOD, MIXED, ""),
        (replace(GOOD, top1=None, difference=None), EXACT, ""),
        (replace(GOOD, top1=0.9, difference=0.1), MIXED, ""),
        (replace(GOOD, loaded=0), EXACT, "took no KV over"),
        (replace(GOOD, loaded=0, lost="mismatch"), EXACT, "took no KV over (mismatch; its log says more)"),
        (replace(GOOD, loaded=0, outbox_fault="no room"), EXACT, "no KV can be handed over: no room"),
        (replace(GOOD, top1=0.98), EXACT, "greedy text differs (98% of tokens agree)"),
        (replace(GOOD, top1=0.89), MIXED, "0.890 of first choices agree, 0.9 needed (pd.top1_agreement)"),
        (replace(GOOD, difference=0.2), MIXED, "median difference 0.200, at most 0.1 (pd.max_logprob_diff)"),
    ],
)
def test_judgement(verdict: Verdict, config: PdConfig, reason: str) -> None:
    status = judge(verdict, config)
    assert status.enabled == (not reason)
    assert reason in status.reason


def test_an_outbox_that_found_no_room(tmp_path: Path) -> None:
    path = tmp_path / "gpu.pool"
    assert outbox_fault(str(path)) == f"{path}: No such file or directory"
    path.touch()
    assert re.fullmatch(rf"no room for {path}: \d+ MiB left there \(pd.pool_size\)", outbox_fault(str(path)))
    path.write_bytes(b"SXPOOL1")
    assert outbox_fault(str(path)) == ""


@given(st.lists(st.floats(-20, 0), min_size=1, max_size=64))
def test_the_same_numbers_agree(values: list[float]) -> None:
    assert compare(values, values, values) == (1.0, 0.0)
    assert compare([value - 1 for value in values], values, [value + 1 for value in values])[0] == 0.0


# ---- the gate


class Units:
    """Views that a test sets."""

    def __init__(self) -> None:
        self.now: Sequence[UnitView] = ()

    def views(self) -> tuple[UnitView, ...]:
        return tuple(self.now)

    def api_key(self, name: str) -> str:
        return ""

    def suspect(self, name: str, epoch: int, reason: str) -> None:
        raise AssertionError("nobody suspects here")


class Scripted(SelfCheck):
    """Answers from a list; `hold` keeps a check waiting."""

    def __init__(self, *answers: object) -> None:
        super().__init__(UnitClient())
        self.answers = list(answers)
        self.hold = asyncio.Event()
        self.hold.set()
        self.calls = 0
        self.given_up = 0

    async def measure(
        self, prefill: UnitView, decode: UnitView, keys: Mapping[str, str], compared: bool = True
    ) -> Verdict:
        self.calls += 1
        try:
            await self.hold.wait()
        except asyncio.CancelledError:
            self.given_up += 1
            raise
        answer = self.answers.pop(0) if self.answers else GOOD
        if isinstance(answer, Exception):
            raise answer
        assert isinstance(answer, Verdict)
        return answer


def _state(guard: PdGuard) -> tuple[bool, bool]:
    """Whether splits are allowed, and whether that is the last word."""
    return guard.pd_status().enabled, guard.settled


GPU, CPU = _view("gpu", role=Role.ACCELERATOR), _view("cpu")


async def _turns(count: int = 20) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_pairs_need_two_ready_units_that_can_hand_over() -> None:
    assert pairs_of([GPU, CPU]) == ((GPU, CPU),)
    assert pairs_of([GPU, replace(CPU, state=UnitState.WARMING)]) == ()
    assert pairs_of([GPU, replace(CPU, pool_file="")]) == ()
    assert pairs_of([CPU]) == ()


async def test_splits_wait_for_the_check_and_for_each_replaced_unit() -> None:
    units, check = Units(), Scripted(GOOD, replace(GOOD, top1=0.5))
    guard = PdGuard(units, check, lambda: MIXED)
    task = asyncio.ensure_future(guard.run())
    await _turns()
    assert _state(guard) == (False, True)
    check.hold.clear()
    units.now = [GPU, CPU]
    guard.changed()
    await _turns()
    assert guard.pd_status() == PdStatus(False, "self-check under way")
    assert _state(guard) == (False, False)
    check.hold.set()
    await _turns()
    assert _state(guard) == (True, True)
    guard.changed()
    await _turns()
    assert check.calls == 1, "nothing changed, nothing to check"
    units.now = [GPU, replace(CPU, epoch=2)]
    guard.changed()
    assert not guard.pd_status().enabled, "at once, not after the check"
    await _turns()
    assert "0.500 of first choices agree" in guard.pd_status().reason
    task.cancel()
    await asyncio.wait({task})


async def test_a_check_steps_aside_when_its_unit_goes() -> None:
    units, check = Units(), Scripted()
    guard = PdGuard(units, check, lambda: MIXED)
    task = asyncio.ensure_future(guard.run())
    check.hold.clear()
    units.now = [GPU, CPU]
    guard.changed()
    await _turns()
    units.now = [GPU, replace(CPU, state=UnitState.DRAINING)]
    guard.changed()
    await _turns()
    assert check.given_up == 1
    assert guard.settled and guard.pd_status().reason == "no pair of units is ready for a split"
    task.cancel()
    await asyncio.wait({task})


async def test_a_unit_that_drains_may_still_give_its_streams_away() -> None:
    units, check = Units(), Scripted(GOOD)
    guard = PdGuard(units, check, lambda: MIXED)
    task = asyncio.ensure_future(guard.run())
    units.now = [GPU, CPU]
    guard.changed()
    await _turns()
    units.now = [replace(GPU, state=UnitState.DRAINING), CPU]
    guard.changed()
    await _turns()
    assert _state(guard) == (True, True)
    units.now = [replace(GPU, state=UnitState.STOPPING), CPU]
    guard.changed()
    assert not guard.pd_status().enabled
    task.cancel()
    await asyncio.wait({task})


async def test_kv_that_did_not_come_is_tried_again_a_difference_is_not() -> None:
    lost, differs = replace(GOOD, top1=None, loaded=0), replace(GOOD, top1=0.5)
    units, check = Units(), Scripted(lost, lost, differs)
    guard = PdGuard(units, check, lambda: MIXED, retry=0.001)
    task = asyncio.ensure_future(guard.run())
    units.now = [GPU, CPU]
    guard.changed()
    while check.calls < 3:
        await asyncio.sleep(0.001)
    await asyncio.sleep(0.02)
    assert check.calls == 3 and "of first choices agree" in guard.pd_status().reason
    task.cancel()
    await asyncio.wait({task})


async def test_a_check_that_is_not_possible_keeps_splits_off() -> None:
    error = UnitError("cpu", UnitErrorKind.STATUS, "HTTP 400: echo is not supported", status=400)
    units, check = Units(), Scripted(error)
    guard = PdGuard(units, check, lambda: MIXED)
    task = asyncio.ensure_future(guard.run())
    units.now = [GPU, CPU]
    guard.changed()
    await _turns()
    assert not guard.pd_status().enabled and "echo is not supported" in guard.pd_status().reason
    await _turns()
    assert check.calls == 1, "not again at once"
    task.cancel()
    await asyncio.wait({task})


@pytest.mark.parametrize("lost, again", [("busy", True), ("stale", True), ("timeout", True), ("mismatch", False)])
async def test_a_busy_moment_does_not_switch_splits_off_for_good(lost: str, again: bool) -> None:
    """What another try may say otherwise is tried again, later each time; what lasts is not."""
    units, check = Units(), Scripted(replace(GOOD, loaded=0, lost=lost), GOOD)
    guard = PdGuard(units, check, lambda: MIXED, retry=0.3)
    task = asyncio.ensure_future(guard.run())
    units.now = [GPU, CPU]
    guard.changed()
    await _turns()
    assert _state(guard) == (False, True) and f"({lost}; " in guard.pd_status().reason
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(_enabled(guard), 0.1)
    assert check.calls == 1, "not again at once"
    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait_for(_enabled(guard), 1.0)
    assert (check.calls, guard.pd_status().enabled) == ((2, True) if again else (1, False))
    task.cancel()
    await asyncio.wait({task})


async def _enabled(guard: PdGuard) -> None:
    while not guard.pd_status().enabled:
        await asyncio.sleep(0.01)


async def test_a_check_can_be_asked_for() -> None:
    units, check = Units(), Scripted(replace(GOOD, loaded=0, lost="mismatch"), GOOD, replace(GOOD, top1=0.1))
    guard = PdGuard(units, check, lambda: MIXED)
    task = asyncio.ensure_future(guard.run())
    units.now = [GPU, CPU]
    guard.changed()
    await _turns()
    assert _state(guard) == (False, True)
    assert (await guard.check_again()).enabled and check.calls == 2
    assert "0.100 of first choices agree" in (await guard.check_again()).reason and check.calls == 3
    task.cancel()
    await asyncio.wait({task})


async def test_pd_can_be_switched_off() -> None:
    guard = PdGuard(Units(), Scripted(), lambda: PdConfig(enabled=False))
    assert guard.pd_status() == PdStatus(False, "pd.enabled is false")
