"""Which units can serve a request at all: of its model, with its endpoint and features, long enough to hold all of it.

Every decision starts here. A unit that does not tell its context is taken to be long enough: it says no itself where it
is not.
"""

from __future__ import annotations

from collections.abc import Iterable

from syshaxd.model.request import RequestInfo, Route
from syshaxd.model.served import Models
from syshaxd.model.snapshot import InFlight, Snapshot, UnitSnapshot
from syshaxd.model.unit import Role

Units = tuple[UnitSnapshot, ...]
_ROLES = {
    Route.ACCELERATOR: (Role.ACCELERATOR,),
    Route.CPU: (Role.CPU,),
    Route.SPLIT: (Role.ACCELERATOR, Role.CPU),
}


def serves(unit: UnitSnapshot, info: RequestInfo, models: Models) -> bool:
    """Whether the unit has the request's model, endpoint and features."""
    return models.serves(unit.view, info.model) and unit.view.abilities.serves(info.endpoint.value, info.features)


def capable(info: RequestInfo, snapshot: Snapshot, models: Models) -> Units:
    """Units, in any state, that can do what the request asks for, however long it is."""
    return tuple(unit for unit in snapshot.units if serves(unit, info, models))


def lacks(info: RequestInfo, snapshot: Snapshot, models: Models) -> str:
    """What no unit of its model, or of a side it asked for, can do for the request; "": nothing."""
    mine = [unit for unit in snapshot.units if models.serves(unit.view, info.model)]
    for role in _ROLES[info.route] if info.route is not None else (None,):
        side = [unit for unit in mine if role is None or unit.view.role is role]
        if side and not any(serves(unit, info, models) for unit in side):
            return ", ".join(sorted(feature.value for feature in info.features)) or info.endpoint.value
    return ""


def longest_context(units: Iterable[UnitSnapshot]) -> int | None:
    """Tokens that one request may have, prompt and output, on the longest of them; None: one does not tell."""
    contexts = [unit.view.max_model_len for unit in units]
    return max(length or 0 for length in contexts) if contexts and all(contexts) else None


def tokens_needed(info: RequestInfo, prompt_tokens: int, units: Iterable[UnitSnapshot]) -> int:
    """Tokens of context that it may come to need: without a limit of its own as many as the longest READY unit of its
    model has, for nothing but that may end it."""
    if info.max_tokens is not None:
        return prompt_tokens + info.max_tokens
    return max(prompt_tokens + 1, longest_context(unit for unit in units if unit.view.ready) or 0)


def holds(unit: UnitSnapshot, tokens: int) -> bool:
    """Whether the unit's context is long enough."""
    return unit.view.max_model_len is None or tokens <= unit.view.max_model_len


def able(info: RequestInfo, snapshot: Snapshot, models: Models) -> Units:
    """Units, in any state, that can serve a request from its beginning to its end."""
    mine = capable(info, snapshot, models)
    needed = tokens_needed(info, info.prompt_tokens, mine)
    return tuple(unit for unit in mine if holds(unit, needed))


def context_for(info: RequestInfo, snapshot: Snapshot, models: Models) -> int | None:
    """The longest context that any unit, or the pair of a split it asked for, has for it; None: not known."""
    mine = capable(info, snapshot, models)
    if info.route is None:
        return longest_context(mine)
    sides = [longest_context(unit for unit in mine if unit.view.role is role) for role in _ROLES[info.route]]
    return None if None in sides else min(length or 0 for length in sides)


def may_go_to(entry: InFlight, unit: UnitSnapshot, snapshot: Snapshot, models: Models) -> bool:
    """Whether the unit can serve the rest of a running request."""
    if unit.view.name == entry.unit or not serves(unit, entry.info, models):
        return False
    return holds(unit, tokens_needed(entry.info, entry.prompt_tokens, capable(entry.info, snapshot, models)))
