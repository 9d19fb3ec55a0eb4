"""The shared object itself: what it exports and needs, every instruction set of both architectures against the oracle
(aarch64 under qemu-user), sanitizers, and a C program that uses the ABI."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from syshax_kernels.library import Library

pytestmark = pytest.mark.timeout(300)  # builds of whole variants

ROOT = Path(__file__).resolve().parents[2]
KERNELS = ROOT / "kernels"
CROSS = "aarch64-linux-gnu-"
GLIBC_FLOOR = (2, 34)  # openEuler 22.03 and everything newer
ISA_FOLDERS = {"x86_64": ["avx2", "avx512"], "aarch64": ["neon", "i8mm", "sve"]}


def run(command: list[str], env: dict[str, str] | None = None) -> str:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env)
    assert done.returncode == 0, f"{command} failed with {done.returncode}:\n{done.stdout[-4000:]}"
    return done.stdout


def make(*variables: str) -> Path:
    """Builds the library and its test programs; returns the folder with the output."""
    run(["make", "-s", "-j2", "-C", str(KERNELS), "tests", *variables])
    arch = "aarch64" if any(CROSS in v for v in variables) else os.uname().machine
    variant = next((v.split("=")[1] for v in variables if v.startswith("VARIANT=")), "plain")
    return ROOT / "build" / "kernels" / f"{arch}-{variant}"


def need(*programs: str) -> None:
    missing = [p for p in programs if shutil.which(p) is None]
    if missing:
        pytest.skip(f"{missing} not found: apt-get install g++-aarch64-linux-gnu qemu-user-static")


@pytest.fixture(scope="module")
def plain() -> Path:
    return make()


@pytest.fixture(scope="module")
def aarch64() -> Path:
    need(f"{CROSS}g++", "qemu-aarch64-static")
    return make(f"CROSS={CROSS}")


def emulated(folder: Path, cpu: str, program: str) -> list[str]:
    return ["qemu-aarch64-static", "-L", "/usr/aarch64-linux-gnu", "-cpu", cpu, str(folder / "tests" / program)]


def digests(output: str) -> dict[str, str]:
    return dict(re.findall(r"^(\w+): \d+ cases agree with the oracle, packed weights (\w+)$", output, re.M))


def test_only_the_abi_is_exported() -> None:
    names = run(["nm", "-D", "--defined-only", str(Library().path)]).split("\n")
    assert {line.split()[-1][:3] for line in names if line} == {"sx_"}


def test_it_needs_no_newer_glibc_than_stated_and_no_cxx_runtime() -> None:
    dynamic = run(["objdump", "-p", str(Library().path)])
    assert "libstdc++" not in dynamic and "libgomp" not in dynamic
    versions = {tuple(map(int, v.split("."))) for v in re.findall(r"GLIBC_(\d+\.\d+)", dynamic)}
    assert max(versions) <= GLIBC_FLOOR
    # The unwinder's newest entry point would tie the library to the glibc of the build machine.
    assert "_dl_find_object" not in run(["nm", "-D", str(Library().path)])


@pytest.mark.parametrize("arch", sorted(ISA_FOLDERS))
def test_isa_files_define_their_table_only(arch: str, request: pytest.FixtureRequest) -> None:
    """A weak symbol compiled for AVX-512 could be the one that the rest of the program is linked with."""
    if arch != os.uname().machine and arch != "aarch64":
        pytest.skip(f"no cross build from {os.uname().machine} to {arch}")
    folder = request.getfixturevalue("plain" if arch == os.uname().machine else "aarch64")
    for isa in ISA_FOLDERS[arch]:
        objects = list((folder / "src" / isa).glob("*.o"))
        assert objects
        for path in objects:
            symbols = [line.split() for line in run(["nm", "-C", "-g", str(path)]).splitlines()]
            assert [s[1:] for s in symbols if s[-2] != "U"] == [["D", f"sx::{isa}_ops"]]
            assert {s[-1] for s in symbols if s[-2] == "U"} <= {"memcpy", "memset", "_GLOBAL_OFFSET_TABLE_"}


def test_a_c_program_uses_the_abi(plain: Path) -> None:
    assert run([str(plain / "tests" / "abi")]) == "ok\n"


def test_every_isa_of_this_machine_agrees_with_the_oracle(plain: Path) -> None:
    assert "scalar" in digests(run([str(plain / "tests" / "ops_check"), "600", "7"]))


@pytest.mark.parametrize("cpu,isas", [("Nehalem", {"scalar"}), ("Haswell", {"scalar", "avx2"})])
def test_older_x86_runs_what_it_has(plain: Path, cpu: str, isas: set[str]) -> None:
    if os.uname().machine != "x86_64":
        pytest.skip("this machine is no x86")
    need("qemu-x86_64-static")
    seen = digests(run(["qemu-x86_64-static", "-cpu", cpu, str(plain / "tests" / "ops_check"), "60"]))
    assert set(seen) == isas


@pytest.mark.parametrize(
    "cpu,isas",
    [
        ("cortex-a53", {"scalar"}),
        ("cortex-a76", {"scalar", "neon"}),  # what a Kunpeng 920 offers
        ("max,sve-max-vq=1", {"scalar", "neon", "i8mm", "sve"}),
        ("max,sve-max-vq=2", {"scalar", "neon", "i8mm", "sve"}),
        ("max,sve-max-vq=4", {"scalar", "neon", "i8mm", "sve"}),
        ("max,sve-max-vq=8", {"scalar", "neon", "i8mm", "sve"}),
    ],
)
def test_aarch64_agrees_with_the_oracle_on_the_same_packed_bytes(
    plain: Path, aarch64: Path, cpu: str, isas: set[str]
) -> None:
    arguments = ["120", "3"]
    seen = digests(run(emulated(aarch64, cpu, "ops_check") + arguments))
    here = digests(run([str(plain / "tests" / "ops_check")] + arguments))
    assert set(seen) == isas
    assert set(seen.values()) == set(here.values()) and len(set(seen.values())) == 1


def test_the_c_program_runs_on_aarch64(aarch64: Path) -> None:
    assert run(emulated(aarch64, "max", "abi")) == "ok\n"


def test_sanitizers_find_nothing() -> None:
    folder = make("VARIANT=asan")
    assert digests(run([str(folder / "tests" / "ops_check"), "150", "5"]))
    assert run([str(folder / "tests" / "abi")]) == "ok\n"


def test_thread_sanitizer_finds_no_race_in_the_team() -> None:
    """Its waiting, barriers and turns, with 1 to 16 threads; the kernels themselves share nothing else."""
    run(["make", "-s", "-C", str(KERNELS), "tests", "PART=team", "VARIANT=tsan"])
    folder = ROOT / "build" / "kernels" / f"{os.uname().machine}-tsan-team"
    assert run([str(folder / "tests" / "team_stress")]) == "ok\n"


@pytest.mark.parametrize("name,expected", [("scalar", "scalar\n"), ("vax", "UnsupportedError")])
def test_syshax_isa_forces_the_instruction_set(name: str, expected: str) -> None:
    code = (
        "from syshax_kernels.context import Context\n"
        "try: print(Context().describe().isa)\n"
        "except Exception as err: print(type(err).__name__)\n"
    )
    path = str(KERNELS / "python")
    environment = {**os.environ, "SYSHAX_ISA": name, "PYTHONPATH": path}
    assert run([sys.executable, "-c", code], env=environment).strip() == expected.strip()
