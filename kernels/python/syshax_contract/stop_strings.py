"""Stop strings: where a text that comes in pieces ends, whichever side makes it."""

from __future__ import annotations

from collections.abc import Sequence


class _Progress:
    """How much of a stop string the end of the text spells: Knuth, Morris, Pratt (1977), the table made as far as it is
    needed. So a character costs the same however long stop string and text are."""

    def __init__(self, stop: str) -> None:
        self.stop = stop
        self._length = 0  # the longest beginning of `stop` that the text ends with
        self._border = [0, 0]  # of the beginning of each length: its longest proper beginning that also ends it

    @property
    def open(self) -> int:
        """Characters at the end of the text that begin the stop string and don't finish it."""
        return self._length if self._length < len(self.stop) else self._border[self._length]

    def first_end(self, text: str) -> int | None:
        """Reads on; how many characters of `text` the stop string's first end needs. None: it does not end in it."""
        if not self._length and self.stop[0] not in text:
            return None
        first = None
        for count, character in enumerate(text, 1):
            if self._push(character) and first is None:
                first = count
        return first

    def _push(self, character: str) -> bool:
        stop = self.stop
        while self._length and (self._length == len(stop) or stop[self._length] != character):
            self._length = self._border[self._length]
        if stop[self._length] == character:
            self._length += 1
            if self._length == len(self._border):
                self._extend()
        return self._length == len(stop)

    def _extend(self) -> None:
        last, border = self.stop[self._length - 1], self._border[self._length - 1]
        while border and self.stop[border] != last:
            border = self._border[border]
        self._border.append(border + 1 if self.stop[border] == last else 0)


class StopMatcher:
    """Lets text through up to the first stop string; holds back what may be the beginning of one.

    A stop string counts only when it ends in text that came while armed (vLLM's rule for `min_tokens`). Of several that
    end in one piece, the one that begins first counts.
    """

    def __init__(self, stops: Sequence[str], include: bool = False) -> None:
        self._stops = [_Progress(stop) for stop in stops if stop]
        self._include = include
        self._held = ""
        self.matched: str | None = None

    def feed(self, text: str, armed: bool = True) -> str:
        """Text that may be delivered now. After a match nothing more comes."""
        if not self._stops or self.matched is not None:
            return "" if self.matched is not None else text
        whole, old = self._held + text, len(self._held)
        hits: list[tuple[int, str]] = []
        for stop in self._stops:
            end = stop.first_end(text)
            if end is not None and armed:
                hits.append((old + end - len(stop.stop), stop.stop))
        if hits:
            start, self.matched = min(hits, key=lambda hit: hit[0])
            self._held = ""
            return whole[: start + len(self.matched)] if self._include else whole[:start]
        cut = len(whole) - max(stop.open for stop in self._stops)
        self._held = whole[cut:]
        return whole[:cut]

    def flush(self) -> str:
        """What is held back, when the text ends without a stop string."""
        held, self._held = self._held, ""
        return held
