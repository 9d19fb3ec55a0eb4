// Q8_0 of GGUF: 32 weights, an f16 scale and 32 signed bytes. As many bytes packed, as q+128.
#pragma once

#include <math.h>

#include "formats/group.h"
#include "syshax/kernels.h"

namespace sx {
namespace {

struct Q8_0 {
    static constexpr int32_t kType = SX_Q8_0;
    static constexpr bool kQuantised = true;
    static constexpr uint32_t kBlock = 32, kBlockBytes = 34;
    static constexpr int kOffset = 128;
    using Levels = Bytes;
    using Scales = HalfScales;
    static constexpr const char *kName = "Q8_0";

    static Group<Scales> read(const uint8_t *block, uint32_t) {
        Group<Scales> group{{load16(block)}, {}};
        for (uint32_t c = 0; c < kGroup; c++) group.level[c] = block[2 + c] ^ 128;
        return group;
    }

    // As GGUF's reference: scale = largest magnitude / 127.
    static Group<Scales> quantise(const float *x) {
        float largest = 0;
        for (uint32_t i = 0; i < kGroup; i++) largest = fmaxf(largest, fabsf(x[i]));
        const float scale = largest / 127.0f, inverse = scale != 0 ? 1.0f / scale : 0.0f;
        Group<Scales> group{{f32_to_f16(scale)}, {}};
        for (uint32_t i = 0; i < kGroup; i++)
            group.level[i] = static_cast<uint8_t>(static_cast<int>(roundf(x[i] * inverse)) + kOffset);
        return group;
    }
};

}  // namespace
}  // namespace sx
