"""The daemon's queue: whose turn it is, who may ask, when a wait ends."""

from __future__ import annotations

import asyncio
from typing import Any

from syshaxd.admission.queue import ASKED, Place, RequestQueue, turn_of
from syshaxd.model.request import Endpoint, RequestInfo, Tier
from syshaxd.runner.planning import Bell

TURN = turn_of(RequestInfo("r", Endpoint.CHAT, "m", True, 1, None), 5.0)


async def test_the_queue_wakes_in_order() -> None:
    queue, order = RequestQueue(), []

    async def guest(name: int, asks: int) -> None:
        bell = Bell()
        with queue.enter(TURN, 1, "m", bell.ring):
            for _ in range(asks):
                assert await bell.rung(asyncio.get_running_loop().time() + 5)
            order.append(name)

    tasks = [asyncio.ensure_future(guest(name, 1 + name % 2)) for name in range(6)]
    while len(queue) < 6:
        await asyncio.sleep(0)
    while tasks:
        queue.changed()
        await asyncio.sleep(0)
        tasks = [task for task in tasks if not task.done()]
    assert order == sorted(order) and len(queue) == 0


def test_turns_by_tier_then_deadline() -> None:
    def turn(tier: Tier, now: float, ttft: float | None = None, priority: int = 0) -> Any:
        info = RequestInfo("r", Endpoint.CHAT, "m", True, 1, None, tier=tier, slo_ttft=ttft, priority=priority)
        return turn_of(info, now + (30.0 if ttft is None else min(30.0, ttft)))

    in_order = [
        turn(Tier.PRIORITY, 9.0), turn(Tier.DEFAULT, 9.0), turn(Tier.FLEX, 99.0, priority=-1),
        turn(Tier.FLEX, 5.0, ttft=4.0), turn(Tier.FLEX, 1.0), turn(Tier.FLEX, 2.0, ttft=400.0),
    ]  # fmt: skip
    assert in_order == sorted(in_order)


async def test_a_newcomer_with_an_earlier_deadline_asks_first() -> None:
    queue, bells = RequestQueue(), (Bell(), Bell())
    late, early = TURN._replace(deadline=9.0), TURN._replace(deadline=1.0)
    with queue.enter(late, 300, "m", bells[0].ring):
        assert queue.leads(early, "m") and not queue.leads(late, "m") and queue.leads(late, "other")
        later = late._replace(deadline=9.5)
        assert [queue.tokens_ahead(early, "m"), queue.tokens_ahead(later, "m"), queue.tokens("m")] == [0, 300, 300]
        assert queue.tokens("other") == queue.tokens_ahead(later, "other") == 0
        with queue.enter(early, 20, "m", bells[1].ring):
            assert (queue.tokens_ahead(late, "m"), queue.tokens("m")) == (20, 320)
            now = asyncio.get_running_loop().time()
            queue.changed()
            assert not await bells[0].rung(now)
            asyncio.get_running_loop().call_soon(queue.changed)
            assert await bells[1].rung(now + 5)


async def test_who_asks_in_vain_lets_the_next_ones_ask_but_only_a_few() -> None:
    queue, asked = RequestQueue(), list[int]()

    async def guest(name: int) -> None:
        bell = Bell()
        with queue.enter(TURN, 1, "m", bell.ring) as place:
            while await bell.rung(asyncio.get_running_loop().time() + 5):
                asked.append(name)
                queue.asked_in_vain(place)

    tasks = [asyncio.ensure_future(guest(name)) for name in range(ASKED + 3)]
    while len(queue) < len(tasks):
        await asyncio.sleep(0)
    for _ in range(2):
        queue.changed()
        for _ in range(50):
            await asyncio.sleep(0)
    assert asked == 2 * list(range(ASKED))
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert len(queue) == 0


async def test_who_waits_for_one_model_holds_up_nobody_who_waits_for_another() -> None:
    queue, asked = RequestQueue(), list[str]()

    async def guest(model: str) -> None:
        bell = Bell()
        with queue.enter(TURN, 1, model, bell.ring) as place:
            while await bell.rung(asyncio.get_running_loop().time() + 5):
                asked.append(model)
                queue.asked_in_vain(place, 1)

    tasks = [asyncio.ensure_future(guest(model)) for model in ("a", "a", "a", "b")]
    while len(queue) < len(tasks):
        await asyncio.sleep(0)
    queue.changed()
    for _ in range(50):
        await asyncio.sleep(0)
    assert sorted(asked) == ["a", "b"], "the first of each model, and nobody behind one who may not be gone round"
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_wait_in_the_queue_ends_at_its_time() -> None:
    queue, bell = RequestQueue(), Bell()
    with queue.enter(TURN, 1, "m", bell.ring):
        assert not await bell.rung(asyncio.get_running_loop().time() + 0.01)


# ---- several clients


def waiting(queue: RequestQueue, client: str, number: int, called: "list[str]", turn: Any = TURN) -> Place:
    name = f"{client}{number}"
    place = queue.enter(turn, 1, "m", lambda: called.append(name), client)
    queue.add(place)
    return place


def test_the_client_with_the_fewest_running_asks_first() -> None:
    running = {"a": 8}
    queue, called = RequestQueue(lambda: running), list[str]()
    places = {f"a{number}": waiting(queue, "a", number, called) for number in range(4)}
    assert not queue.leads(TURN, "m", "a") and queue.leads(TURN, "m", "b")
    places.update({f"b{number}": waiting(queue, "b", number, called) for number in range(2)})
    order = list[str]()
    while len(queue):
        called.clear()
        queue.changed()
        order.append(called[0])
        queue.remove(places[called[0]])
        running[called[0][0]] = running.get(called[0][0], 0) + 1
    assert order == ["b0", "b1", "a0", "a1", "a2", "a3"]


def test_a_tier_goes_before_a_clients_share_and_within_a_client_the_deadline_decides() -> None:
    queue, called = RequestQueue(lambda: {"a": 50}), list[str]()
    waiting(queue, "b", 1, called)
    first = turn_of(RequestInfo("r", Endpoint.CHAT, "m", True, 1, None, tier=Tier.PRIORITY), 99.0)
    waiting(queue, "a", 1, called, first)
    waiting(queue, "b", 0, called, TURN._replace(deadline=1.0))
    queue.changed()
    assert called == ["a1"]
    assert queue.leads(TURN._replace(deadline=0.5), "m", "b") is False
    assert queue.leads(first._replace(deadline=1.0), "m", "b")


def test_a_full_queue_takes_a_newcomer_in_place_of_the_greediest_clients_last() -> None:
    queue, called = RequestQueue(), list[str]()
    places = [waiting(queue, "a", number, called, TURN._replace(deadline=5.0 + number)) for number in range(4)]
    assert not queue.has_room("a", 4) and queue.has_room("b", 4)
    queue.make_room("b", 4)
    assert [place.sent_away for place in places] == [False, False, False, True] and called == ["a3"]
    queue.remove(places[3])
    waiting(queue, "b", 0, called)
    assert len(queue) == 4
    queue.make_room("b", 4)
    waiting(queue, "b", 1, called)
    assert len(queue) == 4 and not queue.has_room("b", 4), "two and two: nobody has more than his share"
    queue.make_room("a", 5)
    assert len(queue) == 4


def test_who_yielded_for_long_is_gone_round_no_more() -> None:
    """A long flex prompt at the head, and small ones that fit in again and again."""
    queue, called = RequestQueue(), list[str]()
    flex = turn_of(RequestInfo("r", Endpoint.CHAT, "m", True, 1, None, tier=Tier.FLEX), 30.0)
    long = waiting(queue, "", 0, called, flex)
    assert queue.leads(TURN, "m"), "others come first at the beginning"
    queue.promote(long)
    assert not queue.leads(TURN._replace(deadline=31.0), "m") and queue.leads(TURN._replace(deadline=29.0), "m")
    waiting(queue, "", 1, called, TURN._replace(deadline=31.0))
    queue.changed()
    queue.asked_in_vain(long)
    assert called == ["0"], "nobody behind it asks until it has its room"
