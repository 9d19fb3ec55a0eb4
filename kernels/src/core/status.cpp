#include "core/status.h"

#include <cstdarg>
#include <cstdio>

namespace sx {
namespace {

thread_local char last_error[512];

}  // namespace

sx_status fail(sx_status status, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    std::vsnprintf(last_error, sizeof last_error, format, arguments);
    va_end(arguments);
    return status;
}

}  // namespace sx

uint32_t sx_abi_version(void) { return SX_ABI_VERSION; }

const char *sx_last_error(void) { return sx::last_error; }

const char *sx_status_name(sx_status status) {
    switch (status) {
        case SX_OK: return "SX_OK";
        case SX_EINVAL: return "SX_EINVAL";
        case SX_ENOMEM: return "SX_ENOMEM";
        case SX_EUNSUPPORTED: return "SX_EUNSUPPORTED";
        case SX_ESTATE: return "SX_ESTATE";
        case SX_EIO: return "SX_EIO";
        case SX_EFULL: return "SX_EFULL";
        case SX_ENOTFOUND: return "SX_ENOTFOUND";
        case SX_ESTALE: return "SX_ESTALE";
        case SX_ECORRUPT: return "SX_ECORRUPT";
        case SX_EBUSY: return "SX_EBUSY";
        case SX_EMISMATCH: return "SX_EMISMATCH";
        default: return "SX_unknown";
    }
}
