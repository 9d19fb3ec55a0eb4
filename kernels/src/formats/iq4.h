// IQ4_NL and IQ4_XS of GGUF: 4-bit indices into a table of 16 values. NL: an f16 and 16 bytes for 32 weights; XS: an
// f16, eight 6-bit scales (minus 32) in 6 bytes, and 128 bytes for 256. Read only.
#pragma once

#include "formats/levels.h"
#include "formats/scales.h"
#include "syshax/kernels.h"

namespace sx {
namespace {

inline void look_up_iq4(const uint8_t *indices, float scale, float *out) {
    constexpr int8_t kValues[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
    uint8_t index[kGroup];
    split_nibbles(indices, 16, index);
    for (uint32_t c = 0; c < kGroup; c++) out[c] = scale * static_cast<float>(kValues[index[c]]);
}

struct Iq4Nl {
    static constexpr int32_t kType = SX_IQ4_NL;
    static constexpr const char *kName = "IQ4_NL";
    static constexpr uint32_t kBlock = 32, kBlockBytes = 18;
    static void decode(const uint8_t *block, uint32_t, float *out) {
        look_up_iq4(block + 2, f16_to_f32(load16(block)), out);
    }
};

struct Iq4Xs {
    static constexpr int32_t kType = SX_IQ4_XS;
    static constexpr const char *kName = "IQ4_XS";
    static constexpr uint32_t kBlock = 256, kBlockBytes = 136;
    static void decode(const uint8_t *block, uint32_t g, float *out) {
        const int low = block[4 + g / 2] >> g % 2 * 4 & 15, high = load16(block + 2) >> 2 * g & 3;
        look_up_iq4(block + 8 + 16 * g, f16_to_f32(load16(block)) * static_cast<float>((low | high << 4) - 32), out);
    }
};

}  // namespace
}  // namespace sx
