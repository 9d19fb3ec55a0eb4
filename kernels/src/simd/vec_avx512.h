// 16 lanes: AVX-512.
#pragma once

// GCC 12 warns about its own header: the undefined operand of unmasked AVX-512 conversions.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#include <stdint.h>

namespace sx {
namespace {

constexpr int kLanes = 16;
constexpr int kMaxRows = 8;  // activation rows a float tile keeps in registers
typedef float VF __attribute__((vector_size(64)));
typedef int32_t VI __attribute__((vector_size(64)));
typedef int8_t VQ __attribute__((vector_size(16)));

inline VF vset(float x) { return (VF)_mm512_set1_ps(x); }
inline VF vload(const float *p) { return (VF)_mm512_loadu_ps(p); }
inline void vstore(float *p, VF v) { _mm512_storeu_ps(p, (__m512)v); }
inline VF vfma(VF a, VF b, VF c) { return (VF)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c); }
inline VF vload_f16(const uint8_t *p) {
    return (VF)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(p)));
}
inline void vstore_f16(uint16_t *p, VF v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i *>(p),
                        _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
inline VF vload_bf16(const uint8_t *p) {
    const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(p)));
    return (VF)_mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}
inline VF vload_i8(const uint8_t *p) {
    return (VF)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(p))));
}
inline float hmax(VF v) { return _mm512_reduce_max_ps((__m512)v); }
inline int32_t hsum(VI v) { return _mm512_reduce_add_epi32((__m512i)v); }
inline void vprefetch(const uint8_t *p) { _mm_prefetch(reinterpret_cast<const char *>(p), _MM_HINT_T1); }

}  // namespace
}  // namespace sx
