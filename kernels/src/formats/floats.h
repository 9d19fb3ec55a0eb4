// Weights that stay floats, and activations with them.
#pragma once

#include <string.h>

#include "formats/numeric.h"
#include "formats/scales.h"
#include "syshax/kernels.h"

namespace sx {
namespace {

struct F32 {
    static constexpr int32_t kType = SX_F32;
    static constexpr bool kQuantised = false;
    static constexpr uint32_t kBlock = 1, kBlockBytes = 4;
    static constexpr const char *kName = "F32";
    static float load(const uint8_t *at) {
        float value;
        memcpy(&value, at, sizeof value);
        return value;
    }
    static void store(float value, uint8_t *at) { memcpy(at, &value, sizeof value); }
};

struct F16 {
    static constexpr int32_t kType = SX_F16;
    static constexpr bool kQuantised = false;
    static constexpr uint32_t kBlock = 1, kBlockBytes = 2;
    static constexpr const char *kName = "F16";
    static float load(const uint8_t *at) { return f16_to_f32(load16(at)); }
    static void store(float value, uint8_t *at) {
        const uint16_t half = f32_to_f16(value);
        memcpy(at, &half, sizeof half);
    }
};

struct Bf16 {
    static constexpr int32_t kType = SX_BF16;
    static constexpr bool kQuantised = false;
    static constexpr uint32_t kBlock = 1, kBlockBytes = 2;
    static constexpr const char *kName = "BF16";
    static float load(const uint8_t *at) { return bf16_to_f32(load16(at)); }
    static void store(float value, uint8_t *at) {
        const uint16_t half = f32_to_bf16(value);
        memcpy(at, &half, sizeof half);
    }
};

}  // namespace
}  // namespace sx
