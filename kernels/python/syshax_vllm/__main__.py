"""`python3 FOLDER/syshax_vllm ARGUMENTS`: as `-m syshax_vllm.serve`, in a container whose image has a PYTHONPATH of its
own (CANN's for Ascend): that one is kept, ours goes before it, here and in vLLM's worker processes."""

from __future__ import annotations

import os
import sys
from pathlib import Path

FOLDER = str(Path(__file__).resolve().parents[1])
sys.path[0] = FOLDER  # in place of the package itself, whose modules would pass for top-level ones
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (FOLDER, os.environ.get("PYTHONPATH"))))

from syshax_vllm.serve import main  # noqa: E402

main()
