// sx_kv_export and sx_kv_import: between the paged cache and one handoff chunk
// [layer][K,V][chunk_tokens][kv head][head_dim] of the wire type.
#include <string.h>

#include <atomic>
#include <memory>
#include <new>

#include "core/args.h"
#include "core/crc.h"
#include "formats/format.h"
#include "kv_pages/copy.h"
#include "model/model.h"

namespace sx {
namespace {

struct Copy {
    sx_kv_copy_args args;
    uint32_t head_last;
    size_t element;
};

sx_status take_copy(const sx_model *m, const sx_kv_copy_args *given, Copy *copy) {
    if (!m || !take_args(given, &copy->args)) return fail(SX_EINVAL, "KV copy: arguments are missing");
    sx_kv_copy_args &a = copy->args;
    const uint32_t heads = m->shape.n_kv_heads, size = m->shape.kv_block_size;
    if (a.head_count == 0 && a.head_first < heads) a.head_count = heads - a.head_first;
    if (!a.chunk || !a.block_table) return fail(SX_EINVAL, "KV copy: expected a chunk and a block table, got NULL");
    if (!is_float(a.wire_type)) return fail(SX_EINVAL, "wire_type: expected F32, F16 or BF16, got %d", a.wire_type);
    if (a.head_first >= heads || a.head_count > heads - a.head_first)
        return fail(SX_EINVAL, "heads: expected a slice of %u kv heads, got %u + %u", heads, a.head_first,
                    a.head_count);
    if (uint64_t{a.head_count} * m->shape.head_dim > kMaxTokenSize)
        return fail(SX_EINVAL, "heads: expected at most %u values a token, got %u heads of %u", kMaxTokenSize,
                    a.head_count, m->shape.head_dim);
    if (static_cast<uint64_t>(a.chunk_first) + a.n_tokens > a.chunk_tokens)
        return fail(SX_EINVAL, "chunk: %u + %u tokens don't fit in %u", a.chunk_first, a.n_tokens, a.chunk_tokens);
    if (static_cast<uint64_t>(a.first_token) + a.n_tokens > static_cast<uint64_t>(a.n_blocks) * size)
        return fail(SX_EINVAL, "blocks: %u of %u tokens don't cover tokens %u + %u", a.n_blocks, size, a.first_token,
                    a.n_tokens);
    for (uint32_t b = 0; b < a.n_blocks; b++)
        if (a.block_table[b] < 0 || static_cast<uint32_t>(a.block_table[b]) >= m->shape.kv_blocks)
            return fail(SX_EINVAL, "blocks: expected 0 to %u, got %d", m->shape.kv_blocks - 1, a.block_table[b]);
    copy->head_last = a.head_first + a.head_count;
    copy->element = float_bytes(a.wire_type);
    return SX_OK;
}

// Calls visit(KvCache::At, K on the wire, V on the wire) for everything the copy names.
template <class Visit>
void each(const sx_model *m, const Copy &copy, const Visit &visit) {
    const sx_kv_copy_args &a = copy.args;
    const size_t heads = m->shape.n_kv_heads, head = m->shape.head_dim * copy.element;
    const size_t side = static_cast<size_t>(a.chunk_tokens) * heads * head;
    for (uint32_t layer = 0; layer < m->shape.n_layers; layer++)
        for (uint32_t t = 0; t < a.n_tokens; t++)
            for (uint32_t h = a.head_first; h < copy.head_last; h++) {
                const uint32_t token = a.first_token + t, size = m->shape.kv_block_size;
                uint8_t *k =
                    static_cast<uint8_t *>(a.chunk) + 2 * layer * side + ((a.chunk_first + t) * heads + h) * head;
                visit(KvCache::At{layer, h, static_cast<uint32_t>(a.block_table[token / size]), token % size}, k,
                      k + side);
            }
}

std::unique_ptr<float[]> pair_of_heads(const sx_model *m) {
    return std::unique_ptr<float[]>(new (std::nothrow) float[2 * m->shape.head_dim]);
}

// The blocks of the copy as the groups that KvCache::side() counts.
std::unique_ptr<int32_t[]> group_table(const KvCache &kv, const sx_kv_copy_args &a) {
    const uint32_t per = kv.groups_per_block();
    std::unique_ptr<int32_t[]> table(new (std::nothrow) int32_t[size_t{a.n_blocks} * per + 1]);
    for (uint32_t i = 0; table && i < a.n_blocks * per; i++)
        table[i] = a.block_table[i / per] * 2 * static_cast<int32_t>(per) + static_cast<int32_t>(i % per);
    return table;
}

// K or V of a layer in the chunk: its first token's first head of the copy.
uint8_t *plane(const sx_model *m, const Copy &copy, uint32_t index) {
    const sx_kv_copy_args &a = copy.args;
    const size_t token = size_t{index} * a.chunk_tokens + a.chunk_first;
    return static_cast<uint8_t *>(a.chunk) +
           (token * m->shape.n_kv_heads + a.head_first) * m->shape.head_dim * copy.element;
}

// Copies every layer's K and V by `move` (kv_out or kv_in).
template <class Move>
sx_status each_side(const sx_model *m, const Copy &copy, const Move &move) {
    const sx_kv_copy_args &a = copy.args;
    const uint32_t sides = 2 * m->shape.n_layers;
    const std::unique_ptr<int32_t[]> table = group_table(m->kv, a);
    const std::unique_ptr<uint32_t[]> sums(new (std::nothrow) uint32_t[sides]);
    if (!table || !sums) return fail(SX_ENOMEM, "no memory for a block table");
    const KvRun run{table.get(),        m->kv.group_tokens(), a.first_token,
                    a.n_tokens,         a.head_count,         m->shape.head_dim,
                    m->kv.shape().type, a.wire_type,          m->shape.n_kv_heads * m->shape.head_dim * copy.element,
                    a.crc != nullptr};
    std::atomic<uint32_t> next{0};  // who comes first takes the next one: on a busy host threads are not equally fast
    m->context->team->run([&](uint32_t) {
        for (uint32_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < sides;)
            sums[i] = move(m->kv.side(i / 2, a.head_first, i % 2), run, plane(m, copy, i));
    });
    if (!a.crc) return SX_OK;
    const uint32_t power = crc32c_power(run.n * run.line());
    *a.crc = 0;
    for (uint32_t i = 0; i < sides; i++) *a.crc = crc32c_join(*a.crc, sums[i], power);
    return SX_OK;
}

// The checksum of a copy that has not made it on its way.
void sum_up(const sx_model *m, const Copy &copy) {
    const sx_kv_copy_args &a = copy.args;
    if (!a.crc) return;
    const size_t head = m->shape.head_dim * copy.element;
    *a.crc = 0;
    for (uint32_t i = 0; i < 2 * m->shape.n_layers; i++)
        *a.crc = crc32c_rows(*a.crc, plane(m, copy, i), a.head_count * head, m->shape.n_kv_heads * head, a.n_tokens);
}

// 8 bits and a scale: through f32, token by token.
sx_status export_q8(const sx_model *model, const Copy &copy) {
    const std::unique_ptr<float[]> values = pair_of_heads(model);
    if (!values) return fail(SX_ENOMEM, "no memory for a head");
    const uint32_t dim = model->shape.head_dim;
    float *k = values.get(), *v = k + dim;
    each(model, copy, [&](const KvCache::At &at, uint8_t *wire_k, uint8_t *wire_v) {
        model->kv.load(at, k, v);
        encode_row(copy.args.wire_type, k, dim, wire_k);
        encode_row(copy.args.wire_type, v, dim, wire_v);
    });
    sum_up(model, copy);
    return SX_OK;
}

sx_status import_q8(sx_model *model, const Copy &copy) {
    const std::unique_ptr<float[]> values = pair_of_heads(model);
    if (!values) return fail(SX_ENOMEM, "no memory for a head");
    const uint32_t dim = model->shape.head_dim;
    float *k = values.get(), *v = k + dim;
    each(model, copy, [&](const KvCache::At &at, const uint8_t *wire_k, const uint8_t *wire_v) {
        decode_row(copy.args.wire_type, wire_k, dim, k);
        decode_row(copy.args.wire_type, wire_v, dim, v);
        model->kv.store(*model->context->ops, at, k, v);
    });
    sum_up(model, copy);
    return SX_OK;
}

}  // namespace
}  // namespace sx

sx_status sx_kv_export(const sx_model *model, const sx_kv_copy_args *given) {
    sx::Copy copy;
    const sx_status status = sx::take_copy(model, given, &copy);
    if (status != SX_OK) return status;
    return model->kv.shape().type == SX_Q8_0 ? sx::export_q8(model, copy) : sx::each_side(model, copy, sx::kv_out);
}

sx_status sx_kv_import(sx_model *model, const sx_kv_copy_args *given) {
    sx::Copy copy;
    const sx_status status = sx::take_copy(model, given, &copy);
    if (status != SX_OK) return status;
    return model->kv.shape().type == SX_Q8_0 ? sx::import_q8(model, copy) : sx::each_side(model, copy, sx::kv_in);
}
