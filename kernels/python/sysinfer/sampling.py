"""From logits to a token: greedy, temperature, top-k, top-p, min-p, penalties, bias, log-probabilities.

A draw depends only on (seed, position in the sequence) and the logits: who else is in the batch, chunking, preemption
and a move to another unit leave it as it is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from sysinfer.engine_errors import SequenceError

Floats = NDArray[np.float32]
Ids = NDArray[np.int64]

_LARGEST = float(np.finfo(np.float32).max)
_MASK = (1 << 64) - 1


@dataclass(frozen=True)
class SamplingParams:
    """What a request asks of the sampler; defaults are the OpenAI API's. `top_k` 0 and `top_p` 1 mean no limit."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int = 0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    logprobs: int | None = None  # how many alternatives to report; 0: the chosen token only
    prompt_logprobs: int | None = None
    max_tokens: int = 16
    min_tokens: int = 0
    stop_ids: tuple[int, ...] = ()  # the request's own
    end_ids: tuple[int, ...] = ()  # the model's; empty with ignore_eos
    stops: tuple[str, ...] = ()
    include_stop: bool = False
    skip_special: bool = True

    @property
    def greedy(self) -> bool:
        return self.temperature < 1e-5

    @property
    def shapes_logits(self) -> bool:
        """Whether logits are changed before the token is chosen."""
        return bool(
            self.logit_bias or self.presence_penalty or self.frequency_penalty or self.repetition_penalty != 1.0
            or self.min_tokens
        )  # fmt: skip

    @property
    def plain(self) -> bool:
        """Whether the token is simply the largest logit and nothing else is asked for."""
        return self.greedy and self.logprobs is None and not self.shapes_logits

    @cached_property
    def bias(self) -> tuple[Ids, Floats]:
        """`logit_bias` as ids and what is added to each."""
        count = len(self.logit_bias)
        ids = np.fromiter(self.logit_bias, np.int64, count)
        return ids, np.fromiter(self.logit_bias.values(), np.float32, count)

    @cached_property
    def all_stop_ids(self) -> frozenset[int]:
        return frozenset(self.stop_ids)

    @cached_property
    def ruled_out(self) -> Ids:
        """The ids that may not come while fewer than `min_tokens` are made."""
        return np.asarray(self.end_ids + self.stop_ids, np.int64)


@dataclass(frozen=True)
class TokenLogprob:
    """Natural-log probability of a token, its rank (1: most likely), and the most likely alternatives."""

    token: int
    logprob: float
    rank: int
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Sampled:
    token: int
    logprob: TokenLogprob | None = None


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) for this seed and position: two rounds of SplitMix64 (Steele, Lea, Flood 2014)."""
    state = seed & _MASK
    for add in (position + 1, 0x5851F42D4C957F2D):
        state = (state + add * 0x9E3779B97F4A7C15) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return (state >> 11) * 2.0**-53


class History:
    """Which tokens a sequence has and how often its output has each. It grows with the sequence: counting all of it for
    every token would cost more than the model's own step where the sequence is long."""

    def __init__(self) -> None:
        self._place: dict[int, int] = {}  # of a token in the arrays
        self._ids: Ids = np.empty(64, np.int64)
        self._counts: Floats = np.zeros(64, np.float32)
        self._seen = 0  # tokens taken in

    def follow(self, tokens: Sequence[int], n_context: int) -> None:
        """Takes in what has come since; `tokens` only ever grows."""
        if self._seen < n_context:
            for token in dict.fromkeys(tokens[self._seen : n_context]):
                self._find(token)
            self._seen = min(n_context, len(tokens))
        for token in tokens[self._seen :]:
            self._counts[self._find(token)] += 1
        self._seen = len(tokens)

    def _find(self, token: int) -> int:
        place = self._place.setdefault(token, len(self._place))
        if place == len(self._ids):
            self._ids = np.concatenate([self._ids, np.empty_like(self._ids)])
            self._counts = np.concatenate([self._counts, np.zeros_like(self._counts)])
        self._ids[place] = token
        return place

    @property
    def counts(self) -> tuple[Ids, Floats]:
        """Every token once, and how often the output has it (0: in the prompt only)."""
        count = len(self._place)
        return self._ids[:count], self._counts[:count]


def sample(
    logits: Floats, params: SamplingParams, tokens: Sequence[int], n_context: int, history: History | None = None
) -> Sampled:
    """The next token of a sequence.

    `logits`: one row, [vocab]; `tokens`: the sequence so far, its first `n_context` being the prompt; `history`: of
    the same sequence, kept from token to token. SequenceError when the model's logits are no numbers, or when the
    request leaves no token to choose.
    """
    row = shape_logits(logits, params, tokens, n_context, history or History()) if params.shapes_logits else logits
    token = int(row.argmax()) if params.greedy else draw(row, params, uniform(params.seed, len(tokens)))
    check_finite(float(logits[token]))
    if params.logprobs is None:
        return Sampled(token)
    return Sampled(token, logprob_of(logits, token, params.logprobs))


def check_finite(logit: float) -> None:
    """SequenceError for the logit of a chosen token, or the largest of all, that is no number."""
    if not math.isfinite(logit):
        raise SequenceError(f"the model's logits are not finite ({logit}); its weights or its KV are damaged", 500)


def shape_logits(
    logits: Floats, params: SamplingParams, tokens: Sequence[int], n_context: int, history: History
) -> Floats:
    """A copy of `logits` with repetition penalty (prompt and output), presence and frequency penalty (output), bias,
    and end tokens ruled out while fewer than `min_tokens` are made. What overflows becomes the largest number."""
    row = logits.copy()
    with np.errstate(over="ignore", under="ignore", divide="ignore", invalid="ignore"):
        _penalise(row, params, tokens, n_context, history)
        ids, values = params.bias
        row[ids] += values
    np.clip(row, -_LARGEST, _LARGEST, out=row)  # NaN stays
    if len(tokens) - n_context < params.min_tokens:
        row[params.ruled_out] = -np.inf
        if row.max() == -np.inf:
            raise SequenceError("stop_token_ids and min_tokens rule out every token of the vocabulary", 400)
    return row


def _penalise(row: Floats, params: SamplingParams, tokens: Sequence[int], n_context: int, history: History) -> None:
    presence, frequency = params.presence_penalty, params.frequency_penalty
    if params.repetition_penalty == 1.0 and not presence and not frequency:
        return
    history.follow(tokens, n_context)
    ids, counts = history.counts
    values = row[ids]
    if params.repetition_penalty != 1.0:
        values = np.where(values > 0, values / params.repetition_penalty, values * params.repetition_penalty)
    values -= (presence * (counts > 0) + frequency * counts).astype(np.float32)
    row[ids] = values


def draw(logits: Floats, params: SamplingParams, chance: float) -> int:
    """A token by its probability after temperature, min-p, top-k and top-p, in that order; SequenceError where the
    largest logit is not finite."""
    peak = logits.max()
    check_finite(float(peak))
    with np.errstate(over="ignore", under="ignore"):
        weights = np.exp((logits - peak) / np.float32(params.temperature))
    if params.min_p <= 0 and params.top_k <= 0 and params.top_p >= 1:
        return _pick(weights, chance)
    ids, total = _candidates(weights, params)
    ids = ids[np.argsort(-weights[ids], kind="stable")]
    if params.top_k > 0:
        ids = ids[: params.top_k]
        total = float(weights[ids].sum(dtype=np.float64))
    if params.top_p < 1:
        sums = np.cumsum(weights[ids], dtype=np.float64)
        ids = ids[: int(np.searchsorted(sums, params.top_p * total, side="left")) + 1]
    return int(ids[_pick(weights[ids], chance)])


def _pick(weights: Floats, chance: float) -> int:
    """The index at `chance` of the cumulative weights; never one of weight 0."""
    sums = np.cumsum(weights, dtype=np.float64)
    index = int(np.searchsorted(sums, chance * sums[-1], side="right"))
    return index if index < len(sums) else int(np.flatnonzero(weights)[-1])


def _candidates(weights: Floats, params: SamplingParams) -> tuple[NDArray[np.int64], float]:
    """Ids of all tokens that the limits can let through and few others, and the weight that top-p is a part of.

    Sorting a whole vocabulary would cost more than the model's own step.
    """
    if params.min_p > 0:
        ids = np.flatnonzero(weights >= params.min_p)
        return ids, float(weights[ids].sum(dtype=np.float64))
    total = float(weights.sum(dtype=np.float64))
    if params.top_k > 0:
        return np.flatnonzero(weights >= lower_bound(weights, params.top_k)), total
    # All that lie below this together weigh less than what top-p leaves out.
    return np.flatnonzero(weights >= (1 - params.top_p) * total / len(weights)), total


def lower_bound(values: Floats, count: int) -> float:
    """A number that at least `count` of `values` reach, not far below the `count`-th largest: that of the maxima of
    short stretches."""
    whole = len(values) // 64 * 64
    if count > whole // 64:
        return float(np.partition(values, -count)[-count]) if count < len(values) else float(values.min())
    return float(np.partition(values[:whole].reshape(-1, 64).max(axis=1), -count)[-count])


def _top_ids(logits: Floats, count: int) -> list[int]:
    """Ids of the `count` largest logits in falling order, equal ones by id."""
    if count == 0:
        return []
    ids = np.flatnonzero(logits >= lower_bound(logits, count))
    order = np.argsort(-logits[ids], kind="stable")
    return [int(i) for i in ids[order][:count]]


def logprob_of(logits: Floats, token: int, top: int) -> TokenLogprob:
    """Log-probability of `token` under the untouched logits, with the `top` most likely tokens; SequenceError where
    they are no numbers."""
    peak = logits.max()
    check_finite(float(peak))
    with np.errstate(over="ignore", under="ignore"):
        norm = float(peak) + float(np.log(np.exp(logits - peak).sum(dtype=np.float64)))
    chosen = logits[token]
    rank = int(np.count_nonzero(logits > chosen)) + 1
    best = tuple((i, float(logits[i]) - norm) for i in _top_ids(logits, top))
    return TokenLogprob(token, float(chosen) - norm, rank, best)
