"""The daemon's limit of open files."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import resource
from syshaxd.__main__ import MOST_DESCRIPTORS, raise_descriptor_limit
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
raise_descriptor_limit()
soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
print(soft == (MOST_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, MOST_DESCRIPTORS)))
"""


def test_the_soft_limit_is_raised_at_start() -> None:
    assert subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True).stdout == "True\n"
