// What the rest of the core knows of a weight format: sizes, and how rows get into tiles and out of them. What the
// products need beside it each instruction set makes from the format's own header.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "formats/tile.h"
#include "syshax/kernels.h"

namespace sx {

struct Format {
    int32_t type;    // SX_*
    uint32_t index;  // in Ops::products, for one that is held
    const char *name;
    bool quantised;               // its products read activations of 8 bits
    uint32_t block, block_bytes;  // weights of a block in a file, and its bytes
    uint32_t step, step_bytes;    // columns of a superblock of a tile, and its bytes; 0: not held
    void (*decode)(const uint8_t *blocks, uint32_t cols, float *out);
    // Row `r` of a tile, from blocks of this format or from floats (nullptr: nothing is quantised to it).
    void (*pack)(const uint8_t *blocks, uint32_t cols, uint8_t *tile, uint32_t r);
    void (*quantise)(const float *x, uint32_t cols, uint8_t *tile, uint32_t r);
    void (*unpack)(const uint8_t *tile, uint32_t r, uint32_t cols, float *out);
};

// nullptr for a type that is none. One that is only read has step 0 and nothing but decode.
const Format *find_format(int32_t type);
static inline bool is_float(int32_t type) { return type == SX_F32 || type == SX_F16 || type == SX_BF16; }
static inline uint32_t float_bytes(int32_t type) { return type == SX_F32 ? 4 : 2; }

bool is_quantised(int32_t type);
// What follows takes known types only.
// Columns of a tile, and its bytes.
uint32_t padded_cols(int32_t type, uint32_t cols);
size_t tile_bytes(int32_t type, uint32_t cols);
// Bytes of one row as it lies in a GGUF or safetensors file.
size_t source_row_bytes(int32_t type, uint32_t cols);
// A row, or any whole number of blocks, of a file as floats.
void decode_row(int32_t type, const void *blocks, uint32_t cols, float *out);

struct PackJob {
    int32_t src_type, type;
    uint32_t rows, cols;
    const uint8_t *data;  // row-major, source_row_bytes() a row
};

// Packs tile `tile` to `out`. Blocks of the same type keep their levels and scales; anything else goes through floats.
// `scratch` holds `cols` floats.
void pack_tile(const PackJob &job, uint32_t tile, uint8_t *out, float *scratch);

// Row `row` (below 16) of a packed tile: the embedding lookup.
void unpack_row(int32_t type, const uint8_t *tile, uint32_t row, uint32_t cols, float *out);

}  // namespace sx
