"""The PD self-check on two real engines with the demo model: it agrees, it disagrees, and it comes again."""

from __future__ import annotations

import asyncio
import importlib.util
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from testbed.daemon_fake_units import KILL, ROOT, TERM, Daemon, clients

MODEL_FILE = ROOT / "kernels/demo/syshax-demo.gguf"
CORE = ROOT / "kernels/python/syshax_kernels/libsyshax_kernels.so"
MISSING = [name for name in ("numpy", "tokenizers", "jinja2") if importlib.util.find_spec(name) is None]
NEEDED = f"needs make native and the sysinfer extra ({', '.join(MISSING)})"
pytestmark = [pytest.mark.timeout(240), pytest.mark.skipif(not CORE.exists() or bool(MISSING), reason=NEEDED)]


@pytest.fixture
async def daemon(tmp_path: Path) -> AsyncIterator[Daemon]:
    made = Daemon(tmp_path)
    made.config["models"] = {"default": "demo", "path": str(MODEL_FILE)}
    made.config["units"] = {"gpu": _unit("accelerator"), "cpu": _unit("cpu")}
    made.config["pd"].update(pool_size="64MiB", self_check=True, precision="exact")
    made.config["log"] = {"level": "debug"}
    yield made
    await made.close()


def _unit(role: str, **more: Any) -> dict[str, Any]:
    return {"role": role, "kind": "sysinfer", "cpu": {"affinity": "none"}, "restart": {"backoff": "100ms"}, **more}


async def _start(daemon: Daemon) -> None:
    path = f"{ROOT}{os.pathsep}{ROOT / 'kernels/python'}"
    await daemon.start(PYTHONPATH=path, OMP_NUM_THREADS="1")
    await daemon.ready()


async def _judged(daemon: Daemon) -> Any:
    """The PD status once the check is over."""
    while True:
        pd = (await daemon.status())["pd"]
        if pd["enabled"] or pd["reason"] not in ("self-check under way", "no pair of units is ready for a split"):
            return pd
        await asyncio.sleep(0.02)


async def test_equal_engines_agree_exactly_and_again_after_a_replacement(daemon: Daemon) -> None:
    await _start(daemon)
    assert await _judged(daemon) == {"enabled": True, "reason": ""}
    async with clients(daemon) as session:
        async with session.get("/metrics") as answer:
            assert "syshax_pd_enabled 1.0" in await answer.text()
        cpu = await daemon.unit("cpu")
        os.kill(cpu["pid"], KILL)
        while (await daemon.status())["pd"]["enabled"]:
            await asyncio.sleep(0.01)
        assert (await _judged(daemon))["enabled"]
        assert (await daemon.unit("cpu"))["epoch"] == 2
    daemon.signal(TERM)
    assert await daemon.ended() == 0
    assert daemon.output.count(b"the split was tried: it agrees") == 2
    assert b" loaded=" in daemon.output and b" top1=1 " in daemon.output


async def test_other_arithmetic_is_found_out(daemon: Daemon) -> None:
    daemon.config["units"]["cpu"]["quantize"] = "q4_0"
    daemon.config["pd"].update(precision="mixed", top1_agreement=0.05, max_logprob_diff=0.0001)
    await _start(daemon)
    pd = await _judged(daemon)
    assert not pd["enabled"] and pd["reason"].startswith("self-check gpu>cpu: median difference"), pd
    async with clients(daemon) as session:
        async with session.get("/metrics") as answer:
            assert "syshax_pd_enabled 0.0" in await answer.text()
    daemon.config["pd"].update(max_logprob_diff=5)
    daemon.write()
    assert (await daemon.control("POST", "reload"))[0] == 200
    assert (await _judged(daemon))["enabled"], "the new limits allow it"
    assert await daemon.control("POST", "pd/check") == (200, {"enabled": True, "reason": ""})
    daemon.signal(TERM)
    assert await daemon.ended() == 0
    assert b"the split was tried: PD is off" in daemon.output
