"""Name what a fresh machine lacks, with the dnf and the apt line that installs it. Runs on Python 3.6 too."""

import os
import shutil
import subprocess
import sys

FLOOR = (3, 9)
# What is needed -> (openEuler and RHEL-like package, Debian package).
PACKAGES = {
    "python": ("python3", "python3"),
    "venv": ("python3", "python3-venv"),
    "pip": ("python3-pip", "python3-venv"),
    "g++": ("gcc-c++", "g++"),
    "libstdc++.a": ("libstdc++-static", "g++"),
    "gcc": ("gcc", "gcc"),
    "make": ("make", "make"),
    "rpmbuild": ("rpm-build", "rpm"),
    "createrepo_c": ("createrepo_c", "createrepo-c"),
}


def has_module(name: str) -> bool:
    """Whether this interpreter can import the module."""
    try:
        __import__(name)
    except ImportError:
        return False
    return True


def compiler_has(library: str) -> bool:
    """Whether the C++ compiler finds a static library of its own. True without one: it is named already."""
    compiler = shutil.which(os.environ.get("CXX", "g++").split()[0])
    if compiler is None:
        return True
    found = subprocess.run([compiler, "-print-file-name=" + library], stdout=subprocess.PIPE, check=False).stdout
    return os.path.isabs(found.decode().strip())


def is_missing(need: str) -> bool:
    """Whether a need of PACKAGES is absent on this machine."""
    if need == "python":
        return sys.version_info < FLOOR
    if need == "venv":
        return not has_module("venv")
    if need == "pip":
        return not has_module("ensurepip")
    if need == "libstdc++.a":  # the core links it in, so that one build runs on older releases
        return not compiler_has(need)
    program = os.environ.get("CXX", need) if need == "g++" else need
    return shutil.which(program.split()[0]) is None


def describe(missing: list[str]) -> list[str]:
    """Lines for the user: what lacks and the two install lines."""
    python = "Python %d.%d or newer (%s is %d.%d)" % (*FLOOR, sys.executable, *sys.version_info[:2])
    names = [python if need == "python" else need for need in missing]
    dnf = sorted({PACKAGES[need][0] for need in missing})
    apt = sorted({PACKAGES[need][1] for need in missing})
    lines = [
        "missing: " + ", ".join(names),
        "  openEuler, RHEL-like:  sudo dnf install -y " + " ".join(dnf),
        "  Debian, Ubuntu:        sudo apt-get install -y " + " ".join(apt),
    ]
    if "python" in missing:
        lines.append("  or name another interpreter:  make PYTHON=python3.11 ...")
    return lines


def main(needs: list[str]) -> int:
    """Check the named needs; exit status 1 and a description where one is missing."""
    unknown = [need for need in needs if need not in PACKAGES]
    if unknown:
        raise SystemExit("preflight: unknown need %s, known: %s" % (unknown, sorted(PACKAGES)))
    missing = [need for need in needs if is_missing(need)]
    if missing:
        print("\n".join(describe(missing)), file=sys.stderr)
    return 1 if missing else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
