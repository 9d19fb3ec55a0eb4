// From the bytes of a model file to packed tiles, and back for single rows.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace sx {

// One row (or any whole number of blocks) of `cols` values of a GGUF type to f32.
void decode_row(int32_t type, const void *data, uint32_t cols, float *out);

struct PackJob {
    int32_t src_type, type;
    uint32_t rows, cols;
    const uint8_t *data;  // row-major, source_row_bytes() a row
};

// Packs tile `tile` to `out`. Block types of the same type keep their quants and scales; anything else goes through f32
// and is quantised as GGUF's reference does (q4_0: scale = the value of largest magnitude / -8; q8_0: largest magnitude
// / 127). `scratch` holds round_up(cols, 64) floats.
void pack_tile(const PackJob &job, uint32_t tile, uint8_t *out, float *scratch);

// Row `row` (below 16) of a packed tile as f32: the embedding lookup.
void unpack_row(int32_t type, const uint8_t *tile, uint32_t row, uint32_t cols, float *out);

}  // namespace sx
