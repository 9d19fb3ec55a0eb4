"""Another host, which here is a network namespace joined to this one by a veth pair."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator, Mapping

from .processes import run


class FarHost:
    """Has the address `address`; ours in its eyes is `ours`. Its link can be cut and mended."""

    def __init__(self) -> None:
        number = os.getpid() % 60000
        self.name, self.link = f"syshax-far-{number}", f"sxf{number}"
        self.ours, self.address = (f"10.{200 + number % 50}.{number // 250 % 250}.{last}" for last in (1, 2))

    def __enter__(self) -> "FarHost":
        try:
            self._make()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _make(self) -> None:
        run("ip", "netns", "add", self.name)
        run("ip", "link", "add", self.link, "type", "veth", "peer", "name", "eth0", "netns", self.name)
        run("ip", "addr", "add", f"{self.ours}/30", "dev", self.link)
        run("ip", "-n", self.name, "addr", "add", f"{self.address}/30", "dev", "eth0")
        for device in ("lo", "eth0"):
            run("ip", "-n", self.name, "link", "set", device, "up")
        self.mend()

    def __exit__(self, *exc: object) -> None:
        run("ip", "link", "del", self.link, check=False)
        run("ip", "netns", "del", self.name, check=False)

    def cut(self) -> None:
        """The link is down."""
        run("ip", "link", "set", self.link, "down")

    def mend(self) -> None:
        """The link is up."""
        run("ip", "link", "set", self.link, "up")

    @contextlib.contextmanager
    def running(self, *words: object, env: Mapping[str, str]) -> Iterator["subprocess.Popen[bytes]"]:
        """A program that somebody else started there; its output goes to ours."""
        inside = ("ip", "netns", "exec", self.name, *map(str, words))
        process = subprocess.Popen(inside, env={**os.environ, **env}, start_new_session=True)
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
