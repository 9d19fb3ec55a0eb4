// Q2_K of GGUF: 256 weights of 2 bits; 16 bytes of a 4-bit scale and a 4-bit floor for 16 weights each, the weights
// in 64 bytes, two f16. Read only.
#pragma once

#include "formats/scales.h"
#include "syshax/kernels.h"

namespace sx {
namespace {

struct Q2_K {
    static constexpr int32_t kType = SX_Q2_K;
    static constexpr const char *kName = "Q2_K";
    static constexpr uint32_t kBlock = 256, kBlockBytes = 84;
    static void decode(const uint8_t *block, uint32_t g, float *out) {
        const float scale = f16_to_f32(load16(block + 80)), floor = f16_to_f32(load16(block + 82));
        const uint8_t *quants = block + 16 + g / 4 * kGroup;
        for (uint32_t c = 0; c < kGroup; c++) {
            const uint8_t both = block[2 * g + c / 16];
            const float level = static_cast<float>(quants[c] >> g % 4 * 2 & 3);
            out[c] = scale * static_cast<float>(both & 15) * level - floor * static_cast<float>(both >> 4);
        }
    }
};

}  // namespace
}  // namespace sx
