// Helpers of ops_check.cpp: repeatable random numbers, arrays between guard pages, and comparison.
#pragma once

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include <vector>

namespace check {

// SplitMix64 (Steele, Lea, Flood 2014).
struct Random {
    uint64_t state;
    uint64_t next() {
        uint64_t z = state += 0x9e3779b97f4a7c15u;
        z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
        z = (z ^ z >> 27) * 0x94d049bb133111ebu;
        return z ^ z >> 31;
    }
    uint32_t below(uint32_t n) { return static_cast<uint32_t>(next() % n); }
    uint32_t between(uint32_t low, uint32_t high) { return low + below(high - low + 1); }
    // Roughly normal: the sum of four uniform numbers.
    float real() {
        float sum = 0;
        for (int i = 0; i < 4; i++) sum += static_cast<float>(next() >> 40) * 0x1p-24f - 0.5f;
        return sum * 1.7f;
    }
    std::vector<float> reals(size_t n) {
        std::vector<float> x(n);
        for (float &v : x) v = real();
        return x;
    }
};

// An array that ends exactly at an unreadable page; the bytes before it must stay as they are.
template <class T>
class Guarded {
  public:
    explicit Guarded(size_t n) : n_(n) {
        const size_t bytes = n * sizeof(T);
        room_ = (bytes + kPage - 1) / kPage * kPage + kPage;
        base_ = static_cast<uint8_t *>(
            mmap(nullptr, room_ + kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
        if (base_ == MAP_FAILED || mprotect(base_ + room_, kPage, PROT_NONE) != 0) abort();
        memset(base_, kCanary, room_);
        data_ = reinterpret_cast<T *>(base_ + room_ - bytes);
    }
    explicit Guarded(const std::vector<T> &from) : Guarded(from.size()) {
        memcpy(data_, from.data(), from.size() * sizeof(T));
    }
    ~Guarded() { munmap(base_, room_ + kPage); }
    Guarded(const Guarded &) = delete;
    Guarded &operator=(const Guarded &) = delete;
    T *data() const { return data_; }
    size_t size() const { return n_; }
    bool intact() const {
        for (const uint8_t *p = base_; p < reinterpret_cast<uint8_t *>(data_); p++)
            if (*p != kCanary) return false;
        return true;
    }

  private:
    static constexpr size_t kPage = 65536;  // the largest page size of an AArch64 kernel
    static constexpr uint8_t kCanary = 0xa5;
    size_t n_, room_;
    uint8_t *base_;
    T *data_;
};

// Distance of two arrays relative to the size of the first, in the root mean square sense.
inline double distance(const float *expected, const float *got, size_t n) {
    double difference = 0, size = 1e-30;
    for (size_t i = 0; i < n; i++) {
        difference += (static_cast<double>(expected[i]) - got[i]) * (static_cast<double>(expected[i]) - got[i]);
        size += static_cast<double>(expected[i]) * expected[i];
    }
    return sqrt(difference / size);
}

// FNV-1a, 64 bits.
inline uint64_t digest(const uint8_t *bytes, size_t n, uint64_t hash = 0xcbf29ce484222325u) {
    for (size_t i = 0; i < n; i++) hash = (hash ^ bytes[i]) * 0x100000001b3u;
    return hash;
}

}  // namespace check
