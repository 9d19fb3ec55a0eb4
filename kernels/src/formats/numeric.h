// Conversions between f32 and the 16-bit float formats, in plain integer arithmetic: the same on every machine.
#pragma once

#include <stdint.h>
#include <string.h>

namespace sx {

static inline uint32_t float_bits(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static inline float bits_float(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline float bf16_to_f32(uint16_t half) { return bits_float(static_cast<uint32_t>(half) << 16); }

// Round to nearest even; NaN stays NaN.
static inline uint16_t f32_to_bf16(float value) {
    const uint32_t bits = float_bits(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>(bits >> 16 | 0x40u);
    return static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

static inline float f16_to_f32(uint16_t half) {
    const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
    const uint32_t rest = half & 0x7fffu;
    if (rest >= 0x7c00u) return bits_float(sign | 0x7f800000u | (rest & 0x3ffu) << 13);
    if (rest >= 0x400u) return bits_float(sign | ((rest << 13) + 0x38000000u));
    const float magnitude = static_cast<float>(rest) * 5.9604644775390625e-8f;  // subnormal: units of 2^-24
    return bits_float(sign | float_bits(magnitude));
}

// Round to nearest even; overflow becomes infinity, NaN stays NaN.
static inline uint16_t f32_to_f16(float value) {
    const uint32_t bits = float_bits(value);
    const uint16_t sign = static_cast<uint16_t>(bits >> 16 & 0x8000u);
    const uint32_t rest = bits & 0x7fffffffu;
    if (rest > 0x7f800000u) return sign | 0x7e00u;
    if (rest >= 0x477ff000u) return sign | 0x7c00u;
    if (rest <
        0x38800000u) {  // subnormal in f16: adding 0.5 aligns its last bit with f32's, in hardware's own rounding
        const float aligned = bits_float(rest) + 0.5f;
        return static_cast<uint16_t>(sign | (float_bits(aligned) - 0x3f000000u));
    }
    return static_cast<uint16_t>(sign | ((rest - 0x38000000u + 0xfffu + (rest >> 13 & 1u)) >> 13));
}

// What the KV cache stores: finite always, so that a masked key times probability 0 stays 0.
static inline float clamp_f16(float value) {
    return value > 65504.0f ? 65504.0f : value < -65504.0f ? -65504.0f : value;
}

}  // namespace sx
