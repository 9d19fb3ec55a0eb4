// Arm's 8-bit matrix multiply: two weight rows times two activation rows of 8 columns in one instruction.
#include "simd/vec_neon.h"

#include "simd/neon_dot.h"

namespace sx {
namespace {

// Sums of two activation rows for four weight rows. The packed vectors hold 4 columns of each row; zipping the two
// halves of 8 columns gives the rows of 8 that the instruction wants.
inline void dot_two(const int8x16_t *w, const int8_t *a, const int8_t *b, int32x4_t *out) {
    int32x4_t upper = vdupq_n_s32(0), lower = vdupq_n_s32(0);  // weight rows 0, 1 and 2, 3
#pragma GCC unroll 4
    for (int v = 0; v < 4; v++) {
        const int32x4_t low = vreinterpretq_s32_s8(w[2 * v]), high = vreinterpretq_s32_s8(w[2 * v + 1]);
        const int8x16_t x = vcombine_s8(vld1_s8(a + 8 * v), vld1_s8(b + 8 * v));
        upper = vmmlaq_s32(upper, vreinterpretq_s8_s32(vzip1q_s32(low, high)), x);
        lower = vmmlaq_s32(lower, vreinterpretq_s8_s32(vzip2q_s32(low, high)), x);
    }
    out[0] = vaddq_s32(out[0], vuzp1q_s32(upper, lower));
    out[1] = vaddq_s32(out[1], vuzp2q_s32(upper, lower));
}

struct DotPairs {
    template <class F, int N>
    static void sums(const int8x16_t *w, const Rows &rows, uint32_t group, int32x4_t *out) {
        const int8_t *q = rows.q + group * kGroup;
        for (int i = 0; i < N; i++) out[i] = vdupq_n_s32(start_of<F>(rows.sum[i * rows.ldg + group]));
        for (int i = 0; i + 2 <= N; i += 2) dot_two(w, q + i * rows.ldq, q + (i + 1) * rows.ldq, out + i);
        if (N % 2 == 1)
            out[N - 1] = dot_one(w, q + (N - 1) * rows.ldq, start_of<F>(rows.sum[(N - 1) * rows.ldg + group]));
    }
};

template <class F>
void multiply(F, const MulArgs *args) {
    mul_q<F, DotPairs>(args);
}

}  // namespace

const Ops i8mm_ops = {
    .name = "i8mm",
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
