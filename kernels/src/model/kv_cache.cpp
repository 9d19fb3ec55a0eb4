#include "model/kv_cache.h"

#include <math.h>
#include <string.h>

#include "core/matrix.h"
#include "formats/numeric.h"

namespace sx {
namespace {

// Index of head dimension d of token `slot` in a group of `tokens` tokens; side 0 is K, 1 is V.
size_t index_of(uint32_t side, uint32_t d, uint32_t slot, uint32_t tokens) {
    if (side == 0) return static_cast<size_t>(d) * tokens + slot;
    return (static_cast<size_t>(d / 16) * tokens + slot) * 16 + d % 16;
}

float get(int32_t type, const uint8_t *group, size_t index) {
    if (type == SX_F32) {
        float x;
        memcpy(&x, group + index * 4, 4);
        return x;
    }
    uint16_t half;
    memcpy(&half, group + index * 2, 2);
    return type == SX_F16 ? f16_to_f32(half) : bf16_to_f32(half);
}

float largest(const float *x, uint32_t n) {
    float top = 0;
    for (uint32_t i = 0; i < n; i++) top = fmaxf(top, fabsf(x[i]));
    return top;
}

}  // namespace

bool KvCache::allocate(const KvShape &shape, sx_context &context) {
    shape_ = shape;
    element_ = shape.type == SX_F32 ? 4 : shape.type == SX_Q8_0 ? 1 : 2;
    const NodeSet &nodes = context.team->nodes();
    const size_t groups = static_cast<size_t>(shape.n_blocks) * (shape.block_size / tokens()) * 2;
    const size_t step = nodes.count > 1 ? kBindStep : 64;
    plane_bytes_ = (groups * group_bytes(tokens()) + step - 1) / step * step;
    if (!memory_.allocate(plane_bytes_ * shape.n_layers * shape.n_heads)) return false;
    for (uint32_t layer = 0; nodes.count > 1 && layer < shape.n_layers; layer++)
        for (uint32_t k = 0; k < nodes.count; k++) {
            const Range mine = part(layer, k, nodes.count);
            context.unbound += !bind_to_node(const_cast<uint8_t *>(mine.data), mine.bytes, nodes.id[k]);
        }
    return true;
}

KvCache::Range KvCache::part(uint32_t layer, uint32_t k, uint32_t nodes) const {
    const Span heads = share_of(shape_.n_heads, k, nodes);
    const size_t first = static_cast<size_t>(layer) * shape_.n_heads + heads.first;
    return {memory_.data() + first * plane_bytes_, (heads.last - heads.first) * plane_bytes_};
}

size_t KvCache::group_bytes(uint32_t group_tokens) const {
    const size_t scales = shape_.type == SX_Q8_0 ? sizeof(float) * group_tokens : 0;
    return static_cast<size_t>(shape_.head_dim) * group_tokens * element_ + scales;
}

uint8_t *KvCache::group_at(const At &at, uint32_t side) const {
    const uint32_t per_block = shape_.block_size / tokens();
    const size_t plane = static_cast<size_t>(at.layer) * shape_.n_heads + at.head;
    const size_t group = (static_cast<size_t>(at.block) * 2 + side) * per_block + at.slot / tokens();
    return memory_.data() + plane * plane_bytes_ + group * group_bytes(tokens());
}

void KvCache::write_halves(uint8_t *group, uint32_t slot, uint32_t side, const uint16_t *x) {
    const uint32_t n = tokens();
    uint16_t *to = reinterpret_cast<uint16_t *>(group);
    if (side == 0)
        for (uint32_t d = 0; d < shape_.head_dim; d++) to[static_cast<size_t>(d) * n + slot] = x[d];
    else
        for (uint32_t d = 0; d < shape_.head_dim; d += 16)
            memcpy(to + static_cast<size_t>(d) * n + slot * 16, x + d, 32);
}

void KvCache::write(const Ops &ops, uint8_t *group, uint32_t slot, uint32_t side, const float *x) {
    uint16_t halves[kMaxHeadDim];
    if (shape_.type == SX_F16) {
        ops.to_f16(x, shape_.head_dim, halves);
        return write_halves(group, slot, side, halves);
    }
    if (shape_.type == SX_BF16) {
        for (uint32_t d = 0; d < shape_.head_dim; d++) halves[d] = f32_to_bf16(x[d]);
        return write_halves(group, slot, side, halves);
    }
    if (shape_.type == SX_F32) {
        for (uint32_t d = 0; d < shape_.head_dim; d++) memcpy(group + index_of(side, d, slot, tokens()) * 4, x + d, 4);
        return;
    }
    const float top = largest(x, shape_.head_dim), scale = top / 127.0f, inverse = top > kTiny ? 127.0f / top : 0.0f;
    for (uint32_t d = 0; d < shape_.head_dim; d++)
        group[index_of(side, d, slot, tokens())] = static_cast<uint8_t>(static_cast<int8_t>(lrintf(x[d] * inverse)));
    memcpy(group + static_cast<size_t>(shape_.head_dim) * tokens() + slot * sizeof scale, &scale, sizeof scale);
}

void KvCache::read(const uint8_t *group, uint32_t slot, uint32_t side, float *x) const {
    float scale = 1;
    if (shape_.type == SX_Q8_0)
        memcpy(&scale, group + static_cast<size_t>(shape_.head_dim) * tokens() + slot * sizeof scale, sizeof scale);
    for (uint32_t d = 0; d < shape_.head_dim; d++) {
        const size_t at = index_of(side, d, slot, tokens());
        x[d] = shape_.type == SX_Q8_0 ? static_cast<float>(static_cast<int8_t>(group[at])) * scale
                                      : get(shape_.type, group, at);
    }
}

void KvCache::store(const Ops &ops, const At &at, const float *k, const float *v) {
    write(ops, group_at(at, 0), at.slot % tokens(), 0, k);
    write(ops, group_at(at, 1), at.slot % tokens(), 1, v);
}

void KvCache::load(const At &at, float *k, float *v) const {
    read(group_at(at, 0), at.slot % tokens(), 0, k);
    read(group_at(at, 1), at.slot % tokens(), 1, v);
}

KvSide KvCache::side(uint32_t layer, uint32_t head, uint32_t side) const {
    const int64_t group = static_cast<int64_t>(group_bytes(tokens()) / element_);
    const int64_t plane = static_cast<int64_t>(plane_bytes_ / element_), n = tokens();
    uint8_t *data = group_at({layer, head, 0, 0}, side);
    if (side == 0) return {data, group, 1, plane, n, 0, shape_.head_dim, nullptr};
    return {data, group, 16, plane, 1, n * 16, 16, nullptr};
}

size_t KvCache::gather_bytes() const { return 2 * kAttnBlock / kKvGroup * group_bytes(kKvGroup); }

// Copies the small group that is part `part` of a group of 16 to its place there.
void KvCache::gather(const uint8_t *from, uint32_t part, uint32_t side, uint8_t *out) const {
    const uint32_t n = tokens(), d16 = shape_.head_dim / 16;
    const uint32_t runs = side == 0 ? shape_.head_dim : d16;
    const size_t run = side == 0 ? static_cast<size_t>(n) * element_ : static_cast<size_t>(n) * 16 * element_;
    for (uint32_t i = 0; i < runs; i++) memcpy(out + i * run * (kKvGroup / n) + part * run, from + i * run, run);
    if (shape_.type == SX_Q8_0)
        memcpy(out + static_cast<size_t>(shape_.head_dim) * kKvGroup + part * n * sizeof(float),
               from + static_cast<size_t>(shape_.head_dim) * n, n * sizeof(float));
}

void KvCache::groups(uint32_t layer, uint32_t head, const int32_t *table, uint32_t first, uint32_t n, uint8_t *scratch,
                     const uint8_t **k, const uint8_t **v) const {
    const uint32_t size = shape_.block_size, step = tokens();
    for (uint32_t t = 0; t < n; t += step) {
        const uint32_t block = static_cast<uint32_t>(table[(first + t) / size]), slot = (first + t) % size;
        const uint8_t *from[2] = {group_at({layer, head, block, slot}, 0), group_at({layer, head, block, slot}, 1)};
        const uint8_t **to[2] = {k + t / kKvGroup, v + t / kKvGroup};
        for (uint32_t side = 0; side < 2; side++) {
            if (step == kKvGroup) {
                *to[side] = from[side];
                continue;
            }
            uint8_t *at = scratch + (side * (kAttnBlock / kKvGroup) + t / kKvGroup) * group_bytes(kKvGroup);
            gather(from[side], t % kKvGroup / step, side, at);
            *to[side] = at;
        }
    }
}

}  // namespace sx
