// Status codes with a text: every failing call says what was expected and what came.
#pragma once

#include "syshax/kernels.h"

namespace sx {

// Keeps the text for sx_last_error() of this thread and returns `status`, so that callers write `return fail(...)`.
[[gnu::format(printf, 2, 3)]] sx_status fail(sx_status status, const char *format, ...);

}  // namespace sx
