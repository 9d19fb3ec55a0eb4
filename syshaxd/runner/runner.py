"""The Runner: makes streams, executes the Scheduler's moves, gives up legs on units that are gone."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from syshaxd.admission.queue import RequestQueue
from syshaxd.config.types import Config
from syshaxd.errors import ControlError
from syshaxd.log import Log
from syshaxd.metrics import MetricsService
from syshaxd.model.plan import Move
from syshaxd.model.ports import Snapshots, Units
from syshaxd.scheduler import Scheduler
from syshaxd.tasks import TaskSet
from syshaxd.unitclient import UnitClient

from .client_request import ClientRequest
from .ledger import InFlightLedger
from .services import Services
from .stream import Stream
from .suspicions import Suspicions
from .timeline import Timelines

CLOSE_TIMEOUT = 5.0  # seconds for aborts still under way at the end


class Runner:
    """One per daemon. Engine calls `tick` in its scheduling cycle (every 50 ms or so) and `close` at the end."""

    def __init__(
        self,
        client: UnitClient,
        units: Units,
        snapshots: Snapshots,
        scheduler: Scheduler,
        metrics: MetricsService,
        ledger: InFlightLedger,
        config: Config,
    ) -> None:
        self.config = config
        self.ending = False
        self._log = Log("runner")
        self._tasks = TaskSet("runner", self._task_failed)
        self._queue = RequestQueue(ledger.per_client)
        self._timelines = Timelines()
        self._streams: dict[str, Stream] = {}
        self._busy = asyncio.Event()  # while there are streams
        self._services = Services(
            client,
            units,
            snapshots,
            scheduler,
            metrics,
            ledger,
            self,
            self._tasks,
            self._queue,
            Suspicions(),
            self._log,
        )

    def reconfigure(self, config: Config) -> None:
        """New limits hold for what begins now; the Scheduler is told by Engine."""
        self.config = config

    def submit(self, request: ClientRequest) -> Stream:
        """A stream for a checked request; the caller opens it and always closes it through `finish`."""
        info = request.info
        if info.request_id in self._streams:  # two clients chose the same id: units must not confuse them
            info = replace(info, request_id=f"{info.request_id}-{secrets.token_hex(4)}")
            request = replace(request, info=info)
        stream = Stream(self._services, request, self._timelines.begin(info.request_id, request.arrived))
        self._streams[info.request_id] = stream
        self._busy.set()
        return stream

    async def finish(self, stream: Stream, status: int) -> None:
        """Ends a stream, however it went."""
        try:
            await stream.close(status)
        finally:
            self._streams.pop(stream.entry.info.request_id, None)
            if not self._streams:
                self._busy.clear()

    async def busy(self) -> None:
        """Until there is a stream: without one, cycles would only cost."""
        await self._busy.wait()

    def __len__(self) -> int:
        return len(self._streams)

    def tick(self) -> None:
        """One scheduling cycle: legs on lost units are given up, moves begin, the queue's head asks again."""
        views = {view.name: view for view in self._services.units.views()}
        for stream in tuple(self._streams.values()):
            stream.unit_gone(views.get(stream.entry.unit))
        if self._streams:
            for move in self._services.scheduler.moves(self._services.snapshots.snapshot()):
                self._begin(move)
        self._queue.changed()

    def _begin(self, move: Move) -> None:
        stream = self._streams.get(move.request_id)
        if stream is None:
            return
        refusal = stream.request_move(move)
        self._services.metrics.decided("move", move.reason.code)
        if refusal is not None:
            self._services.metrics.stays(refusal)
            return
        self._log.info("moving a request", request_id=move.request_id, unit=move.target, reason=move.reason.text)

    def explain(self, request_id: str) -> Mapping[str, Any]:
        """The timeline of a request, running or among the last ended ones."""
        timeline = self._timelines.find(request_id)
        if timeline is None:
            raise ControlError(404, f"no request {request_id} among the last ones; ids are in x-request-id and the log")
        return timeline.as_json()

    async def drain(self, timeout: float) -> int:
        """Waits for the streams in flight to end; returns how many are left. The conductor admits no more."""
        loop = asyncio.get_running_loop()
        until = loop.time() + timeout
        while self._streams and loop.time() < until:
            await asyncio.sleep(0.02)
        return len(self._streams)

    def go_down(self) -> None:
        """Gives every stream up: each ends with an error event. For the end of a drain that took too long."""
        self.ending = True
        for stream in tuple(self._streams.values()):
            stream.go_down()
        self._queue.changed()

    async def close(self) -> None:
        """Waits for aborts under way, then ends them."""
        await self._tasks.settle(CLOSE_TIMEOUT)
        await self._tasks.close(CLOSE_TIMEOUT)

    def _task_failed(self, name: str, error: BaseException) -> None:
        self._log.error("a task failed", task=name, error=error)
