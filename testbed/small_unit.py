"""The smallest unit that a supervisor can look after: one generation at a time, misbehaving as its flags say.

What it does while it runs is steered by files in --steer: `stall` (holds requests, makes no token), `sick` (/health
fails), `mute` (answers /health, generates nothing).
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import struct
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from syshaxd.monitor.statspage import OFFSET, Page, encode


class State:
    """What all handler threads share."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.steps = 0
        self.running = 0
        self.ready_at = time.monotonic() + options.slow_start
        self.lock = threading.Lock()
        self.secret = Path(options.api_key_file).read_text(encoding="ascii").strip() if options.api_key_file else ""

    def steered(self, name: str) -> bool:
        return bool(self.options.steer) and (Path(self.options.steer) / name).exists()

    def count(self, running: int, steps: int) -> None:
        with self.lock:
            self.running += running
            self.steps += steps
            self._write_page()

    def _write_page(self) -> None:
        folder = os.environ.get("SYSHAX_POOL_DIR")
        if not folder:
            return
        page = Page(
            size=120, format=1, sequence=self.steps, generation=1, time_ns=time.monotonic_ns(), running=self.running,
            waiting=0, kv_blocks_used=self.running, kv_blocks_total=100, kv_block_size=16, step_tokens=1, step_ns=1000,
            preemptions=0, prompt_tokens=self.steps, generation_tokens=self.steps, steps=self.steps,
            waiting_prompt_tokens=0, kv_tokens=0, pool_chunks_free=1, pool_chunks_total=1,
            max_num_seqs=0, max_step_tokens=0, crc=0,
        )  # fmt: skip
        with (Path(folder) / os.environ["SYSHAX_POOL_NAME"]).open("r+b") as file:
            file.truncate(2 * OFFSET)
            file.write(struct.pack("<16s4I", b"SXPOOL1", 1, 1, 64, 1))
            file.seek(OFFSET)
            file.write(encode(page))


class Handler(BaseHTTPRequestHandler):
    """The contract's calls that a supervisor makes."""

    state: State

    def do_GET(self) -> None:
        if self.path == "/health":
            loading = time.monotonic() < self.state.ready_at or self.state.steered("sick")
            self._answer(503 if loading else 200, {})
        elif self.path == "/v1/models":
            self._answer(200, {"data": [{"id": self.state.options.served, "max_model_len": 512}]})
        elif self.path == "/openapi.json":
            posts = ("/v1/completions", "/v1/chat/completions", "/v1/embeddings")
            self._answer(200, {"paths": {path: {"post": {}} for path in posts}})
        else:
            self._answer(404, {})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        if self.state.secret and self.headers.get("Authorization") != f"Bearer {self.state.secret}":
            return self._answer(401, {"error": {"message": "wrong key"}})
        self.state.count(running=1, steps=0)
        try:
            self._generate()
        finally:
            self.state.count(running=-1, steps=0)

    def _generate(self) -> None:
        while self.state.steered("stall"):
            time.sleep(0.01)
        if self.state.steered("mute"):
            return self._answer(500, {"error": {"message": "engine is dead"}})
        self.state.count(running=0, steps=2)
        if self.state.options.die_after and self.state.steps >= 2 * self.state.options.die_after:
            print("last words", flush=True)
            os._exit(7)
        usage = {"prompt_tokens": 1, "completion_tokens": 2}
        choice = {"index": 0, "text": "hi", "finish_reason": "length"}
        self._answer(200, {"object": "text_completion", "choices": [choice], "usage": usage})

    def _answer(self, status: int, body: Any) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--api-key-file", default="")
    parser.add_argument("--served", default="m")
    parser.add_argument("--steer", default="")
    parser.add_argument("--slow-start", type=float, default=0.0)
    parser.add_argument("--die-after", type=int, default=0, help="generations")
    parser.add_argument("--die-at-once", action="store_true")
    parser.add_argument("--hang-at-start", action="store_true")
    parser.add_argument("--ignore-sigterm", action="store_true")
    options = parser.parse_args()
    if options.ignore_sigterm:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    print("loading weights", flush=True)
    if options.die_at_once:
        sys.exit("cannot read the model")
    if options.hang_at_start:
        signal.pause()
    Handler.state = State(options)
    ThreadingHTTPServer(("127.0.0.1", options.port), Handler).serve_forever()


if __name__ == "__main__":
    main()
