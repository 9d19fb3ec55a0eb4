// Armv8.2 with the dot product instructions: Kunpeng 920 and later, Neoverse N1 and later.
#include "simd/vec_neon.h"

#include "simd/neon_dot.h"

namespace sx {

namespace {

template <class F>
void multiply(F, const MulArgs *args) {
    mul_q<F, DotEach>(args);
}

}  // namespace

const Ops neon_ops = {
    .name = "neon",
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
