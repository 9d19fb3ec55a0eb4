"""The image of a unit, made here: Debian's Python and numpy out of the tests' root, and sysinfer on top."""

from __future__ import annotations

from pathlib import Path

import tokenizers

from .machine import base_root
from .processes import ROOT, run

UNIT_IMAGE = "localhost/syshax-sysinfer:1"
LEFT_OUT = (
    "./boot", "./dev/*", "./media", "./mnt", "./opt", "./proc/*", "./run/*", "./srv", "./sys/*", "./tmp/*", "./var",
    "./usr/include", "./usr/libexec", "./usr/sbin", "./usr/share", "./usr/lib/systemd", "./usr/lib/podman",
    "./usr/lib/rpm", "./usr/lib/python3/dist-packages/dnf", "./usr/bin/docker*", "./usr/bin/containerd*",
    "./usr/bin/podman*", "./usr/bin/perl*", "./usr/bin/ctr", "./usr/bin/dnet", "./usr/lib/file", "./usr/lib/*/libicu*",
    "./usr/lib/*/perl*", "./usr/lib/*/systemd", "*/__pycache__",
)  # fmt: skip


def unit_archive(folder: Path) -> Path:
    """A tar archive of the image's root, below `folder`."""
    archive = folder / "unit.tar"
    excluded = [f"--exclude={path}" for path in LEFT_OUT]
    run("tar", "-C", base_root(), *excluded, "-cf", archive, ".")
    site = Path(tokenizers.__file__).parents[1]  # Debian has no package of it
    ours = ("sysinfer", "syshax_contract", "syshax_handoff", "syshax_kernels")
    for folder, packages in ((ROOT / "kernels/python", ours), (site, ("tokenizers",))):
        to = "--transform=s,^,./usr/lib/python3/dist-packages/,"
        run("tar", "-C", folder, "--exclude=__pycache__", to, "-rf", archive, *packages)
    return archive
