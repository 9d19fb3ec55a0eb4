"""A unit image with stock vLLM for CPUs, made of Debian's Python and a copy of the environment under test: no registry.

There is no compiler in it, so units need TORCHDYNAMO_DISABLE=1 (vLLM compiles a piece of log-probabilities).
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from testbed.machine import BUILD, DEBIAN
from testbed.processes import run

IMAGE = "localhost/syshax-vllm-test:1"
PYTHON = "/opt/vllm/bin/python"  # inside
PACKAGES = "python3,libnuma1,libgomp1,libstdc++6"
WITHOUT = ("opt/vllm/lib/*/site-packages/triton",)  # a GB that vLLM for CPUs does without
CONFIG = "home = /usr/bin\ninclude-system-site-packages = false\n"


def make_root(environment: Path) -> Path:
    """The image's files. The environment comes in by hard links, so it costs no space."""
    root = BUILD / "vllm-image"
    if not (root / "done").exists():
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir(parents=True)
        sources = Path("/etc/apt/sources.list.d/debian.sources")
        options = ("--variant=minbase", "--mode=root", "--dpkgopt=path-exclude=/usr/share/locale/*")
        where = [sources] if sources.exists() else []
        run("mmdebstrap", "-q", *options, f"--include={PACKAGES}", DEBIAN, root / "root", *where, timeout=500)
        _add(environment, root / "root" / "opt" / "vllm")
        (root / "done").touch()
    return root / "root"


def _add(environment: Path, target: Path) -> None:
    version = "python%d.%d" % sys.version_info[:2]
    (target / "bin").mkdir(parents=True)
    (target / "bin" / "python").symlink_to(f"/usr/bin/{version}")
    (target / "pyvenv.cfg").write_text(CONFIG)
    packages = Path("lib", version, "site-packages")
    (target / packages).parent.mkdir(parents=True)
    subprocess.run(["cp", "-al", str(environment.resolve() / packages), str(target / packages)], check=True)
