// Where everything lies in a pool file: computed from the arguments by the owner, read and checked by everybody else.
#pragma once

#include <cstdint>

#include "syshax/pool.h"
#include "syshax/pool_format.h"

namespace sx {

static_assert(sizeof(sx_pool_header) == 192 && sizeof(sx_pool_ticket) == SX_POOL_TICKET_HEAD_BYTES);
static_assert(sizeof(sx_pool_record) == SX_POOL_RECORD_BYTES && sizeof(sx_unit_stats) == 120);

struct Layout {
    sx_pool_geometry geometry;
    uint32_t n_chunks, n_tickets, max_tokens, max_chunks;  // max_chunks: of one ticket
    uint32_t format, ticket_stride, token_bytes;           // token_bytes: all heads of one token, K or V, one layer
    uint64_t records_offset, chunks_offset, chunk_bytes, chunk_stride, file_bytes;
};

// The heads of one tensor-parallel rank within the `token_bytes` of a token.
struct Slice {
    uint32_t offset, bytes;
};

// SX_EINVAL names the argument that is out of range.
sx_status plan_layout(const sx_pool_create_args &args, Layout &out);
// Everything but the generation.
void write_header(const Layout &layout, sx_pool_header *header);
// Reads a header of any format in the table of readers; trusts no field. `mapped`: bytes of the file.
sx_status parse_header(const sx_pool_header &header, uint64_t mapped, Layout &out);
// SX_EMISMATCH names the first field that must match and does not.
sx_status match_geometry(const sx_pool_geometry &found, const sx_pool_geometry &expected);

Slice rank_slice(const Layout &layout, uint32_t rank);
// crc32c over the slice of `rank` in the first `tokens` tokens of a chunk, in layout order.
uint32_t slice_crc(const Layout &layout, const uint8_t *chunk, uint32_t rank, uint32_t tokens);

inline uint32_t chunks_for(uint32_t tokens) {
    return tokens / SX_POOL_CHUNK_TOKENS + (tokens % SX_POOL_CHUNK_TOKENS != 0);
}
// Tokens of chunk `index` when the ticket has `total`.
inline uint32_t tokens_in(uint32_t total, uint32_t index) {
    const uint32_t first = index * SX_POOL_CHUNK_TOKENS;
    if (total <= first) return 0;
    return total - first < SX_POOL_CHUNK_TOKENS ? total - first : SX_POOL_CHUNK_TOKENS;
}

}  // namespace sx
