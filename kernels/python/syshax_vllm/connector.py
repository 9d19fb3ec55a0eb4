"""What vLLM sees: a KV connector, loaded by module path in the scheduler's process and in every worker."""

from __future__ import annotations

import logging
from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorBase_V1, KVConnectorRole, SupportsHMA
from vllm.distributed.parallel_state import get_tensor_model_parallel_rank

from syshax_handoff.loading import Loader
from syshax_handoff.saving import Saver
from syshax_kernels.kernel_errors import KernelError
from syshax_kernels.library import Library
from syshax_kernels.pool import Geometry, Inbox, Outbox, chunks_that_fit, pool_library
from syshax_vllm import compat
from syshax_vllm.counts import Counts, HandoffMetrics, HandoffStats
from syshax_vllm.env import Pool, own_pool
from syshax_vllm.geometry import geometry_of, refusals
from syshax_vllm.heart import Heart
from syshax_vllm.meta import HandoffMetadata
from syshax_vllm.scheduler_side import SchedulerSide
from syshax_vllm.stats_counts import StatsCounts
from syshax_vllm.worker_side import Share, WorkerSide, cpu_fill

log = logging.getLogger("vllm.syshax")

TICKETS = 1024


class SyshaxConnector(KVConnectorBase_V1, SupportsHMA):  # type: ignore[misc]
    """Passes vLLM's calls on to the side that this process is. Without a pool in the environment it does nothing."""

    _cache_hit_source = compat.cache_hit_source()

    def __init__(self, vllm_config: Any, role: Any, kv_cache_config: Any) -> None:
        """Raises RuntimeError for a version, ValueError for a model or setting, whose KV can't be handed over."""
        compat.check_version(compat.vllm_version())
        reasons = refusals(vllm_config, kv_cache_config)
        if reasons:
            raise ValueError("no KV handoff with this unit (start it with pd.enabled: false): " + "; ".join(reasons))
        super().__init__(vllm_config, role, kv_cache_config)
        pool = own_pool()
        self._scheduler: SchedulerSide | None = None
        self._worker: WorkerSide | None = None
        self._heart: Heart | None = None
        self._failed_blocks: set[int] = set()
        self._counts = Counts()
        limits = vllm_config.scheduler_config
        self._pages = StatsCounts(
            vllm_config.cache_config.block_size, limits.max_num_seqs, limits.max_num_batched_tokens
        )
        if pool is None:
            log.warning("no handoff from this unit: SYSHAX_POOL_DIR is not set")
        elif role == KVConnectorRole.SCHEDULER:
            self._begin(vllm_config, pool)
        else:
            self._worker = _worker_side(vllm_config, pool)

    # ---- in the scheduler's process ----
    def _begin(self, vllm_config: Any, pool: Pool) -> None:
        geometry, library = geometry_of(vllm_config), pool_library()
        block_size = vllm_config.cache_config.block_size
        outbox = _outbox(pool, geometry, vllm_config.model_config.max_model_len, library)
        saver: Saver[str] = Saver(outbox, self._counts, log, at_once=False)
        loader: Loader[str] = Loader(
            pool.folder, lambda path: Inbox.open(path, geometry, library=library), self._counts, log
        )
        self._scheduler = SchedulerSide(saver, loader, geometry, self._pages, self._counts, block_size)
        self._heart = Heart(saver, self._pages)

    def bind_gpu_block_pool(self, gpu_block_pool: Any) -> None:
        self._pages.bind(gpu_block_pool)

    def on_new_request(self, request: Any) -> None:
        if self._scheduler is not None:
            self._scheduler.arrived(request)

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int | None, bool]:
        return (0, False) if self._scheduler is None else self._scheduler.matched(request, num_computed_tokens)

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        if self._scheduler is not None:
            self._scheduler.allocated(request, blocks, num_external_tokens)

    def build_connector_meta(self, scheduler_output: Any) -> HandoffMetadata:
        return HandoffMetadata() if self._scheduler is None else self._scheduler.build_meta(scheduler_output)

    def update_connector_output(self, connector_output: Any) -> None:
        if self._scheduler is not None:
            self._scheduler.reported(connector_output)

    def request_finished(self, request: Any, block_ids: list[int]) -> tuple[bool, dict[str, Any] | None]:
        return self._scheduler is not None and self._scheduler.finished(request, block_ids), None

    def request_finished_all_groups(self, request: Any, block_ids: Any) -> tuple[bool, dict[str, Any] | None]:
        return self.request_finished(request, block_ids[0])

    # ---- in a worker ----
    def register_kv_caches(self, kv_caches: dict[str, Any]) -> None:
        if self._worker is not None:
            self._worker.register(kv_caches, cpu_fill())

    def handle_preemptions(self, kv_connector_metadata: HandoffMetadata) -> None:
        if self._worker is not None:
            self._worker.rescue(kv_connector_metadata)

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        if self._worker is not None:
            self._worker.start(self._get_connector_metadata())

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Loads are asynchronous: a request is not scheduled before its load is over."""

    def save_kv_layer(self, layer_name: str, kv_layer: Any, attn_metadata: Any, **kwargs: Any) -> None:
        """Saves go by request, after the forward."""

    def wait_for_save(self) -> None:
        if self._worker is not None:
            self._worker.save(self._get_connector_metadata())

    def get_finished(self, finished_req_ids: set[str]) -> tuple[set[str] | None, set[str] | None]:
        """As vLLM asks before 0.32; get_block_ids_with_load_errors() follows in the same step."""
        if self._worker is None:
            return None, None
        sent, received, failed = self._worker.results()
        self._failed_blocks.update(*failed.values())
        return sent, received

    def get_transfer_results(self, finished_req_ids: set[str]) -> Any:
        """As vLLM asks from 0.32 on."""
        if self._worker is None:
            return compat.transfer_results(set(), set(), set())
        sent, received, failed = self._worker.results()
        return compat.transfer_results(sent, received, set(failed))

    def get_block_ids_with_load_errors(self) -> set[int]:
        failed, self._failed_blocks = self._failed_blocks, set()
        return failed

    # ---- everywhere ----
    def shutdown(self) -> None:
        for part in (self._heart, self._worker, self._scheduler):
            if part is not None:
                part.close()
        self._heart = self._worker = self._scheduler = None

    def get_kv_connector_stats(self) -> HandoffStats | None:
        counted = self._counts.take()
        due = self._worker is not None and compat.WORKERS_COUNT_TOO
        return HandoffStats(data=counted) if counted or due else None

    @classmethod
    def build_kv_connector_stats(cls, data: dict[str, Any] | None = None) -> HandoffStats:
        return HandoffStats(data=data or {})

    @classmethod
    def build_prom_metrics(
        cls, vllm_config: Any, metric_types: Any, labelnames: list[str], per_engine_labelvalues: Any
    ) -> HandoffMetrics:
        return HandoffMetrics(vllm_config, metric_types, labelnames, per_engine_labelvalues)


compat.make_known(SyshaxConnector)


def _outbox(pool: Pool, geometry: Geometry, max_tokens: int, library: Library) -> Outbox | None:
    """The unit's own pool file; None (and a log line) where it can't be had: the unit then serves without saving."""
    if not pool.name or not pool.size:
        return None
    try:
        chunks = chunks_that_fit(pool.size, geometry, tickets=TICKETS, max_tokens=max_tokens, library=library)
        if chunks == 0:
            log.error("no handoff from this unit: SYSHAX_POOL_BYTES is %d, too small for one chunk", pool.size)
            return None
        limits = {"chunks": chunks, "tickets": TICKETS, "max_tokens": max_tokens}
        return Outbox.create(str(pool.outbox), geometry, **limits, library=library)
    except (KernelError, OSError) as err:
        log.error("no handoff from this unit: %s", err)
        return None


def _worker_side(vllm_config: Any, pool: Pool) -> WorkerSide:
    model, parallel = vllm_config.model_config, vllm_config.parallel_config
    share = Share(
        get_tensor_model_parallel_rank(), parallel.tensor_parallel_size, model.hf_text_config.num_key_value_heads
    )
    return WorkerSide(pool, share, vllm_config.cache_config.block_size, model.get_head_size())
