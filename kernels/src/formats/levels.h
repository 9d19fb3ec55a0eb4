// Where the levels (unsigned quants) of a group of 32 columns and 16 rows lie: vectors of 64 bytes, 4 a row, so that a
// dot product instruction finds 4 columns of a row side by side. Anonymous namespace: these headers are compiled with
// the flags of several instruction sets, and nothing of one may be linked into another.
#pragma once

#include <string.h>

#include "formats/tile.h"

namespace sx {
namespace {

// Low halves of `n` bytes, then their high halves.
inline void split_nibbles(const uint8_t *bytes, uint32_t n, uint8_t *out) {
    for (uint32_t i = 0; i < n; i++) {
        out[i] = bytes[i] & 15;
        out[n + i] = bytes[i] >> 4;
    }
}

// 4 bits: byte j of vector v holds column 8v+j low and column 8v+4+j high.
struct Nibbles {
    static constexpr uint32_t kBytes = 256;
    // The 32 levels of row `r`.
    static void put(uint8_t *group, uint32_t r, const uint8_t *level) {
        for (uint32_t v = 0; v < 4; v++)
            for (uint32_t j = 0; j < 4; j++)
                group[64 * v + 4 * r + j] = static_cast<uint8_t>(level[8 * v + j] | level[8 * v + 4 + j] << 4);
    }
    static void get(const uint8_t *group, uint32_t r, uint8_t *level) {
        for (uint32_t v = 0; v < 4; v++)
            for (uint32_t j = 0; j < 4; j++) {
                level[8 * v + j] = group[64 * v + 4 * r + j] & 15;
                level[8 * v + 4 + j] = group[64 * v + 4 * r + j] >> 4;
            }
    }
};

// 8 bits: byte j of vector v holds column 4v+j.
struct Bytes {
    static constexpr uint32_t kBytes = 512;
    static void put(uint8_t *group, uint32_t r, const uint8_t *level) {
        for (uint32_t v = 0; v < 8; v++) memcpy(group + 64 * v + 4 * r, level + 4 * v, 4);
    }
    static void get(const uint8_t *group, uint32_t r, uint8_t *level) {
        for (uint32_t v = 0; v < 8; v++) memcpy(level + 4 * v, group + 64 * v + 4 * r, 4);
    }
};

}  // namespace
}  // namespace sx
