"""One machine for the whole tier: the package's life, from installation to removal, in the order of the files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from testbed.machine import STUB, Machine, at_work, base_root, make_repository
from testbed.processes import wait_for
from testbed.unit_image import unit_archive


@pytest.fixture(scope="session")
def repository() -> Path:
    """Two releases of the package, built from this tree, in a dnf repository."""
    return make_repository(base_root())


@pytest.fixture(scope="session")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root of a unit's image with sysinfer inside."""
    return unit_archive(tmp_path_factory.mktemp("image"))


@pytest.fixture(scope="session")
def fresh(repository: Path, archive: Path) -> Iterator[Machine]:
    """A booted machine that has never heard of sysHAX."""
    machine = Machine(f"syshax-test-{os.getpid()}", base_root(), repository, archive.parent)
    try:
        machine.run(f"dnf -q -y install {STUB}")
        yield machine
    finally:
        machine.close()


@pytest.fixture
def machine(fresh: Machine) -> Machine:
    """The same with the package's first release installed and the service at work."""
    if fresh.run("rpm -q sysHAX", check=False).returncode != 0:
        fresh.run("dnf -q -y install sysHAX-0.3.0-1.ci")
    if fresh.show("syshaxd", "ActiveState") != "active":
        fresh.run("systemctl reset-failed; systemctl start syshaxd")
    wait_for("both units and the split", lambda: at_work(fresh), 60)
    return fresh
