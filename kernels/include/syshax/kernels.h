/* sysHAX native core: the C ABI of the CPU kernels.
 *
 * Rules of this interface (docs/adr/0003-c-abi.md):
 *  - every argument struct starts with `size`, set by the caller to sizeof the struct it was compiled with;
 *    fields are only ever appended, a smaller `size` means "the missing fields are zero";
 *  - every call returns an sx_status; nothing throws, prints, aborts or reads the environment across this line
 *    (SYSHAX_ISA is read by the Python binding and passed in sx_context_args.isa);
 *  - the caller owns every buffer it passes; the library keeps a pointer only where this header says so.
 */
#ifndef SYSHAX_KERNELS_H
#define SYSHAX_KERNELS_H

#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define SX_API __attribute__((visibility("default")))
#else
#define SX_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

#define SX_ABI_VERSION 2u

typedef int32_t sx_status;
enum {
    SX_OK = 0,
    SX_EINVAL = -1,       /* an argument is out of range or inconsistent */
    SX_ENOMEM = -2,       /* memory or address space could not be had */
    SX_EUNSUPPORTED = -3, /* this machine or build can't do it */
    SX_ESTATE = -4,       /* call out of order */
    SX_EIO = -5,          /* open, map or allocate of a file failed */
    SX_EFULL = -6,        /* no free chunk, ticket or token room */
    SX_ENOTFOUND = -7,    /* no such ticket */
    SX_ESTALE = -8,       /* generation or state changed under the caller */
    SX_ECORRUPT = -9,     /* checksum, magic or bounds check failed */
    SX_EBUSY = -10,       /* held by somebody else */
    SX_EMISMATCH = -11    /* geometry or format version differs */
};

/* Element and block types, by GGUF's ggml_type numbers. */
enum { SX_F32 = 0, SX_F16 = 1, SX_Q4_0 = 2, SX_Q4_1 = 3, SX_Q8_0 = 8, SX_Q4_K = 12, SX_BF16 = 30 };
/* These are read, and held in another. */
enum {
    SX_Q5_0 = 6,
    SX_Q5_1 = 7,
    SX_Q2_K = 10,
    SX_Q3_K = 11,
    SX_Q5_K = 13,
    SX_Q6_K = 14,
    SX_IQ4_NL = 20,
    SX_IQ4_XS = 23,
    SX_MXFP4 = 39
};

typedef struct sx_format_info {
    uint32_t size;
    uint32_t block, block_bytes; /* weights of a block in a file, and its bytes */
    uint32_t step, step_bytes;   /* columns of a superblock of a packed tile of 16 rows, and its bytes; 0: not held */
    uint32_t quantised;          /* 1: its products read activations of 8 bits */
    uint32_t from_floats;        /* 1: weights of other types can be held in it; 0: only blocks of its own */
    char name[16];
} sx_format_info;

SX_API uint32_t sx_abi_version(void);
SX_API const char *sx_status_name(sx_status status);
/* Text of the calling thread's last failure: what was expected, what came. Valid until its next call. */
SX_API const char *sx_last_error(void);
/* SX_ENOTFOUND for a type that the core does not take. */
SX_API sx_status sx_format_describe(int32_t type, sx_format_info *info);
/* Whole blocks of `type` as floats: `weights` of them, into `out`. */
SX_API sx_status sx_decode(int32_t type, const void *blocks, uint64_t weights, float *out);

/* ---- context: an ISA and a pool of pinned threads -------------------------------------------------- */

typedef struct sx_context sx_context;

typedef struct sx_context_args {
    uint32_t size;
    uint32_t n_threads;  /* >= 1; thread 0 is the calling thread of sx_forward and the sx_linear family */
    const int32_t *cpus; /* n_threads CPU numbers, or NULL: do not pin */
    const char *isa;     /* "scalar", "avx2", "avx512vnni", "neon", "i8mm", "sve", or NULL: the best of this CPU */
    uint32_t spin_us;    /* how long a waiting thread spins before it sleeps; at most 50 */
    uint32_t nrc;        /* weight rows per tile step (NRC of the user's guide): 16 or 32; 0: the default of the ISA */
} sx_context_args;

typedef struct sx_context_info {
    uint32_t size;
    uint32_t n_threads;
    uint32_t n_pinned; /* threads really bound to the CPU asked for */
    uint32_t n_nodes;  /* NUMA nodes the threads lie on */
    char isa[16];
    uint32_t nrc;
    uint32_t n_unbound; /* ranges of weights or KV that could not be bound to their node */
} sx_context_info;

SX_API sx_status sx_context_create(const sx_context_args *args, sx_context **out);
SX_API void sx_context_destroy(sx_context *ctx);
SX_API sx_status sx_context_describe(const sx_context *ctx, sx_context_info *info);
/* Writes the names of the ISAs this CPU and build can run, comma separated, best first. */
SX_API sx_status sx_isa_list(char *out, size_t capacity);

/* ---- single matrices (tests, benchmarks, the vLLM plugin) ------------------------------------------ */

typedef struct sx_matrix sx_matrix; /* one packed weight matrix: `rows` outputs, `cols` inputs */

typedef struct sx_pack_args {
    uint32_t size;
    int32_t src_type;    /* type of the bytes at `data`: any SX_ type; GGUF block order, row-major */
    int32_t type;        /* packed type: SX_Q4_0, SX_Q8_0, or SX_F16/SX_BF16/SX_F32 (kept as it is) */
    uint32_t rows, cols; /* cols: a multiple of 32 for block types */
    const void *data;
} sx_pack_args;

SX_API sx_status sx_matrix_pack(sx_context *ctx, const sx_pack_args *args, sx_matrix **out);
SX_API void sx_matrix_free(sx_matrix *matrix);
/* y[m][rows] = x[m][cols] * W^T (+ bias[rows] where not NULL). f32 in, f32 out, row-major.
 * Block types: x is quantised to 8 bits first, in groups of 32 columns with an f32 scale (largest magnitude / 127),
 * the products are summed exactly within a group and in f32 over groups. Float types: x stays f32, and so does the sum.
 * A row of y is bitwise the same for every m and thread count. */
SX_API sx_status sx_linear(sx_context *ctx, const sx_matrix *w, const float *x, uint32_t m, const float *bias,
                           float *y);

/* ---- a whole decoder model ------------------------------------------------------------------------- */

typedef struct sx_model sx_model;

typedef struct sx_model_args {
    uint32_t size;
    uint32_t n_layers, d_model, n_heads, n_kv_heads, head_dim, d_ff, vocab;
    uint32_t rope_dims;      /* even, <= head_dim; rotate-half (Hugging Face) order */
    const float *rope_freqs; /* rope_dims/2 inverse frequencies, scaling (Llama 3) already applied; copied */
    float norm_eps;
    uint32_t max_context;    /* tokens of one sequence */
    uint32_t sliding_window; /* tokens; 0: none */
    uint32_t kv_blocks;      /* blocks of the paged KV cache */
    uint32_t kv_block_size;  /* tokens a block; power of two, 8 to 256 */
    int32_t kv_type;         /* SX_F16, SX_BF16, SX_F32, or SX_Q8_0: 8 bits and an f32 scale per token and head */
    uint32_t max_batch_tokens;
    const float *alibi_slopes; /* n_heads values instead of RoPE, or NULL; copied */
    /* What differs from llama; all zero: nothing. */
    const uint32_t *layer_windows; /* n_layers values in place of sliding_window, of which two differ at most; copied */
    const uint32_t *layer_ropes;   /* n_layers values, or NULL: 0 rope_freqs, 1 rope_freqs_local, 2 none; copied */
    const float *rope_freqs_local; /* rope_dims/2 values for layers of rope 1, or NULL; copied */
    float rope_magnitude;          /* factor of cosine and sine of rope_freqs (yarn, longrope); 0: 1 */
    float embedding_scale;         /* factor of the embedding's rows; 0: 1 */
    float residual_scale;          /* factor of what attention and feed-forward add; 0: 1 */
    float attention_scale;         /* factor of the scores; 0: 1 / sqrt(head_dim) */
    float logit_scale;             /* factor of the logits, before their soft cap; 0: 1 */
    float attention_softcap;       /* c: scores become c * tanh(score / c); 0: none */
    float logit_softcap;           /* the same for logits */
    int32_t activation;            /* SX_SILU or SX_GELU_TANH */
    uint32_t plain_mlp;            /* 1: no gate, down(activation(up)) */
} sx_model_args;

enum {
    SX_T_TOKEN_EMBD = 0,
    SX_T_ATTN_NORM = 1,
    SX_T_WQ = 2,
    SX_T_WK = 3,
    SX_T_WV = 4,
    SX_T_BQ = 5,
    SX_T_BK = 6,
    SX_T_BV = 7,
    SX_T_WO = 8,
    SX_T_FFN_NORM = 9,
    SX_T_W_GATE = 10,
    SX_T_W_UP = 11,
    SX_T_W_DOWN = 12,
    SX_T_OUT_NORM = 13,
    SX_T_OUTPUT = 14, /* absent: tied to SX_T_TOKEN_EMBD */
    /* Those that follow are optional in each layer. */
    SX_T_BO = 15,
    SX_T_B_GATE = 16,
    SX_T_B_UP = 17,
    SX_T_B_DOWN = 18,
    SX_T_Q_NORM = 19, /* [head_dim], of every head before the rotary embedding */
    SX_T_K_NORM = 20,
    SX_T_ATTN_POST_NORM = 21, /* of what is added to the residual stream */
    SX_T_FFN_POST_NORM = 22
};

enum { SX_SILU = 0, SX_GELU_TANH = 1 };

typedef struct sx_tensor_args {
    uint32_t size;
    int32_t role;     /* SX_T_* */
    uint32_t layer;   /* ignored for the model-wide roles */
    int32_t src_type; /* type of the bytes at `data` */
    int32_t type;     /* type to hold it in; norms and biases are always held as f32 */
    uint32_t rows, cols;
    const void *data; /* read during the call only */
    uint32_t packed; /* 1: data is what sx_model_get_packed wrote for this role, type and shape; src_type is not read */
} sx_tensor_args;

SX_API sx_status sx_model_create(sx_context *ctx, const sx_model_args *args, sx_model **out);
SX_API void sx_model_free(sx_model *model);
SX_API sx_status sx_model_set_tensor(sx_model *model, const sx_tensor_args *args);

/* A tensor as the model holds it: tiles of 16 rows for matrices, f32 for norms and biases. The same bytes for every
 * ISA, thread count and NUMA layout of SX_PACK_VERSION, so that they can be kept in a file and set again without
 * packing. */
#define SX_PACK_VERSION 1u
typedef struct sx_packed_args {
    uint32_t size;
    int32_t role;
    uint32_t layer;
    int32_t type;        /* out; SX_F32 for norms and biases */
    uint32_t rows, cols; /* out */
    uint64_t bytes;      /* out: how many there are */
    void *out;           /* NULL: only the fields above are written */
    uint64_t capacity;   /* bytes at `out` */
} sx_packed_args;

/* SX_ENOTFOUND: the model has no such tensor. */
SX_API sx_status sx_model_get_packed(const sx_model *model, sx_packed_args *args);
/* CRC-32C (RFC 3720) of `bytes` bytes that follow those whose result is `crc`; 0 at the start. */
SX_API uint32_t sx_crc32c(uint32_t crc, const void *data, uint64_t bytes);
/* Checks that every tensor is there; after it the model takes sx_forward calls. */
SX_API sx_status sx_model_finish(sx_model *model);

typedef struct sx_seq {
    uint32_t first_token, n_tokens; /* its slice of sx_forward_args.tokens; prefill chunk (> 1) or decode row (1) */
    uint32_t position;              /* tokens of the sequence already in the KV cache */
    uint32_t first_block, n_blocks; /* its slice of sx_forward_args.block_table; covers position + n_tokens */
    uint32_t logits;                /* 0: none; 1: of the last token; 2: of every token */
} sx_seq;

typedef struct sx_forward_args {
    uint32_t size;
    uint32_t n_seqs;
    const sx_seq *seqs;
    const int32_t *tokens;
    uint32_t n_tokens;
    uint32_t n_block_entries;
    const int32_t *block_table; /* KV block numbers */
    float *logits;              /* rows in order of sequences (and tokens); [rows][vocab] */
    uint64_t logits_capacity;   /* floats at `logits` */
    uint32_t n_logit_rows;      /* out */
} sx_forward_args;

/* One step of continuous batching. Bitwise the same result for a token whatever else is in the batch, whatever the
 * chunking, the block numbers and the thread count. One call at a time per model. */
SX_API sx_status sx_forward(sx_model *model, sx_forward_args *args);

/* Where a model's memory is meant to lie: one range a node and matrix, one a node and layer of KV. */
typedef struct sx_region {
    const void *address;
    uint64_t bytes;
    int32_t node; /* NUMA node; -1: not bound, the context's threads lie on one node */
    int32_t kind; /* 0: packed weight rows, 1: KV heads */
} sx_region;

/* Writes up to `capacity` regions of `region_size` (sizeof sx_region) bytes; `*n` is how many there are. */
SX_API sx_status sx_model_regions(const sx_model *model, sx_region *out, uint32_t region_size, uint32_t capacity,
                                  uint32_t *n);

/* Copies KV between the paged cache and one handoff chunk [layer][K,V][chunk_tokens][kv head][head_dim].
 * K is as stored: after RoPE, head dimension in rotate-half order. Both use the context's threads: not beside
 * sx_forward, sx_linear or each other on one context. */
typedef struct sx_kv_copy_args {
    uint32_t size;
    uint32_t n_blocks;
    const int32_t *block_table;
    uint32_t first_token; /* of the sequence */
    uint32_t n_tokens;
    uint32_t chunk_tokens;           /* tokens a chunk holds */
    uint32_t chunk_first;            /* where first_token lies in the chunk */
    int32_t wire_type;               /* SX_F32, SX_F16 or SX_BF16 */
    uint32_t head_first, head_count; /* kv heads to copy; head_count 0: all */
    void *chunk;
    uint32_t *crc; /* out, or NULL: crc32c over these tokens and heads in the chunk, in its order */
} sx_kv_copy_args;

SX_API sx_status sx_kv_export(const sx_model *model, const sx_kv_copy_args *args);
SX_API sx_status sx_kv_import(sx_model *model, const sx_kv_copy_args *args);

/* The same for the paged cache of another engine in this process. */
typedef struct sx_pages_side { /* K or V of one layer; strides in elements */
    void *data;
    int64_t block, token, head, dim;
    /* Where not NULL, in place of token and dim: [block_size][head_size], offset within a block and head. */
    const int32_t *places;
} sx_pages_side;

typedef struct sx_pages_args {
    uint32_t size;
    uint32_t n_sides; /* K and V of each layer, in the chunk's order */
    const sx_pages_side *sides;
    const int32_t *block_table; /* of the sequence; entries below cache_blocks */
    uint32_t n_blocks, cache_blocks;
    int32_t type, wire_type;   /* of the cache and of the chunk: SX_F32, SX_F16 or SX_BF16 */
    uint32_t block_size;       /* tokens */
    uint32_t heads, head_size; /* of the cache; head_size at most 1024, both together 16384 */
    uint32_t first_token, n_tokens;
    uint32_t chunk_tokens, chunk_first;     /* tokens a chunk holds, and where first_token lies in it */
    uint32_t chunk_heads, chunk_head_first; /* kv heads a chunk holds, and where the cache's first one lies in it */
    void *chunk;
    uint32_t *crc; /* as in sx_kv_copy_args */
} sx_pages_args;

SX_API sx_status sx_pages_export(const sx_pages_args *args);
SX_API sx_status sx_pages_import(const sx_pages_args *args);

#ifdef __cplusplus
}
#endif
#endif
