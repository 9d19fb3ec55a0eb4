"""One vLLM engine driven by JSON lines: run by the Python that has vLLM, asked by tests.vllm.breadth.engine.

    PYTHONPATH=kernels/python PYTHON tests/vllm/breadth/engine_main.py '{"model": FOLDER, ...}'

The engine core runs in this process (its workers do not), so that what the connector still holds can be told.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"


class Engine:
    """vLLM's offline engine, stepped by hand."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        from vllm import LLM

        self.llm = LLM(disable_log_stats=False, **arguments)
        self.engine = self.llm.llm_engine
        self.core = self.engine.engine_core.engine_core
        self._requests = 0

    def generate(self, prompts: list[list[int]], max_tokens: int, params: list[Any], abort: list[Any]) -> Any:
        """Greedy tokens and finish reasons. `params`: kv_transfer_params.syshax; `abort`: after how many tokens."""
        from vllm import SamplingParams

        keys, limits = [], {}
        for ids, mine, limit in zip(prompts, params, abort):
            self._requests += 1
            extra = {"kv_transfer_params": {"syshax": mine}} if mine is not None else None
            wanted = SamplingParams(max_tokens=max_tokens, temperature=0, ignore_eos=True, extra_args=extra)
            key = f"r{self._requests}"
            self.engine.add_request(key, {"prompt_token_ids": ids}, wanted)
            keys.append(key)
            limits[key] = limit
        found = self._run(limits)
        self._settle()
        return [found.get(key, [[], "abort"]) for key in keys]

    def _run(self, limits: dict[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        while self.engine.has_unfinished_requests():
            for output in self.engine.step():
                choice = output.outputs[0]
                found[output.request_id] = [list(choice.token_ids), choice.finish_reason]
            for key, limit in list(limits.items()):
                if limit is not None and len(found.get(key, [[]])[0]) >= limit:
                    del limits[key]
                    self.engine.abort_request([key])
        return found

    def _settle(self) -> None:
        """Steps until finished requests have given back their blocks."""
        for _ in range(1000):
            if not self.core.scheduler.has_requests():
                return
            self.engine.engine_core.get_output()
        raise RuntimeError("requests are left")

    def held(self) -> dict[str, int]:
        """What the connector and the scheduler still hold; all zero where nothing leaks."""
        connector = self.core.scheduler.connector
        side = next(c for c in getattr(connector, "_connectors", [connector]) if hasattr(c, "_scheduler"))._scheduler
        pool = self.core.scheduler.kv_cache_manager.block_pool
        info = side._saver._outbox.info()
        side._saver._outbox.reap()
        return {
            "requests": len(side._requests), "ending": len(side._ending), "left": len(side._left),
            "blocks": pool.num_gpu_blocks - 1 - pool.get_num_free_blocks(),
            "tickets": info.n_tickets - side._saver._outbox.info().tickets_free,
        }  # fmt: skip

    def counts(self) -> dict[str, float]:
        """Sums of the counters, by name."""
        from prometheus_client import REGISTRY

        samples = [sample for metric in REGISTRY.collect() for sample in metric.samples]
        return {f"{s.name}{s.labels}": s.value for s in samples if s.name.endswith("_total")}


def main() -> None:
    """Answers each line with a line."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # vLLM prints
    engine = Engine(json.loads(sys.argv[1]))
    print(json.dumps("ready"), file=out, flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        answer = getattr(engine, order.pop("do"))(**order)
        print(json.dumps(answer), file=out, flush=True)


if __name__ == "__main__":
    main()
