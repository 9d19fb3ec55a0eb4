"""What a unit is started with, and what makes it another unit."""

from __future__ import annotations

import importlib.metadata
import stat
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from syshaxd.config.types import HealthConfig, UnitConfig
from syshaxd.errors import BackendError
from syshaxd.model.unit import BackendKind, Role
from syshaxd.supervisor import files, recipes
from syshaxd.supervisor.binding.binding_plan import Binding
from syshaxd.supervisor.recipes import digest, launch_spec
from syshaxd.units import OPENAI, SYSINFER, Surroundings

ROOT = Path(__file__).resolve().parents[3]
UNIT = UnitConfig(name="cpu", role=Role.CPU, model_path="/models/tiny.gguf", env={"OMP_NUM_THREADS": "4"})
AROUND = Surroundings(
    model_name="tiny",
    pool_dir="/dev/shm/syshax",
    pool_bytes=1024,
    binding=Binding("cpu", cpus=frozenset({0, 1, 2})),
    port=4711,
    secret_file="/var/lib/syshax/units/cpu",
    environ={"PATH": "/bin", "LC_ALL": "C", "NOTIFY_SOCKET": "/run/x", "AWS_SECRET_ACCESS_KEY": "x", "LISTEN_FDS": "1"},
)


def test_sysinfer() -> None:
    spec = launch_spec(replace(UNIT, max_model_len=2048, extra_args=("--verbose",)), AROUND)
    assert spec.argv == (
        *(sys.executable, "-m", "sysinfer", "serve", "/models/tiny.gguf", "--served-model-name", "tiny"),
        *("--host", "127.0.0.1", "--port", "4711", "--cpus", "0-2"),
        *("--api-key-file", "/var/lib/syshax/units/cpu", "--max-model-len", "2048", "--verbose"),
    )
    assert spec.url == "http://127.0.0.1:4711"
    assert spec.cpus == {0, 1, 2}


def test_environment_is_scrubbed() -> None:
    assert launch_spec(UNIT, AROUND).env == {
        "PATH": "/bin",
        "LC_ALL": "C",
        "SYSHAX_POOL_DIR": "/dev/shm/syshax",
        "SYSHAX_POOL_NAME": "cpu.pool",
        "SYSHAX_POOL_BYTES": "1024",
        "GOMP_CPU_AFFINITY": "0-2",
        "CUSTOM_CPU_AFFINITY": "0-2",
        "OMP_NUM_THREADS": "3",  # as many as CPUs: the plan has taken the variable over
    }


def test_own_command_with_places_to_fill_in() -> None:
    unit = replace(UNIT, command=("serve", "--port={port}", "{model}", "{odd}"))
    assert launch_spec(unit, AROUND).argv == ("serve", "--port=4711", "/models/tiny.gguf", "{odd}")


def test_a_kind_without_a_recipe_says_what_to_do() -> None:
    unit = replace(UNIT, kind="openai")
    with pytest.raises(BackendError, match=r"no built-in way to start kind openai .*; give units\.cpu\.command"):
        launch_spec(unit, AROUND)


def test_external_and_other_servers_have_no_outbox() -> None:
    external = replace(UNIT, backend=BackendKind.EXTERNAL, url="http://other:8000/")
    assert launch_spec(external, AROUND).url == "http://other:8000"
    assert SYSINFER.pool_file(external, AROUND) == ""
    assert OPENAI.pool_file(replace(UNIT, kind="openai"), AROUND) == ""
    assert SYSINFER.pool_file(UNIT, AROUND) == "/dev/shm/syshax/cpu.pool"


def test_identity_ignores_what_is_chosen_at_run_time() -> None:
    same = replace(AROUND, port=1, secret_file="/elsewhere", environ={"PATH": "/usr/bin"})
    assert digest(UNIT, AROUND) == digest(UNIT, same)
    assert digest(UNIT, AROUND) == digest(replace(UNIT, health=HealthConfig(interval=9.0)), AROUND)
    for changed in (
        replace(UNIT, model_path="/models/other.gguf"),
        replace(UNIT, env={}),
        replace(UNIT, port=8000),
        replace(UNIT, quantize="q4_0"),
        replace(UNIT, extra_args=("--x",)),
    ):
        assert digest(changed, AROUND) != digest(UNIT, AROUND)
    assert digest(UNIT, replace(AROUND, binding=Binding("cpu", cpus=frozenset({0})))) != digest(UNIT, AROUND)


def test_secret_is_made_once_and_is_private(tmp_path: Path) -> None:
    path = files.ensure_secret(str(tmp_path), "cpu")
    first = files.read_secret(str(path))
    assert len(first) == 64 and stat.S_IMODE(path.stat().st_mode) == 0o600
    assert files.read_secret(str(files.ensure_secret(str(tmp_path), "cpu"))) == first
    path.chmod(0o644)
    assert files.read_secret(str(files.ensure_secret(str(tmp_path), "cpu"))) != first, "it may have been read"


def test_a_missing_key_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="cannot read the API key file .*missing: No such file"):
        files.read_secret(str(tmp_path / "missing"))


def test_outbox_is_new_at_every_start(tmp_path: Path) -> None:
    path = tmp_path / "pool" / "cpu.pool"
    files.make_outbox(str(path))
    inode = path.stat().st_ino
    path.write_bytes(b"old")
    with path.open("rb"):  # a consumer keeps the old one
        files.make_outbox(str(path))
        assert path.stat().st_size == 0 and path.stat().st_ino != inode
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    files.remove_outbox(str(path))
    files.remove_outbox(str(path))
    assert not path.exists()


def test_our_packages_say_which_contract_they_speak() -> None:
    (found,) = importlib.metadata.distributions(name="syshax-units", path=[str(ROOT / "kernels/python")])
    assert found.version == recipes.CONTRACT
    assert "version 1" in (ROOT / "docs/kv-handoff.md").read_text(encoding="utf-8").splitlines()[0]
