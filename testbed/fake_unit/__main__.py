"""`python -m testbed.fake_unit --port 0 --name x`; prints `READY <port>` once it listens."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal

from aiohttp import web

from .engine import Engine, Law
from .faults import KNOWN, Faults
from .server import Server
from .tickets import pool_of


def arguments() -> argparse.Namespace:
    """The command line. Unknown options are taken and ignored, as a unit started by a recipe may get more."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--name", default="fake")
    parser.add_argument("--model", default="fake-model")
    parser.add_argument("--max-model-len", type=int, default=8192)
    parser.add_argument("--kv-blocks", type=int, default=4096)
    parser.add_argument("--block-size", type=int, default=16)
    parser.add_argument("--max-num-seqs", type=int, default=256)
    parser.add_argument("--law", default="0,0,0,0", help="w0,w1,w2,w3 in seconds")
    parser.add_argument("--api-key", default="")
    parser.add_argument("--fault", action="append", default=[], help=f"NAME[=JSON]: {', '.join(KNOWN)}")
    return parser.parse_known_args()[0]


async def orphaned() -> None:
    """Returns when the process that started this one is gone: a test that was killed leaves nothing behind."""
    parent = os.getppid()
    while os.getppid() == parent:
        await asyncio.sleep(1.0)


async def main() -> None:
    """Serves until SIGTERM."""
    args, faults = arguments(), Faults()
    for text in args.fault:
        faults.parse(text)
    w0, w1, w2, w3 = (float(part) for part in args.law.split(","))
    law = Law(w0, w1, w2, w3, args.kv_blocks, args.block_size, args.max_num_seqs)
    engine = Engine(law, pool_of(os.environ), faults)
    server = Server(engine, faults, args.name, args.model, args.max_model_len, args.api_key)
    runner = web.AppRunner(server.app(), access_log=None, handle_signals=False)
    await runner.setup()
    site = web.TCPSite(runner, args.host, args.port)
    await site.start()
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, lambda: None if faults.on("ignore_sigterm") else stop.set())
    steps = asyncio.ensure_future(engine.run())
    print(f"READY {runner.addresses[0][1]}", flush=True)
    ends = {asyncio.ensure_future(stop.wait()), asyncio.ensure_future(orphaned()), steps}
    await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
    if steps.done():
        steps.result()
    for task in ends:
        task.cancel()
    await runner.cleanup()


if __name__ == "__main__":
    asyncio.run(main())
