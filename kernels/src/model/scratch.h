// The memory a forward pass works in, sized once for the largest batch.
#pragma once

#include "model/model.h"

namespace sx {

bool allocate_scratch(sx_model *model);

// Attention partials may take this many floats; more work than that is not split over context.
constexpr size_t kPartialFloats = size_t{16} << 20;

}  // namespace sx
