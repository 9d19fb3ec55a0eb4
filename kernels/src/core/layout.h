// Packed layouts of weights and of the KV cache. One layout serves every ISA.
//
// Weights, "r16k4": a tile is 16 rows; it is stored as superblocks of 64 columns (two groups of 32).
//   q4_0, 576 bytes:  [2][16] f16 scales; then [2 groups][4 vectors][16 rows][4]; byte j of vector v holds
//                     column 8v+j in its low nibble and 8v+4+j in its high nibble, both as q+8 in 0..15
//   q8_0, 1088 bytes: [2][16] f16 scales; then [2 groups][8 vectors][16 rows][4]; byte j of vector v holds
//                     column 4v+j as q+128
// Both take as many bytes as in GGUF. Rows are padded to 16, columns to 64 (scale 0).
// Float weights: a tile is [cols][16 rows] elements.
//
// KV cache: a block holds, for each layer and kv head, K then V; both in groups of 16 tokens (of the block's tokens
// where it has fewer). A group of K is [head_dim][tokens], a group of V is [head_dim / 16][tokens][16].
// The 8-bit type has, after the elements of a group, one f32 scale per token.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "syshax/kernels.h"

namespace sx {

constexpr uint32_t kTileRows = 16;
constexpr uint32_t kGroup = 32;       // columns under one scale
constexpr uint32_t kSuper = 64;       // columns of a superblock
constexpr uint32_t kQ4Bytes = 576;    // superblock of q4_0
constexpr uint32_t kQ8Bytes = 1088;   // superblock of q8_0
constexpr uint32_t kScaleBytes = 64;  // its scales come first
constexpr uint32_t kAttnBlock = 256;  // tokens of context attended to in one piece, whatever the KV block size
constexpr uint32_t kKvGroup = 16;     // tokens of a group of the KV cache
constexpr uint32_t kMaxHeadDim = 1024;
constexpr float kTiny = 1e-36f;  // a group of activations not above this is quantised to zeros

static inline bool is_quantised(int32_t type) { return type == SX_Q4_0 || type == SX_Q8_0; }
static inline bool is_float(int32_t type) { return type == SX_F32 || type == SX_F16 || type == SX_BF16; }
static inline uint32_t round_up(uint32_t n, uint32_t step) { return (n + step - 1) / step * step; }
static inline uint32_t float_bytes(int32_t type) { return type == SX_F32 ? 4 : 2; }

// Bytes of one packed tile of 16 rows.
static inline size_t tile_bytes(int32_t type, uint32_t cols) {
    if (type == SX_Q4_0) return static_cast<size_t>(round_up(cols, kSuper) / kSuper) * kQ4Bytes;
    if (type == SX_Q8_0) return static_cast<size_t>(round_up(cols, kSuper) / kSuper) * kQ8Bytes;
    return static_cast<size_t>(cols) * kTileRows * float_bytes(type);
}

// Bytes of one row as it lies in a GGUF or safetensors file.
static inline size_t source_row_bytes(int32_t type, uint32_t cols) {
    if (type == SX_Q4_0) return static_cast<size_t>(cols / kGroup) * 18;
    if (type == SX_Q8_0) return static_cast<size_t>(cols / kGroup) * 34;
    return static_cast<size_t>(cols) * float_bytes(type);
}

}  // namespace sx
