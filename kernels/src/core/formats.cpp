// What a caller must know of a weight format, and blocks of one as floats.
#include <string.h>

#include "core/status.h"
#include "formats/format.h"

sx_status sx_format_describe(int32_t type, sx_format_info *info) {
    if (!info) return sx::fail(SX_EINVAL, "sx_format_describe: a struct was expected");
    const sx::Format *format = sx::find_format(type);
    if (!format) return sx::fail(SX_ENOTFOUND, "type %d: the core has no such format", type);
    sx_format_info full{info->size,         format->block,     format->block_bytes,         format->step,
                        format->step_bytes, format->quantised, format->quantise != nullptr, {}};
    strncpy(full.name, format->name, sizeof full.name - 1);
    memcpy(info, &full, info->size < sizeof full ? info->size : sizeof full);
    return SX_OK;
}

sx_status sx_decode(int32_t type, const void *blocks, uint64_t weights, float *out) {
    const sx::Format *format = sx::find_format(type);
    if (!format) return sx::fail(SX_ENOTFOUND, "type %d: the core has no such format", type);
    if (weights != 0 && (!blocks || !out)) return sx::fail(SX_EINVAL, "sx_decode: blocks and room were expected");
    if (weights % format->block != 0)
        return sx::fail(SX_EINVAL, "sx_decode: expected a multiple of %u weights of %s, got %llu", format->block,
                        format->name, static_cast<unsigned long long>(weights));
    constexpr uint64_t kStep = uint64_t{1} << 20;  // a multiple of every block
    for (uint64_t done = 0; done < weights; done += kStep) {
        const uint32_t n = static_cast<uint32_t>(weights - done < kStep ? weights - done : kStep);
        const size_t at = static_cast<size_t>(done / format->block) * format->block_bytes;
        format->decode(static_cast<const uint8_t *>(blocks) + at, n, out + done);
    }
    return SX_OK;
}
