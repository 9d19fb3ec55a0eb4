"""The JSON of answers, in vLLM's shapes: compact, members in its order, nothing unset in stream chunks."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sysinfer.output import Output
from sysinfer.sampling import TokenLogprob
from sysinfer.server.requests import Common
from sysinfer.tokenizer import ModelTokenizer

Json = dict[str, Any]  # a JSON object on its way out

DONE = b"data: [DONE]\n\n"


def dump(value: Any) -> bytes:
    """Compact JSON as UTF-8."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "replace")


def event(value: Json) -> bytes:
    """A server-sent event."""
    return b"data: " + dump(value) + b"\n\n"


@dataclass
class Choice:
    """One choice of an answer as it grows."""

    index: int
    context: list[int]
    text: str = ""
    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    prompt_logprobs: tuple[TokenLogprob, ...] = ()
    finish: str | None = None
    stop_reason: Any = None
    begun: bool = False
    cached: int = 0  # context tokens that were not computed
    lost: str = ""  # why its handoff was not taken up

    def add(self, output: Output) -> None:
        self.text += output.text
        self.tokens.extend(output.tokens)
        self.logprobs.extend(output.logprobs)
        self.prompt_logprobs = self.prompt_logprobs or output.prompt_logprobs
        self.finish, self.stop_reason = output.finish, output.stop_reason
        self.cached, self.lost = max(self.cached, output.cached), self.lost or output.lost


def usage(choices: Sequence[Choice], n: int) -> Json:
    """Token counts of a request; a prompt with n choices counts once."""
    prompt = sum(len(c.context) for c in choices[::n])
    made = sum(len(c.tokens) for c in choices)
    return {"prompt_tokens": prompt, "total_tokens": prompt + made, "completion_tokens": made}


class Replies:
    """Builds the answers of one request."""

    object_name = ""
    chunk_name = ""

    def __init__(
        self, reply_id: str, model: str, common: Common, tokenizer: ModelTokenizer, contexts: Sequence[list[int]]
    ) -> None:
        self.id, self.model, self.common, self.tokenizer = reply_id, model, common, tokenizer
        self.created = int(time.time())
        self.choices = [Choice(i, c) for i, c in enumerate(contexts)]

    def _head(self, name: str) -> Json:
        return {"id": self.id, "object": name, "created": self.created, "model": self.model}

    def usage(self) -> Json:
        """Token counts; of a request that came with a ticket, also how many tokens that saved, or why it did not."""
        made = usage(self.choices, self.common.n)
        if self.common.handoff.load is None:
            return made
        details: Json = {"cached_tokens": sum(choice.cached for choice in self.choices)}
        lost = next((choice.lost for choice in self.choices if choice.lost), "")
        if lost:
            details["handoff_lost"] = lost
        return {**made, "prompt_tokens_details": details}

    def whole(self) -> Json:
        """The answer of a request without streaming."""
        body = {**self._head(self.object_name), "choices": [self._whole_choice(c) for c in self.choices]}
        return {**body, "usage": self.usage(), **self._whole_extra()}

    def chunks(self, index: int, output: Output) -> list[bytes]:
        """The events that an output of choice `index` makes."""
        choice = self.choices[index]
        events = [] if choice.begun else self._first(choice)
        choice.begun = True
        choice.tokens.extend(output.tokens)
        choice.cached, choice.lost = max(choice.cached, output.cached), choice.lost or output.lost
        return [*events, self._event(self._chunk_choice(choice, output))]

    def last(self) -> list[bytes]:
        """What ends a stream."""
        if not self.common.include_usage:
            return [DONE]
        return [event({**self._head(self.chunk_name), "choices": [], "usage": self.usage()}), DONE]

    def _event(self, choice: Json, **extra: Any) -> bytes:
        body = {**self._head(self.chunk_name), "choices": [choice], **extra}
        if self.common.continuous_usage:
            body["usage"] = self.usage()
        return event(body)

    def _whole_choice(self, choice: Choice) -> Json:
        raise AssertionError("a kind of answer states its choices")

    def _whole_extra(self) -> Json:
        return {}

    def _first(self, choice: Choice) -> list[bytes]:
        return []

    def _chunk_choice(self, choice: Choice, output: Output) -> Json:
        raise AssertionError("a kind of answer states its choices")

    def _end(self, finish: str | None, stop_reason: Any) -> Json:
        return {"finish_reason": finish, "stop_reason": stop_reason}


class ChatReplies(Replies):
    object_name = "chat.completion"
    chunk_name = "chat.completion.chunk"

    def _whole_choice(self, choice: Choice) -> Json:
        logprobs = self._logprobs(choice.logprobs) if self.common.params.logprobs is not None else None
        message = {"role": "assistant", "content": choice.text}
        body = {"index": choice.index, "message": message, "logprobs": logprobs,
                **self._end(choice.finish, choice.stop_reason)}  # fmt: skip
        return {**body, "token_ids": choice.tokens} if self.common.return_token_ids else body

    def _whole_extra(self) -> Json:
        return {"prompt_token_ids": self.choices[0].context} if self.common.return_token_ids else {}

    def _first(self, choice: Choice) -> list[bytes]:
        extra = {"prompt_token_ids": choice.context} if self.common.return_token_ids else {}
        delta = {"role": "assistant", "content": ""}
        return [self._event({"index": choice.index, "delta": delta, "logprobs": None, "finish_reason": None}, **extra)]

    def _chunk_choice(self, choice: Choice, output: Output) -> Json:
        logprobs = self._logprobs(output.logprobs) if output.logprobs else None
        body: Json = {"index": choice.index, "delta": {"content": output.text}, "logprobs": logprobs,
                      "finish_reason": output.finish}  # fmt: skip
        if output.finish is not None:
            body["stop_reason"] = output.stop_reason
        if self.common.return_token_ids:
            body["token_ids"] = list(output.tokens)
        return body

    def _logprobs(self, entries: Sequence[TokenLogprob]) -> Json:
        return {"content": [self._entry(e) for e in entries]}

    def _entry(self, entry: TokenLogprob) -> Json:
        top = [self._token(t, lp) for t, lp in entry.top]
        return {**self._token(entry.token, entry.logprob), "top_logprobs": top}

    def _token(self, token: int, logprob: float) -> Json:
        spelled = self.tokenizer.token_bytes(token)
        return {"token": spelled.decode("utf-8", "replace"), "logprob": max(logprob, -9999.0), "bytes": list(spelled)}


class CompletionReplies(Replies):
    object_name = "text_completion"
    chunk_name = "text_completion"

    def __init__(self, *args: Any, echo: Sequence[str] = ()) -> None:
        """`echo`: text of each choice's prompt where the client wants it back."""
        super().__init__(*args)
        self.echo = echo
        self._offsets = [0] * len(self.choices)

    def _whole_choice(self, choice: Choice) -> Json:
        text = self.echo[choice.index] + choice.text if self.echo else choice.text
        logprobs = None
        if self.common.params.logprobs is not None:
            logprobs = self._logprobs(choice, choice.logprobs, choice.prompt_logprobs)
        body = {
            "index": choice.index,
            "text": text,
            "logprobs": logprobs,
            **self._end(choice.finish, choice.stop_reason),
        }
        if self.common.return_token_ids:
            body.update(token_ids=choice.tokens, prompt_token_ids=choice.context)
        return body

    def _chunk_choice(self, choice: Choice, output: Output) -> Json:
        first = len(choice.tokens) == len(output.tokens)
        logprobs = None
        if output.logprobs:
            logprobs = self._logprobs(choice, output.logprobs, output.prompt_logprobs)
        text = self.echo[choice.index] + output.text if self.echo and first else output.text
        body: Json = {
            "index": choice.index,
            "text": text,
            "logprobs": logprobs,
            **self._end(output.finish, output.stop_reason),
        }
        if self.common.return_token_ids:
            body.update({"prompt_token_ids": choice.context} if first else {}, token_ids=list(output.tokens))
        return body

    def _logprobs(self, choice: Choice, entries: Sequence[TokenLogprob], context: Sequence[TokenLogprob]) -> Json:
        """The legacy form: parallel arrays, with the context's tokens first where they are echoed."""
        form: Json = {"text_offset": [], "token_logprobs": [], "tokens": [], "top_logprobs": []}
        if self.echo and context:
            self._append(form, choice, choice.context[0], None, None)
            for entry in context:
                self._append(form, choice, entry.token, entry.logprob, entry)
        for entry in entries:
            self._append(form, choice, entry.token, entry.logprob, entry)
        return form

    def _append(
        self, form: Json, choice: Choice, token: int, logprob: float | None, entry: TokenLogprob | None
    ) -> None:
        text = self.tokenizer.text_of(token)
        form["text_offset"].append(self._offsets[choice.index])
        form["token_logprobs"].append(None if logprob is None else max(logprob, -9999.0))
        form["tokens"].append(text)
        top = (
            None
            if entry is None
            else {self.tokenizer.text_of(t): max(lp, -9999.0) for t, lp in (*entry.top, (token, entry.logprob))}
        )
        form["top_logprobs"].append(top)
        self._offsets[choice.index] += len(text)
