// Atomic access to words of the mapping. They live in a file shared by processes, so they are plain integers there
// and the compiler's builtins (lock-free on every target we build for) are used instead of std::atomic objects.
#pragma once

#include <cstdint>

namespace sx {

static_assert(__atomic_always_lock_free(8, nullptr), "the pool needs lock-free 64-bit atomics");

template <class T>
T load_relaxed(const T *p) {
    return __atomic_load_n(p, __ATOMIC_RELAXED);
}
template <class T>
T load_acquire(const T *p) {
    return __atomic_load_n(p, __ATOMIC_ACQUIRE);
}
template <class T>
void store_relaxed(T *p, T value) {
    __atomic_store_n(p, value, __ATOMIC_RELAXED);
}
template <class T>
void store_release(T *p, T value) {
    __atomic_store_n(p, value, __ATOMIC_RELEASE);
}

template <class T>
bool swap_if(T *p, T expected, T desired) {
    return __atomic_compare_exchange_n(p, &expected, desired, false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE);
}

// After reads that must not move below it: a following load that still sees the old word proves them good.
inline void acquire_fence() { __atomic_thread_fence(__ATOMIC_ACQUIRE); }
// Before writes that must not move above it: who sees one of them also sees the word stored earlier.
inline void release_fence() { __atomic_thread_fence(__ATOMIC_RELEASE); }

}  // namespace sx
