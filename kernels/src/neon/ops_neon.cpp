// Armv8.2 with the dot product instructions: Kunpeng 920 and later, Neoverse N1 and later.
#include "simd/vec_neon.h"

#include "simd/neon_dot.h"

namespace sx {

const Ops neon_ops = {"neon",
                      16,
                      mul_q<Q4, DotEach>,
                      mul_q<Q8, DotEach>,
                      mul_f16,
                      mul_bf16,
                      mul_f32,
                      quantise,
                      rms_norm,
                      add,
                      silu_mul,
                      rope,
                      attend,
                      merge,
                      to_f16};

}  // namespace sx
