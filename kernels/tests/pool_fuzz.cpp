// A pool file that somebody damaged must never crash its reader, and never pass wrong data for right.
//
//   pool_fuzz FOLDER ROUNDS SEED
//
// Three ways: a damaged file opened by a consumer (half of the rounds with the header's checksum made right again, so
// that the damage gets further in), a file cut short under a consumer that has it mapped, and scribbling into the
// tables of a living owner.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <set>
#include <string>
#include <vector>

#include "syshax/pool.h"
#include "syshax/pool_format.h"

namespace {

constexpr uint64_t kLease = 60ull * 1000000000ull;
constexpr uint32_t kTickets = 4, kChunks = 12, kMaxTokens = 256, kTokens = 150;

uint64_t random_state = 1;
uint32_t random_u32() {  // xorshift64*
    random_state ^= random_state >> 12;
    random_state ^= random_state << 25;
    random_state ^= random_state >> 27;
    return static_cast<uint32_t>((random_state * 2685821657736338717ull) >> 32);
}
uint32_t below(uint32_t n) { return random_u32() % n; }

[[noreturn]] void die(const char *what) {
    std::fprintf(stderr, "%s: %s\n", what, sx_last_error());
    std::exit(1);
}

sx_pool_create_args make_args(const std::string &path) {
    sx_pool_create_args args{};
    args.size = sizeof args;
    args.n_chunks = kChunks;
    args.n_tickets = kTickets;
    args.max_tokens = kMaxTokens;
    args.path = path.c_str();
    args.geometry = {sizeof args.geometry, 1, 3, 8, SX_F16, {9}, 16, 2, SX_F16};
    return args;
}

void make_id(uint32_t n, uint8_t id[16]) {
    std::memset(id, 0, 16);
    id[0] = static_cast<uint8_t>(n + 1);
}

uint8_t byte_of(uint32_t ticket, uint32_t chunk, uint64_t at) {
    return static_cast<uint8_t>(ticket * 101 + chunk * 13 + at * 3 + 1);
}

void publish(sx_pool *owner, uint32_t n) {
    uint8_t id[16];
    make_id(n, id);
    uint32_t slot;
    std::vector<int32_t> tokens;
    for (uint32_t i = 0; i < kTokens; ++i) tokens.push_back(static_cast<int32_t>(n * 1000 + i));
    if (sx_pool_begin(owner, id, kLease, &slot) != SX_OK) die("begin");
    if (sx_pool_append(owner, slot, tokens.data(), kTokens) != SX_OK) die("append");
    for (uint32_t i = 0; i * 64 < kTokens; ++i) {
        void *data;
        uint64_t bytes;
        if (sx_pool_chunk(owner, slot, i, &data, &bytes) != SX_OK) die("chunk");
        for (uint64_t at = 0; at < bytes; ++at) static_cast<uint8_t *>(data)[at] = byte_of(n, i, at);
        for (uint32_t rank = 0; rank < 2; ++rank)
            if (sx_pool_seal(owner, slot, i, rank, 0) != SX_OK) die("seal");
    }
    if (sx_pool_publish(owner, slot, kTokens) != SX_OK) die("publish");
}

std::vector<uint8_t> good_file(const std::string &path) {
    const sx_pool_create_args args = make_args(path);
    sx_pool *owner;
    if (sx_pool_create(&args, &owner) != SX_OK) die("create");
    for (uint32_t n = 0; n < 3; ++n) publish(owner, n);
    sx_unit_stats stats{};
    stats.size = sizeof stats;
    if (sx_pool_write_stats(owner, &stats) != SX_OK) die("write_stats");
    sx_pool_close(owner);
    std::vector<uint8_t> bytes;
    struct stat info;
    const int fd = open(path.c_str(), O_RDONLY);
    if (fd < 0 || fstat(fd, &info) != 0) die("stat");
    bytes.resize(static_cast<size_t>(info.st_size));
    if (read(fd, bytes.data(), bytes.size()) != info.st_size) die("read");
    close(fd);
    return bytes;
}

void write_file(const std::string &path, const std::vector<uint8_t> &bytes, size_t n) {
    const int fd = open(path.c_str(), O_RDWR | O_CREAT | O_TRUNC, 0600);
    if (fd < 0 || write(fd, bytes.data(), n) != static_cast<ssize_t>(n)) die("write");
    close(fd);
}

uint64_t tables_end(const std::vector<uint8_t> &file) {
    sx_pool_header header;
    std::memcpy(&header, file.data(), sizeof header);
    return header.chunks_offset;
}

void damage_word(uint8_t *at) {
    static const uint32_t favourites[] = {0,   1,   2,          3,          63,         64,      65,
                                          255, 256, 0x7fffffff, 0x80000000, 0xffffffff, kChunks, kTickets};
    uint32_t word;
    std::memcpy(&word, at, sizeof word);
    switch (below(4)) {
        case 0: word = favourites[below(sizeof favourites / sizeof *favourites)]; break;
        case 1: word ^= 1u << below(32); break;
        case 2: word += below(3) - 1; break;
        default: word = random_u32();
    }
    std::memcpy(at, &word, sizeof word);
}

// Mostly where the numbers are: header, tickets, records; now and then in the chunks.
uint64_t place(uint64_t tables, uint64_t size) {
    switch (below(8)) {
        case 0:
        case 1: return below(48) * 4ull;
        case 2:
        case 3:
        case 4: return SX_POOL_TICKETS_OFFSET + below(kTickets * 128 / 4) * 4ull;
        case 5:
        case 6: return SX_POOL_STATS_OFFSET + below(static_cast<uint32_t>((tables - SX_POOL_STATS_OFFSET) / 4)) * 4ull;
        default: return tables + below(static_cast<uint32_t>((size - tables) / 4)) * 4ull;
    }
}

uint32_t crc32_bits(const uint8_t *p, size_t n) {
    uint32_t crc = ~0u;
    for (size_t i = 0; i < n; ++i) {
        crc ^= p[i];
        for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1u) ? 0xedb88320u : 0u);
    }
    return ~crc;
}

void check_right(uint32_t n, const std::vector<int32_t> &tokens, uint32_t chunk, const void *data, uint64_t bytes) {
    const uint32_t valid = kTokens - chunk * 64 < 64 ? kTokens - chunk * 64 : 64;
    if (tokens.size() != kTokens || tokens[kTokens - 1] != static_cast<int32_t>(n * 1000 + kTokens - 1))
        die("wrong token ids");
    const uint64_t row = 3 * 8 * 2;
    for (uint64_t at = 0; at < bytes; ++at)
        if (at / row % 64 < valid && static_cast<const uint8_t *>(data)[at] != byte_of(n, chunk, at)) die("wrong data");
}

uint32_t tickets_taken = 0;

void consume(sx_pool *pool, uint32_t n, bool trusting) {
    uint8_t id[16];
    make_id(n, id);
    sx_pool_view view{};
    view.size = sizeof view;
    if (sx_pool_pin(pool, id, 0, kLease, &view) != SX_OK) return;
    std::vector<int32_t> tokens(view.n_tokens);
    sx_status status = sx_pool_tokens(pool, &view, 0, view.n_tokens, tokens.data());
    for (uint32_t i = 0; status == SX_OK && i < view.n_chunks; ++i) {
        const void *data;
        uint64_t bytes;
        uint32_t covered = 0;
        const bool alone = sx_pool_locate(pool, &view, i, &data, &bytes, &covered) == SX_OK && covered != 0;
        const bool matched = sx_pool_match(pool, &view, i, covered, 0) == SX_OK;
        if (!trusting && (alone || matched)) die("one checksum for the heads of two ranks");
        status = sx_pool_read(pool, &view, i, &data, &bytes);
        if (status == SX_OK && !trusting) check_right(n, tokens, i, data, bytes);
        if (status == SX_OK) ++tickets_taken;
    }
    sx_pool_release(pool, &view, below(2));
}

// `refit`: the header's checksum is made right again; its numbers may then be other, consistent ones.
void damaged_file(const std::string &path, const std::vector<uint8_t> &good) {
    std::vector<uint8_t> bytes = good;
    const uint64_t tables = tables_end(good);
    const bool refit = below(2) == 1;
    for (uint32_t i = 1 + below(4); i > 0; --i) damage_word(bytes.data() + place(tables, bytes.size()));
    if (refit) {
        const uint32_t crc = crc32_bits(bytes.data(), offsetof(sx_pool_header, crc));
        std::memcpy(bytes.data() + offsetof(sx_pool_header, crc), &crc, sizeof crc);
    }
    write_file(path, bytes, below(16) == 0 ? below(static_cast<uint32_t>(bytes.size())) : bytes.size());
    const sx_pool_create_args args = make_args(path);
    sx_pool *pool;
    if (sx_pool_open(path.c_str(), below(4) == 0 ? nullptr : &args.geometry, &pool) != SX_OK) return;
    sx_unit_stats stats{};
    stats.size = sizeof stats;
    sx_pool_read_stats(pool, &stats);
    for (uint32_t n = 0; n < 3; ++n) consume(pool, n, refit);
    sx_pool_close(pool);
}

void cut_file(const std::string &path, const std::vector<uint8_t> &good) {
    write_file(path, good, good.size());
    const sx_pool_create_args args = make_args(path);
    sx_pool *pool;
    if (sx_pool_open(path.c_str(), &args.geometry, &pool) != SX_OK) die("open");
    sx_pool_view view{};
    view.size = sizeof view;
    uint8_t id[16];
    make_id(1, id);
    if (below(2) && sx_pool_pin(pool, id, 0, kLease, &view) != SX_OK) die("pin");
    if (truncate(path.c_str(), below(static_cast<uint32_t>(good.size()))) != 0) die("truncate");
    const void *data;
    uint64_t bytes;
    uint32_t covered;
    sx_unit_stats stats{};
    stats.size = sizeof stats;
    const sx_status found[] = {sx_pool_pin(pool, id, 0, kLease, &view),
                               sx_pool_read(pool, &view, 0, &data, &bytes),
                               sx_pool_locate(pool, &view, 0, &data, &bytes, &covered),
                               sx_pool_match(pool, &view, 0, 64, 0),
                               sx_pool_release(pool, &view, 1),
                               sx_pool_read_stats(pool, &stats)};
    for (const sx_status status : found)
        if (status != SX_ECORRUPT) die("a cut file was not noticed");
    sx_pool_close(pool);
}

struct Scribbled {
    sx_pool *owner;
    std::vector<uint32_t> slots;
};

void owner_step(Scribbled &state) {
    uint8_t id[16];
    for (uint8_t &byte : id) byte = static_cast<uint8_t>(random_u32() | 1);
    int32_t tokens[100] = {};
    uint32_t slot;
    switch (below(6)) {
        case 0:
        case 1:
            if (sx_pool_begin(state.owner, id, kLease, &slot) == SX_OK) state.slots.push_back(slot);
            return;
        case 2: sx_pool_reap(state.owner, below(2) ? ~0ull : 0, nullptr); return;
        default: break;
    }
    if (state.slots.empty()) return;
    slot = state.slots[below(static_cast<uint32_t>(state.slots.size()))];
    sx_pool_append(state.owner, slot, tokens, below(100));
    for (uint32_t rank = 0; rank < 2; ++rank) sx_pool_seal(state.owner, slot, 0, rank, 0);
    switch (below(4)) {
        case 0: sx_pool_publish(state.owner, slot, 1 + below(100)); return;
        case 1: sx_pool_free_ticket(state.owner, slot); return;
        case 2: sx_pool_fail(state.owner, slot); return;
        default: return;
    }
}

// Whatever the file says, the owner must not hand one chunk to two tickets.
void check_chunks(const Scribbled &state) {
    std::set<void *> seen;
    for (const uint32_t slot : state.slots) {
        void *data;
        uint64_t bytes;
        for (uint32_t i = 0; sx_pool_chunk(state.owner, slot, i, &data, &bytes) == SX_OK; ++i)
            if (!seen.insert(data).second) die("a chunk was handed out twice");
    }
}

void scribbled_owner(const std::string &path) {
    const sx_pool_create_args args = make_args(path);
    Scribbled state{};
    if (sx_pool_create(&args, &state.owner) != SX_OK) die("create");
    const int fd = open(path.c_str(), O_RDWR);
    struct stat info;
    if (fd < 0 || fstat(fd, &info) != 0) die("open");
    void *map = mmap(nullptr, static_cast<size_t>(info.st_size), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (map == MAP_FAILED) die("mmap");
    const uint64_t tables = SX_POOL_TICKETS_OFFSET + kTickets * 128 + kChunks * SX_POOL_RECORD_BYTES;
    for (int step = 0; step < 200; ++step) {
        owner_step(state);
        if (below(2))
            damage_word(static_cast<uint8_t *>(map) + SX_POOL_STATS_OFFSET +
                        below(static_cast<uint32_t>(tables - SX_POOL_STATS_OFFSET) / 4) * 4ull);
        check_chunks(state);
    }
    sx_pool_info before{};
    before.size = sizeof before;
    for (const uint32_t slot : state.slots) sx_pool_free_ticket(state.owner, slot);
    sx_pool_reap(state.owner, ~0ull, nullptr);
    sx_pool_describe(state.owner, &before);
    if (before.chunks_free != kChunks || before.tickets_free != kTickets) die("chunks or tickets leaked");
    munmap(map, static_cast<size_t>(info.st_size));
    close(fd);
    sx_pool_close(state.owner);
}

}  // namespace

int main(int argc, char **argv) {
    if (argc != 4) return std::fprintf(stderr, "usage: %s FOLDER ROUNDS SEED\n", argv[0]), 2;
    const std::string path = std::string(argv[1]) + "/fuzz.pool";
    const int rounds = std::atoi(argv[2]);
    random_state = static_cast<uint64_t>(std::atoll(argv[3])) * 2654435761u + 1;
    const std::vector<uint8_t> good = good_file(path);
    for (int i = 0; i < rounds; ++i) damaged_file(path, good);
    for (int i = 0; i < rounds / 20; ++i) cut_file(path, good);
    for (int i = 0; i < rounds / 20; ++i) scribbled_owner(path);
    std::printf("%d rounds, %u chunks taken\n", rounds, tickets_taken);
    return tickets_taken == 0;
}
