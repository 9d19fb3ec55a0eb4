#include "core/memory.h"

#include <sys/mman.h>

namespace sx {
namespace {

constexpr size_t kPage = 4096, kHuge = 2u << 20;

size_t up(size_t n, size_t step) { return (n + step - 1) / step * step; }

}  // namespace

bool Memory::allocate(size_t bytes) {
    const bool huge = bytes >= kHuge;
    const size_t size = up(bytes == 0 ? 1 : bytes, huge ? kHuge : kPage);
    const size_t slack = huge ? kHuge : 0;  // so that it can start at a multiple of a huge page
    void *at = mmap(nullptr, size + slack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (at == MAP_FAILED) return false;
    uint8_t *base = static_cast<uint8_t *>(at);
    if (huge) {
        const size_t skip = up(reinterpret_cast<uintptr_t>(base), kHuge) - reinterpret_cast<uintptr_t>(base);
        if (skip != 0) munmap(base, skip);
        if (skip != kHuge) munmap(base + skip + size, kHuge - skip);
        base += skip;
        madvise(base, size, MADV_HUGEPAGE);
    }
    release();
    data_ = base;
    size_ = size;
    return true;
}

void Memory::release() {
    if (data_) munmap(data_, size_);
    data_ = nullptr;
    size_ = 0;
}

}  // namespace sx
