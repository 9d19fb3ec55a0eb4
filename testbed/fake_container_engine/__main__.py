"""`python -m testbed.fake_container_engine SOCKET --fault NAME`: Docker's API as far as it is used; prints `READY`.

SIGUSR1 takes the socket away (the containers go on), SIGUSR2 brings it back.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
from typing import Any

import aiohttp
from aiohttp import web

FAULTS = (
    "no-gpu", "pull-error", "deaf-wait", "oom", "name-in-use", "port-in-use", "cut-logs", "garbage", "old-api",
    "no-name-label",
)  # fmt: skip
# How long the end waits for handlers: an option of the runner, before aiohttp 3.9 of the site.
OF_RUNNER = tuple(int(part) for part in aiohttp.__version__.split(".")[:2]) >= (3, 9)
SHUTDOWN: dict[str, Any] = {"shutdown_timeout": 0.1}


class FakeContainer:
    """One child process and what it wrote."""

    def __init__(self, number: int, name: str, request: dict[str, Any]) -> None:
        self.id = f"{number:064x}"
        self.name = name
        self.request = request
        self.process: Any = None
        self.output = bytearray()
        self.more = asyncio.Event()
        self.ended = asyncio.Event()

    async def run(self) -> None:
        """Start it, and read it to its end."""
        argv = [*self.request["Entrypoint"], *self.request["Cmd"]]
        pipe = asyncio.subprocess.PIPE
        env = {**os.environ, **dict(item.split("=", 1) for item in self.request.get("Env", ()))}
        self.process = await asyncio.create_subprocess_exec(
            *argv, stdout=pipe, stderr=asyncio.subprocess.STDOUT, env=env
        )
        self.task = asyncio.ensure_future(self._read())

    async def _read(self) -> None:
        while True:
            data = await self.process.stdout.read(65536)
            if not data:
                break
            self.output += b"\1\0\0\0" + len(data).to_bytes(4, "big") + data
            self.more.set()
        await self.process.wait()
        self.ended.set()
        self.more.set()

    @property
    def running(self) -> bool:
        """Whether it runs."""
        return self.process is not None and not self.ended.is_set()

    @property
    def code(self) -> int:
        """As engines count: 128 + signal."""
        status = self.process.returncode if self.process else 0
        return 128 - status if status is not None and status < 0 else status or 0


class FakeEngine:
    """All containers and images."""

    def __init__(self, faults: set[str]) -> None:
        self.faults = faults
        self.containers: list[FakeContainer] = []
        self.images = {"here:1"}
        self.made = 0
        self.log_calls = 0

    def app(self) -> web.Application:
        """Routes."""
        app = web.Application()
        prefix = "/{v:v[0-9.]+}"
        one = prefix + "/containers/{id}"
        app.add_routes(
            [
                web.get("/version", self.version),
                web.get(prefix + "/containers/json", self.find),
                web.post(prefix + "/containers/create", self.create),
                web.post(one + "/start", self.start),
                web.post(one + "/stop", self.stop),
                web.post(one + "/kill", self.kill),
                web.post(one + "/wait", self.wait),
                web.post(one + "/exec", self.make_exec),
                web.get(one + "/logs", self.logs),
                web.get(one + "/json", self.inspect),
                web.delete(one, self.remove),
                web.post(prefix + "/exec/x/start", self.nothing),
                web.get(prefix + "/exec/x/json", self.exec_state),
                web.post(prefix + "/images/create", self.pull),
                web.get(prefix + "/images/{name:.+}/json", self.image),
            ]
        )
        return app

    def _named(self, request: web.Request) -> FakeContainer:
        name = request.match_info["id"]
        for one in self.containers:
            if name in (one.id, one.name):
                return one
        raise _error(web.HTTPNotFound, "no such container")

    async def version(self, request: web.Request) -> web.Response:
        """GET /version."""
        if "garbage" in self.faults:
            return web.Response(text="<html>not an engine</html>")
        api = "1.24" if "old-api" in self.faults else "1.41"
        return web.json_response({"ApiVersion": api, "MinAPIVersion": "1.12", "Version": "20.10"})

    async def find(self, request: web.Request) -> web.Response:
        """Containers by label."""
        wanted = set(json.loads(request.query["filters"])["label"])
        rows = [
            {"Id": one.id} for one in self.containers
            if wanted <= {f"{key}={value}" for key, value in one.request["Labels"].items()}
        ]  # fmt: skip
        return web.json_response(rows)

    async def create(self, request: web.Request) -> web.Response:
        """A container that does not run yet."""
        name = request.query["name"]
        if "name-in-use" in self.faults:
            raise _error(web.HTTPConflict, f'Conflict. The container name "/{name}" is already in use')
        body = await request.json()
        assert body["StopTimeout"] > 0
        if "no-name-label" in self.faults:  # as a daemon before that label made it
            del body["Labels"]["io.syshax.name"]
        self.made += 1
        self.containers.append(FakeContainer(self.made, name, body))
        return web.json_response({"Id": self.containers[-1].id}, status=201)

    async def start(self, request: web.Request) -> web.Response:
        """Run it."""
        if "port-in-use" in self.faults:
            raise _error(web.HTTPInternalServerError, "driver failed: Bind for 127.0.0.1:1: port is already allocated")
        await self._named(request).run()
        return web.Response(status=204)

    async def stop(self, request: web.Request) -> web.Response:
        """SIGTERM, then SIGKILL after t."""
        one = self._named(request)
        if one.running:
            one.process.terminate()
            await asyncio.wait({asyncio.ensure_future(one.ended.wait())}, timeout=float(request.query["t"]))
            if one.running:
                one.process.kill()
        return web.Response(status=204)

    async def kill(self, request: web.Request) -> web.Response:
        """SIGKILL."""
        one = self._named(request)
        if not one.running:
            raise _error(web.HTTPConflict, "is not running")
        one.process.kill()
        return web.Response(status=204)

    async def wait(self, request: web.Request) -> web.Response:
        """Until its end, or for ever."""
        one = self._named(request)
        await (asyncio.Event() if "deaf-wait" in self.faults else one.ended).wait()
        return web.json_response({"StatusCode": one.code})

    async def make_exec(self, request: web.Request) -> web.Response:
        """Nothing is run."""
        return web.json_response({"Id": "x"}, status=201)

    async def nothing(self, request: web.Request) -> web.Response:
        """An empty answer."""
        return web.Response()

    async def exec_state(self, request: web.Request) -> web.Response:
        """What the command inside returned."""
        return web.json_response({"ExitCode": int("no-gpu" in self.faults)})

    async def logs(self, request: web.Request) -> web.StreamResponse:
        """All it wrote and writes; the first call ends in the middle under `cut-logs`."""
        one, response, at = self._named(request), web.StreamResponse(), 0
        await response.prepare(request)
        self.log_calls += 1
        cut = "cut-logs" in self.faults and self.log_calls == 1
        while True:
            one.more.clear()
            data = bytes(one.output[at:])
            if data:
                await response.write(data[: len(data) // 2] if cut else data)
            if cut and data:
                assert request.transport is not None
                request.transport.close()
                return response
            at += len(data)
            if one.ended.is_set() and at == len(one.output):
                return response
            await one.more.wait()

    async def inspect(self, request: web.Request) -> web.Response:
        """As Docker tells it."""
        one = self._named(request)
        running = one.running or ("deaf-wait" in self.faults and one.process is not None)
        state = {
            "Running": running,
            "Pid": one.process.pid if running else 0,
            "ExitCode": one.code,
            "OOMKilled": "oom" in self.faults and not running,
        }
        labels = one.request["Labels"]
        return web.json_response({"Id": one.id, "Name": f"/{one.name}", "State": state, "Config": {"Labels": labels}})

    async def remove(self, request: web.Request) -> web.Response:
        """Forget it."""
        self.containers.remove(self._named(request))
        return web.Response(status=204)

    async def image(self, request: web.Request) -> web.Response:
        """Whether it is here."""
        if request.match_info["name"] not in self.images:
            raise _error(web.HTTPNotFound, "no such image")
        return web.json_response({"Id": "sha256:1"})

    async def pull(self, request: web.Request) -> web.StreamResponse:
        """Two layers, then the image is here, or an error inside the stream."""
        response = web.StreamResponse()
        await response.prepare(request)
        for current in (1, 2):
            event = {"id": "a", "progressDetail": {"current": current * 10**9, "total": 2 * 10**9}}
            await response.write(json.dumps(event).encode() + b"\n")
        if "pull-error" in self.faults:
            await response.write(b'{"error": "manifest unknown"}\n')
        else:
            self.images.add(f"{request.query['fromImage']}:{request.query['tag']}")
        return response


def _error(kind: Any, message: str) -> Any:
    return kind(text=json.dumps({"message": message}), content_type="application/json")


async def main() -> None:
    """Serves until SIGTERM; its containers end with it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("socket")
    parser.add_argument("--fault", action="append", default=[], choices=FAULTS)
    args = parser.parse_args()
    engine = FakeEngine(set(args.fault))
    loop, stop, away, back = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event(), asyncio.Event()
    for number, event in ((signal.SIGTERM, stop), (signal.SIGUSR1, away), (signal.SIGUSR2, back)):
        loop.add_signal_handler(number, event.set)
    while not stop.is_set():
        runner = web.AppRunner(engine.app(), access_log=None, handle_signals=False, **(SHUTDOWN if OF_RUNNER else {}))
        await runner.setup()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(args.socket)
        await web.UnixSite(runner, args.socket, **({} if OF_RUNNER else SHUTDOWN)).start()
        print("READY", flush=True)
        waiters = [asyncio.ensure_future(event.wait()) for event in (stop, away)]
        await asyncio.wait(waiters, return_when=asyncio.FIRST_COMPLETED)
        await runner.cleanup()
        if away.is_set() and not stop.is_set():
            print("AWAY", flush=True)
            await back.wait()
            away.clear()
            back.clear()
    for one in engine.containers:
        if one.running:
            one.process.kill()
            await one.ended.wait()


if __name__ == "__main__":
    asyncio.run(main())
