/* Runs inside a small virtual machine with four NUMA nodes: builds a model on all of them and asks the kernel where
 * its threads and its memory really are. Prints one line a fact; "ok" begins the good ones, "BAD" the others. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "syshax/kernels.h"

/* Small: software emulation computes a few million products a second. */
enum {
    LAYERS = 2,
    D = 128,
    HEADS = 8,
    KV_HEADS = 8,
    DIM = 16,
    FF = 512,
    VOCAB = 1024,
    BLOCKS = 8,
    BLOCK = 16,
    TOKENS = 128
};

static int bad = 0;

static void report(int good, const char *text, long value) {
    printf("%s %s: %ld\n", good ? "ok" : "BAD", text, value);
    bad |= !good;
}

static void must(sx_status status, const char *what) {
    if (status == SX_OK) return;
    printf("BAD %s: %s: %s\n", what, sx_status_name(status), sx_last_error());
    exit(1);
}

static float *noise(size_t n, uint32_t seed) {
    float *x = malloc(n * sizeof *x);
    for (size_t i = 0; i < n; i++) {
        seed = seed * 1664525u + 1013904223u;
        x[i] = ((float)(seed >> 8) / 8388608.0f - 1.0f) * 0.08f;
    }
    return x;
}

static void set(sx_model *model, int32_t role, uint32_t layer, uint32_t rows, uint32_t cols, int32_t type) {
    float *data = noise((size_t)rows * cols, (uint32_t)(role * 131 + (int32_t)layer * 7 + 1));
    sx_tensor_args args = {sizeof args, role, layer, SX_F32, type, rows, cols, data};
    must(sx_model_set_tensor(model, &args), "set_tensor");
    free(data);
}

static sx_model *build(sx_context *context) {
    float freqs[DIM / 2];
    for (int i = 0; i < DIM / 2; i++) freqs[i] = 1.0f / (float)(1 + i);
    sx_model_args args = {0};
    args.size = sizeof args;
    args.n_layers = LAYERS, args.d_model = D, args.n_heads = HEADS, args.n_kv_heads = KV_HEADS, args.head_dim = DIM;
    args.d_ff = FF, args.vocab = VOCAB, args.rope_dims = DIM, args.rope_freqs = freqs, args.norm_eps = 1e-5f;
    args.max_context = TOKENS, args.kv_blocks = BLOCKS, args.kv_block_size = BLOCK, args.kv_type = SX_F16;
    args.max_batch_tokens = TOKENS;
    sx_model *model = NULL;
    must(sx_model_create(context, &args, &model), "model_create");
    for (uint32_t l = 0; l < LAYERS; l++) {
        set(model, SX_T_ATTN_NORM, l, 1, D, SX_F32), set(model, SX_T_FFN_NORM, l, 1, D, SX_F32);
        set(model, SX_T_WQ, l, HEADS * DIM, D, SX_Q4_0), set(model, SX_T_WK, l, KV_HEADS * DIM, D, SX_Q4_0);
        set(model, SX_T_WV, l, KV_HEADS * DIM, D, SX_Q4_0), set(model, SX_T_WO, l, D, HEADS * DIM, SX_Q8_0);
        set(model, SX_T_W_GATE, l, FF, D, SX_Q8_0), set(model, SX_T_W_UP, l, FF, D, SX_Q8_0);
        set(model, SX_T_W_DOWN, l, D, FF, SX_F16);
    }
    set(model, SX_T_TOKEN_EMBD, 0, VOCAB, D, SX_Q8_0), set(model, SX_T_OUT_NORM, 0, 1, D, SX_F32);
    must(sx_model_finish(model), "finish");
    return model;
}

/* Two tokens in each block: every page of the KV cache is written, and little is computed. */
static void forward(sx_model *model, float *logits) {
    int32_t tokens[2 * BLOCKS], table[BLOCKS];
    sx_seq seqs[BLOCKS];
    for (int i = 0; i < 2 * BLOCKS; i++) tokens[i] = (i * 37) % VOCAB;
    for (int i = 0; i < BLOCKS; i++) {
        table[i] = i;
        seqs[i] = (sx_seq){(uint32_t)(2 * i), 2, 0, (uint32_t)i, 1, i == 0};
    }
    sx_forward_args args = {sizeof args, BLOCKS, seqs, tokens, 2 * BLOCKS, BLOCKS, table, logits, VOCAB, 0};
    must(sx_forward(model, &args), "forward");
}

static void check_regions(const sx_model *model) {
    static sx_region regions[512];
    uint32_t n = 0;
    must(sx_model_regions(model, regions, sizeof *regions, 512, &n), "regions");
    long right[2] = {0, 0}, wrong = 0, absent = 0;
    for (uint32_t i = 0; i < n; i++)
        for (uintptr_t at = (uintptr_t)regions[i].address & ~4095ul;
             at < (uintptr_t)regions[i].address + regions[i].bytes; at += 4096) {
            void *page = (void *)at;
            int node = -1;
            syscall(SYS_move_pages, 0, 1ul, &page, NULL, &node, 0);
            if (node == regions[i].node)
                right[regions[i].kind]++;
            else if (node < 0)
                absent++;
            else
                wrong++;
        }
    report(n >= LAYERS * 4 * 4, "regions", n);
    report(right[0] > 64, "pages of weights on their node", right[0]);
    report(right[1] >= LAYERS * KV_HEADS, "pages of KV heads on their node", right[1]);
    report(wrong == 0, "pages on another node", wrong);
    report(absent == 0, "pages never touched", absent);
}

static void check_threads(const int32_t *cpus, int n) {
    int seen[64] = {0}, pinned = 0;
    DIR *tasks = opendir("/proc/self/task");
    for (struct dirent *entry; (entry = readdir(tasks)) != NULL;) {
        cpu_set_t set;
        const pid_t id = (pid_t)atol(entry->d_name);
        if (id == 0 || id == getpid() || sched_getaffinity(id, sizeof set, &set) != 0 || CPU_COUNT(&set) != 1) continue;
        for (int c = 0; c < 64; c++) seen[c] |= CPU_ISSET(c, &set);
        pinned++;
    }
    closedir(tasks);
    int placed = 0;
    for (int i = 1; i < n; i++) placed += seen[cpus[i]];
    report(pinned == n - 1 && placed == n - 1, "worker threads each on a CPU of the plan", placed);
}

/* From now on this process may neither bind memory nor pin threads, as in a container without CAP_SYS_NICE. */
static void refuse_binding(void) {
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_mbind, 1, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_sched_setaffinity, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    const struct sock_fprog program = {sizeof code / sizeof *code, code};
    const int refused = prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program);
    report(!refused, "binding forbidden", refused);
}

int main(void) {
    const int32_t all[8] = {0, 1, 2, 3, 4, 5, 6, 7}, mixed[8] = {6, 0, 3, 5, 1, 7, 2, 4}, uneven[3] = {0, 1, 2};
    static float once[VOCAB], twice[VOCAB], alone[VOCAB];
    sx_context_args args = {sizeof args, 8, all, NULL, 0, 0};
    sx_context *context = NULL;
    sx_context_info info = {0};
    info.size = sizeof info;
    must(sx_context_create(&args, &context), "context");
    must(sx_context_describe(context, &info), "describe");
    printf("ok instruction set %s\n", info.isa);
    report(info.n_nodes == 4, "nodes", info.n_nodes);
    report(info.n_pinned == 8, "threads pinned", info.n_pinned);
    sx_model *model = build(context);
    forward(model, once);
    must(sx_context_describe(context, &info), "describe");
    report(info.n_unbound == 0, "ranges that could not be bound", info.n_unbound);
    check_regions(model);
    check_threads(all, 8);
    sx_model_free(model);
    sx_context_destroy(context);

    args.cpus = mixed;
    must(sx_context_create(&args, &context), "context, CPUs out of order");
    model = build(context);
    forward(model, twice);
    check_regions(model);
    sx_model_free(model);
    sx_context_destroy(context);

    args.n_threads = 1, args.cpus = NULL;
    must(sx_context_create(&args, &context), "context of one thread");
    model = build(context);
    forward(model, alone);
    report(memcmp(once, twice, sizeof once) == 0 && memcmp(once, alone, sizeof once) == 0, "logits equal bit for bit",
           VOCAB);
    sx_model_free(model);
    sx_context_destroy(context);

    refuse_binding();
    args.n_threads = 8, args.cpus = all;
    must(sx_context_create(&args, &context), "context that can't pin");
    model = build(context);
    forward(model, twice);
    must(sx_context_describe(context, &info), "describe");
    report(info.n_pinned == 0, "threads pinned although forbidden", info.n_pinned);
    report(info.n_unbound >= LAYERS * 4, "ranges told as not bound", info.n_unbound);
    report(memcmp(once, twice, sizeof once) == 0, "logits equal all the same", VOCAB);
    sx_model_free(model);
    sx_context_destroy(context);

    args.n_threads = 3, args.cpus = uneven;
    const sx_status status = sx_context_create(&args, &context);
    report(status == SX_EINVAL, "uneven plan refused with status", status);
    printf("ok said: %s\n", sx_last_error());
    printf(bad ? "NUMA BAD\n" : "NUMA OK\n");
    return bad;
}
