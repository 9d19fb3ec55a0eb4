// Q5_K of GGUF: as Q4_K, with a fifth bit of each weight in 32 bytes before the others. Read only.
#pragma once

#include "formats/q4_k.h"
#include "syshax/kernels.h"

namespace sx {
namespace {

struct Q5_K {
    static constexpr int32_t kType = SX_Q5_K;
    static constexpr const char *kName = "Q5_K";
    static constexpr uint32_t kBlock = 256, kBlockBytes = 176;
    static void decode(const uint8_t *block, uint32_t g, float *out) {
        uint8_t step, floor_step;
        read_six_bits(block + 4, g, &step, &floor_step);
        const float scale = f16_to_f32(load16(block)) * static_cast<float>(step);
        const float floor = f16_to_f32(load16(block + 2)) * static_cast<float>(floor_step);
        const uint8_t *quants = block + 48 + g / 2 * kGroup;
        for (uint32_t c = 0; c < kGroup; c++) {
            const int level = (g % 2 == 0 ? quants[c] & 15 : quants[c] >> 4) | (block[16 + c] >> g & 1) << 4;
            out[c] = scale * static_cast<float>(level) - floor;
        }
    }
};

}  // namespace
}  // namespace sx
