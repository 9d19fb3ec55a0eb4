"""The Scheduler: which decider is in force, and the questions the Runner asks it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from syshaxd.admission import admit
from syshaxd.admission.queue import ASKED
from syshaxd.config.types import Config
from syshaxd.model.plan import Move, Plan, Whole
from syshaxd.model.request import RequestInfo, Tier
from syshaxd.model.snapshot import Snapshot
from syshaxd.model.unit import Role

from . import predictive, pressure, threshold
from .able import able, capable, context_for, holds, lacks, tokens_needed
from .candidates import Failed
from .learning import Learner
from .moving import choose_moves
from .outlook import Limits, PredictivePolicy
from .policy import Policy, policy_of
from .predictive import Remembered, in_a_hurry, patience
from .steptime import StepSample

__all__ = ["Failed", "Scheduler"]


class Scheduler:
    """Answers from the snapshot given and from what it learned of earlier ones. Engine calls `reconfigure` at a reload.

    Decider `predictive` needs trusted step models of the accelerator units; until then `threshold` answers.
    """

    def __init__(self, config: Config) -> None:
        self._policy = policy_of(config)
        self._predictive = predictive_policy(self._policy)
        self._learner = Learner()
        self._memory = Remembered()

    def reconfigure(self, config: Config) -> None:
        """The next decision follows the new configuration."""
        self._policy = policy_of(config)
        self._predictive = predictive_policy(self._policy)

    def calibrate(self, unit: str, samples: Iterable[StepSample]) -> None:
        """Seeds the step model of a unit from a saved calibration."""
        self._learner.seed(unit, samples)

    def decide(self, info: RequestInfo, snapshot: Snapshot, failed: frozenset[Failed] = frozenset()) -> Plan:
        """Where a request that has no token yet goes; `failed`: units that it has already failed on."""
        usable = self._usable(info, snapshot, failed)
        if info.route is not None or not usable.units:
            models = self._policy.models
            missing = lacks(info, snapshot, models)
            refusal = admit.can_be_done(missing) or admit.fits_a_context(info, context_for(info, snapshot, models))
            if refusal is not None:
                return refusal
        if info.route is not None or not self._predicts(usable):
            return threshold.decide(info, usable, self._policy, failed)
        decision = predictive.decide(info, usable, self._learner.knowledge(snapshot.at), self._memory, self._predictive)
        self._memory = decision.memory
        return decision.plan

    @property
    def asked(self) -> int:
        """How many that wait may ask in vain. Thresholds don't know who would be late, so none goes round the head."""
        return ASKED if self._policy.scheduler.decider == "predictive" else 1

    def hurried(self, info: RequestInfo, snapshot: Snapshot) -> bool:
        """Whether its time counts from its client's first attempt on."""
        return self._predicts(snapshot) and in_a_hurry(info)

    def patience(self, info: RequestInfo, snapshot: Snapshot) -> float:
        """Seconds after its arrival until which a request may wait in the daemon's queue."""
        if self._predicts(snapshot):
            return patience(info, self._predictive)
        timeout = self._policy.limits.queue_timeout
        return timeout if info.slo_ttft is None else min(timeout, info.slo_ttft)

    def keep_split(self, info: RequestInfo, decode: str, prompt_tokens: int, snapshot: Snapshot) -> bool:
        """Asked at the first token of a split: does the CPU unit still keep every promise?"""
        unit = snapshot.unit(decode)
        mine = capable(info, snapshot, self._policy.models)
        if unit is not None and not holds(unit, tokens_needed(info, prompt_tokens, mine)):
            return False  # its prompt was longer than it looked
        if info.route is not None or not self._predicts(snapshot):
            return True
        return predictive.keep_split(
            info, decode, prompt_tokens, snapshot, self._learner.knowledge(snapshot.at), self._predictive
        )

    def rescue(self, info: RequestInfo, snapshot: Snapshot, failed: frozenset[Failed]) -> Whole | None:
        """Where a running request goes on after its unit failed; None: nowhere at the moment."""
        return pressure.rescue(info, snapshot, self._policy, failed)

    def moves(self, snapshot: Snapshot) -> tuple[Move, ...]:
        """Running requests to hand over now. Called every cycle: what it sees is also what it learns from."""
        self._learner.look(snapshot)
        if not self._predicts(snapshot) or not self._policy.pd.auto_offload:
            return pressure.moves(snapshot, self._policy)
        drains = pressure.drains(snapshot, self._policy)
        if drains or not self._policy.pd.enabled:
            return drains
        chosen = choose_moves(snapshot, self._learner.knowledge(snapshot.at), self._memory, self._predictive)
        self._memory = chosen.memory
        return chosen.moves

    def _usable(self, info: RequestInfo, snapshot: Snapshot, failed: frozenset[Failed]) -> Snapshot:
        """The snapshot without units that can't serve the request or have failed it."""
        mine = able(info, snapshot, self._policy.models)
        units = tuple(unit for unit in mine if (unit.view.name, unit.view.epoch) not in failed)
        pd = snapshot.pd
        if not self._policy.pd.enabled:
            pd = replace(pd, enabled=False, reason="pd.enabled is off")
        return replace(snapshot, units=units, pd=pd)

    def _predicts(self, snapshot: Snapshot) -> bool:
        if self._policy.scheduler.decider != "predictive":
            return False
        models = self._learner.models()
        accelerators = snapshot.ready(Role.ACCELERATOR)
        return bool(accelerators) and all(
            unit.view.name in models and models[unit.view.name].trusted for unit in accelerators
        )


def predictive_policy(policy: Policy) -> PredictivePolicy:
    """The operator's inputs over the documented constants."""
    default = PredictivePolicy()
    limits = dict(default.limits)
    for tier in Tier:
        slo = policy.scheduler.slo.get(tier.value)
        if slo is not None:
            limits[tier] = Limits(slo.ttft, slo.tpot)
    return replace(
        default,
        limits=limits,
        safety=policy.scheduler.safety,
        max_moves=policy.pd.max_moves,
        models=policy.models,
        queue_timeout=policy.limits.queue_timeout,
        max_queue=policy.limits.max_queue,
    )
