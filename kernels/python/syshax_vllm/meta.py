"""What the scheduler's side tells the workers in a step. Plain data, pickled by vLLM."""

from __future__ import annotations

from dataclasses import dataclass, field

from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorMetadata

from syshax_kernels.pool_types import Geometry, PinnedTicket


@dataclass(frozen=True)
class Write:
    """Tokens start .. end of a request go into its ticket. `blocks`: those that hold exactly these tokens."""

    slot: int
    start: int
    end: int
    blocks: tuple[int, ...]


@dataclass(frozen=True)
class Load:
    """Tokens start .. end come from a pinned ticket of `pool`, or, without one, from our own ticket `slot`."""

    request_id: str
    start: int
    end: int
    blocks: tuple[int, ...]
    slot: int = -1
    pool: str = ""
    pinned: PinnedTicket | None = None
    geometry: Geometry | None = None  # what the pool must be of


@dataclass
class HandoffMetadata(KVConnectorMetadata):  # type: ignore[misc]
    """One step."""

    writes: list[Write] = field(default_factory=list)  # after this step's forward
    rescues: list[Write] = field(default_factory=list)  # of preempted requests: before it
    tails: list[Write] = field(default_factory=list)  # of finished requests
    finished: list[str] = field(default_factory=list)  # report these once all their writes are done
    loads: list[Load] = field(default_factory=list)


def blocks_for(blocks: list[int], tokens: range, block_size: int) -> tuple[int, ...]:
    """The part of a block table that holds these tokens."""
    return tuple(blocks[tokens.start // block_size : -(-tokens.stop // block_size)])
