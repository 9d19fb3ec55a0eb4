/* sysHAX handoff pool: the bytes of a pool file, format 1. The rules that go with them: docs/kv-handoff.md.
 * For engines that read or write pools without our library, and for the conformance test. Little-endian; every field
 * is naturally aligned, so the structs have no padding on any ABI we know (checked where they are used).
 * "atomic": shared between processes while the file lives; read and written as one naturally aligned word. */
#ifndef SYSHAX_POOL_FORMAT_H
#define SYSHAX_POOL_FORMAT_H

#include <stdint.h>

#define SX_POOL_MAGIC "SXPOOL1" /* 8 bytes with the final NUL */
#define SX_POOL_PAGE_BYTES 4096u
#define SX_POOL_TICKETS_OFFSET 8192u
#define SX_POOL_TICKET_HEAD_BYTES 64u /* the ticket's chunk numbers follow */
#define SX_POOL_RECORD_BYTES 384u     /* of one chunk record */
#define SX_POOL_NO_OWNER 0xffffffffu

/* At offset 0. Written while `generation` is 0. */
typedef struct sx_pool_header {
    uint8_t magic[8];
    uint32_t format;
    uint32_t header_bytes; /* sizeof this struct */
    uint32_t n_layers, n_kv_heads, head_size;
    int32_t wire_type;
    uint8_t model_id[32];
    uint32_t block_size, tp_size;
    int32_t kv_type;
    uint32_t chunk_tokens;
    uint32_t n_chunks, n_tickets, max_tokens;
    uint32_t ticket_stride; /* bytes from one ticket to the next */
    uint32_t record_stride; /* bytes from one chunk record to the next */
    uint32_t reserved0;
    uint64_t tickets_offset, records_offset, chunks_offset;
    uint64_t chunk_stride; /* bytes from one chunk to the next: its data rounded up to whole pages */
    uint64_t file_bytes;
    uint32_t reserved1[9];
    uint32_t crc;        /* crc32 (zlib's) of the bytes before it */
    uint64_t generation; /* atomic; 0: the file is being made */
} sx_pool_header;

/* At tickets_offset + index * ticket_stride. Followed at SX_POOL_TICKET_HEAD_BYTES by uint32_t chunk numbers. */
typedef struct sx_pool_ticket {
    uint64_t word;        /* atomic; bits 0-7 the state, bits 8-63 a sequence number that grows with every transition */
    uint64_t deadline_ns; /* atomic; CLOCK_MONOTONIC; of READY: the owner's lease, of LOADING: the consumer's */
    uint8_t id[16];       /* all zero while FREE */
    uint32_t era;         /* low 16 bits count the uses of this ticket; high part of its slot number */
    uint32_t n_tokens;    /* FILLING: appended so far; later: valid */
    uint32_t n_chunks;
    uint32_t crc; /* crc32c of id, n_tokens (u32), then per chunk its number (u32) and valid token ids */
    uint8_t reserved[16];
} sx_pool_ticket;

/* At records_offset + chunk * record_stride. */
typedef struct sx_pool_record {
    uint32_t owner; /* slot number of its ticket, SX_POOL_NO_OWNER while free */
    uint32_t reserved0;
    uint64_t seals[8];  /* atomic, one a rank: bits 0-31 crc32c, 32-39 tokens it covers, 48-63 era of the ticket */
    int32_t tokens[64]; /* token ids; zero while free */
    uint8_t reserved[56];
} sx_pool_record;

#endif
