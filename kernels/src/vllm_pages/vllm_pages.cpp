// sx_pages_export and sx_pages_import: KV between a handoff chunk and the paged cache of an engine that is not ours.
#include "core/args.h"
#include "core/crc.h"
#include "formats/format.h"
#include "kv_pages/copy.h"

namespace sx {
namespace {

sx_status check_pages(const sx_pages_args *given, sx_pages_args *a) {
    if (!take_args(given, a) || !a->sides || !a->block_table || !a->chunk)
        return fail(SX_EINVAL, "pages: arguments are missing");
    if (!is_float(a->type) || !is_float(a->wire_type))
        return fail(SX_EINVAL, "pages: expected F32, F16 or BF16, got %d and %d", a->type, a->wire_type);
    if (a->head_size == 0 || a->head_size > kMaxHeadSize)
        return fail(SX_EINVAL, "pages: head size %u, expected 1 to %u", a->head_size, kMaxHeadSize);
    if (uint64_t{a->heads} * a->head_size > kMaxTokenSize)
        return fail(SX_EINVAL, "pages: %u heads of %u, expected at most %u together", a->heads, a->head_size,
                    kMaxTokenSize);
    if (a->heads > a->chunk_heads || a->chunk_head_first > a->chunk_heads - a->heads)
        return fail(SX_EINVAL, "pages: heads %u + %u of %u", a->chunk_head_first, a->heads, a->chunk_heads);
    if (uint64_t{a->chunk_first} + a->n_tokens > a->chunk_tokens)
        return fail(SX_EINVAL, "pages: %u + %u tokens don't fit in %u", a->chunk_first, a->n_tokens, a->chunk_tokens);
    if (a->block_size == 0 || uint64_t{a->first_token} + a->n_tokens > uint64_t{a->n_blocks} * a->block_size)
        return fail(SX_EINVAL, "pages: %u blocks of %u don't cover tokens %u + %u", a->n_blocks, a->block_size,
                    a->first_token, a->n_tokens);
    for (uint32_t i = 0; i < a->n_blocks; i++)
        if (a->block_table[i] < 0 || static_cast<uint32_t>(a->block_table[i]) >= a->cache_blocks)
            return fail(SX_EINVAL, "pages: block %d of %u", a->block_table[i], a->cache_blocks);
    return SX_OK;
}

template <class Copy>
sx_status each_side(const sx_pages_args *given, const Copy &copy) {
    sx_pages_args a;
    const sx_status status = check_pages(given, &a);
    if (status != SX_OK) return status;
    const size_t head = size_t{a.head_size} * float_bytes(a.wire_type), row = a.chunk_heads * head;
    const KvRun run{a.block_table, a.block_size, a.first_token, a.n_tokens, a.heads,
                    a.head_size,   a.type,       a.wire_type,   row,        a.crc != nullptr};
    const uint32_t power = crc32c_power(run.n * run.line());
    uint32_t crc = 0;
    for (uint32_t i = 0; i < a.n_sides; i++) {
        const sx_pages_side &s = a.sides[i];
        const size_t token = size_t{i} * a.chunk_tokens + a.chunk_first;
        const KvSide side{static_cast<uint8_t *>(s.data), s.block, s.token, s.head, s.dim, 0, a.head_size, s.places};
        crc = crc32c_join(
            crc, copy(side, run, static_cast<uint8_t *>(a.chunk) + token * row + a.chunk_head_first * head), power);
    }
    if (a.crc) *a.crc = crc;
    return SX_OK;
}

}  // namespace
}  // namespace sx

sx_status sx_pages_export(const sx_pages_args *args) { return sx::each_side(args, sx::kv_out); }

sx_status sx_pages_import(const sx_pages_args *args) { return sx::each_side(args, sx::kv_in); }
