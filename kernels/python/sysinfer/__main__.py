"""`python -m sysinfer`: see `sysinfer.options` for the command line."""

from __future__ import annotations

import os
import sys

from sysinfer.engine_errors import SetupError
from sysinfer.env import read_environment
from sysinfer.options import parse_options


def main() -> int:
    """Exit status: 0 after a clean stop, 1 when the start or the engine failed, 2 for a wrong command line."""
    try:
        options = parse_options(sys.argv[1:], read_environment(os.environ))
    except SetupError as err:
        print(f"sysinfer: {err}", file=sys.stderr)
        return 2
    from sysinfer.server.run import serve  # after the arguments: --help and errors need none of it

    return serve(options)


if __name__ == "__main__":
    sys.exit(main())
