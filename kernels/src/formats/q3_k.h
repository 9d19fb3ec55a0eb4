// Q3_K of GGUF: 256 weights of 3 bits; their high bits in 32 bytes (0: subtract 4), their low ones in 64, sixteen
// 6-bit scales (of 16 weights, minus 32) in 12, an f16. Read only.
#pragma once

#include "formats/scales.h"
#include "syshax/kernels.h"

namespace sx {
namespace {

struct Q3_K {
    static constexpr int32_t kType = SX_Q3_K;
    static constexpr const char *kName = "Q3_K";
    static constexpr uint32_t kBlock = 256, kBlockBytes = 110;
    static void decode(const uint8_t *block, uint32_t g, float *out) {
        const float scale = f16_to_f32(load16(block + 108));
        const uint8_t *quants = block + 32 + g / 4 * kGroup;
        for (uint32_t c = 0; c < kGroup; c++) {
            const int level = (quants[c] >> g % 4 * 2 & 3) - (block[c] >> g & 1 ? 0 : 4);
            out[c] = scale * static_cast<float>(step(block + 96, 2 * g + c / 16)) * static_cast<float>(level);
        }
    }
    static int step(const uint8_t *packed, uint32_t i) {
        const int low = i < 8 ? packed[i] & 15 : packed[i - 8] >> 4;
        return (low | (packed[8 + i % 4] >> i / 4 * 2 & 3) << 4) - 32;
    }
};

}  // namespace
}  // namespace sx
