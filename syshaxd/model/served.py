"""Models: what a client may name, and which units serve it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from .unit import UnitView


@dataclass(frozen=True)
class Model:
    """One model. `units`: names of those that serve it; where none is named, every unit that serves this name."""

    name: str
    aliases: tuple[str, ...] = ()
    units: tuple[str, ...] = ()
    clip_max_tokens: bool = False  # where max_tokens is more than fits: cut it instead of refusing the request


@dataclass(frozen=True)
class Models:
    """All of them, the default first. A unit serves the model it is listed under, or whose name it has; units of other
    models do not exist for a request."""

    configured: tuple[Model, ...] = ()

    @property
    def default(self) -> str:
        """Name of the model that is meant where none is named; "" where none is configured."""
        return self.configured[0].name if self.configured else ""

    def find(self, name: str) -> Model | None:
        """The configured model of that name or alias; None where units alone may know it."""
        wanted = name or self.default
        return next((model for model in self.configured if wanted in (model.name, *model.aliases)), None)

    def serves(self, view: UnitView, name: str) -> bool:
        """Whether the unit serves what a client calls `name`; "" is the default, or any where there is none."""
        model = self.find(name)
        if model is not None and model.units:
            return view.name in model.units
        wanted = model.name if model is not None else name
        listed = any(view.name in other.units for other in self.configured)
        return not listed and (not wanted or view.model in ("", wanted))

    def names(self, views: Iterable[UnitView]) -> tuple[str, ...]:
        """All names that clients may use, the default first: configured ones, then what units say of themselves."""
        views = tuple(views)
        own = (view.model for view in views if not any(view.name in model.units for model in self.configured))
        told = [name for model in self.configured for name in (model.name, *model.aliases)]
        return tuple(name for name in dict.fromkeys([*told, *own]) if name)

    def clips(self, name: str) -> bool:
        """Whether a max_tokens that does not fit is cut."""
        model = self.find(name)
        return model is not None and model.clip_max_tokens
