"""The conductor: routes, authentication, admission, and the edge at which every error becomes an OpenAI error."""

from __future__ import annotations

import asyncio
import functools
import socket
import time
from collections.abc import Awaitable, Sequence
from typing import Any, Callable

import aiohttp
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from syshax_contract.error_form import BadBody
from syshax_contract.request_body import Bodies, BodyShare
from syshaxd.admission import admit
from syshaxd.admission.refusals import Refusal, error_of
from syshaxd.config.types import Config
from syshaxd.errors import SysHaxError
from syshaxd.log import Log
from syshaxd.metrics import MetricsService
from syshaxd.model.plan import Refuse
from syshaxd.model.ports import Snapshots, Units
from syshaxd.model.request import Endpoint, Route
from syshaxd.model.served import Models
from syshaxd.model.unit import UnitView
from syshaxd.runner import InFlightLedger, RequestError, Runner
from syshaxd.tasks import TaskSet, within
from syshaxd.unitclient import UnitClient

from .answers import BadRequest, error_response
from .connections import Connections, raise_soft_limit
from .counting import PromptCounter
from .disconnects import DisconnectWatch
from .generate import CLIENT_GONE, Generation
from .keys import check_key, read_keys
from .listeners import Listeners
from .origins import check_origin
from .parsing import parse_body, request_id_of
from .passthrough import FORWARDED, Passthrough

Handler = Callable[[web.Request, str], Awaitable[web.StreamResponse]]
BODY_TIMEOUT = 60.0  # seconds for a client to send its body
_MODEL = "/v1/models/"
BODY_BUDGET = 4  # bodies of the largest size that are held at a time, until they are parsed


class Conductor:
    """One per daemon. `start`, `reconfigure` at a reload, `stop_admitting` when draining, `close`."""

    def __init__(
        self,
        runner: Runner,
        client: UnitClient,
        units: Units,
        snapshots: Snapshots,
        metrics: MetricsService,
        ledger: InFlightLedger,
        config: Config,
    ) -> None:
        self._runner = runner
        self._units = units
        self._snapshots = snapshots
        self._metrics = metrics
        self._ledger = ledger
        self._config = config
        self._log = Log("conductor")
        self._keys: tuple[bytes, ...] = ()
        self._watch = DisconnectWatch()
        self._bodies = Bodies(BODY_BUDGET * config.conductor.max_body)
        self._generation = Generation(runner, self._watch, Log("access"), self._bodies)
        self._passthrough = Passthrough(client, units)
        self._counter = PromptCounter(client, units)
        self._tasks = TaskSet("conductor", self._task_failed)
        self._connections = Connections(raise_soft_limit())
        self._table = self._routes()
        self._created = int(time.time())
        self._admitting = True
        self._inherited = False
        self._app_runner: web.AppRunner | None = None
        self._listeners: Listeners | None = None

    async def start(self, sockets: Sequence[socket.socket] = ()) -> None:
        """Listens on inherited sockets, else where the configuration says. Raises SysHaxError."""
        self._keys = read_keys(self._config.conductor.api_keys_file)
        app = web.Application(client_max_size=0)  # the limit is our own: it may change at a reload
        app.router.add_route("*", "/{path:.*}", self._handle)
        self._app_runner = web.AppRunner(app, access_log=None, handle_signals=False)
        await self._app_runner.setup()
        assert self._app_runner.server is not None
        loop, server = asyncio.get_running_loop(), self._app_runner.server
        self._listeners = Listeners(lambda: self._connections.protocol(server, loop))
        self._inherited = bool(sockets)
        if sockets:
            await self._listeners.inherit(sockets)
        else:
            await self._listeners.listen(self._config.conductor.host, self._config.conductor.port)
        self._tasks.start("watch", self._watch.run())
        self._tasks.start("silent connections", self._connections.sweep())

    @property
    def addresses(self) -> tuple[tuple[str, int], ...]:
        """Where it listens."""
        return self._listeners.addresses if self._listeners is not None else ()

    async def reconfigure(self, config: Config) -> None:
        """Keys, limits and listeners of a new configuration, or an error and no change. Streams go on."""
        keys = read_keys(config.conductor.api_keys_file)
        if self._listeners is not None and not self._inherited:
            await self._listeners.listen(config.conductor.host, config.conductor.port)
        self._config, self._keys = config, keys
        self._bodies.budget = BODY_BUDGET * config.conductor.max_body

    def stop_listening(self) -> None:
        """Accepts no new connections (an inherited socket keeps them for the next process)."""
        if self._listeners is not None:
            self._listeners.close()

    def stop_admitting(self) -> None:
        """New requests get 503 from now on; those in flight go on."""
        self._admitting = False

    def resume_admitting(self) -> None:
        """After a drain that an operator took back."""
        self._admitting = True

    async def close(self) -> None:
        """Ends what is left. Requests should have been drained before."""
        self.stop_listening()
        await self._tasks.close()
        self._bodies.close()
        if self._app_runner is not None:
            await self._app_runner.cleanup()

    # ---- the edge ----

    async def _handle(self, http: web.Request) -> web.StreamResponse:
        request_id = request_id_of(http.headers)
        headers = {"x-request-id": request_id}
        try:
            with self._connections.answering(http):
                return await self._route(http)(http, request_id)
        except RequestError as err:
            if err.status >= 500 or err.status == 429:
                self._log.warning("request not served", request_id=request_id, status=err.status, error=str(err))
            return error_response(err, headers)
        except (asyncio.CancelledError, web.HTTPException):
            raise
        except Exception as err:  # the edge: a fault of ours must not end a client's connection without an answer
            self._log.error("a request failed inside the daemon", request_id=request_id, error=err)
            failure = RequestError(500, "internal_error", f"internal error; the log has it under {request_id}")
            return error_response(failure, headers)

    def _route(self, http: web.Request) -> Handler:
        path = _path(http)
        if not self._keys:
            check_origin(http.headers, self._config.conductor.allowed_hosts)
        method, handler = self._table.get(path, ("", None))
        if path.startswith(_MODEL):
            method, handler = "GET", functools.partial(self._model, path[len(_MODEL) :])
        if handler is None:
            raise BadRequest(f"unknown URL {http.method} {path}", status=404, code="unknown_url")
        if http.method != method and not (method == "GET" and http.method == "HEAD"):
            raise BadRequest(f"{path} takes {method}, not {http.method}", status=405, code="method_not_allowed")
        if path not in ("/health", "/ping", "/health/live", "/metrics"):
            check_key(http.headers.get("Authorization", ""), self._keys)
        return handler

    def _routes(self) -> dict[str, tuple[str, Handler]]:
        routes: dict[str, tuple[str, Handler]] = {path: ("POST", self._forward) for path in FORWARDED}
        routes.update(
            {
                "/v1/chat/completions": ("POST", self._chat),
                "/v1/chat/pd_disagg": ("POST", self._forced_split),
                "/v1/completions": ("POST", self._completions),
                "/v1/models": ("GET", self._models),
                "/health": ("GET", self._health),
                "/ping": ("GET", self._health),
                "/health/live": ("GET", self._live),
                "/metrics": ("GET", self._metrics_text),
            }
        )
        return routes

    # ---- handlers ----

    async def _chat(self, http: web.Request, request_id: str) -> web.StreamResponse:
        return await self._generate(http, request_id, Endpoint.CHAT, None)

    async def _forced_split(self, http: web.Request, request_id: str) -> web.StreamResponse:
        return await self._generate(http, request_id, Endpoint.CHAT, Route.SPLIT)

    async def _completions(self, http: web.Request, request_id: str) -> web.StreamResponse:
        return await self._generate(http, request_id, Endpoint.COMPLETIONS, None)

    async def _generate(
        self, http: web.Request, request_id: str, endpoint: Endpoint, forced: Route | None
    ) -> web.StreamResponse:
        with self._bodies.share() as share:
            data = await self._body(http, share)
            keyed = bool(self._keys)
            request = await self._generation.parse(data, endpoint, http, request_id, forced, keyed)
        refusal = admit.at_the_door(request.info.model, self._model_names(), self._admitting)
        if refusal is not None:
            raise error_of(refusal)
        counted = await self._counter.counted(request, len(data), self._config)
        return await self._generation.serve(http, counted)

    def _model_names(self) -> tuple[str, ...]:
        return self._config.served.names(self._units.views())

    async def _forward(self, http: web.Request, request_id: str) -> web.StreamResponse:
        timeout, served = self._config.limits.first_token_timeout, self._config.served
        with self._bodies.share() as share:
            data = await self._body(http, share)
            body = await self._bodies.run(len(data), parse_body, data, http.headers, self._config.conductor.max_body)
        return await self._passthrough.serve(_path(http), body, request_id, timeout, served)

    async def _models(self, http: web.Request, request_id: str) -> web.StreamResponse:
        cards = [self._card(name) for name in self._model_names()]
        return web.json_response({"object": "list", "data": cards}, headers={"x-request-id": request_id})

    async def _model(self, name: str, http: web.Request, request_id: str) -> web.StreamResponse:
        if name not in self._model_names():
            raise error_of(Refusal.UNKNOWN_MODEL.told(model=name, served=", ".join(self._model_names())))
        return web.json_response(self._card(name), headers={"x-request-id": request_id})

    def _card(self, name: str) -> dict[str, Any]:
        """As vLLM has it, so that its benchmark finds its way."""
        length = _longest(self._config.served, name, self._units.views())
        return {
            "id": name, "object": "model", "created": self._created, "owned_by": "syshax", "root": name,
            "parent": None, "max_model_len": length,
        }  # fmt: skip

    async def _health(self, http: web.Request, request_id: str) -> web.StreamResponse:
        """Readiness: 200 while a request would be admitted and a unit is READY, else 503."""
        units = {view.name: view.state.value for view in self._units.views()}
        ready = any(view.ready for view in self._units.views())
        state = "draining" if not self._admitting else "ok" if ready else "no unit ready"
        body: dict[str, Any] = {"status": state, "units": units}
        return web.json_response(body, status=200 if state == "ok" else 503)

    async def _live(self, http: web.Request, request_id: str) -> web.StreamResponse:
        """Liveness: the loop answers."""
        return web.json_response({"status": "alive"})

    async def _metrics_text(self, http: web.Request, request_id: str) -> web.StreamResponse:
        enabled = self._config.pd.enabled and self._snapshots.snapshot().pd.enabled
        text, content_type = self._metrics.render(
            self._units.views(), self._ledger.per_unit(), self._ledger.queued, enabled
        )
        return web.Response(body=text, headers={"Content-Type": content_type})

    async def _body(self, http: web.Request, share: BodyShare) -> bytes:
        """As it came, still encoded."""
        limit = self._config.conductor.max_body
        _check_size(http.content_length or 0, limit)
        try:
            return await within(BODY_TIMEOUT, "reading the body", share.read(http.content.iter_any(), limit))
        except ConnectionError as err:  # nobody is there to read the answer; aiohttp would log a stack trace
            raise RequestError(CLIENT_GONE, "client_gone", "the client left before its body was complete") from err
        except BadBody as err:
            raise error_of(_too_much(err, limit)) from err
        except (HttpProcessingError, web.RequestPayloadError, aiohttp.ClientPayloadError) as err:
            raise BadRequest("the body is not transferred as its headers say", code="invalid_body") from err
        except (SysHaxError, web.HTTPException) as err:
            raise BadRequest("the body did not arrive in time", status=408, code="request_timeout") from err

    def _task_failed(self, name: str, error: BaseException) -> None:
        self._log.error("a task failed", task=name, error=error)


def _path(http: web.Request) -> str:
    """//v1/models/ is /v1/models."""
    return "/" + "/".join(filter(None, http.path.split("/")))


def _longest(served: Models, name: str, views: Sequence[UnitView]) -> int | None:
    """The longest context that a request of that model may have."""
    mine = (view for view in views if view.ready and served.serves(view, name))
    return max((view.max_model_len for view in mine if view.max_model_len), default=None)


def _too_much(err: BadBody, limit: int) -> Refuse:
    return Refusal.TOO_MANY_BODIES.told() if err.status == 429 else Refusal.BODY_TOO_LARGE.told(limit=limit)


def _check_size(size: int, limit: int) -> None:
    refusal = admit.of_size(size, limit)
    if refusal is not None:
        raise error_of(refusal)
