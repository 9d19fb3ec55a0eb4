// Q4_K of GGUF: 256 weights in eight groups; two f16, eight 6-bit scales and eight 6-bit floors in 12 bytes, and 128
// bytes of which the low halves are a group and the high halves the next. Packed 148 bytes for 144: scales of 8 bits.
#pragma once

#include "formats/group.h"
#include "syshax/kernels.h"

namespace sx {
namespace {

// Scale and floor of group `g` out of the 12 bytes that hold eight of each.
inline void read_six_bits(const uint8_t *packed, uint32_t g, uint8_t *step, uint8_t *floor_step) {
    if (g < 4) {
        *step = packed[g] & 63;
        *floor_step = packed[g + 4] & 63;
        return;
    }
    *step = static_cast<uint8_t>((packed[g + 4] & 15) | packed[g - 4] >> 6 << 4);
    *floor_step = static_cast<uint8_t>(packed[g + 4] >> 4 | packed[g] >> 6 << 4);
}

struct Q4_K {
    static constexpr int32_t kType = SX_Q4_K;
    static constexpr const char *kName = "Q4_K";
    static constexpr bool kQuantised = true;
    static constexpr uint32_t kBlock = 256, kBlockBytes = 144;
    static constexpr int kOffset = 0;
    using Levels = Nibbles;
    using Scales = ScaledScales;

    static Group<Scales> read(const uint8_t *block, uint32_t g) {
        Group<Scales> group{{load16(block), load16(block + 2), 0, 0}, {}};
        read_six_bits(block + 4, g, &group.scale.step, &group.scale.floor_step);
        const uint8_t *quants = block + 16 + g / 2 * kGroup;
        for (uint32_t c = 0; c < kGroup; c++) group.level[c] = g % 2 == 0 ? quants[c] & 15 : quants[c] >> 4;
        return group;
    }
};

}  // namespace
}  // namespace sx
