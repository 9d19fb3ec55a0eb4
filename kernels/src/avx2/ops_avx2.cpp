// AVX2 with FMA and F16C: a vector holds 4 columns of 8 rows, half a tile.
#include "simd/vec_avx2.h"

#include "simd/attention.h"

namespace sx {
namespace {

constexpr uint32_t kAhead = 4608;  // bytes from what is multiplied to what is fetched

inline __m256i activations4(const int8_t *q) {
    int32_t four;
    __builtin_memcpy(&four, q, 4);
    return _mm256_set1_epi32(four);
}

// The levels of a group in eight vectors of 4 columns x 8 rows, and their products: one 32-bit sum a row.
struct DotNibbles {
    static void load(const uint8_t *p, __m256i *w) {
        const __m256i low = _mm256_set1_epi8(15);
#pragma GCC unroll 4
        for (int v = 0; v < 4; v++) {
            const __m256i two = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(p + 64 * v));
            w[2 * v] = _mm256_and_si256(two, low);
            w[2 * v + 1] = _mm256_and_si256(_mm256_srli_epi16(two, 4), low);
        }
    }
    // 16-bit sums of all eight vectors stay within 8 * 2 * 15 * 127 = 30480.
    static __m256i dot(const __m256i *w, const int8_t *q, int32_t sum) {
        __m256i pairs = _mm256_setzero_si256();
#pragma GCC unroll 8
        for (int v = 0; v < 8; v++)
            pairs = _mm256_add_epi16(pairs, _mm256_maddubs_epi16(w[v], activations4(q + 4 * v)));
        return _mm256_add_epi32(_mm256_madd_epi16(pairs, _mm256_set1_epi16(1)), _mm256_set1_epi32(sum));
    }
};

// Bytes of offset 128 become signed.
struct DotBytes {
    static void load(const uint8_t *p, __m256i *w) {
        const __m256i offset = _mm256_set1_epi8(-128);
#pragma GCC unroll 8
        for (int v = 0; v < 8; v++)
            w[v] = _mm256_xor_si256(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(p + 64 * v)), offset);
    }
    // The sign of each weight moves to its activation; a 16-bit sum of two is at most 2 * 128 * 127.
    static __m256i dot(const __m256i *w, const int8_t *q, int32_t) {
        __m256i total = _mm256_setzero_si256();
#pragma GCC unroll 8
        for (int v = 0; v < 8; v++) {
            const __m256i pairs =
                _mm256_maddubs_epi16(_mm256_abs_epi8(w[v]), _mm256_sign_epi8(activations4(q + 4 * v), w[v]));
            total = _mm256_add_epi32(total, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
        }
        return total;
    }
};

inline DotNibbles dot_of(Nibbles) { return {}; }
inline DotBytes dot_of(Bytes) { return {}; }
template <class F>
using DotOf = decltype(dot_of(typename F::Levels()));

inline __m256 load_factors(HalfScales, const uint8_t *super, uint32_t g, uint32_t half) {
    const uint8_t *halves = super + HalfScales::at(g, 8 * half);
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i *>(halves)));
}

inline __m256 load_factors(HalfScalesAndFloors, const uint8_t *super, uint32_t g, uint32_t half) {
    return load_factors(HalfScales(), super, g, half);
}
inline __m256 load_floors(HalfScalesAndFloors, const uint8_t *super, uint32_t g, uint32_t half) {
    return load_factors(HalfScales(), super + HalfScalesAndFloors::kFloorsAt, g, half);
}

inline __m256 load_steps(const uint8_t *steps) {
    return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i *>(steps))));
}
inline __m256 load_factors(ScaledScales, const uint8_t *super, uint32_t g, uint32_t half) {
    const __m256 step = load_steps(super + ScaledScales::step_at(g) + 8 * half);
    return _mm256_mul_ps(load_factors(HalfScales(), super, 0, half), step);
}
inline __m256 load_floors(ScaledScales, const uint8_t *super, uint32_t g, uint32_t half) {
    const __m256 step = load_steps(super + ScaledScales::step_at(g) + kTileRows + 8 * half);
    return -_mm256_mul_ps(load_factors(HalfScales(), super + ScaledScales::kFloorsAt, 0, half), step);
}

// One group for one row of activations: exact integers, then one float multiply-add, and one for the floor.
template <class F>
inline __m256 add_group(__m256 acc, const MulArgs &args, const __m256i *levels, __m256 scale, __m256 floor,
                        uint32_t row, uint32_t g) {
    const size_t at = row * (args.act.ldq / kGroup) + g;
    const int32_t start = F::kOffset == 0 ? 0 : args.act.sum[at];
    const __m256i dot = DotOf<F>::dot(levels, args.act.q + row * args.act.ldq + g * kGroup, start);
    const __m256 both = _mm256_mul_ps(scale, _mm256_set1_ps(args.act.scale[at]));
    acc = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot), both, acc);
    return F::Scales::kFloors ? _mm256_fmadd_ps(floor, _mm256_set1_ps(args.act.total[at]), acc) : acc;
}

template <class F>
inline __m256 floors_of(const uint8_t *super, uint32_t g, uint32_t half) {
    if constexpr (F::Scales::kFloors) return load_floors(typename F::Scales(), super, g, half);
    return _mm256_setzero_ps();
}

// Half a tile (8 weight rows at byte 32 * half of each vector) for N activation rows.
template <class F, int N>
void mul_half(const MulArgs &args, const uint8_t *w, uint32_t half, uint32_t row, float *out) {
    constexpr uint32_t kGroups = F::Scales::kGroups;
    __m256 acc[N];
    for (int i = 0; i < N; i++) acc[i] = _mm256_setzero_ps();
    for (uint32_t g = 0; g < args.cols / kGroup; g++) {
        const uint8_t *super = w + static_cast<size_t>(g / kGroups) * kSuperBytes<F>;
        const __m256 scale = load_factors(typename F::Scales(), super, g % kGroups, half);
        const __m256 floor = floors_of<F>(super, g % kGroups, half);
        __m256i v[8];
        DotOf<F>::load(super + levels_at<F>(g % kGroups) + 32 * half, v);
#pragma GCC unroll 4
        for (int i = 0; i < N; i++) acc[i] = add_group<F>(acc[i], args, v, scale, floor, row + i, g);
    }
    for (int i = 0; i < N; i++) _mm256_storeu_ps(out + (row + i) * args.ld_out + half * 8, acc[i]);
}

// One activation row: both halves together, so that memory is read once and in order.
template <class F>
void mul_one(const MulArgs &args, const uint8_t *w, uint32_t row, float *out) {
    constexpr uint32_t kGroups = F::Scales::kGroups;
    __m256 acc[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()};
    for (uint32_t g = 0; g < args.cols / kGroup; g++) {
        const uint8_t *super = w + static_cast<size_t>(g / kGroups) * kSuperBytes<F>;
        if (g % kGroups == 0)
            for (uint32_t line = 0; line < kSuperBytes<F>; line += 64) vprefetch(super + kAhead + line);
#pragma GCC unroll 2
        for (uint32_t half = 0; half < 2; half++) {
            const __m256 scale = load_factors(typename F::Scales(), super, g % kGroups, half);
            __m256i v[8];
            DotOf<F>::load(super + levels_at<F>(g % kGroups) + 32 * half, v);
            acc[half] = add_group<F>(acc[half], args, v, scale, floors_of<F>(super, g % kGroups, half), row, g);
        }
    }
    for (uint32_t half = 0; half < 2; half++) _mm256_storeu_ps(out + row * args.ld_out + half * 8, acc[half]);
}

template <class F, int N>
void mul_halves(const MulArgs &args, const uint8_t *w, uint32_t row, float *out) {
    mul_half<F, N>(args, w, 0, row, out);
    mul_half<F, N>(args, w, 1, row, out);
}

template <class F>
void mul_rows_of_tile(const MulArgs &args, const uint8_t *w, float *out) {
    uint32_t row = 0;
    for (; row + 4 <= args.n_rows; row += 4) mul_halves<F, 4>(args, w, row, out);
    switch (args.n_rows - row) {
        case 3: mul_halves<F, 3>(args, w, row, out); break;
        case 2: mul_halves<F, 2>(args, w, row, out); break;
        case 1: mul_one<F>(args, w, row, out); break;
        default: break;
    }
}

template <class F>
void mul(const MulArgs *args) {
    for (uint32_t t = 0; t < args->n_tiles; t++)
        mul_rows_of_tile<F>(*args, args->w + t * args->tile_stride, args->out + t * kTileRows);
}

template <class F>
void multiply(F, const MulArgs *args) {
    mul<F>(args);
}

}  // namespace

const Ops avx2_ops = {
    .name = "avx2",
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
