#include "model/attention.h"

#include <math.h>
#include <string.h>

#include "model/scratch.h"

namespace sx {
namespace {

uint32_t least(uint32_t a, uint32_t b) { return a < b ? a : b; }

// The earliest token that a query at `position` sees.
uint32_t horizon(uint32_t window, uint32_t position) {
    return window == 0 || position < window ? 0 : position - window + 1;
}

size_t partial_floats(const sx_model *m, const QueryTile &tile) {
    const size_t rows = static_cast<size_t>(tile.n_tokens) * m->group();
    return (tile.last_piece - tile.first_piece) * m->shape.n_kv_heads * rows * (m->shape.head_dim + 2);
}

// Results of one piece, kept until the merge.
struct Partial {
    float *out, *peak, *total;
};

Partial partial_at(const sx_model *m, const QueryTile &tile, uint32_t piece, uint32_t head) {
    const size_t rows = static_cast<size_t>(tile.n_tokens) * m->group(), dim = m->shape.head_dim;
    const size_t index = static_cast<size_t>(piece - tile.first_piece) * m->shape.n_kv_heads + head;
    float *at = m->partials.as<float>() + tile.partial + index * rows * (dim + 2);
    return {at, at + rows * dim, at + rows * (dim + 1)};
}

uint32_t make_tiles(sx_model *m, const sx_forward_args &args, const AttentionPlan &plan) {
    uint32_t n = 0, row = 0;
    for (uint32_t s = 0; s < args.n_seqs; s++) {
        const sx_seq &seq = args.seqs[s];
        for (uint32_t t = 0; t < seq.n_tokens; t += m->tile_tokens()) {
            const uint32_t count = least(m->tile_tokens(), seq.n_tokens - t), position = seq.position + t;
            const uint32_t first = horizon(plan.window, position) / kAttnBlock;
            const uint32_t last = (position + count - 1) / kAttnBlock + 1;
            m->tiles[plan.kind][n++] = {s, row + t, count, first, last, false, 0};
        }
        row += seq.n_tokens;
    }
    return n;
}

// Splits over context only where there are few items a thread: a split costs a merge.
void choose_splits(sx_model *m, AttentionPlan *plan) {
    if (static_cast<uint64_t>(plan->n_tiles) * m->shape.n_kv_heads >= 4ull * m->context->team->size()) return;
    size_t used = 0;
    for (uint32_t i = 0; i < plan->n_tiles; i++) {
        QueryTile &tile = m->tiles[plan->kind][i];
        const size_t need = partial_floats(m, tile);
        if (tile.last_piece - tile.first_piece < 2 || used + need > kPartialFloats) continue;
        tile.split = plan->any_split = true;
        tile.partial = used;
        used += need;
    }
}

void gather_queries(const sx_model *m, const QueryTile &tile, uint32_t head, ThreadScratch *s) {
    const uint32_t dim = m->shape.head_dim, group = m->group();
    for (uint32_t i = 0; i < tile.n_tokens; i++) {
        const float *q =
            m->qkv.as<float>() + static_cast<size_t>(tile.first_row + i) * m->qkv_cols() + head * group * dim;
        memcpy(s->q + static_cast<size_t>(i) * group * dim, q, static_cast<size_t>(group) * dim * sizeof *q);
        for (uint32_t g = 0; m->slopes && g < group; g++) s->slope[i * group + g] = m->slopes[head * group + g];
    }
}

// Valid tokens of each query row in a piece; returns how many tokens of the piece are needed at all.
uint32_t set_ranges(const sx_model *m, const QueryTile &tile, uint32_t piece, uint32_t window, ThreadScratch *s) {
    const uint32_t base = piece * kAttnBlock, group = m->group();
    uint32_t needed = 0;
    for (uint32_t r = 0; r < tile.n_tokens * group; r++) {
        const uint32_t position = m->row_position[tile.first_row + r / group], low = horizon(window, position);
        const uint32_t first = low > base ? least(low - base, kAttnBlock) : 0;
        const uint32_t last = position + 1 > base ? least(position + 1 - base, kAttnBlock) : 0;
        s->first[r] = static_cast<uint16_t>(first);
        s->last[r] = static_cast<uint16_t>(last);
        s->distance[r] = static_cast<float>(base) - static_cast<float>(position);
        if (first < last && last > needed) needed = last;
    }
    return needed;
}

// A piece of context of a tile, for one kv head.
struct Where {
    const QueryTile *tile;
    uint32_t piece, head;
};

struct Groups {
    const uint8_t *k[kAttnBlock / kKvGroup], *v[kAttnBlock / kKvGroup];
};

// Where the keys lie that will be read next, to be fetched early; returns how many groups. Gathered groups are skipped.
uint32_t next_groups(const sx_model *m, const sx_forward_args &args, const Where &next, uint32_t layer,
                     Groups *groups) {
    if (!next.tile || m->shape.kv_block_size < kKvGroup) return 0;
    const uint32_t end = m->row_position[next.tile->first_row + next.tile->n_tokens - 1] + 1,
                   base = next.piece * kAttnBlock;
    const uint32_t n = least(kAttnBlock, end - base);
    const int32_t *table = args.block_table + args.seqs[next.tile->seq].first_block;
    m->kv.groups(layer, next.head, table, base, n, nullptr, groups->k, groups->v);
    return (n + kKvGroup - 1) / kKvGroup;
}

void attend_piece(const sx_model *m, const sx_forward_args &args, const Where &here, const Where &next, uint32_t layer,
                  ThreadScratch *s, const Partial &result) {
    Groups groups, ahead;
    const int32_t *table = args.block_table + args.seqs[here.tile->seq].first_block;
    const uint32_t needed = set_ranges(m, *here.tile, here.piece, m->windows[layer], s);
    m->kv.groups(layer, here.head, table, here.piece * kAttnBlock, needed, s->gather, groups.k, groups.v);
    AttendArgs a;
    a.q = s->q;
    a.n_rows = here.tile->n_tokens * m->group();
    a.head_dim = m->shape.head_dim;
    a.kv_type = m->shape.kv_type;
    a.k = groups.k;
    a.v = groups.v;
    a.next_k = ahead.k;
    a.n_next = next_groups(m, args, next, layer, &ahead);
    a.first = s->first;
    a.last = s->last;
    a.scale = m->shape.attention_scale;
    a.softcap = m->shape.attention_softcap;
    a.slope = m->slopes ? s->slope : nullptr;
    a.distance = s->distance;
    a.scratch = s->scores;
    a.out = result.out;
    a.peak = result.peak;
    a.total = result.total;
    m->context->ops->attend(&a);
}

void start_merge(uint32_t rows, uint32_t dim, ThreadScratch *s) {
    memset(s->merged, 0, static_cast<size_t>(rows) * dim * sizeof(float));
    memset(s->merged_total, 0, rows * sizeof(float));
    for (uint32_t r = 0; r < rows; r++) s->merged_peak[r] = -INFINITY;
}

void merge_piece(const sx_model *m, uint32_t rows, const Partial &piece, ThreadScratch *s) {
    const size_t dim = m->shape.head_dim;
    for (uint32_t r = 0; r < rows; r++)
        m->context->ops->merge(s->merged + r * dim, s->merged_peak + r, s->merged_total + r, piece.out + r * dim,
                               piece.peak[r], piece.total[r], static_cast<uint32_t>(dim));
}

void write_result(sx_model *m, const QueryTile &tile, uint32_t head, const ThreadScratch &s) {
    const uint32_t group = m->group(), dim = m->shape.head_dim;
    for (uint32_t r = 0; r < tile.n_tokens * group; r++) {
        float *out = m->attended.as<float>() + static_cast<size_t>(tile.first_row + r / group) * m->q_cols() +
                     (head * group + r % group) * dim;
        for (uint32_t d = 0; d < dim; d++) out[d] = s.merged[static_cast<size_t>(r) * dim + d] / s.merged_total[r];
    }
}

// Item `here` on this thread; `next` is the item that it is likely to run after it.
void run_item(sx_model *m, const sx_forward_args &args, const Where &here, const Where &next, uint32_t layer,
              ThreadScratch *s) {
    const QueryTile &tile = *here.tile;
    gather_queries(m, tile, here.head, s);
    if (tile.split) {
        attend_piece(m, args, here, next, layer, s, partial_at(m, tile, here.piece, here.head));
        return;
    }
    const uint32_t rows = tile.n_tokens * m->group();
    start_merge(rows, m->shape.head_dim, s);
    for (uint32_t piece = tile.first_piece; piece < tile.last_piece; piece++) {
        const Where now{&tile, piece, here.head}, then{&tile, piece + 1, here.head};
        const Partial result{s->out, s->peak, s->total};
        attend_piece(m, args, now, piece + 1 < tile.last_piece ? then : next, layer, s, result);
        merge_piece(m, rows, result, s);
    }
    write_result(m, tile, here.head, *s);
}

}  // namespace

AttentionPlan plan_attention(sx_model *m, const sx_forward_args &args, uint32_t kind) {
    AttentionPlan plan;
    plan.window = m->window[kind];
    plan.kind = kind;
    plan.n_tiles = make_tiles(m, args, plan);
    choose_splits(m, &plan);
    AttentionItem *items = m->items[kind].as<AttentionItem>();
    for (uint32_t i = 0; i < plan.n_tiles; i++) {
        const QueryTile &tile = m->tiles[kind][i];
        const uint32_t last = tile.split ? tile.last_piece : tile.first_piece + 1;
        for (uint32_t piece = tile.first_piece; piece < last; piece++) items[plan.n_items++] = {i, piece};
    }
    return plan;
}

void attend_items(sx_model *m, const sx_forward_args &args, const AttentionPlan &plan, uint32_t layer,
                  std::atomic<uint32_t> *next, uint32_t thread) {
    const Team &team = *m->context->team;
    const uint32_t nodes = team.nodes().count, own = team.node_of(thread), threads = team.size() / nodes;
    const AttentionItem *items = m->items[plan.kind].as<AttentionItem>();
    const QueryTile *tiles = m->tiles[plan.kind].get();
    for (uint32_t step = 0; step < nodes; step++) {
        const uint32_t node = (own + step) % nodes;
        const Span heads = share_of(m->shape.n_kv_heads, node, nodes);
        const uint32_t n = heads.last - heads.first, all = plan.n_items * n;
        const auto where = [&](uint32_t i) {
            return i < all ? Where{&tiles[items[i / n].tile], items[i / n].piece, heads.first + i % n}
                           : Where{nullptr, 0, 0};
        };
        for (uint32_t i; (i = next[node].fetch_add(1, std::memory_order_relaxed)) < all;)
            run_item(m, args, where(i), where(i + threads), layer, &m->scratch[thread]);
    }
}

void merge_pieces(sx_model *m, const AttentionPlan &plan, uint32_t thread) {
    const uint32_t heads = m->shape.n_kv_heads;
    const Span mine = share_of(plan.n_tiles * heads, thread, m->context->team->size());
    ThreadScratch *s = &m->scratch[thread];
    for (uint32_t i = mine.first; i < mine.last; i++) {
        const QueryTile &tile = m->tiles[plan.kind][i / heads];
        if (!tile.split) continue;
        const uint32_t rows = tile.n_tokens * m->group();
        start_merge(rows, m->shape.head_dim, s);
        for (uint32_t piece = tile.first_piece; piece < tile.last_piece; piece++)
            merge_piece(m, rows, partial_at(m, tile, piece, i % heads), s);
        write_result(m, tile, i % heads, *s);
    }
}

}  // namespace sx
