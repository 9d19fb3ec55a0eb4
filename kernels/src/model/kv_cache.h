// The paged KV cache: kv_blocks blocks of block_size tokens for each layer and kv head. Layout: core/kv_layout.h.
#pragma once

#include <stdint.h>

#include "core/context.h"
#include "core/kv_layout.h"
#include "core/memory.h"
#include "core/ops.h"
#include "kv_pages/copy.h"

namespace sx {

struct KvShape {
    uint32_t n_layers, n_heads, head_dim;  // kv heads
    uint32_t n_blocks, block_size;
    int32_t type;
};

class KvCache {
  public:
    // Heads are shared out among the nodes of the context's team, and bound there.
    bool allocate(const KvShape &shape, sx_context &context);
    const KvShape &shape() const { return shape_; }

    // One token of one layer and head.
    struct At {
        uint32_t layer, head, block, slot;
    };
    // Stores K and V (f32, head_dim values each).
    void store(const Ops &ops, const At &at, const float *k, const float *v);
    // The same, read back as f32.
    void load(const At &at, float *k, float *v) const;

    // K (0) or V (1) of the heads of a layer from `head` on, with groups for blocks: group `i` of block `b` is number
    // 2 * b * groups_per_block() + i. Not for Q8_0.
    KvSide side(uint32_t layer, uint32_t head, uint32_t side) const;
    uint32_t groups_per_block() const { return shape_.block_size / tokens(); }
    uint32_t group_tokens() const { return tokens(); }

    // Groups of 16 tokens for AttendArgs: `n` tokens from token `first` (a multiple of 16) of a sequence whose blocks
    // are `table`. Blocks of fewer than 16 tokens are gathered into `scratch` (gather_bytes() long).
    void groups(uint32_t layer, uint32_t head, const int32_t *table, uint32_t first, uint32_t n, uint8_t *scratch,
                const uint8_t **k, const uint8_t **v) const;
    size_t gather_bytes() const;

    // The heads of one layer that lie on node k of `nodes`.
    struct Range {
        const uint8_t *data;
        size_t bytes;
    };
    Range part(uint32_t layer, uint32_t k, uint32_t nodes) const;

  private:
    uint32_t tokens() const { return shape_.block_size < kKvGroup ? shape_.block_size : kKvGroup; }  // of a group
    size_t group_bytes(uint32_t group_tokens) const;
    uint8_t *group_at(const At &at, uint32_t side) const;
    void gather(const uint8_t *from, uint32_t part, uint32_t side, uint8_t *out) const;
    void write(const Ops &ops, uint8_t *group, uint32_t slot, uint32_t side, const float *x);
    void write_halves(uint8_t *group, uint32_t slot, uint32_t side, const uint16_t *x);
    void read(const uint8_t *group, uint32_t slot, uint32_t side, float *x) const;

    KvShape shape_{};
    uint32_t element_ = 0;    // bytes
    size_t plane_bytes_ = 0;  // of one layer and head; whole pages, so that heads can lie on different nodes
    Memory memory_;
};

}  // namespace sx
