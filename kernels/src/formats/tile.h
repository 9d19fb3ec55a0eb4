// How packed weights lie, "r16k4": a tile is 16 rows. Float weights: [cols][16 rows]. Block types: superblocks of some
// groups of 32 columns; each begins with the scales of its groups (scales.h), then the levels of group after group
// (levels.h). Rows are padded to 16, columns to whole superblocks; padding has scale 0. One layout serves every ISA.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace sx {

constexpr uint32_t kTileRows = 16;
constexpr uint32_t kGroup = 32;  // columns under one scale of the activations

static inline uint32_t round_up(uint32_t n, uint32_t step) { return (n + step - 1) / step * step; }

}  // namespace sx
