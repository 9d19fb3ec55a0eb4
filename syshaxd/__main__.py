"""`syshaxd`, `python -m syshaxd`: arguments, exit codes, the event loop."""

from __future__ import annotations

import argparse
import asyncio
import os
import resource
import signal
import sys
from collections.abc import Sequence

from syshaxd import __version__
from syshaxd import log as logging
from syshaxd.backends.systemd import Systemctl, available
from syshaxd.config import Source, find_source
from syshaxd.config.embedded import remove_private_pool
from syshaxd.config.types import Config
from syshaxd.engine import Engine, EngineSurroundings, inherited_sockets
from syshaxd.errors import ConfigError, SysHaxError
from syshaxd.sdnotify import Notifier
from syshaxd.supervisor.binding.host_tree import read_host

EX_FAILURE = 1
MOST_DESCRIPTORS = 1 << 18
EX_CONFIG = 78  # sysexits.h; the service file keeps systemd from trying again

log = logging.Log("engine")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the daemon until it is told to stop; returns the exit code."""
    options = _parser().parse_args(argv)
    environ = os.environ
    journal, invocation = environ.get("JOURNAL_STREAM", ""), environ.get("INVOCATION_ID", "")
    notifier = Notifier.from_environment(environ)
    source = find_source(options.config, environ)
    raise_descriptor_limit()
    logging.setup("info", journal)
    try:
        config = source.load()
        _set_level(config.log.level, notifier.present)
        return asyncio.run(_serve(source, config, notifier, invocation))
    except ConfigError as err:
        print(*err.problems, sep="\n", file=sys.stderr)
        notifier.stopping(f"configuration: {err.problems[0]}")
        return EX_CONFIG
    except SysHaxError as err:
        log.error("cannot start", message_id=logging.DAEMON_STOPPED, reason=str(err))
        return EX_FAILURE
    finally:
        notifier.close()


def raise_descriptor_limit() -> None:
    """The usual soft limit of 1024 is one of programs that use select(2); each connection takes a descriptor here."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, MOST_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="syshaxd", description="sysHAX daemon; see syshaxd(8)")
    parser.add_argument("--config", metavar="PATH", help="folder or file (default: $SYSHAX_CONFIG, then /etc/syshax)")
    parser.add_argument("verb", nargs="?", choices=("run",), help="accepted, so that `python3 -m syshaxd run` works")
    parser.add_argument("--version", action="version", version=f"syshaxd {__version__}")
    return parser


async def _serve(source: Source, config: Config, notifier: Notifier, invocation: str) -> int:
    environ = os.environ
    sockets = inherited_sockets(environ)
    foreground = not notifier.present
    around = EngineSurroundings(
        source=source,
        notifier=notifier,
        environ=dict(environ),
        look_at_host=read_host,
        sockets=sockets,
        systemctl=Systemctl() if available(invocation) else None,
        on_settled=_greet if foreground else lambda engine: None,
        on_level=lambda level: _set_level(level, not foreground),
    )
    engine = Engine(config, around)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, engine.stop)
    loop.add_signal_handler(signal.SIGHUP, engine.request_reload)
    try:
        return await engine.run()
    finally:
        remove_private_pool(config.pd.pool_dir)


def _set_level(level: str, unit_lines: bool) -> None:
    """In the foreground the lines that units write are kept (`syshax units logs`), but not shown unless debugging."""
    logging.set_level(level)
    logging.show_units(unit_lines or level == "debug")


def _greet(engine: Engine) -> None:
    """What to do now, for the person at the terminal."""
    status = engine.status()
    for unit in status["units"]:
        if unit["state"] == "failed":
            print(f"unit {unit['name']} failed: {unit['reason']}", *unit["last_log"][-10:], sep="\n  ", file=sys.stderr)
    pd = "on" if status["pd"]["enabled"] else f"off ({status['pd']['reason']})"
    print(_GREETING.format(url=status["url"], model=status["model"], pd=pd), flush=True)


_GREETING = """\

sysHAX serves {model} at {url}/v1; split between the units: {pd}. Try:

  curl {url}/v1/chat/completions -H 'Content-Type: application/json' \\
    -d '{{"model": "{model}", "messages": [{{"role": "user", "content": "What is a glacier?"}}], "temperature": 0}}'

Ctrl-C stops everything.
"""


if __name__ == "__main__":
    sys.exit(main())
