/*
 * What lies in the two shared segments of a ring. Layout only: the writer's code is in pharaohd/csrc/producer.c, the
 * reader's in ph_ring.c.
 *
 * Invariants
 * - The grants segment is written by the worker alone; the seals keep the client from ever mapping it writable.
 * - The client's segment is written by the client alone (the worker maps it read-only) and every word of it is
 *   hostile: it is read once, then range-checked.
 * - Slot `i % PH_RING_SLOTS` may be rewritten only while `head - cursor < PH_RING_SLOTS`; the client copies a slot
 *   into private memory before it moves its cursor over it.
 * - A tick stands in one grant of one ring and in nothing else, for ever. Losing a grant burns its ticks.
 * - A segment belongs to one client for one attachment and is never reused.
 */
#ifndef PH_RING_LAYOUT_H
#define PH_RING_LAYOUT_H

#include <assert.h>
#include <stddef.h>
#include <stdint.h>

#define PH_RING_MAGIC UINT64_C(0x31474e4952484150) /* "PAHRING1" in memory; stored last */
#define PH_RING_VERSION 2                          /* 2: a strict request names the coordinator whose id it wants */
#define PH_RING_SLOTS 64
#define PH_RING_SEGMENT_BYTES 8192

enum ph_ring_state { PH_RING_OPEN = 0, PH_RING_CLOSED = 1 };

/* How the worker answered a strict request. */
enum ph_strict_status {
    PH_STRICT_OK = 0,        /* value: the id */
    PH_STRICT_ELSEWHERE = 1, /* not to be had here and now: to be asked for by socket */
    PH_STRICT_REFUSED = 2,   /* value: the error's code (ph_errors.h) */
};

/* Flags of a strict request. */
#define PH_STRICT_KEYLESS UINT64_C(1) /* without a key: `request_coordinator` is not looked at */

struct ph_grant {
    uint64_t first_tick;
    uint64_t count;       /* ticks first_tick … first_tick + count - 1, all of one millisecond */
    uint64_t deadline_ns; /* CLOCK_MONOTONIC: not to be handed out from then on */
    uint64_t reserved;
};

struct ph_grants_segment {
    /* Written once, before the segment is handed over. */
    uint64_t magic;
    uint64_t slot_count;
    uint64_t coordinator;
    uint64_t ms_bits;
    uint64_t coordinator_bits;
    uint64_t sequence_bits;
    uint64_t epoch_ms;
    uint64_t state; /* enum ph_ring_state */
    uint8_t pad0[64];

    uint64_t head; /* grants ever published; its low 32 bits are a futex word */
    uint8_t pad1[120];

    /* The answer to strict request number `answer_number`; its low 32 bits are a futex word. */
    uint64_t answer_number;
    uint64_t answer_status; /* enum ph_strict_status */
    uint64_t answer_value;
    uint64_t polling; /* 1 while the worker looks at the request word without being rung */
    uint8_t pad2[96];

    struct ph_grant slots[PH_RING_SLOTS];
};

struct ph_client_segment {
    uint64_t cursor;  /* grants ever taken */
    uint64_t waiting; /* h + 1: a thread of the client may sleep until `head` moves on from h */
    uint64_t taken;   /* ids handed out, as of the last grant that was looked for: how much to grant rests on it */
    uint8_t pad0[104];

    uint64_t request_number; /* strict requests ever posted */
    uint64_t request_after;  /* id that the answer must exceed, or 0 */
    uint64_t request_flags;
    uint64_t request_waiting;     /* n: the client may sleep until request n is answered */
    uint64_t request_coordinator; /* whose id it is to be: the one that owns the key */
    uint8_t pad1[88];
};

static_assert(sizeof(struct ph_grant) == 32, "a grant is half a cache line");
static_assert(offsetof(struct ph_grants_segment, head) == 128, "head has two cache lines of its own");
static_assert(offsetof(struct ph_grants_segment, answer_number) == 256, "the answer has two cache lines of its own");
static_assert(offsetof(struct ph_grants_segment, slots) == 384, "slots follow the header");
static_assert(sizeof(struct ph_grants_segment) <= PH_RING_SEGMENT_BYTES, "a grants segment fits its mapping");
static_assert(offsetof(struct ph_client_segment, request_number) == 128, "request and cursor do not share lines");
static_assert(sizeof(struct ph_client_segment) <= PH_RING_SEGMENT_BYTES, "a client segment fits its mapping");

#endif
