"""A client's request while it runs: its sequences in the engine and the outputs that come back."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Callable

from syshax_contract.transfer import HandoffParams
from sysinfer.engine import Abort, Add, Command
from sysinfer.engine_errors import RequestError
from sysinfer.output import Output
from sysinfer.sampling import SamplingParams
from sysinfer.sequence import Sequence as Seq
from sysinfer.server.requests import choice_seed

MAX_SEQUENCES = 1024  # in the engine, waiting ones included


class ClientGone(Exception):
    """The client closed its connection; nobody reads what would come."""


@dataclass(frozen=True)
class Part:
    """An output and the choice of the request that it belongs to."""

    index: int
    output: Output


class Call:
    """One request's sequences. Written and read on the event loop."""

    def __init__(
        self, request_id: str, contexts: Sequence[list[int]], keys: Sequence[int], alive: Callable[[], bool]
    ) -> None:
        self.request_id = request_id
        self.contexts = contexts  # of each choice
        self.keys = dict(zip(keys, range(len(keys))))
        self.alive = alive
        self.open = set(keys)
        self._parts: list[Part] = []
        self._news = asyncio.Event()
        self._gone = False

    def push(self, output: Output) -> None:
        self._parts.append(Part(self.keys[output.key], output))
        if output.finish is not None:
            self.open.discard(output.key)
        self._news.set()

    def leave(self) -> None:
        """The client is gone: whoever waits for parts is told."""
        self._gone = True
        self._news.set()

    async def parts(self) -> list[Part]:
        """The parts that have come since; empty once every sequence has ended. Ends within the engine's own limits:
        each sequence ends by length, stop, abort, or with the engine."""
        while not self._parts and self.open and not self._gone:
            self._news.clear()
            await self._news.wait()
        if self._gone:
            raise ClientGone
        parts, self._parts = self._parts, []
        return parts


class Calls:
    """All calls of the server; the only way to the engine."""

    def __init__(self, put: Callable[[Command], bool]) -> None:
        self._put = put
        self._keys = itertools.count()
        self._calls: dict[int, Call] = {}  # by sequence key

    @property
    def n_sequences(self) -> int:
        return len(self._calls)

    def start(
        self, request_id: str, contexts: Sequence[list[int]], params: Sequence[SamplingParams], n: int,
        handoff: HandoffParams, alive: Callable[[], bool],
    ) -> Call:  # fmt: skip
        """Queues `n` sequences for each context. RequestError 429 when too much is waiting already."""
        if len(self._calls) + len(contexts) * n > MAX_SEQUENCES:
            raise RequestError(f"{len(self._calls)} sequences are waiting or running; try again later", 429)
        every = [c for c in contexts for _ in range(n)]
        keys = [next(self._keys) for _ in every]
        sequences = tuple(
            Seq(
                key,
                request_id,
                i,
                list(tokens),
                len(tokens),
                _of_choice(params[i // n], i % n),
                handoff,
                time.monotonic(),
            )
            for i, (key, tokens) in enumerate(zip(keys, every))
        )
        call = Call(request_id, every, keys, alive)
        if not self._put(Add(sequences)):
            raise RequestError("the engine's queue is full; try again later", 429)
        self._calls.update((key, call) for key in keys)
        return call

    def dispatch(self, outputs: Sequence[Output]) -> None:
        """Takes the outputs of a step, on the event loop."""
        for output in outputs:
            call = self._calls.get(output.key)
            if call is not None:
                call.push(output)
                if output.finish is not None:
                    del self._calls[output.key]

    def close(self, call: Call) -> None:
        """Ends what is still running of a call that nobody reads any more."""
        if call.open:
            self._put(Abort((), publish=False, keys=tuple(call.open)))
            for key in call.open:
                self._calls.pop(key, None)
            call.open.clear()

    def abort(self, request_ids: tuple[str, ...], discard: tuple[bytes, ...]) -> None:
        """Abort by id: the streams end with finish reason abort, tickets are published; but those named are freed."""
        if not self._put(Abort(request_ids, publish=True, discard=discard)):
            raise RequestError("the engine's queue is full; try again later", 429)

    def drop_gone(self) -> None:
        """Ends the calls whose client has closed the connection; run this some times a second."""
        for call in {id(c): c for c in self._calls.values()}.values():
            if not call.alive():
                call.leave()


def _of_choice(params: SamplingParams, index: int) -> SamplingParams:
    return replace(params, seed=choice_seed(params.seed, index)) if index else params
