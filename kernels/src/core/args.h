// Argument structs of the C ABI: the caller's may be shorter or longer than ours.
#pragma once

#include <string.h>

#include "core/status.h"

namespace sx {

// Copies what the caller's struct has; the fields it lacks are zero. False when there is no struct at all.
template <class Args>
bool take_args(const Args *args, Args *out) {
    memset(static_cast<void *>(out), 0, sizeof *out);
    if (!args || args->size < sizeof args->size) return false;
    memcpy(static_cast<void *>(out), args, args->size < sizeof *out ? args->size : sizeof *out);
    return true;
}

}  // namespace sx
