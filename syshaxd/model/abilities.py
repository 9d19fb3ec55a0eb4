"""What a unit can do, as data: the facts that a decision or a stream needs, instead of the name of its server."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Feature(enum.Enum):
    """A part of a request that some servers do not serve."""

    STRUCTURED_OUTPUT = "structured_output"  # response_format with a schema, structured_outputs
    FORCED_TOOLS = "forced_tools"  # tool_choice: required, or a named function
    PROMPT_LOGPROBS = "prompt_logprobs"
    SEVERAL_PROMPTS = "several_prompts"  # a list of prompts in one completion
    IMAGES = "images"


GENERATES: frozenset[str] = frozenset({"/v1/completions", "/v1/chat/completions"})


@dataclass(frozen=True)
class Abilities:
    """Found when a unit warms up, over what its kind says; until then only the latter.

    `endpoints`: paths it answers. `max_context`: tokens of prompt and answer together; None where it does not tell.
    """

    endpoints: frozenset[str] = GENERATES
    features: frozenset[Feature] = frozenset(Feature)
    reasoning_field: str = ""  # where it puts reasoning that it parses itself; "": it leaves that in the content
    token_ids: bool = True  # tells the ids it makes and goes on from ids: a begun answer can go on there
    aborts: bool = True  # ends a request by its id
    discards_tickets: bool = True  # gives a published ticket up on demand; elsewhere its lease ends it
    max_context: int | None = None

    def serves(self, endpoint: str, features: frozenset[Feature] = frozenset()) -> bool:
        """Whether a request to this path with these features can be answered."""
        return endpoint in self.endpoints and features <= self.features
