"""From a checked request to token ids and a running call."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Callable

from sysinfer.engine_errors import RequestError
from sysinfer.sampling import SamplingParams
from sysinfer.server.calls import Call, Calls
from sysinfer.server.requests import ChatRequest, Common, CompletionRequest, Limits, Prompt
from sysinfer.template import ChatTemplate
from sysinfer.tokenizer import ModelTokenizer

INLINE_CHARACTERS = 16384  # longer texts are encoded beside the event loop


@dataclass(frozen=True)
class Frontend:
    """The served model as the endpoints see it."""

    model: str
    tokenizer: ModelTokenizer
    template: ChatTemplate | None
    limits: Limits
    calls: Calls
    started: int  # Unix seconds
    binding: Mapping[str, int | str] = field(default_factory=dict)  # threads, and what the system granted them

    def check_model(self, name: str | None) -> None:
        """404 for a model that is not served here; no name means the one there is."""
        if name is not None and name != self.model:
            raise RequestError(f"the model {name!r} does not exist; served is {self.model!r}", 404, "model")

    async def encode(self, text: str, add_special: bool) -> list[int]:
        """Token ids of `text`; refuses at once what can't fit, encodes long texts in a thread."""
        if self.tokenizer.fewest(text) > self.limits.max_model_len:
            raise self._too_long(f"at least {self.tokenizer.fewest(text)}")
        if len(text) <= INLINE_CHARACTERS:
            return self.tokenizer.encode(text, add_special)
        return await asyncio.get_running_loop().run_in_executor(None, self.tokenizer.encode, text, add_special)

    def _too_long(self, count: object) -> RequestError:
        limit = self.limits.max_model_len
        return RequestError(
            f"the prompt has {count} tokens; the context of this model is {limit} tokens", param="prompt"
        )

    def render(self, request: ChatRequest) -> str:
        if self.template is None:
            raise RequestError(
                "the model file has no chat template; start sysinfer with --chat-template", param="messages"
            )
        return self.template.render(
            request.messages, request.add_generation_prompt and not request.continue_final, request.tools,
            request.continue_final, request.template_values,
        )  # fmt: skip

    async def chat_context(self, request: ChatRequest) -> list[int]:
        """Token ids of the rendered messages, or those given."""
        if request.common.context is not None:
            return request.common.context
        return await self.encode(self.render(request), add_special=False)

    async def completion_contexts(self, request: CompletionRequest) -> list[list[int]]:
        """Token ids of each prompt."""
        return [await self._prompt_ids(p, request.add_special) for p in request.prompts]

    async def _prompt_ids(self, prompt: Prompt, add_special: bool) -> list[int]:
        return await self.encode(prompt, add_special) if isinstance(prompt, str) else prompt

    def start(self, request_id: str, contexts: Sequence[list[int]], common: Common, alive: Callable[[], bool]) -> Call:
        """Sends the sequences to the engine; RequestError for a context without room for a token."""
        params = [self._fitted(common, len(c)) for c in contexts]
        return self.calls.start(request_id, contexts, params, common.n, common.handoff, alive)

    def _fitted(self, common: Common, n_context: int) -> SamplingParams:
        """The parameters with `max_tokens` set; what was asked for must fit, a default is cut."""
        if n_context == 0:
            raise RequestError("the prompt has no tokens", param="prompt")
        room = self.limits.max_model_len - n_context
        if room < 1:
            raise self._too_long(n_context)
        if common.max_tokens is not None and common.explicit_max and common.max_tokens > room:
            raise RequestError(
                f"{n_context} prompt tokens and max_tokens {common.max_tokens} exceed the context of "
                f"{self.limits.max_model_len} tokens", param="max_tokens",
            )  # fmt: skip
        return replace(common.params, max_tokens=min(common.max_tokens or room, room))
