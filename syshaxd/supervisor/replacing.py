"""Which outdated units are replaced now: those that serve one by one, the others at once.

A unit that served and does not come back holds up the rest: a bad change takes one unit down, not all.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Standing:
    """What counts of a unit. `digest`: of what is wanted of it; `stale`: it serves, but has to be made anew in turn."""

    name: str
    digest: str
    ready: bool
    settled: bool
    outdated: bool
    stale: bool


class Replacements:
    """Those under way. Owned by the reconcile loop."""

    def __init__(self) -> None:
        self._told: dict[str, tuple[str, bool]] = {}  # by name: the digest it was told of, whether it served

    @property
    def names(self) -> tuple[str, ...]:
        """Units that were told to become new and have not yet."""
        return tuple(self._told)

    def forget(self, names: Iterable[str]) -> None:
        """They are as wanted, or gone."""
        for name in tuple(names):
            self._told.pop(name, None)

    def next(self, units: Sequence[Standing]) -> tuple[str, ...]:
        """Names to restart now; they count as told from here on."""
        chosen = [unit for unit in units if unit.outdated and not unit.ready and not self._is_told(unit)]
        serving = self._serving(units)
        if serving and not any(served and self._is_told(unit) for unit, served in self._under_way(units)):
            chosen.append(serving[0])
        self._told.update({unit.name: (unit.digest, unit.ready) for unit in chosen})
        return tuple(unit.name for unit in chosen)

    def _serving(self, units: Sequence[Standing]) -> Sequence[Standing]:
        """Those that serve and have to go, in their order. Stale ones wait until everybody has settled, or the
        only one that serves would go first."""
        found = [unit for unit in units if unit.outdated]
        if all(unit.settled for unit in units):
            found += [unit for unit in units if unit.stale and not unit.outdated]
        return [unit for unit in found if unit.ready and not self._is_told(unit)]

    def _under_way(self, units: Sequence[Standing]) -> Sequence[tuple[Standing, bool]]:
        return [(unit, self._told[unit.name][1]) for unit in units if unit.name in self._told]

    def _is_told(self, unit: Standing) -> bool:
        return self._told.get(unit.name, ("", False))[0] == unit.digest
