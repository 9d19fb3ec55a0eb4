#include "model/recipe.h"

#include <math.h>
#include <string.h>

#include <initializer_list>
#include <new>

namespace sx {
namespace {

template <class T>
bool copy(const T *from, uint32_t n, std::unique_ptr<T[]> *to) {
    if (!from || n == 0) return true;
    to->reset(new (std::nothrow) T[n]);
    if (*to) memcpy(to->get(), from, n * sizeof *from);
    return *to != nullptr;
}

sx_status check_layers(const sx_model_args &a) {
    uint32_t other = 0;
    for (uint32_t i = 0; a.layer_windows && i < a.n_layers; i++) {
        const uint32_t window = a.layer_windows[i];
        if (window == a.layer_windows[0] || window == other) continue;
        if (other != 0) return fail(SX_EINVAL, "layer_windows: expected two values at most, layer %u has a third", i);
        other = window == 0 ? a.layer_windows[0] : window;
    }
    for (uint32_t i = 0; a.layer_ropes && i < a.n_layers; i++) {
        if (a.layer_ropes[i] > kRopeNone)
            return fail(SX_EINVAL, "layer_ropes: expected 0 to 2, layer %u has %u", i, a.layer_ropes[i]);
        if (a.layer_ropes[i] == kRopeLocal && !a.rope_freqs_local)
            return fail(SX_EINVAL, "layer %u: expected rope_freqs_local for its rotary embedding", i);
    }
    return SX_OK;
}

}  // namespace

sx_status check_recipe(const sx_model_args &a) {
    const float factors[] = {a.rope_magnitude, a.embedding_scale,   a.residual_scale, a.attention_scale,
                             a.logit_scale,    a.attention_softcap, a.logit_softcap};
    for (const float f : factors)
        if (!(f >= 0) || isinf(f)) return fail(SX_EINVAL, "scales and soft caps: expected numbers from 0, got %g", f);
    if (a.activation != SX_SILU && a.activation != SX_GELU_TANH)
        return fail(SX_EINVAL, "activation: expected SX_SILU or SX_GELU_TANH, got %d", a.activation);
    return check_layers(a);
}

bool take_recipe(sx_model *m) {
    sx_model_args &a = m->shape;
    for (float *f : {&a.rope_magnitude, &a.embedding_scale, &a.residual_scale, &a.logit_scale})
        if (*f == 0) *f = 1;
    if (a.attention_scale == 0) a.attention_scale = 1.0f / sqrtf(static_cast<float>(a.head_dim));
    m->windows.reset(new (std::nothrow) uint32_t[a.n_layers]);
    m->ropes.reset(new (std::nothrow) uint32_t[a.n_layers]);
    if (!m->windows || !m->ropes) return false;
    for (uint32_t i = 0; i < a.n_layers; i++) {
        m->windows[i] = a.layer_windows ? a.layer_windows[i] : a.sliding_window;
        m->ropes[i] = a.alibi_slopes || a.rope_dims == 0 ? kRopeNone : a.layer_ropes ? a.layer_ropes[i] : kRopeMain;
    }
    m->window[0] = m->window[1] = m->windows[0];
    for (uint32_t i = 0; i < a.n_layers; i++)
        if (m->windows[i] != m->window[0]) m->window[1] = m->windows[i];
    const bool copied = copy(a.rope_freqs, a.rope_dims / 2, &m->freqs) &&
                        copy(a.rope_freqs_local, a.rope_dims / 2, &m->local_freqs) &&
                        copy(a.alibi_slopes, a.n_heads, &m->slopes);
    a.rope_freqs = m->freqs.get();
    a.rope_freqs_local = m->local_freqs.get();
    a.alibi_slopes = m->slopes.get();
    a.layer_windows = m->windows.get();
    a.layer_ropes = m->ropes.get();
    return copied;
}

}  // namespace sx
