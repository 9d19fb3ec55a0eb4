"""**Runner**: carries decisions out; owns every request in flight, its legs on units, its moves."""

from __future__ import annotations

from .client_request import ClientRequest, Head, RequestError
from .handover_rules import features_of, handover_rules
from .ledger import InFlightLedger
from .runner import Runner
from .stream import Stream

__all__ = [
    "ClientRequest",
    "Head",
    "InFlightLedger",
    "RequestError",
    "Runner",
    "Stream",
    "features_of",
    "handover_rules",
]
