"""From logits to a token: greedy, temperature, top-k, top-p, min-p, penalties, bias, log-probabilities.

A draw depends only on (seed, position in the sequence) and the logits: who else is in the batch, chunking, preemption
and a move to another unit leave it as it is.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import List, Mapping, Optional, Sequence, Tuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

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
    logprobs: Optional[int] = None  # how many alternatives to report; 0: the chosen token only
    prompt_logprobs: Optional[int] = None
    max_tokens: int = 16
    min_tokens: int = 0
    stop_ids: Tuple[int, ...] = ()  # the request's own
    end_ids: Tuple[int, ...] = ()  # the model's; empty with ignore_eos
    stops: Tuple[str, ...] = ()
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


@dataclass(frozen=True)
class TokenLogprob:
    """Natural-log probability of a token, its rank (1: most likely), and the most likely alternatives."""

    token: int
    logprob: float
    rank: int
    top: Tuple[Tuple[int, float], ...]


@dataclass(frozen=True)
class Sampled:
    token: int
    logprob: Optional[TokenLogprob] = None


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) for this seed and position: two rounds of SplitMix64 (Steele, Lea, Flood 2014)."""
    state = seed & _MASK
    for add in (position + 1, 0x5851F42D4C957F2D):
        state = (state + add * 0x9E3779B97F4A7C15) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return (state >> 11) * 2.0**-53


def sample(logits: Floats, params: SamplingParams, tokens: Sequence[int], n_context: int) -> Sampled:
    """The next token of a sequence.

    `logits`: one row, [vocab]; `tokens`: the sequence so far, its first `n_context` being the prompt.
    """
    row = shape_logits(logits, params, tokens, n_context) if params.shapes_logits else logits
    token = int(row.argmax()) if params.greedy else draw(row, params, uniform(params.seed, len(tokens)))
    if params.logprobs is None:
        return Sampled(token)
    return Sampled(token, logprob_of(logits, token, params.logprobs))


def shape_logits(logits: Floats, params: SamplingParams, tokens: Sequence[int], n_context: int) -> Floats:
    """A copy of `logits` with repetition penalty (prompt and output), presence and frequency penalty (output), bias,
    and end tokens ruled out while fewer than `min_tokens` are made."""
    row = logits.copy()
    if params.repetition_penalty != 1.0:
        seen = np.unique(np.asarray(tokens, np.int64))
        values = row[seen]
        row[seen] = np.where(values > 0, values / params.repetition_penalty, values * params.repetition_penalty)
    if params.presence_penalty or params.frequency_penalty:
        counts = Counter(tokens[n_context:])
        ids = np.fromiter(counts, np.int64, len(counts))
        times = np.fromiter(counts.values(), np.float32, len(counts))
        row[ids] -= (params.presence_penalty + params.frequency_penalty * times).astype(np.float32)
    for token, bias in params.logit_bias.items():
        row[token] += bias
    if len(tokens) - n_context < params.min_tokens:
        row[list(params.end_ids + params.stop_ids)] = -np.inf
    return row


def draw(logits: Floats, params: SamplingParams, chance: float) -> int:
    """A token by its probability after temperature, min-p, top-k and top-p, in that order."""
    weights = np.exp((logits - logits.max()) / np.float32(params.temperature))
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


def _candidates(weights: Floats, params: SamplingParams) -> Tuple[NDArray[np.int64], float]:
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


def _top_ids(logits: Floats, count: int) -> List[int]:
    """Ids of the `count` largest logits in falling order, equal ones by id."""
    if count == 0:
        return []
    ids = np.flatnonzero(logits >= lower_bound(logits, count))
    order = np.argsort(-logits[ids], kind="stable")
    return [int(i) for i in ids[order][:count]]


def logprob_of(logits: Floats, token: int, top: int) -> TokenLogprob:
    """Log-probability of `token` under the untouched logits, with the `top` most likely tokens."""
    peak = logits.max()
    norm = float(peak) + float(np.log(np.exp(logits - peak).sum(dtype=np.float64)))
    chosen = logits[token]
    rank = int(np.count_nonzero(logits > chosen)) + 1
    best = tuple((i, float(logits[i]) - norm) for i in _top_ids(logits, top))
    return TokenLogprob(token, float(chosen) - norm, rank, best)
