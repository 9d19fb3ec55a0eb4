// The two checksums: of handoff chunks (CRC-32C) and of pages that Python reads too (zlib's CRC-32).
#pragma once

#include <cstddef>
#include <cstdint>

namespace sx {

// CRC-32C (Castagnoli, polynomial 0x1EDC6F41 reflected, RFC 3720 appendix B.4), by instruction where the CPU has one.
// `crc` is the result for the bytes before, 0 at the start.
uint32_t crc32c(uint32_t crc, const void *data, size_t bytes);
// The same over `n` pieces of `bytes` bytes that begin `step` bytes apart.
uint32_t crc32c_rows(uint32_t crc, const uint8_t *data, size_t bytes, size_t step, size_t n);
// Of two pieces in a row, from the results of each: `power` is crc32c_power(bytes of the second).
uint32_t crc32c_power(uint64_t bytes);
uint32_t crc32c_join(uint32_t first, uint32_t second, uint32_t power);
// The same by table: the fallback, and the oracle of the tests.
uint32_t crc32c_table(uint32_t crc, const void *data, size_t bytes);
// CRC-32 as zlib's crc32(): so that Python verifies headers and stats pages without native code.
uint32_t crc32_zlib(uint32_t crc, const void *data, size_t bytes);

}  // namespace sx
