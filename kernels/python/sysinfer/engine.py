"""The engine's thread: it alone owns the model and the KV cache; others reach it through a bounded queue."""

from __future__ import annotations

import logging
import queue
import threading
from dataclasses import dataclass
from typing import Callable, Optional, Union

from syshax_kernels.pool import UnitStats
from sysinfer.core import EngineCore
from sysinfer.handoff import SequenceSaver
from sysinfer.output import Output
from sysinfer.sequence import Sequence
from sysinfer.stats import EngineStats

log = logging.getLogger("sysinfer.engine")

MAX_COMMANDS = 4096
IDLE_BEAT_S = 0.25  # the stats page is renewed so often when there is nothing to do
TICKET_POLL_S = 0.001


@dataclass(frozen=True)
class Add:
    sequences: tuple[Sequence, ...]


@dataclass(frozen=True)
class Abort:
    request_ids: tuple[str, ...]
    publish: bool
    discard: tuple[bytes, ...] = ()  # tickets to free, after that
    keys: tuple[int, ...] = ()  # of sequences, beside those of the ids


@dataclass(frozen=True)
class Stop:
    pass


Command = Union[Add, Abort, Stop]
Deliver = Callable[[list[Output]], None]
Load = Callable[[], tuple[EngineCore, Optional[SequenceSaver]]]


class EngineThread:
    """Runs an EngineCore that `load` makes (in the thread, so that the server answers meanwhile).

    `deliver` gets the outputs of each step, `ended` is called once at the end with the error that ended it or None;
    both are called in the engine's thread. `ready` is set once the model is loaded.
    """

    def __init__(self, load: Load, stats: EngineStats, block_size: int, deliver: Deliver,
                 ready: Callable[[], None], ended: Callable[[BaseException | None], None]) -> None:  # fmt: skip
        self._load, self._stats, self._block_size = load, stats, block_size
        self._deliver, self._ready, self._ended = deliver, ready, ended
        self._commands: "queue.Queue[Command]" = queue.Queue(MAX_COMMANDS)
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._core: EngineCore | None = None
        self._saver: SequenceSaver | None = None

    def start(self) -> None:
        self._thread.start()

    def put(self, command: Command) -> bool:
        """Hands over a command; False when the queue is full."""
        try:
            self._commands.put_nowait(command)
        except queue.Full:
            return False
        return True

    def stop(self, timeout: float) -> bool:
        """Asks the thread to end; True when it did within `timeout` seconds."""
        self.put(Stop())
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        error: BaseException | None = None
        try:
            self._core, self._saver = self._load()
            self._beat(self._core)
            self._ready()
            self._loop(self._core)
        except Exception as err:  # the thread's top: told to the owner, who ends the process
            error = err
        finally:
            if self._core is not None:
                self._deliver(self._core.fail())
            if self._saver is not None:
                self._saver.close()
            self._ended(error)

    def _loop(self, core: EngineCore) -> None:
        while self._take_commands(core):
            outputs = core.step()
            if outputs:
                self._deliver(outputs)
            self._beat(core)

    def _take_commands(self, core: EngineCore) -> bool:
        """Obeys what has come, waiting for something when there is nothing to do; False to end."""
        wait = IDLE_BEAT_S if core.idle else TICKET_POLL_S if core.only_arriving else 0.0
        try:
            command = self._commands.get(timeout=wait) if wait else self._commands.get_nowait()
            while self._obey(core, command):
                command = self._commands.get_nowait()
        except queue.Empty:
            return True
        return False

    def _obey(self, core: EngineCore, command: Command) -> bool:
        if isinstance(command, Add):
            for seq in command.sequences:
                core.add(seq)
        elif isinstance(command, Abort):
            outputs = core.abort(command.request_ids, command.publish, command.keys)
            core.discard(command.discard)
            if outputs:
                self._deliver(outputs)
        return not isinstance(command, Stop)

    def _beat(self, core: EngineCore) -> None:
        """Renews the stats page that the daemon reads."""
        if self._saver is None:
            return
        stats = self._stats
        waiting_tokens, kv_tokens = core.queue_sizes()
        self._saver.beat(
            UnitStats(
                running=stats.running, waiting=stats.waiting, kv_blocks_used=stats.blocks_used,
                kv_blocks_total=stats.blocks_total, kv_block_size=self._block_size, step_tokens=stats.step_tokens,
                step_ns=stats.step_ns, preemptions=stats.preemptions, prompt_tokens=stats.prompt_tokens,
                generation_tokens=stats.generation_tokens, steps=stats.steps,
                waiting_prompt_tokens=waiting_tokens, kv_tokens=kv_tokens, max_num_seqs=core.max_num_seqs,
                max_step_tokens=core.max_step_tokens,
            )
        )  # fmt: skip
