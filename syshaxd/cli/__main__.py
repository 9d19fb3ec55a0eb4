"""`python3 -m syshaxd.cli`: the same as `syshax`."""

from __future__ import annotations

import sys

from . import main

if __name__ == "__main__":
    sys.exit(main())
