"""The configuration of a fresh checkout, for `make run`: the demo model on two units of this host's CPUs."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from syshaxd.topology import format_cpu_list

DEMO_NAME = "syshax-demo"
DEMO_MODEL = Path("kernels/demo/syshax-demo.gguf")
_SOCKET_LIMIT = 100  # bytes of a unix socket's path; the kernel takes 107

_TEXT = """\
# What `syshax run` does where there is no configuration: two sysinfer units on CPUs of their own.
services:
  conductor: {{host: 127.0.0.1, port: 8010}}
models: {{default: {name}, path: "{model}"}}
units:
  gpu: {{role: accelerator, kind: sysinfer, cpu: {{affinity: {first}}}}}
  cpu: {{role: cpu, kind: sysinfer, cpu: {{affinity: {second}}}}}
{private}"""
_PRIVATE = """\
pd: {{pool_dir: "{pool}", pool_size: 128MiB}}
control_socket: "{socket}"
state_dir: "{state}"
"""


def embedded_default(root: Path, cpus: Sequence[int] | None = None) -> str:
    """YAML text. `root`: the checkout; `cpus`: those this process may use (default: its affinity).

    Everything it writes is private to the checkout: `.run`, and a folder on tmpfs named after it.
    """
    usable = sorted(os.sched_getaffinity(0) if cpus is None else cpus)
    half = (len(usable) + 1) // 2
    one = len(usable) < 2
    return _TEXT.format(
        name=DEMO_NAME,
        model=root / DEMO_MODEL,
        first="none" if one else f'"{format_cpu_list(usable[:half])}"',
        second="none" if one else f'"{format_cpu_list(usable[half:])}"',
        private=private_paths(root),
    )


def private_paths(root: Path) -> str:
    """YAML for a daemon that runs from a checkout, without rights to the system's folders and beside other daemons."""
    return _PRIVATE.format(pool=f"/dev/shm/{_private_name(root)}", socket=_socket(root), state=root / ".run" / "state")


def remove_private_pool(folder: str) -> None:
    """Removes the pool folder of a checkout's daemon, unless a unit still has its outbox there. The system's folder has
    another name and stays, for an adopted unit would keep the old one."""
    if os.path.basename(folder).startswith(_private_prefix()):
        with contextlib.suppress(OSError):
            os.rmdir(folder)


def _private_name(root: Path) -> str:
    return f"{_private_prefix()}{hashlib.sha256(os.fsencode(root)).hexdigest()[:8]}"


def _private_prefix() -> str:
    return f"syshax-{os.getuid()}-"


def _socket(root: Path) -> Path:
    near = root / ".run" / "control.sock"
    if len(os.fsencode(near)) <= _SOCKET_LIMIT:
        return near
    return Path("/tmp") / _private_name(root) / "control.sock"


def checkout() -> Path | None:
    """The checkout this package runs from, or None where it is installed."""
    root = Path(__file__).resolve().parents[2]
    return root if (root / "kernels" / "include").is_dir() else None
