// The oracle: every operation in its plainest form. It also runs where the CPU has none of the other ISAs.
#include <math.h>

#include "core/kv_layout.h"
#include "core/ops.h"
#include "formats/numeric.h"

namespace sx {
namespace {

template <class F>
float dot_quantised(const MulArgs &args, const uint8_t *tile, uint32_t r, uint32_t row) {
    const int8_t *q = args.act.q + row * args.act.ldq;
    const float *scale = args.act.scale + row * (args.act.ldq / kGroup);
    const float *weighted = args.act.total + row * (args.act.ldq / kGroup);
    float total = 0;
    for (uint32_t g = 0; g < args.cols / kGroup; g++) {
        const Group<typename F::Scales> group = read_packed<F>(tile, g, r);
        int32_t sum = 0;
        for (uint32_t c = 0; c < kGroup; c++) sum += (group.level[c] - F::kOffset) * q[g * kGroup + c];
        total += static_cast<float>(sum) * (group.scale.factor() * scale[g]);
        if (F::Scales::kFloors) total += group.scale.floor() * weighted[g];
    }
    return total;
}

template <class F>
float dot_float(const MulArgs &args, const uint8_t *tile, uint32_t r, uint32_t row) {
    float total = 0;
    for (uint32_t c = 0; c < args.cols; c++)
        total += F::load(tile + (static_cast<size_t>(c) * kTileRows + r) * F::kBlockBytes) *
                 args.act.x[row * args.act.ldx + c];
    return total;
}

template <class F>
void multiply(F, const MulArgs *args) {
    for (uint32_t t = 0; t < args->n_tiles; t++)
        for (uint32_t row = 0; row < args->n_rows; row++)
            for (uint32_t r = 0; r < kTileRows; r++) {
                const uint8_t *tile = args->w + t * args->tile_stride;
                float *out = args->out + row * args->ld_out + t * kTileRows + r;
                if constexpr (F::kQuantised)
                    *out = dot_quantised<F>(*args, tile, r, row);
                else
                    *out = dot_float<F>(*args, tile, r, row);
            }
}

void quantise_group(const float *x, uint32_t n, int8_t *q, float *scale, int32_t *sum, float *weighted) {
    float largest = 0;
    for (uint32_t i = 0; i < n; i++) largest = fmaxf(largest, fabsf(x[i]));
    const float inverse = largest > kTiny ? 127.0f / largest : 0.0f;
    int32_t total = 0;
    for (uint32_t i = 0; i < kGroup; i++) {
        q[i] = i < n ? static_cast<int8_t>(lrintf(x[i] * inverse)) : 0;
        total += q[i];
    }
    *scale = largest > kTiny ? largest / 127.0f : 0.0f;
    *sum = -8 * total;
    *weighted = *scale * static_cast<float>(total);
}

void quantise(const QuantiseArgs *args) {
    for (uint32_t g = 0; g < args->n_padded / kGroup; g++) {
        const uint32_t done = g * kGroup < args->n ? g * kGroup : args->n;
        const uint32_t n = args->n - done < kGroup ? args->n - done : kGroup;
        quantise_group(args->x + done, n, args->q + g * kGroup, args->scale + g, args->sum + g, args->total + g);
    }
}

void rms_norm(const float *x, const float *weight, uint32_t n, float eps, float *out) {
    double sum = 0;
    for (uint32_t i = 0; i < n; i++) sum += static_cast<double>(x[i]) * x[i];
    const float factor = static_cast<float>(1.0 / sqrt(sum / n + eps));
    for (uint32_t i = 0; i < n; i++) out[i] = x[i] * factor * weight[i];
}

void add(float *y, const float *x, uint32_t n) {
    for (uint32_t i = 0; i < n; i++) y[i] += x[i];
}

void silu_mul(float *y, const float *gate, const float *up, uint32_t n) {
    for (uint32_t i = 0; i < n; i++) y[i] = gate[i] / (1.0f + expf(-gate[i])) * up[i];
}

void rope(float *x, const float *cosine, const float *sine, uint32_t half) {
    for (uint32_t i = 0; i < half; i++) {
        const float a = x[i], b = x[half + i];
        x[i] = a * cosine[i] - b * sine[i];
        x[half + i] = b * cosine[i] + a * sine[i];
    }
}

float load_float(int32_t type, const uint8_t *data, size_t index) {
    if (type == SX_F32) return F32::load(data + index * 4);
    return type == SX_F16 ? F16::load(data + index * 2) : Bf16::load(data + index * 2);
}

// Element (row, col) of a group of the KV cache whose rows have 16 elements; `head_dim` rows for K, tokens for V.
float kv_value(const AttendArgs &args, const uint8_t *group, size_t index, uint32_t token) {
    if (args.kv_type != SX_Q8_0) return load_float(args.kv_type, group, index);
    const float scale = load_float(SX_F32, group + static_cast<size_t>(args.head_dim) * kKvGroup, token);
    return static_cast<float>(static_cast<int8_t>(group[index])) * scale;
}

float score(const AttendArgs &args, uint32_t row, uint32_t token) {
    const uint8_t *group = args.k[token / kKvGroup];
    float dot = 0;
    for (uint32_t d = 0; d < args.head_dim; d++)
        dot +=
            args.q[row * args.head_dim + d] * kv_value(args, group, d * kKvGroup + token % kKvGroup, token % kKvGroup);
    dot *= args.scale;
    if (args.softcap != 0) dot = args.softcap * tanhf(dot / args.softcap);
    if (args.slope) dot += args.slope[row] * (args.distance[row] + static_cast<float>(token));
    return dot;
}

void attend_row(const AttendArgs &args, uint32_t row) {
    float *p = args.scratch + row * kAttnBlock, *out = args.out + row * args.head_dim;
    float peak = -INFINITY, total = 0;
    for (uint32_t t = args.first[row]; t < args.last[row]; t++) peak = fmaxf(peak, p[t] = score(args, row, t));
    for (uint32_t d = 0; d < args.head_dim; d++) out[d] = 0;
    for (uint32_t t = args.first[row]; t < args.last[row]; t++) {
        p[t] = expf(p[t] - peak);
        total += p[t];
        for (uint32_t d = 0; d < args.head_dim; d++) {
            const size_t index = (static_cast<size_t>(d / 16) * kKvGroup + t % kKvGroup) * 16 + d % 16;
            out[d] += p[t] * kv_value(args, args.v[t / kKvGroup], index, t % kKvGroup);
        }
    }
    args.peak[row] = peak;
    args.total[row] = total;
}

void attend(const AttendArgs *args) {
    for (uint32_t row = 0; row < args->n_rows; row++) attend_row(*args, row);
}

void merge(float *out, float *peak, float *total, const float *out2, float peak2, float total2, uint32_t n) {
    if (total2 == 0) return;
    const float top = fmaxf(*peak, peak2);
    const float keep = *total == 0 ? 0 : expf(*peak - top), take = expf(peak2 - top);
    for (uint32_t i = 0; i < n; i++) out[i] = out[i] * keep + out2[i] * take;
    *total = *total * keep + total2 * take;
    *peak = top;
}

void to_f16(const float *x, uint32_t n, uint16_t *out) {
    for (uint32_t i = 0; i < n; i++) out[i] = f32_to_f16(clamp_f16(x[i]));
}

}  // namespace

const Ops scalar_ops = {
    .name = "scalar",
    .default_nrc = 16,
    .products = products_of(Formats()),
    .quantise = quantise,
    .rms_norm = rms_norm,
    .add = add,
    .silu_mul = silu_mul,
    .rope = rope,
    .attend = attend,
    .merge = merge,
    .to_f16 = to_f16,
};

}  // namespace sx
