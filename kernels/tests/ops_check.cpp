// Differential test of every instruction set this CPU runs against the scalar oracle: random shapes, arrays between
// guard pages. Usage: ops_check [CASES [SEED]]; CASES 0 runs until it is killed. Prints one line per instruction set
// and the digest of the packed weights, which must not depend on the architecture.
#include "ops_check.h"

#include <algorithm>

#include "core/context.h"
#include "core/kv_layout.h"
#include "formats/format.h"

using check::Guarded;
using check::Random;

namespace {

uint64_t packed_digest = check::digest(nullptr, 0);

struct Failure {
    const char *isa, *what;
    double distance;
};

[[noreturn]] void stop(const Failure &f, uint64_t seed) {
    printf("FAILED: %s on %s is %.3g away from the oracle, or wrote outside its output (seed %llu)\n", f.what, f.isa,
           f.distance, static_cast<unsigned long long>(seed));
    exit(1);
}

struct Case {
    const sx::Ops &ops;
    Random random;
    uint64_t seed;
    void expect(const char *what, const Guarded<float> &expected, const Guarded<float> &got, double bound) const {
        const double d = check::distance(expected.data(), got.data(), expected.size());
        if (!(d <= bound) || !got.intact()) stop({ops.name, what, d}, seed);
    }
};

// Rows of blocks of `type`: random bytes, but the halves that a block begins with are about 0.1, so that sums stay
// sane.
std::vector<uint8_t> blocks_of(Random *random, const sx::Format &format, size_t weights) {
    std::vector<uint8_t> data(weights / format.block * format.block_bytes);
    for (uint8_t &byte : data) byte = static_cast<uint8_t>(random->next());
    for (size_t at = 0; at < data.size(); at += format.block_bytes)
        for (uint32_t i = 0; i < 2; i++) {
            const uint16_t half = static_cast<uint16_t>(0x2e00 + random->below(256));
            memcpy(data.data() + at + 2 * i, &half, 2);
        }
    return data;
}

std::vector<uint8_t> source_of(Random *random, const sx::Format &format, size_t weights) {
    if (!format.quantise) return blocks_of(random, format, weights);
    const std::vector<float> reals = random->reals(weights);
    std::vector<uint8_t> bytes(weights * sizeof(float));
    memcpy(bytes.data(), reals.data(), bytes.size());
    return bytes;
}

std::vector<uint8_t> pack(Random *random, int32_t type, uint32_t rows, uint32_t cols) {
    const sx::Format &format = *sx::find_format(type);
    const std::vector<uint8_t> source = source_of(random, format, static_cast<size_t>(rows) * cols);
    const size_t stride = sx::tile_bytes(type, cols), tiles = (rows + 15) / 16;
    std::vector<uint8_t> packed(stride * tiles);
    std::vector<float> scratch(sx::round_up(cols, sx::kActColumns));
    const sx::PackJob job{format.quantise ? SX_F32 : type, type, rows, cols, source.data()};
    for (uint32_t t = 0; t < tiles; t++) sx::pack_tile(job, t, packed.data() + t * stride, scratch.data());
    packed_digest = check::digest(packed.data(), packed.size(), packed_digest);
    return packed;
}

std::vector<int32_t> types() {
    std::vector<int32_t> found;
    for (int32_t type = 0; type < 64; type++)
        if (sx::find_format(type) && sx::find_format(type)->step != 0) found.push_back(type);
    return found;
}

void multiply(const sx::Ops &ops, int32_t type, const sx::MulArgs &args) {
    ops.products.of[sx::find_format(type)->index](&args);
}

void check_mul(Case *c) {
    const std::vector<int32_t> all = types();
    const int32_t type = all[c->random.below(static_cast<uint32_t>(all.size()))];
    const bool blocks = sx::is_quantised(type);
    const uint32_t rows = c->random.between(1, 80), m = c->random.between(1, 20);
    const uint32_t block = sx::find_format(type)->block,
                   cols = block * c->random.between(1, block == 1 ? 300 : 384 / block + 1);
    const uint32_t padded = blocks ? sx::round_up(cols, sx::kActColumns) : cols,
                   groups = sx::round_up(cols, sx::kActColumns) / sx::kGroup;
    const std::vector<uint8_t> packed = pack(&c->random, type, rows, cols);
    const Guarded<uint8_t> weights(packed);
    const Guarded<float> x(c->random.reals(static_cast<size_t>(m) * cols));
    const Guarded<int8_t> q(static_cast<size_t>(m) * groups * sx::kGroup);
    const Guarded<float> scale(static_cast<size_t>(m) * groups);
    const Guarded<int32_t> sum(static_cast<size_t>(m) * groups);
    const Guarded<float> total(static_cast<size_t>(m) * groups);
    for (uint32_t i = 0; blocks && i < m; i++) {
        const sx::QuantiseArgs args{x.data() + i * cols,
                                    cols,
                                    padded,
                                    q.data() + i * padded,
                                    scale.data() + i * groups,
                                    sum.data() + i * groups,
                                    total.data() + i * groups};
        sx::scalar_ops.quantise(&args);
    }
    const size_t ld = sx::round_up(rows, 16);
    const Guarded<float> expected(m * ld), got(m * ld);
    sx::MulArgs args{weights.data(),
                     sx::tile_bytes(type, cols),
                     static_cast<uint32_t>(ld / 16),
                     padded,
                     m,
                     c->random.below(2) ? 32u : 16u,
                     {x.data(), cols, q.data(), padded, scale.data(), sum.data(), total.data()},
                     expected.data(),
                     ld};
    multiply(sx::scalar_ops, type, args);
    args.out = got.data();
    multiply(c->ops, type, args);
    c->expect("a product", expected, got, 3e-6);
}

void check_quantise(Case *c) {
    const uint32_t groups = c->random.between(1, 9), n = groups * 32, padded = sx::round_up(n, 64), all = padded / 32;
    const Guarded<float> x(c->random.reals(n));
    if (c->random.below(4) == 0) std::fill(x.data(), x.data() + 32, 0.0f);
    const Guarded<int8_t> q1(padded), q2(padded);
    const Guarded<float> s1(all), s2(all), w1(all), w2(all);
    const Guarded<int32_t> t1(all), t2(all);
    const sx::QuantiseArgs a{x.data(), n, padded, q1.data(), s1.data(), t1.data(), w1.data()},
        b{x.data(), n, padded, q2.data(), s2.data(), t2.data(), w2.data()};
    sx::scalar_ops.quantise(&a);
    c->ops.quantise(&b);
    const bool same = memcmp(q1.data(), q2.data(), padded) == 0 && memcmp(t1.data(), t2.data(), all * 4) == 0;
    if (!same || !q2.intact() || !t2.intact()) stop({c->ops.name, "quantise", 1}, c->seed);
    c->expect("quantise", s1, s2, 0);
    c->expect("quantise's totals", w1, w2, 0);
}

void check_vectors(Case *c) {
    const uint32_t n = c->random.between(1, 200);
    const Guarded<float> x(c->random.reals(n)), w(c->random.reals(n));
    const Guarded<float> a1(n), a2(n);
    sx::scalar_ops.rms_norm(x.data(), w.data(), n, 1e-5f, a1.data());
    c->ops.rms_norm(x.data(), w.data(), n, 1e-5f, a2.data());
    c->expect("rms_norm", a1, a2, 1e-6);
    sx::scalar_ops.silu_mul(a1.data(), x.data(), w.data(), n);
    c->ops.silu_mul(a2.data(), x.data(), w.data(), n);
    c->expect("silu_mul", a1, a2, 1e-6);
    sx::scalar_ops.add(a1.data(), x.data(), n);
    c->ops.add(a2.data(), x.data(), n);
    c->expect("add", a1, a2, 1e-6);
    sx::scalar_ops.rope(a1.data(), x.data(), w.data(), n / 2);
    c->ops.rope(a2.data(), x.data(), w.data(), n / 2);
    c->expect("rope", a1, a2, 1e-6);
}

void check_merge(Case *c) {
    const uint32_t n = 16 * c->random.between(1, 8);
    const std::vector<float> first = c->random.reals(n), second = c->random.reals(n);
    const Guarded<float> o1(first), o2(first), p(second);
    const float peak = c->random.real(), peak2 = 5 * c->random.real();
    float m1[2] = {peak, 3}, m2[2] = {peak, 3};
    sx::scalar_ops.merge(o1.data(), &m1[0], &m1[1], p.data(), peak2, 2, n);
    c->ops.merge(o2.data(), &m2[0], &m2[1], p.data(), peak2, 2, n);
    c->expect("merge", o1, o2, 1e-6);
    if (m1[0] != m2[0] || fabsf(m1[1] - m2[1]) > 1e-5f * m1[1]) stop({c->ops.name, "merge's total", m2[1]}, c->seed);
}

// Fills a group of 16 tokens of the KV cache with values of its type.
void fill_group(Random *random, int32_t type, uint32_t dim, uint8_t *out) {
    const std::vector<float> x = random->reals(static_cast<size_t>(dim) * 16);
    if (type == SX_Q8_0) {
        for (size_t i = 0; i < x.size(); i++)
            out[i] = static_cast<uint8_t>(
                static_cast<int8_t>(lrintf(std::min(1.0f, fabsf(x[i])) * (x[i] < 0 ? -127 : 127))));
        for (uint32_t t = 0; t < 16; t++) {
            const float scale = (0.5f + 0.05f * static_cast<float>(t)) / 127;
            memcpy(out + x.size() + t * 4, &scale, 4);
        }
        return;
    }
    std::vector<uint8_t> packed(x.size() * sx::float_bytes(type));
    // One tile of x.size() / 16 columns holds exactly these values, in some order; all are of the right type.
    const sx::PackJob job{SX_F32, type, 16, dim, reinterpret_cast<const uint8_t *>(x.data())};
    std::vector<float> room(sx::round_up(dim, sx::kActColumns));
    sx::pack_tile(job, 0, packed.data(), room.data());
    memcpy(out, packed.data(), packed.size());
}

void check_attend(Case *c) {
    const int32_t types[] = {SX_F32, SX_F16, SX_BF16, SX_Q8_0}, type = types[c->random.below(4)];
    const uint32_t dims[] = {16, 32, 64, 80, 96, 128, 256}, dim = dims[c->random.below(7)];
    const uint32_t rows = c->random.between(1, 19), tokens = c->random.between(1, 256), groups = (tokens + 15) / 16;
    const size_t bytes =
        static_cast<size_t>(dim) * 16 * (type == SX_Q8_0 ? 1 : sx::float_bytes(type)) + (type == SX_Q8_0 ? 64 : 0);
    const Guarded<uint8_t> kv(2 * groups * bytes);
    const uint8_t *k[16] = {}, *v[16] = {};
    for (uint32_t g = 0; g < groups; g++) {
        k[g] = kv.data() + 2 * g * bytes;
        v[g] = k[g] + bytes;
        fill_group(&c->random, type, dim, kv.data() + 2 * g * bytes);
        fill_group(&c->random, type, dim, kv.data() + (2 * g + 1) * bytes);
    }
    std::vector<uint16_t> first(rows), last(rows);
    for (uint32_t r = 0; r < rows; r++) {
        last[r] = static_cast<uint16_t>(c->random.between(r == 0 ? tokens : 0, tokens));
        first[r] = static_cast<uint16_t>(c->random.below(2) ? 0 : c->random.below(last[r] + 1u));
    }
    if (first[0] == last[0]) first[0] = 0;
    const Guarded<float> q(c->random.reals(rows * dim)), slope(c->random.reals(rows)), distance(c->random.reals(rows));
    const Guarded<float> scratch(rows * 256), o1(rows * dim), o2(rows * dim), p1(rows), p2(rows), t1(rows), t2(rows);
    const uint32_t ahead =
        c->random.below(sx::kAttnBlock / sx::kKvGroup + 1);  // may be past the groups there are: only fetched
    sx::AttendArgs a{q.data(),
                     rows,
                     dim,
                     type,
                     k,
                     v,
                     k,
                     ahead,
                     first.data(),
                     last.data(),
                     0.3f,
                     c->random.below(3) ? nullptr : slope.data(),
                     distance.data(),
                     scratch.data(),
                     o1.data(),
                     p1.data(),
                     t1.data(),
                     c->random.below(3) ? 0 : 0.5f};
    sx::scalar_ops.attend(&a);
    a.out = o2.data(), a.peak = p2.data(), a.total = t2.data();
    c->ops.attend(&a);
    // Bounds on exp(score): an error of the score in its last place counts by its size.
    c->expect("attend's output", o1, o2, 2e-5);
    c->expect("attend's total", t1, t2, 2e-5);
    for (uint32_t r = 0; r < rows; r++)
        if (p1.data()[r] != p2.data()[r] && !(fabsf(p1.data()[r] - p2.data()[r]) < 1e-4f))
            stop({c->ops.name, "attend's peak", p2.data()[r]}, c->seed);
    if (!scratch.intact()) stop({c->ops.name, "attend's scratch", 0}, c->seed);
}

// Bit for bit: with ties, subnormals, and what does not fit in f16.
void check_to_f16(Case *c) {
    const uint32_t n = 16 * c->random.between(1, 20);
    std::vector<float> x = c->random.reals(n);
    for (float &v : x) {
        const uint32_t kind = c->random.below(6);
        if (kind == 0) v *= 1e6f;
        if (kind == 1) v *= 1e-7f;
        if (kind == 2)
            v = static_cast<float>(static_cast<int32_t>(c->random.below(1u << 13)) - (1 << 12)) * 0x1p-12f + 1.0f;
    }
    const Guarded<float> from(x);
    const Guarded<uint16_t> a(n), b(n);
    sx::scalar_ops.to_f16(from.data(), n, a.data());
    c->ops.to_f16(from.data(), n, b.data());
    if (memcmp(a.data(), b.data(), n * sizeof(uint16_t)) != 0 || !b.intact()) stop({c->ops.name, "to_f16", 0}, c->seed);
}

void run_case(const sx::Ops &ops, uint64_t seed) {
    Case c{ops, {seed}, seed};
    switch (c.random.below(9)) {
        case 0: return check_quantise(&c);
        case 1: return check_vectors(&c);
        case 2: return check_merge(&c);
        case 3:
        case 4: return check_attend(&c);
        case 5: return check_to_f16(&c);
        default: return check_mul(&c);
    }
}

}  // namespace

int main(int argc, char **argv) {
    const uint64_t cases = argc > 1 ? strtoull(argv[1], nullptr, 10) : 300,
                   seed = argc > 2 ? strtoull(argv[2], nullptr, 10) : 1;
    char names[128];
    if (sx_isa_list(names, sizeof names) != SX_OK) return 2;
    for (uint64_t round = 0; cases == 0 || round == 0; round++) {
        const uint64_t n = cases == 0 ? 1000 : cases;
        char list[128];
        memcpy(list, names, sizeof list);
        for (char *name = strtok(list, ","); name; name = strtok(nullptr, ",")) {
            packed_digest = check::digest(nullptr, 0);
            for (uint64_t i = 0; i < n; i++) run_case(*sx::find_ops(name), (seed + round) * 1000003 + i);
            printf("%s: %llu cases agree with the oracle, packed weights %016llx\n", name,
                   static_cast<unsigned long long>(n), static_cast<unsigned long long>(packed_digest));
            fflush(stdout);
        }
    }
    return 0;
}
