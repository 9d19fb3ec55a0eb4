// What an instruction set has to offer: a table of functions on plain arrays. Plain C types only: the files that
// implement it are compiled with that ISA's flags and must not emit code the rest of the program could pick up.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "formats/all.h"

namespace sx {

constexpr uint32_t kActColumns = 64;  // quantised activations are padded to so many columns
constexpr float kTiny = 1e-36f;       // a group of activations not above this is quantised to zeros

// Rows of activations for a product with packed weights. Float weights read `x`, quantised weights the rest.
// Quantised: q = round(x / scale), scale = max|x| / 127 for each group of 32 columns, kept as f32.
struct Activations {
    const float *x;  // [rows][ldx]
    size_t ldx;
    const int8_t *q;  // [rows][ldq]; ldq is the padded column count
    size_t ldq;
    const float *scale;  // [rows][ldq / 32]
    const int32_t *sum;  // [rows][ldq / 32], -8 times the sum of q over the group: undoes the offset of packed weights
    const float *total;  // [rows][ldq / 32], scale times the sum of q: what a floor is multiplied by
};

struct MulArgs {
    const uint8_t *w;    // first tile
    size_t tile_stride;  // bytes from tile to tile
    uint32_t n_tiles;
    uint32_t cols;    // padded to 64 for quantised weights
    uint32_t n_rows;  // activation rows
    uint32_t nrc;     // weight rows per step: 16 or 32
    Activations act;
    float *out;  // out[row * ld_out + tile * 16 + r]
    size_t ld_out;
};

struct QuantiseArgs {
    const float *x;
    uint32_t n;         // values
    uint32_t n_padded;  // multiple of 64; the rest is filled with zeros
    int8_t *q;
    float *scale;
    int32_t *sum;
    float *total;
};

// One piece of attention: some query rows against at most 256 tokens of context for one kv head.
struct AttendArgs {
    const float *q;  // [n_rows][head_dim]
    uint32_t n_rows;
    uint32_t head_dim;  // multiple of 16
    int32_t kv_type;
    const uint8_t *const *k;  // groups of 16 tokens, layout.h
    const uint8_t *const *v;
    const uint8_t *const *next_k;  // keys of the piece that follows, to be fetched meanwhile, or nullptr
    uint32_t n_next;               // groups of it
    const uint16_t *first;         // [n_rows] valid tokens of the piece are [first, last)
    const uint16_t *last;
    float scale;            // of the scores
    const float *slope;     // [n_rows] ALiBi slopes, or nullptr
    const float *distance;  // [n_rows] position of the piece's token 0 minus the query's position
    float *scratch;         // [n_rows][256]
    float *out;             // [n_rows][head_dim], not yet divided by `total`
    float *peak, *total;    // [n_rows] largest score; sum of exp(score - peak); a row without tokens: -inf and 0
    float softcap;          // c: scores become c * tanh(score / c); 0: none
};

// A product with packed weights for each format, in the order of Formats.
struct Products {
    void (*of[kFormats])(const MulArgs *);
};

struct Ops {
    const char *name;
    uint32_t default_nrc;
    Products products;
    void (*quantise)(const QuantiseArgs *);
    void (*rms_norm)(const float *x, const float *weight, uint32_t n, float eps, float *out);
    void (*add)(float *y, const float *x, uint32_t n);                           // y += x
    void (*silu_mul)(float *y, const float *gate, const float *up, uint32_t n);  // y = gate / (1 + exp(-gate)) * up
    void (*rope)(float *x, const float *cos, const float *sin, uint32_t half);   // rotate-half, in place
    void (*attend)(const AttendArgs *);
    // Adds a later piece to an earlier one: both not yet divided.
    void (*merge)(float *out, float *peak, float *total, const float *out2, float peak2, float total2, uint32_t n);
    // To f16, rounded to nearest even; what is beyond its range becomes its largest number. n: a multiple of 16.
    void (*to_f16)(const float *x, uint32_t n, uint16_t *out);
};

namespace {

// The table of an instruction set's own multiply(Format, const MulArgs *).
template <class F>
struct ProductOf {
    static void run(const MulArgs *args) { multiply(F(), args); }
};

template <class... F>
constexpr Products products_of(List<F...>) {
    return {{ProductOf<F>::run...}};
}

}  // namespace

extern const Ops scalar_ops;
#if defined(__x86_64__)
extern const Ops avx2_ops;
extern const Ops avx512_ops;
#elif defined(__aarch64__)
extern const Ops neon_ops;
extern const Ops i8mm_ops;
extern const Ops sve_ops;
#endif

}  // namespace sx
