// 4 lanes: Advanced SIMD of AArch64.
#pragma once

#include <arm_neon.h>
#include <stdint.h>

namespace sx {
namespace {

constexpr int kLanes = 4;
constexpr int kMaxRows = 4;
typedef float VF __attribute__((vector_size(16)));
typedef int32_t VI __attribute__((vector_size(16)));
typedef int8_t VQ __attribute__((vector_size(4)));

inline VF vset(float x) { return (VF)vdupq_n_f32(x); }
inline VF vload(const float *p) { return (VF)vld1q_f32(p); }
inline void vstore(float *p, VF v) { vst1q_f32(p, (float32x4_t)v); }
inline VF vfma(VF a, VF b, VF c) { return (VF)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b); }
inline VF vload_f16(const uint8_t *p) { return (VF)vcvt_f32_f16(vld1_f16(reinterpret_cast<const float16_t *>(p))); }
inline void vstore_f16(uint16_t *p, VF v) { vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32((float32x4_t)v))); }
inline VF vload_bf16(const uint8_t *p) { return (VF)vshll_n_u16(vld1_u16(reinterpret_cast<const uint16_t *>(p)), 16); }
inline VF vload_i8(const uint8_t *p) {
    int32_t four;
    __builtin_memcpy(&four, p, 4);
    const int16x8_t wide = vmovl_s8(vreinterpret_s8_s32(vdup_n_s32(four)));
    return (VF)vcvtq_f32_s32(vmovl_s16(vget_low_s16(wide)));
}
inline float hmax(VF v) { return vmaxvq_f32((float32x4_t)v); }
inline int32_t hsum(VI v) { return vaddvq_s32((int32x4_t)v); }
inline void vprefetch(const uint8_t *p) { __builtin_prefetch(p); }

}  // namespace
}  // namespace sx
