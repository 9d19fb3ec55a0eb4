// Products with a 16-wide tile of floats: float weights here, keys and values in attention.h.
#pragma once

#include "formats/all.h"
#include "simd/vector_ops.h"

namespace sx {
namespace {

struct LoadF32 {
    static constexpr size_t kBytes = 4;
    static VF at(const uint8_t *p) { return vload(reinterpret_cast<const float *>(p)); }
};
struct LoadF16 {
    static constexpr size_t kBytes = 2;
    static VF at(const uint8_t *p) { return vload_f16(p); }
};
struct LoadBf16 {
    static constexpr size_t kBytes = 2;
    static VF at(const uint8_t *p) { return vload_bf16(p); }
};
struct LoadI8 {
    static constexpr size_t kBytes = 1;
    static VF at(const uint8_t *p) { return vload_i8(p); }
};

template <int N>
struct Tile {
    VF v[N][kParts];
    void clear() {
#pragma GCC unroll 8
        for (int i = 0; i < N; i++)
#pragma GCC unroll 4
            for (int p = 0; p < kParts; p++) v[i][p] = vset(0);
    }
    // Adds the outer product of x (one value a row, `stride` floats apart) and one 16-wide column of weights.
    template <class Load>
    void step(const uint8_t *w, const float *x, size_t stride) {
#pragma GCC unroll 4
        for (int p = 0; p < kParts; p++) {
            const VF wide = Load::at(w + p * kLanes * Load::kBytes);
#pragma GCC unroll 8
            for (int i = 0; i < N; i++) v[i][p] = vfma(vset(x[i * stride]), wide, v[i][p]);
        }
    }
};

// Columns are summed in two chains, even and odd, so that one row alone keeps two products in flight.
template <class Load, int N>
void mul_rows(const uint8_t *w, uint32_t cols, const float *x, size_t ldx, float *out, size_t ld_out) {
    constexpr size_t kStep = kTileRows * Load::kBytes;
    Tile<N> even, odd;
    even.clear();
    odd.clear();
    uint32_t c = 0;
    for (; c + 2 <= cols; c += 2, w += 2 * kStep) {
        vprefetch(w + 2048);
        even.template step<Load>(w, x + c, ldx);
        odd.template step<Load>(w + kStep, x + c + 1, ldx);
    }
    if (c < cols) even.template step<Load>(w, x + c, ldx);
#pragma GCC unroll 8
    for (int i = 0; i < N; i++)
#pragma GCC unroll 4
        for (int p = 0; p < kParts; p++) vstore(out + i * ld_out + p * kLanes, even.v[i][p] + odd.v[i][p]);
}

constexpr uint32_t kMulRows = kMaxRows == 8 ? 8 : 2;  // two chains: what the registers hold

template <class Load>
void mul_tile(const MulArgs &args, const uint8_t *w, float *out) {
    uint32_t row = 0;
    const size_t ldx = args.act.ldx, ld = args.ld_out;
    const float *x = args.act.x;
    for (; row + kMulRows <= args.n_rows; row += kMulRows)
        mul_rows<Load, kMulRows>(w, args.cols, x + row * ldx, ldx, out + row * ld, ld);
    if (kMulRows == 8 && row + 4 <= args.n_rows) {
        mul_rows<Load, 4>(w, args.cols, x + row * ldx, ldx, out + row * ld, ld);
        row += 4;
    }
    if (row + 2 <= args.n_rows) {
        mul_rows<Load, 2>(w, args.cols, x + row * ldx, ldx, out + row * ld, ld);
        row += 2;
    }
    if (row < args.n_rows) mul_rows<Load, 1>(w, args.cols, x + row * ldx, ldx, out + row * ld, ld);
}

template <class Load>
void mul_float(const MulArgs *args) {
    for (uint32_t t = 0; t < args->n_tiles; t++)
        mul_tile<Load>(*args, args->w + t * args->tile_stride, args->out + t * kTileRows);
}

void multiply(F32, const MulArgs *args) { mul_float<LoadF32>(args); }
void multiply(F16, const MulArgs *args) { mul_float<LoadF16>(args); }
void multiply(Bf16, const MulArgs *args) { mul_float<LoadBf16>(args); }

}  // namespace
}  // namespace sx
