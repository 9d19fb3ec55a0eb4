#include "core/team.h"

#include <linux/futex.h>
#include <sched.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <new>
#include <utility>

#include "core/status.h"

namespace sx {
namespace {

uint64_t now_ns() {
    timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return static_cast<uint64_t>(now.tv_sec) * 1000000000u + static_cast<uint64_t>(now.tv_nsec);
}

void relax() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

long futex(std::atomic<uint32_t> *word, int operation, uint32_t value) {
    return syscall(SYS_futex, word, operation, value, nullptr, nullptr, 0);
}

// CPUs this process may use; a team with more threads than that must not spin.
uint32_t usable_cpus() {
    cpu_set_t set;
    return sched_getaffinity(0, sizeof set, &set) == 0 ? static_cast<uint32_t>(CPU_COUNT(&set)) : 1;
}

uint32_t distinct(const int32_t *cpus, uint32_t n) {
    uint32_t count = 0;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t j = 0;
        while (j < i && cpus[j] != cpus[i]) j++;
        count += j == i;
    }
    return count;
}

// Binds the calling thread to one CPU for the length of a job and gives it its own set back afterwards.
class Borrowed {
  public:
    explicit Borrowed(int32_t cpu) {
        if (cpu < 0 || sched_getaffinity(0, sizeof before_, &before_) != 0) return;
        cpu_set_t one;
        CPU_ZERO(&one);
        CPU_SET(cpu, &one);
        pinned_ = CPU_EQUAL(&one, &before_);
        if (!pinned_) pinned_ = moved_ = sched_setaffinity(0, sizeof one, &one) == 0;
    }
    bool pinned() const { return pinned_; }
    ~Borrowed() {
        if (moved_) sched_setaffinity(0, sizeof before_, &before_);
    }
    Borrowed(const Borrowed &) = delete;
    Borrowed &operator=(const Borrowed &) = delete;

  private:
    cpu_set_t before_;
    bool moved_ = false, pinned_ = false;
};

// The node of the thread that runs, within the team whose job it runs.
thread_local uint32_t own_node = 0;

bool pin(int32_t cpu) {
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(cpu, &one);
    return sched_setaffinity(0, sizeof one, &one) == 0;
}

}  // namespace

void Signal::advance() {
    value_.fetch_add(1, std::memory_order_seq_cst);
    if (sleepers_.load(std::memory_order_seq_cst) != 0) futex(&value_, FUTEX_WAKE_PRIVATE, INT32_MAX);
}

void Signal::wait_past(uint32_t seen, uint32_t spin_us) {
    if (value() != seen) return;
    if (spin_us != 0) {
        const uint64_t until = now_ns() + spin_us * 1000ull;
        do {
            for (int i = 0; i < 64; i++) {
                if (value() != seen) return;
                relax();
            }
        } while (now_ns() < until);
    }
    sleepers_.fetch_add(1, std::memory_order_seq_cst);
    while (value() == seen) futex(&value_, FUTEX_WAIT_PRIVATE, seen);
    sleepers_.fetch_sub(1, std::memory_order_seq_cst);
}

sx_status Team::create(uint32_t n, const int32_t *cpus, uint32_t spin_us, std::unique_ptr<Team> *out) {
    if (cpus ? distinct(cpus, n) < n : usable_cpus() < n) spin_us = 0;
    if (usable_cpus() < 2) spin_us = 0;
    std::unique_ptr<Team> team(new (std::nothrow) Team(n, spin_us));
    if (team) team->starts_.reset(new (std::nothrow) Start[n]);
    if (!team || !team->starts_) return fail(SX_ENOMEM, "no memory for a team of %u threads", n);
    sx_status status = cpus ? team->take_cpus(cpus) : SX_OK;
    if (status == SX_OK) status = team->start();
    if (status == SX_OK) *out = std::move(team);
    return status;
}

sx_status Team::take_cpus(const int32_t *cpus) {
    cpus_.reset(new (std::nothrow) int32_t[n_]);
    if (!cpus_) return fail(SX_ENOMEM, "no memory for a list of %u CPUs", n_);
    memcpy(cpus_.get(), cpus, n_ * sizeof *cpus);
    return plan_nodes(cpus_.get(), n_, &nodes_);
}

sx_status Team::start() {
    for (; started_ < n_; started_++) {
        Start &s = starts_[started_];
        s.team = this;
        s.thread = started_;
        const int error = pthread_create(&s.handle, nullptr, main_of, &s);
        if (error != 0)
            return fail(SX_ENOMEM, "thread %u of %u could not be started: %s", started_, n_, strerror(error));
    }
    if (cpus_ && Borrowed(cpus_[0]).pinned()) pinned_++;
    run([](uint32_t) {});  // returns when every thread has tried to pin itself
    return SX_OK;
}

Team::~Team() {
    stop_ = true;
    work_.advance();
    for (uint32_t i = 1; i < started_; i++) pthread_join(starts_[i].handle, nullptr);
    pthread_mutex_destroy(&turn_);
}

void *Team::main_of(void *start) {
    const Start &s = *static_cast<Start *>(start);
    s.team->serve(s.thread);
    return nullptr;
}

void Team::serve(uint32_t thread) {
    if (cpus_ && pin(cpus_[thread])) pinned_++;
    own_node = node_of(thread);
    for (uint32_t seen = 0;; seen++) {
        work_.wait_past(seen, spin_us_);
        if (stop_) return;
        job_(context_, thread);
        barrier();
    }
}

void Team::run_raw(Job job, const void *context) {
    pthread_mutex_lock(&turn_);
    {
        const Borrowed bound(cpu(0));
        own_node = 0;
        job_ = job;
        context_ = context;
        work_.advance();
        job(context, 0);
        barrier();
    }
    pthread_mutex_unlock(&turn_);
}

void Team::barrier() {
    if (n_ == 1) return;
    Gate &gate = gates_[own_node];
    const uint32_t seen = gate.met.value();
    if (gate.waiting.fetch_add(1, std::memory_order_acq_rel) + 1 < n_ / nodes_.count) {
        gate.met.wait_past(seen, spin_us_);
        return;
    }
    gate.waiting.store(0, std::memory_order_relaxed);
    if (nodes_.count > 1) cross();
    gate.met.advance();
}

void Team::cross() {
    const uint32_t seen = crossing_.met.value();
    if (crossing_.waiting.fetch_add(1, std::memory_order_acq_rel) + 1 < nodes_.count) {
        crossing_.met.wait_past(seen, spin_us_);
        return;
    }
    crossing_.waiting.store(0, std::memory_order_relaxed);
    crossing_.met.advance();
}

}  // namespace sx
