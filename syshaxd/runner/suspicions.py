"""Who has cast suspicion on a unit: no input of a client does so twice."""

from __future__ import annotations

from collections import OrderedDict

KEPT = 4096


class Suspicions:
    """Inputs, by the digest of their bodies, under which a unit failed. One a Runner."""

    def __init__(self) -> None:
        self._seen: "OrderedDict[tuple[bytes, str], None]" = OrderedDict()

    def first(self, digest: bytes, unit: str) -> bool:
        """Whether that unit fails under this input for the first time, as far as is remembered."""
        key = (digest, unit)
        known = key in self._seen
        self._seen[key] = None
        self._seen.move_to_end(key)
        if len(self._seen) > KEPT:
            self._seen.popitem(last=False)
        return not known
