"""What the user's guides start by hand, as create requests and as command lines."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from syshaxd.backends.container_spec import EngineKind, command_line, create_request
from syshaxd.config.types import ContainerConfig, UnitConfig
from syshaxd.model.unit import BackendKind, Role
from syshaxd.supervisor.binding.binding_plan import Binding
from syshaxd.supervisor.recipes import digest, launch_spec
from syshaxd.units import VLLM, Surroundings
from syshaxd.units.accelerators import ASCEND
from syshaxd.units.vllm import INSIDE, POOL

GOLDEN = Path(__file__).with_name("containers.golden.json")
MODEL = "/models/DeepSeek-R1-Distill-Qwen-32B"
GPU = UnitConfig(
    name="gpu", role=Role.ACCELERATOR, kind="vllm", backend=BackendKind.DOCKER, accelerator="nvidia",
    model_path=MODEL, served_name="ds-32b", port=8001, device_ids=("0", "1"), tensor_parallel_size=2,
    max_model_len=8192, block_size=16,
    extra_args=(
        "--dtype=half", "--swap_space=16", "--preemption_mode=swap", "--gpu_memory_utilization=0.8",
        "--enable-auto-pd-offload",
    ),
    container=ContainerConfig(
        image="hub.oepkgs.net/neocopilot/syshax/syshax-vllm-gpu:0.2.1", name="vllm_gpu", ipc="shareable",
        shm_size=64 << 30,
    ),
)  # fmt: skip
CPU = UnitConfig(
    name="cpu", role=Role.CPU, kind="vllm", backend=BackendKind.DOCKER, model_path=MODEL, served_name="ds-32b",
    port=8002, max_model_len=8192, block_size=16, quantize="q4_0", env={"NRC": "4"},
    extra_args=("--dtype=half", "--preemption_mode=swap", "--enable-auto-pd-offload"),
    container=ContainerConfig(
        image="hub.oepkgs.net/neocopilot/syshax/syshax-vllm-cpu:0.2.1", name="vllm_cpu", ipc="unit:gpu"
    ),
)  # fmt: skip
NPU = replace(
    GPU, name="npu", accelerator="ascend", backend=BackendKind.PODMAN,
    container=ContainerConfig(image="quay.io/ascend/vllm-ascend:v0.23.0", shm_size=16 << 30),
)  # fmt: skip
BOUND = Binding("cpu", frozenset(range(160)), (0, 1, 2, 3), rank_cpus=(frozenset(range(160)),))
AROUND = Surroundings(
    model_name="ds-32b", pool_dir="/dev/shm/syshax", pool_bytes=1 << 30, binding=Binding("x"),
    secret_file="/var/lib/syshax/units/x", api_key="not to be shown", pool_group="987",
    plugin_dir="/usr/lib/syshax/python",
)  # fmt: skip


def _image(unit: UnitConfig, image: str) -> UnitConfig:
    return replace(unit, container=replace(unit.container, image=image))


CASES: dict[str, Any] = {
    "NVIDIA A100 x2": (GPU, AROUND),
    "Ascend A2": (NPU, AROUND),
    "Ascend A3": (_image(NPU, "quay.io/ascend/vllm-ascend:v0.23.0-a3"), AROUND),
    "Ascend 300I": (_image(NPU, "quay.io/ascend/vllm-ascend:v0.23.0-310p"), AROUND),
    "CPU": (CPU, replace(AROUND, binding=BOUND, donor="4f5e")),
}


def requests() -> dict[str, Any]:
    """All create requests; `python3 -m tests.unit.supervisor.test_unit_container` writes them anew."""
    return {f"{name}, {engine.value}": create_request(_spec(name), engine) for name in CASES for engine in EngineKind}


def _spec(name: str) -> Any:
    unit, around = CASES[name]
    return launch_spec(unit, around).container


def test_create_requests_are_the_recorded_ones() -> None:
    assert requests() == json.loads(GOLDEN.read_text(encoding="utf-8"))


def _guide(line: str) -> tuple[str, ...]:
    """The flags of a guide's line, one spelling for all: `--name vllm_gpu` and `--name=vllm_gpu` are the same."""
    words = shlex.split(line)
    found: list[str] = []
    for word, value in zip(words, [*words[1:], "-"]):
        if word.startswith("-"):
            found.append(word if "=" in word or value.startswith("-") else f"{word}={value}")
    return tuple(found)


# Of the guides' `docker run` (their model folder is /models here): what we start instead. None: nothing.
ELSEWISE: Mapping[str, str | None] = {
    "-p=8001:8001": "--publish=127.0.0.1:8001:8001",  # loopback: clients come through the daemon's own port
    "-p=8002:8002": "--publish=127.0.0.1:8002:8002",
    "-v=/models:/models": f"--volume={MODEL}:{MODEL}:ro",
    "-w=/models": None,
    "-itd": "--detach",
    "-d": "--detach",
    "-it": None,
    "-itu=root": None,
    "--ipc=container:vllm_gpu": "--ipc=container:4f5e",  # by id: a new container of that name has another /dev/shm
    "--name=docker_name": "--name=syshax-npu",
    "--net=host": "--publish=127.0.0.1:8001:8001",
    "-v=/cache:/cache": None,  # of downloads; the model is mounted from its own path
}
GUIDE_GPU = """--name vllm_gpu --ipc="shareable" --shm-size=64g --gpus=all -p 8001:8001 -v /models:/models
    -w /models -itd"""
GUIDE_CPU = """--name vllm_cpu --ipc container:vllm_gpu --shm-size=64g --privileged -p 8002:8002
    -v /models:/models -w /models -itd"""
GUIDE_NPU = """--name "docker_name" --privileged -itu root -d --net=host --device=/dev/davinci0:/dev/davinci0
    --device=/dev/davinci1:/dev/davinci1 --device=/dev/davinci_manager:/dev/davinci_manager
    --device=/dev/devmm_svm:/dev/devmm_svm --device=/dev/hisi_hdc:/dev/hisi_hdc -v /usr/local/dcmi:/usr/local/dcmi
    -v /usr/local/bin/npu-smi:/usr/local/bin/npu-smi
    -v /usr/local/Ascend/driver/lib64/:/usr/local/Ascend/driver/lib64/
    -v /usr/local/Ascend/driver/version.info:/usr/local/Ascend/driver/version.info
    -v /usr/bin/hccn_tool:/usr/bin/hccn_tool
    -v /etc/ascend_install.info:/etc/ascend_install.info -v /cache:/cache -it"""
SERVE = f"""--served-model-name=ds-32b --host 0.0.0.0 --dtype=half --max_model_len=8192 --model {MODEL}"""
SERVE_GPU = f"{SERVE} --port 8001 --block_size=16 --tensor-parallel-size 2 --gpu_memory_utilization=0.8"


def _ours(flag: str) -> str | None:
    """What a flag of a guide is here; None: it is not needed."""
    if flag in ELSEWISE:
        return ELSEWISE[flag]
    name, _, value = flag.partition("=")
    source = value.partition(":")[0].rstrip("/")
    if name == "--shm-size":
        return f"--shm-size={int(value[:-1]) << 30}b"
    return {"-v": f"--volume={source}:{source}:ro", "--device": f"--device={source}"}.get(name, flag)


def _missing(guide: str, line: Sequence[str], but: Sequence[str] = ()) -> list[str]:
    """Flags of the guide's line that are neither in ours nor on a list of differences."""
    wanted = [_ours(flag) for flag in _guide(guide) if flag not in but]
    return [flag for flag in wanted if flag is not None and flag not in line]


def _served(line: Sequence[str]) -> list[str]:
    """vLLM's flags in a command line."""
    flags = _guide(" ".join(shlex.quote(word) for word in line[line.index(*INSIDE) + 1 :]))
    return [f"{name.replace('_', '-')}={value}" for name, _, value in (flag.partition("=") for flag in flags)]


def _expected(serve: str) -> list[str]:
    """The flags of a guide's `vllm serve`."""
    return _served((*INSIDE, *shlex.split(serve)))


def test_the_guides_gpu_line() -> None:
    unit = replace(GPU, device_ids=())
    line = command_line(launch_spec(unit, AROUND).container or _spec("CPU"), EngineKind.DOCKER)
    assert _missing(GUIDE_GPU, line) == []
    assert set(_expected(SERVE_GPU)) <= set(_served(line))
    gone = ("swap", "preemption", "offload")
    assert not [word for word in line if any(text in word for text in gone)], "today's vLLM refuses these"
    assert [note.split(":")[0] for note in VLLM.notes(unit)] == [
        "--swap_space=16", "--preemption_mode=swap", "--enable-auto-pd-offload",
    ]  # fmt: skip
    two = command_line(_spec("NVIDIA A100 x2"), EngineKind.DOCKER)
    assert '--gpus="device=0,1"' in two and _missing(GUIDE_GPU, two, ("--gpus=all",)) == []


def test_the_guides_cpu_line() -> None:
    line = command_line(_spec("CPU"), EngineKind.DOCKER)
    but = ("--privileged", "--shm-size=64g")  # the capability is enough; the /dev/shm is the donor's
    assert _missing(GUIDE_CPU, line, but) == []
    assert "--privileged" not in line and "--cap-add=SYS_NICE" in line
    assert not [word for word in line if word.startswith("--shm-size")]
    assert {
        *("--env=INFERENCE_OP_MODE=fused", "--env=CUSTOM_CPU_AFFINITY=0-159", "--env=SYSHAX_QUANTIZE=q4_0"),
        *("--env=NRC=4", "--env=OMP_NUM_THREADS=160"),
    } <= set(line)
    assert set(_expected(f"{SERVE} --port 8002 --block_size=32")) <= set(_served(line)), "blocks of CPUs: 32"


def test_the_guides_ascend_line() -> None:
    line = command_line(_spec("Ascend A2"), EngineKind.PODMAN)
    assert _missing(GUIDE_NPU, line, ("--privileged",)) == []
    assert "--env=ASCEND_RT_VISIBLE_DEVICES=0,1" in line
    assert not [word for word in line if "PYTHONPATH" in word], "CANN's own stays"


@pytest.mark.parametrize("name", list(CASES))
def test_the_plugin_goes_with_every_vllm(name: str) -> None:
    spec = _spec(name)
    assert spec.argv[:2] == ("python3", *INSIDE)
    assert "/usr/lib/syshax/python:/opt/syshax/python:ro" in [str(mount) for mount in spec.mounts]
    assert "/dev/shm/syshax:/dev/shm/syshax:z" in [str(mount) for mount in spec.mounts]
    assert spec.env["SYSHAX_POOL_DIR"] == "/dev/shm/syshax" and spec.env["VLLM_API_KEY"] == AROUND.api_key
    assert spec.argv[spec.argv.index("--kv-transfer-config") + 1] == json.dumps(POOL)
    assert [item.host for item in spec.publish] == ["127.0.0.1"], "nobody else reaches the scale-out endpoints"


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
    assert ASCEND.board(replace(NPU, container=ContainerConfig(image=image, soc=soc))) == board


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
    unit = replace(CPU, kind="sysinfer", model_path="/models/tiny.gguf")
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
