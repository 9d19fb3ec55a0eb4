// What this machine can do at most, on the same threads and pages as the kernels: memory read bandwidth and the rates
// of 8-bit and f32 multiply-adds. Usage: roofline CPU[,CPU...] [MEBIBYTES]; prints one line of JSON.
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include <algorithm>
#include <atomic>
#include <thread>
#include <vector>

#if defined(__AVX512VNNI__)
#include <immintrin.h>
#elif defined(__ARM_FEATURE_DOTPROD)
#include <arm_neon.h>
#endif

namespace {

double seconds() {
    timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

// Sums 64-byte lines, eight at a time; the prefetch distance is the one that gains most on the machines at hand.
uint64_t read_all(const uint8_t *data, size_t bytes) {
    typedef uint64_t Line __attribute__((vector_size(64)));
    Line sum[8] = {};
    for (size_t at = 0; at < bytes; at += 512) {
        for (int i = 0; i < 8; i++) {
            __builtin_prefetch(data + at + 4096 + 64 * i);
            Line line;
            memcpy(&line, data + at + 64 * i, 64);
            sum[i] ^= line;
        }
    }
    uint64_t all = 0;
    for (const Line &s : sum) all ^= s[0] ^ s[7];
    return all;
}

#if defined(__AVX512VNNI__)
constexpr double kOps = 128;  // multiplications and additions of one instruction
uint64_t multiply(long rounds) {
    __m512i acc[12], a = _mm512_set1_epi32(static_cast<int>(rounds)), b = _mm512_set1_epi8(3);
    for (__m512i &x : acc) x = _mm512_setzero_si512();
    for (long i = 0; i < rounds; i++) {
#pragma GCC unroll 12
        for (int j = 0; j < 12; j++) acc[j] = _mm512_dpbusd_epi32(acc[j], a, b);
        __asm__ volatile("" : "+v"(a));
    }
    uint64_t sum = 0;
    for (const __m512i &x : acc) sum += static_cast<uint64_t>(_mm512_reduce_add_epi32(x));
    return sum;
}
#elif defined(__ARM_FEATURE_DOTPROD)
constexpr double kOps = 32;
uint64_t multiply(long rounds) {
    int32x4_t acc[12];
    int8x16_t a = vdupq_n_s8(static_cast<int8_t>(rounds)), b = vdupq_n_s8(3);
    for (int32x4_t &x : acc) x = vdupq_n_s32(0);
    for (long i = 0; i < rounds; i++) {
        for (int j = 0; j < 12; j++) acc[j] = vdotq_s32(acc[j], a, b);
        __asm__ volatile("" : "+w"(a));
    }
    uint64_t sum = 0;
    for (const int32x4_t &x : acc) sum += static_cast<uint64_t>(vaddvq_s32(x));
    return sum;
}
#else
constexpr double kOps = 0;
uint64_t multiply(long) { return 0; }
#endif

#if defined(__AVX512F__)
constexpr int kFloats = 16;
#elif defined(__AVX2__)
constexpr int kFloats = 8;
#else
constexpr int kFloats = 4;
#endif

// The compiler contracts these to fused multiply-adds where the CPU has them.
uint64_t multiply_floats(long rounds) {
    typedef float Vector __attribute__((vector_size(4 * kFloats)));
    Vector acc[12], a = Vector{} + 1e-9f * static_cast<float>(rounds), b = Vector{} + 0.5f, total = {};
    for (int j = 0; j < 12; j++)
        acc[j] = Vector{} + static_cast<float>(j);  // all different, or one would serve for all
    for (long i = 0; i < rounds; i++) {
#pragma GCC unroll 12
        for (int j = 0; j < 12; j++) acc[j] = acc[j] * b + a;
#if defined(__x86_64__)
        __asm__ volatile("" : "+v"(a));
#else
        __asm__ volatile("" : "+w"(a));
#endif
    }
    for (const Vector &x : acc) total += x;
    float sum = 0;
    for (int i = 0; i < kFloats; i++) sum += total[i];
    return static_cast<uint64_t>(sum * 1000);
}

struct Shared {
    std::atomic<uint32_t> ready{0};
    std::atomic<uint64_t> sink{0};
    uint32_t n = 0;
};

// All threads start together; returns the seconds from then until this one is done.
template <class F>
double timed(Shared *shared, uint32_t target, const F &work) {
    shared->ready++;
    while (shared->ready.load() < target) sched_yield();
    const double start = seconds();
    shared->sink += work();
    return seconds() - start;
}

void pin(int cpu) {
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(cpu, &one);
    sched_setaffinity(0, sizeof one, &one);
}

}  // namespace

int main(int argc, char **argv) {
    std::vector<int> cpus;
    char *list = argc > 1 ? argv[1] : nullptr;
    for (char *cpu = list ? strtok(list, ",") : nullptr; cpu; cpu = strtok(nullptr, ",")) cpus.push_back(atoi(cpu));
    if (cpus.empty()) return fprintf(stderr, "usage: roofline CPU[,CPU...] [MEBIBYTES]\n"), 2;
    const size_t bytes = (argc > 2 ? strtoull(argv[2], nullptr, 10) : 512) << 20;
    constexpr int kReads = 5, kRounds = 3, kSteps = kReads + 2 * kRounds;
    constexpr long kInstructions = 4000000;
    Shared shared;
    shared.n = static_cast<uint32_t>(cpus.size());
    std::vector<double> spent(cpus.size() * kSteps);
    std::vector<std::thread> threads;
    for (size_t t = 0; t < cpus.size(); t++)
        threads.emplace_back([&, t] {
            pin(cpus[t]);
            auto *data = static_cast<uint8_t *>(
                mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
            if (data == MAP_FAILED) abort();
            madvise(data, bytes, MADV_HUGEPAGE);
            memset(data, static_cast<int>(t) + 1, bytes);
            for (uint32_t i = 0; i < kSteps; i++) {
                const auto work = [&]() -> uint64_t {
                    if (i < kReads) return read_all(data, bytes - 8192);
                    return i < kReads + kRounds ? multiply(kInstructions) : multiply_floats(kInstructions);
                };
                spent[i * cpus.size() + t] = timed(&shared, (i + 1) * shared.n, work);
            }
        });
    for (std::thread &thread : threads) thread.join();
    double best_read = 0, best_int8 = 0, best_f32 = 0;
    const double n = static_cast<double>(cpus.size());
    for (uint32_t i = 0; i < kSteps; i++) {
        const double slowest =
            *std::max_element(spent.begin() + i * cpus.size(), spent.begin() + (i + 1) * cpus.size());
        const double tera = n * 12 * kInstructions / slowest * 1e-12;
        if (i < kReads)
            best_read = std::max(best_read, n * static_cast<double>(bytes) / slowest * 1e-9);
        else if (i < kReads + kRounds)
            best_int8 = std::max(best_int8, tera * kOps);
        else
            best_f32 = std::max(best_f32, tera * 2 * kFloats);
    }
    printf("{\"threads\": %zu, \"read_gb_s\": %.2f, \"int8_tops\": %.4f, \"f32_tflops\": %.4f}\n", cpus.size(),
           best_read, best_int8, best_f32);
    return shared.sink == 42;
}
