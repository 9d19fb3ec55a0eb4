// Matrix transposition for elements of 2 and 4 bytes, 16 bytes of a row at a time. GCC's vector extension: on every
// architecture this becomes its interleaving instructions.
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <string.h>

namespace sx {

typedef uint16_t Half8 __attribute__((vector_size(16)));
typedef uint32_t Word4 __attribute__((vector_size(16)));

inline Half8 zip_low(Half8 a, Half8 b) { return __builtin_shuffle(a, b, Half8{0, 8, 1, 9, 2, 10, 3, 11}); }
inline Half8 zip_high(Half8 a, Half8 b) { return __builtin_shuffle(a, b, Half8{4, 12, 5, 13, 6, 14, 7, 15}); }
inline Word4 zip_low(Word4 a, Word4 b) { return __builtin_shuffle(a, b, Word4{0, 4, 1, 5}); }
inline Word4 zip_high(Word4 a, Word4 b) { return __builtin_shuffle(a, b, Word4{2, 6, 3, 7}); }

// A square of 16 bytes a side. Zipping row i with row i + N / 2 moves every index bit by one: log2(N) times transposes.
template <class V, class E, int N = 16 / sizeof(E)>
inline void transpose_square(const E *in, size_t in_stride, E *out, size_t out_stride) {
    V rows[N], next[N];
    for (int i = 0; i < N; i++) memcpy(&rows[i], in + i * in_stride, sizeof(V));
    for (int half = N / 2, round = 1; round < N; round *= 2) {
        for (int i = 0; i < half; i++) {
            next[2 * i] = zip_low(rows[i], rows[i + half]);
            next[2 * i + 1] = zip_high(rows[i], rows[i + half]);
        }
        for (int i = 0; i < N; i++) rows[i] = next[i];
    }
    for (int i = 0; i < N; i++) memcpy(out + i * out_stride, &rows[i], sizeof(V));
}

template <class V, class E>
inline void transpose_any(const E *in, size_t in_stride, E *out, size_t out_stride, uint32_t rows, uint32_t cols) {
    constexpr uint32_t side = 16 / sizeof(E);
    const uint32_t whole_rows = rows / side * side, whole_cols = cols / side * side;
    for (uint32_t c = 0; c < whole_cols; c += side)
        for (uint32_t r = 0; r < whole_rows; r += side)
            transpose_square<V>(in + r * in_stride + c, in_stride, out + c * out_stride + r, out_stride);
    for (uint32_t r = 0; r < rows; r++)
        for (uint32_t c = r < whole_rows ? whole_cols : 0; c < cols; c++)
            out[c * out_stride + r] = in[r * in_stride + c];
}

// out[c][r] = in[r][c]; strides from row to row, in elements of `size` (2 or 4) bytes.
inline void transpose(uint32_t size, const uint8_t *in, size_t in_stride, uint8_t *out, size_t out_stride,
                      uint32_t rows, uint32_t cols) {
    if (size == 2)
        return transpose_any<Half8>(reinterpret_cast<const uint16_t *>(in), in_stride,
                                    reinterpret_cast<uint16_t *>(out), out_stride, rows, cols);
    transpose_any<Word4>(reinterpret_cast<const uint32_t *>(in), in_stride, reinterpret_cast<uint32_t *>(out),
                         out_stride, rows, cols);
}

}  // namespace sx
