"""Opens a model and puts the engine together; runs in the engine's thread."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass

from syshax_contract.model_files import ModelFacts, gguf_facts
from syshax_contract.model_memory import engine_memory, kv_bytes
from syshax_kernels.context import Context, ContextInfo
from syshax_kernels.kernel_errors import KernelError
from syshax_kernels.pool import CHUNK_TOKENS, Geometry, chunks_that_fit, model_id
from sysinfer.blocks import BlockPool
from sysinfer.chat_templates import template_source
from sysinfer.config import Metadata, ModelConfig, read_config, vocabulary
from sysinfer.core import EngineCore, Handoffs
from sysinfer.engine_errors import ModelFileError, SetupError
from sysinfer.gguf_tensors import GgufFile
from sysinfer.handoff import SequenceLoader, SequenceSaver, open_outbox
from sysinfer.native import NativeRunner, RunnerSizes
from sysinfer.options import Options
from sysinfer.scheduler import Scheduler, SchedulerConfig
from sysinfer.stats import EngineStats
from sysinfer.template import ChatTemplate
from sysinfer.tokenizer import ModelTokenizer
from sysinfer.weights import KINDS

log = logging.getLogger("sysinfer.engine")

TICKETS = 256
LOAD_STEP_BYTES = 64 << 20  # of a ticket, copied in one step


@dataclass(frozen=True)
class Opened:
    """A model file as the server needs it: everything but the weights."""

    file: GgufFile
    facts: ModelFacts
    config: ModelConfig
    meta: Metadata
    tokenizer: ModelTokenizer
    template: ChatTemplate | None


@dataclass(frozen=True)
class Loaded:
    """An engine that is ready. `summary`: what runs, in words; `binding`: what the system granted of it."""

    opened: Opened
    core: EngineCore
    saver: SequenceSaver | None
    sizes: RunnerSizes
    summary: str
    binding: Mapping[str, int | str]


def open_model(options: Options) -> Opened:
    """Reads configuration, tokenizer and chat template; ModelFileError says what does not fit."""
    file = GgufFile(options.model)
    config, meta = read_config(file), Metadata(file.path, file.metadata)
    tokenizer = ModelTokenizer(meta)
    if len(tokenizer) > config.vocab:
        raise ModelFileError(f"{file.path}: {len(tokenizer)} tokens, but the embedding has {config.vocab} rows")
    source = options.chat_template or template_source(meta)
    bos, eos = (tokenizer.tokens[i] if i is not None else "" for i in (tokenizer.bos, tokenizer.eos))
    template = ChatTemplate(source, bos, eos) if source else None
    return Opened(file, gguf_facts(file.header), config, meta, tokenizer, template)


def plan_sizes(options: Options, facts: ModelFacts, free_bytes: int) -> RunnerSizes:
    """KV blocks and context length that fit together; SetupError for a longer context than the model has."""
    asked, own = options.sizing, facts.context
    if asked.max_model_len is not None and asked.max_model_len > own:
        raise SetupError(f"--max-model-len is {asked.max_model_len}, the model was trained for {own} tokens")
    planned = engine_memory(facts, asked, free_bytes)
    blocks, size, longest = planned.kv_blocks, asked.block_size, planned.max_model_len
    if longest < (asked.max_model_len or own):
        log.info(
            "%d KV blocks of %d tokens: sequences can have %d tokens, not %d",
            blocks, size, longest, asked.max_model_len or own,
        )  # fmt: skip
    return RunnerSizes(longest, blocks, size, asked.max_num_batched_tokens, asked.kv_dtype)


def free_memory() -> int:
    """MemAvailable of the machine, bytes."""
    with open("/proc/meminfo", encoding="ascii") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))


def load(opened: Opened, options: Options, stats: EngineStats) -> Loaded:
    """Loads the weights and builds the engine. SetupError with what is wrong and what to do."""
    begin = time.monotonic()
    config = opened.config
    sizes = plan_sizes(options, opened.facts, free_memory())
    try:
        context = Context(
            options.threads, options.cpus or None, nrc=options.nrc, spin_us=0 if options.threads == 1 else 50
        )
        runner = NativeRunner(context, opened.file, config, sizes, options.sizing.weights, options.packed_cache)
    except (KernelError, ValueError) as err:
        raise SetupError(f"{options.model} can't be loaded: {err}") from err
    limits = SchedulerConfig(options.sizing.max_num_seqs, sizes.max_batch_tokens, sizes.max_model_len)
    scheduler = Scheduler(limits, BlockPool(sizes.kv_blocks, sizes.block_size, options.prefix_cache))
    handoffs = _handoffs(opened, options, sizes, runner, stats)
    core = EngineCore(scheduler, runner, opened.tokenizer, stats, handoffs)
    info = runner.info
    summary = (
        f"{config.arch} with {config.n_layers} layers, {info.threads} threads ({info.pinned} bound) of {info.isa}, "
        f"{sizes.kv_blocks} KV blocks of {sizes.block_size} tokens, context {sizes.max_model_len}, "
        f"handoff {'on' if handoffs.saver else 'off'}, loaded in {time.monotonic() - begin:.2f} s"
    )
    if info.unbound:
        log.warning("%d ranges of weights or KV could not be bound to their NUMA node", info.unbound)
    return Loaded(opened, core, handoffs.saver, sizes, summary, _granted(info, bool(options.cpus)))


def _granted(info: ContextInfo, bound: bool) -> Mapping[str, int | str]:
    """For the model card; without a list of CPUs nothing was to be pinned."""
    pinned = info.pinned if bound else info.threads
    return {"threads": info.threads, "pinned": pinned, "nodes": info.nodes, "unbound": info.unbound, "isa": info.isa}


def _geometry(opened: Opened, sizes: RunnerSizes) -> Geometry:
    config = opened.config
    scaling = None if config.rope_scaling is None else dict(zip(("rope_type", "factor"), config.rope_scaling))
    digest = model_id(
        config.arch, config.n_layers, config.n_heads, config.n_kv_heads, config.head_dim, config.d_model,
        config.rope_theta, scaling, vocabulary(opened.meta),
    )  # fmt: skip
    kind = int(KINDS["f16" if sizes.kv_dtype == "q8_0" else sizes.kv_dtype])  # pools hold no 8-bit KV
    return Geometry(config.n_layers, config.n_kv_heads, config.head_dim, kind, digest, sizes.block_size, 1, kind)


def _handoffs(
    opened: Opened, options: Options, sizes: RunnerSizes, runner: NativeRunner, stats: EngineStats
) -> Handoffs:
    """Both sides, where the environment names a pool; only a log line where the unit's own file can't be had."""
    if options.pool_path is None:
        return Handoffs()
    geometry = _geometry(opened, sizes)
    loader = SequenceLoader(options.pool_path.parent, geometry, runner, stats)
    budget = max(LOAD_STEP_BYTES // kv_bytes(opened.facts, 1, sizes.kv_dtype) // CHUNK_TOKENS, 1) * CHUNK_TOKENS
    chunks = chunks_that_fit(options.pool_bytes, geometry, tickets=TICKETS, max_tokens=sizes.max_model_len)
    if chunks == 0:
        log.error("no handoff from this unit: SYSHAX_POOL_BYTES is %d, too small for one chunk", options.pool_bytes)
        return Handoffs(None, loader, budget)
    outbox = open_outbox(options.pool_path, geometry, chunks, TICKETS, sizes.max_model_len)
    exact = sizes.kv_dtype != "q8_0"  # chunks have no 8-bit form
    return Handoffs(SequenceSaver(outbox, runner, stats) if outbox else None, loader, budget, exact)
