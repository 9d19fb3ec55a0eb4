#include "model/model.h"

#include <string.h>
#include <new>

#include "core/args.h"
#include "core/crc.h"
#include "formats/format.h"
#include "model/recipe.h"
#include "model/scratch.h"

namespace sx {
namespace {

constexpr uint32_t kMaxSize = 1u << 24;

struct Limit {
    const char *name;
    uint32_t value, least, most;
};

sx_status check_sizes(const sx_model_args &a) {
    const Limit limits[] = {{"n_layers", a.n_layers, 1, 1024},
                            {"d_model", a.d_model, 1, kMaxSize},
                            {"n_heads", a.n_heads, 1, 4096},
                            {"n_kv_heads", a.n_kv_heads, 1, a.n_heads},
                            {"head_dim", a.head_dim, 16, kMaxHeadDim},
                            {"d_ff", a.d_ff, 1, kMaxSize},
                            {"vocab", a.vocab, 1, kMaxSize},
                            {"rope_dims", a.rope_dims, 0, a.head_dim},
                            {"max_context", a.max_context, 1, 1u << 26},
                            {"kv_blocks", a.kv_blocks, 1, 1u << 28},
                            {"kv_block_size", a.kv_block_size, 8, 256},
                            {"max_batch_tokens", a.max_batch_tokens, 1, 1u << 20}};
    for (const Limit &l : limits)
        if (l.value < l.least || l.value > l.most)
            return fail(SX_EINVAL, "%s: expected %u to %u, got %u", l.name, l.least, l.most, l.value);
    return SX_OK;
}

sx_status check_args(const sx_model_args &a) {
    const sx_status sizes = check_sizes(a);
    if (sizes != SX_OK) return sizes;
    if (a.n_heads % a.n_kv_heads != 0)
        return fail(SX_EINVAL, "n_heads: expected a multiple of n_kv_heads (%u), got %u", a.n_kv_heads, a.n_heads);
    if (a.head_dim % 16 != 0) return fail(SX_EINVAL, "head_dim: expected a multiple of 16, got %u", a.head_dim);
    if ((a.kv_block_size & (a.kv_block_size - 1)) != 0)
        return fail(SX_EINVAL, "kv_block_size: expected a power of two from 8 to 256, got %u", a.kv_block_size);
    if (!is_float(a.kv_type) && a.kv_type != SX_Q8_0)
        return fail(SX_EINVAL, "kv_type: expected F32, F16, BF16 or Q8_0, got %d", a.kv_type);
    if (a.rope_dims % 2 != 0 || (a.rope_dims != 0 && !a.rope_freqs))
        return fail(SX_EINVAL, "rope_dims: expected an even number with rope_freqs, got %u", a.rope_dims);
    return check_recipe(a);
}

bool allocate_all(sx_model *m) {
    const sx_model_args &a = m->shape;
    m->layers.reset(new (std::nothrow) Layer[a.n_layers]);
    const KvShape kv{a.n_layers, a.n_kv_heads, a.head_dim, a.kv_blocks, a.kv_block_size, a.kv_type};
    return m->layers && take_recipe(m) && m->kv.allocate(kv, *m->context) && allocate_scratch(m);
}

// Where a role's matrix lives, what shape it has, and where it stands in its product.
struct Slot {
    Matrix *matrix;
    Memory *memory;
    uint32_t rows, cols;
    uint32_t offset_rows, total_rows;
};

bool matrix_slot(sx_model *m, int32_t role, uint32_t layer, Slot *slot) {
    const uint32_t d = m->shape.d_model, q = m->q_cols(), kv = m->kv_cols(), all = m->qkv_cols(), ff = m->shape.d_ff;
    Layer &l = m->layers[layer];
    switch (role) {
        case SX_T_TOKEN_EMBD: *slot = {&m->embedding, &m->embedding_data, m->shape.vocab, d, 0, m->shape.vocab}; break;
        case SX_T_OUTPUT: *slot = {&m->output, &m->output_data, m->shape.vocab, d, 0, m->shape.vocab}; break;
        case SX_T_WQ: *slot = {&l.q, &l.q_data, q, d, 0, all}; break;
        case SX_T_WK: *slot = {&l.k, &l.k_data, kv, d, q, all}; break;
        case SX_T_WV: *slot = {&l.v, &l.v_data, kv, d, q + kv, all}; break;
        case SX_T_WO: *slot = {&l.o, &l.o_data, d, q, 0, d}; break;
        case SX_T_W_GATE: *slot = {&l.gate, &l.gate_data, ff, d, 0, ff}; break;
        case SX_T_W_UP: *slot = {&l.up, &l.up_data, ff, d, 0, ff}; break;
        case SX_T_W_DOWN: *slot = {&l.down, &l.down_data, d, ff, 0, d}; break;
        default: return false;
    }
    return true;
}

bool vector_slot(sx_model *m, int32_t role, uint32_t layer, Memory **memory, uint32_t *n) {
    Layer &l = m->layers[layer];
    *n = m->shape.d_model;
    switch (role) {
        case SX_T_ATTN_NORM: *memory = &l.attn_norm; break;
        case SX_T_FFN_NORM: *memory = &l.ffn_norm; break;
        case SX_T_OUT_NORM: *memory = &m->output_norm; break;
        case SX_T_BQ: *memory = &l.q_bias, *n = m->q_cols(); break;
        case SX_T_BK: *memory = &l.k_bias, *n = m->kv_cols(); break;
        case SX_T_BV: *memory = &l.v_bias, *n = m->kv_cols(); break;
        case SX_T_BO: *memory = &l.o_bias; break;
        case SX_T_B_GATE: *memory = &l.gate_bias, *n = m->shape.d_ff; break;
        case SX_T_B_UP: *memory = &l.up_bias, *n = m->shape.d_ff; break;
        case SX_T_B_DOWN: *memory = &l.down_bias; break;
        case SX_T_Q_NORM: *memory = &l.q_norm, *n = m->shape.head_dim; break;
        case SX_T_K_NORM: *memory = &l.k_norm, *n = m->shape.head_dim; break;
        case SX_T_ATTN_POST_NORM: *memory = &l.attn_post_norm; break;
        case SX_T_FFN_POST_NORM: *memory = &l.ffn_post_norm; break;
        default: return false;
    }
    return true;
}

// SX_EINVAL where rows of a matrix are no whole blocks of `type`.
sx_status check_columns(const sx_tensor_args &t, int32_t type) {
    const uint32_t block = find_format(type)->block;
    if (t.cols % block == 0) return SX_OK;
    return fail(SX_EINVAL, "role %d: expected columns in multiples of %u for %s, got %u", t.role, block,
                find_format(type)->name, t.cols);
}

sx_status check_tensor(const sx_model *m, const sx_tensor_args &t) {
    if (m->finished) return fail(SX_ESTATE, "set_tensor: the model is finished");
    if (!t.data) return fail(SX_EINVAL, "role %d: expected data, got NULL", t.role);
    if (!find_format(t.src_type) && !t.packed)
        return fail(SX_EINVAL, "role %d: expected a known src_type, got %d", t.role, t.src_type);
    if (t.layer >= m->shape.n_layers)
        return fail(SX_EINVAL, "role %d: expected a layer below %u, got %u", t.role, m->shape.n_layers, t.layer);
    return t.packed ? SX_OK : check_columns(t, t.src_type);
}

sx_status set_vector(const sx_tensor_args &t, uint32_t n, Memory *memory) {
    if (static_cast<uint64_t>(t.rows) * t.cols != n)
        return fail(SX_EINVAL, "role %d layer %u: expected %u values, got %u x %u", t.role, t.layer, n, t.rows, t.cols);
    if (t.packed && (t.type != SX_F32 || t.rows != 1))
        return fail(SX_EINVAL, "role %d: expected packed values as one row of F32, got type %d, %u rows", t.role,
                    t.type, t.rows);
    if (!memory->allocate(n * sizeof(float))) return fail(SX_ENOMEM, "no memory for %u floats", n);
    decode_row(t.packed ? SX_F32 : t.src_type, t.data, n, memory->as<float>());
    return SX_OK;
}

Place place_of(const Slot &slot) {
    return {(slot.offset_rows + kTileRows - 1) / kTileRows, (slot.total_rows + kTileRows - 1) / kTileRows};
}

bool give_own_memory(sx_model *m, Slot *slot, const sx_tensor_args &t, size_t copies) {
    slot->matrix->tile_stride = tile_bytes(t.type, slot->cols) * copies;
    if (!slot->memory->allocate(cut_by_node(*m->context->team, place_of(*slot), slot->matrix))) return false;
    slot->matrix->tiles = slot->memory->data();
    m->context->unbound += bind_parts(*m->context->team, *slot->matrix);
    return true;
}

// Gate and up share memory, tile by tile, when they have one type: one stream to read. Gate's slot leads; up, where it
// comes first or differs, gets its own memory.
bool give_memory(sx_model *m, const sx_tensor_args &t, Slot *slot) {
    Layer &l = m->layers[t.layer];
    if (t.role == SX_T_W_GATE) return give_own_memory(m, slot, t, 2);
    if (t.role == SX_T_W_UP && l.gate.rows != 0 && l.gate.type == t.type) {
        slot->matrix->tile_stride = l.gate.tile_stride;
        slot->matrix->tiles = l.gate.tiles + l.gate.tile_stride / 2;
        slot->matrix->parts = l.gate.parts;
        return true;
    }
    return give_own_memory(m, slot, t, 1);
}

sx_status set_matrix(sx_model *m, const sx_tensor_args &t, Slot slot) {
    if (t.rows != slot.rows || t.cols != slot.cols)
        return fail(SX_EINVAL, "role %d layer %u: expected %u x %u, got %u x %u", t.role, t.layer, slot.rows, slot.cols,
                    t.rows, t.cols);
    const Format *to = find_format(t.type);
    if (!to || to->step == 0)
        return fail(SX_EINVAL, "role %d: expected a type that weights are held in, got %s (%d)", t.role,
                    to ? to->name : "none", t.type);
    if (!t.packed && t.src_type != t.type && !to->quantise)
        return fail(SX_EUNSUPPORTED, "role %d: %s holds blocks of its own only, got type %d", t.role, to->name,
                    t.src_type);
    const sx_status whole = check_columns(t, t.type);
    if (whole != SX_OK) return whole;
    slot.matrix->type = t.type;
    slot.matrix->rows = t.rows;
    slot.matrix->cols = t.cols;
    if (!give_memory(m, t, &slot)) {
        slot.matrix->rows = 0;
        return fail(SX_ENOMEM, "no memory for role %d layer %u (%u x %u)", t.role, t.layer, t.rows, t.cols);
    }
    return pack_matrix(*m->context->team, {t.src_type, t.data, t.packed != 0}, place_of(slot), slot.matrix);
}

sx_status check_layer(const sx_model *m, uint32_t i) {
    const Layer &l = m->layers[i];
    const bool gated = l.gate.rows != 0;
    const bool whole = l.q.rows && l.k.rows && l.v.rows && l.o.rows && l.up.rows && l.down.rows;
    if (!whole || gated == (m->shape.plain_mlp != 0))
        return fail(SX_ESTATE, "layer %u: a weight matrix is missing, or a gate is there in a plain MLP", i);
    const bool attn = l.attn_norm.data() || l.attn_post_norm.data(), ffn = l.ffn_norm.data() || l.ffn_post_norm.data();
    if (!attn || !ffn) return fail(SX_ESTATE, "layer %u: a norm is missing", i);
    return SX_OK;
}

}  // namespace
}  // namespace sx

sx_status sx_model_create(sx_context *context, const sx_model_args *given, sx_model **out) {
    sx_model_args args;
    if (!context || !sx::take_args(given, &args) || !out)
        return sx::fail(SX_EINVAL, "sx_model_create: arguments are missing");
    const sx_status status = sx::check_args(args);
    if (status != SX_OK) return status;
    std::unique_ptr<sx_model> model(new (std::nothrow) sx_model);
    if (!model) return sx::fail(SX_ENOMEM, "no memory for a model");
    model->context = context;
    model->shape = args;
    if (!sx::allocate_all(model.get()))
        return sx::fail(SX_ENOMEM, "no memory for %u KV blocks or for batches of %u tokens", args.kv_blocks,
                        args.max_batch_tokens);
    *out = model.release();
    return SX_OK;
}

void sx_model_free(sx_model *model) { delete model; }

sx_status sx_model_set_tensor(sx_model *model, const sx_tensor_args *given) {
    sx_tensor_args t;
    if (!model || !sx::take_args(given, &t)) return sx::fail(SX_EINVAL, "sx_model_set_tensor: arguments are missing");
    if (t.role == SX_T_TOKEN_EMBD || t.role == SX_T_OUTPUT || t.role == SX_T_OUT_NORM) t.layer = 0;
    const sx_status status = sx::check_tensor(model, t);
    if (status != SX_OK) return status;
    sx::Slot slot;
    if (sx::matrix_slot(model, t.role, t.layer, &slot)) return sx::set_matrix(model, t, slot);
    sx::Memory *memory = nullptr;
    uint32_t n = 0;
    if (sx::vector_slot(model, t.role, t.layer, &memory, &n)) return sx::set_vector(t, n, memory);
    return sx::fail(SX_EINVAL, "role: expected one of SX_T_*, got %d", t.role);
}

sx_status sx_model_finish(sx_model *model) {
    if (!model) return sx::fail(SX_EINVAL, "sx_model_finish: a model was expected");
    if (model->embedding.rows == 0) return sx::fail(SX_ESTATE, "the token embedding is missing");
    if (!model->output_norm.data()) return sx::fail(SX_ESTATE, "the output norm is missing");
    for (uint32_t i = 0; i < model->shape.n_layers; i++) {
        const sx_status status = sx::check_layer(model, i);
        if (status != SX_OK) return status;
    }
    model->finished = true;
    return SX_OK;
}

sx_status sx_model_get_packed(const sx_model *model, sx_packed_args *given) {
    sx_packed_args args;
    if (!model || !sx::take_args(given, &args) || given->size < sizeof args)
        return sx::fail(SX_EINVAL, "sx_model_get_packed: a model and a whole sx_packed_args were expected");
    if (args.layer >= model->shape.n_layers)
        return sx::fail(SX_EINVAL, "expected a layer below %u, got %u", model->shape.n_layers, args.layer);
    sx::Slot slot;
    sx::Memory *memory = nullptr;
    uint32_t n = 0;
    sx_model *m = const_cast<sx_model *>(model);  // the slots are made for writing; here they are only read
    const bool matrix = sx::matrix_slot(m, args.role, args.layer, &slot);
    if (matrix ? slot.matrix->rows == 0 : !sx::vector_slot(m, args.role, args.layer, &memory, &n) || !memory->data())
        return sx::fail(SX_ENOTFOUND, "role %d layer %u: not set", args.role, args.layer);
    given->type = matrix ? slot.matrix->type : SX_F32;
    given->rows = matrix ? slot.matrix->rows : 1;
    given->cols = matrix ? slot.matrix->cols : n;
    const size_t tile = matrix ? sx::tile_bytes(given->type, given->cols) : 0;
    given->bytes = matrix ? tile * slot.matrix->n_tiles() : n * sizeof(float);
    if (!args.out) return SX_OK;
    if (args.capacity < given->bytes)
        return sx::fail(SX_EINVAL, "role %d: expected room for %llu bytes, got %llu", args.role,
                        static_cast<unsigned long long>(given->bytes), static_cast<unsigned long long>(args.capacity));
    if (!matrix) memcpy(args.out, memory->data(), given->bytes);
    for (uint32_t t = 0; matrix && t < slot.matrix->n_tiles(); t++)
        memcpy(static_cast<uint8_t *>(args.out) + t * tile, slot.matrix->tile_at(t), tile);
    return SX_OK;
}

uint32_t sx_crc32c(uint32_t crc, const void *data, uint64_t bytes) { return data ? sx::crc32c(crc, data, bytes) : crc; }
