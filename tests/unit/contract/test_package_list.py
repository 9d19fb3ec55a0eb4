"""What is installed: every package of the daemon, and the one that it shares with its units."""

from __future__ import annotations

import configparser
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]


def test_setup_lists_every_package_of_the_daemon() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    folders = [path.parent.relative_to(ROOT) for path in ROOT.glob("syshaxd/**/__init__.py")]
    found = sorted(folder.as_posix().replace("/", ".") for folder in folders)
    listed = setup["options"]["packages"].split()
    assert listed == [*found, "syshax_contract"], "setup.cfg [options] packages"


def test_units_elsewhere_get_the_contract_too() -> None:
    """`make plugin` copies packages by name; the rest of the project copies or mounts the whole folder."""
    assert "syshax_contract syshax_kernels syshax_handoff syshax_vllm" in (ROOT / "Makefile").read_text()
