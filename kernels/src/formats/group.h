// A quantised format is a struct of kType and kName, kBlock and kBlockBytes of the file, Levels and Scales of the tile,
// kOffset (the level that stands for zero), read() of a group out of a file's block, and quantise() where others are
// quantised to it. From these follow its superblocks and groups, here.
#pragma once

#include "formats/levels.h"
#include "formats/scales.h"

namespace sx {
namespace {

// 32 weights of a row as a file or the quantiser gives them.
template <class Scales>
struct Group {
    typename Scales::Of scale;
    uint8_t level[kGroup];
};

template <class F>
constexpr uint32_t kSuperColumns = F::Scales::kGroups *kGroup;
template <class F>
constexpr uint32_t kSuperBytes = F::Scales::kBytes + F::Scales::kGroups *F::Levels::kBytes;

// Where the levels of group `g` of a superblock begin.
template <class F>
constexpr uint32_t levels_at(uint32_t g) {
    return F::Scales::kBytes + g * F::Levels::kBytes;
}

template <class F>
Group<typename F::Scales> read_packed(const uint8_t *tile, uint32_t g, uint32_t r) {
    const uint8_t *super = tile + static_cast<size_t>(g / F::Scales::kGroups) * kSuperBytes<F>;
    g %= F::Scales::kGroups;
    Group<typename F::Scales> group;
    group.scale = F::Scales::get(super, g, r);
    F::Levels::get(super + levels_at<F>(g), r, group.level);
    return group;
}

template <class F>
void write_packed(const Group<typename F::Scales> &group, uint8_t *tile, uint32_t g, uint32_t r) {
    uint8_t *super = tile + static_cast<size_t>(g / F::Scales::kGroups) * kSuperBytes<F>;
    g %= F::Scales::kGroups;
    F::Scales::put(super, g, r, group.scale);
    F::Levels::put(super + levels_at<F>(g), r, group.level);
}

template <class F>
void to_floats(const Group<typename F::Scales> &group, float *out) {
    const float factor = group.scale.factor(), floor = group.scale.floor();
    for (uint32_t c = 0; c < kGroup; c++) {
        out[c] = factor * static_cast<float>(group.level[c] - F::kOffset);
        if (F::Scales::kFloors) out[c] += floor;
    }
}

}  // namespace
}  // namespace sx
