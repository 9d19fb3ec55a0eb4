"""A machine to install on: a Debian root with dnf, booted by systemd in a podman container, and our packages in a repo.

One stub package tells dnf, in RPM words, what the Debian root already provides, and carries the file triggers that the
systemd package of an RPM distribution has (daemon-reload, sysusers, tmpfiles).
"""

from __future__ import annotations

import hashlib
import json
import resource
import shutil
import subprocess
from pathlib import Path

from .processes import ROOT, run, wait_for

BUILD = ROOT / "build" / "system"
DEBIAN = "bookworm"
PACKAGES = (
    "systemd systemd-sysv dbus polkitd dnf rpm curl procps ca-certificates libstdc++6 man-db "
    "python3 python3-aiohttp python3-yaml python3-jsonschema python3-psutil python3-cpuinfo "
    "python3-prometheus-client python3-numpy python3-jinja2 "
    "podman runc netavark docker.io iptables"
).split()
STUB = "syshax-ci-hostcompat"
LIBRARIES = ("libc.so.6", "libm.so.6", "libpthread.so.0", "libdl.so.2", "librt.so.1", "libgcc_s.so.1", "libstdc++.so.6")
ALWAYS = "bash coreutils polkit shadow systemd /bin/sh /usr/bin/sh /usr/bin/python3 rtld(GNU_HASH)".split()
# Not above this machine's own limits: without CAP_SYS_RESOURCE nothing may raise them.
CONTAINERS_CONF = """[engine]
runtime="runc"
[containers]
default_ulimits=["nofile=1024:1024", "nproc=1024:1024"]
"""
DOCKER_JSON = json.dumps(
    {"default-ulimits": {name: {"Name": name, "Soft": 1024, "Hard": 1024} for name in ("nofile", "nproc")}}
)
REPOSITORY = "[syshax]\nname=syshax\nbaseurl=file:///srv/repository\ngpgcheck=0\nmetadata_expire=0\n"
DISTRIBUTIONS = """
import importlib.metadata, re
for found in importlib.metadata.distributions():
    name = re.sub(r"[-_.]+", "-", found.metadata["Name"]).lower()
    for spelling in {name, name.replace("-", "_")}:
        print(f"python3-{spelling} = {found.version}")
    print(f"python3dist({name}) = {found.version}")
"""
STUB_SPEC = """
Name: {name}
Version: 1
Release: 1
Summary: What the Debian root of the tests provides, in RPM words
License: CC0-1.0
BuildArch: noarch
{provides}
%description
For tests only.
%install
mkdir -p %{{buildroot}}/usr/lib/python3/dist-packages
echo /usr/lib/python{python}/site-packages > %{{buildroot}}/usr/lib/python3/dist-packages/{name}.pth
%files
/usr/lib/python3/dist-packages/{name}.pth
%transfiletriggerin -P 1000900 -- /usr/lib/systemd/system /etc/systemd/system
systemctl daemon-reload || :
systemctl reload-or-restart --marked || :
%transfiletriggerpostun -P 1000100 -- /usr/lib/systemd/system /etc/systemd/system
systemctl daemon-reload || :
%transfiletriggerin -P 1000700 -- /usr/lib/sysusers.d
systemd-sysusers || :
%transfiletriggerin -P 1000500 -- /usr/lib/tmpfiles.d
systemd-tmpfiles --create || :
"""


def base_root() -> Path:
    """The Debian root without our package, made once for each list of packages."""
    key = hashlib.sha256(" ".join([DEBIAN, *PACKAGES, CONTAINERS_CONF, DOCKER_JSON]).encode()).hexdigest()[:12]
    root = BUILD / f"base-{key}"
    if not root.exists():
        BUILD.mkdir(parents=True, exist_ok=True)
        fresh = BUILD / f"{root.name}.new"
        shutil.rmtree(fresh, ignore_errors=True)
        options = ("--variant=minbase", "--mode=root", "--dpkgopt=path-exclude=/usr/share/locale/*")
        sources = Path("/etc/apt/sources.list.d/debian.sources")
        where = [str(sources)] if sources.exists() else []
        run("mmdebstrap", *options, f"--include={','.join(PACKAGES)}", DEBIAN, fresh, *where, timeout=500)
        settle(fresh)
        fresh.rename(root)
    return root


def settle(root: Path) -> None:
    """Set the root up as an RPM distribution would be, with our repository."""
    files = {
        "etc/yum.repos.d/syshax.repo": REPOSITORY,
        # Debian's default enables every service, openEuler's does not.
        "etc/systemd/system-preset/00-none.preset": "disable *\n",
        "etc/containers/containers.conf": CONTAINERS_CONF,
        "etc/docker/daemon.json": DOCKER_JSON,
        "etc/systemd/journald.conf.d/all.conf": "[Journal]\nRateLimitBurst=0\nStorage=persistent\n",
    }
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    for link in (root / "etc/systemd/system").glob("*.wants/*"):  # Debian enables at installation
        if link.name.startswith(("docker", "containerd", "podman")):
            link.unlink()


def stub_package(root: Path, folder: Path) -> None:
    """Build the stub package for that root into `folder`."""
    python = run("chroot", root, "python3", "-c", "import sys; print('%d.%d' % sys.version_info[:2])").stdout.strip()
    found = [path for name in LIBRARIES for path in root.glob(f"usr/lib/*-linux-gnu/{name}")]
    symbols = run("/usr/lib/rpm/elfdeps", "--provides", *(path.resolve() for path in found)).stdout.split("\n")
    loaders = [path for path in root.glob("usr/lib/*-linux-gnu/ld-linux-*")]
    symbols += run("/usr/lib/rpm/elfdeps", "--provides", *(path.resolve() for path in loaders)).stdout.split("\n")
    packages = run("chroot", root, "python3", "-", text=DISTRIBUTIONS).stdout.split("\n")
    provides = {*ALWAYS, *symbols, *packages, f"python3 = {python}.0", f"python(abi) = {python}"} - {""}
    spec = folder / f"{STUB}.spec"
    lines = "\n".join(f"Provides: {item}" for item in sorted(provides))
    spec.write_text(STUB_SPEC.format(name=STUB, provides=lines, python=python))
    run("rpmbuild", "--quiet", "--define", f"_topdir {folder}/top", "--define", f"_rpmdir {folder}", "-bb", spec)


def make_repository(root: Path) -> Path:
    """A dnf repository with two releases of our package, and the stub. Made once for each state of the tree."""
    folder = BUILD / f"repository-{tree_digest()}"
    if not folder.exists():
        for old in BUILD.glob("repository-*"):
            shutil.rmtree(old)
        fresh = BUILD / "repository-new"
        fresh.mkdir(parents=True)
        stub_package(root, fresh)
        for release in (1, 2):
            run("packaging/rpm/build", "--release", release, fresh, timeout=600)
        run("createrepo_c", "-q", fresh)
        fresh.rename(folder)
    return folder


def tree_digest() -> str:
    """Over all that goes into the package."""
    without = (":!tests", ":!testbed", ":!bench")
    listing = run("git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *without).stdout
    digest = hashlib.sha256()
    for path in (ROOT / name for name in sorted(listing.splitlines())):
        digest.update(path.read_bytes() if path.is_file() else b"")
    return digest.hexdigest()[:12]


class Machine:
    """A running container on a throw-away copy of a root. Commands run in it as root."""

    def __init__(self, name: str, root: Path, repository: Path, images: Path) -> None:
        self.name = name
        self._stores = BUILD / f"stores-{name}"  # an overlay can't lie on the overlay that is the machine's root
        self._mounts_before = cgroup_mounts()
        options = ["--runtime", "runc", "--privileged", "--systemd=always", "--shm-size=1g"]
        options += ["--cgroupns=private", "--network=none"]
        files = min(resource.getrlimit(resource.RLIMIT_NOFILE)[1], 65536)
        limits = ("--ulimit", f"nofile={files}:{files}", "--ulimit", "nproc=4096:4096")
        volumes = ["-v", f"{repository}:/srv/repository:ro", "-v", f"{images}:/srv/images:ro"]
        for store in ("containers", "docker"):
            (self._stores / store).mkdir(parents=True)
            volumes += ["-v", f"{self._stores}/{store}:/var/lib/{store}"]
        run("podman", "run", "-d", "--name", name, *options, *limits, *volumes, "--rootfs", f"{root}:O", "/sbin/init")

        def booted() -> bool:
            return self.run("systemctl is-system-running", check=False).stdout.strip() in ("running", "degraded")

        wait_for("boot", booted, 60)

    def run(self, script: str, check: bool = True, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        """Run a shell script in the machine."""
        inner = ("sh", "-c", script)
        return run("podman", "--runtime", "runc", "exec", self.name, *inner, check=check, timeout=timeout)

    def output(self, script: str, timeout: float = 120) -> str:
        """What a script writes, without the last line break."""
        return self.run(script, timeout=timeout).stdout.rstrip("\n")

    def show(self, service: str, name: str) -> str:
        """One property of a service."""
        return self.output(f"systemctl show --value --property={name} {service}")

    def status(self) -> dict[str, object]:
        """`syshax status --json`."""
        answer = json.loads(self.output("syshax status --json"))
        assert isinstance(answer, dict)
        return answer

    def close(self) -> None:
        """Remove the container; the host's control groups must be as they were."""
        run("podman", "rm", "-f", "-t", "5", self.name, timeout=120, check=False)
        shutil.rmtree(self._stores, ignore_errors=True)
        assert cgroup_mounts() == self._mounts_before, "the container changed the host's control group mounts"


def cgroup_mounts() -> list[str]:
    """The host's control group mounts with their options."""
    return [line for line in Path("/proc/mounts").read_text().splitlines() if "/sys/fs/cgroup" in line]


def at_work(machine: Machine) -> bool:
    """Both units are ready and the split has been tried."""
    if machine.run("syshax status", check=False).returncode != 0:
        return False
    status = machine.status()
    units, pd = status["units"], status["pd"]
    assert isinstance(units, list) and isinstance(pd, dict)
    return [unit["state"] for unit in units] == ["ready", "ready"] and bool(pd["enabled"])
