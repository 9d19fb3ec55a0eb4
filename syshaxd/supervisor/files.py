"""Files that belong to a unit: its secret, and its outbox in the pool folder (docs/kv-handoff.md section 2)."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path

from syshax_contract.pool_pages import HEADER_BYTES, kv_token_bytes
from syshaxd.errors import BackendError


def ensure_secret(state_dir: str, unit: str) -> Path:
    """Path of the unit's secret, made at the first start and kept after that. Only the daemon's user can read it."""
    path = Path(state_dir) / "units" / unit
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not path.exists() or path.stat().st_mode & 0o077 or not path.read_text(encoding="ascii").strip():
            _write_private(path, secrets.token_hex(32))
    except OSError as err:
        raise BackendError(f"unit {unit}: cannot keep its secret in {path}: {err.strerror}") from err
    return path


def read_secret(path: str) -> str:
    """The secret in a file; "" for no file."""
    if not path:
        return ""
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError as err:
        raise BackendError(f"cannot read the API key file {path}: {err.strerror}") from err


def make_pool_folder(folder: str) -> None:
    """Make it where nobody did (2770). Raises BackendError."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True, mode=0o2770)
    except OSError as err:
        raise BackendError(f"cannot make the pool folder {folder}: {err.strerror}") from err


def make_outbox(path: str) -> None:
    """A new, empty pool file (0660) in place of one that a dead owner left; the new owner sizes it. Or BackendError."""
    try:
        remove_outbox(path)
        Path(path).parent.mkdir(parents=True, exist_ok=True, mode=0o2770)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o660))
        os.chmod(path, 0o660)  # whatever the umask says
    except OSError as err:
        raise BackendError(f"cannot make the pool file {path}: {err.strerror}") from err


def remove_outbox(path: str) -> None:
    """Unlink the outbox of a unit that is gone: who still maps it keeps the old pages, nobody finds it any more."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def outbox_identity(path: str) -> int | None:
    """Inode of an outbox whose owner has written its header; None for anything else. Raises OSError where that can't be
    told (no descriptor left)."""
    try:
        opened = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        whole = kv_token_bytes(os.pread(opened, HEADER_BYTES, 0)) is not None
        return os.fstat(opened).st_ino if whole else None
    finally:
        os.close(opened)


def group_of(folder: str) -> str:
    """Group id of the pool folder; "" where there is none."""
    try:
        return str(os.stat(folder).st_gid)
    except OSError:
        return ""


def plugin_dir(environ: Mapping[str, str], search: Sequence[str]) -> str:
    """The folder with our Python packages (PYTHONPATH, then `search`), to be mounted into containers; "" for none."""
    folders = (*environ.get("PYTHONPATH", "").split(":"), *search)
    return next((folder for folder in folders if folder and Path(folder, "syshax_kernels").is_dir()), "")


def free_port(host: str) -> int:
    """A TCP port that is free now. A unit that loses the race for it ends, and its next start gets another one."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port


def _write_private(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.new")
    with contextlib.suppress(FileNotFoundError):
        temporary.unlink()
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(text + "\n")
    temporary.rename(path)
