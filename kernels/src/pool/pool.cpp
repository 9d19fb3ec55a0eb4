#include "pool/pool.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cerrno>
#include <cstring>
#include <ctime>
#include <new>

#include "core/crc.h"
#include "core/status.h"
#include "pool/atomic.h"
#include "pool/owner.h"

sx_pool::~sx_pool() {
    delete owner;
    delete[] mapped_chunks;
    if (base != nullptr) munmap(base, mapped);
    if (fd >= 0) close(fd);
}

namespace sx {
namespace {

// A 32-bit word at a time: the owner may be rewriting the page.
sx_pool_header copy_header(const sx_pool &pool) {
    sx_pool_header copy;
    const uint32_t *from = reinterpret_cast<const uint32_t *>(pool.base);
    uint32_t words[sizeof copy / 4];
    for (size_t i = 0; i < sizeof copy / 4; ++i) words[i] = load_relaxed(from + i);
    std::memcpy(&copy, words, sizeof copy);
    return copy;
}

}  // namespace

uint64_t monotonic_ns() {
    timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return static_cast<uint64_t>(now.tv_sec) * 1000000000ull + static_cast<uint64_t>(now.tv_nsec);
}

const char *state_name(uint32_t state) {
    static const char *const names[] = {"FREE", "FILLING", "READY", "LOADING", "CONSUMED", "FAILED"};
    return state < sizeof names / sizeof *names ? names[state] : "unknown";
}

sx_status open_file(const char *path, int flags, int &fd, uint64_t &bytes) {
    if (path == nullptr) return fail(SX_EINVAL, "pool: path is NULL");
    fd = open(path, flags | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0660);
    if (fd < 0 && errno == ENOENT) return fail(SX_ENOTFOUND, "pool: %s does not exist", path);
    if (fd < 0) return fail(SX_EIO, "pool: can't open %s: %s", path, std::strerror(errno));
    struct stat info;
    if (fstat(fd, &info) == 0 && S_ISREG(info.st_mode)) {
        bytes = static_cast<uint64_t>(info.st_size);
        return SX_OK;
    }
    close(fd);
    fd = -1;
    return fail(SX_EIO, "pool: %s is not a regular file", path);
}

sx_status map_file(int fd, uint64_t bytes, bool writable, sx_pool &pool) {
    pool.fd = fd;
    void *at = mmap(nullptr, bytes, writable ? PROT_READ | PROT_WRITE : PROT_READ, MAP_SHARED, fd, 0);
    if (at == MAP_FAILED)
        return fail(SX_ENOMEM, "pool: can't map %llu bytes: %s", static_cast<unsigned long long>(bytes),
                    std::strerror(errno));
    pool.base = static_cast<uint8_t *>(at);
    pool.mapped = bytes;
    return SX_OK;
}

bool note_chunks(sx_pool &pool) {
    pool.mapped_chunks = new (std::nothrow) uint8_t[pool.layout.n_chunks]();
    return pool.mapped_chunks != nullptr;
}

void map_chunk(sx_pool &pool, uint32_t number) {
    uint8_t *seen = pool.mapped_chunks + number;
    if (load_relaxed(seen)) return;
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23  // since Linux 5.14; an older one refuses, and the faults come one by one
#endif
    (void)madvise(pool.chunk(number), pool.layout.chunk_stride, MADV_POPULATE_WRITE);
    store_relaxed(seen, uint8_t{1});
}

sx_status load_header(sx_pool &pool) {
    pool.generation = load_acquire(&pool.header()->generation);
    if (pool.generation == 0) return fail(SX_EBUSY, "pool: its owner has not finished making it");
    const sx_pool_header copy = copy_header(pool);
    acquire_fence();
    if (load_relaxed(&pool.header()->generation) != pool.generation)
        return fail(SX_EBUSY, "pool: its owner is just starting anew");
    return parse_header(copy, pool.mapped, pool.layout);
}

sx_status check_size(const sx_pool &pool) {
    struct stat info;
    if (fstat(pool.fd, &info) == 0 && static_cast<uint64_t>(info.st_size) >= pool.layout.file_bytes) return SX_OK;
    return fail(SX_ECORRUPT, "pool: the file was cut to %lld bytes, expected %llu",
                static_cast<long long>(info.st_size), static_cast<unsigned long long>(pool.layout.file_bytes));
}

sx_status check_generation(const sx_pool &pool) {
    const uint64_t now = load_acquire(&pool.header()->generation);
    if (now == pool.generation) return SX_OK;
    return fail(SX_ESTALE, "pool: generation is now %llu, this handle was opened at %llu",
                static_cast<unsigned long long>(now), static_cast<unsigned long long>(pool.generation));
}

sx_status listed_chunk(const sx_pool &pool, uint32_t slot, uint32_t index, uint32_t &number) {
    number = load_relaxed(pool.chunk_list(index_of(slot)) + index);
    if (number >= pool.layout.n_chunks)
        return fail(SX_ECORRUPT, "pool: ticket %u names chunk %u, the pool has %u", index_of(slot), number,
                    pool.layout.n_chunks);
    const uint32_t owner = load_relaxed(&pool.record(number)->owner);
    if (owner == slot) return SX_OK;
    return fail(SX_ECORRUPT, "pool: chunk %u belongs to ticket use %08x, expected %08x", number, owner, slot);
}

sx_status ticket_crc(const sx_pool &pool, uint32_t slot, uint32_t n_tokens, uint32_t &crc) {
    const sx_pool_ticket *ticket = pool.ticket(index_of(slot));
    uint64_t id[2];
    for (int i = 0; i < 2; ++i) id[i] = load_relaxed(reinterpret_cast<const uint64_t *>(ticket->id) + i);
    crc = crc32c(crc32c(0, id, sizeof id), &n_tokens, sizeof n_tokens);
    for (uint32_t index = 0; index < chunks_for(n_tokens); ++index) {
        uint32_t number;
        const sx_status status = listed_chunk(pool, slot, index, number);
        if (status != SX_OK) return status;
        int32_t tokens[SX_POOL_CHUNK_TOKENS];
        const uint32_t n = tokens_in(n_tokens, index);
        for (uint32_t i = 0; i < n; ++i) tokens[i] = load_relaxed(pool.record(number)->tokens + i);
        crc = crc32c(crc32c(crc, &number, sizeof number), tokens, n * sizeof *tokens);
    }
    return SX_OK;
}

}  // namespace sx

void sx_pool_close(sx_pool *pool) { delete pool; }

sx_status sx_pool_describe(sx_pool *pool, sx_pool_info *info) {
    if (pool == nullptr) return sx::fail(SX_EINVAL, "sx_pool_describe: pool is NULL");
    const sx::Layout &layout = pool->layout;
    sx_pool_info out{};
    out.format = layout.format;
    out.n_chunks = layout.n_chunks;
    out.n_tickets = layout.n_tickets;
    out.max_tokens = layout.max_tokens;
    if (pool->owner != nullptr) {
        out.chunks_free = pool->owner->chunks_free();
        out.tickets_free = pool->owner->tickets_free();
    }
    out.generation = pool->generation;
    out.chunk_bytes = layout.chunk_bytes;
    out.chunks = pool->chunk(0);
    out.chunks_size = layout.n_chunks * layout.chunk_stride;
    out.geometry = layout.geometry;
    if (sx::give_result(out, info)) return SX_OK;
    return sx::fail(SX_EINVAL, "sx_pool_describe: info is NULL or its size is not set");
}
