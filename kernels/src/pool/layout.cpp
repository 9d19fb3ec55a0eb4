#include "pool/layout.h"

#include <cstring>

#include "core/crc.h"
#include "core/status.h"

namespace sx {
namespace {

constexpr uint32_t kMaxTickets = 65535, kMaxChunks = 1u << 28, kMaxTokens = 1u << 26;
constexpr uint64_t kMaxChunkBytes = 1ull << 32, kMaxFileBytes = 1ull << 46;

uint32_t wire_bytes(int32_t type) {
    if (type == SX_F32) return 4;
    return type == SX_F16 || type == SX_BF16 ? 2 : 0;
}

sx_status check_range(const char *name, uint32_t value, uint32_t low, uint32_t high) {
    if (value >= low && value <= high) return SX_OK;
    return fail(SX_EINVAL, "pool: %s is %u, expected %u to %u", name, value, low, high);
}

struct Range {
    const char *name;
    uint32_t value, low, high;
};

sx_status check_args(const sx_pool_create_args &args) {
    const sx_pool_geometry &g = args.geometry;
    const Range ranges[] = {
        {"n_chunks", args.n_chunks, 1, kMaxChunks},     {"n_tickets", args.n_tickets, 1, kMaxTickets},
        {"max_tokens", args.max_tokens, 1, kMaxTokens}, {"n_layers", g.n_layers, 1, 4096},
        {"n_kv_heads", g.n_kv_heads, 1, 4096},          {"head_size", g.head_size, 1, 4096},
        {"tp_size", g.tp_size, 1, SX_POOL_MAX_TP}};
    for (const Range &r : ranges) {
        const sx_status status = check_range(r.name, r.value, r.low, r.high);
        if (status != SX_OK) return status;
    }
    if (wire_bytes(g.wire_type) != 0) return SX_OK;
    return fail(SX_EINVAL, "pool: wire_type is %d, expected SX_F32, SX_F16 or SX_BF16", g.wire_type);
}

uint64_t round_up(uint64_t value, uint64_t step) { return (value + step - 1) / step * step; }

sx_pool_create_args args_of(const sx_pool_header &h) {
    sx_pool_create_args args{};
    args.n_chunks = h.n_chunks;
    args.n_tickets = h.n_tickets;
    args.max_tokens = h.max_tokens;
    sx_pool_geometry &g = args.geometry;
    g.size = sizeof g;
    g.n_layers = h.n_layers;
    g.n_kv_heads = h.n_kv_heads;
    g.head_size = h.head_size;
    g.wire_type = h.wire_type;
    std::memcpy(g.model_id, h.model_id, sizeof g.model_id);
    g.block_size = h.block_size;
    g.tp_size = h.tp_size;
    g.kv_type = h.kv_type;
    return args;
}

// Format 1 leaves no freedom: sizes and offsets follow from counts and geometry, so they are compared, not used.
sx_status read_format_1(const sx_pool_header &h, Layout &out) {
    if (h.header_bytes != sizeof h || h.crc != crc32_zlib(0, &h, offsetof(sx_pool_header, crc)))
        return fail(SX_ECORRUPT, "pool: the header's checksum is wrong");
    if (plan_layout(args_of(h), out) != SX_OK) return fail(SX_ECORRUPT, "pool: the header's numbers are out of range");
    const bool same = h.chunk_tokens == SX_POOL_CHUNK_TOKENS && h.ticket_stride == out.ticket_stride &&
                      h.record_stride == SX_POOL_RECORD_BYTES && h.tickets_offset == SX_POOL_TICKETS_OFFSET &&
                      h.records_offset == out.records_offset && h.chunks_offset == out.chunks_offset &&
                      h.chunk_stride == out.chunk_stride && h.file_bytes == out.file_bytes;
    return same ? SX_OK : fail(SX_ECORRUPT, "pool: the header's offsets do not follow from its counts");
}

// One entry for each format we read: the one we write and, once there is one, the one before it.
struct Reader {
    uint32_t format;
    sx_status (*read)(const sx_pool_header &, Layout &);
};
constexpr Reader kReaders[] = {{SX_POOL_FORMAT, read_format_1}};

}  // namespace

sx_status plan_layout(const sx_pool_create_args &args, Layout &out) {
    const sx_status status = check_args(args);
    if (status != SX_OK) return status;
    const sx_pool_geometry &g = args.geometry;
    out = Layout{};
    out.geometry = g;
    out.n_chunks = args.n_chunks;
    out.n_tickets = args.n_tickets;
    out.max_tokens = args.max_tokens;
    out.max_chunks = chunks_for(args.max_tokens);
    out.format = SX_POOL_FORMAT;
    out.ticket_stride = static_cast<uint32_t>(round_up(SX_POOL_TICKET_HEAD_BYTES + 4ull * out.max_chunks, 64));
    out.token_bytes = g.n_kv_heads * g.head_size * wire_bytes(g.wire_type);
    out.chunk_bytes = 2ull * g.n_layers * SX_POOL_CHUNK_TOKENS * out.token_bytes;
    out.chunk_stride = round_up(out.chunk_bytes, SX_POOL_PAGE_BYTES);
    if (out.chunk_bytes > kMaxChunkBytes)
        return fail(SX_EINVAL, "pool: a chunk would have %llu bytes, expected at most %llu",
                    static_cast<unsigned long long>(out.chunk_bytes), static_cast<unsigned long long>(kMaxChunkBytes));
    out.records_offset = SX_POOL_TICKETS_OFFSET + uint64_t{args.n_tickets} * out.ticket_stride;
    const uint64_t records_end = out.records_offset + uint64_t{args.n_chunks} * SX_POOL_RECORD_BYTES;
    out.chunks_offset = round_up(records_end, SX_POOL_PAGE_BYTES);
    out.file_bytes = out.chunks_offset + args.n_chunks * out.chunk_stride;
    if (out.file_bytes > kMaxFileBytes)
        return fail(SX_EINVAL, "pool: the file would have %llu bytes, expected at most %llu",
                    static_cast<unsigned long long>(out.file_bytes), static_cast<unsigned long long>(kMaxFileBytes));
    return SX_OK;
}

void write_header(const Layout &layout, sx_pool_header *header) {
    sx_pool_header h{};
    std::memcpy(h.magic, SX_POOL_MAGIC, sizeof h.magic);
    h.format = layout.format;
    h.header_bytes = sizeof h;
    const sx_pool_geometry &g = layout.geometry;
    h.n_layers = g.n_layers;
    h.n_kv_heads = g.n_kv_heads;
    h.head_size = g.head_size;
    h.wire_type = g.wire_type;
    std::memcpy(h.model_id, g.model_id, sizeof h.model_id);
    h.block_size = g.block_size;
    h.tp_size = g.tp_size;
    h.kv_type = g.kv_type;
    h.chunk_tokens = SX_POOL_CHUNK_TOKENS;
    h.n_chunks = layout.n_chunks;
    h.n_tickets = layout.n_tickets;
    h.max_tokens = layout.max_tokens;
    h.ticket_stride = layout.ticket_stride;
    h.record_stride = SX_POOL_RECORD_BYTES;
    h.tickets_offset = SX_POOL_TICKETS_OFFSET;
    h.records_offset = layout.records_offset;
    h.chunks_offset = layout.chunks_offset;
    h.chunk_stride = layout.chunk_stride;
    h.file_bytes = layout.file_bytes;
    h.crc = crc32_zlib(0, &h, offsetof(sx_pool_header, crc));
    std::memcpy(header, &h, offsetof(sx_pool_header, generation));
}

sx_status parse_header(const sx_pool_header &header, uint64_t mapped, Layout &out) {
    if (std::memcmp(header.magic, SX_POOL_MAGIC, sizeof header.magic) != 0)
        return fail(SX_ECORRUPT, "pool: not a pool file (no SXPOOL1 at its start)");
    for (const Reader &reader : kReaders) {
        if (reader.format != header.format) continue;
        const sx_status status = reader.read(header, out);
        if (status != SX_OK) return status;
        if (out.file_bytes <= mapped) return SX_OK;
        return fail(SX_ECORRUPT, "pool: the file has %llu bytes, its header asks for %llu",
                    static_cast<unsigned long long>(mapped), static_cast<unsigned long long>(out.file_bytes));
    }
    return fail(SX_EMISMATCH, "pool: format %u, expected %u", header.format, SX_POOL_FORMAT);
}

sx_status match_geometry(const sx_pool_geometry &found, const sx_pool_geometry &expected) {
    const Range fields[] = {{"n_layers", found.n_layers, expected.n_layers, 0},
                            {"n_kv_heads", found.n_kv_heads, expected.n_kv_heads, 0},
                            {"head_size", found.head_size, expected.head_size, 0}};
    for (const Range &f : fields) {
        if (f.value != f.low) return fail(SX_EMISMATCH, "pool: %s is %u, expected %u", f.name, f.value, f.low);
    }
    if (std::memcmp(found.model_id, expected.model_id, sizeof found.model_id) != 0)
        return fail(SX_EMISMATCH, "pool: model_id differs: another architecture, rope parameters or vocabulary");
    return SX_OK;
}

Slice rank_slice(const Layout &layout, uint32_t rank) {
    const sx_pool_geometry &g = layout.geometry;
    const uint32_t first = rank * g.n_kv_heads / g.tp_size, end = (rank + 1) * g.n_kv_heads / g.tp_size;
    const uint32_t head_bytes = layout.token_bytes / g.n_kv_heads;
    return {first * head_bytes, (end - first) * head_bytes};
}

uint32_t slice_crc(const Layout &layout, const uint8_t *chunk, uint32_t rank, uint32_t tokens) {
    const Slice slice = rank_slice(layout, rank);
    const uint32_t planes = 2 * layout.geometry.n_layers;
    const uint64_t row = layout.token_bytes;
    uint32_t crc = 0;
    for (uint32_t plane = 0; plane < planes; ++plane) {
        const uint8_t *first = chunk + plane * SX_POOL_CHUNK_TOKENS * row + slice.offset;
        crc = crc32c_rows(crc, first, slice.bytes, row, tokens);
    }
    return crc;
}

}  // namespace sx
