// AVX-512 with VNNI: one vector holds 4 columns of 16 rows; vpdpbusd multiplies it by 4 broadcast activations.
#include "simd/vec_avx512.h"

#include "simd/attention.h"

namespace sx {
namespace {

inline __m512i activations4(const int8_t *q) {
    int32_t four;
    __builtin_memcpy(&four, q, 4);
    return _mm512_set1_epi32(four);
}

// The levels of a group of 32 columns in eight vectors of 4 columns x 16 rows.
inline void load_levels(Nibbles, const uint8_t *p, __m512i *w) {
    const __m512i low = _mm512_set1_epi8(15);
#pragma GCC unroll 4
    for (int v = 0; v < 4; v++) {
        const __m512i two = _mm512_loadu_si512(p + 64 * v);
        w[2 * v] = _mm512_and_si512(two, low);
        w[2 * v + 1] = _mm512_and_si512(_mm512_srli_epi16(two, 4), low);
    }
}

inline void load_levels(Bytes, const uint8_t *p, __m512i *w) {
#pragma GCC unroll 8
    for (int v = 0; v < 8; v++) w[v] = _mm512_loadu_si512(p + 64 * v);
}

inline __m512 load_factors(HalfScales, const uint8_t *super, uint32_t g) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(super + HalfScales::at(g, 0))));
}

inline __m512 load_factors(HalfScalesAndFloors, const uint8_t *super, uint32_t g) {
    return load_factors(HalfScales(), super, g);
}
inline __m512 load_floors(HalfScalesAndFloors, const uint8_t *super, uint32_t g) {
    return load_factors(HalfScales(), super + HalfScalesAndFloors::kFloorsAt, g);
}

inline __m512 load_steps(const uint8_t *steps) {
    return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(steps))));
}
inline __m512 load_factors(ScaledScales, const uint8_t *super, uint32_t g) {
    return _mm512_mul_ps(load_factors(HalfScales(), super, 0), load_steps(super + ScaledScales::step_at(g)));
}
inline __m512 load_floors(ScaledScales, const uint8_t *super, uint32_t g) {
    const __m512 step = load_steps(super + ScaledScales::step_at(g) + kTileRows);
    return -_mm512_mul_ps(load_factors(HalfScales(), super + ScaledScales::kFloorsAt, 0), step);
}

// What undoes the offset of the levels: `sum` is -8 times the sum of the activations.
template <class F>
inline __m512i start_of(int32_t sum) {
    if (F::kOffset == 0) return _mm512_setzero_si512();
    constexpr int kShift = F::kOffset == 128 ? 4 : 0;
    static_assert(F::kOffset == 0 || F::kOffset == 8 << kShift, "an offset that the sums of activations undo");
    return _mm512_slli_epi32(_mm512_set1_epi32(sum), kShift);
}

// Where some activation rows lie for the product.
struct Rows {
    const int8_t *q;
    const float *scale;
    const int32_t *sum;
    const float *total;
    size_t ldq, ldg;
};

// The lines of weights to fetch ahead (into L2) while row i of N of a group is computed: spread out, since a burst of
// misses would hold up the loads of activations behind it. One row waits for memory only and wants a short distance,
// many rows leave the hardware's own prefetcher behind. Distances measured on Zen 4.
template <class F, int N>
inline void fetch_ahead(const uint8_t *super, uint32_t g, int i) {
    // Two rows of 4-bit levels take as long as a fast memory does.
    constexpr uint32_t kAheadOfTwo = F::Levels::kBytes == Nibbles::kBytes ? 6912 : 1152;
    constexpr uint32_t kAhead = N == 1 ? 1152 : N == 2 ? kAheadOfTwo : 9216;
    constexpr int kLines = kSuperBytes<F> / 64, kGroups = F::Scales::kGroups;
    const int n = static_cast<int>(g), base = (kLines * n + kGroups - 1) / kGroups;
    const int count = (kLines * (n + 1) + kGroups - 1) / kGroups - base;
    for (int line = i * count / N; line < (i + 1) * count / N; line++) vprefetch(super + kAhead + 64 * (base + line));
}

// One group of one tile for N rows: an exact integer dot product, then one float multiply-add.
template <class F, int N>
inline void mul_group(const uint8_t *super, uint32_t g, const Rows &rows, uint32_t group, __m512 *acc) {
    using Scales = typename F::Scales;
    const __m512 scale = load_factors(Scales(), super, g);
    __m512 floor = _mm512_setzero_ps();
    if constexpr (Scales::kFloors) floor = load_floors(Scales(), super, g);
    __m512i w[8];
    load_levels(typename F::Levels(), super + levels_at<F>(g), w);
#pragma GCC unroll 8
    for (int i = 0; i < N; i++) {
        const int8_t *q = rows.q + i * rows.ldq + group * kGroup;
        const size_t at = i * rows.ldg + group;
        fetch_ahead<F, N>(super, g, i);
        __m512i dot = start_of<F>(rows.sum[at]);
        __m512i other = _mm512_setzero_si512();  // two chains hide the latency; integers, so the sum is the same
#pragma GCC unroll 4
        for (int v = 0; v < 8; v += 2) {
            dot = _mm512_dpbusd_epi32(dot, w[v], activations4(q + 4 * v));
            other = _mm512_dpbusd_epi32(other, w[v + 1], activations4(q + 4 * v + 4));
        }
        dot = _mm512_add_epi32(dot, other);
        acc[i] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot), _mm512_mul_ps(scale, _mm512_set1_ps(rows.scale[at])), acc[i]);
        if constexpr (Scales::kFloors) acc[i] = _mm512_fmadd_ps(floor, _mm512_set1_ps(rows.total[at]), acc[i]);
    }
}

// R tiles of 16 weight rows for N activation rows.
template <class F, int N, int R>
void mul_block(const uint8_t *w, size_t stride, uint32_t cols, const Rows &rows, float *out, size_t ld_out) {
    __m512 acc[R][N];
    for (int r = 0; r < R; r++)
        for (int i = 0; i < N; i++) acc[r][i] = _mm512_setzero_ps();
    constexpr uint32_t kGroups = F::Scales::kGroups;
    for (uint32_t s = 0; s < cols / kSuperColumns<F>; s++) {
#pragma GCC unroll 2
        for (int r = 0; r < R; r++) {
            const uint8_t *super = w + r * stride + static_cast<size_t>(s) * kSuperBytes<F>;
#pragma GCC unroll 2
            for (uint32_t g = 0; g < kGroups; g++) mul_group<F, N>(super, g, rows, s * kGroups + g, acc[r]);
        }
    }
    for (int r = 0; r < R; r++)
        for (int i = 0; i < N; i++) _mm512_storeu_ps(out + i * ld_out + r * kTileRows, acc[r][i]);
}

template <class F, int N, int R>
void mul_rest(const MulArgs &args, const uint8_t *w, const Rows &rows, uint32_t n, float *out) {
    if constexpr (N > 0) {
        if (n == N) return mul_block<F, N, R>(w, args.tile_stride, args.cols, rows, out, args.ld_out);
        mul_rest<F, N - 1, R>(args, w, rows, n, out);
    }
}

// R tiles for all rows, 8 / R at a time.
template <class F, int R>
void mul_tiles(const MulArgs &args, const uint8_t *w, float *out) {
    constexpr uint32_t kRows = 8 / R;
    const size_t ldg = args.act.ldq / kGroup;
    for (uint32_t row = 0; row < args.n_rows; row += kRows) {
        const Rows rows{args.act.q + row * args.act.ldq,
                        args.act.scale + row * ldg,
                        args.act.sum + row * ldg,
                        args.act.total + row * ldg,
                        args.act.ldq,
                        ldg};
        const uint32_t left = args.n_rows - row;
        mul_rest<F, kRows, R>(args, w, rows, left < kRows ? left : kRows, out + row * args.ld_out);
    }
}

template <class F>
void mul(const MulArgs *args) {
    uint32_t t = 0;
    const bool pairs = args->nrc >= 32 && args->n_rows > 1;  // one row alone reads one stream of memory fastest
    for (; pairs && t + 2 <= args->n_tiles; t += 2)
        mul_tiles<F, 2>(*args, args->w + t * args->tile_stride, args->out + t * kTileRows);
    for (; t < args->n_tiles; t++) mul_tiles<F, 1>(*args, args->w + t * args->tile_stride, args->out + t * kTileRows);
}

template <class F>
void multiply(F, const MulArgs *args) {
    mul<F>(args);
}

}  // namespace

const Ops avx512_ops = {
    .name = "avx512vnni",
    .default_nrc = 16,
    .products = products_of(Formats()),
    .quantise = quantise,
    .rms_norm = rms_norm,
    .add = add,
    .silu_mul = silu_mul,
    .rope = rope,
    .attend = attend,
    .merge = merge,
    .to_f16 = to_f16,
};

}  // namespace sx
