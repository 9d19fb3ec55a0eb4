"""The headline: an accelerator unit short of KV gives running requests to the CPU unit before it must preempt.

Real daemon, real sysinfer pair, the demo model. The same 16 long greedy requests four times: with all the KV they
want (the reference text), with a capped cache and no offload, with the capped cache and offload; and with offload where
the CPU unit takes but two at a time, so that the accelerator must preempt after all.
"""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from testbed.daemon_demo_model import LIBRARY, Daemon, demo_config

BLOCKS, BLOCK = 200, 16  # 3,200 tokens; the eight long requests alone would end with 12,000
LENGTHS = [1500 if index % 2 else 250 for index in range(16)]
TPOT_MS = "0.1"  # no CPU is that fast: requests are wanted back however fast this one is
pytestmark = [
    pytest.mark.timeout(180),
    pytest.mark.skipif(not LIBRARY.exists(), reason="needs the native core: make native"),
]


@dataclass
class Run:
    """What one of the three brought."""

    texts: list[str]  # with token ids
    seconds: float
    preemptions: float
    loaded: float  # tokens whose KV came from the other unit, on both units, without the self-check's
    restored: float  # tokens whose KV a preempted request took back
    with_kv: int  # requests of which a unit says that it loaded most of what another had computed
    daemon: dict[str, float]
    stories: list[str]

    def handoffs(self, kind: str) -> int:
        return int(self.daemon.get(f'syshax_handoffs_total{{kind="{kind}",result="ok"}}', 0))


async def run(folder: Path, blocks: int | None, offload: bool, cpu_seats: int = 16) -> Run:
    gpu: dict[str, Any] = {"block_size": BLOCK, **({"kv_blocks": blocks} if blocks else {})}
    config = demo_config(
        gpu,
        pd={"auto_offload": offload, "pool_size": "256MiB"},
        monitor={"interval": 0.05},
        scheduler={"decider": "threshold", "threshold": {"waiting": 64, "cpu_max_num_seqs": cpu_seats}},
    )
    async with Daemon(folder, config) as daemon:
        before = await loaded(daemon)
        began = time.monotonic()
        replies = await asyncio.gather(*(ask(daemon, index, offload) for index in range(len(LENGTHS))))
        seconds = time.monotonic() - began
        gpu_counts = await daemon.unit_metrics("gpu")
        await pool_is_empty(daemon)
        return Run(
            [json.dumps(reply["choices"][0]) for reply in replies],
            seconds,
            gpu_counts["vllm:num_preemptions_total"],
            await loaded(daemon) - before,
            gpu_counts["syshax_handoff_restored_tokens_total"],
            sum([moved_with_kv(await daemon.explain(name_of(index))) for index in range(len(LENGTHS))]),
            await daemon.metrics(),
            [line for line in daemon.log.splitlines() if "moving" in line],
        )


async def ask(daemon: Daemon, index: int, offload: bool) -> Any:
    body = {
        "prompt": f"What is number {index}?", "temperature": 0, "return_token_ids": True,
        "max_tokens": LENGTHS[index], "min_tokens": LENGTHS[index],
    }  # fmt: skip
    wish = {"x-slo-tpot-ms": TPOT_MS} if offload else {"x-syshax-route": "accelerator"}
    headers = {"x-request-id": name_of(index), **wish}
    return await daemon.post("/v1/completions", body, headers)


def name_of(index: int) -> str:
    return f"long{index}"


def moved_with_kv(story: dict[str, Any]) -> bool:
    loads = [event for event in story["events"] if event["event"] == "loaded"]
    return any(event["tokens"] >= event["of"] - 8 for event in loads)


async def pool_is_empty(daemon: Daemon) -> None:
    """Every chunk of both outboxes comes back long before a lease is over."""
    until = time.monotonic() + 10
    while left := [page for page in daemon.pages() if page.pool_chunks_free != page.pool_chunks_total]:
        assert time.monotonic() < until, left
        await asyncio.sleep(0.05)


async def loaded(daemon: Daemon) -> float:
    totals = [await daemon.unit_metrics(unit) for unit in ("gpu", "cpu")]
    return sum(value for total in totals for name, value in total.items() if 'source="external_kv_transfer"' in name)


async def test_offload_saves_preemptions_and_changes_no_text(tmp_path: Path) -> None:
    reference = await run(tmp_path / "reference", None, False)
    stock = await run(tmp_path / "stock", BLOCKS, False)
    moved = await run(tmp_path / "moved", BLOCKS, True)
    tight = await run(tmp_path / "tight", BLOCKS, True, cpu_seats=2)
    for name, result in (("uncapped", reference), ("stock", stock), ("offload", moved), ("tight", tight)):
        print(
            f"{name:>9}: {result.seconds:6.2f} s, {result.preemptions:.0f} preemptions, "
            f"{result.handoffs('offload')} offloaded, {result.handoffs('return')} returned, "
            f"{result.with_kv} requests with their KV, {result.loaded:.0f} tokens of KV handed over, "
            f"{result.restored:.0f} taken back after preemptions"
        )
    print({name: value for name, value in moved.daemon.items() if "handoffs" in name or "refusals" in name})
    assert stock.preemptions > 0, "the cache was not short"
    assert moved.preemptions == 0
    assert moved.handoffs("offload") >= 4 and moved.handoffs("return") >= 1
    # With their KV: most of each moved context was loaded, not computed.
    assert moved.with_kv >= 4 and moved.loaded >= 4 * 100
    # Where the CPU has no seat in time, preempted requests go on with the KV that was kept: here or elsewhere.
    assert stock.restored > 0
    assert tight.preemptions > 0 and tight.with_kv > 0
    assert any("preempted it" in story for story in tight.stories)
    assert stock.texts == reference.texts
    assert moved.texts == reference.texts
    assert tight.texts == reference.texts
    assert not await leftovers(tmp_path / "moved")


async def leftovers(folder: Path) -> list[str]:
    """Files of the pool that outlived the daemon."""
    return [str(path) for path in folder.rglob("*.pool")]
