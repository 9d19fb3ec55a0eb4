#include "core/crc.h"

#include <cstring>

#if defined(__x86_64__)
#include <nmmintrin.h>
#elif defined(__aarch64__)
#include <sys/auxv.h>
#ifndef HWCAP_CRC32
#define HWCAP_CRC32 (1 << 7)
#endif
#endif

namespace sx {
namespace {

constexpr uint32_t kCastagnoli = 0x82f63b78u;
constexpr uint32_t kIeee = 0xedb88320u;

// Effect of eight zero bits a step on every byte value: the textbook table for a reflected polynomial.
struct ByteTable {
    uint32_t value[256];
};

constexpr ByteTable byte_table(uint32_t polynomial) {
    ByteTable table{};
    for (uint32_t i = 0; i < 256; ++i) {
        uint32_t crc = i;
        for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1u) ? polynomial : 0u);
        table.value[i] = crc;
    }
    return table;
}

constexpr ByteTable kCastagnoliTable = byte_table(kCastagnoli);
constexpr ByteTable kIeeeTable = byte_table(kIeee);

uint32_t run_table(const ByteTable &table, uint32_t crc, const uint8_t *p, size_t bytes) {
    crc = ~crc;
    for (size_t i = 0; i < bytes; ++i) crc = table.value[(crc ^ p[i]) & 0xff] ^ (crc >> 8);
    return ~crc;
}

#if defined(__x86_64__) || defined(__aarch64__)

// The instruction has a latency of about three cycles and a throughput of one, so three runs of a block are computed
// side by side. Joining them needs the effect of a block of zero bytes on a crc: linear over GF(2), hence a table for
// each of its four bytes.
struct ShiftTable {
    uint32_t value[4][256];
};

constexpr uint32_t shift_zero_bytes(uint32_t crc, size_t bytes) {
    for (size_t i = 0; i < bytes; ++i) crc = kCastagnoliTable.value[crc & 0xff] ^ (crc >> 8);
    return crc;
}

constexpr ShiftTable shift_table(size_t bytes) {
    uint32_t column[32] = {};
    for (int bit = 0; bit < 32; ++bit) column[bit] = shift_zero_bytes(1u << bit, bytes);
    ShiftTable table{};
    for (int byte = 0; byte < 4; ++byte) {
        for (uint32_t i = 0; i < 256; ++i) {
            for (int bit = 0; bit < 8; ++bit) table.value[byte][i] ^= ((i >> bit) & 1u) ? column[8 * byte + bit] : 0u;
        }
    }
    return table;
}

constexpr size_t kLong = 1024, kShort = 128;
constexpr ShiftTable kLongShift = shift_table(kLong), kShortShift = shift_table(kShort);

uint32_t shift(const ShiftTable &t, uint32_t crc) {
    return t.value[0][crc & 0xff] ^ t.value[1][(crc >> 8) & 0xff] ^ t.value[2][(crc >> 16) & 0xff] ^
           t.value[3][crc >> 24];
}

#if defined(__x86_64__)
inline uint32_t step8(uint32_t crc, uint64_t word) { return static_cast<uint32_t>(_mm_crc32_u64(crc, word)); }
inline uint32_t step1(uint32_t crc, uint8_t byte) { return _mm_crc32_u8(crc, byte); }
bool have_instruction() { return __builtin_cpu_supports("sse4.2"); }
#else
inline uint32_t step8(uint32_t crc, uint64_t word) {
    __asm__(".arch_extension crc\n\tcrc32cx %w0, %w0, %x1" : "+r"(crc) : "r"(word));
    return crc;
}
inline uint32_t step1(uint32_t crc, uint8_t byte) {
    __asm__(".arch_extension crc\n\tcrc32cb %w0, %w0, %w1" : "+r"(crc) : "r"(byte));
    return crc;
}
bool have_instruction() { return (getauxval(AT_HWCAP) & HWCAP_CRC32) != 0; }
#endif

inline uint64_t word_at(const uint8_t *p) {
    uint64_t word;
    std::memcpy(&word, p, sizeof word);
    return word;
}

template <size_t Block>
const uint8_t *run_blocks(const ShiftTable &table, uint32_t &crc, const uint8_t *p, size_t &bytes) {
    while (bytes >= 3 * Block) {
        uint32_t a = crc, b = 0, c = 0;
        for (size_t i = 0; i < Block; i += 8) {
            __builtin_prefetch(p + 3 * Block + 3 * i);
            a = step8(a, word_at(p + i));
            b = step8(b, word_at(p + Block + i));
            c = step8(c, word_at(p + 2 * Block + i));
        }
        crc = shift(table, shift(table, a) ^ b) ^ c;
        p += 3 * Block;
        bytes -= 3 * Block;
    }
    return p;
}

uint32_t run_instruction(uint32_t crc, const uint8_t *p, size_t bytes) {
    crc = ~crc;
    p = run_blocks<kLong>(kLongShift, crc, p, bytes);
    p = run_blocks<kShort>(kShortShift, crc, p, bytes);
    for (; bytes >= 8; p += 8, bytes -= 8) crc = step8(crc, word_at(p));
    for (; bytes > 0; ++p, --bytes) crc = step1(crc, *p);
    return ~crc;
}
#endif

// a * b modulo the polynomial, which is reflected: the highest bit is x^0.
uint32_t multiply(uint32_t a, uint32_t b) {
    uint32_t product = 0;
    for (uint32_t bit = 1u << 31; bit != 0; bit >>= 1) {
        if (a & bit) product ^= b;
        b = (b >> 1) ^ ((b & 1u) ? kCastagnoli : 0u);
    }
    return product;
}

}  // namespace

// A byte of zeros behind a message multiplies its remainder by x^8: x^(8 * bytes) by squaring.
uint32_t crc32c_power(uint64_t bytes) {
    uint32_t power = 1u << 31;
    for (uint32_t square = 1u << 23; bytes != 0; bytes >>= 1, square = multiply(square, square))
        if (bytes & 1) power = multiply(power, square);
    return power;
}

uint32_t crc32c_join(uint32_t first, uint32_t second, uint32_t power) { return multiply(power, first) ^ second; }

uint32_t crc32c_rows(uint32_t crc, const uint8_t *data, size_t bytes, size_t step, size_t n) {
    if (bytes == step) return crc32c(crc, data, n * bytes);
    for (size_t i = 0; i < n; i++) crc = crc32c(crc, data + i * step, bytes);
    return crc;
}

uint32_t crc32c_table(uint32_t crc, const void *data, size_t bytes) {
    return run_table(kCastagnoliTable, crc, static_cast<const uint8_t *>(data), bytes);
}

uint32_t crc32_zlib(uint32_t crc, const void *data, size_t bytes) {
    return run_table(kIeeeTable, crc, static_cast<const uint8_t *>(data), bytes);
}

uint32_t crc32c(uint32_t crc, const void *data, size_t bytes) {
#if defined(__x86_64__) || defined(__aarch64__)
    if (have_instruction()) return run_instruction(crc, static_cast<const uint8_t *>(data), bytes);
#endif
    return crc32c_table(crc, data, bytes);
}

}  // namespace sx
