/* sysHAX handoff pool: one file per unit (its outbox) on tmpfs. Format and rules: docs/kv-handoff.md.
 * Every word that two processes touch goes through these calls (C++11 acquire/release, compare-and-swap).
 * The rules of kernels.h hold here too. */
#ifndef SYSHAX_POOL_H
#define SYSHAX_POOL_H

#include "kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

#define SX_POOL_FORMAT 1u        /* written; readers accept this and the one before it */
#define SX_POOL_CHUNK_TOKENS 64u
#define SX_POOL_MAX_TP 8u
#define SX_POOL_STATS_OFFSET 4096u /* the daemon reads the stats page here without native code */
#define SX_POOL_STATS_BYTES 256u

typedef struct sx_pool sx_pool;

typedef struct sx_pool_geometry {
    uint32_t size;
    uint32_t n_layers, n_kv_heads, head_size;
    int32_t wire_type;     /* SX_F32, SX_F16 or SX_BF16: of the chunks in this file */
    uint8_t model_id[32];  /* SHA-256 over architecture, rope parameters and vocabulary (docs/kv-handoff.md); must match */
    uint32_t block_size, tp_size; /* beside the match: for people */
    int32_t kv_type;
} sx_pool_geometry;

typedef struct sx_pool_create_args {
    uint32_t size;
    uint32_t n_chunks, n_tickets, max_tokens; /* max_tokens: of one ticket */
    const char *path;  /* made by the daemon (0660); created here where missing */
    sx_pool_geometry geometry;
} sx_pool_create_args;

enum { SX_TICKET_FREE = 0, SX_TICKET_FILLING = 1, SX_TICKET_READY = 2, SX_TICKET_LOADING = 3, SX_TICKET_CONSUMED = 4,
       SX_TICKET_FAILED = 5 };

/* ---- owner ---- */
/* Opens or makes the file, allocates its space (posix_fallocate), bumps the generation, frees every ticket. */
SX_API sx_status sx_pool_create(const sx_pool_create_args *args, sx_pool **out);
SX_API sx_status sx_pool_begin(sx_pool *pool, const uint8_t id[16], uint64_t lease_ns, uint32_t *slot);
/* Adds tokens to a FILLING ticket, reserving chunks. SX_EFULL changes nothing. */
SX_API sx_status sx_pool_append(sx_pool *pool, uint32_t slot, const int32_t *tokens, uint32_t n);
SX_API sx_status sx_pool_chunk(sx_pool *pool, uint32_t slot, uint32_t index, void **data, uint64_t *bytes);
/* Computes crc32c of the slice that tensor-parallel `rank` wrote into chunk `index` (its tokens so far). */
SX_API sx_status sx_pool_seal(sx_pool *pool, uint32_t slot, uint32_t index, uint32_t rank);
/* FILLING -> READY with the first `n_tokens` valid; later appended tokens are dropped. */
SX_API sx_status sx_pool_publish(sx_pool *pool, uint32_t slot, uint32_t n_tokens);
/* Frees at once, or, while a consumer's lease holds it, as soon as that ends. Token ids are zeroed. */
SX_API sx_status sx_pool_free_ticket(sx_pool *pool, uint32_t slot);
SX_API sx_status sx_pool_find(sx_pool *pool, const uint8_t id[16], uint32_t *slot, uint32_t *state);
/* Frees consumed, failed and expired tickets; the owner calls it every step. now_ns: CLOCK_MONOTONIC. */
SX_API sx_status sx_pool_reap(sx_pool *pool, uint64_t now_ns, uint32_t *freed);
/* ---- a tensor-parallel worker of the owner: may call chunk and seal ---- */
SX_API sx_status sx_pool_join(const char *path, sx_pool **out);
/* ---- consumer ---- */
typedef struct sx_pool_view {
    uint32_t size;
    uint32_t slot, n_tokens, n_chunks;
    uint64_t generation, word; /* word: the state word that was pinned */
    const int32_t *tokens;     /* inside the mapping: copy, then release() tells whether it still held */
} sx_pool_view;
SX_API sx_status sx_pool_open(const char *path, const sx_pool_geometry *expected, sx_pool **out);
/* READY -> LOADING by compare-and-swap. generation 0: whatever the file has. */
SX_API sx_status sx_pool_pin(sx_pool *pool, const uint8_t id[16], uint64_t generation, uint64_t lease_ns, sx_pool_view *view);
/* Bounds-checked pointer to chunk `index`, after its checksums matched; SX_ECORRUPT else. */
SX_API sx_status sx_pool_read(sx_pool *pool, const sx_pool_view *view, uint32_t index, const void **data, uint64_t *bytes);
/* LOADING -> CONSUMED (or back to READY). SX_ESTALE: the ticket changed meanwhile, throw away what was copied. */
SX_API sx_status sx_pool_release(sx_pool *pool, const sx_pool_view *view, uint32_t consumed);
/* ---- both ---- */
typedef struct sx_pool_info {
    uint32_t size;
    uint32_t format, n_chunks, n_tickets, max_tokens, chunks_free, tickets_free;
    uint64_t generation, chunk_bytes;
    sx_pool_geometry geometry;
} sx_pool_info;
SX_API sx_status sx_pool_describe(sx_pool *pool, sx_pool_info *info);
SX_API void sx_pool_close(sx_pool *pool);

/* Stats page, rewritten every step. Layout little-endian, packed as declared; crc32 (zlib's) of all bytes before it. */
typedef struct sx_unit_stats {
    uint32_t size;                 /* of this struct: 120 */
    uint32_t format;               /* 1 */
    uint64_t sequence;             /* grows by one a write */
    uint64_t generation;           /* of the pool */
    uint64_t time_ns;              /* CLOCK_MONOTONIC of the write */
    uint32_t running, waiting;     /* requests */
    uint32_t kv_blocks_used, kv_blocks_total, kv_block_size;
    uint32_t step_tokens;          /* tokens computed in the last step */
    uint64_t step_ns;              /* its duration */
    uint64_t preemptions, prompt_tokens, generation_tokens, steps; /* totals */
    uint32_t waiting_prompt_tokens;/* of waiting requests, not yet computed */
    uint32_t kv_tokens;            /* tokens held by running requests */
    uint32_t pool_chunks_free, pool_chunks_total;
    uint32_t reserved;
    uint32_t crc;
} sx_unit_stats;
SX_API sx_status sx_pool_write_stats(sx_pool *pool, const sx_unit_stats *stats);
SX_API sx_status sx_pool_read_stats(sx_pool *pool, sx_unit_stats *stats);

#ifdef __cplusplus
}
#endif
#endif
