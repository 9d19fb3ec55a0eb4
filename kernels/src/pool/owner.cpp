#include "pool/owner.h"

#include <new>

#include "pool/layout.h"

namespace sx {

bool Owner::allocate(const Layout &layout) {
    n_tickets_ = layout.n_tickets;
    max_chunks_ = layout.max_chunks;
    n_free_ = layout.n_chunks;
    tickets_.reset(new (std::nothrow) OwnedTicket[n_tickets_]());
    lists_.reset(new (std::nothrow) uint32_t[uint64_t{n_tickets_} * max_chunks_]);
    free_.reset(new (std::nothrow) uint32_t[n_free_]);
    if (!tickets_ || !lists_ || !free_) return false;
    for (uint32_t i = 0; i < n_free_; ++i) free_[i] = n_free_ - 1 - i;  // number 0 is taken first
    return true;
}

// Round robin: a ticket just freed is used again last, which keeps its era meaningful for longest.
uint32_t Owner::take_ticket(const uint64_t id[2], uint64_t lease_ns) {
    for (uint32_t tried = 0; tried < n_tickets_; ++tried) {
        const uint32_t index = next_;
        next_ = (next_ + 1) % n_tickets_;
        OwnedTicket &ticket = tickets_[index];
        if (ticket.used) continue;
        ticket = OwnedTicket{true, true, false, static_cast<uint16_t>(ticket.era + 1), 0, 0, lease_ns, {id[0], id[1]}};
        ++n_used_;
        return index;
    }
    return n_tickets_;
}

uint32_t Owner::find_ticket(const uint64_t id[2]) const {
    for (uint32_t i = 0; i < n_tickets_; ++i) {
        const OwnedTicket &ticket = tickets_[i];
        if (ticket.used && ticket.id[0] == id[0] && ticket.id[1] == id[1]) return i;
    }
    return n_tickets_;
}

void Owner::give_ticket(uint32_t index) {
    tickets_[index].used = false;
    --n_used_;
}

uint32_t Owner::take_chunk(uint32_t index) {
    const uint32_t number = free_[--n_free_];
    lists_[uint64_t{index} * max_chunks_ + tickets_[index].n_chunks++] = number;
    return number;
}

void Owner::give_chunks(uint32_t index) {
    OwnedTicket &ticket = tickets_[index];
    while (ticket.n_chunks > 0) free_[n_free_++] = chunk(index, --ticket.n_chunks);
}

}  // namespace sx
