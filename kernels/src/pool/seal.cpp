// Chunk addresses and seals: for the owner and for the tensor-parallel workers that write beside it.
#include "core/status.h"
#include "pool/atomic.h"
#include "pool/owner.h"
#include "pool/pool.h"
#include "pool/step.h"

namespace sx {
namespace {

// A worker has only the shared tables; a slot number of an older use is noticed by its era.
sx_status worker_chunk(const sx_pool *pool, uint32_t slot, uint32_t index, uint32_t &number) {
    const uint32_t at = index_of(slot);
    if (at >= pool->layout.n_tickets)
        return fail(SX_EINVAL, "pool: slot %08x names ticket %u of %u", slot, at, pool->layout.n_tickets);
    const sx_status status = check_generation(*pool);
    if (status != SX_OK) return status;
    const sx_pool_ticket *ticket = pool->ticket(at);
    const uint32_t state = state_of(load_acquire(&ticket->word));
    if (state == SX_TICKET_FREE || slot != slot_of(at, load_relaxed(&ticket->era) & 0xffff))
        return fail(SX_ESTALE, "pool: slot %08x was freed", slot);
    if (state != SX_TICKET_FILLING)
        return fail(SX_ESTATE, "pool: slot %08x is %s, expected FILLING", slot, state_name(state));
    const uint32_t n_chunks = load_acquire(&ticket->n_chunks);
    if (index >= n_chunks || index >= pool->layout.max_chunks)
        return fail(SX_EINVAL, "pool: chunk %u of slot %08x, which has %u", index, slot, n_chunks);
    return listed_chunk(*pool, slot, index, number);
}

sx_status owner_chunk(const sx_pool *pool, uint32_t slot, uint32_t index, uint32_t &number) {
    uint32_t at;
    const sx_status status = resolve_filling(pool, slot, at);
    if (status != SX_OK) return status;
    const uint32_t n_chunks = pool->owner->ticket(at).n_chunks;
    if (index >= n_chunks) return fail(SX_EINVAL, "pool: chunk %u of slot %08x, which has %u", index, slot, n_chunks);
    number = pool->owner->chunk(at, index);
    return SX_OK;
}

sx_status resolve_chunk(const sx_pool *pool, uint32_t slot, uint32_t index, uint32_t &number) {
    if (pool == nullptr) return fail(SX_EINVAL, "pool: handle is NULL");
    if (pool->role == Role::owner) return owner_chunk(pool, slot, index, number);
    if (pool->role == Role::worker) return worker_chunk(pool, slot, index, number);
    return fail(SX_ESTATE, "pool: only the owner and its workers write chunks");
}

// `given`: the slice's checksum where the caller has made it while copying; NULL: it is made here.
sx_status seal(sx_pool *pool, uint32_t slot, uint32_t index, uint32_t rank, uint32_t n_tokens, const uint32_t *given) {
    uint32_t number;
    const sx_status status = resolve_chunk(pool, slot, index, number);
    if (status != SX_OK) return status;
    if (rank >= pool->layout.geometry.tp_size)
        return fail(SX_EINVAL, "sx_pool_seal: rank %u, tp_size is %u", rank, pool->layout.geometry.tp_size);
    const uint32_t there = tokens_in(load_acquire(&pool->ticket(index_of(slot))->n_tokens), index);
    const uint32_t covered = n_tokens == 0 && !given ? there : n_tokens;
    if (covered == 0 || covered > there)
        return fail(SX_EINVAL, "sx_pool_seal: %u tokens of chunk %u, %u were appended", covered, index, there);
    const uint32_t crc = given ? *given : slice_crc(pool->layout, pool->chunk(number), rank, covered);
    SX_STEP();
    store_release(pool->record(number)->seals + rank, seal_word(crc, covered, slot));
    SX_STEP();
    return SX_OK;
}

}  // namespace
}  // namespace sx

sx_status sx_pool_chunk(sx_pool *pool, uint32_t slot, uint32_t index, void **data, uint64_t *bytes) {
    uint32_t number;
    const sx_status status = sx::resolve_chunk(pool, slot, index, number);
    if (status != SX_OK) return status;
    if (data == nullptr || bytes == nullptr) return sx::fail(SX_EINVAL, "sx_pool_chunk: an argument is missing");
    sx::map_chunk(*pool, number);
    *data = pool->chunk(number);
    *bytes = pool->layout.chunk_bytes;
    return SX_OK;
}

sx_status sx_pool_seal(sx_pool *pool, uint32_t slot, uint32_t index, uint32_t rank, uint32_t n_tokens) {
    return sx::seal(pool, slot, index, rank, n_tokens, nullptr);
}

sx_status sx_pool_seal_as(sx_pool *pool, uint32_t slot, uint32_t index, uint32_t rank, uint32_t n_tokens,
                          uint32_t crc) {
    return sx::seal(pool, slot, index, rank, n_tokens, &crc);
}

sx_status sx_pool_verify(sx_pool *pool, uint32_t slot, uint32_t index, uint32_t rank, uint32_t n_tokens) {
    uint32_t number;
    const sx_status status = sx::resolve_chunk(pool, slot, index, number);
    if (status != SX_OK) return status;
    if (rank >= pool->layout.geometry.tp_size)
        return sx::fail(SX_EINVAL, "sx_pool_verify: rank %u, tp_size is %u", rank, pool->layout.geometry.tp_size);
    const uint64_t seal = sx::load_acquire(pool->record(number)->seals + rank);
    const uint32_t covered = sx::seal_tokens(seal);
    const bool whole = sx::seal_belongs(seal, slot) && covered >= n_tokens && covered <= SX_POOL_CHUNK_TOKENS &&
                       static_cast<uint32_t>(seal) == sx::slice_crc(pool->layout, pool->chunk(number), rank, covered);
    return whole ? SX_OK : sx::fail(SX_ECORRUPT, "pool: chunk %u of slot %08x is not what was sealed", index, slot);
}
