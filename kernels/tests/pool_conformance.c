/* Conformance of a handoff pool with docs/kv-handoff.md section 2, format 1. Plain C99, no private header.
 *
 *   pool_conformance FOLDER        makes a pool in FOLDER through the C ABI and checks every byte that is specified
 *   pool_conformance --check FILE  checks a file that any engine made; reads it by the specification alone
 *
 * Exit 0: conforms. Else one line per fault on stderr. */
#define _POSIX_C_SOURCE 200809L
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "syshax/pool.h"
#include "syshax/pool_format.h"

static int faults = 0;

static void expect(int holds, const char *what) {
    if (holds) return;
    fprintf(stderr, "fault: %s\n", what);
    ++faults;
}

static void expect_status(sx_status found, sx_status wanted, const char *call) {
    if (found == wanted) return;
    fprintf(stderr, "fault: %s returned %s (%s), expected %s\n", call, sx_status_name(found), sx_last_error(),
            sx_status_name(wanted));
    ++faults;
}

/* Bit by bit on purpose: shares nothing with the code under test. Reflected: 0x82f63b78 CRC-32C, 0xedb88320 zlib's. */
static uint32_t crc_bits(uint32_t polynomial, uint32_t crc, const void *data, size_t bytes) {
    const uint8_t *p = data;
    crc = ~crc;
    for (size_t i = 0; i < bytes; ++i) {
        crc ^= p[i];
        for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1u) ? polynomial : 0u);
    }
    return ~crc;
}

static uint32_t crc32c(uint32_t crc, const void *data, size_t bytes) { return crc_bits(0x82f63b78u, crc, data, bytes); }

/* ---- a file, by the specification ------------------------------------------------------------------- */

typedef struct pool_file {
    uint8_t *bytes;
    size_t size;
    sx_pool_header header;
} pool_file;

static int load(const char *path, pool_file *file) {
    memset(file, 0, sizeof *file);
    FILE *in = fopen(path, "rb");
    if (in == NULL) return 0;
    fseek(in, 0, SEEK_END);
    file->size = (size_t)ftell(in);
    rewind(in);
    file->bytes = malloc(file->size + 1);
    const int complete = file->bytes != NULL && fread(file->bytes, 1, file->size, in) == file->size;
    fclose(in);
    if (complete && file->size >= sizeof file->header) memcpy(&file->header, file->bytes, sizeof file->header);
    return complete && file->size >= SX_POOL_TICKETS_OFFSET;
}

static uint64_t round_up(uint64_t value, uint64_t step) { return (value + step - 1) / step * step; }

static uint64_t token_bytes(const sx_pool_header *h) {
    return (uint64_t)h->n_kv_heads * h->head_size * (h->wire_type == SX_F32 ? 4 : 2);
}

static void check_header(const pool_file *file) {
    const sx_pool_header *h = &file->header;
    const uint64_t stride = round_up(64 + 4 * (uint64_t)((h->max_tokens + 63) / 64), 64);
    const uint64_t records = 8192 + h->n_tickets * stride, chunks = round_up(records + 384ull * h->n_chunks, 4096);
    const uint64_t chunk = round_up(2ull * h->n_layers * 64 * token_bytes(h), 4096);
    expect(memcmp(h->magic, "SXPOOL1", 8) == 0, "magic");
    expect(h->format == 1, "format");
    expect(h->header_bytes == 192 && sizeof *h == 192, "header_bytes");
    expect(h->crc == crc_bits(0xedb88320u, 0, file->bytes, 180), "crc of the header");
    expect(h->generation != 0, "generation");
    expect(h->wire_type == SX_F32 || h->wire_type == SX_F16 || h->wire_type == SX_BF16, "wire_type");
    expect(h->tp_size >= 1 && h->tp_size <= 8 && h->chunk_tokens == 64, "tp_size or chunk_tokens");
    expect(h->ticket_stride == stride && h->record_stride == 384, "strides of the tables");
    expect(h->tickets_offset == 8192 && h->records_offset == records && h->chunks_offset == chunks, "offsets");
    expect(h->chunk_stride == chunk, "chunk_stride");
    expect(h->file_bytes == chunks + h->n_chunks * chunk && file->size >= h->file_bytes, "file_bytes");
}

static void check_stats(const pool_file *file) {
    const uint8_t *page = file->bytes + SX_POOL_STATS_OFFSET;
    sx_unit_stats stats;
    uint64_t again;
    memcpy(&stats, page, sizeof stats);
    memcpy(&again, page + 120, sizeof again);
    if (stats.size == 0 && stats.sequence == 0) return; /* never written */
    expect(stats.size == 120 && stats.format == 1, "stats: size or format");
    expect(stats.sequence == again, "stats: the two sequence numbers");
    expect(stats.generation == file->header.generation, "stats: generation");
    expect(stats.crc == crc_bits(0xedb88320u, 0, page, 116), "stats: crc");
}

static uint32_t slice_crc(const sx_pool_header *h, const uint8_t *chunk, uint32_t rank, uint32_t tokens) {
    const uint64_t row = token_bytes(h), head = row / h->n_kv_heads;
    const uint64_t first = rank * h->n_kv_heads / h->tp_size * head;
    const uint64_t end = (rank + 1) * h->n_kv_heads / h->tp_size * head;
    uint32_t crc = 0;
    for (uint32_t plane = 0; plane < 2 * h->n_layers; ++plane)
        for (uint32_t token = 0; token < tokens; ++token)
            crc = crc32c(crc, chunk + (plane * 64ull + token) * row + first, end - first);
    return crc;
}

static void check_seals(const pool_file *file, uint32_t number, uint32_t slot, uint32_t valid) {
    const sx_pool_header *h = &file->header;
    sx_pool_record record;
    memcpy(&record, file->bytes + h->records_offset + 384ull * number, sizeof record);
    expect(record.owner == slot, "a chunk record names another ticket");
    for (uint32_t rank = 0; rank < h->tp_size; ++rank) {
        const uint64_t seal = record.seals[rank];
        const uint32_t covered = (seal >> 32) & 0xff;
        if ((rank + 1) * h->n_kv_heads / h->tp_size == rank * h->n_kv_heads / h->tp_size) continue;
        expect(seal >> 48 == slot >> 16, "a seal is of another era");
        expect(covered >= valid && covered <= 64, "a seal covers too few tokens");
        const uint8_t *chunk = file->bytes + h->chunks_offset + number * h->chunk_stride;
        if (covered <= 64) expect((uint32_t)seal == slice_crc(h, chunk, rank, covered), "crc of a seal");
    }
}

static int all_zero(const uint8_t *p, size_t bytes) {
    for (size_t i = 0; i < bytes; ++i)
        if (p[i] != 0) return 0;
    return 1;
}

/* A ticket that consumers may take: everything it names must be there and be sealed. */
static void check_ready(const pool_file *file, uint32_t index, const sx_pool_ticket *ticket, const uint8_t *at) {
    const sx_pool_header *h = &file->header;
    const uint32_t slot = index | (ticket->era & 0xffff) << 16, n_chunks = (ticket->n_tokens + 63) / 64;
    expect(ticket->n_tokens >= 1 && ticket->n_tokens <= h->max_tokens, "n_tokens");
    expect(ticket->n_chunks >= n_chunks && ticket->deadline_ns != 0, "n_chunks or deadline");
    if (ticket->n_tokens > h->max_tokens) return;
    uint32_t crc = crc32c(crc32c(0, ticket->id, 16), &ticket->n_tokens, 4);
    for (uint32_t i = 0; i < n_chunks; ++i) {
        uint32_t number;
        memcpy(&number, at + 64 + 4ull * i, sizeof number);
        expect(number < h->n_chunks, "a chunk number is out of range");
        if (number >= h->n_chunks) return;
        const uint32_t valid = ticket->n_tokens - i * 64 < 64 ? ticket->n_tokens - i * 64 : 64;
        const uint8_t *tokens = file->bytes + h->records_offset + 384ull * number + offsetof(sx_pool_record, tokens);
        crc = crc32c(crc32c(crc, &number, 4), tokens, 4ull * valid);
        check_seals(file, number, slot, valid);
    }
    expect(ticket->crc == crc, "crc of a ticket");
}

static uint32_t check_tickets(const pool_file *file) {
    uint32_t ready = 0;
    for (uint32_t i = 0; i < file->header.n_tickets; ++i) {
        const uint8_t *at = file->bytes + 8192 + (uint64_t)i * file->header.ticket_stride;
        sx_pool_ticket ticket;
        memcpy(&ticket, at, sizeof ticket);
        const uint32_t state = ticket.word & 0xff;
        expect(state <= SX_TICKET_FAILED, "state of a ticket");
        if (state == SX_TICKET_FREE) expect(all_zero(ticket.id, 16) && ticket.n_tokens == 0, "FREE, but not zeroed");
        if (state != SX_TICKET_READY && state != SX_TICKET_LOADING) continue;
        ++ready;
        check_ready(file, i, &ticket, at);
    }
    return ready;
}

static void check_free_records(const pool_file *file) {
    for (uint32_t i = 0; i < file->header.n_chunks; ++i) {
        sx_pool_record record;
        memcpy(&record, file->bytes + file->header.records_offset + 384ull * i, sizeof record);
        if (record.owner != SX_POOL_NO_OWNER) continue;
        expect(all_zero((const uint8_t *)record.tokens, sizeof record.tokens), "token ids in a free chunk record");
    }
}

/* Number of tickets a consumer could take. */
static uint32_t check_file(const char *path) {
    pool_file file;
    uint32_t ready = 0;
    expect(load(path, &file), "the file can't be read or is too short for a pool");
    if (faults == 0) check_header(&file);
    if (faults == 0) {
        check_stats(&file);
        check_free_records(&file);
        ready = check_tickets(&file);
    }
    free(file.bytes);
    return ready;
}

/* ---- golden bytes and the protocol, through the C ABI ------------------------------------------------ */

/* The first 180 bytes of the header of golden_args(), as the specification lays them out. */
static const uint8_t golden_header[180] = {
    'S', 'X', 'P', 'O', 'O', 'L', '1', 0,  1,  0,  0,  0,  192, 0,  0,  0,  /* magic, format, 192 */
    3,   0,   0,   0,   4,   0,   0,   0,  8,  0,  0,  0,  30,  0,  0,  0,  /* layers, kv heads, head size, bf16 */
    0,   1,   2,   3,   4,   5,   6,   7,  8,  9,  10, 11, 12,  13, 14, 15, /* model_id */
    16,  17,  18,  19,  20,  21,  22,  23, 24, 25, 26, 27, 28,  29, 30, 31, /* */
    32,  0,   0,   0,   2,   0,   0,   0,  30, 0,  0,  0,  64,  0,  0,  0,  /* block size, tp, kv type, 64 */
    5,   0,   0,   0,   3,   0,   0,   0,  44, 1,  0,  0,  128, 0,  0,  0,  /* chunks, tickets, 300 tokens, stride */
    128, 1,   0,   0,   0,   0,   0,   0,  0,  32, 0,  0,  0,   0,  0,  0,  /* 384, 0, tickets 8192 */
    128, 33,  0,   0,   0,   0,   0,   0,  0,  48, 0,  0,  0,   0,  0,  0,  /* records 8576, chunks 12288 */
    0,   96,  0,   0,   0,   0,   0,   0,  0,  16, 2,  0,  0,   0,  0,  0,  /* stride 24576, file 135168 */
};

static const uint32_t golden_header_crc = 0x71e6e53du;

static sx_pool_create_args golden_args(const char *path) {
    sx_pool_create_args args;
    memset(&args, 0, sizeof args);
    args.size = sizeof args;
    args.n_chunks = 5;
    args.n_tickets = 3;
    args.max_tokens = 300;
    args.path = path;
    args.geometry.size = sizeof args.geometry;
    args.geometry.n_layers = 3;
    args.geometry.n_kv_heads = 4;
    args.geometry.head_size = 8;
    args.geometry.wire_type = SX_BF16;
    for (int i = 0; i < 32; ++i) args.geometry.model_id[i] = (uint8_t)i;
    args.geometry.block_size = 32;
    args.geometry.tp_size = 2;
    args.geometry.kv_type = SX_BF16;
    return args;
}

static void check_golden_header(const char *path) {
    pool_file file;
    expect(load(path, &file), "the file can't be read");
    expect(memcmp(file.bytes, golden_header, sizeof golden_header) == 0, "golden header");
    expect(file.header.crc == golden_header_crc, "golden crc of the header");
    if (file.header.crc != golden_header_crc) fprintf(stderr, "found %08x\n", (unsigned)file.header.crc);
    free(file.bytes);
}

/* Bytes 32..115 of a stats page whose fields count up from 1. */
static const uint8_t golden_stats[84] = {
    1,  0, 0, 0, 2,  0, 0, 0, 3,  0, 0, 0, 4, 0, 0, 0, 5,  0, 0,  0, 6, 0, 0, 0, /* running ... step_tokens */
    7,  0, 0, 0, 0,  0, 0, 0, 8,  0, 0, 0, 0, 0, 0, 0, 9,  0, 0,  0, 0, 0, 0, 0, /* ... prompt_tokens */
    10, 0, 0, 0, 0,  0, 0, 0, 11, 0, 0, 0, 0, 0, 0, 0,                           /* generation_tokens, steps */
    12, 0, 0, 0, 13, 0, 0, 0, 5,  0, 0, 0, 5, 0, 0, 0, 14, 0, 15, 0,             /* ... max_step_tokens */
};

static void check_golden_stats(sx_pool *owner, const char *path) {
    sx_unit_stats stats = {sizeof stats, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 0, 0, 14, 15, 0};
    sx_unit_stats back = {sizeof back, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0};
    expect_status(sx_pool_read_stats(owner, &back), SX_ENOTFOUND, "read_stats before the first write");
    expect_status(sx_pool_write_stats(owner, &stats), SX_OK, "write_stats");
    expect_status(sx_pool_read_stats(owner, &back), SX_OK, "read_stats");
    expect(back.sequence == 1 && back.size == 120 && back.format == 1, "stats: sequence, size, format");
    pool_file file;
    expect(load(path, &file), "the file can't be read");
    expect(memcmp(file.bytes + SX_POOL_STATS_OFFSET + 32, golden_stats, sizeof golden_stats) == 0, "golden stats page");
    free(file.bytes);
}

static void fill(void *data, uint64_t bytes, uint32_t seed) {
    uint8_t *p = data;
    for (uint64_t i = 0; i < bytes; ++i) p[i] = (uint8_t)(seed + i * 7 + (i >> 8));
}

static const uint8_t ID[16] = {1, 2, 3};
static const uint64_t LEASE = 60ull * 1000000000ull;

static uint32_t publish_one(sx_pool *owner, uint32_t n_tokens) {
    int32_t tokens[300];
    uint32_t slot = 0;
    sx_pool_header shape; /* golden_args() */
    memset(&shape, 0, sizeof shape);
    shape.n_layers = 3, shape.n_kv_heads = 4, shape.head_size = 8, shape.wire_type = SX_BF16, shape.tp_size = 2;
    for (int i = 0; i < 300; ++i) tokens[i] = 1000 + i;
    expect_status(sx_pool_begin(owner, ID, LEASE, &slot), SX_OK, "begin");
    expect_status(sx_pool_append(owner, slot, tokens, n_tokens), SX_OK, "append");
    for (uint32_t i = 0; i * 64 < n_tokens; ++i) {
        void *data = NULL;
        uint64_t bytes = 0;
        expect_status(sx_pool_chunk(owner, slot, i, &data, &bytes), SX_OK, "chunk");
        expect(bytes == 2 * 3 * 64 * 4 * 8 * 2, "bytes of a chunk");
        fill(data, bytes, i);
        expect_status(sx_pool_seal(owner, slot, i, 0, 0), SX_OK, "seal of rank 0");
        if (i == 0) expect_status(sx_pool_publish(owner, slot, n_tokens), SX_ESTATE, "publish with a rank unsealed");
        const uint32_t n = n_tokens - i * 64 < 64 ? n_tokens - i * 64 : 64;
        expect_status(sx_pool_seal_as(owner, slot, i, 1, n, slice_crc(&shape, data, 1, n)), SX_OK, "seal_as of rank 1");
    }
    expect_status(sx_pool_publish(owner, slot, n_tokens), SX_OK, "publish");
    return slot;
}

static void take_one(const char *path, const sx_pool_geometry *geometry, uint32_t n_tokens) {
    sx_pool *consumer = NULL;
    sx_pool_view view;
    int32_t token = 0;
    memset(&view, 0, sizeof view);
    view.size = sizeof view;
    expect_status(sx_pool_open(path, geometry, &consumer), SX_OK, "open");
    expect_status(sx_pool_pin(consumer, ID, 0, LEASE, &view), SX_OK, "pin");
    expect(view.n_tokens == n_tokens && view.n_chunks == (n_tokens + 63) / 64, "counts of the view");
    expect_status(sx_pool_tokens(consumer, &view, n_tokens - 1, 1, &token), SX_OK, "tokens");
    expect(token == (int32_t)(999 + n_tokens), "the last token id");
    for (uint32_t i = 0; i < view.n_chunks; ++i) {
        const void *data = NULL;
        uint64_t bytes = 0;
        expect_status(sx_pool_read(consumer, &view, i, &data, &bytes), SX_OK, "read");
        expect(data != NULL && ((const uint8_t *)data)[5] == (uint8_t)(i + 35), "data of a chunk");
    }
    expect_status(sx_pool_release(consumer, &view, 1), SX_OK, "release");
    expect_status(sx_pool_release(consumer, &view, 1), SX_ESTALE, "second release");
    expect_status(sx_pool_pin(consumer, ID, 0, LEASE, &view), SX_ESTALE, "pin of a consumed ticket");
    sx_pool_close(consumer);
}

static void check_abi(const char *path) {
    sx_pool_create_args args = golden_args(path);
    sx_pool *owner = NULL, *other = NULL;
    sx_pool_info info;
    uint32_t freed = 0;
    memset(&info, 0, sizeof info);
    info.size = sizeof info;
    expect_status(sx_pool_create(&args, &owner), SX_OK, "create");
    if (faults != 0) return;
    check_golden_header(path);
    check_golden_stats(owner, path);
    const uint32_t slot = publish_one(owner, 200);
    expect(check_file(path) == 1, "one ticket is READY");
    args.geometry.head_size = 16;
    expect_status(sx_pool_open(path, &args.geometry, &other), SX_EMISMATCH, "open with another geometry");
    args.geometry.head_size = 8;
    take_one(path, &args.geometry, 200);
    expect_status(sx_pool_reap(owner, 0, &freed), SX_OK, "reap");
    expect(freed == 1, "the consumed ticket was reaped");
    expect_status(sx_pool_free_ticket(owner, slot), SX_ESTALE, "free of a freed ticket");
    expect_status(sx_pool_describe(owner, &info), SX_OK, "describe");
    expect(info.chunks_free == 5 && info.tickets_free == 3, "nothing is held");
    expect(check_file(path) == 0, "no ticket is READY");
    sx_pool_close(owner);
}

int main(int argc, char **argv) {
    char path[4096];
    if (argc == 3 && strcmp(argv[1], "--check") == 0) {
        printf("%u tickets to take\n", (unsigned)check_file(argv[2]));
        return faults != 0;
    }
    if (argc != 2) {
        fprintf(stderr, "usage: %s FOLDER | --check FILE\n", argv[0]);
        return 2;
    }
    snprintf(path, sizeof path, "%s/conformance.pool", argv[1]);
    check_abi(path);
    return faults != 0;
}
