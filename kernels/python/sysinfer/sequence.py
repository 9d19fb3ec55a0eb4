"""One sequence in the engine: its tokens, its place in the KV cache, its state."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from syshax_contract.transfer import HandoffParams
from sysinfer.blocks import ROOT, Digest
from sysinfer.sampling import SamplingParams


class Status(enum.Enum):
    WAITING = "waiting"
    LOADING = "loading"  # admitted; KV comes from a ticket
    RUNNING = "running"
    FINISHED = "finished"


@dataclass(eq=False)
class Sequence:
    """State of one sequence; written by the engine's thread only.

    `tokens`: context and output so far; `n_computed` of them are in the KV cache, in `blocks`.
    """

    key: int  # unique in the engine, grows with arrival
    request_id: str
    index: int  # choice of its request
    tokens: list[int]
    n_context: int
    params: SamplingParams
    handoff: HandoffParams = field(default_factory=HandoffParams)
    arrival: float = 0.0  # CLOCK_MONOTONIC seconds
    status: Status = Status.WAITING
    n_computed: int = 0
    blocks: list[int] = field(default_factory=list)
    n_hashed: int = 0  # full blocks known to the prefix cache
    digest: Digest = ROOT  # of the last of them
    load_pending: bool = False  # KV from a ticket is still to be copied into its blocks
    kept: bool = False  # preempted; that ticket is its own
    counted: bool = False  # its prompt is in the metrics
    n_local: int = 0  # context tokens found in the prefix cache at the first admission
    n_external: int = 0  # context tokens taken from a handoff
    lost: str = ""  # why none were

    @property
    def n_output(self) -> int:
        return len(self.tokens) - self.n_context

    @property
    def n_pending(self) -> int:
        """Tokens known and not yet in the KV cache."""
        return len(self.tokens) - self.n_computed

    @property
    def needs_all_logits(self) -> bool:
        """Whether logits of context tokens are wanted too."""
        return self.params.prompt_logprobs is not None and not self.counted
