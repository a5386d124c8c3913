/*
 * The worker's side of a ring of grants.
 *
 * Invariants
 * - Ticks enter a ring only from ph_issuer_take(), so they are in no other ring and in no reply.
 * - What the client wrote is read once and range-checked; a value out of range means a damaged ring, which is revoked.
 *   A lie within the range costs the liar alone: it gets ticks that it said it had room for.
 * - A slot is rewritten only when the client's cursor has passed it.
 * - Segments are made for one attachment, sealed before the descriptors leave the process, and never reused.
 */
#ifndef PH_PRODUCER_H
#define PH_PRODUCER_H

#include <stdint.h>

#include "engine/issuer.h"
#include "ph_ring_layout.h"

#define PH_WANT_MIN 16

struct ph_producer {
    struct ph_grants_segment *grants;
    const struct ph_client_segment *client;
    int grants_fd;
    int client_fd;
    int doorbell_fd;

    /* Private copies: what was written is never read back from shared memory. */
    uint64_t head;
    uint64_t cursor;
    uint64_t counts[PH_RING_SLOTS];
    uint64_t deadlines_ns[PH_RING_SLOTS];

    uint64_t max_age_ns;
    uint64_t want_max;
    uint64_t want; /* how many fresh ticks the ring should hold; follows the client's appetite */
    uint64_t refilled_ns;
    uint64_t taken; /* what the client said when `want` was last adapted, and what it was given since */
    uint64_t given;
    uint64_t answered;
};

/* What one refill may use. */
struct ph_supply {
    struct ph_issuer *issuer;
    uint64_t floor_tick; /* not older than this: lookback into milliseconds that have just gone by */
    uint64_t limit_tick;
    uint64_t ceiling_tick;
    uint64_t now_ms;     /* host time, since the epoch */
    uint64_t ns_into_ms; /* how much of it has gone by */
    uint64_t monotonic_ns;
};

struct ph_strict_request {
    uint64_t number;
    uint64_t after;
    uint64_t flags;
    uint64_t coordinator;
};

/* Makes the segments and the doorbell. Returns 0 or an errno. */
int ph_producer_open(struct ph_producer *producer, const struct ph_issuer *issuer, uint64_t max_age_ns);
/* Says to the client that no more will come, wakes it, and gives everything back. */
void ph_producer_close(struct ph_producer *producer);

/*
 * Looks at what the client has taken and adapts `want` to its appetite. Returns how many ticks the ring lacks, or -1
 * when the client's segment is damaged.
 */
int64_t ph_producer_demand(struct ph_producer *producer, uint64_t monotonic_ns);
/* Puts up to `count` ticks in, wakes a sleeping client, returns how many were put in. */
uint64_t ph_producer_refill(struct ph_producer *producer, struct ph_supply *supply, uint64_t count);

/* The unanswered strict request, if there is one. */
int ph_producer_request(const struct ph_producer *producer, struct ph_strict_request *request);
/* Returns whether its client slept, and was woken. */
int ph_producer_answer(struct ph_producer *producer, const struct ph_strict_request *request,
                       enum ph_strict_status status, uint64_t value);
/* 1: the worker will look without being rung. After setting 0 it looks once more before it sleeps. */
void ph_producer_set_polling(struct ph_producer *producer, int polling);

#endif
