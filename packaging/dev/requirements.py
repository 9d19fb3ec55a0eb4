"""Print the requirements that setup.cfg declares, one a line: `requirements.py [EXTRA ...]`."""

from __future__ import annotations

import configparser
import sys
from pathlib import Path

SETUP_CFG = Path(__file__).resolve().parents[2] / "setup.cfg"


def requirements(extras: list[str]) -> list[str]:
    """The run-time requirements and those of the named extras, in order, without repeats."""
    config = configparser.ConfigParser(interpolation=None)
    config.read(SETUP_CFG, encoding="utf-8")
    declared = config["options.extras_require"]
    unknown = [extra for extra in extras if extra not in declared]
    if unknown:
        raise SystemExit(f"setup.cfg has no extra {', '.join(unknown)}; it has {', '.join(declared)}")
    texts = [config["options"]["install_requires"], *(declared[extra] for extra in extras)]
    lines = [line.strip() for text in texts for line in text.splitlines()]
    return list(dict.fromkeys(line for line in lines if line and not line.startswith("#")))


if __name__ == "__main__":
    print("\n".join(requirements(sys.argv[1:])))
