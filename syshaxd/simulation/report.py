"""Scores of a simulation run, the table, the plot, and the sentence at the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Callable

from syshaxd.scheduler.outlook import PredictivePolicy, limits_of

from .deciders import Contestant, Predictive
from .law import Host
from .workload import Arrival
from .world import Request, World

WARM_UP, COOL_DOWN = 0.10, 0.95  # share of the run that is not scored at either end
BAR = 40


@dataclass(frozen=True)
class Score:
    """One policy on one load. Rates in requests/s, times in seconds; attainment counts refused requests as missed."""

    name: str
    offered: float
    goodput: float
    attainment: float
    refused: float
    ttft_p50: float
    ttft_p99: float
    tpot_p50: float
    tpot_p99: float
    preemptions: int
    splits: int
    moves_out: int
    moves_back: int
    ttft_error: float | None = None  # median relative error of the predictions
    tpot_error: float | None = None

    def as_json(self) -> Mapping[str, object]:
        """For --json and saved results."""
        return dict(vars(self))


def percentile(values: Sequence[float], share: float) -> float:
    """Nearest rank; 0.0 for an empty list."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))] if values else 0.0


def ttft(request: Request) -> float:
    """Seconds from the client's first attempt to the first token."""
    return (request.first_token or 0.0) - request.arrival.at


def tpot(request: Request) -> float:
    """Mean seconds per token after the first."""
    if request.arrival.output < 2 or request.end is None or request.first_token is None:
        return 0.0
    return (request.end - request.first_token) / (request.arrival.output - 1)


def _kept(request: Request, policy: PredictivePolicy) -> bool:
    limits = limits_of(request.info, policy)
    return not request.refused and ttft(request) <= limits.ttft and tpot(request) <= limits.tpot


def _error(pairs: Sequence[tuple[float | None, float]]) -> float | None:
    errors = [abs(seen - said) / seen for said, seen in pairs if said is not None and seen > 0]
    return percentile(errors, 0.5) if errors else None


def score(name: str, world: World, policy: PredictivePolicy) -> Score:
    """Scores the middle of the run."""
    last = max(request.arrival.at for request in world.requests)
    scored = [r for r in world.requests if WARM_UP * last <= r.arrival.at <= COOL_DOWN * last]
    span = (COOL_DOWN - WARM_UP) * last
    served = [r for r in scored if not r.refused]
    kept = sum(_kept(r, policy) for r in scored)
    said = world.decider.predictions if isinstance(world.decider, Predictive) else {}
    first_try = [r for r in served if r.number in said and r.attempts == 0 and r.moves == 0]
    return Score(
        name=name,
        offered=len(scored) / span,
        goodput=kept / span,
        attainment=kept / max(1, len(scored)),
        refused=1 - len(served) / max(1, len(scored)),
        ttft_p50=percentile([ttft(r) for r in served], 0.5),
        ttft_p99=percentile([ttft(r) for r in served], 0.99),
        tpot_p50=percentile([tpot(r) for r in served], 0.5),
        tpot_p99=percentile([tpot(r) for r in served], 0.99),
        preemptions=world.count["preempted"],
        splits=world.count["split"],
        moves_out=world.count["moved_to_cpu"],
        moves_back=world.count["moved_to_accelerator"],
        ttft_error=_error([(said[r.number][1], (r.first_token or 0.0) - said[r.number][0]) for r in first_try]),
        tpot_error=_error([(said[r.number][2], tpot(r)) for r in first_try if r.arrival.output > 1]),
    )


def play(
    host: Host,
    arrivals: Sequence[Arrival],
    contestants: Sequence[Contestant],
    *,
    seed: int = 0,
    clients: int | None = None,
    progress: Callable[[str], None] = lambda name: None,
) -> list[Score]:
    """Every contestant on the same load."""
    scores = []
    for contestant in contestants:
        progress(contestant.name)
        world = World(host, contestant.make(host), seed)
        world.run(arrivals, clients)
        scores.append(score(contestant.name, world, PredictivePolicy()))
    return scores


def table(scores: Sequence[Score]) -> str:
    """Fixed-width table, one policy a line."""
    head = (
        f"{'policy':<26}{'goodput/s':>10}{'kept':>7}{'refused':>9}{'TTFT p50':>10}{'p99 s':>8}"
        f"{'TPOT p50':>10}{'p99 ms':>8}{'splits':>8}{'out':>6}{'back':>6}{'preempt':>9}"
    )
    rows = [
        f"{s.name:<26}{s.goodput:>10.2f}{s.attainment:>7.0%}{s.refused:>9.0%}{s.ttft_p50:>10.2f}{s.ttft_p99:>8.1f}"
        f"{s.tpot_p50 * 1e3:>10.0f}{s.tpot_p99 * 1e3:>8.0f}{s.splits:>8}{s.moves_out:>6}{s.moves_back:>6}"
        f"{s.preemptions:>9}"
        for s in scores
    ]
    return "\n".join([head, *rows])


def plot(scores: Sequence[Score]) -> str:
    """Goodput as bars; the full width is what was offered."""
    return "\n".join(
        f"{s.name:<26}|{'#' * round(BAR * s.goodput / s.offered):<{BAR}}| {s.goodput:.2f} of {s.offered:.2f} requests/s"
        for s in scores
    )


def conclusion(scores: Sequence[Score]) -> str:
    """What the CPUs bring on this host, in one sentence."""
    by_name = {s.name: s for s in scores}
    ours, without = by_name.get("predictive"), by_name.get("admission without CPU")
    if ours is None or without is None or without.goodput <= 0:
        return "The CPUs' share can't be told: run both `predictive` and `admission without CPU`."
    gain = ours.goodput / without.goodput - 1
    if gain < 0.02:
        return (
            f"On this host and load the CPUs bring nothing that counts ({gain:+.1%}): what helps is admission "
            f"({without.goodput:.2f} requests/s within their limits)."
        )
    return (
        f"On this host and load the CPUs bring {gain:+.0%} requests within their limits "
        f"({without.goodput:.2f} -> {ours.goodput:.2f} per second)."
    )
