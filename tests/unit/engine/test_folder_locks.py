"""One daemon a folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from syshaxd.engine.folder_locks import FolderLocks
from syshaxd.errors import SysHaxError


async def test_a_folder_is_held_by_one_daemon_until_it_lets_go(tmp_path: Path) -> None:
    folders = {"state_dir": str(tmp_path / "state"), "pd.pool_dir": str(tmp_path / "pool")}
    first, second = FolderLocks(), FolderLocks()
    first.take(folders)
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "pool")
    with pytest.raises(SysHaxError, match=r"pd\.pool_dir: another daemon uses .*link"):
        second.take({"state_dir": str(tmp_path / "other"), "pd.pool_dir": str(link)})
    third = FolderLocks()
    third.take({"state_dir": str(tmp_path / "other")})  # what the refused one had taken is free again
    await first.release()
    second.take(folders)
    await second.release()
    await third.release()
    assert list((tmp_path / "pool").iterdir()) == [], "nothing is left in it"


async def test_a_folder_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SysHaxError, match="state_dir: cannot use .*: Not a directory"):
        FolderLocks().take({"state_dir": str(tmp_path / "file" / "state")})
