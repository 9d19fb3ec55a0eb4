// Layout of the KV cache: a block holds, for each layer and kv head, K then V; both in groups of 16 tokens (of the
// block's tokens where it has fewer). A group of K is [head_dim][tokens], a group of V is [head_dim / 16][tokens][16].
// The 8-bit type has, after the elements of a group, one f32 scale per token. One layout serves every ISA.
#pragma once

#include <stdint.h>

namespace sx {

constexpr uint32_t kAttnBlock = 256;  // tokens of context attended to in one piece, whatever the KV block size
constexpr uint32_t kKvGroup = 16;     // tokens of a group
constexpr uint32_t kMaxHeadDim = 1024;

}  // namespace sx
