// The thread team under load, for ThreadSanitizer: every thread must see what all others wrote before a barrier, runs
// from several callers take turns, and teams come and go. Teams sleep and spin, with one node and several.
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>

#include <vector>

#include "core/team.h"

namespace {

constexpr uint32_t kJobs = 150, kRounds = 6;

void need(bool good, const char *what) {
    if (good) return;
    printf("team_stress: %s\n", what);
    exit(1);
}

std::unique_ptr<sx::Team> make(uint32_t n, const int32_t *cpus, uint32_t spin_us) {
    std::unique_ptr<sx::Team> team;
    need(sx::Team::create(n, cpus, spin_us, &team) == SX_OK, "a team can't be had");
    return team;
}

// Plain cells: only the barrier keeps one thread's writes from another's reads.
void work(sx::Team &team, uint64_t job) {
    const uint32_t n = team.size();
    std::vector<uint64_t> cells(n, 0);
    bool wrong = false;
    team.run([&](uint32_t thread) {
        for (uint64_t round = 0; round < kRounds; round++) {
            cells[thread] = job * 1000 + round * 100 + thread;
            team.barrier();
            for (uint32_t other = 0; other < n; other++)
                if (cells[other] != job * 1000 + round * 100 + other) wrong = true;
            team.barrier();
        }
    });
    need(!wrong, "a thread saw what another had written before or after its turn");
}

struct Caller {
    sx::Team *team;
    uint64_t first;
};

void *call(void *argument) {
    const Caller &caller = *static_cast<Caller *>(argument);
    for (uint64_t job = 0; job < kJobs; job++) work(*caller.team, caller.first + job);
    return nullptr;
}

void from_several_threads(sx::Team &team) {
    Caller callers[3] = {{&team, 0}, {&team, 1u << 20}, {&team, 1u << 21}};
    pthread_t threads[3];
    for (int i = 0; i < 3; i++) need(pthread_create(&threads[i], nullptr, call, &callers[i]) == 0, "no thread");
    for (pthread_t thread : threads) pthread_join(thread, nullptr);
}

// The CPUs this process may use, each of the first `n` numbers once.
std::vector<int32_t> own_cpus(uint32_t n) {
    cpu_set_t set;
    std::vector<int32_t> cpus;
    need(sched_getaffinity(0, sizeof set, &set) == 0, "no affinity");
    for (int32_t cpu = 0; cpu < CPU_SETSIZE && cpus.size() < n; cpu++)
        if (CPU_ISSET(cpu, &set)) cpus.push_back(cpu);
    return cpus;
}

}  // namespace

int main() {
    for (uint32_t n : {1u, 2u, 3u, 8u, 16u})
        for (uint32_t spin_us : {0u, 50u}) from_several_threads(*make(n, nullptr, spin_us));
    const std::vector<int32_t> cpus = own_cpus(2);
    from_several_threads(*make(static_cast<uint32_t>(cpus.size()), cpus.data(), 50));
    for (uint32_t i = 0; i < 100; i++) make(1 + i % 5, nullptr, 50);  // ended before its threads have begun
    printf("ok\n");
    return 0;
}
