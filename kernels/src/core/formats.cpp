// sx_format_describe: what a caller must know of a weight format.
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
