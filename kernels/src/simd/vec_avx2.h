// 8 lanes: AVX2 with FMA and F16C.
#pragma once

#include <immintrin.h>
#include <stdint.h>

namespace sx {
namespace {

constexpr int kLanes = 8;
constexpr int kMaxRows = 4;
typedef float VF __attribute__((vector_size(32)));
typedef int32_t VI __attribute__((vector_size(32)));
typedef int8_t VQ __attribute__((vector_size(8)));

inline VF vset(float x) { return (VF)_mm256_set1_ps(x); }
inline VF vload(const float *p) { return (VF)_mm256_loadu_ps(p); }
inline void vstore(float *p, VF v) { _mm256_storeu_ps(p, (__m256)v); }
inline VF vfma(VF a, VF b, VF c) { return (VF)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c); }
inline VF vload_f16(const uint8_t *p) {
    return (VF)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i *>(p)));
}
inline VF vload_bf16(const uint8_t *p) {
    const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(p)));
    return (VF)_mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}
inline VF vload_i8(const uint8_t *p) {
    return (VF)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i *>(p))));
}
inline void vprefetch(const uint8_t *p) { _mm_prefetch(reinterpret_cast<const char *>(p), _MM_HINT_T0); }

}  // namespace
}  // namespace sx
