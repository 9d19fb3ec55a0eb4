// SVE, vector lengths of 128 to 2048 bits with one binary: a vector covers as many of a tile's 16 rows as it is long.
// What is not a product with quantised weights uses Advanced SIMD, which every SVE machine has.
#include <arm_sve.h>

#include "simd/vec_neon.h"

#include "simd/attention.h"

namespace sx {
namespace {

constexpr uint32_t kAhead = 4608;  // bytes from what is multiplied to what is fetched

struct Rows {
    const int8_t *q;
    const float *scale;
    const int32_t *sum;
    const float *total;
    size_t ldq, ldg;
};

// Part of a tile's rows: `offset` bytes into each vector of 64.
struct Slice {
    const uint8_t *w;
    uint32_t offset;
    svbool_t bytes() const { return svwhilelt_b8_u32(offset, 64); }
    svbool_t words() const { return svwhilelt_b32_u32(offset / 4, kTileRows); }
};

// Columns 16 * half to 16 * half + 15 of a group, times one row of activations.
inline svint32_t dot_half(Nibbles, svint32_t sum, const uint8_t *group, svbool_t p, const int8_t *q, int half) {
    const svint8_t x = svld1rq_s8(svptrue_b8(), q + 16 * half);
    const svuint8_t a = svld1_u8(p, group + 128 * half), b = svld1_u8(p, group + 128 * half + 64);
    sum = svdot_lane_s32(sum, svreinterpret_s8_u8(svand_n_u8_x(p, a, 15)), x, 0);
    sum = svdot_lane_s32(sum, svreinterpret_s8_u8(svlsr_n_u8_x(p, a, 4)), x, 1);
    sum = svdot_lane_s32(sum, svreinterpret_s8_u8(svand_n_u8_x(p, b, 15)), x, 2);
    return svdot_lane_s32(sum, svreinterpret_s8_u8(svlsr_n_u8_x(p, b, 4)), x, 3);
}

// Bytes of offset 128 become signed.
inline svint32_t dot_half(Bytes, svint32_t sum, const uint8_t *group, svbool_t p, const int8_t *q, int half) {
    const svint8_t x = svld1rq_s8(svptrue_b8(), q + 16 * half);
    const uint8_t *at = group + 256 * half;
    sum = svdot_lane_s32(sum, svreinterpret_s8_u8(sveor_n_u8_x(p, svld1_u8(p, at), 128)), x, 0);
    sum = svdot_lane_s32(sum, svreinterpret_s8_u8(sveor_n_u8_x(p, svld1_u8(p, at + 64), 128)), x, 1);
    sum = svdot_lane_s32(sum, svreinterpret_s8_u8(sveor_n_u8_x(p, svld1_u8(p, at + 128), 128)), x, 2);
    return svdot_lane_s32(sum, svreinterpret_s8_u8(sveor_n_u8_x(p, svld1_u8(p, at + 192), 128)), x, 3);
}

inline svfloat32_t load_factors(HalfScales, const Slice &s, const uint8_t *super, uint32_t g) {
    const uint16_t *halves = reinterpret_cast<const uint16_t *>(super + HalfScales::at(g, s.offset / 4));
    return svcvt_f32_f16_x(s.words(), svreinterpret_f16_u32(svld1uh_u32(s.words(), halves)));
}

inline svfloat32_t load_factors(HalfScalesAndFloors, const Slice &s, const uint8_t *super, uint32_t g) {
    return load_factors(HalfScales(), s, super, g);
}
inline svfloat32_t load_floors(HalfScalesAndFloors, const Slice &s, const uint8_t *super, uint32_t g) {
    return load_factors(HalfScales(), s, super + HalfScalesAndFloors::kFloorsAt, g);
}

inline svfloat32_t load_steps(const Slice &s, const uint8_t *steps) {
    return svcvt_f32_u32_x(s.words(), svld1ub_u32(s.words(), steps + s.offset / 4));
}
inline svfloat32_t load_factors(ScaledScales, const Slice &s, const uint8_t *super, uint32_t g) {
    const svfloat32_t step = load_steps(s, super + ScaledScales::step_at(g));
    return svmul_f32_x(s.words(), load_factors(HalfScales(), s, super, 0), step);
}
inline svfloat32_t load_floors(ScaledScales, const Slice &s, const uint8_t *super, uint32_t g) {
    const svfloat32_t step = load_steps(s, super + ScaledScales::step_at(g) + kTileRows);
    const svfloat32_t whole = load_factors(HalfScales(), s, super + ScaledScales::kFloorsAt, 0);
    return svneg_f32_x(s.words(), svmul_f32_x(s.words(), whole, step));
}

template <class F>
inline svfloat32_t floors_of(const Slice &s, const uint8_t *super, uint32_t g) {
    if constexpr (F::Scales::kFloors) return load_floors(typename F::Scales(), s, super, g);
    return svdup_n_f32(0);
}

// One group for one row of activations: exact integers, then one float multiply-add, and one for the floor.
template <class F>
inline svfloat32_t add_group(svfloat32_t acc, const Slice &s, const uint8_t *group, svfloat32_t scale,
                             svfloat32_t floor, const Rows &rows, uint32_t row, uint32_t g) {
    const int8_t *q = rows.q + row * rows.ldq + g * kGroup;
    const size_t at = row * rows.ldg + g;
    svint32_t dot = svdup_n_s32(F::kOffset == 8 ? rows.sum[at] : 0);
    static_assert(F::kOffset == 0 || F::kOffset == 8 || F::kOffset == 128, "an offset that the sums undo");
    dot = dot_half(typename F::Levels(), dot, group, s.bytes(), q, 0);
    dot = dot_half(typename F::Levels(), dot, group, s.bytes(), q, 1);
    acc = svmla_f32_x(s.words(), acc, svcvt_f32_s32_x(s.words(), dot), svmul_n_f32_x(s.words(), scale, rows.scale[at]));
    return F::Scales::kFloors ? svmla_n_f32_x(s.words(), acc, floor, rows.total[at]) : acc;
}

// Vectors of unknown length can't be array elements, so the rows of activations are spelled out: N is 1, 2 or 4.
template <class F, int N>
void mul_slice(const Slice &s, uint32_t cols, const Rows &rows, float *out, size_t ld_out) {
    constexpr uint32_t kGroups = F::Scales::kGroups;
    svfloat32_t a = svdup_n_f32(0), b = a, c = a, d = a;
    for (uint32_t g = 0; g < cols / kGroup; g++) {
        const uint8_t *super = s.w + static_cast<size_t>(g / kGroups) * kSuperBytes<F>;
        const uint8_t *group = super + levels_at<F>(g % kGroups) + s.offset;
        const svfloat32_t scale = load_factors(typename F::Scales(), s, super, g % kGroups);
        const svfloat32_t floor = floors_of<F>(s, super, g % kGroups);
        vprefetch(group + kAhead);
        a = add_group<F>(a, s, group, scale, floor, rows, 0, g);
        if (N >= 2) b = add_group<F>(b, s, group, scale, floor, rows, 1, g);
        if (N >= 4) c = add_group<F>(c, s, group, scale, floor, rows, 2, g);
        if (N >= 4) d = add_group<F>(d, s, group, scale, floor, rows, 3, g);
    }
    svst1_f32(s.words(), out, a);
    if (N >= 2) svst1_f32(s.words(), out + ld_out, b);
    if (N >= 4) svst1_f32(s.words(), out + 2 * ld_out, c);
    if (N >= 4) svst1_f32(s.words(), out + 3 * ld_out, d);
}

template <class F, int N>
void mul_rows_q(const MulArgs &args, const uint8_t *w, uint32_t row, float *out) {
    const size_t ldg = args.act.ldq / kGroup;
    const Rows rows{args.act.q + row * args.act.ldq,
                    args.act.scale + row * ldg,
                    args.act.sum + row * ldg,
                    args.act.total + row * ldg,
                    args.act.ldq,
                    ldg};
    for (uint32_t offset = 0; offset < 64; offset += static_cast<uint32_t>(svcntb())) {
        const Slice s{w, offset};
        mul_slice<F, N>(s, args.cols, rows, out + row * args.ld_out + offset / 4, args.ld_out);
    }
}

template <class F>
void mul_q(const MulArgs *args) {
    for (uint32_t t = 0; t < args->n_tiles; t++) {
        const uint8_t *w = args->w + t * args->tile_stride;
        float *out = args->out + t * kTileRows;
        uint32_t row = 0;
        for (; row + 4 <= args->n_rows; row += 4) mul_rows_q<F, 4>(*args, w, row, out);
        for (; row + 2 <= args->n_rows; row += 2) mul_rows_q<F, 2>(*args, w, row, out);
        for (; row < args->n_rows; row++) mul_rows_q<F, 1>(*args, w, row, out);
    }
}

template <class F>
void multiply(F, const MulArgs *args) {
    mul_q<F>(args);
}

}  // namespace

const Ops sve_ops = {
    .name = "sve",
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
