// Q4_0 of GGUF: 32 weights, an f16 scale and 16 bytes; byte j holds column j low and column 16+j high, both as q+8.
// As many bytes packed.
#pragma once

#include <math.h>

#include "formats/group.h"
#include "syshax/kernels.h"

namespace sx {
namespace {

struct Q4_0 {
    static constexpr int32_t kType = SX_Q4_0;
    static constexpr bool kQuantised = true;
    static constexpr uint32_t kBlock = 32, kBlockBytes = 18;
    static constexpr int kOffset = 8;
    using Levels = Nibbles;
    using Scales = HalfScales;
    static constexpr const char *kName = "Q4_0";

    static Group<Scales> read(const uint8_t *block, uint32_t) {
        Group<Scales> group{{load16(block)}, {}};
        split_nibbles(block + 2, 16, group.level);
        return group;
    }

    // As GGUF's reference: scale = the value of largest magnitude / -8.
    static Group<Scales> quantise(const float *x) {
        float extreme = 0;
        for (uint32_t i = 0; i < kGroup; i++)
            if (fabsf(x[i]) > fabsf(extreme)) extreme = x[i];
        const float scale = extreme / -8.0f, inverse = scale != 0 ? 1.0f / scale : 0.0f;
        Group<Scales> group{{f32_to_f16(scale)}, {}};
        for (uint32_t i = 0; i < kGroup; i++) {
            const float shifted = x[i] * inverse + 8.5f;
            group.level[i] = static_cast<uint8_t>(shifted < 0 ? 0 : shifted > 15 ? 15 : static_cast<int>(shifted));
        }
        return group;
    }
};

}  // namespace
}  // namespace sx
