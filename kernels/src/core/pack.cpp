#include "core/pack.h"

#include <math.h>
#include <string.h>

#include "core/layout.h"
#include "formats/numeric.h"

namespace sx {
namespace {

// A group of 32 quants with their scale, as the file or the quantiser gives it.
struct Group {
    uint16_t scale;    // f16
    int8_t q[kGroup];  // q4_0: -8..7, q8_0: -128..127
};

uint16_t load16(const uint8_t *p) {
    uint16_t value;
    memcpy(&value, p, 2);
    return value;
}

// GGUF q4_0: f16 scale, 16 bytes; byte j holds column j low and column 16+j high, both as q+8.
Group read_q4(const uint8_t *block) {
    Group g{load16(block), {}};
    for (uint32_t j = 0; j < 16; j++) {
        g.q[j] = static_cast<int8_t>((block[2 + j] & 15) - 8);
        g.q[16 + j] = static_cast<int8_t>((block[2 + j] >> 4) - 8);
    }
    return g;
}

// GGUF q8_0: f16 scale, 32 signed bytes.
Group read_q8(const uint8_t *block) {
    Group g{load16(block), {}};
    memcpy(g.q, block + 2, kGroup);
    return g;
}

Group quantise_q4(const float *x) {
    float extreme = 0;
    for (uint32_t i = 0; i < kGroup; i++)
        if (fabsf(x[i]) > fabsf(extreme)) extreme = x[i];
    const float scale = extreme / -8.0f, inverse = scale != 0 ? 1.0f / scale : 0.0f;
    Group g{f32_to_f16(scale), {}};
    for (uint32_t i = 0; i < kGroup; i++) {
        const float shifted = x[i] * inverse + 8.5f;
        const int level = shifted < 0 ? 0 : shifted > 15 ? 15 : static_cast<int>(shifted);
        g.q[i] = static_cast<int8_t>(level - 8);
    }
    return g;
}

Group quantise_q8(const float *x) {
    float largest = 0;
    for (uint32_t i = 0; i < kGroup; i++) largest = fmaxf(largest, fabsf(x[i]));
    const float scale = largest / 127.0f, inverse = scale != 0 ? 1.0f / scale : 0.0f;
    Group g{f32_to_f16(scale), {}};
    for (uint32_t i = 0; i < kGroup; i++) g.q[i] = static_cast<int8_t>(roundf(x[i] * inverse));
    return g;
}

uint32_t super_bytes(int32_t type) { return type == SX_Q4_0 ? kQ4Bytes : kQ8Bytes; }

// Where group `g` of a tile starts, beyond its scales.
uint8_t *group_at(int32_t type, uint8_t *tile, uint32_t g) {
    const uint32_t bytes = super_bytes(type);
    return tile + static_cast<size_t>(g / 2) * bytes + kScaleBytes + (g % 2) * (bytes - kScaleBytes) / 2;
}

void write_group(int32_t type, uint8_t *tile, uint32_t g, uint32_t r, const Group &group) {
    uint8_t *scales = tile + static_cast<size_t>(g / 2) * super_bytes(type);
    memcpy(scales + ((g % 2) * kTileRows + r) * 2, &group.scale, 2);
    uint8_t *out = group_at(type, tile, g) + r * 4;
    if (type == SX_Q4_0) {
        for (uint32_t c = 0; c < kGroup; c += 8)
            for (uint32_t j = 0; j < 4; j++)
                out[c / 8 * 64 + j] = static_cast<uint8_t>((group.q[c + j] + 8) | (group.q[c + 4 + j] + 8) << 4);
    } else {
        for (uint32_t c = 0; c < kGroup; c++) out[c / 4 * 64 + c % 4] = static_cast<uint8_t>(group.q[c] + 128);
    }
}

Group read_group(int32_t type, const uint8_t *tile, uint32_t g, uint32_t r) {
    Group group;
    group.scale = load16(tile + static_cast<size_t>(g / 2) * super_bytes(type) + ((g % 2) * kTileRows + r) * 2);
    const uint8_t *in = group_at(type, const_cast<uint8_t *>(tile), g) + r * 4;
    for (uint32_t c = 0; c < kGroup; c++) {
        const uint8_t byte = type == SX_Q4_0 ? in[c / 8 * 64 + c % 4] : in[c / 4 * 64 + c % 4];
        if (type == SX_Q4_0)
            group.q[c] = static_cast<int8_t>((c % 8 < 4 ? byte & 15 : byte >> 4) - 8);
        else
            group.q[c] = static_cast<int8_t>(byte - 128);
    }
    return group;
}

void pack_quantised_row(const PackJob &job, uint8_t *tile, uint32_t r, const uint8_t *source, float *scratch) {
    const uint32_t block = job.type == SX_Q4_0 ? 18 : 34;
    const bool same = job.src_type == job.type;
    if (!same) decode_row(job.src_type, source, job.cols, scratch);
    for (uint32_t g = 0; g < job.cols / kGroup; g++) {
        const uint8_t *at = source + static_cast<size_t>(g) * block;
        if (job.type == SX_Q4_0)
            write_group(job.type, tile, g, r, same ? read_q4(at) : quantise_q4(scratch + g * kGroup));
        else
            write_group(job.type, tile, g, r, same ? read_q8(at) : quantise_q8(scratch + g * kGroup));
    }
}

void pack_float_row(const PackJob &job, uint8_t *tile, uint32_t r, const uint8_t *source, float *scratch) {
    decode_row(job.src_type, source, job.cols, scratch);
    for (uint32_t c = 0; c < job.cols; c++) {
        const size_t at = static_cast<size_t>(c) * kTileRows + r;
        if (job.type == SX_F32) {
            memcpy(tile + at * 4, scratch + c, 4);
        } else {
            const uint16_t half = job.type == SX_F16 ? f32_to_f16(scratch[c]) : f32_to_bf16(scratch[c]);
            memcpy(tile + at * 2, &half, 2);
        }
    }
}

void decode_blocks(int32_t type, const uint8_t *data, uint32_t cols, float *out) {
    const uint32_t block = type == SX_Q4_0 ? 18 : 34;
    for (uint32_t g = 0; g < cols / kGroup; g++) {
        const Group group = type == SX_Q4_0 ? read_q4(data + g * block) : read_q8(data + g * block);
        const float scale = f16_to_f32(group.scale);
        for (uint32_t i = 0; i < kGroup; i++) out[g * kGroup + i] = scale * static_cast<float>(group.q[i]);
    }
}

}  // namespace

void decode_row(int32_t type, const void *data, uint32_t cols, float *out) {
    const uint8_t *bytes = static_cast<const uint8_t *>(data);
    if (type == SX_F32)
        memcpy(out, bytes, static_cast<size_t>(cols) * 4);
    else if (type == SX_F16)
        for (uint32_t c = 0; c < cols; c++) out[c] = f16_to_f32(load16(bytes + static_cast<size_t>(c) * 2));
    else if (type == SX_BF16)
        for (uint32_t c = 0; c < cols; c++) out[c] = bf16_to_f32(load16(bytes + static_cast<size_t>(c) * 2));
    else
        decode_blocks(type, bytes, cols, out);
}

// Padded rows and columns: zeros, with scale 0, so that they add nothing.
void pack_tile(const PackJob &job, uint32_t tile, uint8_t *out, float *scratch) {
    memset(out, 0, tile_bytes(job.type, job.cols));
    const size_t row_bytes = source_row_bytes(job.src_type, job.cols);
    for (uint32_t r = 0; r < kTileRows && tile * kTileRows + r < job.rows; r++) {
        const uint8_t *source = job.data + (static_cast<size_t>(tile) * kTileRows + r) * row_bytes;
        if (is_quantised(job.type))
            pack_quantised_row(job, out, r, source, scratch);
        else
            pack_float_row(job, out, r, source, scratch);
    }
}

void unpack_row(int32_t type, const uint8_t *tile, uint32_t r, uint32_t cols, float *out) {
    if (is_quantised(type)) {
        for (uint32_t g = 0; g < cols / kGroup; g++) {
            const Group group = read_group(type, tile, g, r);
            const float scale = f16_to_f32(group.scale);
            for (uint32_t i = 0; i < kGroup; i++) out[g * kGroup + i] = scale * static_cast<float>(group.q[i]);
        }
        return;
    }
    for (uint32_t c = 0; c < cols; c++) {
        const size_t at = static_cast<size_t>(c) * kTileRows + r;
        decode_row(type, tile + at * float_bytes(type), 1, out + c);
    }
}

}  // namespace sx
