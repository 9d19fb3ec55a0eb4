// Copies KV between the pages of any engine's cache and a handoff chunk, where each token lies as [kv head][head size].
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace sx {

// K or V of one layer. Element d of a head lies at block, token and head strides, plus (d / run) * outer + d % run *
// dim, all in elements; with `places` at block and head strides plus places[token in block][d].
struct KvSide {
    uint8_t *data;
    int64_t block, token, head, dim, outer;
    uint32_t run;
    const int32_t *places;
};

// Tokens first .. first + n of a sequence whose blocks are `table`.
struct KvRun {
    const int32_t *table;
    uint32_t block_size, first, n;
    uint32_t heads, head_size;  // head_size at most kMaxHeadSize
    int32_t type, wire;         // of the cache and of the chunk: SX_F32, SX_F16 or SX_BF16
    size_t row;                 // bytes from one token to the next in the chunk
    bool sum;                   // whether the checksum is wanted
    size_t line() const;        // bytes of these heads of a token in the chunk
};

constexpr uint32_t kMaxHeadSize = 1024, kMaxTokenSize = 16384;  // of a head, and of the heads of a token

// `wire`: the first token's first head in the chunk. f16 is finite in the cache, whatever came over the wire.
// Both return crc32c over the rows on the wire (0: not wanted), made while they are in the caches.
uint32_t kv_out(const KvSide &side, const KvRun &run, uint8_t *wire);
uint32_t kv_in(const KvSide &side, const KvRun &run, const uint8_t *wire);

// One head of one token as `type`; f16 saturates.
void encode_row(int32_t type, const float *x, uint32_t n, uint8_t *out);

}  // namespace sx
