"""The default decider's moves on a real daemon and a real sysinfer pair: out under KV pressure, and back.

Not part of CI: on a machine whose steps vary by more than half their length predictive is not trusted, and thresholds
answer. The same moves on timed fake units are in tests/process/test_predictive.py, which CI runs."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, Callable

import pytest

from testbed.daemon_demo_model import LIBRARY, Daemon, demo_config
from tests.process.test_auto_offload import BLOCK, BLOCKS, pool_is_empty

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(not LIBRARY.exists(), reason="needs the native core: make native"),
]


async def test_predictive_moves_out_under_pressure_and_back(tmp_path: Path) -> None:
    """The default decider, on what it has learned from the units' own pages: the texts are those of quiet times."""
    config = demo_config(
        {"block_size": BLOCK, "kv_blocks": BLOCKS},
        pd={"pool_size": "256MiB"},
        monitor={"interval": 0.05},
        scheduler={"decider": "predictive", "slo": slo(5.0)},
    )
    async with Daemon(tmp_path, config) as daemon:
        # One after the other, so that nothing is short; and both units are learned.
        quiet = [await plain(daemon, index, {"x-syshax-route": "accelerator"}) for index in range(len(PREDICTED))]
        assert quiet == [await plain(daemon, index, {"x-syshax-route": "cpu"}) for index in range(len(PREDICTED))]
        for _ in range(WAVES):  # a machine whose steps vary too much is not predicted yet: thresholds answer until then
            wave, before = asyncio.ensure_future(every(daemon)), daemon.log.count(PROMISED)
            try:
                if await seen_before(wave, lambda: daemon.log.count(PROMISED) >= before + 2):
                    await wanted(daemon, config, slo(1e-4))  # which no CPU keeps: whoever can goes back
                assert await asyncio.wait_for(wave, 60) == quiet
            finally:
                wave.cancel()
            if BACK in daemon.log:
                break
            await wanted(daemon, config, slo(5.0))
        counts = await daemon.metrics()
        print({name: value for name, value in counts.items() if "handoffs" in name or "decisions" in name})
        assert counts['syshax_scheduler_decisions_total{plan="whole",reason="accelerator_fits"}'] >= 1
        assert counts['syshax_handoffs_total{kind="offload",result="ok"}'] >= 2
        assert counts['syshax_handoffs_total{kind="return",result="ok"}'] >= 1
        assert daemon.log.count(PROMISED) >= 2 and BACK in daemon.log
        await pool_is_empty(daemon)


WAVES = 6
PROMISED, BACK = "keeps the request's promise", "would miss the request's target"  # said of predictive's moves only
PREDICTED = [1400, 1400, *[500] * 6]  # the first two are the first victims, and outlive the others


def slo(tpot: float) -> dict[str, Any]:
    return {tier: {"ttft": 60, "tpot": tpot} for tier in ("default", "flex")}


async def plain(daemon: Daemon, index: int, headers: dict[str, str]) -> Any:
    tokens = PREDICTED[index]
    prompt = f"What is number {index}?" + " Tell me all of it." * (tokens > 1000)
    body = {"prompt": prompt, "temperature": 0, "max_tokens": tokens, "min_tokens": tokens}
    return (await daemon.post("/v1/completions", body, headers))["choices"][0]["text"]


async def wanted(daemon: Daemon, config: dict[str, Any], limits: dict[str, Any]) -> None:
    """These limits from now on."""
    daemon.rewrite({**config, "scheduler": {"decider": "predictive", "slo": limits}})
    await asyncio.to_thread(daemon.control, "reload")


async def every(daemon: Daemon) -> list[Any]:
    return list(await asyncio.gather(*(plain(daemon, index, {}) for index in range(len(PREDICTED)))))


async def seen_before(task: "asyncio.Future[Any]", seen: Callable[[], bool]) -> bool:
    """Whether it was seen while the task ran."""
    while not task.done():
        if seen():
            return True
        await asyncio.sleep(0.02)
    return False
