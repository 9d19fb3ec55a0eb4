/* sysHAX handoff pool: one file per unit (its outbox) on tmpfs. Format and rules: docs/kv-handoff.md.
 * Every word that two processes touch goes through these calls (C++11 acquire/release, compare-and-swap).
 * The rules of kernels.h hold here too. Threads: the owner's calls one at a time; seal by different ranks, and the
 * consumer's calls, from any thread at any time (also on the owner's own handle). */
#ifndef SYSHAX_POOL_H
#define SYSHAX_POOL_H

#include "kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

#define SX_POOL_FORMAT 1u /* written; readers accept this and the one before it */
#define SX_POOL_CHUNK_TOKENS 64u
#define SX_POOL_MAX_TP 8u
#define SX_POOL_STATS_OFFSET 4096u /* the daemon reads the stats page here without native code */
#define SX_POOL_STATS_BYTES 256u
#define SX_POOL_MAX_LEASE_NS 3600000000000ull /* one hour: no lease may be longer */

typedef struct sx_pool sx_pool;

typedef struct sx_pool_geometry {
    uint32_t size;
    uint32_t n_layers, n_kv_heads, head_size;
    int32_t wire_type;    /* SX_F32, SX_F16 or SX_BF16: of the chunks in this file */
    uint8_t model_id[32]; /* SHA-256 over architecture, rope parameters, vocabulary (docs/kv-handoff.md); must match */
    uint32_t block_size, tp_size; /* beside the match: for people */
    int32_t kv_type;
} sx_pool_geometry;

typedef struct sx_pool_create_args {
    uint32_t size;
    uint32_t n_chunks, n_tickets, max_tokens; /* max_tokens: of one ticket */
    const char *path;                         /* made by the daemon (0660); created here where missing */
    sx_pool_geometry geometry;
} sx_pool_create_args;

enum {
    SX_TICKET_FREE = 0,
    SX_TICKET_FILLING = 1,
    SX_TICKET_READY = 2,
    SX_TICKET_LOADING = 3,
    SX_TICKET_CONSUMED = 4,
    SX_TICKET_FAILED = 5
};

/* ---- owner ---- */
/* Bytes the file of sx_pool_create will have. `path` is not used. */
SX_API sx_status sx_pool_file_bytes(const sx_pool_create_args *args, uint64_t *bytes);
/* Opens or makes the file, allocates its space (posix_fallocate), bumps the generation, frees every ticket.
 * SX_EFULL: no room for it. SX_EBUSY: another live process owns it. The file never shrinks. */
SX_API sx_status sx_pool_create(const sx_pool_create_args *args, sx_pool **out);
/* FREE -> FILLING. `slot` names this use of the ticket: once it is freed, calls with it fail with SX_ESTALE.
 * lease_ns: how long the ticket stays READY, from publish. SX_EBUSY: a living ticket has this id. */
SX_API sx_status sx_pool_begin(sx_pool *pool, const uint8_t id[16], uint64_t lease_ns, uint32_t *slot);
/* Adds tokens to a FILLING ticket, reserving chunks. SX_EFULL changes nothing. */
SX_API sx_status sx_pool_append(sx_pool *pool, uint32_t slot, const int32_t *tokens, uint32_t n);
/* Address of chunk `index` of a FILLING ticket; good until the ticket is freed. */
SX_API sx_status sx_pool_chunk(sx_pool *pool, uint32_t slot, uint32_t index, void **data, uint64_t *bytes);
/* Computes crc32c of the slice that tensor-parallel `rank` wrote into chunk `index`, over its first `n_tokens` tokens
 * (0: all that were appended to it so far). Call it after the slice is in memory, again after it grew. */
SX_API sx_status sx_pool_seal(sx_pool *pool, uint32_t slot, uint32_t index, uint32_t rank, uint32_t n_tokens);
/* The same without reading the slice again: `crc` is what sx_kv_export or sx_pages_export told of exactly those tokens
 * and heads, copied by one call. n_tokens must be given. */
SX_API sx_status sx_pool_seal_as(sx_pool *pool, uint32_t slot, uint32_t index, uint32_t rank, uint32_t n_tokens,
                                 uint32_t crc);
/* For who reads its own chunk of a FILLING ticket again: SX_ECORRUPT unless the seal of `rank` covers `n_tokens` tokens
 * and the slice is still what was sealed. */
SX_API sx_status sx_pool_verify(sx_pool *pool, uint32_t slot, uint32_t index, uint32_t rank, uint32_t n_tokens);
/* FILLING -> READY with the first `n_tokens` valid; later appended tokens are dropped. Every rank must have sealed all
 * valid tokens (SX_ESTATE). */
SX_API sx_status sx_pool_publish(sx_pool *pool, uint32_t slot, uint32_t n_tokens);
/* FILLING | READY -> FAILED: consumers stop waiting for it. SX_EBUSY: a consumer holds it. */
SX_API sx_status sx_pool_fail(sx_pool *pool, uint32_t slot);
/* Frees at once, or, while a consumer's lease holds it, in the reap after that ends. Token ids are zeroed.
 * Nothing may still be writing into its chunks (copies under way on a device, other ranks). */
SX_API sx_status sx_pool_free_ticket(sx_pool *pool, uint32_t slot);
SX_API sx_status sx_pool_find(sx_pool *pool, const uint8_t id[16], uint32_t *slot, uint32_t *state);
/* Frees CONSUMED, FAILED, expired READY and LOADING; the owner calls it every step. now_ns: CLOCK_MONOTONIC. */
SX_API sx_status sx_pool_reap(sx_pool *pool, uint64_t now_ns, uint32_t *freed);
/* ---- a tensor-parallel worker of the owner: may call chunk, seal and verify ---- */
SX_API sx_status sx_pool_join(const char *path, sx_pool **out);
/* ---- consumer ---- */
/* A pinned ticket. Plain data: the ranks of a consumer may copy it to each other, each with its own handle. */
typedef struct sx_pool_view {
    uint32_t size;
    uint32_t slot, n_tokens, n_chunks;
    uint64_t generation, word;  /* word: the state word that was pinned */
    uint64_t deadline_ns;       /* of the consumer's lease */
    uint64_t ready_deadline_ns; /* of the owner's, put back by a release that did not consume */
} sx_pool_view;
/* SX_EBUSY: the owner has not finished making it. expected NULL: any geometry, read-only (describe, read_stats). */
SX_API sx_status sx_pool_open(const char *path, const sx_pool_geometry *expected, sx_pool **out);
/* READY -> LOADING by compare-and-swap. generation 0: whatever this handle was opened with.
 * SX_EBUSY: still FILLING, ask again. SX_ENOTFOUND: no such ticket. SX_ESTALE: consumed, failed, held by another
 * consumer, or the owner started anew (then open the file again). SX_ECORRUPT: the ticket is damaged. */
SX_API sx_status sx_pool_pin(sx_pool *pool, const uint8_t id[16], uint64_t generation, uint64_t lease_ns,
                             sx_pool_view *view);
/* Copies token ids [first, first + n) of the ticket to `out`. */
SX_API sx_status sx_pool_tokens(sx_pool *pool, const sx_pool_view *view, uint32_t first, uint32_t n, int32_t *out);
/* Bounds-checked pointer to chunk `index`, after its checksums matched; SX_ECORRUPT else. What is copied from there
 * counts only once check() or release() returned SX_OK. */
SX_API sx_status sx_pool_read(sx_pool *pool, const sx_pool_view *view, uint32_t index, const void **data,
                              uint64_t *bytes);
/* For who makes the checksum while copying (sx_kv_import, sx_pages_import): the pointer without comparing. `*tokens` is
 * how many tokens the one seal of the chunk covers; 0: several ranks sealed it, use sx_pool_read. Then sx_pool_match:
 * SX_ECORRUPT unless `crc` over those tokens is what was sealed; throw away what was copied. */
SX_API sx_status sx_pool_locate(sx_pool *pool, const sx_pool_view *view, uint32_t index, const void **data,
                                uint64_t *bytes, uint32_t *tokens);
SX_API sx_status sx_pool_match(sx_pool *pool, const sx_pool_view *view, uint32_t index, uint32_t tokens, uint32_t crc);
/* SX_OK: the pin held up to now. SX_ESTALE: throw away what was copied. */
SX_API sx_status sx_pool_check(sx_pool *pool, const sx_pool_view *view);
/* LOADING -> CONSUMED (or back to READY). SX_ESTALE: the ticket changed meanwhile, throw away what was copied. */
SX_API sx_status sx_pool_release(sx_pool *pool, const sx_pool_view *view, uint32_t consumed);
/* ---- both ---- */
typedef struct sx_pool_info {
    uint32_t size;
    uint32_t format, n_chunks, n_tickets, max_tokens, chunks_free, tickets_free;
    uint64_t generation, chunk_bytes; /* chunk_bytes: data of one chunk, without the padding to whole pages */
    void *chunks;                     /* all chunks in this mapping, to register with a device; */
    uint64_t chunks_size;             /* bytes there */
    sx_pool_geometry geometry;
} sx_pool_info; /* chunks_free, tickets_free: known to the owner's handle only, else 0 */
SX_API sx_status sx_pool_describe(sx_pool *pool, sx_pool_info *info);
SX_API void sx_pool_close(sx_pool *pool);

/* Stats page, rewritten every step. Layout little-endian, packed as declared; crc32 (zlib's) of all bytes before it.
 * In the file a second copy of `sequence` follows: a reader takes that one first and the struct's last (section 2). */
typedef struct sx_unit_stats {
    uint32_t size;             /* of this struct: 120 */
    uint32_t format;           /* 1 */
    uint64_t sequence;         /* grows by one a write */
    uint64_t generation;       /* of the pool */
    uint64_t time_ns;          /* CLOCK_MONOTONIC of the write */
    uint32_t running, waiting; /* requests */
    uint32_t kv_blocks_used, kv_blocks_total, kv_block_size;
    uint32_t step_tokens;                                          /* tokens computed in the last step */
    uint64_t step_ns;                                              /* its duration */
    uint64_t preemptions, prompt_tokens, generation_tokens, steps; /* totals */
    uint32_t waiting_prompt_tokens;                                /* of waiting requests, not yet computed */
    uint32_t kv_tokens;                                            /* tokens held by running requests */
    uint32_t pool_chunks_free, pool_chunks_total;
    uint16_t max_num_seqs;    /* running requests at most; 0: not told */
    uint16_t max_step_tokens; /* tokens of the next step at most, 65535 for more; 0: not told */
    uint32_t crc;
} sx_unit_stats;
/* Fills in size, format, sequence, generation, time_ns, pool_chunks_* and crc itself. */
SX_API sx_status sx_pool_write_stats(sx_pool *pool, const sx_unit_stats *stats);
/* SX_ENOTFOUND: never written. SX_EBUSY: torn eight times in a row. SX_ECORRUPT: the crc is wrong. */
SX_API sx_status sx_pool_read_stats(sx_pool *pool, sx_unit_stats *stats);

#ifdef __cplusplus
}
#endif
#endif
