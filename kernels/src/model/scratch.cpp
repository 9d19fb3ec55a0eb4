#include "model/scratch.h"

#include <initializer_list>
#include <new>

namespace sx {
namespace {

template <class T>
bool make(std::unique_ptr<T[]> *array, size_t n) {
    array->reset(new (std::nothrow) T[n]);
    return *array != nullptr;
}

uint32_t most(uint32_t a, uint32_t b) { return a > b ? a : b; }

// Lays arrays out in one block; a first pass with base 0 only counts.
struct Carver {
    uintptr_t at;
    template <class T>
    T *take(size_t n) {
        T *here = reinterpret_cast<T *>(at);
        at += (n * sizeof(T) + 63) / 64 * 64;
        return here;
    }
};

ThreadScratch carve(const sx_model *m, Carver *c) {
    const size_t rows = m->tile_rows(), values = rows * m->shape.head_dim;
    ThreadScratch s;
    s.product = c->take<float>(kProductScratch);
    s.normed = c->take<float>(m->shape.d_model);
    s.q = c->take<float>(values);
    s.scores = c->take<float>(rows * kAttnBlock);
    s.out = c->take<float>(values);
    s.merged = c->take<float>(values);
    for (float **p : {&s.peak, &s.total, &s.merged_peak, &s.merged_total, &s.slope, &s.distance})
        *p = c->take<float>(rows);
    s.first = c->take<uint16_t>(rows);
    s.last = c->take<uint16_t>(rows);
    s.gather = c->take<uint8_t>(m->kv.gather_bytes());
    c->at = (c->at + 4095) / 4096 * 4096;
    return s;
}

bool allocate_thread_scratch(sx_model *m) {
    const uint32_t n = m->context->team->size();
    Carver count{0};
    carve(m, &count);
    if (!m->scratch_data.allocate(count.at * n) || !make(&m->scratch, n)) return false;
    Carver c{reinterpret_cast<uintptr_t>(m->scratch_data.data())};
    for (uint32_t i = 0; i < n; i++) m->scratch[i] = carve(m, &c);
    return true;
}

bool allocate_activations(sx_model *m) {
    const sx_model_args &a = m->shape;
    const uint32_t widest = most(most(a.d_model, a.d_ff), m->q_cols()), n = m->context->team->size();
    if (!make(&m->own_act, n) || !m->act.allocate(a.max_batch_tokens, widest)) return false;
    for (uint32_t i = 0; i < n; i++)
        if (!m->own_act[i].allocate(1, widest)) return false;
    return true;
}

}  // namespace

bool allocate_scratch(sx_model *m) {
    const sx_model_args &a = m->shape;
    const size_t rows = a.max_batch_tokens;
    const auto floats = [&](Memory *memory, size_t cols) { return memory->allocate(rows * cols * sizeof(float)); };
    const auto items = [&](Memory *memory) {
        return memory->allocate(rows * (a.max_context / kAttnBlock + 1) * sizeof(AttentionItem));
    };
    return floats(&m->x, a.d_model) && floats(&m->normed, a.d_model) && floats(&m->qkv, m->qkv_cols()) &&
           floats(&m->attended, m->q_cols()) && floats(&m->ff, a.d_ff) && floats(&m->cosine, a.rope_dims / 2) &&
           floats(&m->sine, a.rope_dims / 2) && floats(&m->local_cosine, a.rope_dims / 2) &&
           floats(&m->local_sine, a.rope_dims / 2) && floats(&m->up, a.d_ff) && allocate_activations(m) &&
           make(&m->row_seq, rows) && make(&m->row_position, rows) && make(&m->row_logits, rows) &&
           make(&m->row_token, rows) && make(&m->tiles[0], rows) && make(&m->tiles[1], rows) && items(&m->items[0]) &&
           items(&m->items[1]) && m->partials.allocate(kPartialFloats * sizeof(float)) && allocate_thread_scratch(m);
}

}  // namespace sx
