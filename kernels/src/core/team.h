// The threads of a context: pinned where asked, started once, and driven through one job at a time.
#pragma once

#include <pthread.h>
#include <stdint.h>

#include <atomic>
#include <memory>
#include <type_traits>

#include "core/nodes.h"
#include "syshax/kernels.h"

namespace sx {

// A counter threads wait on: spinning for a while, then asleep in the kernel.
class Signal {
  public:
    uint32_t value() const { return value_.load(std::memory_order_acquire); }
    void advance();
    void wait_past(uint32_t seen, uint32_t spin_us);

  private:
    std::atomic<uint32_t> value_{0};
    std::atomic<uint32_t> sleepers_{0};
};

class Team {
  public:
    // Threads 1..n-1 are started here; thread 0 is whoever calls run(). A text for sx_last_error() on failure.
    // `cpus` holds n numbers, or is nullptr; threads are put in order of their NUMA nodes, equally many on each.
    static sx_status create(uint32_t n, const int32_t *cpus, uint32_t spin_us, std::unique_ptr<Team> *out);
    ~Team();
    Team(const Team &) = delete;
    Team &operator=(const Team &) = delete;

    uint32_t size() const { return n_; }
    uint32_t pinned() const { return pinned_.load(); }
    int32_t cpu(uint32_t thread) const { return cpus_ ? cpus_[thread] : -1; }
    const NodeSet &nodes() const { return nodes_; }
    uint32_t node_of(uint32_t thread) const { return nodes_.of_thread(thread, n_); }

    // Calls job(thread) once on every thread, the caller's as thread 0, and returns when all are done.
    // Calls from several threads take turns.
    template <class F>
    void run(const F &job) {
        run_raw([](const void *context, uint32_t thread) { (*static_cast<const F *>(context))(thread); }, &job);
    }

    // Inside a job: returns when every thread of the team has called it. What they wrote before it is visible after.
    // Threads meet on their own node first, so that one cache line a node crosses between nodes.
    void barrier();

  private:
    using Job = void (*)(const void *, uint32_t);
    struct Start {
        Team *team;
        uint32_t thread;
        pthread_t handle;
    };
    struct alignas(64) Gate {
        Signal met;
        alignas(64) std::atomic<uint32_t> waiting{0};
    };
    Team(uint32_t n, uint32_t spin_us) : n_(n), spin_us_(spin_us) {}
    sx_status take_cpus(const int32_t *cpus);
    sx_status start();
    void cross();
    static void *main_of(void *start);
    void serve(uint32_t thread);
    void run_raw(Job job, const void *context);

    const uint32_t n_, spin_us_;
    uint32_t started_ = 1;
    std::unique_ptr<int32_t[]> cpus_;
    std::unique_ptr<Start[]> starts_;
    std::atomic<uint32_t> pinned_{0};
    pthread_mutex_t turn_ = PTHREAD_MUTEX_INITIALIZER;
    Job job_ = nullptr;
    const void *context_ = nullptr;
    bool stop_ = false;
    alignas(64) Signal work_;
    NodeSet nodes_;
    Gate gates_[kMaxNodes];
    Gate crossing_;  // where the last thread of each node meets those of the others
};

}  // namespace sx
