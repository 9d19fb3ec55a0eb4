"""What a server's own description (`/openapi.json`, OpenAPI 3) says of its abilities. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from syshaxd.model.abilities import Abilities, Feature

MOST_PATHS = 256
# A field of a request body, by the feature that needs it. A server whose description lacks the field does not serve it.
CHAT = "ChatCompletionRequest"
COMPLETION = "CompletionRequest"
FIELDS: Mapping[Feature, tuple[str, str]] = {
    Feature.STRUCTURED_OUTPUT: (CHAT, "response_format"),
    Feature.FORCED_TOOLS: (CHAT, "tool_choice"),
    Feature.PROMPT_LOGPROBS: (CHAT, "prompt_logprobs"),
}


def described(known: Abilities, description: Any) -> Abilities:
    """`known`, narrowed or widened to what is described; unchanged where the description is none."""
    paths = _mapping(_mapping(description).get("paths"))
    posts = [path for path, methods in paths.items() if isinstance(path, str) and "post" in _mapping(methods)]
    if not posts:
        return known
    schemas = _mapping(_mapping(_mapping(description).get("components")).get("schemas"))
    missing = {feature for feature, (schema, field) in FIELDS.items() if _lacks(schemas, schema, field)}
    return replace(
        known,
        endpoints=frozenset(posts[:MOST_PATHS]),
        features=known.features - missing,
        token_ids=known.token_ids and not _lacks(schemas, COMPLETION, "return_token_ids"),
    )


def _lacks(schemas: Mapping[str, Any], schema: str, field: str) -> bool:
    """Whether the body is described, without the field."""
    fields = _mapping(_mapping(schemas.get(schema)).get("properties"))
    return bool(fields) and field not in fields


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}
