// Q4_1 of GGUF: 32 weights, an f16 scale, an f16 floor, and 16 bytes, column j low and 16+j high. As many bytes packed.
#pragma once

#include "formats/group.h"
#include "syshax/kernels.h"

namespace sx {
namespace {

struct Q4_1 {
    static constexpr int32_t kType = SX_Q4_1;
    static constexpr const char *kName = "Q4_1";
    static constexpr bool kQuantised = true;
    static constexpr uint32_t kBlock = 32, kBlockBytes = 20;
    static constexpr int kOffset = 0;
    using Levels = Nibbles;
    using Scales = HalfScalesAndFloors;

    static Group<Scales> read(const uint8_t *block, uint32_t) {
        Group<Scales> group{{load16(block), load16(block + 2)}, {}};
        split_nibbles(block + 4, 16, group.level);
        return group;
    }
};

}  // namespace
}  // namespace sx
