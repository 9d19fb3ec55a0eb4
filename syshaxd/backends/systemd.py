"""Process units as services of systemd, `syshax-unit@NAME.service`: outside the daemon's sandbox, alive across its
restarts (docs/adr/0005). systemd's state is the truth; its lines come from the journal; its end from a pidfd."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from syshaxd.errors import BackendError, DeadlineError
from syshaxd.tasks import cancelled, put_down, within

from .backend import Adopted, Capabilities, Exit, LaunchSpec, LineSplitter, OnLine, PipeReader, Running
from .pidfd import has_ended, process_end
from .process import tree_activity

CALL_TIMEOUT = 30.0  # seconds for one systemctl call
SETTLE_TIMEOUT = 30.0  # seconds from the end of the main process until systemd has cleared the rest away
LAST_WORDS = 0.5  # seconds for the journal to show what a unit wrote before it ended
CLD_EXITED = 1  # waitid(2): ExecMainCode of a process that ended by itself
TEMPLATE = Path("/usr/lib/systemd/system/syshax-unit@.service")


def available(invocation_id: str, template: Path = TEMPLATE) -> bool:
    """Whether the daemon runs as a service (INVOCATION_ID) on a host where the unit template is installed."""
    return bool(invocation_id) and template.exists() and Path("/run/systemd/system").exists()


@dataclass(frozen=True)
class ServiceState:
    """What systemd says of a unit's service."""

    active: str = "inactive"
    pid: int = 0
    code: int = 0
    status: int = 0
    invocation: str = ""

    @property
    def ended(self) -> bool:
        """Whether nothing of it runs any more."""
        return self.active in ("inactive", "failed")

    @property
    def exit_code(self) -> int:
        """Exit status, or minus the signal's number."""
        return self.status if self.code in (0, CLD_EXITED) else -self.status


class Systemctl:
    """systemd, by its command. `program` and `journal` are programs on PATH, or paths."""

    def __init__(self, program: str = "systemctl", journal: str = "journalctl") -> None:
        self._program = program
        self._journal = journal

    async def call(self, verb: str, *words: str) -> str:
        """Output of one call. BackendError with systemd's own text when it fails, or takes too long."""
        command = (self._program, "--no-ask-password", verb, *words)
        try:
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
            )
        except OSError as err:
            raise BackendError(f"cannot run {self._program}: {err.strerror}") from err
        try:
            output, errors = await within(CALL_TIMEOUT, " ".join(command), process.communicate())
        except DeadlineError as err:
            raise BackendError(str(err)) from err
        finally:
            if process.returncode is None:
                await put_down(process)
        if process.returncode != 0:
            text = errors.decode("utf-8", "replace").strip()
            raise BackendError(f"{' '.join(command)}: {text or f'status {process.returncode}'}")
        return output.decode("utf-8", "replace")

    async def state(self, service: str) -> ServiceState:
        """The service as it is now."""
        names = "ActiveState,MainPID,ExecMainCode,ExecMainStatus,InvocationID"
        lines = (await self.call("show", f"--property={names}", service)).splitlines()
        values: Mapping[str, str] = dict(line.split("=", 1) for line in lines if "=" in line)
        return ServiceState(
            values.get("ActiveState", "inactive"),
            int(values.get("MainPID") or 0),
            int(values.get("ExecMainCode") or 0),
            int(values.get("ExecMainStatus") or 0),
            values.get("InvocationID", ""),
        )

    async def end(self, service: str) -> None:
        """Stop it and wait; kill it where it does not obey."""
        try:
            await self.call("stop", service)
        except BackendError:
            await self.call("kill", "--signal=SIGKILL", service)
            await self.settled(service)

    async def settled(self, service: str) -> ServiceState:
        """Its state once nothing of it runs any more."""

        async def poll() -> ServiceState:
            state = await self.state(service)
            while not state.ended:
                await asyncio.sleep(0.05)
                state = await self.state(service)
            return state

        return await within(SETTLE_TIMEOUT, f"end of {service}", poll())

    async def restarting(self, service: str = "syshaxd.service") -> bool:
        """Whether the job that stops the daemon will start it again."""
        jobs = await self.call("list-jobs", "--no-legend", "--plain", service)
        return any(line.split()[1:3] == [service, "restart"] for line in jobs.splitlines())

    async def follow(self, invocation: str, on_line: OnLine) -> "Follower":
        """Lines of one run of a service, those already written and those to come."""
        words = ("--follow", "--no-tail", "--output=cat", f"_SYSTEMD_INVOCATION_ID={invocation}")
        read_end, write_end = os.pipe()
        pipe = os.fdopen(read_end, "rb", 0)
        loop = asyncio.get_running_loop()
        transport, reader = await loop.connect_read_pipe(lambda: PipeReader(LineSplitter(on_line)), pipe)
        try:
            process = await asyncio.create_subprocess_exec(
                self._journal, *words, stdin=asyncio.subprocess.DEVNULL, stdout=write_end, stderr=write_end
            )
        except OSError as err:
            transport.close()
            raise BackendError(f"cannot run {self._journal}: {err.strerror}") from err
        finally:
            os.close(write_end)
        return Follower(process, transport, reader)


class Follower:
    """A journalctl that writes into the daemon. Owned by one SystemdUnit."""

    def __init__(
        self, process: asyncio.subprocess.Process, transport: asyncio.ReadTransport, reader: PipeReader
    ) -> None:
        self._process = process
        self._transport = transport
        self._reader = reader

    async def close(self, patience: float) -> None:
        """End it after what may still come within `patience` seconds."""
        await asyncio.wait({self._reader.closed}, timeout=patience)
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()
        self._transport.close()


class SystemdBackend:
    """Backend for kind `process` when the daemon itself is a service."""

    capabilities = Capabilities(survives_daemon=True, reports_activity=True, keeps_log=True)

    def __init__(self, state_dir: str, systemctl: Systemctl | None = None) -> None:
        self._folder = Path(state_dir) / "units"
        self._systemctl = systemctl or Systemctl()

    async def start(self, spec: LaunchSpec, on_line: OnLine) -> Running:
        """See Backend. Something left under this name is ended first."""
        service = service_name(spec.unit)
        await self._systemctl.end(service)
        write_launch_file(launch_file(self._folder, spec.unit), spec)
        try:
            await self._systemctl.call("start", service)
            return await self._watch(service, on_line)
        except BackendError as err:
            raise BackendError(f"unit {spec.unit}: {err}; see journalctl -u {service}") from err
        except asyncio.CancelledError:
            await self._systemctl.end(service)
            raise

    async def adopt(self, spec: LaunchSpec, on_line: OnLine) -> Adopted | None:
        """See Backend."""
        launched = read_launch_file(launch_file(self._folder, spec.unit))
        service = service_name(spec.unit)
        state = await self._systemctl.state(service)
        if launched.get("digest") != spec.digest or state.active != "active" or not state.pid:
            return None
        url, contract = str(launched.get("url", spec.url)), str(launched.get("contract", ""))
        return Adopted(await self._watch(service, on_line), url, contract)

    async def close(self) -> None:
        """Holds nothing."""

    async def _watch(self, service: str, on_line: OnLine) -> "SystemdUnit":
        state = await self._systemctl.state(service)
        follower = await self._systemctl.follow(state.invocation, on_line)
        return SystemdUnit(service, state.pid, self._systemctl, follower)


class SystemdUnit:
    """Running, for a service. One task watches its end."""

    container = ""

    def __init__(self, service: str, pid: int, systemctl: Systemctl, follower: Follower) -> None:
        self._service = service
        self._pid = pid
        self._systemctl = systemctl
        self._follower = follower
        self._asked = False
        self._ended = asyncio.get_running_loop().create_task(self._watch(), name=f"systemd.{service}")

    @property
    def pid(self) -> int | None:
        """See Running."""
        return self._pid or None

    async def wait(self) -> Exit:
        """See Running."""
        return await asyncio.shield(self._ended)

    async def stop(self, grace: float) -> Exit:
        """See Running."""
        self._asked = self._asked or not has_ended(self._pid)
        await self._systemctl.call("stop", "--no-block", self._service)
        await asyncio.wait({self._ended}, timeout=grace)
        return await self.kill()

    async def kill(self) -> Exit:
        """See Running."""
        self._asked = self._asked or not has_ended(self._pid)
        if not self._ended.done():
            with contextlib.suppress(BackendError):  # it may have ended meanwhile; wait() tells
                await self._systemctl.call("kill", "--signal=SIGKILL", self._service)
        return await self.wait()

    def activity(self) -> int | None:
        """See Running."""
        return tree_activity(self._pid)

    async def release(self) -> None:
        """See Running. The service goes on."""
        await cancelled(self._ended)
        await self._follower.close(0.0)  # a task cancelled before its first step runs no `finally`

    async def _watch(self) -> Exit:
        code: int | None = None
        patience = 0.0
        try:
            await process_end(self._pid)
            patience = LAST_WORDS
            code = (await self._systemctl.settled(self._service)).exit_code
        except (BackendError, DeadlineError):
            code = None  # it is gone all the same
        finally:
            await self._follower.close(patience)
        return Exit(code, self._asked)


def service_name(unit: str) -> str:
    """Name of a unit's service."""
    return f"syshax-unit@{unit}.service"


def launch_file(folder: Path, unit: str) -> Path:
    """What launch_file.py reads for a unit."""
    return folder / f"{unit}.launch"


def write_launch_file(path: Path, spec: LaunchSpec) -> None:
    """Readable for the daemon's user only: an environment may hold secrets. BackendError where it can't be written."""
    text = json.dumps({**asdict(spec), "env": dict(spec.env), "cpus": sorted(spec.cpus)})
    temporary = path.with_suffix(".launch.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        temporary.unlink(missing_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        temporary.rename(path)
    except OSError as err:
        raise BackendError(f"unit {spec.unit}: cannot write {path}: {err.strerror}") from err


def read_launch_file(path: Path) -> Mapping[str, object]:
    """What was written for the last start; empty where there is none or it is damaged."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}
