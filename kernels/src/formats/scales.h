// Where the scales of a superblock lie, and what they say: a weight is factor * (level - the format's offset).
#pragma once

#include <string.h>

#include "formats/numeric.h"
#include "formats/tile.h"

namespace sx {
namespace {

inline uint16_t load16(const uint8_t *p) {
    uint16_t value;
    memcpy(&value, p, sizeof value);
    return value;
}

// Two groups; [2 groups][16 rows] f16.
struct HalfScales {
    static constexpr uint32_t kGroups = 2, kBytes = 64;
    struct Of {  // one group of one row
        uint16_t half;
        float factor() const { return f16_to_f32(half); }
    };
    static uint32_t at(uint32_t g, uint32_t r) { return (g * kTileRows + r) * 2; }
    static void put(uint8_t *super, uint32_t g, uint32_t r, Of scale) { memcpy(super + at(g, r), &scale.half, 2); }
    static Of get(const uint8_t *super, uint32_t g, uint32_t r) { return {load16(super + at(g, r))}; }
};

}  // namespace
}  // namespace sx
