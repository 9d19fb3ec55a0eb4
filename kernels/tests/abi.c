/* The compute half of the C ABI as a C99 program uses it: context, product, model, forward, errors. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "syshax/kernels.h"

#define DIM 32
#define VOCAB 48

static void expect(int truth, const char *what) {
    if (truth) return;
    printf("FAILED: %s (%s)\n", what, sx_last_error());
    exit(1);
}

static void check_product(sx_context *ctx) {
    float w[3 * DIM], x[2 * DIM], y[6];
    sx_pack_args pack = {sizeof pack, SX_F32, SX_F32, 3, DIM, w};
    sx_matrix *matrix = NULL;
    for (int i = 0; i < 3 * DIM; i++) w[i] = (float)(i % 7);
    for (int i = 0; i < 2 * DIM; i++) x[i] = (float)(i % 5);
    expect(sx_matrix_pack(ctx, &pack, &matrix) == SX_OK, "pack");
    expect(sx_linear(ctx, matrix, x, 2, NULL, y) == SX_OK, "linear");
    for (int m = 0; m < 2; m++)
        for (int r = 0; r < 3; r++) {
            float sum = 0;
            for (int c = 0; c < DIM; c++) sum += w[r * DIM + c] * x[m * DIM + c];
            expect(y[m * 3 + r] == sum, "small integers multiply exactly");
        }
    sx_matrix_free(matrix);
}

static void set(sx_model *model, int role, uint32_t rows, uint32_t cols) {
    float data[VOCAB * DIM];
    sx_tensor_args t = {sizeof t, role, 0, SX_F32, rows == 1 ? SX_F32 : SX_Q8_0, rows, cols, data, 0};
    for (uint32_t i = 0; i < rows * cols; i++) data[i] = sinf((float)(i * 7 + (uint32_t)role));
    expect(sx_model_set_tensor(model, &t) == SX_OK, "set_tensor");
}

static sx_model_args model_args(void) {
    static const float freqs[8] = {1.0f, 0.3f, 0.1f, 0.03f, 0.01f, 0.003f, 0.001f, 0.0003f};
    sx_model_args a;
    memset(&a, 0, sizeof a);
    a.size = sizeof a;
    a.n_layers = 1, a.d_model = DIM, a.n_heads = 2, a.n_kv_heads = 1, a.head_dim = 16, a.d_ff = DIM, a.vocab = VOCAB;
    a.rope_dims = 16, a.rope_freqs = freqs, a.norm_eps = 1e-5f, a.max_context = 64;
    a.kv_blocks = 8, a.kv_block_size = 16, a.kv_type = SX_F16, a.max_batch_tokens = 32;
    return a;
}

static sx_model *make_model(sx_context *ctx) {
    const sx_model_args a = model_args();
    sx_model *model = NULL;
    expect(sx_model_create(ctx, &a, &model) == SX_OK, "model");
    expect(sx_model_finish(model) == SX_ESTATE, "an empty model is not finished");
    set(model, SX_T_TOKEN_EMBD, VOCAB, DIM), set(model, SX_T_OUT_NORM, 1, DIM);
    set(model, SX_T_ATTN_NORM, 1, DIM), set(model, SX_T_FFN_NORM, 1, DIM);
    set(model, SX_T_WQ, DIM, DIM), set(model, SX_T_WK, 16, DIM), set(model, SX_T_WV, 16, DIM),
        set(model, SX_T_WO, DIM, DIM);
    set(model, SX_T_W_GATE, DIM, DIM), set(model, SX_T_W_UP, DIM, DIM), set(model, SX_T_W_DOWN, DIM, DIM);
    expect(sx_model_finish(model) == SX_OK, "finish");
    return model;
}

/* What a model holds, set into another one without packing, gives the same model. */
static sx_model *copy_packed(sx_context *ctx, const sx_model *from, const sx_model_args *shape) {
    static unsigned char bytes[VOCAB * DIM * 8];
    sx_model *to = NULL;
    expect(sx_model_create(ctx, shape, &to) == SX_OK, "a second model");
    for (int role = SX_T_TOKEN_EMBD; role <= SX_T_OUTPUT; role++) {
        sx_packed_args p = {sizeof p, role, 0, 0, 0, 0, 0, bytes, sizeof bytes};
        sx_tensor_args t = {sizeof t, role, 0, -1, 0, 0, 0, bytes, 1};
        const sx_status status = sx_model_get_packed(from, &p);
        if (status == SX_ENOTFOUND) continue;
        expect(status == SX_OK && p.bytes <= sizeof bytes, "get_packed");
        p.capacity = p.bytes - 1;
        expect(sx_model_get_packed(from, &p) == SX_EINVAL, "no room");
        t.type = p.type, t.rows = p.rows, t.cols = p.cols;
        expect(sx_model_set_tensor(to, &t) == SX_OK, "set packed");
    }
    expect(sx_model_finish(to) == SX_OK, "finish the copy");
    return to;
}

static void forward(sx_model *model, uint32_t first, uint32_t n, float *logits) {
    const int32_t tokens[5] = {3, 1, 4, 1, 5}, table[1] = {2};
    sx_seq seq = {first, n, first, 0, 1, 2};
    sx_forward_args f;
    memset(&f, 0, sizeof f);
    f.size = sizeof f;
    f.n_seqs = 1, f.seqs = &seq, f.tokens = tokens, f.n_tokens = 5, f.n_block_entries = 1, f.block_table = table;
    f.logits = logits, f.logits_capacity = n * VOCAB;
    expect(sx_forward(model, &f) == SX_OK && f.n_logit_rows == n, "forward");
}

static void check_model(sx_context *ctx) {
    float whole[5 * VOCAB], parts[5 * VOCAB];
    sx_model_args a;
    sx_model *model = make_model(ctx), *copy;
    forward(model, 0, 5, whole);
    forward(model, 0, 2, parts);
    for (uint32_t i = 2; i < 5; i++) forward(model, i, 1, parts + i * VOCAB);
    expect(memcmp(whole, parts, sizeof whole) == 0, "a chunk and single tokens give the same bits");
    a = model_args();
    copy = copy_packed(ctx, model, &a);
    forward(copy, 0, 5, parts);
    expect(memcmp(whole, parts, sizeof whole) == 0, "the packed bytes make the same model");
    expect(sx_crc32c(0, "123456789", 9) == 0xe3069283u, "the check value of CRC-32C");
    sx_model_free(copy);
    expect(whole[0] == whole[0] && whole[0] != whole[VOCAB], "logits are numbers and differ");
    sx_model_free(model);
}

/* A caller compiled against an older header passes a shorter struct. */
static void check_short_struct(void) {
    sx_context_args args = {8, 1, NULL, "no such thing", 99, 99};
    sx_context *ctx = NULL;
    sx_context_info info;
    expect(sx_context_create(&args, &ctx) == SX_OK, "fields beyond the caller's size are not read");
    info.size = 8;
    info.n_pinned = 12345;
    expect(sx_context_describe(ctx, &info) == SX_OK && info.n_threads == 1 && info.n_pinned == 12345, "nor written");
    sx_context_destroy(ctx);
}

int main(void) {
    sx_context_args args = {sizeof args, 2, NULL, NULL, 50, 0};
    sx_context *ctx = NULL;
    expect(sx_abi_version() == SX_ABI_VERSION, "ABI version");
    expect(sx_context_create(&args, &ctx) == SX_OK, "context");
    check_product(ctx);
    check_model(ctx);
    sx_context_destroy(ctx);
    check_short_struct();
    args.isa = "vax";
    expect(sx_context_create(&args, &ctx) == SX_EUNSUPPORTED && strstr(sx_last_error(), "vax") != NULL,
           "an unknown ISA is named");
    args.isa = NULL, args.n_threads = 0;
    expect(sx_context_create(&args, &ctx) == SX_EINVAL, "no threads");
    expect(strcmp(sx_status_name(SX_EINVAL), "SX_EINVAL") == 0 || sx_status_name(SX_EINVAL)[0] != 0, "status name");
    puts("ok");
    return 0;
}
