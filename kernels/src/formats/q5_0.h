// Q5_0 and Q5_1 of GGUF: 32 weights; an f16 scale (and an f16 floor), a fifth bit of each weight in 4 bytes, and 16
// bytes of its low bits. Read only.
#pragma once

#include "formats/levels.h"
#include "formats/scales.h"
#include "syshax/kernels.h"

namespace sx {
namespace {

inline void join_fifth_bits(const uint8_t *nibbles, const uint8_t *bits, uint8_t *level) {
    split_nibbles(nibbles, 16, level);
    for (uint32_t c = 0; c < kGroup; c++) level[c] = static_cast<uint8_t>(level[c] | (bits[c / 8] >> c % 8 & 1) << 4);
}

struct Q5_0 {
    static constexpr int32_t kType = SX_Q5_0;
    static constexpr const char *kName = "Q5_0";
    static constexpr uint32_t kBlock = 32, kBlockBytes = 22;
    static void decode(const uint8_t *block, uint32_t, float *out) {
        const float scale = f16_to_f32(load16(block));
        uint8_t level[kGroup];
        join_fifth_bits(block + 6, block + 2, level);
        for (uint32_t c = 0; c < kGroup; c++) out[c] = scale * static_cast<float>(level[c] - 16);
    }
};

struct Q5_1 {
    static constexpr int32_t kType = SX_Q5_1;
    static constexpr const char *kName = "Q5_1";
    static constexpr uint32_t kBlock = 32, kBlockBytes = 24;
    static void decode(const uint8_t *block, uint32_t, float *out) {
        const float scale = f16_to_f32(load16(block)), floor = f16_to_f32(load16(block + 2));
        uint8_t level[kGroup];
        join_fifth_bits(block + 8, block + 4, level);
        for (uint32_t c = 0; c < kGroup; c++) out[c] = scale * static_cast<float>(level[c]) + floor;
    }
};

}  // namespace
}  // namespace sx
