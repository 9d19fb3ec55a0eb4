// Q6_K of GGUF: 256 weights of 6 bits (minus 32); their low 4 bits in 128 bytes, their high 2 in 64, sixteen signed
// 8-bit scales of 16 weights each, an f16. Read only.
#pragma once

#include "formats/scales.h"
#include "syshax/kernels.h"

namespace sx {
namespace {

struct Q6_K {
    static constexpr int32_t kType = SX_Q6_K;
    static constexpr const char *kName = "Q6_K";
    static constexpr uint32_t kBlock = 256, kBlockBytes = 210;
    static void decode(const uint8_t *block, uint32_t g, float *out) {
        const float scale = f16_to_f32(load16(block + 208));
        const uint32_t half = g / 4, k = g % 4;
        const uint8_t *low = block + 64 * half + 32 * (k % 2), *high = block + 128 + 32 * half;
        for (uint32_t c = 0; c < kGroup; c++) {
            const int level = (low[c] >> k / 2 * 4 & 15) | (high[c] >> 2 * k & 3) << 4;
            const int8_t step = static_cast<int8_t>(block[192 + 2 * g + c / 16]);
            out[c] = scale * static_cast<float>(step) * static_cast<float>(level - 32);
        }
    }
};

}  // namespace
}  // namespace sx
