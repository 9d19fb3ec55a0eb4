"""The beat beside the steps: while a step is long, or none is made, tickets are published and freed, and the stats page
is true."""

from __future__ import annotations

import logging
import threading

from syshax_handoff.saving import Saver
from syshax_kernels.kernel_errors import KernelError
from syshax_vllm.stats_counts import StatsCounts

log = logging.getLogger("vllm.syshax")

BEAT_S = 0.25
SEAL_S = 0.005  # between two looks whether the last copy of an ended request is sealed


class Heart:
    """A thread that does what must not wait for the end of a step."""

    def __init__(self, saver: Saver[str], pages: StatsCounts) -> None:
        self._saver, self._pages = saver, pages
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="syshax-beat", daemon=True)
        self._thread.start()

    def _beat(self) -> None:
        while not self._closed.wait(SEAL_S if self._saver.ending.wait(BEAT_S) else 0.0):
            try:
                self._saver.publish_sealed()
                self._saver.beat(self._pages.page())
            except KernelError as err:
                log.error("no stats page and no freed tickets between steps: %s", err)
                return

    def close(self) -> None:
        self._closed.set()
        self._thread.join()
