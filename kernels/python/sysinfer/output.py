"""What the engine delivers of a sequence, and when a sequence is over."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Union

from syshax_contract.stop_strings import StopMatcher
from sysinfer.detok import Detokenizer, TokenBytes
from sysinfer.engine_errors import SequenceError
from sysinfer.sampling import History, SamplingParams, TokenLogprob
from sysinfer.sequence import Sequence

STOP, LENGTH, ABORT, ERROR = "stop", "length", "abort", "error"  # finish reasons

StopReason = Union[int, str, None]


@dataclass(frozen=True)
class Output:
    """News of one sequence. `finish` is None while it runs; `cached`: context tokens that were not computed."""

    key: int
    tokens: tuple[int, ...] = ()
    text: str = ""
    logprobs: tuple[TokenLogprob, ...] = ()
    prompt_logprobs: tuple[TokenLogprob, ...] = ()
    finish: str | None = None
    stop_reason: StopReason = None
    cached: int = 0
    lost: str = ""  # why its handoff was not taken up
    error: SequenceError | None = None  # why it ended, with ERROR; None: the engine has failed


@dataclass
class Generation:
    """What a running sequence has beside its KV: detokeniser, stop strings, log-probabilities of its context, times."""

    detokenizer: Detokenizer
    stops: StopMatcher
    history: History = field(default_factory=History)
    prompt_logprobs: list[TokenLogprob] = field(default_factory=list)
    last_time: float = 0.0  # of the newest token; 0: none yet

    @classmethod
    def of(cls, seq: Sequence, tokens: TokenBytes) -> Generation:
        params = seq.params
        detokenizer = Detokenizer(tokens, seq.tokens[max(seq.n_context - 4, 0) : seq.n_context], params.skip_special)
        return cls(detokenizer, StopMatcher(params.stops, params.include_stop))

    def push(self, seq: Sequence, max_model_len: int) -> tuple[str, str | None, StopReason]:
        """Text, finish reason and stop reason that the newest token of `seq` brings."""
        token, params = seq.tokens[-1], seq.params
        finish, reason = _end_by_token(token, params)
        if finish is not None:
            return self._text_at_end(token, params, reason), finish, reason
        text = self.stops.feed(self.detokenizer.push(token), seq.n_output > params.min_tokens)
        if self.stops.matched is not None:
            return text, STOP, self.stops.matched
        if seq.n_output >= params.max_tokens or len(seq.tokens) >= max_model_len:
            return text + self.stops.flush(), LENGTH, None
        return text, None, None

    def _text_at_end(self, token: int, params: SamplingParams, reason: StopReason) -> str:
        """Held-back text; an end token's own only where the client asks for it."""
        shown = self.detokenizer.push(token) if params.include_stop and reason is not None else ""
        return self.stops.feed(shown) + self.stops.flush()


def _end_by_token(token: int, params: SamplingParams) -> tuple[str | None, StopReason]:
    if token in params.all_stop_ids:
        return STOP, token
    return (STOP if token in params.end_ids else None), None
