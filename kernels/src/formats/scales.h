// Where the scales of a superblock lie, and what they say: a weight is factor * (level - the format's offset), plus the
// group's floor where there are floors.
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
    static constexpr bool kFloors = false;
    struct Of {  // one group of one row
        uint16_t half;
        float factor() const { return f16_to_f32(half); }
        float floor() const { return 0; }
    };
    static uint32_t at(uint32_t g, uint32_t r) { return (g * kTileRows + r) * 2; }
    static void put(uint8_t *super, uint32_t g, uint32_t r, Of scale) { memcpy(super + at(g, r), &scale.half, 2); }
    static Of get(const uint8_t *super, uint32_t g, uint32_t r) { return {load16(super + at(g, r))}; }
};

// Two groups; [2 groups][16 rows] f16 factors, then as many floors.
struct HalfScalesAndFloors {
    static constexpr uint32_t kGroups = 2, kBytes = 128, kFloorsAt = 64;
    static constexpr bool kFloors = true;
    struct Of {
        uint16_t half, floor_half;
        float factor() const { return f16_to_f32(half); }
        float floor() const { return f16_to_f32(floor_half); }
    };
    static uint32_t at(uint32_t g, uint32_t r) { return (g * kTileRows + r) * 2; }
    static void put(uint8_t *super, uint32_t g, uint32_t r, Of scale) {
        memcpy(super + at(g, r), &scale.half, 2);
        memcpy(super + kFloorsAt + at(g, r), &scale.floor_half, 2);
    }
    static Of get(const uint8_t *super, uint32_t g, uint32_t r) {
        return {load16(super + at(g, r)), load16(super + kFloorsAt + at(g, r))};
    }
};

// Eight groups, GGUF's "K": [16 rows] f16 and [16 rows] f16 of floors for all of them, then for each group [16 rows]
// bytes that the first is multiplied by, and [16 rows] bytes that the second is.
struct ScaledScales {
    static constexpr uint32_t kGroups = 8, kBytes = 320, kFloorsAt = 32, kStepsAt = 64, kStepBytes = 32;
    static constexpr bool kFloors = true;
    struct Of {
        uint16_t half, floor_half;
        uint8_t step, floor_step;
        float factor() const { return f16_to_f32(half) * static_cast<float>(step); }
        float floor() const { return -(f16_to_f32(floor_half) * static_cast<float>(floor_step)); }
    };
    static uint32_t step_at(uint32_t g) { return kStepsAt + g * kStepBytes; }
    static void put(uint8_t *super, uint32_t g, uint32_t r, Of scale) {
        memcpy(super + 2 * r, &scale.half, 2);
        memcpy(super + kFloorsAt + 2 * r, &scale.floor_half, 2);
        super[step_at(g) + r] = scale.step;
        super[step_at(g) + kTileRows + r] = scale.floor_step;
    }
    static Of get(const uint8_t *super, uint32_t g, uint32_t r) {
        return {load16(super + 2 * r), load16(super + kFloorsAt + 2 * r), super[step_at(g) + r],
                super[step_at(g) + kTileRows + r]};
    }
};

}  // namespace
}  // namespace sx
