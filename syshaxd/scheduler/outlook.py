"""What the predictive decider expects of each unit: pure arithmetic on a snapshot and on what was learned.

Formulas and their simulation results: docs/scheduling.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from syshaxd.model.request import RequestInfo, Tier
from syshaxd.model.served import Models
from syshaxd.model.snapshot import InFlight, Snapshot, UnitLoad, UnitSnapshot
from syshaxd.model.unit import UnitView

from .lengths import Lengths
from .steptime import StepModel

UNBOUNDED = 1e12


@dataclass(frozen=True)
class Limits:
    """What a request was promised. Seconds; `ttft` to the first token, `tpot` mean per further token."""

    ttft: float = 2.0
    tpot: float = 0.1


@dataclass(frozen=True)
class PredictivePolicy:
    """Inputs of the operator, and the constants of docs/scheduling.md. Defaults are the documented ones."""

    limits: Mapping[Tier, Limits] = field(
        default_factory=lambda: {Tier.PRIORITY: Limits(), Tier.DEFAULT: Limits(), Tier.FLEX: Limits(2.0, 0.25)}
    )
    safety: float = 0.85
    offload_above: float = 0.80  # pressure at which offload mode begins
    offload_below: float = 0.60  # and ends
    growth: float = 0.15  # share of the residual output that a running request is reserved for
    full_at: float = 0.99  # of KV capacity
    move_out_at: float = 0.95
    move_back_at: float = 0.75
    max_moves: int = 2
    move_out_pause: float = 0.05  # seconds between moves out
    move_back_pause: float = 0.25
    stay_after_move: float = 1.0
    guard: float = 0.03  # below this gain the CPU serves no interactive traffic
    serve_late: bool = True
    split: bool = True
    moves: bool = True
    models: Models = Models()
    queue_timeout: float = 30.0
    max_queue: int = 256
    look_ahead: float = 0.15  # seconds of prefill that a unit holds beyond the prompt it is at; the rest waits here

    @property
    def tpot_safety(self) -> float:
        """Share of a TPOT limit that may be filled on an accelerator: a third of the margin is enough there, because
        the mean over a request's life swings less than the moment it is predicted from."""
        return 1.0 - (1.0 - self.safety) / 3.0

    @property
    def held_safety(self) -> float:
        """Share of a TTFT limit that may be filled by who has waited: little is left that could come between."""
        return 1.0 - (1.0 - self.safety) / 3.0


@dataclass(frozen=True)
class UnitTraits:
    """What a unit can take at once: sequences, and tokens a step. Defaults: vLLM's, for a unit of which neither its
    stats page nor the configuration tells."""

    max_num_seqs: int = 256
    prefill_chunk: int = 2048


def traits_of(view: UnitView, load: UnitLoad | None) -> UnitTraits:
    """As the unit's stats page tells them, else as they are configured."""
    seqs, tokens = (load.max_num_seqs, load.max_step_tokens) if load is not None else (None, None)
    default = UnitTraits()
    return UnitTraits(
        seqs or view.max_num_seqs or default.max_num_seqs, tokens or view.max_step_tokens or default.prefill_chunk
    )


@dataclass(frozen=True)
class Handoff:
    """Cost of a handoff: seconds = fixed + per_token * tokens."""

    fixed: float = 0.03
    per_token: float = 2e-5

    def seconds(self, tokens: float) -> float:
        """Expected gap in the stream."""
        return self.fixed + self.per_token * tokens


@dataclass(frozen=True)
class Drift:
    """What a unit's own figures have shown beyond the daemon's counters for some time: requests that others sent, and
    KV tokens held for them, or (below 0) saved because requests share a prefix."""

    seqs: int = 0
    kv: int = 0


@dataclass(frozen=True)
class Knowledge:
    """Everything learned so far, as a value. Scheduler is the only writer; replaced whole."""

    models: Mapping[str, StepModel] = field(default_factory=dict)
    lengths: Lengths = Lengths()
    prefill_rate: Mapping[str, float] = field(default_factory=dict)  # tokens/s, 10 s memory
    handoff: Handoff = Handoff()
    drift: Mapping[str, Drift] = field(default_factory=dict)


@dataclass(frozen=True)
class Side:
    """One unit in the terms of the step model."""

    unit: UnitSnapshot
    model: StepModel
    traits: UnitTraits
    decoding: int
    queued: int
    queued_tokens: int
    kv: int  # tokens of decoding requests, arriving ones included: what a step reads
    held: int  # KV tokens that these occupy
    capacity: float  # KV tokens
    prefill_share: float  # of its time, 0..0.9

    @property
    def name(self) -> str:
        """The unit's name."""
        return self.unit.view.name

    def step(self, extra_seqs: int = 0, extra_kv: float = 0.0) -> float:
        """A decode step with some more on board, seconds."""
        return self.model.seconds(self.decoding + extra_seqs, 0, self.kv + extra_kv)


def side_of(unit: UnitSnapshot, knowledge: Knowledge) -> Side:
    """The unit's load from the daemon's own counters, corrected by what the unit itself has told for some time."""
    name = unit.view.name
    model = knowledge.models.get(name, StepModel(0.02, 0.0, 0.0, 0.0))
    total = unit.load.kv_total if unit.load is not None else None
    traits = traits_of(unit.view, unit.load)
    drift = knowledge.drift.get(name, Drift())
    decoding = unit.in_flight - unit.queued + unit.arriving + drift.seqs
    kv = max(0, unit.in_flight_tokens - unit.queued_prompt_tokens) + unit.arriving_tokens
    share = min(0.9, knowledge.prefill_rate.get(name, 0.0) * _prefill_cost(model, traits, decoding, kv))
    return Side(
        unit=unit,
        model=model,
        traits=traits,
        decoding=decoding,
        queued=unit.queued,
        queued_tokens=unit.queued_prompt_tokens,
        kv=kv + max(0, drift.kv),
        held=max(0, kv + drift.kv),
        capacity=float(total) if total else UNBOUNDED,
        prefill_share=share,
    )


def _prefill_cost(model: StepModel, traits: UnitTraits, decoding: int, kv: int) -> float:
    """Seconds that a prompt token adds to steps that decode anyway."""
    chunk = max(1, traits.prefill_chunk - decoding)
    return (model.seconds(decoding, chunk, kv) - model.seconds(decoding, 0, kv)) / chunk


def reserve(side: Side, extra: float, lengths: Lengths, growth: float) -> float:
    """Share of the KV capacity that is, or will soon be, needed with `extra` tokens more."""
    residents = side.decoding + side.queued
    return (side.held + side.queued_tokens + extra + growth * residents * lengths.residual) / side.capacity


def predicted_ttft(side: Side, prompt: int, knowledge: Knowledge, policy: PredictivePolicy, ahead: int = 0) -> float:
    """Seconds until the first token of a new request: the step under way, the prefill queue, the wait for KV room.
    `ahead`: prompt tokens that wait in the daemon and go first."""
    seconds = prefill_seconds(side, side.queued_tokens + ahead + prompt)
    seconds += 0.5 * side.step() if side.decoding or side.queued else 0.0
    return seconds + _kv_wait(side, prompt, knowledge.lengths, policy) + _slot_wait(side, knowledge.lengths)


def prefill_seconds(side: Side, tokens: int) -> float:
    """Steps that prefill so many tokens beside the unit's decoding ones."""
    room = max(1, side.traits.prefill_chunk - side.decoding)
    chunks, rest = divmod(tokens, room)
    seconds = chunks * side.model.seconds(side.decoding, room, side.kv)
    return seconds + (side.model.seconds(side.decoding, rest, side.kv) if rest else 0.0)


def has_enough(side: Side, prompt: int, policy: PredictivePolicy) -> bool:
    """Whether the unit has prompts to go on with for a while: another one beside that which it is at, more than a
    step takes, and as much as it computes in the time in which the daemon asks again; or one while this prompt has no
    room in its KV cache."""
    if side.queued and side.held + side.queued_tokens + prompt > policy.full_at * side.capacity:
        return True
    if side.queued < 2 or side.queued_tokens <= side.traits.prefill_chunk:
        return False
    return prefill_seconds(side, side.queued_tokens) > policy.look_ahead + side.step()


def own_prefill(side: Side, prompt: int) -> float:
    """Seconds that the request's own prefill takes on this unit as loaded now."""
    chunk = side.traits.prefill_chunk
    chunks, rest = divmod(prompt, chunk)
    return chunks * side.model.seconds(side.decoding, chunk, side.kv) + side.model.seconds(side.decoding, rest, side.kv)


def _kv_wait(side: Side, prompt: int, lengths: Lengths, policy: PredictivePolicy) -> float:
    growth = 0.5 * policy.growth * (side.decoding + side.queued) * lengths.residual
    over = side.held + side.queued_tokens + prompt + growth - policy.full_at * side.capacity
    if over <= 0 or not side.decoding:
        return 0.0
    at_end = side.kv / side.decoding * 1.15  # KV that a finishing request gives back
    rate = side.decoding / side.step() * max(0.05, at_end / max(1.0, lengths.mean) - 1.0)
    return over / max(1.0, rate)


def _slot_wait(side: Side, lengths: Lengths) -> float:
    missing = side.decoding + side.queued + 1 - side.traits.max_num_seqs
    if missing <= 0 or not side.decoding:
        return 0.0
    return missing * lengths.mean * side.step() / side.decoding


def predicted_tpot(side: Side, prompt: int) -> float:
    """Mean seconds per output token with one more request, stretched by the share of time that prefill takes."""
    batch = min(side.traits.max_num_seqs, side.decoding + side.queued + 1)
    kv = min(side.capacity, side.kv + side.queued_tokens + prompt)
    return side.model.seconds(batch, 0, kv) / (1.0 - side.prefill_share)


def limits_of(info: RequestInfo, policy: PredictivePolicy) -> Limits:
    """The request's own hints, else its tier's limits."""
    tier = policy.limits.get(info.tier, Limits())
    return Limits(
        info.slo_ttft if info.slo_ttft is not None else tier.ttft,
        info.slo_tpot if info.slo_tpot is not None else tier.tpot,
    )


@dataclass(frozen=True)
class Candidate:
    """A request that might decode on a CPU unit: `generated` tokens so far in `elapsed` seconds since its first."""

    context: int  # tokens of KV to bring along
    generated: int
    elapsed: float
    remaining: float  # expected further tokens
    tpot: float  # its limit


def candidate(entry: InFlight, now: float, lengths: Lengths, policy: PredictivePolicy) -> Candidate:
    """A running request as a candidate for a move."""
    remaining = lengths.remaining(entry.output_tokens)
    if entry.info.max_tokens is not None:
        remaining = max(0.0, min(remaining, entry.info.max_tokens - entry.output_tokens))
    since = now - entry.first_token if entry.first_token is not None else 0.0
    context = entry.prompt_tokens + entry.output_tokens
    return Candidate(context, entry.output_tokens, since, remaining, limits_of(entry.info, policy).tpot)


def cpu_mean_tpot(cpu: Side, who: Candidate, knowledge: Knowledge) -> float:
    """Mean TPOT of the whole request if it went on on the CPU unit now; time banked so far counts."""
    remaining = max(1.0, who.remaining)
    step = cpu.step(1, who.context + remaining / 2)
    return (who.elapsed + knowledge.handoff.seconds(who.context) + remaining * step) / (who.generated + remaining)


def cpu_keeps_promises(
    cpu: Side, who: Candidate, snapshot: Snapshot, knowledge: Knowledge, policy: PredictivePolicy
) -> bool:
    """Whether the newcomer and every resident of the CPU unit stay within their own limits."""
    if cpu.decoding + cpu.queued >= cpu.traits.max_num_seqs:
        return False
    if cpu.held + cpu.queued_tokens + who.context + who.remaining > policy.full_at * cpu.capacity:
        return False
    if cpu_mean_tpot(cpu, who, knowledge) > policy.safety * who.tpot:
        return False
    step = cpu.step(1, who.context + who.remaining / 2)
    return not any(
        _pushed_over(entry, step, snapshot.at, knowledge.lengths, policy)
        for entry in snapshot.in_flight
        if entry.unit == cpu.name and entry.first_token is not None
    )


def _pushed_over(entry: InFlight, step: float, now: float, lengths: Lengths, policy: PredictivePolicy) -> bool:
    limit = limits_of(entry.info, policy).tpot
    if step <= policy.safety * limit or entry.first_token is None:
        return False
    remaining = max(30.0, lengths.mean - entry.output_tokens)
    mean = (now - entry.first_token + remaining * step) / (entry.output_tokens + remaining)
    return mean > 0.97 * limit


def decode_rate(side: Side, per_request_kv: float, tpot: float) -> float:
    """Best decode rate in tokens/s with every step within `tpot` and the KV it has: max over b of b / t(b)."""
    best, batch = 0.0, 1
    while batch <= side.traits.max_num_seqs and batch * per_request_kv <= 0.95 * side.capacity:
        step = side.model.seconds(batch, 0, batch * per_request_kv)
        if step > tpot:
            break
        best = max(best, batch / max(1e-9, step))
        batch += max(1, batch // 8)
    return best


def cpu_gain(accelerator: Side, cpu: Side, per_request_kv: float, tpot: float) -> float | None:
    """Relative goodput that the CPU side adds, C(SLO) / D(SLO); None while a model is not trusted."""
    if not (accelerator.model.trusted and cpu.model.trusted):
        return None
    own = decode_rate(accelerator, per_request_kv, tpot)
    return decode_rate(cpu, per_request_kv, tpot) / own if own > 0 else None
