// Element-wise operations over the vectors of a vec_*.h. Every function is a fixed sequence of operations of the
// chosen width, so a row's result does not depend on what is computed beside it.
#pragma once

#include "core/kv_layout.h"
#include "core/ops.h"

namespace sx {
namespace {

constexpr int kParts = 16 / kLanes;  // vectors of a 16-wide tile

inline VF vmax(VF a, VF b) { return a > b ? a : b; }
inline VF vmin(VF a, VF b) { return a < b ? a : b; }

inline VI viota(int32_t first) {
    VI v;
    for (int i = 0; i < kLanes; i++) v[i] = first + i;
    return v;
}

inline float hsum(VF v) {
    float lane[kLanes];
    vstore(lane, v);
    for (int w = kLanes / 2; w > 0; w /= 2)
        for (int i = 0; i < w; i++) lane[i] += lane[i + w];
    return lane[0];
}

constexpr float kRounder = 12582912.0f;  // 1.5 * 2^23: adding it leaves the rounded integer in the low bits

// exp by 2^n * exp(r), |r| <= ln(2)/2, with the Taylor series of degree 7 (relative error below 1e-7).
inline VF vexp(VF x) {
    x = vmin(vmax(x, vset(-87.3f)), vset(88.3f));
    const VF shifted = vfma(x, vset(1.44269504f), vset(kRounder));
    const VF n = shifted - vset(kRounder);
    VF r = vfma(n, vset(-0.693359375f), x);  // ln 2 in two parts, the first exact in products with n
    r = vfma(n, vset(2.12194440e-4f), r);
    VF p = vset(1.0f / 5040);
    p = vfma(p, r, vset(1.0f / 720));
    p = vfma(p, r, vset(1.0f / 120));
    p = vfma(p, r, vset(1.0f / 24));
    p = vfma(p, r, vset(1.0f / 6));
    p = vfma(p, r, vset(0.5f));
    p = vfma(p, r, vset(1.0f));
    p = vfma(p, r, vset(1.0f));
    return (VF)((VI)p + (((VI)shifted - (VI)vset(kRounder)) << 23));
}

inline float exp1(float x) { return vexp(vset(x))[0]; }

void quantise_group(const float *x, int8_t *q, float *scale, int32_t *sum, float *weighted) {
    VF largest = vset(0);
    for (uint32_t i = 0; i < kGroup; i += kLanes) {
        const VF v = vload(x + i);
        largest = vmax(largest, vmax(v, -v));
    }
    const float top = hmax(largest);
    const float inverse = top > kTiny ? 127.0f / top : 0.0f;
    VI total = (VI)vset(0);
    for (uint32_t i = 0; i < kGroup; i += kLanes) {
        const VI rounded = (VI)(vload(x + i) * inverse + vset(kRounder)) - (VI)vset(kRounder);
        const VQ narrow = __builtin_convertvector(rounded, VQ);
        __builtin_memcpy(q + i, &narrow, sizeof narrow);
        total += rounded;
    }
    *scale = top > kTiny ? top / 127.0f : 0.0f;
    const int32_t all = hsum(total);
    *sum = -8 * all;
    *weighted = *scale * static_cast<float>(all);
}

void quantise(const QuantiseArgs *args) {
    const uint32_t groups = args->n / kGroup, all = args->n_padded / kGroup;
    for (uint32_t g = 0; g < groups; g++)
        quantise_group(args->x + g * kGroup, args->q + g * kGroup, args->scale + g, args->sum + g, args->total + g);
    for (uint32_t g = groups; g < all; g++) {
        __builtin_memset(args->q + g * kGroup, 0, kGroup);
        args->scale[g] = 0;
        args->sum[g] = 0;
        args->total[g] = 0;
    }
}

void rms_norm(const float *x, const float *weight, uint32_t n, float eps, float *out) {
    VF even = vset(0), odd = vset(0);
    uint32_t i = 0;
    for (; i + 2 * kLanes <= n; i += 2 * kLanes) {
        const VF a = vload(x + i), b = vload(x + i + kLanes);
        even = vfma(a, a, even);
        odd = vfma(b, b, odd);
    }
    float sum = hsum(even + odd);
    for (uint32_t j = i; j < n; j++) sum += x[j] * x[j];
    const float factor = 1.0f / __builtin_sqrtf(sum / static_cast<float>(n) + eps);
    for (i = 0; i + kLanes <= n; i += kLanes) vstore(out + i, vload(x + i) * factor * vload(weight + i));
    for (; i < n; i++) out[i] = x[i] * factor * weight[i];
}

void add(float *y, const float *x, uint32_t n) {
    uint32_t i = 0;
    for (; i + kLanes <= n; i += kLanes) vstore(y + i, vload(y + i) + vload(x + i));
    for (; i < n; i++) y[i] += x[i];
}

inline VF silu(VF x) { return x / (vset(1.0f) + vexp(-x)); }

void silu_mul(float *y, const float *gate, const float *up, uint32_t n) {
    uint32_t i = 0;
    for (; i + kLanes <= n; i += kLanes) vstore(y + i, silu(vload(gate + i)) * vload(up + i));
    for (; i < n; i++) y[i] = silu(vset(gate[i]))[0] * up[i];
}

void rope(float *x, const float *cosine, const float *sine, uint32_t half) {
    uint32_t i = 0;
    for (; i + kLanes <= half; i += kLanes) {
        const VF a = vload(x + i), b = vload(x + half + i), c = vload(cosine + i), s = vload(sine + i);
        vstore(x + i, a * c - b * s);
        vstore(x + half + i, b * c + a * s);
    }
    for (; i < half; i++) {
        const float a = x[i], b = x[half + i];
        x[i] = a * cosine[i] - b * sine[i];
        x[half + i] = b * cosine[i] + a * sine[i];
    }
}

void to_f16(const float *x, uint32_t n, uint16_t *out) {
    const VF low = vset(-65504.0f), high = vset(65504.0f);
    for (uint32_t i = 0; i < n; i += kLanes) vstore_f16(out + i, vmin(high, vmax(low, vload(x + i))));
}

void merge(float *out, float *peak, float *total, const float *out2, float peak2, float total2, uint32_t n) {
    if (total2 == 0) return;
    const float top = *peak > peak2 ? *peak : peak2;
    const float keep = *total == 0 ? 0 : exp1(*peak - top), take = exp1(peak2 - top);
    for (uint32_t i = 0; i < n; i += kLanes) vstore(out + i, vload(out + i) * keep + vload(out2 + i) * take);
    *total = *total * keep + total2 * take;
    *peak = top;
}

}  // namespace
}  // namespace sx
