"""The package as a file: rpmlint has nothing to say that packaging/rpm/rpmlintrc does not answer."""

from __future__ import annotations

from pathlib import Path

import pytest

from testbed.processes import run

pytestmark = pytest.mark.timeout(60, func_only=True)  # building the packages is not counted


def test_rpmlint_is_silent(repository: Path) -> None:
    package = next(path for path in repository.glob("sysHAX-*-1.ci.*.rpm") if ".src." not in path.name)
    report = run("rpmlint", "-r", "packaging/rpm/rpmlintrc", package).stdout
    assert "0 errors, 0 warnings" in report, report
