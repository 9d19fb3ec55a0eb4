"""Endpoints that a unit serves and the daemon only forwards."""

from __future__ import annotations

import json
from typing import Any

from aiohttp import web

from syshaxd.admission import admit
from syshaxd.admission.refusals import Refusal, error_of
from syshaxd.errors import UnitError
from syshaxd.model.ports import Units
from syshaxd.model.served import Models
from syshaxd.model.unit import Role, UnitView
from syshaxd.runner import RequestError
from syshaxd.unitclient import Answer, Target, UnitClient

FORWARDED = (
    "/tokenize",
    "/detokenize",
    "/v1/embeddings",
    "/v1/rerank",
    "/v2/rerank",
    "/rerank",
    "/v1/score",
    "/score",
    "/pooling",
    "/classify",
)
_ABSENT = (404, 405, 501)


class Passthrough:
    """Asks READY units in turn, accelerator side first, until one has the endpoint."""

    def __init__(self, client: UnitClient, units: Units) -> None:
        self._client = client
        self._units = units

    async def serve(
        self, path: str, body: dict[str, Any], request_id: str, timeout: float, served: Models
    ) -> web.Response:
        """The answer of a unit of the model that is named; raises RequestError when no unit can give one."""
        named = body.get("model")
        model = named if isinstance(named, str) and named else served.default
        unknown = admit.of_model(model, served.names(self._units.views())) if model else None
        if unknown is not None:
            raise error_of(unknown)
        failure: UnitError | None = None
        absent: Answer | None = None
        for view in self._ready(served, model):
            own = {**body, "model": view.model} if view.model and "model" in body else body
            target = Target(view.name, view.url, self._units.api_key(view.name))
            try:
                answer = await self._client.forward(target, "POST", path, json.dumps(own).encode(), timeout, request_id)
            except UnitError as err:
                failure = err
                if err.blames_unit:
                    self._units.suspect(view.name, view.epoch, str(err))
                continue
            if answer.status not in _ABSENT:
                headers = {"x-request-id": request_id, "Content-Type": answer.content_type or "application/json"}
                return web.Response(body=answer.body, status=answer.status, headers=headers)
            absent = answer
        raise _nobody(path, absent, failure)

    def _ready(self, served: Models, model: str) -> tuple[UnitView, ...]:
        ready = [view for view in self._units.views() if view.ready and served.serves(view, model)]
        return tuple(sorted(ready, key=lambda view: view.role is not Role.ACCELERATOR))


def _nobody(path: str, absent: Answer | None, failure: UnitError | None) -> RequestError:
    if failure is not None:
        return RequestError(502, "unit_failed", str(failure), 1.0)
    if absent is not None:
        return RequestError(404, "not_found", f"no unit of this host serves {path}")
    return error_of(Refusal.NO_UNIT_READY.told(what="endpoint"))
