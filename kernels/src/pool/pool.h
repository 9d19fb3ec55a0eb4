// What is behind an sx_pool: a mapping, its layout, and, in the owner, the private truth about tickets and chunks.
#pragma once

#include <cstdint>
#include <memory>

#include "pool/layout.h"

namespace sx {

struct Owner;

enum class Role { owner, worker, consumer, reader };

uint64_t monotonic_ns();
// Both sides' rule: a deadline further away than any lease may be long is damage, not a lease.
constexpr bool lease_over(uint64_t deadline_ns, uint64_t now_ns) {
    return deadline_ns <= now_ns || deadline_ns - now_ns > SX_POOL_MAX_LEASE_NS;
}

// Ticket word: state in the low 8 bits, above it a sequence number that grows with every transition, so that a word
// once seen never comes back (no ABA), not even after the owner started anew on the same file.
constexpr uint32_t state_of(uint64_t word) { return static_cast<uint32_t>(word & 0xff); }
constexpr uint64_t next_word(uint64_t word, uint32_t state) { return (((word >> 8) + 1) << 8) | state; }
const char *state_name(uint32_t state);

// Slot number: which ticket, and which use of it, so that a number kept too long is recognised.
constexpr uint32_t slot_of(uint32_t index, uint32_t era) { return index | (era << 16); }
constexpr uint32_t index_of(uint32_t slot) { return slot & 0xffff; }

// Seal word: crc32c, number of tokens it covers, era of the ticket it was made for.
constexpr uint64_t seal_word(uint32_t crc, uint32_t tokens, uint32_t slot) {
    return crc | (uint64_t{tokens} << 32) | (uint64_t{slot >> 16} << 48);
}
constexpr uint32_t seal_tokens(uint64_t seal) { return static_cast<uint32_t>((seal >> 32) & 0xff); }
constexpr bool seal_belongs(uint64_t seal, uint32_t slot) { return (seal >> 48) == (slot >> 16); }

}  // namespace sx

struct sx_pool {
    sx::Role role = sx::Role::reader;
    int fd = -1;
    uint8_t *base = nullptr;
    uint64_t mapped = 0;
    uint64_t generation = 0;
    sx::Layout layout{};
    sx::Owner *owner = nullptr;
    uint8_t *mapped_chunks = nullptr;  // of who writes: 1 for a chunk whose pages are in this mapping

    sx_pool() = default;
    sx_pool(const sx_pool &) = delete;
    sx_pool &operator=(const sx_pool &) = delete;
    ~sx_pool();

    sx_pool_header *header() const { return reinterpret_cast<sx_pool_header *>(base); }
    uint8_t *stats() const { return base + SX_POOL_STATS_OFFSET; }
    sx_pool_ticket *ticket(uint32_t index) const {
        return reinterpret_cast<sx_pool_ticket *>(base + SX_POOL_TICKETS_OFFSET +
                                                  uint64_t{index} * layout.ticket_stride);
    }
    uint32_t *chunk_list(uint32_t index) const {
        return reinterpret_cast<uint32_t *>(reinterpret_cast<uint8_t *>(ticket(index)) + SX_POOL_TICKET_HEAD_BYTES);
    }
    sx_pool_record *record(uint32_t chunk) const {
        return reinterpret_cast<sx_pool_record *>(base + layout.records_offset +
                                                  uint64_t{chunk} * SX_POOL_RECORD_BYTES);
    }
    uint8_t *chunk(uint32_t number) const { return base + layout.chunks_offset + number * layout.chunk_stride; }
};

namespace sx {

using PoolPtr = std::unique_ptr<sx_pool>;

// Opens `path`: a regular file, never through a symbolic link. flags: O_RDWR or O_RDONLY, perhaps O_CREAT.
sx_status open_file(const char *path, int flags, int &fd, uint64_t &bytes);
// Maps all of the file; takes `fd` over.
sx_status map_file(int fd, uint64_t bytes, bool writable, sx_pool &pool);
// Makes room to note which chunks are mapped; false: no memory.
bool note_chunks(sx_pool &pool);
// Maps a chunk's pages in one go before its first use: they would cost a fault each.
void map_chunk(sx_pool &pool, uint32_t number);
// The header of a file somebody else owns: layout and generation, read so that an owner that is just making it is
// noticed (SX_EBUSY).
sx_status load_header(sx_pool &pool);
// SX_ECORRUPT where the file is shorter than its mapping: touching it would end in SIGBUS.
sx_status check_size(const sx_pool &pool);
// SX_ESTALE where the owner has started anew since this handle was opened.
sx_status check_generation(const sx_pool &pool);

// Chunk number `index` of a ticket from the shared list, checked against every bound; trusts nothing.
sx_status listed_chunk(const sx_pool &pool, uint32_t slot, uint32_t index, uint32_t &number);
// Table index of a slot number, by the owner's private truth: SX_ESTALE where that use is over, SX_ESTATE where the
// ticket is no longer FILLING or the handle not the owner's.
sx_status resolve_filling(const sx_pool *pool, uint32_t slot, uint32_t &index);
// crc32c over a ticket's identity, chunk numbers and token ids, as the file holds them now.
sx_status ticket_crc(const sx_pool &pool, uint32_t slot, uint32_t n_tokens, uint32_t &crc);

// Copies a caller's argument struct of any age: what it lacks is zero.
template <class T>
bool take_args(const T *from, T &to) {
    to = T{};
    if (from == nullptr || from->size < sizeof(uint32_t)) return false;
    const size_t bytes = from->size < sizeof(T) ? from->size : sizeof(T);
    __builtin_memcpy(static_cast<void *>(&to), from, bytes);
    return true;
}

// The reverse: fills as much of the caller's struct as it has room for.
template <class T>
bool give_result(T value, T *to) {
    if (to == nullptr || to->size < sizeof(uint32_t)) return false;
    const uint32_t room = to->size;
    value.size = room;
    __builtin_memcpy(static_cast<void *>(to), &value, room < sizeof(T) ? room : sizeof(T));
    return true;
}

}  // namespace sx
