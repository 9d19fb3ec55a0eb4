// Packed weight matrices and the products with them, as a team of threads computes them.
#pragma once

#include <stdint.h>

#include "core/memory.h"
#include "core/ops.h"
#include "core/team.h"
#include "formats/format.h"
#include "syshax/kernels.h"

namespace sx {

// Tiles [first, last) of some run of tiles.
struct Span {
    uint32_t first, last;
};

// The part of `total` tiles that `thread` of `n` packs and multiplies: always the same, so that it lies in memory near
// it.
inline Span share_of(uint32_t total, uint32_t thread, uint32_t n) {
    const uint64_t wide = total;
    return {static_cast<uint32_t>(wide * thread / n), static_cast<uint32_t>(wide * (thread + 1) / n)};
}

// Tiles of a matrix by NUMA node. Each node's part begins on a page of its own: first[k] is its first tile, skip[k] how
// many bytes of padding lie before it.
struct NodeParts {
    uint32_t count = 1;
    uint32_t first[kMaxNodes] = {};
    size_t skip[kMaxNodes] = {};
    size_t skip_of(uint32_t tile) const {
        uint32_t k = count - 1;
        while (k > 0 && tile < first[k]) k--;
        return skip[k];
    }
};

struct Matrix {
    int32_t type = SX_F32;
    uint32_t rows = 0, cols = 0;  // rows 0: not there
    uint8_t *tiles = nullptr;
    size_t tile_stride = 0;
    NodeParts parts;
    // Tiles that one thread owns follow each other; tiles of different nodes need not.
    uint8_t *tile_at(uint32_t tile) const { return tiles + tile * tile_stride + parts.skip_of(tile); }
    uint32_t n_tiles() const { return (rows + kTileRows - 1) / kTileRows; }
    // Columns as a product counts them: block types are padded.
    uint32_t padded_cols() const { return sx::padded_cols(type, cols); }
};

// Where a matrix stands in the run of tiles that its product goes over: q, k and v form one run.
struct Place {
    uint32_t offset, total;
};

// Cuts a matrix (rows, tile_stride set) into the parts of the team's nodes; returns the bytes that it needs.
size_t cut_by_node(const Team &team, Place place, Matrix *matrix);
// Binds each part to its node; returns how many parts the kernel refused.
uint32_t bind_parts(const Team &team, const Matrix &matrix);
// Bytes of part k, padding left out.
size_t part_bytes(const Matrix &matrix, uint32_t k);

struct Source {
    int32_t type;
    const void *data;
    bool packed;  // tiles already, one after the other
};

// Packs `source` into matrix->tiles with all threads. SX_ENOMEM when there is no scratch memory.
sx_status pack_matrix(Team &team, const Source &source, Place place, Matrix *matrix);

// Quantised copies of activation rows, shared by every product that reads the same rows.
class ActivationBuffer {
  public:
    bool allocate(uint32_t max_rows, uint32_t max_cols);
    // Rows [first, last) of x, for weights of any type; call before the products, on any thread.
    void quantise(const Ops &ops, const float *x, uint32_t cols, Span rows);
    Activations view(const float *x, uint32_t cols) const;

  private:
    Memory q_, scale_, sum_, total_;
};

enum class Then { store, add, silu_mul };

// One matrix of a product and what happens to its result.
struct Part {
    const Matrix *weights;
    const Matrix *up;  // with silu_mul: the second matrix, of the same shape as the first
    Then then;
    const float *bias;  // [rows] or nullptr
    float *out;         // [activation rows][ld_out]
    size_t ld_out;
};

struct Product {
    const Ops *ops;
    uint32_t nrc;
    const Part *parts;
    uint32_t n_parts;
    Activations act;
    uint32_t n_rows;
};

// Floats of scratch memory that multiply() needs on each thread.
constexpr uint32_t kProductRows = 64, kProductTiles = 8;
constexpr uint32_t kProductScratch = kProductRows * kProductTiles * kTileRows;

// This thread's share of the product. All threads of the team together compute it.
void multiply(const Product &product, uint32_t thread, uint32_t n_threads, float *scratch);

}  // namespace sx
