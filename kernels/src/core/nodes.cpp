#include "core/nodes.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "core/status.h"

namespace sx {
namespace {

constexpr int kMpolBind = 2;            // MPOL_BIND of <linux/mempolicy.h>
constexpr unsigned kMpolMove = 1 << 1;  // MPOL_MF_MOVE
constexpr int32_t kMaxNodeId = 1023;

// The folder /sys/devices/system/cpu/cpuN holds a link nodeM. 0 where it holds none: a kernel without NUMA.
int32_t node_of_cpu(int32_t cpu) {
    char path[64];
    snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu%d", cpu);
    DIR *folder = opendir(path);
    int32_t node = 0;
    for (const dirent *entry; folder && (entry = readdir(folder)) != nullptr;)
        if (strncmp(entry->d_name, "node", 4) == 0 && entry->d_name[4] >= '0' && entry->d_name[4] <= '9')
            node = static_cast<int32_t>(strtol(entry->d_name + 4, nullptr, 10));
    if (folder) closedir(folder);
    return node <= kMaxNodeId ? node : 0;
}

struct Place {
    int32_t node, cpu;
};

int by_node(const void *a, const void *b) {
    const Place &x = *static_cast<const Place *>(a), &y = *static_cast<const Place *>(b);
    if (x.node != y.node) return x.node < y.node ? -1 : 1;
    return x.cpu < y.cpu ? -1 : x.cpu > y.cpu;
}

uint32_t run_length(const Place *places, uint32_t n) {
    uint32_t length = 1;
    while (length < n && places[length].node == places[0].node) length++;
    return length;
}

sx_status count_nodes(const Place *places, uint32_t n, NodeSet *out) {
    const uint32_t each = run_length(places, n);
    for (out->count = 0; out->count * each < n; out->count++) {
        const Place *run = places + out->count * each;
        const uint32_t found = run_length(run, n - out->count * each);
        if (found != each)
            return fail(SX_EINVAL,
                        "cpus: expected the same number on every NUMA node, got %u on node %d and %u on node %d", each,
                        places[0].node, found, run[0].node);
        if (out->count == kMaxNodes)
            return fail(SX_EUNSUPPORTED, "cpus: they lie on more than %u NUMA nodes", kMaxNodes);
        out->id[out->count] = run[0].node;
    }
    return SX_OK;
}

}  // namespace

sx_status plan_nodes(int32_t *cpus, uint32_t n, NodeSet *out) {
    Place *places = static_cast<Place *>(malloc(n * sizeof *places));
    if (!places) return fail(SX_ENOMEM, "no memory to sort %u CPUs", n);
    for (uint32_t i = 0; i < n; i++) places[i] = {node_of_cpu(cpus[i]), cpus[i]};
    qsort(places, n, sizeof *places, by_node);
    for (uint32_t i = 0; i < n; i++) cpus[i] = places[i].cpu;
    const sx_status status = count_nodes(places, n, out);
    free(places);
    return status;
}

bool bind_to_node(void *address, size_t bytes, int32_t node) {
    if (bytes == 0) return true;
    unsigned long mask[(kMaxNodeId + 1) / (8 * sizeof(unsigned long))] = {};
    mask[static_cast<size_t>(node) / (8 * sizeof *mask)] = 1ul << (static_cast<size_t>(node) % (8 * sizeof *mask));
    return syscall(SYS_mbind, address, bytes, kMpolBind, mask, static_cast<unsigned long>(kMaxNodeId) + 1, kMpolMove) ==
           0;
}

}  // namespace sx
