"""The predictive decider in a whole daemon over fake units that obey a step-time law."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from syshaxd.cli.bench.calibrated_units import keep
from syshaxd.engine.calibration import calibration_path
from testbed.daemon_fake_units import HUP, MODEL, ROOT, Daemon, clients, unit
from testbed.fake_unit.language import encode, text_after

PROMPT, OUTPUT = 300, 40
SPLIT, STAY, HELD = ("split", "offload"), ("stay", "split_late"), ("queue", "queue_backlog")
# Slow prefill, so that a burst has been decided on before the first of it has a token; room for five prompts.
GPU, GPU_BLOCKS = (0.010, 0.0005, 0.002, 0.0), 100
TWO_AT_MOST = (0.060, 0.010, 0.0, 0.0)  # a third sequence takes every step over 85 % of 100 ms
WEAK = (0.200, 0.050, 0.0, 0.0)
Law = Sequence[float]


def seconds(law: Law, decoding: int, prefill: int, kv: int) -> float:
    return law[0] + law[1] * decoding + law[2] * prefill + law[3] * kv / 1000


def calibration(law: Law) -> Mapping[str, object]:
    points = [(b, c, b * k) for b in (1, 4, 16) for k in (100, 500) for c in (0, 64, 256, 512)]
    names = ("decoding", "prefill_tokens", "kv_tokens", "seconds")
    return {"format": 1, "samples": [dict(zip(names, (*point, seconds(law, *point)))) for point in points]}


async def started(folder: Path, gpu: Law, cpu: Law, slo: Mapping[str, Any], blocks: int = GPU_BLOCKS) -> Daemon:
    """With both units' calibrations in force from the start of the second life on."""
    daemon = Daemon(folder)
    for name, role, law in (("gpu", "accelerator", gpu), ("cpu", "cpu", cpu)):
        options = ["--law", ",".join(map(str, law)), *(["--kv-blocks", str(blocks)] if name == "gpu" else [])]
        daemon.config["units"][name] = unit(role, *options)
    daemon.config["scheduler"] = {"decider": "predictive", "slo": slo}
    daemon.config["monitor"] = {"interval": "50ms"}
    await daemon.start()
    await daemon.ready()
    for name, law in (("gpu", gpu), ("cpu", cpu)):
        digest = (await daemon.unit(name))["digest"]
        keep(calibration_path(str(folder / "state"), digest), calibration(law))
    daemon.signal(HUP)
    await daemon.until(lambda: daemon.output.count(b"calibration in use") == 2)
    while not (await daemon.status())["pd"]["enabled"]:
        await asyncio.sleep(0.02)
    return daemon


def slo(ttft: float, tpot: float) -> dict[str, Any]:
    return {tier: {"ttft": ttft, "tpot": tpot} for tier in ("default", "flex")}


async def post(
    session: aiohttp.ClientSession, number: int, headers: Mapping[str, str] = {}, **more: Any
) -> "tuple[int, Mapping[str, str], Any]":
    """Status, headers and body of one completion; its text is checked."""
    prompt = encode(f"{number:04}" + "x" * (PROMPT - 4))  # as ids, which the daemon counts exactly
    body = {"model": MODEL, "prompt": prompt, "max_tokens": OUTPUT, "temperature": 0, "ignore_eos": True, **more}
    async with session.post("/v1/completions", json=body, headers=headers) as answer:
        data = await answer.json()
        if answer.status == 200:
            assert data["choices"][0]["text"] == text_after(prompt, OUTPUT)
        return answer.status, answer.headers, data


async def decisions(session: aiohttp.ClientSession) -> dict["tuple[str, str]", int]:
    async with session.get("/metrics") as answer:
        text = await answer.text()
    found = re.findall(r'syshax_scheduler_decisions_total\{plan="(\w+)",reason="(\w+)"\} (\d+)', text)
    return {(plan, reason): int(count) for plan, reason, count in found}


@pytest.fixture
async def closing() -> AsyncIterator[list[Daemon]]:
    daemons: list[Daemon] = []
    yield daemons
    for daemon in daemons:
        await daemon.close()


@pytest.mark.timeout(120)
async def test_a_burst_is_split_until_the_cpu_is_full_and_the_rest_stays(tmp_path: Path, closing: list[Daemon]) -> None:
    daemon = await started(tmp_path, GPU, TWO_AT_MOST, slo(60, 0.1))
    closing.append(daemon)
    async with clients(daemon) as session:
        answers = await asyncio.gather(*(post(session, number) for number in range(8)))
        assert [status for status, _, _ in answers] == [200] * 8
        counted = await decisions(session)
        assert counted.get(SPLIT, 0) >= 3, counted
        assert counted.get(HELD, 0) >= 4, counted  # in the daemon, not in the unit's own queue
        assert counted.get(STAY, 0) >= 1, counted  # asked again at the first token, the CPU unit was full
        split = next(headers for _, headers, _ in answers if headers["x-syshax-route"] == "accelerator>cpu")
        assert split["x-syshax-reason"].startswith("offload: gpu is at ")
        status, explained = await daemon.control("GET", f"requests/{split['x-request-id']}")
        decided = next(event for event in explained["events"] if event["event"] == "decided")
        assert status == 200 and decided["reason"] == "offload" and decided["predicted_tpot_ms"] > 0
        await simulated(daemon)


async def simulated(daemon: Daemon) -> None:
    """The daemon's own log, with half a line at its end, is a trace for `syshax simulate`."""
    await daemon.until(lambda: daemon.output.count(b" access: ") >= 8, 30)  # a line follows its answer
    log = daemon.folder / "syshax.log"
    log.write_bytes(daemon.output + b"15:00:00 access: request arrived=2026-1")
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "syshaxd.cli", "simulate", str(log), cwd=ROOT,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await asyncio.wait_for(process.communicate(), 50)
    assert process.returncode == 0, err
    lines = out.decode().splitlines()
    assert b"8 are" in err and lines[0].startswith("policy") and any("|####" in line for line in lines)
    assert lines[-1].startswith("On this host and load the CPUs bring ")


@pytest.mark.timeout(120)
async def test_what_a_weak_cpu_and_hints_do(tmp_path: Path, closing: list[Daemon]) -> None:
    daemon = await started(tmp_path, (0.002, 0.00001, 0.002, 0.0), WEAK, slo(60, 0.5), blocks=40)
    closing.append(daemon)
    async with clients(daemon) as session:
        # The guard: a CPU unit that adds under 3 % gets no interactive traffic, and flex traffic all the same.
        burst = [asyncio.ensure_future(post(session, number)) for number in range(5)]
        while (status := await daemon.status())["queued"] + sum(one["in_flight"] for one in status["units"]) < 4:
            await asyncio.sleep(0.01)
        assert SPLIT not in await decisions(session)
        flex = asyncio.ensure_future(post(session, 10, service_tier="flex"))
        status, headers, data = await post(session, 11, {"x-slo-ttft-ms": "1"})
        assert status == 429 and data["error"]["code"] == "refuse_ttft"
        assert headers["x-syshax-reason"].startswith("refuse_ttft: predicted on gpu: TTFT ")
        await daemon.until(lambda: b'status=429 route=none reason="refuse_ttft: predicted' in daemon.output, 30)
        assert int(headers["Retry-After"]) >= 1 and 100 <= int(headers["retry-after-ms"]) <= 60_000
        assert all(status in (200, 429) for status, _, _ in await asyncio.gather(*burst))
        status, headers, data = await flex
        assert (status, data["service_tier"]) == (200, "flex")
        counted = await decisions(session)
        assert counted.get(SPLIT) == 1 and counted["refuse", "refuse_ttft"] >= 1, counted
        # Absurd hints are refused by name or change nothing for others.
        for absurd in ("0", "-5", "nan", "inf", "1e99", "soon", ""):
            status, _, data = await post(session, 12, {"x-slo-tpot-ms": absurd})
            assert status == 400 and "x-slo-tpot-ms" in data["error"]["message"]
        for number in range(20, 24):
            assert (await post(session, number, {"x-slo-tpot-ms": "0.000001"}))[0] == 429
        status, headers, _ = await post(session, 30)
        assert status == 200 and headers["x-syshax-reason"].startswith("accelerator_fits: ")
        assert float(headers["x-syshax-predicted-ttft-ms"]) > 0 and float(headers["x-syshax-predicted-tpot-ms"]) > 0
        _, explained = await daemon.control("GET", f"requests/{headers['x-request-id']}")
        named = {event["event"]: event for event in explained["events"]}
        assert named["ttft_error"]["expected_ms"] > 0 and named["tpot_error"]["observed_ms"] > 0
        async with session.get("/metrics") as answer:
            text = await answer.text()
        assert re.search(r'syshax_prediction_error_ratio_count\{what="ttft"\} [1-9]', text)


@pytest.mark.timeout(120)
async def test_who_will_be_late_is_refused_before_his_prefill_and_known_when_he_comes_back(
    tmp_path: Path, closing: list[Daemon]
) -> None:
    """Prefill takes 0.6 s a prompt, and the limit is 2 s: of ten at once some wait and are too late."""
    daemon = await started(tmp_path, GPU, WEAK, slo(2, 0.2), blocks=400)
    closing.append(daemon)
    async with clients(daemon) as session:
        before = await unit_prompt_tokens(daemon)
        answers = await asyncio.gather(*(post(session, number) for number in range(10)))
        refused = [number for number, (status, _, _) in enumerate(answers) if status == 429]
        served = [float(headers["x-syshax-predicted-ttft-ms"]) for status, headers, _ in answers if status == 200]
        assert len(served) >= 2 and len(refused) >= 4, answers
        prefilled = await unit_prompt_tokens(daemon) - before
        assert prefilled < (len(served) + 1) * PROMPT, answers  # the refused have cost no prefill
        # While the unit is idle who comes too late is served all the same; while it is busy he is refused at once.
        late = {"x-stainless-retry-count": "1"}
        assert (await post(session, refused[0], late))[0] == 200
        others = [asyncio.ensure_future(post(session, number)) for number in range(20, 24)]
        while (await daemon.status())["queued"] < 1:
            await asyncio.sleep(0.01)
        status, headers, data = await post(session, refused[1], late)
        assert status == 429 and data["error"]["code"] == "refuse_late" and int(headers["retry-after-ms"]) >= 100
        await asyncio.gather(*others)
        assert (await decisions(session))["refuse", "refuse_late"] >= 1


async def unit_prompt_tokens(daemon: Daemon) -> float:
    """Prompt tokens that the accelerator unit has computed."""
    url = next(one["url"] for one in (await daemon.status())["units"] if one["name"] == "gpu")
    key = (daemon.folder / "state/units/gpu").read_text().strip()
    headers = {"Authorization": f"Bearer {key}"}
    async with aiohttp.ClientSession(headers=headers) as session, session.get(url + "/metrics") as answer:
        found = re.search(r"vllm:prompt_tokens_total\S* (\S+)", await answer.text())
    assert found is not None
    return float(found.group(1))


async def long_answer(session: aiohttp.ClientSession, number: int, tokens: int) -> None:
    prompt = encode(f"{number:04}" + "x" * 56)
    body = {"model": MODEL, "prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
    async with session.post("/v1/completions", json=body) as answer:
        data = await answer.json()
        assert answer.status == 200, data
        assert data["choices"][0]["text"] == text_after(prompt, tokens)


@pytest.mark.timeout(180)
async def test_victims_go_when_kv_is_short_and_return_when_a_limit_would_break(
    tmp_path: Path, closing: list[Daemon]
) -> None:
    law = (0.040, 0.0005, 0.0001, 0.0)
    daemon = await started(tmp_path, law, law, slo(60, 5.0), blocks=60)
    closing.append(daemon)
    async with clients(daemon) as session:
        lengths = [300, 300, *[120] * 6]  # the first two are the first victims, and outlive the others
        answers = asyncio.gather(*(long_answer(session, number, tokens) for number, tokens in enumerate(lengths)))
        try:
            await daemon.until(lambda: daemon.output.count(b"cpu keeps the request's promise") >= 2, 60)
            daemon.config["scheduler"]["slo"] = slo(60, 0.001)  # which no unit keeps: whoever can goes back
            daemon.write()
            daemon.signal(HUP)
            await asyncio.wait_for(answers, 90)
        finally:
            answers.cancel()
        counted = await decisions(session)
        assert counted["move", "kv_pressure"] >= 2 and counted["move", "return"] >= 1, counted
        await daemon.until(lambda: b"would miss the request's target and gpu has room again" in daemon.output, 30)
        async with session.get("/metrics") as answer:
            text = await answer.text()
        assert re.search(r'syshax_handoffs_total\{kind="return",result="ok"\} [1-9]', text)
