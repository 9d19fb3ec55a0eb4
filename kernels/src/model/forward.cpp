// One step of continuous batching: every thread of the team runs the whole pass, meeting the others between phases.
#include <math.h>

#include <new>

#include "core/args.h"
#include "formats/format.h"
#include "model/attention.h"
#include "model/model.h"

namespace sx {
namespace {

sx_status check_seq(const sx_model *m, const sx_forward_args &a, uint32_t i) {
    const sx_seq &s = a.seqs[i];
    const uint64_t end = static_cast<uint64_t>(s.position) + s.n_tokens;
    if (s.n_tokens == 0 || static_cast<uint64_t>(s.first_token) + s.n_tokens > a.n_tokens)
        return fail(SX_EINVAL, "seq %u: tokens %u + %u are not a slice of the %u given", i, s.first_token, s.n_tokens,
                    a.n_tokens);
    if (end > m->shape.max_context)
        return fail(SX_EINVAL, "seq %u: position %u + %u tokens go beyond max_context %u", i, s.position, s.n_tokens,
                    m->shape.max_context);
    if (static_cast<uint64_t>(s.first_block) + s.n_blocks > a.n_block_entries)
        return fail(SX_EINVAL, "seq %u: blocks %u + %u are not a slice of the %u entries", i, s.first_block, s.n_blocks,
                    a.n_block_entries);
    if (static_cast<uint64_t>(s.n_blocks) * m->shape.kv_block_size < end)
        return fail(SX_EINVAL, "seq %u: %u blocks of %u tokens don't cover %llu tokens", i, s.n_blocks,
                    m->shape.kv_block_size, static_cast<unsigned long long>(end));
    if (s.logits > 2) return fail(SX_EINVAL, "seq %u: logits is 0, 1 or 2, got %u", i, s.logits);
    for (uint32_t b = s.first_block; b < s.first_block + s.n_blocks; b++)
        if (a.block_table[b] < 0 || static_cast<uint32_t>(a.block_table[b]) >= m->shape.kv_blocks)
            return fail(SX_EINVAL, "seq %u: expected blocks 0 to %u, got %d", i, m->shape.kv_blocks - 1,
                        a.block_table[b]);
    for (uint32_t t = s.first_token; t < s.first_token + s.n_tokens; t++)
        if (a.tokens[t] < 0 || static_cast<uint32_t>(a.tokens[t]) >= m->shape.vocab)
            return fail(SX_EINVAL, "seq %u: expected tokens 0 to %u, got %d", i, m->shape.vocab - 1, a.tokens[t]);
    return SX_OK;
}

struct Counts {
    uint32_t rows = 0, logits = 0;
};

// Fills the model's row_* arrays.
sx_status take_rows(sx_model *m, const sx_forward_args &a, Counts *n) {
    for (uint32_t i = 0; i < a.n_seqs; i++) {
        const sx_status status = check_seq(m, a, i);
        if (status != SX_OK) return status;
        const sx_seq &s = a.seqs[i];
        if (s.n_tokens > m->shape.max_batch_tokens - n->rows)
            return fail(SX_EINVAL, "expected at most max_batch_tokens (%u) tokens, seq %u goes beyond",
                        m->shape.max_batch_tokens, i);
        for (uint32_t t = 0; t < s.n_tokens; t++, n->rows++) {
            m->row_seq[n->rows] = i;
            m->row_position[n->rows] = s.position + t;
            m->row_token[n->rows] = a.tokens[s.first_token + t];
            if (s.logits == 2 || (s.logits == 1 && t + 1 == s.n_tokens)) m->row_logits[n->logits++] = n->rows;
        }
    }
    if (n->logits != 0 && (!a.logits || a.logits_capacity / m->shape.vocab < n->logits))
        return fail(SX_EINVAL, "logits: expected room for %u rows of %u, got %llu floats", n->logits, m->shape.vocab,
                    static_cast<unsigned long long>(a.logits_capacity));
    return SX_OK;
}

class Pass {
  public:
    Pass(sx_model *m, const sx_forward_args &args, Counts counts)
        : m_(m),
          args_(args),
          counts_(counts),
          ops_(*m->context->ops),
          team_(*m->context->team),
          plan_{plan_attention(m, args, 0), plan_attention(m, args, 1)} {}

    bool allocate() {
        const uint32_t n = m_->shape.n_layers * team_.nodes().count;
        next_.reset(new (std::nothrow) std::atomic<uint32_t>[n]);
        for (uint32_t i = 0; next_ && i < n; i++) next_[i].store(0, std::memory_order_relaxed);
        return next_ != nullptr;
    }

    void run(uint32_t thread) {
        begin(thread);
        for (uint32_t i = 0; i < m_->shape.n_layers; i++) {
            attention(i, thread);
            feed_forward(m_->layers[i], thread);
        }
        if (counts_.logits != 0) logits(thread);
    }

  private:
    Span rows(uint32_t thread, uint32_t n) const { return share_of(n, thread, team_.size()); }
    float *row(const Memory &memory, uint32_t i, uint32_t cols) const {
        return memory.as<float>() + static_cast<size_t>(i) * cols;
    }

    // The angles of the rotary embedding of row r as Hugging Face computes them: in f32.
    void set_angles(uint32_t r, const float *freqs, float magnitude, const Memory &cosine, const Memory &sine) {
        const uint32_t half = m_->shape.rope_dims / 2;
        for (uint32_t i = 0; i < half; i++) {
            const float angle = static_cast<float>(m_->row_position[r]) * freqs[i];
            row(cosine, r, half)[i] = cosf(angle) * magnitude;
            row(sine, r, half)[i] = sinf(angle) * magnitude;
        }
    }

    // Embeddings and angles.
    void begin(uint32_t thread) {
        const uint32_t d = m_->shape.d_model;
        const Span mine = rows(thread, counts_.rows);
        for (uint32_t r = mine.first; r < mine.last; r++) {
            const uint32_t token = static_cast<uint32_t>(m_->row_token[r]);
            unpack_row(m_->embedding.type, m_->embedding.tile_at(token / kTileRows), token % kTileRows, d,
                       row(m_->x, r, d));
            scale(row(m_->x, r, d), d, m_->shape.embedding_scale);
            if (m_->freqs) set_angles(r, m_->freqs.get(), m_->shape.rope_magnitude, m_->cosine, m_->sine);
            if (m_->local_freqs) set_angles(r, m_->local_freqs.get(), 1, m_->local_cosine, m_->local_sine);
        }
        team_.barrier();
    }

    void multiply_parts(const Part *parts, uint32_t n, const Activations &act, uint32_t n_rows, uint32_t thread) {
        const Product product{&ops_, m_->context->nrc, parts, n, act, n_rows};
        multiply(product, thread, team_.size(), m_->scratch[thread].product);
    }

    // Quantises rows once for all products that read them; what only float weights read needs none. A single row is
    // quantised by every thread for itself: that takes less time than waiting for one of them.
    Activations prepare(const float *x, uint32_t cols, uint32_t n_rows, bool quantised, uint32_t thread) {
        ActivationBuffer &act = n_rows == 1 ? m_->own_act[thread] : m_->act;
        const Span mine = n_rows == 1 ? Span{0, 1} : rows(thread, n_rows);
        if (quantised) act.quantise(ops_, x, cols, mine);
        if (n_rows > 1) team_.barrier();
        return act.view(x, cols);
    }

    // Normed rows from[0..n) of the residual stream (every row where `from` is nullptr), prepared for a product.
    Activations norm(const Memory &weight, const uint32_t *from, uint32_t n, bool quantised, uint32_t thread) {
        const uint32_t d = m_->shape.d_model;
        if (!weight.data()) return prepare(m_->x.as<float>(), d, n, quantised, thread);  // normed afterwards
        const Span mine = n == 1 ? Span{0, 1} : rows(thread, n);
        float *out = n == 1 ? m_->scratch[thread].normed : m_->normed.as<float>();
        for (uint32_t i = mine.first; i < mine.last; i++)
            ops_.rms_norm(row(m_->x, from ? from[i] : i, d), weight.as<float>(), d, m_->shape.norm_eps,
                          out + static_cast<size_t>(i) * d);
        return prepare(out, d, n, quantised, thread);
    }

    // A head of row r, normed and turned in place.
    void turn(float *x, uint32_t r, const Memory &norm, uint32_t rope) {
        const uint32_t dim = m_->shape.head_dim, half = m_->shape.rope_dims / 2;
        if (norm.data()) ops_.rms_norm(x, norm.as<float>(), dim, m_->shape.norm_eps, x);
        if (rope == kRopeMain) ops_.rope(x, row(m_->cosine, r, half), row(m_->sine, r, half), half);
        if (rope == kRopeLocal) ops_.rope(x, row(m_->local_cosine, r, half), row(m_->local_sine, r, half), half);
    }

    // Turns a token's queries and keys and stores keys and values; heads and tokens are shared out together.
    void turn_and_store(uint32_t layer, uint32_t thread) {
        const uint32_t heads = m_->shape.n_heads, kv = m_->shape.n_kv_heads;
        const Layer &l = m_->layers[layer];
        const Span mine = rows(thread, counts_.rows * (heads + kv));
        for (uint32_t i = mine.first; i < mine.last; i++) {
            const uint32_t r = i / (heads + kv), h = i % (heads + kv);
            float *x = row(m_->qkv, r, m_->qkv_cols()) + h * m_->shape.head_dim;
            turn(x, r, h < heads ? l.q_norm : l.k_norm, m_->ropes[layer]);
            if (h < heads) continue;
            const sx_seq &seq = args_.seqs[m_->row_seq[r]];
            const uint32_t position = m_->row_position[r], size = m_->shape.kv_block_size;
            const int32_t block = args_.block_table[seq.first_block + position / size];
            m_->kv.store(ops_, {layer, h - heads, static_cast<uint32_t>(block), position % size}, x, x + m_->kv_cols());
        }
        team_.barrier();
    }

    // Adds a product to the residual stream, after the norm and the factor that the model may have for it.
    void add_to_stream(const Matrix &w, const Memory &bias, const Memory &post_norm, const Activations &act,
                       uint32_t thread) {
        const uint32_t d = m_->shape.d_model;
        const bool plain = !post_norm.data() && m_->shape.residual_scale == 1;
        const Memory &to = plain ? m_->x : m_->normed;
        const Part part{&w, nullptr, plain ? Then::add : Then::store, bias.as<float>(), to.as<float>(), d};
        multiply_parts(&part, 1, act, counts_.rows, thread);
        team_.barrier();
        if (plain) return;
        const Span mine = rows(thread, counts_.rows);
        for (uint32_t r = mine.first; r < mine.last; r++) {
            float *y = row(m_->normed, r, d);
            if (post_norm.data()) ops_.rms_norm(y, post_norm.as<float>(), d, m_->shape.norm_eps, y);
            scale(y, d, m_->shape.residual_scale);
            ops_.add(row(m_->x, r, d), y, d);
        }
        team_.barrier();
    }

    void attention(uint32_t i, uint32_t thread) {
        Layer &l = m_->layers[i];
        const uint32_t all = m_->qkv_cols(), q = m_->q_cols(), kv = m_->kv_cols();
        const bool quantised = is_quantised(l.q.type) || is_quantised(l.k.type) || is_quantised(l.v.type);
        const Activations act = norm(l.attn_norm, nullptr, counts_.rows, quantised, thread);
        float *out = m_->qkv.as<float>();
        const Part qkv[] = {{&l.q, nullptr, Then::store, l.q_bias.as<float>(), out, all},
                            {&l.k, nullptr, Then::store, l.k_bias.as<float>(), out + q, all},
                            {&l.v, nullptr, Then::store, l.v_bias.as<float>(), out + q + kv, all}};
        multiply_parts(qkv, 3, act, counts_.rows, thread);
        team_.barrier();
        turn_and_store(i, thread);
        const AttentionPlan &plan = plan_[m_->window_kind(i)];
        attend_items(m_, args_, plan, i, &next_[i * team_.nodes().count], thread);
        team_.barrier();
        if (plan.any_split) {
            merge_pieces(m_, plan, thread);
            team_.barrier();
        }
        const Activations attended = prepare(m_->attended.as<float>(), q, counts_.rows, is_quantised(l.o.type), thread);
        add_to_stream(l.o, l.o_bias, l.attn_post_norm, attended, thread);
    }

    void feed_forward(const Layer &l, uint32_t thread) {
        const bool quantised = is_quantised(l.gate.type) || is_quantised(l.up.type);
        const Activations act = norm(l.ffn_norm, nullptr, counts_.rows, quantised, thread);
        float *ff = m_->ff.as<float>();
        if (m_->fused_mlp(l)) {
            const Part gate_up{&l.gate, &l.up, Then::silu_mul, nullptr, ff, m_->shape.d_ff};
            multiply_parts(&gate_up, 1, act, counts_.rows, thread);
            team_.barrier();
        } else {
            separate_mlp(l, act, thread);
        }
        const Activations inner = prepare(ff, m_->shape.d_ff, counts_.rows, is_quantised(l.down.type), thread);
        add_to_stream(l.down, l.down_bias, l.ffn_post_norm, inner, thread);
    }

    // Gate and up as products of their own, and what becomes of them afterwards.
    void separate_mlp(const Layer &l, const Activations &act, uint32_t thread) {
        const uint32_t width = m_->shape.d_ff;
        const bool gated = m_->shape.plain_mlp == 0;
        float *ff = m_->ff.as<float>(), *up = gated ? m_->up.as<float>() : ff;
        const Part parts[] = {{&l.up, nullptr, Then::store, l.up_bias.as<float>(), up, width},
                              {&l.gate, nullptr, Then::store, l.gate_bias.as<float>(), ff, width}};
        multiply_parts(parts, gated ? 2 : 1, act, counts_.rows, thread);
        team_.barrier();
        const Span mine = rows(thread, width);
        for (uint32_t r = 0; r < counts_.rows; r++, ff += width, up += width)
            for (uint32_t i = mine.first; i < mine.last; i++) ff[i] = gated ? activate(ff[i]) * up[i] : activate(ff[i]);
        team_.barrier();
    }

    float activate(float x) const {
        if (m_->shape.activation == SX_SILU) return x / (1 + expf(-x));
        constexpr float kRoot = 0.7978845608028654f;  // sqrt(2 / pi)
        return 0.5f * x * (1 + tanhf(kRoot * (x + 0.044715f * x * x * x)));
    }

    void logits(uint32_t thread) {
        const Matrix &w = m_->output_matrix();
        const Activations act =
            norm(m_->output_norm, m_->row_logits.get(), counts_.logits, is_quantised(w.type), thread);
        const Part head{&w, nullptr, Then::store, nullptr, args_.logits, m_->shape.vocab};
        multiply_parts(&head, 1, act, counts_.logits, thread);
        const float factor = m_->shape.logit_scale, cap = m_->shape.logit_softcap;
        if (factor == 1 && cap == 0) return;
        team_.barrier();
        for (uint32_t r = 0; r < counts_.logits; r++) {
            float *x = args_.logits + static_cast<size_t>(r) * m_->shape.vocab;
            const Span mine = rows(thread, m_->shape.vocab);
            scale(x + mine.first, mine.last - mine.first, factor);
            for (uint32_t i = mine.first; cap != 0 && i < mine.last; i++) x[i] = cap * tanhf(x[i] / cap);
        }
    }

    static void scale(float *x, uint32_t n, float factor) {
        for (uint32_t i = 0; factor != 1 && i < n; i++) x[i] *= factor;
    }

    sx_model *m_;
    const sx_forward_args &args_;
    const Counts counts_;
    const Ops &ops_;
    Team &team_;
    const AttentionPlan plan_[2];
    std::unique_ptr<std::atomic<uint32_t>[]> next_;
};

}  // namespace
}  // namespace sx

sx_status sx_forward(sx_model *model, sx_forward_args *given) {
    sx_forward_args args;
    if (!model || !sx::take_args(given, &args)) return sx::fail(SX_EINVAL, "sx_forward: arguments are missing");
    if (!model->finished) return sx::fail(SX_ESTATE, "sx_forward: the model is not finished");
    if (args.n_seqs != 0 && (!args.seqs || !args.tokens || !args.block_table))
        return sx::fail(SX_EINVAL, "sx_forward: seqs, tokens and block_table were expected");
    sx::Counts counts;
    const sx_status status = sx::take_rows(model, args, &counts);
    if (status != SX_OK) return status;
    if (counts.rows != 0) {
        sx::Pass pass(model, args, counts);
        if (!pass.allocate()) return sx::fail(SX_ENOMEM, "no memory for a forward pass");
        model->context->team->run([&](uint32_t thread) { pass.run(thread); });
    }
    if (given->size >= offsetof(sx_forward_args, n_logit_rows) + sizeof given->n_logit_rows)
        given->n_logit_rows = counts.logits;
    return SX_OK;
}
