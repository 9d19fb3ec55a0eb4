// MXFP4 (OCP Microscaling Formats 1.0) as GGUF has it: 32 weights of E2M1 in 16 bytes behind an exponent. Read only.
#pragma once

#include "formats/levels.h"
#include "formats/scales.h"
#include "syshax/kernels.h"

namespace sx {
namespace {

struct Mxfp4 {
    static constexpr int32_t kType = SX_MXFP4;
    static constexpr const char *kName = "MXFP4";
    static constexpr uint32_t kBlock = 32, kBlockBytes = 17;
    static void decode(const uint8_t *block, uint32_t, float *out) {
        constexpr int8_t kTwice[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
        // 2^(exponent - 127), halved for the table; the two smallest are subnormal.
        const uint32_t e = block[0];
        const float scale = bits_float(e < 2 ? 0x200000u << e : (e - 1) << 23);
        uint8_t index[kGroup];
        split_nibbles(block + 1, 16, index);
        for (uint32_t c = 0; c < kGroup; c++) out[c] = scale * static_cast<float>(kTwice[index[c]]);
    }
};

}  // namespace
}  // namespace sx
