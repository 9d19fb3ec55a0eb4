// Quantised products with the dot product instructions of Armv8.2: a vector holds 4 columns of 4 rows, a quarter tile.
#pragma once

#include "simd/attention.h"

namespace sx {
namespace {

constexpr uint32_t kAhead = 4608;  // bytes from what is multiplied to what is fetched

// Eight vectors (32 columns) of four rows as signed bytes.
inline void load_levels(Nibbles, const uint8_t *p, int8x16_t *w) {
#pragma GCC unroll 4
    for (int v = 0; v < 4; v++) {
        const uint8x16_t two = vld1q_u8(p + 64 * v);
        w[2 * v] = vreinterpretq_s8_u8(vandq_u8(two, vdupq_n_u8(15)));
        w[2 * v + 1] = vreinterpretq_s8_u8(vshrq_n_u8(two, 4));
    }
}

inline void load_levels(Bytes, const uint8_t *p, int8x16_t *w) {
#pragma GCC unroll 8
    for (int v = 0; v < 8; v++) w[v] = vreinterpretq_s8_u8(veorq_u8(vld1q_u8(p + 64 * v), vdupq_n_u8(128)));
}

// Where the sum of products starts: `sum` is -8 times the activations' sum. Bytes of offset 128 became signed.
template <class F>
inline int32_t start_of(int32_t sum) {
    static_assert(F::kOffset == 0 || F::kOffset == 8 || F::kOffset == 128, "an offset that the sums undo");
    return F::kOffset == 8 ? sum : 0;
}

inline float32x4_t load_factors(HalfScales, const uint8_t *super, uint32_t g, uint32_t quarter) {
    const uint8_t *halves = super + HalfScales::at(g, 4 * quarter);
    return vcvt_f32_f16(vld1_f16(reinterpret_cast<const float16_t *>(halves)));
}

inline float32x4_t load_factors(HalfScalesAndFloors, const uint8_t *super, uint32_t g, uint32_t quarter) {
    return load_factors(HalfScales(), super, g, quarter);
}
inline float32x4_t load_floors(HalfScalesAndFloors, const uint8_t *super, uint32_t g, uint32_t quarter) {
    return load_factors(HalfScales(), super + HalfScalesAndFloors::kFloorsAt, g, quarter);
}

inline float32x4_t load_steps(const uint8_t *steps) {
    uint32_t four;
    __builtin_memcpy(&four, steps, 4);
    const uint16x8_t wide = vmovl_u8(vreinterpret_u8_u32(vdup_n_u32(four)));
    return vcvtq_f32_u32(vmovl_u16(vget_low_u16(wide)));
}
inline float32x4_t load_factors(ScaledScales, const uint8_t *super, uint32_t g, uint32_t quarter) {
    const float32x4_t step = load_steps(super + ScaledScales::step_at(g) + 4 * quarter);
    return vmulq_f32(load_factors(HalfScales(), super, 0, quarter), step);
}
inline float32x4_t load_floors(ScaledScales, const uint8_t *super, uint32_t g, uint32_t quarter) {
    const float32x4_t step = load_steps(super + ScaledScales::step_at(g) + kTileRows + 4 * quarter);
    return vnegq_f32(vmulq_f32(load_factors(HalfScales(), super + ScaledScales::kFloorsAt, 0, quarter), step));
}

template <class F>
inline float32x4_t floors_of(const uint8_t *super, uint32_t g, uint32_t quarter) {
    if constexpr (F::Scales::kFloors) return load_floors(typename F::Scales(), super, g, quarter);
    return vdupq_n_f32(0);
}

// Where some activation rows lie for a product.
struct Rows {
    const int8_t *q;
    const float *scale;
    const int32_t *sum;
    const float *total;
    size_t ldq, ldg;
};

inline Rows rows_from(const MulArgs &args, uint32_t row) {
    const size_t ldg = args.act.ldq / kGroup;
    return {args.act.q + row * args.act.ldq,
            args.act.scale + row * ldg,
            args.act.sum + row * ldg,
            args.act.total + row * ldg,
            args.act.ldq,
            ldg};
}

inline int32x4_t dot_one(const int8x16_t *w, const int8_t *q, int32_t start) {
    const int8x16_t a = vld1q_s8(q), b = vld1q_s8(q + 16);
    int32x4_t sum = vdupq_n_s32(start), other = vdupq_n_s32(0);
    sum = vdotq_laneq_s32(sum, w[0], a, 0);
    other = vdotq_laneq_s32(other, w[1], a, 1);
    sum = vdotq_laneq_s32(sum, w[2], a, 2);
    other = vdotq_laneq_s32(other, w[3], a, 3);
    sum = vdotq_laneq_s32(sum, w[4], b, 0);
    other = vdotq_laneq_s32(other, w[5], b, 1);
    sum = vdotq_laneq_s32(sum, w[6], b, 2);
    other = vdotq_laneq_s32(other, w[7], b, 3);
    return vaddq_s32(sum, other);
}

// Integer sums of one group and quarter tile for N rows, one row at a time.
struct DotEach {
    template <class F, int N>
    static void sums(const int8x16_t *w, const Rows &rows, uint32_t group, int32x4_t *out) {
#pragma GCC unroll 4
        for (int i = 0; i < N; i++)
            out[i] = dot_one(w, rows.q + i * rows.ldq + group * kGroup, start_of<F>(rows.sum[i * rows.ldg + group]));
    }
};

template <class F, class Dot, int N>
void mul_rows_q(const uint8_t *w, uint32_t cols, const Rows &rows, float *out, size_t ld_out) {
    constexpr uint32_t kGroups = F::Scales::kGroups;
    float32x4_t acc[N][4];
    for (int i = 0; i < N; i++)
        for (int part = 0; part < 4; part++) acc[i][part] = vdupq_n_f32(0);
    for (uint32_t g = 0; g < cols / kGroup; g++) {
        const uint8_t *super = w + static_cast<size_t>(g / kGroups) * kSuperBytes<F>;
        const uint8_t *group = super + levels_at<F>(g % kGroups);
        vprefetch(group + kAhead);
#pragma GCC unroll 4
        for (uint32_t part = 0; part < 4; part++) {
            int8x16_t v[8];
            int32x4_t dot[N];
            load_levels(typename F::Levels(), group + part * 16, v);
            Dot::template sums<F, N>(v, rows, g, dot);
            const float32x4_t scale = load_factors(typename F::Scales(), super, g % kGroups, part);
            const float32x4_t floor = floors_of<F>(super, g % kGroups, part);
#pragma GCC unroll 4
            for (int i = 0; i < N; i++) {
                const size_t at = i * rows.ldg + g;
                acc[i][part] = vfmaq_f32(acc[i][part], vcvtq_f32_s32(dot[i]), vmulq_n_f32(scale, rows.scale[at]));
                if (F::Scales::kFloors) acc[i][part] = vfmaq_n_f32(acc[i][part], floor, rows.total[at]);
            }
        }
    }
    for (int i = 0; i < N; i++)
        for (int part = 0; part < 4; part++) vst1q_f32(out + i * ld_out + part * 4, acc[i][part]);
}

template <class F, class Dot>
void mul_tile_q(const MulArgs &args, const uint8_t *w, float *out) {
    uint32_t row = 0;
    for (; row + 4 <= args.n_rows; row += 4)
        mul_rows_q<F, Dot, 4>(w, args.cols, rows_from(args, row), out + row * args.ld_out, args.ld_out);
    const Rows rest = rows_from(args, row);
    out += row * args.ld_out;
    switch (args.n_rows - row) {
        case 3: mul_rows_q<F, Dot, 3>(w, args.cols, rest, out, args.ld_out); break;
        case 2: mul_rows_q<F, Dot, 2>(w, args.cols, rest, out, args.ld_out); break;
        case 1: mul_rows_q<F, DotEach, 1>(w, args.cols, rest, out, args.ld_out); break;
        default: break;
    }
}

template <class F, class Dot>
void mul_q(const MulArgs *args) {
    for (uint32_t t = 0; t < args->n_tiles; t++)
        mul_tile_q<F, Dot>(*args, args->w + t * args->tile_stride, args->out + t * kTileRows);
}

}  // namespace
}  // namespace sx
