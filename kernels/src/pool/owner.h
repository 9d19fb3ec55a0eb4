// The owner's private truth. It never believes what the shared file says about its own tickets and chunks, so that
// nothing a consumer does to the file can make it hand out a chunk twice.
#pragma once

#include <cstdint>
#include <memory>

namespace sx {

struct Layout;

struct OwnedTicket {
    bool used;
    bool filling;
    bool doomed;  // to be freed as soon as the consumer's lease allows
    uint16_t era;
    uint32_t n_tokens, n_chunks;
    uint64_t lease_ns;
    uint64_t id[2];
};

struct Owner {
    // False: no memory.
    bool allocate(const Layout &layout);

    uint32_t chunks_free() const { return n_free_; }
    uint32_t tickets_free() const { return n_tickets_ - n_used_; }
    uint32_t n_tickets() const { return n_tickets_; }

    OwnedTicket &ticket(uint32_t index) { return tickets_[index]; }
    // Index of an unused ticket, now used and filling; n_tickets() when there is none.
    uint32_t take_ticket(const uint64_t id[2], uint64_t lease_ns);
    // Index of the used ticket with this id, or n_tickets().
    uint32_t find_ticket(const uint64_t id[2]) const;
    void give_ticket(uint32_t index);

    // The caller has checked chunks_free().
    uint32_t take_chunk(uint32_t index);
    void give_chunks(uint32_t index);
    uint32_t chunk(uint32_t index, uint32_t position) const { return lists_[uint64_t{index} * max_chunks_ + position]; }

  private:
    uint32_t n_tickets_ = 0, max_chunks_ = 0, n_used_ = 0, n_free_ = 0, next_ = 0;
    std::unique_ptr<OwnedTicket[]> tickets_;
    std::unique_ptr<uint32_t[]> lists_;  // [ticket][position]: chunk numbers
    std::unique_ptr<uint32_t[]> free_;   // stack of free chunk numbers
};

}  // namespace sx
