// How an owner makes its file and a tensor-parallel worker joins it.
#include <fcntl.h>
#include <sys/file.h>
#include <sys/statvfs.h>
#include <unistd.h>
#include <cerrno>
#include <cstring>
#include <ctime>
#include <new>

#include "core/status.h"
#include "pool/atomic.h"
#include "pool/owner.h"
#include "pool/pool.h"
#include "pool/step.h"

namespace sx {
namespace {

sx_status allocate_space(int fd, const char *path, uint64_t bytes) {
    const int error = posix_fallocate(fd, 0, static_cast<off_t>(bytes));
    if (error == 0) return SX_OK;
    if (error != ENOSPC && error != EFBIG && error != EDQUOT)
        return fail(SX_EIO, "pool: can't allocate %llu bytes for %s: %s", static_cast<unsigned long long>(bytes), path,
                    std::strerror(error));
    struct statvfs fs;
    const uint64_t room = fstatvfs(fd, &fs) == 0 ? uint64_t{fs.f_bavail} * fs.f_frsize : 0;
    return fail(SX_EFULL, "pool: %s needs %llu bytes, its file system has %llu left", path,
                static_cast<unsigned long long>(bytes), static_cast<unsigned long long>(room));
}

// Larger than any generation this file had, and, by the clock, than that of any file before it in its place.
uint64_t new_generation(uint64_t before) {
    timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    const uint64_t clock_us = static_cast<uint64_t>(now.tv_sec) * 1000000 + static_cast<uint64_t>(now.tv_nsec) / 1000;
    const uint64_t after = before < (1ull << 52) ? before + 1 : 1;  // a damaged header does not push us out of range
    return clock_us > after ? clock_us : after;
}

bool same_layout(const sx_pool &pool) {
    Layout before;
    const sx_pool_header header = *pool.header();
    return parse_header(header, pool.mapped, before) == SX_OK && before.chunks_offset == pool.layout.chunks_offset &&
           before.ticket_stride == pool.layout.ticket_stride && before.n_tickets == pool.layout.n_tickets;
}

// Token ids of an older life of the file must not survive: they lie in the records, or, if that life had another
// layout, anywhere.
void wipe(sx_pool &pool) {
    const uint64_t end = same_layout(pool) ? pool.layout.chunks_offset : pool.mapped;
    SX_STEP();
    std::memset(pool.stats(), 0, end - SX_POOL_STATS_OFFSET);
    SX_STEP();
}

void write_empty_tables(sx_pool &pool) {
    // 32 transitions a microsecond of life before a sequence number could meet one of the next generation.
    const uint64_t first_word = (pool.generation << 5) << 8 | SX_TICKET_FREE;
    for (uint32_t i = 0; i < pool.layout.n_tickets; ++i) store_relaxed(&pool.ticket(i)->word, first_word);
    SX_STEP();
    for (uint32_t i = 0; i < pool.layout.n_chunks; ++i) store_relaxed(&pool.record(i)->owner, SX_POOL_NO_OWNER);
    SX_STEP();
}

void start_anew(sx_pool &pool) {
    uint64_t *live = &pool.header()->generation;
    pool.generation = new_generation(load_relaxed(live));
    SX_STEP();
    store_relaxed(live, uint64_t{0});
    release_fence();
    wipe(pool);
    write_header(pool.layout, pool.header());
    SX_STEP();
    write_empty_tables(pool);
    store_release(live, pool.generation);
    SX_STEP();
}

sx_status make(const sx_pool_create_args &args, sx_pool &pool) {
    sx_status status = plan_layout(args, pool.layout);
    if (status != SX_OK) return status;
    pool.role = Role::owner;
    pool.owner = new (std::nothrow) Owner;
    if (pool.owner == nullptr || !pool.owner->allocate(pool.layout) || !note_chunks(pool))
        return fail(SX_ENOMEM, "pool: no memory for its tables");
    uint64_t bytes = 0;
    status = open_file(args.path, O_RDWR | O_CREAT, pool.fd, bytes);
    if (status != SX_OK) return status;
    // Held by the open file, so it ends with the last process that inherited it.
    if (flock(pool.fd, LOCK_EX | LOCK_NB) != 0)
        return fail(SX_EBUSY, "pool: %s is owned by a living process", args.path);
    SX_STEP();
    status = allocate_space(pool.fd, args.path, pool.layout.file_bytes);
    if (status != SX_OK) return status;
    SX_STEP();
    status = map_file(pool.fd, bytes > pool.layout.file_bytes ? bytes : pool.layout.file_bytes, true, pool);
    if (status == SX_OK) start_anew(pool);
    return status;
}

sx_status open_made(const char *path, Role role, sx_pool &pool) {
    pool.role = role;
    uint64_t bytes = 0;
    sx_status status = open_file(path, role == Role::reader ? O_RDONLY : O_RDWR, pool.fd, bytes);
    if (status != SX_OK) return status;
    if (bytes == 0) return fail(SX_EBUSY, "pool: %s is empty, its owner has not made it yet", path);
    if (bytes < SX_POOL_TICKETS_OFFSET)
        return fail(SX_ECORRUPT, "pool: %s has %llu bytes, too few for a pool", path,
                    static_cast<unsigned long long>(bytes));
    status = map_file(pool.fd, bytes, role != Role::reader, pool);
    return status == SX_OK ? load_header(pool) : status;
}

}  // namespace
}  // namespace sx

sx_status sx_pool_file_bytes(const sx_pool_create_args *args, uint64_t *bytes) {
    sx_pool_create_args taken;
    if (!sx::take_args(args, taken) || bytes == nullptr)
        return sx::fail(SX_EINVAL, "sx_pool_file_bytes: an argument is missing");
    sx::Layout layout;
    const sx_status status = sx::plan_layout(taken, layout);
    *bytes = status == SX_OK ? layout.file_bytes : 0;
    return status;
}

sx_status sx_pool_create(const sx_pool_create_args *args, sx_pool **out) {
    sx_pool_create_args taken;
    if (!sx::take_args(args, taken) || out == nullptr)
        return sx::fail(SX_EINVAL, "sx_pool_create: an argument is missing");
    sx::PoolPtr pool(new (std::nothrow) sx_pool);
    if (!pool) return sx::fail(SX_ENOMEM, "sx_pool_create: no memory");
    const sx_status status = sx::make(taken, *pool);
    *out = status == SX_OK ? pool.release() : nullptr;
    return status;
}

sx_status sx_pool_join(const char *path, sx_pool **out) {
    if (out == nullptr) return sx::fail(SX_EINVAL, "sx_pool_join: out is NULL");
    sx::PoolPtr pool(new (std::nothrow) sx_pool);
    if (!pool) return sx::fail(SX_ENOMEM, "sx_pool_join: no memory");
    sx_status status = sx::open_made(path, sx::Role::worker, *pool);
    if (status == SX_OK && !sx::note_chunks(*pool)) status = sx::fail(SX_ENOMEM, "sx_pool_join: no memory");
    *out = status == SX_OK ? pool.release() : nullptr;
    return status;
}

sx_status sx_pool_open(const char *path, const sx_pool_geometry *expected, sx_pool **out) {
    if (out == nullptr) return sx::fail(SX_EINVAL, "sx_pool_open: out is NULL");
    sx_pool_geometry wanted;
    const bool any = !sx::take_args(expected, wanted);
    if (any && expected != nullptr) return sx::fail(SX_EINVAL, "sx_pool_open: the geometry's size is not set");
    sx::PoolPtr pool(new (std::nothrow) sx_pool);
    if (!pool) return sx::fail(SX_ENOMEM, "sx_pool_open: no memory");
    sx_status status = sx::open_made(path, any ? sx::Role::reader : sx::Role::consumer, *pool);
    if (status == SX_OK && !any) status = sx::match_geometry(pool->layout.geometry, wanted);
    *out = status == SX_OK ? pool.release() : nullptr;
    return status;
}
