// The stats page: a sequence lock of one writer and any number of readers, with a checksum for readers without fences.
#include <cstddef>
#include <cstring>

#include "core/crc.h"
#include "core/status.h"
#include "pool/atomic.h"
#include "pool/owner.h"
#include "pool/pool.h"
#include "pool/step.h"

namespace sx {
namespace {

constexpr uint32_t kWords = sizeof(sx_unit_stats) / 8, kSequenceWord = offsetof(sx_unit_stats, sequence) / 8;
constexpr uint32_t kStatsFormat = 1;
constexpr int kTries = 8;

uint64_t *words_of(const sx_pool &pool) { return reinterpret_cast<uint64_t *>(pool.stats()); }

// The word after the struct repeats the sequence number: written last, read first.
void store_page(const sx_pool &pool, const sx_unit_stats &stats) {
    uint64_t image[kWords];
    std::memcpy(image, &stats, sizeof image);
    uint64_t *page = words_of(pool);
    store_relaxed(page + kSequenceWord, image[kSequenceWord]);
    release_fence();
    SX_STEP();
    for (uint32_t i = 0; i < kWords; ++i) store_relaxed(page + i, image[i]);
    SX_STEP();
    store_release(page + kWords, image[kSequenceWord]);
    SX_STEP();
}

// False: torn.
bool load_page(const sx_pool &pool, sx_unit_stats &stats) {
    const uint64_t *page = words_of(pool);
    uint64_t image[kWords];
    const uint64_t sequence = load_acquire(page + kWords);
    for (uint32_t i = 0; i < kWords; ++i) image[i] = load_relaxed(page + i);
    acquire_fence();
    if (load_relaxed(page + kSequenceWord) != sequence) return false;
    std::memcpy(&stats, image, sizeof image);
    return true;
}

uint32_t crc_of(const sx_unit_stats &stats) { return crc32_zlib(0, &stats, offsetof(sx_unit_stats, crc)); }

}  // namespace
}  // namespace sx

sx_status sx_pool_write_stats(sx_pool *pool, const sx_unit_stats *stats) {
    sx_unit_stats out;
    if (pool == nullptr || !sx::take_args(stats, out))
        return sx::fail(SX_EINVAL, "sx_pool_write_stats: an argument is missing");
    if (pool->owner == nullptr) return sx::fail(SX_ESTATE, "sx_pool_write_stats: only the owner writes its stats");
    out.size = sizeof out;
    out.format = sx::kStatsFormat;
    out.sequence = sx::load_relaxed(sx::words_of(*pool) + sx::kSequenceWord) + 1;
    out.generation = pool->generation;
    out.time_ns = sx::monotonic_ns();
    out.pool_chunks_free = pool->owner->chunks_free();
    out.pool_chunks_total = pool->layout.n_chunks;
    out.crc = sx::crc_of(out);
    sx::store_page(*pool, out);
    return SX_OK;
}

sx_status sx_pool_read_stats(sx_pool *pool, sx_unit_stats *stats) {
    if (pool == nullptr) return sx::fail(SX_EINVAL, "sx_pool_read_stats: pool is NULL");
    const sx_status status = sx::check_size(*pool);
    if (status != SX_OK) return status;
    sx_unit_stats found;
    int tries = sx::kTries;
    while (tries > 0 && !sx::load_page(*pool, found)) --tries;
    if (tries == 0) return sx::fail(SX_EBUSY, "sx_pool_read_stats: torn %d times in a row", sx::kTries);
    if (found.size == 0 && found.sequence == 0)
        return sx::fail(SX_ENOTFOUND, "sx_pool_read_stats: no stats written yet");
    if (found.crc != sx::crc_of(found)) return sx::fail(SX_ECORRUPT, "sx_pool_read_stats: the checksum is wrong");
    if (found.size != sizeof found || found.format != sx::kStatsFormat)
        return sx::fail(SX_EMISMATCH, "sx_pool_read_stats: format %u, expected %u", found.format, sx::kStatsFormat);
    return sx::give_result(found, stats)
               ? SX_OK
               : sx::fail(SX_EINVAL, "sx_pool_read_stats: stats is NULL or its size is not set");
}
