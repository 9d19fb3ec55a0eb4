// Large arrays: straight from the kernel, zeroed, aligned to pages, and not touched before their owner does.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace sx {

class Memory {
  public:
    Memory() = default;
    ~Memory() { release(); }
    Memory(Memory &&other) noexcept { swap(other); }
    Memory &operator=(Memory &&other) noexcept {
        swap(other);
        return *this;
    }
    Memory(const Memory &) = delete;
    Memory &operator=(const Memory &) = delete;

    // False when the address space can't be had; the old content stays then.
    bool allocate(size_t bytes);
    void release();
    uint8_t *data() const { return data_; }
    size_t size() const { return size_; }
    template <class T>
    T *as() const {
        return reinterpret_cast<T *>(data_);
    }

  private:
    void swap(Memory &other) noexcept {
        uint8_t *data = data_;
        const size_t size = size_;
        data_ = other.data_;
        size_ = other.size_;
        other.data_ = data;
        other.size_ = size;
    }
    uint8_t *data_ = nullptr;
    size_t size_ = 0;
};

}  // namespace sx
