"""Life of the process: listen, load, serve, stop."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import threading
import time
from typing import Callable

from aiohttp import web

from sysinfer.core import EngineCore
from sysinfer.engine import EngineThread
from sysinfer.engine_errors import SetupError
from sysinfer.handoff import SequenceSaver
from sysinfer.model_loading import Loaded, load, open_model
from sysinfer.options import Options
from sysinfer.output import Output
from sysinfer.server.app import Server
from sysinfer.server.calls import Calls
from sysinfer.server.frontend import Frontend
from sysinfer.server.metrics import scraper
from sysinfer.server.requests import Limits
from sysinfer.stats import EngineStats

log = logging.getLogger("sysinfer.server")

WATCH_S = 0.1  # how often connections of running requests are looked at
STOP_S = 1.5  # how long the engine may take to finish its step
WRITE_S = 0.005  # how long the engine waits for the loop where they share a CPU
CLOSE_S = 0.5  # how long clients may take to read what ends their streams


class Process:
    """Everything of one run of `sysinfer`."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._loop = asyncio.get_running_loop()
        self._server = Server(list(options.api_keys))
        self._stats = EngineStats()
        self._loaded: Loaded | None = None
        self._done: "asyncio.Future[BaseException | None]" = self._loop.create_future()
        self._engine = EngineThread(
            self._load, self._stats, options.sizing.block_size, self._deliver, self._on_ready, self._on_ended
        )
        self._calls = Calls(self._engine.put)
        self._url = ""
        self._crowded = len(os.sched_getaffinity(0)) <= options.threads
        self._written = threading.Event()

    async def run(self) -> None:
        """Serves until SIGTERM, SIGINT, or the engine's end; raises what ended the engine."""
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._end, None)
        runner = web.AppRunner(self._server.app(), access_log=None, handle_signals=False, auto_decompress=False)
        await runner.setup()
        watch = asyncio.create_task(self._watch(), name="client-watch")
        try:
            await self._listen(runner)
            self._engine.start()
            error = await self._done
        finally:
            await self._stop(runner, watch)
        if error is not None:
            raise error

    async def _listen(self, runner: web.AppRunner) -> None:
        site = web.TCPSite(runner, self._options.host, self._options.port, backlog=1024)
        try:
            await site.start()
        except OSError as err:
            raise SetupError(f"can't listen on {self._options.host}:{self._options.port}: {err.strerror}") from err
        host, port = runner.addresses[0][:2]
        self._url = f"http://{f'[{host}]' if ':' in host else host}:{port}"

    async def _watch(self) -> None:
        """Ends the requests of clients that left while nothing was being written to them."""
        while True:
            await asyncio.sleep(WATCH_S)
            self._calls.drop_gone()

    async def _stop(self, runner: web.AppRunner, watch: "asyncio.Task[None]") -> None:
        """Running requests get an error event, then the connections end."""
        watch.cancel()
        await asyncio.gather(watch, return_exceptions=True)
        if self._url and not await self._loop.run_in_executor(None, self._engine.stop, STOP_S):
            log.warning("the engine is still in a step; leaving it")
        try:
            await asyncio.wait_for(runner.cleanup(), CLOSE_S)
        except asyncio.TimeoutError:
            log.warning("some connections did not take their last bytes; leaving them")

    def _load(self) -> tuple[EngineCore, SequenceSaver | None]:
        self._loaded = load(open_model(self._options), self._options, self._stats)
        return self._loaded.core, self._loaded.saver

    def _deliver(self, outputs: list[Output]) -> None:
        """Hands outputs to the event loop, in the engine's thread.

        Where the kernels use every CPU of the process, the loop would get none until its time slice comes, and tokens
        would go out in bursts: the engine then lets it write before it goes on.
        """
        if not self._crowded:
            self._call(self._calls.dispatch, outputs)
            return
        self._written.clear()
        self._call(self._dispatch, outputs)
        self._written.wait(WRITE_S)

    def _dispatch(self, outputs: list[Output]) -> None:
        self._calls.dispatch(outputs)
        # Those who wait for outputs run in the loop's next round, before this.
        self._loop.call_soon(self._written.set)

    def _on_ready(self) -> None:
        self._call(self._ready)

    def _on_ended(self, error: BaseException | None) -> None:
        self._call(self._end, error)

    def _call(self, function: Callable[..., object], *arguments: object) -> None:
        """From the engine's thread to the loop, which may be gone already."""
        try:
            self._loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:
            log.debug("the event loop ended before the engine")

    def _end(self, error: BaseException | None) -> None:
        if not self._done.done():
            self._done.set_result(error)

    def _ready(self) -> None:
        """The model is loaded: take requests, and say so in one line."""
        loaded, options = self._loaded, self._options
        if loaded is None:
            return
        opened = loaded.opened
        limits = Limits(
            opened.config.vocab,
            loaded.sizes.max_model_len,
            opened.tokenizer.stops,
            options.temperature,
            options.max_tokens,
        )
        self._server.frontend = Frontend(
            options.served_name,
            opened.tokenizer,
            opened.template,
            limits,
            self._calls,
            int(time.time()),
            loaded.binding,
        )
        self._server.scrape = scraper(self._stats, options.served_name)
        print(f"sysinfer ready: {self._url} serves {options.served_name}: {loaded.summary}", flush=True)


async def _serve(options: Options) -> None:
    await Process(options).run()


def serve(options: Options) -> int:
    """Runs the server; the exit status of the process."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s")
    sys.setswitchinterval(0.0005)  # the engine's thread should get the interpreter soon after a step
    try:
        asyncio.run(_serve(options))
    except SetupError as err:
        print(f"sysinfer: {err}", file=sys.stderr)
        return 1
    except Exception:  # the top of the process: a defect, told with its trace
        log.exception("sysinfer ends after an error")
        return 1
    return 0
