// Every weight format. A new one is a header beside this file and an entry in the list (core/DESIGN.md).
#pragma once

#include "formats/floats.h"
#include "formats/q4_0.h"
#include "formats/q4_1.h"
#include "formats/q4_k.h"
#include "formats/q8_0.h"

namespace sx {
namespace {

template <class... F>
struct List {
    static constexpr uint32_t kCount = sizeof...(F);
};

using Formats = List<F32, F16, Bf16, Q4_0, Q4_1, Q8_0, Q4_K>;

}  // namespace

constexpr uint32_t kFormats = Formats::kCount;

}  // namespace sx
