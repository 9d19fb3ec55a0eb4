// A context: an instruction set and a team of threads.
#pragma once

#include <atomic>
#include <memory>

#include "core/ops.h"
#include "core/team.h"
#include "syshax/kernels.h"

namespace sx {

// The operations named `name`, or the best of this CPU for nullptr; nullptr where this CPU or build can't run it.
const Ops *find_ops(const char *name);

}  // namespace sx

struct sx_context {
    const sx::Ops *ops = nullptr;
    uint32_t nrc = 0;
    std::unique_ptr<sx::Team> team;
    std::atomic<uint32_t> unbound{0};  // ranges of memory that could not be bound to their node
};
