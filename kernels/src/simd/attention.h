// One piece of attention: query rows against up to 256 tokens of context. The query rows of a kv head (the heads of
// its group times the tokens of a prefill tile) go together, so each key and value is loaded once for all of them.
#pragma once

#include "simd/float_tile.h"

namespace sx {
namespace {

struct Range {
    uint32_t first, last;  // groups of 16 tokens
};

// What some rows need together: the groups any of them may see.
Range groups_of(const AttendArgs &args, uint32_t row, uint32_t n) {
    Range r{kAttnBlock / kKvGroup, 0};
    for (uint32_t i = row; i < row + n; i++) {
        if (args.first[i] >= args.last[i]) continue;
        const uint32_t lo = args.first[i] / kKvGroup, hi = (args.last[i] + kKvGroup - 1u) / kKvGroup;
        r.first = lo < r.first ? lo : r.first;
        r.last = hi > r.last ? hi : r.last;
    }
    return r;
}

// Raw products q.k of N rows with the tokens of G groups, into scratch; one row alone takes several groups at once, to
// have enough products in flight. Meanwhile the keys of the groups that follow and these groups' values are fetched:
// groups are too short for the hardware to see where they go on.
template <class Load, int N, int G>
void score_groups(const AttendArgs &args, uint32_t row, uint32_t group, uint32_t last) {
    constexpr size_t kStep = kKvGroup * Load::kBytes;
    constexpr uint32_t kUnroll = kStep < 64 ? 64 / kStep : 1;  // a cache line at a time; head_dim is a multiple of 16
    Tile<N> sum[G];
    for (int j = 0; j < G; j++) sum[j].clear();
    const uint8_t *const *k = args.k + group, *const *v = args.v + group;
    const uint32_t far = G > 1 ? G : 2, ahead = group + far + G <= last ? far : 0;
    const float *q = args.q + static_cast<size_t>(row) * args.head_dim;
    for (uint32_t d = 0; d < args.head_dim; d += kUnroll) {
        for (int j = 0; row == 0 && j < G; j++) {
            vprefetch(k[ahead + static_cast<uint32_t>(j)] + d * kStep);
            vprefetch(v[j] + d * kStep);
        }
#pragma GCC unroll 4
        for (uint32_t i = 0; i < kUnroll; i++)
#pragma GCC unroll 4
            for (int j = 0; j < G; j++) sum[j].template step<Load>(k[j] + (d + i) * kStep, q + d + i, args.head_dim);
    }
    float *out = args.scratch + static_cast<size_t>(row) * kAttnBlock + group * kKvGroup;
    for (int j = 0; j < G; j++, out += kKvGroup)
#pragma GCC unroll 8
        for (int i = 0; i < N; i++)
#pragma GCC unroll 4
            for (int p = 0; p < kParts; p++) vstore(out + i * kAttnBlock + p * kLanes, sum[j].v[i][p]);
}

inline const float *scales_of(const AttendArgs &args, const uint8_t *group) {
    return reinterpret_cast<const float *>(group + static_cast<size_t>(args.head_dim) * kKvGroup);
}

// c * tanh(x / c) as c - 2c / (exp(2x / c) + 1).
inline VF capped(VF x, float c) { return vset(c) - vset(2 * c) / (vexp(x * (2 / c)) + vset(1)); }

inline VF scaled_score(const AttendArgs &args, uint32_t row, uint32_t token, VF raw) {
    if (args.kv_type == SX_Q8_0) raw = raw * vload(scales_of(args, args.k[token / kKvGroup]) + token % kKvGroup);
    raw = raw * args.scale;
    if (args.softcap != 0) raw = capped(raw, args.softcap);
    if (!args.slope) return raw;
    const VF ahead = __builtin_convertvector(viota(static_cast<int32_t>(token)), VF) + vset(args.distance[row]);
    return raw + ahead * args.slope[row];
}

// Whether all tokens of a vector are in the row's range; then no mask is needed.
inline bool inside(const AttendArgs &args, uint32_t row, uint32_t token) {
    return token >= args.first[row] && token + kLanes <= args.last[row];
}

inline VI valid(const AttendArgs &args, uint32_t row, uint32_t token) {
    const VI t = viota(static_cast<int32_t>(token));
    return (t >= static_cast<int32_t>(args.first[row])) & (t < static_cast<int32_t>(args.last[row]));
}

// Scores to probabilities of one row; tokens outside its range become 0.
void soften(const AttendArgs &args, uint32_t row, Range range) {
    const VF lowest = vset(-__builtin_inff());
    float *p = args.scratch + static_cast<size_t>(row) * kAttnBlock;
    VF peaks = lowest, totals = vset(0);
    for (uint32_t t = range.first * kKvGroup; t < range.last * kKvGroup; t += kLanes) {
        VF s = scaled_score(args, row, t, vload(p + t));
        if (!inside(args, row, t)) s = valid(args, row, t) ? s : lowest;
        vstore(p + t, s);
        peaks = vmax(peaks, s);
    }
    const float peak = hmax(peaks);
    for (uint32_t t = range.first * kKvGroup; t < range.last * kKvGroup; t += kLanes) {
        VF e = vexp(vload(p + t) - vset(peak));
        if (!inside(args, row, t)) e = valid(args, row, t) ? e : vset(0);
        totals += e;
        if (args.kv_type == SX_Q8_0) e = e * vload(scales_of(args, args.v[t / kKvGroup]) + t % kKvGroup);
        vstore(p + t, e);
    }
    args.peak[row] = peak;
    args.total[row] = hsum(totals);
}

// Fetches `bytes` of the next piece's keys: as far into them as this piece's values are read.
inline void fetch_next(const AttendArgs &args, uint32_t group, size_t at, size_t bytes) {
    for (size_t b = 0; group < args.n_next && b < bytes; b += 64) vprefetch(args.next_k[group] + at + b);
}

// Sum of p * v of N rows over D tiles of 16 head dimensions, token by token in order.
template <class Load, int N, int D>
void weigh(const AttendArgs &args, uint32_t row, uint32_t dim, uint32_t first, uint32_t last) {
    Tile<N> sum[D];
    for (int d = 0; d < D; d++) sum[d].clear();
    const float *p = args.scratch + static_cast<size_t>(row) * kAttnBlock;
    constexpr size_t kTile = static_cast<size_t>(kKvGroup) * 16 * Load::kBytes;
    for (uint32_t t = first; t < last; t++) {
        const uint8_t *v = args.v[t / kKvGroup] + (dim / 16) * kTile + (t % kKvGroup) * 16 * Load::kBytes;
        constexpr size_t kStep = 16 * D * Load::kBytes;
        if (row == 0) fetch_next(args, t / kKvGroup, (dim / 16) * kTile + (t % kKvGroup) * kStep, kStep);
#pragma GCC unroll 4
        for (int d = 0; d < D; d++) sum[d].template step<Load>(v + d * kTile, p + t, kAttnBlock);
    }
    float *out = args.out + static_cast<size_t>(row) * args.head_dim + dim;
    for (int d = 0; d < D; d++)
        for (int i = 0; i < N; i++)
            for (int part = 0; part < kParts; part++)
                vstore(out + static_cast<size_t>(i) * args.head_dim + d * 16 + part * kLanes, sum[d].v[i][part]);
}

template <class Load, int N>
void attend_rows(const AttendArgs &args, uint32_t row) {
    const Range range = groups_of(args, row, N);
    uint32_t last = 0, first = kAttnBlock;
    constexpr int kGroups = N * kParts <= 2 ? 4 : 1;
    uint32_t g = range.first;
    for (; g + kGroups <= range.last; g += kGroups) score_groups<Load, N, kGroups>(args, row, g, range.last);
    for (; g < range.last; g++) score_groups<Load, N, 1>(args, row, g, range.last);
    for (uint32_t i = row; i < row + N; i++) {
        soften(args, i, range);
        if (args.first[i] >= args.last[i]) continue;
        first = args.first[i] < first ? args.first[i] : first;
        last = args.last[i] > last ? args.last[i] : last;
    }
    constexpr int kWide = N * kParts <= 4 ? 4 : N * kParts <= 8 ? 2 : 1;
    uint32_t dim = 0;
    for (; dim + 16 * kWide <= args.head_dim; dim += 16 * kWide) weigh<Load, N, kWide>(args, row, dim, first, last);
    for (; dim < args.head_dim; dim += 16) weigh<Load, N, 1>(args, row, dim, first, last);
}

// The rows left over when kMaxRows at a time are done.
template <class Load, int N>
void attend_rest(const AttendArgs &args, uint32_t row) {
    if constexpr (N > 0) {
        if (args.n_rows - row == N) return attend_rows<Load, N>(args, row);
        attend_rest<Load, N - 1>(args, row);
    }
}

template <class Load>
void attend_all(const AttendArgs &args) {
    uint32_t row = 0;
    for (; row + kMaxRows <= args.n_rows; row += kMaxRows) attend_rows<Load, kMaxRows>(args, row);
    attend_rest<Load, kMaxRows - 1>(args, row);
}

void attend(const AttendArgs *args) {
    switch (args->kv_type) {
        case SX_F32: attend_all<LoadF32>(*args); break;
        case SX_F16: attend_all<LoadF16>(*args); break;
        case SX_BF16: attend_all<LoadBf16>(*args); break;
        default: attend_all<LoadI8>(*args); break;
    }
}

}  // namespace
}  // namespace sx
