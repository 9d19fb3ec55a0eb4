// Every weight format. A new one is a header beside this file and an entry in the list (core/DESIGN.md).
#pragma once

#include "formats/floats.h"
#include "formats/iq4.h"
#include "formats/mxfp4.h"
#include "formats/q2_k.h"
#include "formats/q3_k.h"
#include "formats/q4_0.h"
#include "formats/q4_1.h"
#include "formats/q4_k.h"
#include "formats/q5_0.h"
#include "formats/q5_k.h"
#include "formats/q6_k.h"
#include "formats/q8_0.h"

namespace sx {
namespace {

template <class... F>
struct List {
    static constexpr uint32_t kCount = sizeof...(F);
};

// Those that weights are held in, and those that are only read, to be held in another.
using Formats = List<F32, F16, Bf16, Q4_0, Q4_1, Q8_0, Q4_K>;
using Sources = List<Q2_K, Q3_K, Q5_0, Q5_1, Q5_K, Q6_K, Iq4Nl, Iq4Xs, Mxfp4>;

}  // namespace

constexpr uint32_t kFormats = Formats::kCount;

}  // namespace sx
