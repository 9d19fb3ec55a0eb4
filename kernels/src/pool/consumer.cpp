// The consumer's calls. Nothing in the file is trusted: every number is loaded once, checked, then used; whatever was
// read counts only if the ticket's word is still the pinned one afterwards (a sequence lock with the owner as writer).
#include <sys/stat.h>
#include <cstring>

#include "core/status.h"
#include "pool/atomic.h"
#include "pool/pool.h"
#include "pool/step.h"

namespace sx {
namespace {

sx_status usable(const sx_pool *pool) {
    if (pool == nullptr) return fail(SX_EINVAL, "pool: handle is NULL");
    if (pool->role == Role::reader)
        return fail(SX_ESTATE, "pool: this handle was opened without a geometry, only to look");
    const sx_status status = check_size(*pool);
    return status == SX_OK ? check_generation(*pool) : status;
}

bool has_id(const sx_pool_ticket *ticket, const uint64_t id[2]) {
    const uint64_t *held = reinterpret_cast<const uint64_t *>(ticket->id);
    return load_relaxed(held) == id[0] && load_relaxed(held + 1) == id[1];
}

// The ticket's index and the word under which it had this id; n_tickets: none. A ticket that changes while it is
// looked at is looked at again.
uint32_t find(const sx_pool &pool, const uint64_t id[2], uint64_t &word) {
    for (uint32_t i = 0; i < pool.layout.n_tickets; ++i) {
        const sx_pool_ticket *ticket = pool.ticket(i);
        word = load_acquire(&ticket->word);
        for (int attempt = 0; attempt < 8 && state_of(word) != SX_TICKET_FREE && has_id(ticket, id); ++attempt) {
            acquire_fence();
            const uint64_t now = load_acquire(&ticket->word);
            if (now == word) return i;
            word = now;
        }
    }
    return pool.layout.n_tickets;
}

sx_status not_found(const sx_pool &pool) {
    struct stat info;
    if (fstat(pool.fd, &info) == 0 && info.st_nlink == 0)
        return fail(SX_ESTALE, "pool: the file was removed, open the new one");
    return fail(SX_ENOTFOUND, "pool: no such ticket");
}

sx_status refuse(uint32_t state) {
    if (state == SX_TICKET_FILLING) return fail(SX_EBUSY, "pool: the ticket is still FILLING");
    return fail(SX_ESTALE, "pool: the ticket is %s, expected READY", state_name(state));
}

bool holds(const sx_pool &pool, const sx_pool_view &view) {
    acquire_fence();
    return load_relaxed(&pool.ticket(index_of(view.slot))->word) == view.word &&
           load_relaxed(&pool.header()->generation) == view.generation;
}

sx_status lost(const sx_pool_view &view) {
    return fail(SX_ESTALE, "pool: the pin on slot %08x did not hold", view.slot);
}

// Damage, unless the ticket was taken away while we looked.
sx_status damaged(const sx_pool &pool, const sx_pool_view &view, const char *what) {
    return holds(pool, view) ? fail(SX_ECORRUPT, "pool: slot %08x: %s", view.slot, what) : lost(view);
}

// Fills in what the pinned ticket says about itself, checked.
sx_status read_ticket(const sx_pool &pool, uint32_t index, sx_pool_view &view) {
    const sx_pool_ticket *ticket = pool.ticket(index);
    view.slot = slot_of(index, load_relaxed(&ticket->era) & 0xffff);
    view.n_tokens = load_relaxed(&ticket->n_tokens);
    view.n_chunks = chunks_for(view.n_tokens);
    if (view.n_tokens == 0 || view.n_tokens > pool.layout.max_tokens)
        return damaged(pool, view, "its token count is out of range");
    uint32_t crc = 0;
    const sx_status status = ticket_crc(pool, view.slot, view.n_tokens, crc);
    if (status != SX_OK) return holds(pool, view) ? status : lost(view);
    if (crc == load_relaxed(&ticket->crc)) return SX_OK;
    return damaged(pool, view, "the checksum over its token ids and chunk numbers is wrong");
}

sx_status pin(const sx_pool &pool, const uint64_t id[2], uint64_t lease_ns, sx_pool_view &view) {
    uint64_t word;
    const uint32_t index = find(pool, id, word);
    if (index == pool.layout.n_tickets) return not_found(pool);
    if (state_of(word) != SX_TICKET_READY) return refuse(state_of(word));
    sx_pool_ticket *ticket = pool.ticket(index);
    const uint64_t now = monotonic_ns();
    view.ready_deadline_ns = load_relaxed(&ticket->deadline_ns);
    view.deadline_ns = now + lease_ns;
    view.generation = pool.generation;
    view.word = next_word(word, SX_TICKET_LOADING);
    if (lease_over(view.ready_deadline_ns, now)) return fail(SX_ESTALE, "pool: the ticket's lease is over");
    acquire_fence();  // id and deadline were those of this word if the exchange succeeds
    SX_STEP();
    if (!swap_if(&ticket->word, word, view.word))
        return fail(SX_ESTALE, "pool: the ticket was taken at the same moment");
    SX_STEP();
    // By exchange: if the owner gave the ticket away meanwhile, its new deadline is not ours to touch.
    if (!swap_if(&ticket->deadline_ns, view.ready_deadline_ns, view.deadline_ns)) return lost(view);
    SX_STEP();
    return read_ticket(pool, index, view);
}

sx_status check_view(const sx_pool *pool, const sx_pool_view *from, sx_pool_view &view) {
    const sx_status status = usable(pool);
    if (status != SX_OK) return status;
    if (!take_args(from, view)) return fail(SX_EINVAL, "pool: the view is NULL or its size is not set");
    const bool sane = index_of(view.slot) < pool->layout.n_tickets && view.n_tokens <= pool->layout.max_tokens &&
                      view.n_chunks == chunks_for(view.n_tokens) && state_of(view.word) == SX_TICKET_LOADING;
    if (!sane) return fail(SX_EINVAL, "pool: not a view of this pool");
    return holds(*pool, view) ? SX_OK : lost(view);
}

sx_status load_seal(const sx_pool &pool, const sx_pool_view &view, uint32_t number, uint32_t rank, uint32_t tokens,
                    uint64_t &seal) {
    seal = load_acquire(pool.record(number)->seals + rank);
    const uint32_t covered = seal_tokens(seal);
    if (seal_belongs(seal, view.slot) && covered >= tokens && covered <= SX_POOL_CHUNK_TOKENS) return SX_OK;
    return damaged(pool, view, "a chunk was not sealed");
}

sx_status compare(const sx_pool &pool, const sx_pool_view &view, uint64_t seal, uint32_t crc) {
    return static_cast<uint32_t>(seal) == crc ? SX_OK : damaged(pool, view, "the checksum of a chunk is wrong");
}

sx_status check_slices(const sx_pool &pool, const sx_pool_view &view, uint32_t number, uint32_t tokens) {
    for (uint32_t rank = 0; rank < pool.layout.geometry.tp_size; ++rank) {
        if (rank_slice(pool.layout, rank).bytes == 0) continue;
        uint64_t seal;
        sx_status status = load_seal(pool, view, number, rank, tokens, seal);
        if (status != SX_OK) return status;
        status = compare(pool, view, seal, slice_crc(pool.layout, pool.chunk(number), rank, seal_tokens(seal)));
        if (status != SX_OK) return status;
    }
    return SX_OK;
}

// The view and its chunk `index`, checked.
sx_status resolve(const sx_pool *pool, const sx_pool_view *from, uint32_t index, sx_pool_view &view, uint32_t &number) {
    sx_status status = check_view(pool, from, view);
    if (status != SX_OK) return status;
    if (index >= view.n_chunks) return fail(SX_EINVAL, "pool: chunk %u of %u", index, view.n_chunks);
    status = listed_chunk(*pool, view.slot, index, number);
    if (status != SX_OK) return holds(*pool, view) ? status : lost(view);
    SX_STEP();
    return SX_OK;
}

void copy_tokens(const sx_pool_record *record, uint32_t from, uint32_t n, int32_t *out) {
    for (uint32_t i = 0; i < n; ++i) out[i] = load_relaxed(record->tokens + from + i);
}

}  // namespace
}  // namespace sx

sx_status sx_pool_pin(sx_pool *pool, const uint8_t id[16], uint64_t generation, uint64_t lease_ns, sx_pool_view *view) {
    const sx_status status = sx::usable(pool);
    if (status != SX_OK) return status;
    if (id == nullptr || view == nullptr || view->size < sizeof *view)
        return sx::fail(SX_EINVAL, "sx_pool_pin: an argument is missing");
    if (lease_ns == 0 || lease_ns > SX_POOL_MAX_LEASE_NS)
        return sx::fail(SX_EINVAL, "sx_pool_pin: lease of %llu ns, expected 1 ns to 1 h",
                        static_cast<unsigned long long>(lease_ns));
    if (generation != 0 && generation != pool->generation)
        return sx::fail(SX_ESTALE, "sx_pool_pin: generation %llu was asked for, the file has %llu",
                        static_cast<unsigned long long>(generation), static_cast<unsigned long long>(pool->generation));
    uint64_t name[2];
    std::memcpy(name, id, sizeof name);
    sx_pool_view out{};
    const sx_status pinned = sx::pin(*pool, name, lease_ns, out);
    out.size = view->size;
    if (pinned == SX_OK) std::memcpy(view, &out, sizeof out);
    // A damaged ticket is of no use to anybody: let the owner reap it.
    if (pinned == SX_ECORRUPT) {
        uint64_t *word = &pool->ticket(sx::index_of(out.slot))->word;
        sx::swap_if(word, out.word, sx::next_word(out.word, SX_TICKET_CONSUMED));
    }
    return pinned;
}

sx_status sx_pool_tokens(sx_pool *pool, const sx_pool_view *view, uint32_t first, uint32_t n, int32_t *out) {
    sx_pool_view held;
    sx_status status = sx::check_view(pool, view, held);
    if (status != SX_OK) return status;
    if (first > held.n_tokens || n > held.n_tokens - first || (out == nullptr && n > 0))
        return sx::fail(SX_EINVAL, "sx_pool_tokens: %u tokens from %u, the ticket has %u", n, first, held.n_tokens);
    while (n > 0) {
        const uint32_t from = first % SX_POOL_CHUNK_TOKENS, room = SX_POOL_CHUNK_TOKENS - from;
        const uint32_t now = n < room ? n : room;
        uint32_t number;
        status = sx::listed_chunk(*pool, held.slot, first / SX_POOL_CHUNK_TOKENS, number);
        if (status != SX_OK) return sx::holds(*pool, held) ? status : sx::lost(held);
        sx::copy_tokens(pool->record(number), from, now, out);
        SX_STEP();
        first += now;
        n -= now;
        out += now;
    }
    return sx::holds(*pool, held) ? SX_OK : sx::lost(held);
}

sx_status sx_pool_read(sx_pool *pool, const sx_pool_view *view, uint32_t index, const void **data, uint64_t *bytes) {
    sx_pool_view held;
    uint32_t number;
    if (data == nullptr || bytes == nullptr) return sx::fail(SX_EINVAL, "sx_pool_read: an argument is missing");
    sx_status status = sx::resolve(pool, view, index, held, number);
    if (status != SX_OK) return status;
    status = sx::check_slices(*pool, held, number, sx::tokens_in(held.n_tokens, index));
    SX_STEP();
    *data = status == SX_OK ? pool->chunk(number) : nullptr;
    *bytes = status == SX_OK ? pool->layout.chunk_bytes : 0;
    return status;
}

sx_status sx_pool_locate(sx_pool *pool, const sx_pool_view *view, uint32_t index, const void **data, uint64_t *bytes,
                         uint32_t *tokens) {
    sx_pool_view held;
    uint32_t number;
    if (data == nullptr || bytes == nullptr || tokens == nullptr)
        return sx::fail(SX_EINVAL, "sx_pool_locate: an argument is missing");
    sx_status status = sx::resolve(pool, view, index, held, number);
    if (status != SX_OK) return status;
    uint64_t seal = 0;
    const bool one = pool->layout.geometry.tp_size == 1;
    if (one) status = sx::load_seal(*pool, held, number, 0, sx::tokens_in(held.n_tokens, index), seal);
    SX_STEP();
    *data = status == SX_OK ? pool->chunk(number) : nullptr;
    *bytes = status == SX_OK ? pool->layout.chunk_bytes : 0;
    *tokens = status == SX_OK && one ? sx::seal_tokens(seal) : 0;
    return status;
}

sx_status sx_pool_match(sx_pool *pool, const sx_pool_view *view, uint32_t index, uint32_t tokens, uint32_t crc) {
    sx_pool_view held;
    uint32_t number;
    sx_status status = sx::resolve(pool, view, index, held, number);
    if (status != SX_OK) return status;
    uint64_t seal;
    status = sx::load_seal(*pool, held, number, 0, sx::tokens_in(held.n_tokens, index), seal);
    if (status != SX_OK) return status;
    if (pool->layout.geometry.tp_size != 1 || tokens != sx::seal_tokens(seal))
        return sx::fail(SX_EINVAL, "sx_pool_match: %u tokens, the seals are not over those", tokens);
    status = sx::compare(*pool, held, seal, crc);
    SX_STEP();
    return status;
}

sx_status sx_pool_check(sx_pool *pool, const sx_pool_view *view) {
    sx_pool_view held;
    return sx::check_view(pool, view, held);
}

sx_status sx_pool_release(sx_pool *pool, const sx_pool_view *view, uint32_t consumed) {
    sx_pool_view held;
    const sx_status status = sx::check_view(pool, view, held);
    if (status != SX_OK) return status;
    sx_pool_ticket *ticket = pool->ticket(sx::index_of(held.slot));
    if (!consumed) sx::swap_if(&ticket->deadline_ns, held.deadline_ns, held.ready_deadline_ns);
    SX_STEP();
    const uint32_t state = consumed ? SX_TICKET_CONSUMED : SX_TICKET_READY;
    sx::acquire_fence();
    if (!sx::swap_if(&ticket->word, held.word, sx::next_word(held.word, state))) return sx::lost(held);
    SX_STEP();
    return SX_OK;
}
