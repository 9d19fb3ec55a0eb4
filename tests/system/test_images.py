"""Images on real engines: pulled from a registry on loopback, pinned by digest, carried by file to where none is."""

from __future__ import annotations

import asyncio
import io
import json
import os
import re
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from syshaxd.backends.container import ensure_image
from syshaxd.backends.container_spec import EngineKind
from syshaxd.backends.engineapi import EngineApi
from syshaxd.errors import BackendError
from testbed.container_engines import IMAGE, RealEngine
from testbed.processes import ROOT, run

pytestmark = pytest.mark.timeout(120, func_only=True)
NAME = "syshax/unit"
RATE, SIZE = 6_000_000, 36_000_000  # a pull of six seconds: long enough for two lines of progress


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """Address of the image there, without tag, and its digest."""
    archive = tmp_path_factory.mktemp("registry") / "layer.tar"
    with tarfile.open(archive, "w") as out:
        file = tarfile.TarInfo("weights")
        file.size = SIZE
        out.addfile(file, io.BytesIO(os.urandom(SIZE)))
    words = (sys.executable, "-m", "testbed.fake_registry", str(archive), "--rate", str(RATE))
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        _, port, digest = process.stdout.readline().split()
        yield f"127.0.0.1:{port}/{NAME}", digest
        process.kill()


@pytest.fixture(scope="module", params=list(EngineKind), ids=lambda kind: str(kind.value))
def engine(
    request: pytest.FixtureRequest, registry: tuple[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RealEngine]:
    folder = tmp_path_factory.mktemp(request.param.value)
    host = registry[0].partition("/")[0]
    (folder / "registries.conf").write_text(f'[[registry]]\nlocation = "{host}"\ninsecure = true\n')
    found = RealEngine(request.param, folder, CONTAINERS_REGISTRIES_CONF=str(folder / "registries.conf")).start()
    try:
        found.import_image()
        yield found
    finally:
        found.close()


def ensure(engine: RealEngine, image: str, policy: str) -> tuple[str, list[str]]:
    """The image's id after the policy was followed, and the lines of progress."""
    lines: list[str] = []

    async def work() -> str:
        api = EngineApi(engine.socket)
        try:
            await ensure_image(api, image, policy, lines.append)
            return await api.image_id(image)
        finally:
            await api.close()

    return asyncio.run(work()), lines


def test_pulled_where_missing_with_progress_and_by_digest(engine: RealEngine, registry: tuple[str, str]) -> None:
    name, digest = registry
    engine.images.append(f"{name}:1")
    found, lines = ensure(engine, f"{name}:1", "missing")
    engine.images.append(found)
    assert found and lines[0].startswith(f"pulling {name}:1")
    assert any(re.search(r": 0\.0[1-4] of 0\.04 GB$", line) for line in lines), lines
    assert ensure(engine, f"{name}:1", "missing") == (found, []), "it is here"
    pinned, _ = ensure(engine, f"{name}@{digest}", "always")
    assert pinned == found


def test_what_is_not_there_says_what_to_do(engine: RealEngine, registry: tuple[str, str]) -> None:
    name, digest = registry
    wrong = digest[:-4] + "0000"
    for image in (f"{name}:2", f"{name}@{wrong}", "127.0.0.1:1/x:1"):
        with pytest.raises(BackendError, match="syshax image load FILE"):
            ensure(engine, image, "missing")


def test_saved_on_one_host_and_loaded_on_another(engine: RealEngine, tmp_path: Path) -> None:
    unit = {"backend": engine.kind.value, "container": {"image": IMAGE, "socket": engine.socket}}
    config = {"models": {"path": "/usr/share"}, "units": {"cpu": {"kind": "vllm", "role": "cpu", **unit}}}
    (tmp_path / "syshax.yaml").write_text(json.dumps(config))
    syshax = (sys.executable, "-m", "syshaxd.cli", "image")
    file, where = tmp_path / "unit.tar", ("--config", tmp_path)
    listed = run(*syshax, "list", *where).stdout
    assert IMAGE in listed and " no" not in listed
    assert f"{file}: {IMAGE}" in run(*syshax, "save", IMAGE, file, *where).stdout
    again = run(*syshax, "save", IMAGE, file, *where, check=False)
    assert again.returncode != 0 and "is there already" in again.stderr
    engine.cli("rmi", "--force", IMAGE)
    missing = run(*syshax, "list", *where, check=False)
    assert missing.returncode == 1 and " no" in missing.stdout
    run(*syshax, "load", file, *where)
    assert " no" not in run(*syshax, "list", *where).stdout
    (tmp_path / "broken.tar").write_bytes(b"not an archive")
    broken = run(*syshax, "load", tmp_path / "broken.tar", *where, check=False)
    assert broken.returncode != 0 and broken.stderr.strip() and "Traceback" not in broken.stderr
