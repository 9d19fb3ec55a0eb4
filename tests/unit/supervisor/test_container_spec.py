"""What the user's guides start by hand, as create requests and as command lines."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Dict

import pytest

from syshaxd.backends.container_spec import EngineKind, command_line, create_request
from syshaxd.config.types import ContainerConfig, UnitConfig
from syshaxd.model.unit import BackendKind, Role, UnitKind
from syshaxd.supervisor.binding.plan import Binding
from syshaxd.supervisor.container_spec import ascend_board
from syshaxd.supervisor.recipes import Surroundings, digest, launch_spec

GOLDEN = Path(__file__).with_name("containers.golden.json")
MODEL = "/models/DeepSeek-R1-Distill-Qwen-32B"
GPU = UnitConfig(
    name="gpu", role=Role.ACCELERATOR, kind=UnitKind.VLLM, backend=BackendKind.DOCKER, accelerator="nvidia",
    model_path=MODEL, served_name="ds-32b", port=8001, device_ids=("0", "1"), tensor_parallel_size=2,
    max_model_len=8192, block_size=16, extra_args=("--dtype=half", "--gpu-memory-utilization=0.8"),
    container=ContainerConfig(
        image="hub.oepkgs.net/neocopilot/syshax/syshax-vllm-gpu:0.2.1", name="vllm_gpu", ipc="shareable",
        shm_size=64 << 30,
    ),
)  # fmt: skip
CPU = UnitConfig(
    name="cpu", role=Role.CPU, kind=UnitKind.VLLM, backend=BackendKind.DOCKER, model_path=MODEL, served_name="ds-32b",
    port=8002, max_model_len=8192, block_size=16, quantize="q4_0", env={"NRC": "4"},
    container=ContainerConfig(
        image="hub.oepkgs.net/neocopilot/syshax/syshax-vllm-cpu:0.2.1", name="vllm_cpu", ipc="unit:gpu"
    ),
)  # fmt: skip
NPU = replace(
    GPU, name="npu", accelerator="ascend", backend=BackendKind.PODMAN,
    container=ContainerConfig(image="quay.io/ascend/vllm-ascend:v0.23.0", shm_size=16 << 30),
)  # fmt: skip
NODES = tuple(frozenset(range(first, first + 40)) for first in (0, 40, 80, 120))
BOUND = Binding("cpu", frozenset(range(160)), (0, 1, 2, 3), rank_cpus=NODES)
AROUND = Surroundings(
    model_name="ds-32b", pool_dir="/dev/shm/syshax", pool_bytes=1 << 30, binding=Binding("x"),
    secret_file="/var/lib/syshax/units/x", api_key="not to be shown", pool_group="987",
    plugin_dir="/usr/lib/syshax/python",
)  # fmt: skip


def _image(unit: UnitConfig, image: str) -> UnitConfig:
    return replace(unit, container=replace(unit.container, image=image))


CASES: Dict[str, Any] = {
    "NVIDIA A100 x2": (GPU, AROUND),
    "Ascend A2": (NPU, AROUND),
    "Ascend A3": (_image(NPU, "quay.io/ascend/vllm-ascend:v0.23.0-a3"), AROUND),
    "Ascend 300I": (_image(NPU, "quay.io/ascend/vllm-ascend:v0.23.0-310p"), AROUND),
    "CPU": (CPU, replace(AROUND, binding=BOUND, donor="4f5e")),
}


def requests() -> Dict[str, Any]:
    """All create requests; `python3 -m tests.unit.supervisor.test_container_spec` writes them anew."""
    return {
        f"{name}, {engine.value}": create_request(_spec(name), engine) for name in CASES for engine in EngineKind
    }


def _spec(name: str) -> Any:
    unit, around = CASES[name]
    return launch_spec(unit, around).container


def test_create_requests_are_the_recorded_ones() -> None:
    assert requests() == json.loads(GOLDEN.read_text(encoding="utf-8"))


def test_the_guides_gpu_line() -> None:
    line = command_line(_spec("NVIDIA A100 x2"), EngineKind.DOCKER)
    assert {"--name=vllm_gpu", "--ipc=shareable", f"--shm-size={64 << 30}b", '--gpus="device=0,1"'} <= set(line)
    assert "--publish=127.0.0.1:8001:8001" in line, "on loopback, where the guide publishes on all addresses"
    assert f"--volume={MODEL}:{MODEL}:ro" in line
    words = " ".join(line)
    assert f"serve {MODEL} --served-model-name ds-32b --host 0.0.0.0 --port 8001 --tensor-parallel-size 2" in words
    assert "--dtype=half --gpu-memory-utilization=0.8" in words


def test_all_gpus_as_in_the_guide() -> None:
    line = command_line(launch_spec(replace(GPU, device_ids=()), AROUND).container or _spec("CPU"), EngineKind.DOCKER)
    assert "--gpus=all" in line


def test_the_guides_cpu_line() -> None:
    line = command_line(_spec("CPU"), EngineKind.DOCKER)
    guide = (
        *("--name=vllm_cpu", "--ipc=container:4f5e", "--publish=127.0.0.1:8002:8002", "--env=INFERENCE_OP_MODE=fused"),
        *("--env=CUSTOM_CPU_AFFINITY=0-159", "--env=SYSHAX_QUANTIZE=q4_0", "--env=NRC=4"),
    )
    assert set(guide) <= set(line)
    assert "--privileged" not in line and "--cap-add=SYS_NICE" in line
    assert not [word for word in line if word.startswith("--shm-size")], "the /dev/shm is the donor's"


def test_the_guides_ascend_line() -> None:
    line = command_line(_spec("Ascend A2"), EngineKind.PODMAN)
    devices = ("davinci0", "davinci1", "davinci_manager", "devmm_svm", "hisi_hdc")
    assert {f"--device=/dev/{name}" for name in devices} <= set(line)
    mounts = ("/usr/local/dcmi", "/usr/local/Ascend/driver/lib64", "/usr/bin/hccn_tool", "/etc/ascend_install.info")
    assert {f"--volume={path}:{path}:ro" for path in mounts} <= set(line)
    assert "--env=ASCEND_RT_VISIBLE_DEVICES=0,1" in line


@pytest.mark.parametrize("engine", list(EngineKind))
def test_no_secret_in_a_command_line(engine: EngineKind) -> None:
    line = command_line(_spec("NVIDIA A100 x2"), engine)
    assert "--env=VLLM_API_KEY" in line and "not to be shown" not in " ".join(line)


def test_gpus_by_cdi_name_on_podman() -> None:
    assert create_request(_spec("NVIDIA A100 x2"), EngineKind.PODMAN)["devices"] == [
        {"path": "nvidia.com/gpu=0"}, {"path": "nvidia.com/gpu=1"},
    ]  # fmt: skip


@pytest.mark.parametrize(
    "image, soc, board",
    [("v:1", "auto", "a2"), ("v:1-a3-openeuler", "auto", "a3"), ("v:1-310p", "auto", "300i"), ("v:1", "a3", "a3")],
)
def test_board_by_tag_or_word(image: str, soc: str, board: str) -> None:
    assert ascend_board(replace(NPU, container=ContainerConfig(image=image, soc=soc))) == board


def test_own_mounts_take_the_place_of_ours_and_a_models_name_is_not_mounted() -> None:
    unit = replace(GPU, container=replace(GPU.container, mounts=(f"/data/ds:{MODEL}:ro", "/cache:/var/cache/vllm")))
    spec = launch_spec(unit, AROUND).container
    assert spec is not None
    mounts = [str(mount) for mount in spec.mounts]
    assert mounts[-2:] == [f"/data/ds:{MODEL}:ro", "/cache:/var/cache/vllm"]
    assert f"{MODEL}:{MODEL}:ro" not in mounts
    by_name = launch_spec(replace(GPU, model_path="Qwen/Qwen2.5-7B"), AROUND).container
    assert by_name is not None and not [mount for mount in by_name.mounts if "Qwen" in mount.source]


def test_on_the_hosts_network_nothing_is_published() -> None:
    unit = replace(GPU, container=replace(GPU.container, network="host"))
    spec = launch_spec(unit, AROUND).container
    assert spec is not None and spec.publish == ()
    assert spec.argv[spec.argv.index("--host") + 1] == "127.0.0.1"


def test_sysinfer_reads_its_secret_from_a_mounted_file() -> None:
    unit = replace(CPU, kind=UnitKind.SYSINFER, model_path="/models/tiny.gguf")
    spec = launch_spec(unit, AROUND).container
    assert spec is not None and spec.argv[:4] == ("python3", "-m", "sysinfer", "serve")
    assert "/var/lib/syshax/units/x:/var/lib/syshax/units/x:ro" in [str(mount) for mount in spec.mounts]
    assert "not to be shown" not in str(spec.env)


def test_identity_is_the_configurations_not_the_moments() -> None:
    later = replace(AROUND, port=4711, donor="other", api_key="another", plugin_dir="/elsewhere")
    assert digest(CPU, AROUND) == digest(CPU, later)
    assert digest(CPU, AROUND) != digest(_image(CPU, "x:2"), AROUND)


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(requests(), indent=1, sort_keys=True) + "\n", encoding="utf-8")
