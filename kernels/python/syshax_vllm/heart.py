"""The beat of an idle unit: its engine makes no steps, but somebody must free tickets and say that it lives."""

from __future__ import annotations

import logging
import threading

from syshax_handoff.saving import Saver
from syshax_kernels.errors import KernelError

log = logging.getLogger("vllm.syshax")

IDLE_BEAT_S = 0.25


class Heart:
    """A thread that repeats the last stats page."""

    def __init__(self, saver: Saver[str]) -> None:
        self._saver = saver
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="syshax-beat", daemon=True)
        self._thread.start()

    def _beat(self) -> None:
        while not self._closed.wait(IDLE_BEAT_S):
            try:
                self._saver.beat()
            except KernelError as err:
                log.error("no stats page and no freed tickets while this unit idles: %s", err)
                return

    def close(self) -> None:
        self._closed.set()
        self._thread.join()
