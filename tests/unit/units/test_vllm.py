"""How vLLM is started: flags, old flags, the user's own connector, environment."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from syshaxd.config.types import CpuConfig, UnitConfig
from syshaxd.errors import BackendError
from syshaxd.model.unit import Role
from syshaxd.supervisor.binding.binding_plan import Binding
from syshaxd.supervisor.recipes import digest, launch_spec
from syshaxd.units import SYSINFER, VLLM, Surroundings
from syshaxd.units.vllm import NIXL, POOL
from syshaxd.units.vllm_flags import translate

UNIT = UnitConfig(name="cpu", role=Role.CPU, kind="vllm", model_path="/models/m", python="/opt/vllm/bin/python")
AROUND = Surroundings(
    "m", "/dev/shm/syshax", 1 << 20, Binding("cpu"), 4711, "/state/units/cpu",
    {"PATH": "/bin", "PYTHONPATH": "/usr/lib/syshax/vendor"}, "s3cret", plugin_dir="/opt/plugin",
)  # fmt: skip


def test_command() -> None:
    spec = launch_spec(replace(UNIT, max_model_len=2048, extra_args=("--dtype=half",)), AROUND)
    assert spec.argv == (
        *("/opt/vllm/bin/python", "-m", "syshax_vllm.serve", "--model", "/models/m", "--served-model-name", "m"),
        *("--host", "127.0.0.1", "--port", "4711", "--max-model-len", "2048"),
        *("--kv-transfer-config", json.dumps(POOL), "--dtype=half"),
    )
    assert "s3cret" not in " ".join(spec.argv)


def test_environment() -> None:
    env = launch_spec(replace(UNIT, env={"VLLM_CPU_KVCACHE_SPACE": "8"}, cpu=CpuConfig(threads=3)), AROUND).env
    assert env["VLLM_API_KEY"] == "s3cret"
    assert env["PYTHONPATH"] == "/opt/plugin", "the daemon's own packages are for another Python"
    assert env["VLLM_CPU_KVCACHE_SPACE"] == "8"
    assert (env["VLLM_CPU_OMP_THREADS_BIND"], env["OMP_NUM_THREADS"]) == ("nobind", "3")
    assert env["SYSHAX_POOL_NAME"] == "cpu.pool"
    assert "s3cret" not in repr(AROUND)


def test_without_a_pool_there_is_no_connector_of_ours() -> None:
    around = replace(AROUND, pool_bytes=0)
    assert "--kv-transfer-config" not in launch_spec(UNIT, around).argv
    own = replace(UNIT, extra_args=("--kv-transfer-config", '{"kv_connector":"NixlConnector"}'))
    assert '{"kv_connector":"NixlConnector"}' in launch_spec(own, around).argv


@pytest.mark.parametrize(
    "words",
    [
        ("--swap_space=16",), ("--swap-space", "16"), ("--preemption_mode=swap",), ("--preemption-mode", "swap"),
        ("--enable-auto-pd-offload",), ("--device", "cpu"), ("--num-scheduler-steps=8",),
    ],
)  # fmt: skip
def test_old_flags_go_with_a_note(words: tuple[str, ...]) -> None:
    found = translate(("--seed", "1", *words, "--dtype=half"), on_cpu=True)
    assert found.arguments == ("--seed", "1", "--dtype=half")
    assert len(found.notes) == 1 and " ".join(words) in found.notes[0]


def test_block_size_on_a_cpu() -> None:
    assert translate(("--block_size=16",), on_cpu=True).arguments == ("--block-size=32",)
    assert translate(("--block_size=16",), on_cpu=False).arguments == ("--block_size=16",)
    assert translate(("--block-size", "64"), on_cpu=True).arguments == ("--block-size", "64")
    unit = replace(UNIT, block_size=16)
    assert "--block-size 32" in " ".join(launch_spec(unit, AROUND).argv)
    assert VLLM.notes(unit) != () and VLLM.notes(replace(unit, block_size=64)) == ()


def test_the_users_connector_stays_beside_ours() -> None:
    mine = '{"kv_connector":"OffloadingConnector","kv_role":"kv_both"}'
    argv = launch_spec(replace(UNIT, extra_args=("--kv_transfer_config", mine)), AROUND).argv
    assert argv.count("--kv-transfer-config") == 1
    both = json.loads(argv[argv.index("--kv-transfer-config") + 1])
    assert both["kv_connector"] == "MultiConnector"
    assert both["kv_connector_extra_config"]["connectors"] == [POOL, json.loads(mine)]
    with pytest.raises(BackendError, match="no JSON"):
        launch_spec(replace(UNIT, extra_args=("--kv-transfer-config", "{oops")), AROUND)


def test_nixl_in_place_of_the_pool() -> None:
    around = replace(AROUND, transport="nixl", side_channel_host="10.0.0.1", side_channel_port=5600)
    spec = launch_spec(UNIT, around)
    config = json.loads(spec.argv[spec.argv.index("--kv-transfer-config") + 1])
    assert config == {**NIXL, "kv_buffer_device": "cpu"}
    assert spec.env["VLLM_NIXL_SIDE_CHANNEL_HOST"] == "10.0.0.1" and spec.env["VLLM_NIXL_SIDE_CHANNEL_PORT"] == "5600"
    assert "SYSHAX_POOL_NAME" not in spec.env and VLLM.pool_file(UNIT, around) == ""
    assert digest(UNIT, around) != digest(UNIT, AROUND)
    on_gpu = launch_spec(replace(UNIT, accelerator="nvidia"), around).argv
    assert json.loads(on_gpu[on_gpu.index("--kv-transfer-config") + 1]) == NIXL, "vLLM knows the device"


def test_users_own_words_go_over_ours_with_nixl() -> None:
    own = replace(UNIT, extra_args=("--kv-transfer-config", '{"kv_role":"kv_producer","kv_ip":"10.0.0.1"}'))
    argv = launch_spec(own, replace(AROUND, transport="nixl")).argv
    config = json.loads(argv[argv.index("--kv-transfer-config") + 1])
    assert (config["kv_connector"], config["kv_role"], config["kv_ip"]) == ("NixlConnector", "kv_producer", "10.0.0.1")


def test_with_nixl_only_vllm_hands_over() -> None:
    around = replace(AROUND, transport="nixl")
    sysinfer = replace(UNIT, kind="sysinfer")
    assert not SYSINFER.uses_nixl(around) and SYSINFER.pool_file(sysinfer, around) == ""
    assert VLLM.uses_nixl(around), "an external one is taken to have been started so"
