#include "kv_pages/copy.h"

#include <string.h>
#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#include "core/crc.h"
#include "core/kv_layout.h"
#include "formats/format.h"
#include "formats/numeric.h"
#include "kv_pages/transpose.h"

namespace sx {

size_t KvRun::line() const { return size_t{heads} * head_size * float_bytes(wire); }

void encode_row(int32_t type, const float *x, uint32_t n, uint8_t *out) {
    if (type == SX_F32) {
        memcpy(out, x, n * sizeof *x);
        return;
    }
    for (uint32_t i = 0; i < n; i++) {
        const uint16_t half = type == SX_F16 ? f32_to_f16(clamp_f16(x[i])) : f32_to_bf16(x[i]);
        memcpy(out + 2 * i, &half, 2);
    }
}

namespace {

constexpr uint32_t kTile = 32;                // tokens: a whole cache line of each dimension where tokens are adjacent
constexpr size_t kStage = kMaxTokenSize * 4;  // bytes: all heads of a tile's tokens, for the second-level cache

// Tokens of a tile on the way out: fewer where all their heads would not fit on the stage.
uint32_t tile_tokens(const KvRun &run) {
    uint32_t n = kTile;
    while (n * run.line() > kStage) n /= 2;
    return n;
}

// One head of one token from one type to another.
void convert(int32_t from, const uint8_t *in, int32_t to, uint8_t *out, uint32_t n) {
    if (from == to) {
        memcpy(out, in, n * float_bytes(from));
        return;
    }
    float values[kMaxHeadSize];
    decode_row(from, in, n, values);
    encode_row(to, values, n, out);
}

// Vectors by hand: the compiler does not see through single loads.
bool has_infinity(const uint8_t *halves, uint32_t n) {
    Half8 found{};
    uint32_t i = 0;
    for (; i + 8 <= n; i += 8) {
        Half8 x;
        memcpy(&x, halves + 2 * i, sizeof x);
        found |= reinterpret_cast<Half8>((x & 0x7fff) == 0x7c00);
    }
    uint16_t rest = 0, x;
    for (; i < n; i++, rest |= (x & 0x7fffu) == 0x7c00u) memcpy(&x, halves + 2 * i, 2);
    for (int lane = 0; lane < 8; lane++) rest |= found[lane];
    return rest != 0;
}

void make_finite(uint8_t *halves, uint32_t n) {
    for (uint32_t i = 0; i < n; i++) {
        uint16_t x;
        memcpy(&x, halves + 2 * i, 2);
        x = static_cast<uint16_t>(x - ((x & 0x7fffu) == 0x7c00u));  // infinity -> 65504
        memcpy(halves + 2 * i, &x, 2);
    }
}

// One head of up to kTile tokens within one block.
struct Tile {
    uint8_t *data;     // of the block and head
    uint32_t slot, n;  // tokens in the block
    uint32_t head;
};

// Blocks lie anywhere, too short for the hardware to see a stream: a tile is fetched while the one before it is copied.
void prefetch_tile(const KvSide &side, const KvRun &run, const Tile &tile) {
    const uint32_t size = float_bytes(run.type);
    const bool by_token = side.dim == 1 && !side.places;
    const uint32_t rows = by_token ? tile.n : run.head_size / side.run * (side.token == 1 ? side.run : 0);
    const uint32_t bytes = (by_token ? side.run : tile.n) * size;
    const int64_t step = (by_token ? side.token : side.dim) * size;
    const uint8_t *first = tile.data + tile.slot * (side.places ? 0 : side.token) * size;
    for (uint32_t part = 0; part < (by_token ? run.head_size / side.run : 1); part++)
        for (uint32_t r = 0; r < rows; r++)
            for (uint32_t at = 0; at < bytes; at += 64)
                __builtin_prefetch(first + part * side.outer * size + r * step + at);
}

// The tiles of a run in order of tokens, then heads.
class Tiles {
  public:
    Tiles(const KvSide &side, const KvRun &run, uint32_t width) : side_(side), run_(run), width_(width) { settle(); }
    bool more() const { return done_ < run_.n; }
    Tile tile() const { return {block_ + head_ * side_.head * float_bytes(run_.type), slot_, n_, head_}; }
    uint32_t token() const { return done_; }
    uint32_t head() const { return head_; }
    void next() {
        if (++head_ < run_.heads) return;
        head_ = 0;
        done_ += n_;
        if (more()) settle();
    }

  private:
    void settle() {
        const uint32_t token = run_.first + done_;
        slot_ = token % run_.block_size;
        n_ = width_ - slot_ % width_;
        if (n_ > run_.block_size - slot_) n_ = run_.block_size - slot_;
        if (n_ > run_.n - done_) n_ = run_.n - done_;
        block_ = side_.data + run_.table[token / run_.block_size] * side_.block * float_bytes(run_.type);
    }

    const KvSide &side_;
    const KvRun &run_;
    uint32_t width_;
    uint8_t *block_ = nullptr;
    uint32_t done_ = 0, head_ = 0, slot_ = 0, n_ = 0;
};

void prefetch_wire(const KvRun &run, const Tile &tile, const uint8_t *there) {
    const uint32_t bytes = run.head_size * float_bytes(run.wire);
    for (uint32_t t = 0; t < tile.n; t++)
        for (uint32_t at = 0; at < bytes; at += 64) __builtin_prefetch(there + t * run.row + at);
}

// Calls visit(tile, its place on the wire) for all of them; `out`: the cells are what is read.
template <class Visit>
void each_tile(const KvSide &side, const KvRun &run, uint8_t *wire, bool out, const Visit &visit) {
    if (run.n == 0 || run.heads == 0) return;
    const size_t head = size_t{float_bytes(run.wire)} * run.head_size;
    const auto place = [&](const Tiles &tiles) { return wire + tiles.token() * run.row + tiles.head() * head; };
    for (Tiles now(side, run, out ? tile_tokens(run) : kTile), ahead = now; now.more(); now.next()) {
        ahead.next();
        if (ahead.more() && out) prefetch_tile(side, run, ahead.tile());
        if (ahead.more() && !out) prefetch_wire(run, ahead.tile(), place(ahead));
        visit(now.tile(), place(now));
    }
}

// Whole cache lines go past the caches: nobody reads them soon, and a line need not be fetched before it is written.
void stream(const uint8_t *in, uint8_t *out, size_t bytes) {
#if defined(__SSE2__)
    if (((reinterpret_cast<uintptr_t>(out) | bytes) & 63) == 0) {
        for (size_t at = 0; at < bytes; at += 16)
            _mm_stream_si128(reinterpret_cast<__m128i *>(out + at),
                             _mm_loadu_si128(reinterpret_cast<const __m128i *>(in + at)));
        return;
    }
#endif
    memcpy(out, in, bytes);
}

// Streamed lines are ordered like other stores only after this.
void settle_stores() {
#if defined(__SSE2__)
    _mm_sfence();
#endif
}

// Short runs in most cases: a call of memcpy would take longer than the copy.
inline void copy_row(const uint8_t *in, uint8_t *out, size_t bytes) {
    size_t at = 0;
    for (; at + 16 <= bytes; at += 16) {
        Half8 x;
        memcpy(&x, in + at, sizeof x);
        memcpy(out + at, &x, sizeof x);
    }
    for (; at < bytes; at++) out[at] = in[at];
}

// One element after the other between a tile and rows [token][head size]: orders that strides don't describe well.
void move_slowly(const KvSide &side, uint32_t size, uint32_t head_size, const Tile &tile, uint8_t *rows, size_t stride,
                 bool out) {
    for (uint32_t t = 0; t < tile.n; t++)
        for (uint32_t d = 0; d < head_size; d++) {
            const int64_t at = side.places
                                   ? side.places[(tile.slot + t) * head_size + d]
                                   : (tile.slot + t) * side.token + d / side.run * side.outer + d % side.run * side.dim;
            uint8_t *cell = tile.data + at * size, *row = rows + t * stride + d * size;
            memcpy(out ? row : cell, out ? cell : row, size);
        }
}

bool irregular(const KvSide &side) { return side.places || (side.dim != 1 && side.token != 1); }

// A tile's cells into rows [token][head size], `stride` bytes apart.
void gather(const KvSide &side, const KvRun &run, const Tile &tile, uint8_t *rows, size_t stride) {
    const uint32_t size = float_bytes(run.type);
    if (irregular(side)) return move_slowly(side, size, run.head_size, tile, rows, stride, true);
    for (uint32_t d = 0; d < run.head_size; d += side.run) {
        const uint8_t *cells = tile.data + (tile.slot * side.token + d / side.run * side.outer) * size;
        uint8_t *row = rows + d * size;
        if (side.dim != 1) {
            transpose(size, cells, static_cast<size_t>(side.dim), row, stride / size, side.run, tile.n);
            continue;
        }
        for (uint32_t t = 0; t < tile.n; t++)
            copy_row(cells + t * side.token * size, row + t * stride, size_t{side.run} * size);
    }
}

// Rows [token][head size], `stride` bytes apart, into a tile's cells. `stage`: room for a tile.
void scatter(const KvSide &side, const KvRun &run, const Tile &tile, const uint8_t *rows, size_t stride,
             uint8_t *stage) {
    const uint32_t size = float_bytes(run.type);
    if (irregular(side))
        return move_slowly(side, size, run.head_size, tile, const_cast<uint8_t *>(rows), stride, false);
    const size_t piece = size_t{side.run} * size, line = size_t{tile.n} * size;
    for (uint32_t d = 0; d < run.head_size; d += side.run) {
        uint8_t *cells = tile.data + (tile.slot * side.token + d / side.run * side.outer) * size;
        const uint8_t *row = rows + d * size;
        if (side.dim != 1) {
            transpose(size, row, stride / size, stage, tile.n, tile.n, side.run);
            const bool whole = side.dim == tile.n;
            for (uint32_t i = 0; i < (whole ? 1 : side.run); i++)
                stream(stage + i * line, cells + i * side.dim * size, whole ? line * side.run : line);
        } else if (side.token == side.run) {
            for (uint32_t t = 0; t < tile.n; t++) copy_row(row + t * stride, stage + t * piece, piece);
            stream(stage, cells, piece * tile.n);
        } else {
            for (uint32_t t = 0; t < tile.n; t++) stream(row + t * stride, cells + t * side.token * size, piece);
        }
    }
}

// Whether rows from the wire may go into the cache as they are.
bool as_it_is(const KvRun &run, const Tile &tile, const uint8_t *rows) {
    if (run.type != run.wire) return false;
    for (uint32_t t = 0; run.type == SX_F16 && t < tile.n; t++)
        if (has_infinity(rows + t * run.row, run.head_size)) return false;
    return true;
}

// From the wire's type to the cache's.
void convert_rows(const KvRun &run, const Tile &tile, const uint8_t *wire, uint8_t *rows) {
    const size_t head = size_t{float_bytes(run.type)} * run.head_size;
    for (uint32_t t = 0; t < tile.n; t++)
        convert(run.wire, wire + t * run.row, run.type, rows + t * head, run.head_size);
    if (run.type == SX_F16 && run.wire == SX_F16) make_finite(rows, tile.n * run.head_size);
}

// A tile as rows of the wire's type, `line` bytes apart. `rows`: room for a tile.
void gather_as_wire(const KvSide &side, const KvRun &run, const Tile &tile, uint8_t *out, uint8_t *rows) {
    if (run.type == run.wire) return gather(side, run, tile, out, run.line());
    const size_t head = size_t{float_bytes(run.type)} * run.head_size;
    gather(side, run, tile, rows, head);
    for (uint32_t t = 0; t < tile.n; t++)
        convert(run.type, rows + t * head, run.wire, out + t * run.line(), run.head_size);
}

// All heads of a tile's tokens from the stage to the wire.
void stream_rows(const KvRun &run, uint32_t n, const uint8_t *stage, uint8_t *wire) {
    const size_t line = run.line();
    if (line == run.row) return stream(stage, wire, n * line);
    for (uint32_t t = 0; t < n; t++) stream(stage + t * line, wire + t * run.row, line);
}

}  // namespace

uint32_t kv_out(const KvSide &side, const KvRun &run, uint8_t *wire) {
    alignas(64) uint8_t stage[kStage], rows[kTile * kMaxHeadSize * 4];
    const size_t head = size_t{float_bytes(run.wire)} * run.head_size;
    uint32_t crc = 0;
    each_tile(side, run, wire, true, [&](const Tile &tile, uint8_t *there) {
        gather_as_wire(side, run, tile, stage + tile.head * head, rows);
        if (tile.head + 1 < run.heads) return;
        if (run.sum) crc = crc32c(crc, stage, tile.n * run.line());
        stream_rows(run, tile.n, stage, there - tile.head * head);
    });
    settle_stores();
    return crc;
}

uint32_t kv_in(const KvSide &side, const KvRun &run, const uint8_t *wire) {
    alignas(64) uint8_t rows[kTile * kMaxHeadSize * 4], stage[kTile * kMaxHeadSize * 4];
    const size_t head = size_t{float_bytes(run.type)} * run.head_size;
    uint32_t crc = 0;
    each_tile(side, run, const_cast<uint8_t *>(wire), false, [&](const Tile &tile, const uint8_t *there) {
        if (run.sum && tile.head == 0) crc = crc32c_rows(crc, there, run.line(), run.row, tile.n);
        const bool direct = as_it_is(run, tile, there);
        if (!direct) convert_rows(run, tile, there, rows);
        scatter(side, run, tile, direct ? there : rows, direct ? run.row : head, stage);
    });
    settle_stores();
    return crc;
}

}  // namespace sx
