"""Random lives of requests through the scheduler's side of the connector, on real pools. Run by the Python with vLLM.

    PYTHONPATH=kernels/python PYTHON tests/vllm/breadth/machine_main.py FOLDER [SEEDS]

Plays vLLM's scheduler and worker: requests arrive with every kind of wish, run, are preempted, end or are aborted at
any time; loads fail, copies take steps. Prints what it has seen as JSON; an invariant that does not hold is an
AssertionError.
"""

from __future__ import annotations

import json
import logging
import random
import secrets
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from syshax_handoff.loading import Loader
from syshax_handoff.saving import Saver
from syshax_kernels.kernel_errors import KernelError
from syshax_kernels.pool import F16, Geometry, Inbox, Outbox, TicketState, Worker
from syshax_vllm.counts import Counts
from syshax_vllm.scheduler_side import SchedulerSide
from syshax_vllm.stats_counts import StatsCounts

log = logging.getLogger("vllm.syshax")

BLOCK, TICKETS, CHUNKS, STEPS = 32, 12, 24, 150
GEOMETRY = Geometry(1, 1, 16, F16, bytes(32))
ENDS = "FINISHED_LENGTH_CAPPED", "FINISHED_STOPPED", "FINISHED_ABORTED", "FINISHED_ERROR"


class Life:
    """One request as vLLM has it."""

    def __init__(self, key: str, tokens: int, params: Any) -> None:
        self.request_id, self.kv_transfer_params = key, params
        self.all_token_ids = [7 + (i * i + len(key)) % 90 for i in range(tokens)]
        self.num_prompt_tokens, self.num_preemptions, self.num_computed_tokens = tokens, 0, 0
        self.num_in_flight_tokens, self.max_tokens = 0, 1 if tokens % 2 else 1000
        self.status = SimpleNamespace(name="RUNNING")
        self.blocks: list[int] = []
        self.state = "waiting"  # waiting, loading, running, preempted
        self.fresh = True

    @property
    def num_tokens(self) -> int:
        """Known tokens."""
        return len(self.all_token_ids)


class World:
    """vLLM around the connector."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.draw, self.seen = random.Random(seed), Counter[str]()
        path = str(folder / "own.pool")
        self.outbox = Outbox.create(path, GEOMETRY, chunks=CHUNKS, tickets=TICKETS, max_tokens=1024)
        self.worker, self.inbox = Worker.join(path), Inbox.open(path, GEOMETRY)
        counts = Counts()
        self.saver: Saver[str] = Saver(self.outbox, counts, log, at_once=False)
        loader: Loader[str] = Loader(folder, lambda path: Inbox.open(path, GEOMETRY), counts, log)
        self.side = SchedulerSide(self.saver, loader, GEOMETRY, StatsCounts(BLOCK, 64, 2048), counts, BLOCK)
        self.lives: dict[str, Life] = {}
        self.held: dict[str, Life] = {}  # finished, blocks kept
        self.late: list[tuple[int, str]] = []  # step, request whose writes are done
        self.loads: list[tuple[int, Any]] = []
        self.published: list[str] = []
        self.step_number = 0

    def wish(self) -> Any:
        """kv_transfer_params of a new request."""
        kind = self.draw.randrange(7)
        if kind == 0:
            return None
        if kind == 1:
            return {"syshax": self.draw.choice([3, {"save": "no"}, {"load": []}, {"save_on": 1}])}
        load: Any = None
        if kind in (2, 3):
            ticket = self.draw.choice([*self.published, secrets.token_hex(16)])
            load = {"ticket": ticket, "pool": self.draw.choice(["own.pool", "none.pool"]), "generation": 0}
        save = secrets.token_hex(16) if kind in (3, 4, 5, 6) else None
        if save:
            self.published.append(save)
        return {"syshax": {"save": save, "load": load, "save_on": self.draw.choice(["finish", "abort"])}}

    def step(self, ending: bool) -> None:
        """One step of the engine."""
        self.step_number += 1
        if not ending and len(self.lives) < 6 and self.draw.random() < 0.4:
            key = f"r{self.step_number}"
            self.lives[key] = Life(key, self.draw.choice([1, 2, 63, 64, 65, 130, 200]), self.wish())
            self.side.arrived(self.lives[key])
        output = SimpleNamespace(
            preempted_req_ids=set(), scheduled_new_reqs=[], num_scheduled_tokens={}, total_num_scheduled_tokens=0,
            scheduled_cached_reqs=SimpleNamespace(
                req_ids=[], new_block_ids=[], num_computed_tokens=[], resumed_req_ids=set()
            ),
        )  # fmt: skip
        for life in list(self.lives.values()):
            self.move(life, output, ending)
        self.work(self.side.build_meta(output))
        if self.draw.random() < 0.5:
            self.saver.publish_sealed()  # as the heart does beside a step
        for life in self.lives.values():
            self.compute(life, output.num_scheduled_tokens.get(life.request_id, 0))
        self.prefill_leg(output)
        self.report()

    def move(self, life: Life, output: Any, ending: bool) -> None:
        """What happens to one request in this step."""
        if self.draw.random() < (0.3 if ending else 0.04):
            return self.end(life)
        if life.state in ("waiting", "preempted"):
            self.admit(life, output)
        elif life.state == "running" and self.draw.random() < 0.08:
            output.preempted_req_ids.add(life.request_id)
            life.state, life.blocks, life.num_computed_tokens = "preempted", [], 0
            life.num_preemptions += 1
            self.seen["preempted"] += 1
        elif life.state == "running":
            self.schedule(life, output, resumed=False)

    def admit(self, life: Life, output: Any) -> None:
        """Out of the queue, maybe by way of a load."""
        found, later = self.side.matched(life, life.num_computed_tokens)
        if found is None:
            self.seen["asked again"] += 1
            return
        assert 0 <= found < life.num_tokens
        life.blocks = [self.draw.randrange(999) for _ in range(-(-life.num_tokens // BLOCK))]
        blocks = SimpleNamespace(get_block_ids=lambda: [life.blocks])
        self.side.allocated(life, blocks, found)
        if found:
            assert later
            life.state, life.num_computed_tokens = "loading", life.num_computed_tokens + found
            return
        self.schedule(life, output, resumed=not life.fresh)

    def schedule(self, life: Life, output: Any, resumed: bool) -> None:
        """Some tokens are computed."""
        count = min(self.draw.choice([1, 40, 90]), life.num_tokens - life.num_computed_tokens)
        before, needed = len(life.blocks), -(-(life.num_computed_tokens + count) // BLOCK)
        life.blocks += [self.draw.randrange(999) for _ in range(needed - before)]
        old, key = output.scheduled_cached_reqs, life.request_id
        if life.fresh:
            data = SimpleNamespace(
                req_id=key, block_ids=[list(life.blocks)], num_computed_tokens=life.num_computed_tokens
            )
            output.scheduled_new_reqs.append(data)
        else:
            old.req_ids.append(key)
            old.new_block_ids.append([list(life.blocks)] if resumed else [life.blocks[before:]])
            old.num_computed_tokens.append(life.num_computed_tokens)
            if resumed:
                old.resumed_req_ids.add(key)
        output.num_scheduled_tokens[key] = count
        output.total_num_scheduled_tokens += count
        life.fresh, life.state = False, "running"

    def compute(self, life: Life, count: int) -> None:
        """The forward of this step."""
        life.num_computed_tokens += count
        if count and life.num_computed_tokens == life.num_tokens and life.num_tokens < 400:
            life.all_token_ids.append(self.draw.randrange(90))

    def end(self, life: Life) -> None:
        """Finished or aborted, whatever it is doing."""
        life.status.name = self.draw.choice(ENDS)
        del self.lives[life.request_id]
        self.seen["ended " + life.state] += 1
        if self.side.finished(life, life.blocks):
            self.held[life.request_id] = life

    def prefill_leg(self, output: Any) -> None:
        """A request whose one token came with this step: its ticket is READY before the answer goes out."""
        for key in list(output.num_scheduled_tokens):
            life = self.lives.get(key)
            wish = (life.kv_transfer_params or {}).get("syshax") if life is not None else None
            if life is None or life.max_tokens > 1 or life.num_tokens != life.num_prompt_tokens + 1:
                continue
            life.status.name = "FINISHED_LENGTH_CAPPED"
            del self.lives[key]
            held = self.side.finished(life, life.blocks)
            if not isinstance(wish, dict) or not wish.get("save") or wish.get("save_on") != "finish":
                self.held.update({key: life} if held else {})
            elif held:
                self.held[key] = life
                assert self.saver.readable(key) == 0, "its tail is not sealed"  # but for lack of room
            else:
                found = self.outbox.find(bytes.fromhex(wish["save"]))
                assert found is None or found.state is TicketState.READY
                self.seen["prefill legs"] += found is not None

    def work(self, meta: Any) -> None:
        """The worker: every write is of a ticket that still is what it was."""
        for write in [*meta.rescues, *meta.tails, *meta.writes]:
            assert len(write.blocks) == -(-write.end // BLOCK) - write.start // BLOCK
            for chunk in range(write.start // 64, -(-write.end // 64)):
                self.worker.chunk_address(write.slot, chunk)
                self.worker.seal(write.slot, chunk, 0, min(64, write.end - chunk * 64))
            self.seen["writes"] += 1
        self.late += [(self.step_number + self.draw.randrange(4), key) for key in meta.finished]
        self.loads += [(self.step_number + self.draw.randrange(4), load) for load in meta.loads]

    def report(self) -> None:
        """What the worker says is done."""
        sent = {key for at, key in self.late if at <= self.step_number}
        done = [load for at, load in self.loads if at <= self.step_number]
        self.late = [entry for entry in self.late if entry[0] > self.step_number]
        self.loads = [entry for entry in self.loads if entry[0] > self.step_number]
        failed = {load.request_id for load in done if self.draw.random() < 0.3 or not self.readable(load)}
        output = SimpleNamespace(
            finished_sending=sent, finished_recving={load.request_id for load in done}, failed_recving=failed,
            invalid_block_ids={block for load in done if load.request_id in failed for block in load.blocks},
        )  # fmt: skip
        self.side.reported(output)
        for key in sent:
            del self.held[key]
        for load in done:
            self.seen["load failed" if load.request_id in failed else "loaded"] += 1
            life = self.lives.get(load.request_id)
            if life is not None:
                life.state = "waiting"
                life.num_computed_tokens = 0 if load.request_id in failed else load.end

    def readable(self, load: Any) -> bool:
        """Whether what is loaded is there now."""
        chunks = range(load.start // 64, -(-load.end // 64))
        if load.pinned is None:
            return all(self.worker.chunk_address(load.slot, chunk) for chunk in chunks)
        try:
            view = self.inbox.attach(load.pinned)
            return all(view.chunk_address(chunk) for chunk in chunks)
        except KernelError:
            return False

    def over(self) -> None:
        """Nothing is left but published tickets that nobody fetched, and these go with their lease."""
        assert not self.side._requests and not self.saver.keys and not self.side._left and not self.held
        for ticket in map(bytes.fromhex, self.published):
            found = self.outbox.find(ticket)
            assert found is None or found.state is not TicketState.LOADING, "a pin was not given back"
        self.outbox.reap(now_ns=2**62)
        info = self.outbox.info()
        assert (info.tickets_free, info.chunks_free) == (TICKETS, CHUNKS), info
        self.side.close()
        self.worker.close()
        self.inbox.close()


def main() -> None:
    """Every seed is one life of an engine."""
    folder, seeds = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 60
    seen = Counter[str]()
    for seed in range(seeds):
        world = World(folder, seed)
        for _ in range(STEPS):
            world.step(ending=False)
        while world.lives or world.held or world.loads or world.late:
            world.step(ending=True)
        try:
            world.over()
        except AssertionError as err:
            raise AssertionError(f"seed {seed}: {err}") from err
        seen += world.seen
    print(json.dumps(seen))


if __name__ == "__main__":
    main()
