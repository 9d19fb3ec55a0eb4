// A decoder model of any recipe (recipe.h): its weights, its KV cache and the memory a forward pass works in.
#pragma once

#include <stdint.h>

#include <memory>

#include "core/context.h"
#include "core/matrix.h"
#include "core/memory.h"
#include "model/kv_cache.h"

namespace sx {

struct Layer {
    Matrix q, k, v, o, gate, up, down;
    Memory q_data, k_data, v_data, o_data, gate_data, up_data, down_data;  // up_data empty: up lies beside gate
    Memory attn_norm, ffn_norm, q_bias, k_bias, v_bias;                    // f32
    // f32, where the model has them.
    Memory o_bias, gate_bias, up_bias, down_bias, q_norm, k_norm, attn_post_norm, ffn_post_norm;
};

// How a layer's heads are turned: sx_model_args.layer_ropes.
enum : uint32_t { kRopeMain = 0, kRopeLocal = 1, kRopeNone = 2 };

// A tile of queries of one sequence: consecutive tokens, all heads of one kv head at a time.
struct QueryTile {
    uint32_t seq, first_row, n_tokens;  // first_row: of the batch
    uint32_t first_piece, last_piece;   // pieces of 256 tokens of context
    bool split;                         // each piece is an item of its own; their results are merged afterwards
    size_t partial;                     // floats before its partial results
};

struct AttentionItem {
    uint32_t tile, piece;  // piece: of a split tile
};

// What each thread works in.
struct ThreadScratch {
    float *product;           // kProductScratch
    float *normed;            // [d_model]
    float *q, *scores, *out;  // [kTileQueries max][head_dim], [..][256], [..][head_dim]
    float *merged;            // [..][head_dim]
    float *peak, *total, *merged_peak, *merged_total, *slope, *distance;
    uint16_t *first, *last;
    uint8_t *gather;
};

}  // namespace sx

struct sx_model {
    sx_context *context = nullptr;
    sx_model_args shape{};
    std::unique_ptr<float[]> freqs, local_freqs, slopes;
    std::unique_ptr<uint32_t[]> windows, ropes;  // of each layer
    uint32_t window[2] = {0, 0};                 // those that there are
    std::unique_ptr<sx::Layer[]> layers;
    sx::Matrix embedding, output;
    sx::Memory embedding_data, output_data, output_norm;
    sx::KvCache kv;
    bool finished = false;

    // Per batch row.
    sx::Memory x, normed, qkv, attended, ff, up, cosine, sine, local_cosine, local_sine;
    sx::ActivationBuffer act;
    std::unique_ptr<sx::ActivationBuffer[]> own_act;  // one row for each thread
    std::unique_ptr<uint32_t[]> row_seq, row_position, row_logits;
    std::unique_ptr<int32_t[]> row_token;
    // Attention of the batch at hand.
    std::unique_ptr<sx::QueryTile[]> tiles[2];  // for each window
    sx::Memory items[2], partials;
    sx::Memory scratch_data;
    std::unique_ptr<sx::ThreadScratch[]> scratch;

    uint32_t group() const { return shape.n_heads / shape.n_kv_heads; }
    uint32_t q_cols() const { return shape.n_heads * shape.head_dim; }
    uint32_t kv_cols() const { return shape.n_kv_heads * shape.head_dim; }
    uint32_t qkv_cols() const { return q_cols() + 2 * kv_cols(); }
    // Query rows of one attention item: some tokens times the heads of the group.
    uint32_t tile_tokens() const { return group() >= 32 ? 1 : 32 / group(); }
    uint32_t tile_rows() const { return tile_tokens() * group(); }
    uint32_t window_kind(uint32_t layer) const { return windows[layer] == window[0] ? 0 : 1; }
    // Whether feed-forward is what one fused product computes: act(gate) * up with SiLU and no biases.
    bool fused_mlp(const sx::Layer &l) const {
        return shape.activation == SX_SILU && shape.plain_mlp == 0 && !l.gate_bias.data() && !l.up_bias.data();
    }
    const sx::Matrix &output_matrix() const { return output.rows != 0 ? output : embedding; }
};
