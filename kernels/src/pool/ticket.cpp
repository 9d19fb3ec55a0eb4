// The owner's calls on tickets. Each takes a slot number (a ticket and one use of it) and checks it against the
// owner's private truth first.
#include <cstring>

#include "core/status.h"
#include "pool/atomic.h"
#include "pool/owner.h"
#include "pool/pool.h"
#include "pool/step.h"

namespace sx {
namespace {

sx_status need_owner(const sx_pool *pool) {
    if (pool != nullptr && pool->owner != nullptr) return SX_OK;
    return fail(pool == nullptr ? SX_EINVAL : SX_ESTATE, "pool: only the owner's handle can do this");
}

// SX_ESTALE: this use of the ticket is over.
sx_status resolve(const sx_pool *pool, uint32_t slot, uint32_t &index) {
    const sx_status status = need_owner(pool);
    if (status != SX_OK) return status;
    index = index_of(slot);
    if (index >= pool->owner->n_tickets())
        return fail(SX_EINVAL, "pool: slot %08x names ticket %u of %u", slot, index, pool->owner->n_tickets());
    const OwnedTicket &mine = pool->owner->ticket(index);
    if (mine.used && slot == slot_of(index, mine.era)) return SX_OK;
    return fail(SX_ESTALE, "pool: slot %08x was freed", slot);
}

}  // namespace

sx_status resolve_filling(const sx_pool *pool, uint32_t slot, uint32_t &index) {
    const sx_status status = resolve(pool, slot, index);
    if (status != SX_OK || pool->owner->ticket(index).filling) return status;
    return fail(SX_ESTATE, "pool: slot %08x is %s, expected FILLING", slot,
                state_name(state_of(load_relaxed(&pool->ticket(index)->word))));
}

namespace {

void store_id(sx_pool_ticket *ticket, const uint64_t id[2]) {
    for (int i = 0; i < 2; ++i) store_relaxed(reinterpret_cast<uint64_t *>(ticket->id) + i, id[i]);
}

void clear_record(sx_pool_record *record, uint32_t owner) {
    for (uint64_t &seal : record->seals) store_relaxed(&seal, uint64_t{0});
    for (int32_t &token : record->tokens) store_relaxed(&token, 0);
    store_relaxed(&record->owner, owner);
}

void clear_ticket(sx_pool_ticket *ticket) {
    const uint64_t none[2] = {0, 0};
    store_id(ticket, none);
    store_relaxed(&ticket->deadline_ns, uint64_t{0});
    store_relaxed(&ticket->n_tokens, 0u);
    store_relaxed(&ticket->n_chunks, 0u);
    store_relaxed(&ticket->crc, 0u);
}

// No consumer can change the word any more (it is CONSUMED, FAILED or was FILLING): FREE means "zeroed".
void finish_free(sx_pool &pool, uint32_t index) {
    sx_pool_ticket *ticket = pool.ticket(index);
    const uint64_t word = load_relaxed(&ticket->word);
    release_fence();  // a consumer that reads what comes now also sees that its pin is gone
    SX_STEP();
    for (uint32_t i = 0; i < pool.owner->ticket(index).n_chunks; ++i)
        clear_record(pool.record(pool.owner->chunk(index, i)), SX_POOL_NO_OWNER);
    SX_STEP();
    clear_ticket(ticket);
    SX_STEP();
    store_release(&ticket->word, next_word(word, SX_TICKET_FREE));
    SX_STEP();
    pool.owner->give_chunks(index);
    pool.owner->give_ticket(index);
}

// May a used ticket be freed now? `wanted`: its owner has no more use for it.
bool reclaimable(uint32_t state, bool wanted, bool expired) {
    switch (state) {
        case SX_TICKET_FILLING: return wanted;
        case SX_TICKET_READY: return wanted || expired;
        case SX_TICKET_LOADING: return expired;
        default: return true;  // CONSUMED, FAILED, or a word that somebody damaged
    }
}

// False: a consumer holds it.
bool try_free(sx_pool &pool, uint32_t index, bool wanted, uint64_t now_ns) {
    sx_pool_ticket *ticket = pool.ticket(index);
    for (int attempt = 0; attempt < 8; ++attempt) {
        const uint64_t word = load_acquire(&ticket->word);
        const uint32_t state = state_of(word);
        if (!reclaimable(state, wanted, lease_over(load_relaxed(&ticket->deadline_ns), now_ns))) return false;
        const bool ours = state == SX_TICKET_CONSUMED || state == SX_TICKET_FAILED;
        if (!ours && !swap_if(&ticket->word, word, next_word(word, SX_TICKET_FAILED)))
            continue;  // a consumer was faster
        SX_STEP();
        finish_free(pool, index);
        return true;
    }
    return false;
}

// One token into the ticket's records; the caller has checked the room.
void append_token(sx_pool &pool, uint32_t slot, int32_t token) {
    const uint32_t index = index_of(slot);
    OwnedTicket &mine = pool.owner->ticket(index);
    const uint32_t at = mine.n_tokens % SX_POOL_CHUNK_TOKENS;
    if (at == 0) {
        const uint32_t number = pool.owner->take_chunk(index);
        clear_record(pool.record(number), slot);
        SX_STEP();
        store_relaxed(pool.chunk_list(index) + mine.n_chunks - 1, number);
        store_release(&pool.ticket(index)->n_chunks, mine.n_chunks);
        SX_STEP();
    }
    store_relaxed(pool.record(pool.owner->chunk(index, mine.n_tokens / SX_POOL_CHUNK_TOKENS))->tokens + at, token);
    ++mine.n_tokens;
}

sx_status check_seals(sx_pool &pool, uint32_t slot, uint32_t n_tokens) {
    const uint32_t index = index_of(slot);
    for (uint32_t i = 0; i < chunks_for(n_tokens); ++i) {
        const uint32_t need = tokens_in(n_tokens, i);
        for (uint32_t rank = 0; rank < pool.layout.geometry.tp_size; ++rank) {
            if (rank_slice(pool.layout, rank).bytes == 0) continue;
            const uint64_t seal = load_acquire(pool.record(pool.owner->chunk(index, i))->seals + rank);
            if (seal_belongs(seal, slot) && seal_tokens(seal) >= need) continue;
            return fail(SX_ESTATE, "pool: chunk %u of slot %08x: rank %u sealed %u tokens, %u are to be published", i,
                        slot, rank, seal_belongs(seal, slot) ? seal_tokens(seal) : 0, need);
        }
    }
    return SX_OK;
}

}  // namespace
}  // namespace sx

sx_status sx_pool_begin(sx_pool *pool, const uint8_t id[16], uint64_t lease_ns, uint32_t *slot) {
    const sx_status status = sx::need_owner(pool);
    if (status != SX_OK) return status;
    uint64_t name[2] = {0, 0};
    if (id != nullptr) std::memcpy(name, id, sizeof name);
    if ((name[0] | name[1]) == 0 || slot == nullptr)
        return sx::fail(SX_EINVAL, "sx_pool_begin: the id is all zero or an argument is missing");
    if (lease_ns == 0 || lease_ns > SX_POOL_MAX_LEASE_NS)
        return sx::fail(SX_EINVAL, "sx_pool_begin: lease of %llu ns, expected 1 ns to 1 h",
                        static_cast<unsigned long long>(lease_ns));
    sx::Owner &owner = *pool->owner;
    const uint32_t same = owner.find_ticket(name);
    if (same < owner.n_tickets()) {
        const uint32_t state = sx::state_of(sx::load_acquire(&pool->ticket(same)->word));
        if ((state != SX_TICKET_CONSUMED && state != SX_TICKET_FAILED) ||
            !sx::try_free(*pool, same, false, sx::monotonic_ns()))
            return sx::fail(SX_EBUSY, "sx_pool_begin: a ticket with this id is %s", sx::state_name(state));
    }
    const uint32_t index = owner.take_ticket(name, lease_ns);
    if (index == owner.n_tickets()) return sx::fail(SX_EFULL, "sx_pool_begin: all %u tickets are in use", index);
    sx_pool_ticket *ticket = pool->ticket(index);
    *slot = sx::slot_of(index, owner.ticket(index).era);
    sx::store_relaxed(&ticket->era, uint32_t{owner.ticket(index).era});
    sx::store_id(ticket, name);
    SX_STEP();
    sx::store_release(&ticket->word, sx::next_word(sx::load_relaxed(&ticket->word), SX_TICKET_FILLING));
    SX_STEP();
    return SX_OK;
}

sx_status sx_pool_append(sx_pool *pool, uint32_t slot, const int32_t *tokens, uint32_t n) {
    uint32_t index;
    const sx_status status = sx::resolve_filling(pool, slot, index);
    if (status != SX_OK) return status;
    if (tokens == nullptr && n > 0) return sx::fail(SX_EINVAL, "sx_pool_append: tokens is NULL");
    sx::OwnedTicket &mine = pool->owner->ticket(index);
    if (n > pool->layout.max_tokens - mine.n_tokens)
        return sx::fail(SX_EFULL, "sx_pool_append: %u + %u tokens, a ticket of this pool holds %u", mine.n_tokens, n,
                        pool->layout.max_tokens);
    const uint32_t more = sx::chunks_for(mine.n_tokens + n) - mine.n_chunks;
    if (more > pool->owner->chunks_free())
        return sx::fail(SX_EFULL, "sx_pool_append: needs %u chunks, %u of %u are free", more,
                        pool->owner->chunks_free(), pool->layout.n_chunks);
    for (uint32_t i = 0; i < n; ++i) sx::append_token(*pool, slot, tokens[i]);
    SX_STEP();
    sx::store_release(&pool->ticket(index)->n_tokens, mine.n_tokens);
    SX_STEP();
    return SX_OK;
}

sx_status sx_pool_publish(sx_pool *pool, uint32_t slot, uint32_t n_tokens) {
    uint32_t index;
    sx_status status = sx::resolve_filling(pool, slot, index);
    if (status != SX_OK) return status;
    sx::OwnedTicket &mine = pool->owner->ticket(index);
    if (n_tokens == 0 || n_tokens > mine.n_tokens)
        return sx::fail(SX_EINVAL, "sx_pool_publish: %u tokens, %u were appended", n_tokens, mine.n_tokens);
    status = sx::check_seals(*pool, slot, n_tokens);
    if (status != SX_OK) return status;
    uint32_t crc;
    status = sx::ticket_crc(*pool, slot, n_tokens, crc);
    if (status != SX_OK) return status;
    sx_pool_ticket *ticket = pool->ticket(index);
    SX_STEP();
    sx::store_relaxed(&ticket->n_tokens, n_tokens);
    SX_STEP();
    sx::store_relaxed(&ticket->crc, crc);
    sx::store_relaxed(&ticket->deadline_ns, sx::monotonic_ns() + mine.lease_ns);
    SX_STEP();
    mine.filling = false;
    sx::store_release(&ticket->word, sx::next_word(sx::load_relaxed(&ticket->word), SX_TICKET_READY));
    SX_STEP();
    return SX_OK;
}

sx_status sx_pool_fail(sx_pool *pool, uint32_t slot) {
    uint32_t index;
    const sx_status status = sx::resolve(pool, slot, index);
    if (status != SX_OK) return status;
    uint64_t *word = &pool->ticket(index)->word;
    const uint64_t seen = sx::load_acquire(word);
    const uint32_t state = sx::state_of(seen);
    const bool may = state == SX_TICKET_FILLING || state == SX_TICKET_READY;
    if (!may && state != SX_TICKET_LOADING)
        return sx::fail(SX_ESTATE, "sx_pool_fail: the ticket is %s", sx::state_name(state));
    if (!may || !sx::swap_if(word, seen, sx::next_word(seen, SX_TICKET_FAILED)))
        return sx::fail(SX_EBUSY, "sx_pool_fail: a consumer holds slot %08x", slot);
    pool->owner->ticket(index).filling = false;
    SX_STEP();
    return SX_OK;
}

sx_status sx_pool_free_ticket(sx_pool *pool, uint32_t slot) {
    uint32_t index;
    const sx_status status = sx::resolve(pool, slot, index);
    if (status != SX_OK) return status;
    if (!sx::try_free(*pool, index, true, sx::monotonic_ns())) pool->owner->ticket(index).doomed = true;
    return SX_OK;
}

sx_status sx_pool_find(sx_pool *pool, const uint8_t id[16], uint32_t *slot, uint32_t *state) {
    const sx_status status = sx::need_owner(pool);
    if (status != SX_OK) return status;
    if (id == nullptr || slot == nullptr || state == nullptr)
        return sx::fail(SX_EINVAL, "sx_pool_find: an argument is missing");
    uint64_t name[2];
    std::memcpy(name, id, sizeof name);
    const uint32_t index = pool->owner->find_ticket(name);
    if (index == pool->owner->n_tickets()) return sx::fail(SX_ENOTFOUND, "sx_pool_find: no ticket with this id");
    *slot = sx::slot_of(index, pool->owner->ticket(index).era);
    *state = sx::state_of(sx::load_acquire(&pool->ticket(index)->word));
    return SX_OK;
}

sx_status sx_pool_reap(sx_pool *pool, uint64_t now_ns, uint32_t *freed) {
    const sx_status status = sx::need_owner(pool);
    if (status != SX_OK) return status;
    uint32_t count = 0;
    for (uint32_t i = 0; i < pool->owner->n_tickets(); ++i) {
        const sx::OwnedTicket &mine = pool->owner->ticket(i);
        if (mine.used) count += sx::try_free(*pool, i, mine.doomed, now_ns);
    }
    if (freed != nullptr) *freed = count;
    return SX_OK;
}
