// NUMA nodes of a team: which CPUs lie where, and memory bound to one of them. System calls only, no libnuma.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "syshax/kernels.h"

namespace sx {

constexpr uint32_t kMaxNodes = 16;
constexpr size_t kBindStep = 4096;  // binding works by pages

// Nodes in ascending order; thread t of n belongs to node t * count / n.
struct NodeSet {
    uint32_t count = 1;
    int32_t id[kMaxNodes] = {};
    uint32_t of_thread(uint32_t thread, uint32_t n_threads) const {
        return static_cast<uint32_t>(static_cast<uint64_t>(thread) * count / n_threads);
    }
};

// Sorts `cpus` by node and CPU and names their nodes. SX_EINVAL when nodes give different numbers of CPUs.
sx_status plan_nodes(int32_t *cpus, uint32_t n, NodeSet *out);

// Binds whole pages to a node; pages already touched are moved. False where the kernel refuses.
bool bind_to_node(void *address, size_t bytes, int32_t node);

}  // namespace sx
