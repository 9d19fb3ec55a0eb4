// Which instruction sets this CPU and its operating system can run.
#include <string.h>

#include "core/context.h"
#include "core/status.h"

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__)
#include <sys/auxv.h>
#endif

namespace sx {
namespace {

struct Candidate {
    const Ops *ops;
    bool (*runs)();
};

bool always() { return true; }

#if defined(__x86_64__)

struct CpuId {
    unsigned a = 0, b = 0, c = 0, d = 0;
    explicit CpuId(unsigned leaf) { __get_cpuid_count(leaf, 0, &a, &b, &c, &d); }
};

bool has(unsigned word, unsigned bits) { return (word & bits) == bits; }

// XCR0: which register files the operating system saves (Intel SDM volume 1, 13.3).
unsigned saved_state() {
    if (!has(CpuId(1).c, bit_OSXSAVE)) return 0;
    unsigned low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
}

bool runs_avx2() {
    const CpuId basic(1);
    return has(saved_state(), 0x6) && has(basic.c, bit_AVX | bit_FMA | bit_F16C) && has(CpuId(7).b, bit_AVX2);
}

bool runs_avx512vnni() {
    const CpuId more(7);
    return runs_avx2() && has(saved_state(), 0xe6) && has(more.c, bit_AVX512VNNI) &&
           has(more.b, bit_AVX512F | bit_AVX512BW | bit_AVX512VL | bit_AVX512DQ);
}

const Candidate kCandidates[] = {{&avx512_ops, runs_avx512vnni}, {&avx2_ops, runs_avx2}, {&scalar_ops, always}};

#elif defined(__aarch64__)

// Bits of the kernel's arch/arm64/include/uapi/asm/hwcap.h, spelled out for old headers.
bool hwcap(unsigned bit) { return getauxval(AT_HWCAP) >> bit & 1; }
bool hwcap2(unsigned bit) { return getauxval(AT_HWCAP2) >> bit & 1; }

bool runs_neon() { return hwcap(20); }  // asimddp
bool runs_i8mm() { return runs_neon() && hwcap2(13); }
bool runs_sve() { return runs_neon() && hwcap(22); }

const Candidate kCandidates[] = {
    {&i8mm_ops, runs_i8mm}, {&sve_ops, runs_sve}, {&neon_ops, runs_neon}, {&scalar_ops, always}};

#else

const Candidate kCandidates[] = {{&scalar_ops, always}};

#endif

}  // namespace

const Ops *find_ops(const char *name) {
    for (const Candidate &candidate : kCandidates)
        if ((!name || strcmp(name, candidate.ops->name) == 0) && candidate.runs()) return candidate.ops;
    return nullptr;
}

}  // namespace sx

sx_status sx_isa_list(char *out, size_t capacity) {
    size_t used = 0;
    if (!out || capacity == 0)
        return sx::fail(SX_EINVAL, "sx_isa_list: a buffer was expected, got %zu bytes", capacity);
    out[0] = 0;
    for (const sx::Candidate &candidate : sx::kCandidates) {
        if (!candidate.runs()) continue;
        const size_t length = strlen(candidate.ops->name), comma = used != 0;
        if (used + comma + length + 1 > capacity)
            return sx::fail(SX_EINVAL, "sx_isa_list: %zu bytes are not enough for the names", capacity);
        if (comma) out[used++] = ',';
        memcpy(out + used, candidate.ops->name, length + 1);
        used += length;
    }
    return SX_OK;
}
