"""What a kind of unit says of itself. The defaults are those of somebody else's OpenAI server."""

from __future__ import annotations

from syshaxd.model.abilities import Abilities


class Kind:
    """One inference server. Without state: every answer is a function of what is passed in."""

    name = ""
    abilities = Abilities()  # before the unit has been asked; see syshaxd.model.abilities
