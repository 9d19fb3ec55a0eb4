"""Real Podman and Docker, each with a service, a socket and (Docker) a store of its own, and a small image for both.

The image is empty but for links: what runs in it comes from the host's /usr, mounted read-only.
"""

from __future__ import annotations

import io
import os
import shutil
import signal
import subprocess
import tarfile
from collections.abc import Sequence
from pathlib import Path

from syshaxd.backends.container_spec import EngineKind

from .machine import CONTAINERS_CONF
from .processes import end_process, run, wait_for

IMAGE = "localhost/syshax-test:1"
ULIMITS = ("--default-ulimit", "nofile=1024:1024", "--default-ulimit", "nproc=1024:1024")


class RealEngine:
    """One engine's service. `stop` and `start` restart it; containers of Docker end with it, those of Podman do not."""

    def __init__(self, kind: EngineKind, folder: Path, **environ: str) -> None:
        self.kind = kind
        self.folder = folder
        self._environ = environ
        self.socket = str(folder / f"{kind.value}.sock")
        self.process: subprocess.Popen[bytes] | None = None
        self.images: list[str] = []  # to be removed at the end
        (folder / "containers.conf").write_text(CONTAINERS_CONF)

    def start(self) -> "RealEngine":
        """Run the service until it answers; one that does not is ended."""
        try:
            return self._start()
        except BaseException:
            self.close()
            raise

    def _start(self) -> "RealEngine":
        words: tuple[str, ...] = ("podman", "system", "service", "--time=0", f"unix://{self.socket}")
        if self.kind is EngineKind.DOCKER:
            roots = ("--data-root", f"{self.folder}/data", "--exec-root", f"{self.folder}/exec")
            words = ("dockerd", *roots, "-p", f"{self.folder}/pid", "-H", f"unix://{self.socket}", *ULIMITS)
        environ = {**os.environ, "CONTAINERS_CONF": str(self.folder / "containers.conf"), **self._environ}
        log = (self.folder / f"{self.kind.value}.log").open("ab")
        with log:
            self.process = subprocess.Popen(  # conmon leaves a file `oom` where the service runs
                words, stdout=log, stderr=log, env=environ, cwd=self.folder, start_new_session=True
            )
        curl = ("curl", "-sf", "--max-time", 5, "--unix-socket", self.socket, "http://engine/_ping")
        wait_for(f"{self.kind.value} answers", lambda: run(*curl, check=False).returncode == 0, timeout=60)
        return self

    def stop(self, number: int = signal.SIGTERM) -> None:
        """End the service."""
        process, self.process = self.process, None
        if process is not None:
            end_process(process, number, 60)

    def import_image(self) -> None:
        """The image, made here."""
        archive = self.folder / "rootfs.tar"
        archive.write_bytes(_rootfs())
        self.import_archive(archive, IMAGE)

    def import_archive(self, archive: Path, image: str) -> None:
        """An image out of the archive of a root folder."""
        self.cli("import", archive, image)
        self.images.append(image)

    def cli(self, *words: object, check: bool = True) -> str:
        """What the engine's own program says: the hand of an administrator."""
        return run(*self._program(), *words, check=check).stdout.strip()

    def _program(self) -> tuple[str, ...]:
        if self.kind is EngineKind.PODMAN:
            return ("env", f"CONTAINERS_CONF={self.folder}/containers.conf", "podman")
        return ("docker", "--host", f"unix://{self.socket}")

    def import_folder(self, root: Path, image: str, without: Sequence[str] = ()) -> None:
        """An image that is this folder; no copy of it is made on the way."""
        left_out = [f"--exclude=./{name}" for name in ("proc/*", "sys/*", "dev/*", *without)]
        words = (*self._program(), "import", "-", image)
        with subprocess.Popen(["tar", "-C", str(root), *left_out, "-c", "."], stdout=subprocess.PIPE) as tar:
            subprocess.run(words, stdin=tar.stdout, check=True, timeout=420, stdout=subprocess.DEVNULL)
        assert tar.returncode == 0
        self.images.append(image)

    def close(self) -> None:
        """End it and give back its space: Docker's store is its own, Podman's that of the machine."""
        try:
            self.stop()
        finally:
            for image in self.images if self.kind is EngineKind.PODMAN else ():
                run("podman", "rmi", "--force", image, check=False)
            for name in ("data", "exec"):
                shutil.rmtree(self.folder / name, ignore_errors=True)


def _rootfs() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name in ("usr", "etc", "tmp", "dev", "proc", "sys", "run"):
            folder = tarfile.TarInfo(name)
            folder.type, folder.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(folder)
        for name in ("bin", "lib", "lib64", "sbin"):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = tarfile.SYMTYPE, f"usr/{name}"
            archive.addfile(link)
    return out.getvalue()
