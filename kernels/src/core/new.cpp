// Allocation of C++ objects by malloc, so that the library needs nothing of the C++ runtime: neither its unwinder,
// which ties a binary to a new glibc, nor its exceptions. Only the forms that return nullptr are for use.
#include <stdlib.h>

#include <new>

const std::nothrow_t std::nothrow{};

void *operator new(size_t bytes, const std::nothrow_t &) noexcept { return malloc(bytes != 0 ? bytes : 1); }
void *operator new[](size_t bytes, const std::nothrow_t &) noexcept { return malloc(bytes != 0 ? bytes : 1); }
void operator delete(void *at) noexcept { free(at); }
void operator delete[](void *at) noexcept { free(at); }
void operator delete(void *at, size_t) noexcept { free(at); }
void operator delete[](void *at, size_t) noexcept { free(at); }
void *operator new(size_t bytes, std::align_val_t align, const std::nothrow_t &) noexcept {
    const size_t step = static_cast<size_t>(align);
    return aligned_alloc(step, (bytes + step - 1) / step * step);
}
void operator delete(void *at, size_t, std::align_val_t) noexcept { free(at); }
