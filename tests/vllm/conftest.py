"""Pairs are started once each, for all the tests that use them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from testbed.daemon_real_units import Daemon
from tests.vllm import pairs


@pytest.fixture(scope="session")
def running_pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """The pair of that name in pairs.KINDS, under a daemon."""
    kind = pairs.KINDS[request.param]
    lacking = [
        unit.python for unit in (kind.gpu, kind.cpu) if isinstance(unit, pairs.Vllm) and not unit.python.exists()
    ]
    if lacking:
        pytest.skip(f"no {lacking[0]}: run `make vllm-env`")
    with pairs.running(kind, tmp_path_factory.mktemp("model")) as daemon:
        yield daemon


@pytest.fixture
def daemon(running_pair: Daemon) -> Iterator[Daemon]:
    """A pair that serves, and that holds nothing when the test is over."""
    pairs.quiet(running_pair)
    yield running_pair
    pairs.quiet(running_pair)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Pair by pair: pytest orders by the place of a parameter in its list, and the lists differ."""
    order = list(pairs.KINDS)
    for item in items:
        if "breadth" in item.path.parts:
            item.add_marker(pytest.mark.breadth)

    def place(item: pytest.Item) -> int:
        call = getattr(item, "callspec", None)
        name = call.params.get("running_pair") if call is not None else None
        return order.index(name) if name in order else -1

    items.sort(key=place)
