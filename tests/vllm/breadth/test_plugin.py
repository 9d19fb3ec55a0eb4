"""What the plugin says to units that can't take part, and both engines' name for one model. No engine is started."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from syshax_kernels.pool_types import model_id
from testbed import twin_models as twins
from tests.vllm.breadth.engine import PYTHON, ROOT

pytestmark = [
    pytest.mark.skipif(not PYTHON.exists(), reason="no environment with vLLM: run `make vllm-env`"),
    pytest.mark.timeout(600),
]
ENV = {**os.environ, "PYTHONPATH": str(ROOT / "kernels/python"), "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
MLA = {
    "architectures": ["DeepseekV2ForCausalLM"], "model_type": "deepseek_v2", "kv_lora_rank": 32, "q_lora_rank": None,
    "qk_nope_head_dim": 32, "qk_rope_head_dim": 16, "v_head_dim": 32,
}  # fmt: skip
MAMBA = {
    "architectures": ["MambaForCausalLM"], "model_type": "mamba", "state_size": 8, "conv_kernel": 4, "expand": 2,
    "hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 256, "time_step_rank": 4,
}  # fmt: skip
CASES: dict[str, dict[str, Any]] = {
    "llama": {}, "mla": MLA, "mamba": MAMBA, "hybrid": {}, "sliding": {},
    "llama3": {"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                                "original_max_position_embeddings": 512}},
    "linear": {"rope_scaling": {"type": "linear", "factor": 4.0}},
}  # fmt: skip


def run(script: str, folder: Path, *more: str) -> Any:
    """The JSON that a script under tests/vllm prints in vLLM's Python."""
    command = [str(PYTHON), str(ROOT / "tests/vllm/breadth" / script), str(folder), *more]
    done = subprocess.run(command, env=ENV, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def said() -> Iterator[dict[str, str]]:
    """What the connector raised, by case."""
    with tempfile.TemporaryDirectory(prefix="syshax-refusals-") as name:
        folder = Path(name)
        for case, more in CASES.items():
            (folder / case).mkdir()
            (folder / case / "config.json").write_text(json.dumps({**twins.config("llama"), **more}))
        yield run("refusals_main.py", folder)


@pytest.mark.parametrize(
    "case, reason",
    [
        ("mla", "latent attention"), ("mamba", "model type 'mamba'"), ("hybrid", "MambaSpec"),
        ("sliding", "SlidingWindowSpec"), ("fp8", "KV cache of type fp8"), ("pipeline", "pipeline parallelism"),
        ("0.22.9", "knows vLLM 0.23.0 to 0.32.0, this is 0.22.9"), ("0.33.0", "this is 0.33.0"),
        ("soon", "this is soon"),
    ],
)  # fmt: skip
def test_refused_with_the_reason(said: dict[str, str], case: str, reason: str) -> None:
    assert reason in said[case]


def test_a_plain_model_is_taken(said: dict[str, str]) -> None:
    assert said["llama"] == ""


@pytest.mark.parametrize("case, scaling", [("llama", None), ("llama3", ("llama3", 8.0)), ("linear", ("linear", 4.0))])
def test_both_engines_have_one_name_for_a_model(said: dict[str, str], case: str, scaling: Any) -> None:
    """sysinfer gives `scaling` so (sysinfer.config), from a GGUF file's numbers; the plugin from config.json."""
    found = twins.config("llama")
    layers, heads, kv = (found[f"num_{name}"] for name in ("hidden_layers", "attention_heads", "key_value_heads"))
    rope = None if scaling is None else dict(zip(("rope_type", "factor"), scaling))
    mine = model_id("llama", layers, heads, kv, twins.HEAD_SIZE, found["hidden_size"], 10000.0, rope, ["a", "b"])
    assert said[f"digest of {case}"] == mine.hex()


def test_random_lives_leave_nothing_behind(tmp_path: Path) -> None:
    """Arrivals with every wish, preemption, aborts and failing loads at any time (machine_main.py)."""
    seen = run("machine_main.py", tmp_path, "40")
    wanted = {"writes", "asked again", "preempted", "loaded", "load failed", "prefill legs"}
    assert wanted | {f"ended {state}" for state in ("running", "loading", "preempted", "waiting")} <= set(seen), seen
