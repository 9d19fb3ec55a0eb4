"""Models that several test files use; made once a run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.sysinfer import models


@dataclass(frozen=True)
class Tiny:
    """A small random model: its file (f32) and the Hugging Face object that says the same."""

    shape: models.Shape
    path: Path
    hf: Any


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """The machine is small, and other processes of a test want a core too."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return make(models.Shape("llama", scaling=True), tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="session")
def tiny_qwen2(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return make(models.Shape("qwen2", tied=True, kv_heads=1, seed=7), tmp_path_factory.mktemp("qwen2"))


def make(shape: models.Shape, folder: Path) -> Tiny:
    hf = models.build(shape)
    return Tiny(shape, models.write(folder / f"{shape.arch}.gguf", shape, hf, "f32", models.small_tokenizer()), hf)


@pytest.fixture(params=["llama", "qwen2"])
def tiny(request: pytest.FixtureRequest) -> Any:
    """Each architecture in turn."""
    return request.getfixturevalue(f"tiny_{request.param}")
