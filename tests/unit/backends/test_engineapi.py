"""The engine's answers, taken apart."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from syshaxd.backends.container_spec import EngineKind
from syshaxd.backends.engineapi import (
    EngineRefused,
    Frames,
    PullProgress,
    Version,
    negotiated,
    raise_for,
    split_reference,
)  # fmt: skip
from syshaxd.errors import BackendError


def _frame(stream: int, data: bytes) -> bytes:
    return bytes([stream, 0, 0, 0]) + len(data).to_bytes(4, "big") + data


@given(st.lists(st.tuples(st.sampled_from([1, 2]), st.binary(max_size=50))), st.data())
def test_frames_come_whole_however_they_are_cut(parts: list[tuple[int, bytes]], data: st.DataObject) -> None:
    wire = b"".join(_frame(stream, text) for stream, text in parts)
    frames, said, at = Frames(), b"", 0
    while at < len(wire):
        size = data.draw(st.integers(1, len(wire) - at))
        said += frames.feed(wire[at : at + size])
        at += size
    assert said == b"".join(text for _, text in parts)


def test_what_is_no_frame_is_an_error() -> None:
    with pytest.raises(BackendError, match="expected a log frame"):
        Frames().feed(b"plain text instead")


PODMAN = {"ApiVersion": "1.41", "MinAPIVersion": "1.24", "Version": "4.3.1", "Components": [{"Name": "Podman Engine"}]}


def test_podman_is_known_by_its_components() -> None:
    assert negotiated(PODMAN, "/s") == Version(EngineKind.PODMAN, "4.3.1", "1.41")


@pytest.mark.parametrize(
    "newest, oldest, chosen", [("1.41", "1.12", "1.41"), ("1.52", "1.44", "1.51"), ("1.40", "1.24", "1.40")]
)
def test_newest_common_version(newest: str, oldest: str, chosen: str) -> None:
    version = negotiated({"ApiVersion": newest, "MinAPIVersion": oldest, "Version": "29"}, "/s")
    assert version == Version(EngineKind.DOCKER, "29", chosen)


@pytest.mark.parametrize("newest, oldest", [("1.39", "1.12"), ("1.60", "1.55"), ("", "")])
def test_no_common_version_names_both_sides(newest: str, oldest: str) -> None:
    with pytest.raises(BackendError, match=r"/s: API versions .*; expected one of 1\.40 to 1\.51"):
        negotiated({"ApiVersion": newest, "MinAPIVersion": oldest}, "/s")


def test_errors_keep_the_engines_words() -> None:
    raise_for(204, b"", "GET /x")
    for body, words in ((b'{"message": "no such image"}', "no such image"), (b"busy", "busy"), (b"", "GET /x: status")):
        with pytest.raises(EngineRefused, match=words) as caught:
            raise_for(500, body, "GET /x")
        assert caught.value.status == 500


@pytest.mark.parametrize(
    "image, name, tag",
    [
        ("quay.io/ascend/vllm-ascend:v0.11.0", "quay.io/ascend/vllm-ascend", "v0.11.0"),
        ("localhost:5000/vllm", "localhost:5000/vllm", "latest"),
        ("vllm", "vllm", "latest"),
        ("a/b@sha256:12ab", "a/b", "sha256:12ab"),
    ],
)
def test_image_references(image: str, name: str, tag: str) -> None:
    assert split_reference(image) == (name, tag)


def test_pull_progress_sums_layers_and_keeps_quiet() -> None:
    progress = PullProgress("x:1")
    assert progress.saw({"status": "Pulling"}, 100.0) == "pulling x:1"
    layer = {"current": 1_000_000_000, "total": 4_000_000_000}
    assert progress.saw({"id": "a", "progressDetail": layer}, 101.0) == ""
    assert progress.saw({"id": "b", "progressDetail": layer}, 106.0) == "pulling x:1: 2.00 of 8.00 GB"
