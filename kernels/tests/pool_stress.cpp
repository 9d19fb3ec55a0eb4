// One owner and several consumers, as threads over one mapping, so that ThreadSanitizer sees every access of both
// sides; more consumers come through mappings of their own. Every word of a chunk follows from the ticket's id, so a
// consumer that was told SX_OK knows whether it was given the right data.
//
//   pool_stress patient FOLDER SECONDS   leases are kept: no access may race
//   pool_stress hurried FOLDER SECONDS   the owner takes tickets away under the consumers: what they read then is torn,
//                                        and must be refused. Only these chunk accesses may race (see below).
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "syshax/pool.h"

namespace {

constexpr uint32_t kTickets = 8, kChunks = 24, kMaxTokens = 200, kWindow = 16;
constexpr uint64_t kSecond = 1000000000ull;

struct Shared {
    sx_pool *owner = nullptr;
    sx_pool_geometry geometry{};
    std::string path;
    bool hurried = false;
    std::chrono::steady_clock::time_point end;
    std::atomic<uint64_t> newest{0};
    std::atomic<uint64_t> taken{0}, refused{0}, published{0}, torn_stats{0};
    std::atomic<bool> failed{false};
    std::atomic<bool> stop{false};
};

void die(Shared &shared, const char *what) {
    std::fprintf(stderr, "%s: %s\n", what, sx_last_error());
    shared.failed = true;
    shared.stop = true;
}

void make_id(uint64_t number, uint8_t id[16]) {
    const uint64_t words[2] = {number, ~number};
    std::memcpy(id, words, sizeof words);
}

uint32_t n_tokens_of(uint64_t number) { return 1 + static_cast<uint32_t>(number * 37 % kMaxTokens); }

uint64_t word_of(uint64_t number, uint32_t chunk, uint64_t at) { return (number << 24) ^ (uint64_t{chunk} << 16) ^ at; }

void fill_words(uint64_t *out, uint64_t words, uint64_t number, uint32_t chunk) {
    for (uint64_t i = 0; i < words; ++i) out[i] = word_of(number, chunk, i);
}

// In a hurry the owner fills chunks that a late consumer still reads: the design lets it, and refuses the copy.
[[gnu::noinline]] void fill_hurried(uint64_t *out, uint64_t words, uint64_t number, uint32_t chunk) {
    fill_words(out, words, number, chunk);
}

bool publish(Shared &shared, uint64_t number) {
    uint8_t id[16];
    make_id(number, id);
    uint32_t slot = 0;
    sx_status status = sx_pool_begin(shared.owner, id, 60 * kSecond, &slot);
    if (status == SX_EFULL) return false;
    std::vector<int32_t> tokens(n_tokens_of(number), static_cast<int32_t>(number));
    status = sx_pool_append(shared.owner, slot, tokens.data(), static_cast<uint32_t>(tokens.size()));
    if (status != SX_OK) {
        sx_pool_free_ticket(shared.owner, slot);
        return false;
    }
    for (uint32_t i = 0; i * 64 < tokens.size(); ++i) {
        void *data = nullptr;
        uint64_t bytes = 0;
        sx_pool_chunk(shared.owner, slot, i, &data, &bytes);
        (shared.hurried ? fill_hurried : fill_words)(static_cast<uint64_t *>(data), bytes / 8, number, i);
        sx_pool_seal(shared.owner, slot, i, 0, 0);
    }
    if (sx_pool_publish(shared.owner, slot, static_cast<uint32_t>(tokens.size())) != SX_OK) die(shared, "publish");
    ++shared.published;
    shared.newest = number;
    return true;
}

void run_owner(Shared &shared) {
    uint64_t number = 1;
    sx_unit_stats stats{};
    stats.size = sizeof stats;
    // On a busy machine the first ticket may take longer than all of the time.
    const auto enough = [&shared] {
        const auto now = std::chrono::steady_clock::now();
        return now >= shared.end && (shared.taken > 0 || now >= shared.end + std::chrono::seconds(30));
    };
    while (!shared.stop && !enough()) {
        if (publish(shared, number)) ++number;
        stats.running = stats.waiting = static_cast<uint32_t>(number);
        stats.steps = number;
        sx_pool_write_stats(shared.owner, &stats);
        timespec now;
        clock_gettime(CLOCK_MONOTONIC, &now);
        uint64_t at = static_cast<uint64_t>(now.tv_sec) * kSecond + static_cast<uint64_t>(now.tv_nsec);
        // Minutes later, as far as the leases know: now and then all of them are over.
        if (shared.hurried && number % 3 == 0) at += 120 * kSecond;
        uint32_t freed = 0;
        if (sx_pool_reap(shared.owner, at, &freed) != SX_OK) die(shared, "reap");
        if (freed == 0) std::this_thread::yield();
    }
    shared.stop = true;
}

// Copies first, compares after the release said whether the copy counts.
bool take(Shared &shared, sx_pool *pool, uint64_t number, bool consume, std::vector<uint64_t> &copy) {
    uint8_t id[16];
    make_id(number, id);
    sx_pool_view view{};
    view.size = sizeof view;
    const sx_status pinned = sx_pool_pin(pool, id, 0, 60 * kSecond, &view);
    if (pinned == SX_ENOTFOUND || pinned == SX_EBUSY) return true;
    if (pinned != SX_OK) return pinned == SX_ESTALE && ++shared.refused;
    std::vector<int32_t> tokens(view.n_tokens);
    sx_status status = sx_pool_tokens(pool, &view, 0, view.n_tokens, tokens.data());
    copy.clear();
    for (uint32_t i = 0; status == SX_OK && i < view.n_chunks; ++i) {
        const void *data = nullptr;
        uint64_t bytes = 0;
        status = sx_pool_read(pool, &view, i, &data, &bytes);
        if (status != SX_OK) break;
        const uint64_t *words = static_cast<const uint64_t *>(data);
        copy.insert(copy.end(), words, words + bytes / 8);
    }
    if (status == SX_OK) status = sx_pool_release(pool, &view, consume);
    if (status == SX_ESTALE) return shared.hurried && ++shared.refused;
    if (status != SX_OK) return false;
    ++shared.taken;
    const uint64_t per_chunk = copy.size() / view.n_chunks;
    for (uint64_t i = 0; i < copy.size(); ++i) {
        if (copy[i] != word_of(number, static_cast<uint32_t>(i / per_chunk), i % per_chunk)) return false;
    }
    return view.n_tokens == n_tokens_of(number) && tokens.back() == static_cast<int32_t>(number);
}

bool read_stats(Shared &shared, sx_pool *pool) {
    sx_unit_stats stats{};
    stats.size = sizeof stats;
    const sx_status status = sx_pool_read_stats(pool, &stats);
    if (status == SX_EBUSY) return ++shared.torn_stats > 0;
    return status == SX_ENOTFOUND ||
           (status == SX_OK && stats.running == stats.waiting && stats.steps == stats.running);
}

void run_consumer(Shared &shared, bool own_mapping, uint32_t seed) {
    sx_pool *pool = shared.owner;
    if (own_mapping && sx_pool_open(shared.path.c_str(), &shared.geometry, &pool) != SX_OK) return die(shared, "open");
    std::vector<uint64_t> copy;
    uint32_t random = seed;
    while (!shared.stop) {
        random = random * 1664525u + 1013904223u;
        const uint64_t newest = shared.newest, back = (random >> 16) % kWindow;
        if (newest <= back) {
            std::this_thread::yield();
            continue;
        }
        if (!take(shared, pool, newest - back, random % 5 != 0, copy))
            die(shared, "a consumer was given something wrong");
        if (random % 4 == 0 && !read_stats(shared, pool)) die(shared, "wrong stats");
    }
    if (own_mapping) sx_pool_close(pool);
}

bool make_pool(Shared &shared) {
    sx_pool_create_args args{};
    args.size = sizeof args;
    args.n_chunks = kChunks;
    args.n_tickets = kTickets;
    args.max_tokens = kMaxTokens;
    args.path = shared.path.c_str();
    args.geometry = {sizeof args.geometry, 1, 2, 16, SX_F16, {7}, 32, 1, SX_F16};
    shared.geometry = args.geometry;
    return sx_pool_create(&args, &shared.owner) == SX_OK;
}

// Everything must be free again once the leases are over.
bool nothing_leaked(Shared &shared) {
    sx_pool_info info{};
    info.size = sizeof info;
    timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    sx_pool_reap(shared.owner, (static_cast<uint64_t>(now.tv_sec) + 3000) * kSecond, nullptr);
    sx_pool_describe(shared.owner, &info);
    return info.chunks_free == kChunks && info.tickets_free == kTickets;
}

}  // namespace

extern "C" [[gnu::visibility("default")]] const char *__tsan_default_suppressions() { return "race:fill_hurried\n"; }

int main(int argc, char **argv) {
    if (argc != 4) return std::fprintf(stderr, "usage: %s patient|hurried FOLDER SECONDS\n", argv[0]), 2;
    Shared shared;
    shared.hurried = std::strcmp(argv[1], "hurried") == 0;
    shared.path = std::string(argv[2]) + "/stress.pool";
    shared.end =
        std::chrono::steady_clock::now() + std::chrono::milliseconds(static_cast<int>(std::atof(argv[3]) * 1000));
    if (!make_pool(shared)) return std::fprintf(stderr, "create: %s\n", sx_last_error()), 1;
    std::vector<std::thread> consumers;
    for (uint32_t i = 0; i < 4; ++i) consumers.emplace_back(run_consumer, std::ref(shared), i == 3, i + 1);
    run_owner(shared);
    for (std::thread &consumer : consumers) consumer.join();
    const bool whole = nothing_leaked(shared);
    std::printf("published %llu taken %llu refused %llu torn %llu leaked %d\n",
                static_cast<unsigned long long>(shared.published), static_cast<unsigned long long>(shared.taken),
                static_cast<unsigned long long>(shared.refused), static_cast<unsigned long long>(shared.torn_stats),
                !whole);
    sx_pool_close(shared.owner);
    return shared.failed || !whole || shared.taken == 0;
}
