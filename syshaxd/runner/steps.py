"""One step of a request: a stay on one unit. Pure."""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass
from typing import Any, Dict, Mapping, Optional, Tuple

from syshaxd.model.plan import Reason
from syshaxd.model.request import Endpoint
from syshaxd.model.snapshot import Snapshot
from syshaxd.model.unit import UnitView

from . import bodies
from .bodies import Ticket
from .record import Record
from .request import ClientRequest


@dataclass(frozen=True)
class Step:
    """`then`: unit that decodes after this prefill, with `k` tokens from here. `handoff`: its kind for metrics, when
    the request comes from another unit. `load`: KV to begin with; `save`: where this unit keeps its KV; `remote`: what
    a unit that keeps KV for NIXL said of it."""

    unit: UnitView
    owned: bool
    reason: Reason
    then: str = ""
    k: int = 0
    handoff: str = ""
    load: Optional[Ticket] = None
    save: Optional[Ticket] = None
    remote: Optional[Mapping[str, Any]] = None

    @property
    def keeps_for_nixl(self) -> bool:
        """Whether it is a prefill whose answer tells where the KV is."""
        return self.prefill_only and self.unit.nixl

    @property
    def prefill_only(self) -> bool:
        """Whether the unit computes one token and stops."""
        return bool(self.then)


def new_ticket(unit: UnitView) -> Ticket:
    """Names a ticket in the unit's outbox."""
    return Ticket(secrets.token_hex(16), os.path.basename(unit.pool_file))


def kv_width(step: Step, snapshot: Snapshot) -> int:
    """Bytes of one token's KV in the ticket that the step loads; 0: none, or not known."""
    for unit in snapshot.units:
        if step.load is not None and unit.load is not None and os.path.basename(unit.view.pool_file) == step.load.pool:
            return unit.load.kv_token_bytes or 0
    return 0


def body_of(step: Step, request: ClientRequest, record: Record) -> Dict[str, Any]:
    """The upstream body of a step, from what the request has produced so far."""
    endpoint = request.info.endpoint
    model = step.unit.model or request.info.model
    if step.prefill_only:
        made = _prefill(request, endpoint, model)
        if step.unit.nixl:
            made = bodies.kept_for_nixl(made)
    elif step.owned:
        made = bodies.owned(request.body, model)
        if record.prompt_ids is not None:
            made = bodies.continued(made, endpoint, record.context(), record.output_tokens)
    else:
        made = bodies.relayed(request.body, model)
        if record.prompt_ids is not None:
            made = bodies.with_context(made, endpoint, record.context())
    if step.save is not None:
        made = bodies.with_save(made, step.save, _save_on(step))
    if step.remote is not None:
        made = bodies.with_transfer(made, **step.remote)
    return made if step.load is None else bodies.with_load(made, step.load)


def _save_on(step: Step) -> str:
    """A first token that ends the request (k = 1) leaves nothing to hand over."""
    if not step.prefill_only:
        return "abort"
    return "finish" if step.k == 0 else "length"


def _prefill(request: ClientRequest, endpoint: Endpoint, model: str) -> Dict[str, Any]:
    made = bodies.limited(bodies.owned(request.body, model), endpoint, 1)
    # A minimum above the maximum would be refused; any keeps the first token from being one that ends the answer.
    if made.get("min_tokens"):
        made["min_tokens"] = 1
    for key in ("logprobs", "top_logprobs") if request.info.first_token_stays else ():
        made.pop(key, None)
    return made


def response_ids(endpoint: Endpoint, leg_id: str) -> Tuple[str, ...]:
    """Names under which a unit knows the request (docs/kv-handoff.md section 1)."""
    if endpoint is Endpoint.CHAT:
        return (f"chatcmpl-{leg_id}",)
    return (f"cmpl-{leg_id}-0", f"cmpl-{leg_id}")
