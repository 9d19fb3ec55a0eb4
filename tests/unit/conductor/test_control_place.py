"""Where the control socket may be."""

from __future__ import annotations

from pathlib import Path

import pytest

from syshaxd.conductor.control import listen
from syshaxd.errors import SysHaxError


def test_a_symbolic_link_is_told_as_one(tmp_path: Path) -> None:
    (tmp_path / "control.sock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SysHaxError, match=r"control\.sock is a symbolic link; name the place itself"):
        listen(tmp_path / "control.sock")
    assert (tmp_path / "control.sock").is_symlink() and not (tmp_path / "elsewhere").exists()
