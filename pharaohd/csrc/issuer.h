/*
 * Ticks in increasing order, below the ceiling and not ahead of host time.
 *
 * Invariants
 * - *next_tick only grows; a tick below it has been issued or given up, and is never issued again. It lies in memory
 *   that outlives this process (hosttime.h) and is stored before the ticks are returned: whoever comes next goes on
 *   after everything that can have left.
 * - Nothing at or above `ceiling_tick` is issued, and the caller passes only a ceiling that is durable.
 * - A run never crosses a millisecond, so its ids are consecutive.
 */
#ifndef PH_ISSUER_H
#define PH_ISSUER_H

#include <assert.h>
#include <stdint.h>

#include "ph_atomic.h"
#include "ph_scarab.h"

struct ph_issuer {
    struct ph_layout layout;
    uint32_t coordinator;
    uint64_t *next_tick;
};

struct ph_run {
    uint64_t first_tick;
    uint64_t count; /* 0: nothing to be had at the moment */
};

/* Only this process stores it, so what it loads is what it stored. */
static inline uint64_t ph_issuer_next(const struct ph_issuer *issuer) { return ph_load_relaxed(issuer->next_tick); }

/* Issues up to `count` ticks that are >= floor_tick, < limit_tick (the end of host time's millisecond), < ceiling_tick. */
static inline struct ph_run ph_issuer_take(struct ph_issuer *issuer, uint64_t floor_tick, uint64_t limit_tick,
                                           uint64_t ceiling_tick, uint64_t count) {
    uint64_t next_tick = ph_issuer_next(issuer);
    uint64_t start = next_tick > floor_tick ? next_tick : floor_tick;
    uint64_t end = limit_tick < ceiling_tick ? limit_tick : ceiling_tick;
    uint64_t sequences = ph_sequence_count(&issuer->layout);
    uint64_t ms_end = (start | (sequences - 1)) + 1;
    struct ph_run run = {start, 0};
    if (end > ms_end) {
        end = ms_end;
    }
    if (start < end) {
        run.count = count < end - start ? count : end - start;
        assert(start >= next_tick && start + run.count <= ceiling_tick);
        ph_store_release(issuer->next_tick,
                         start + run.count); /* pairs with bound_of() and ph_repair() in evidence.c */
    }
    return run;
}

/* The least tick whose id, issued here, is greater than `after` (an id of any coordinator). */
static inline uint64_t ph_issuer_floor_after(const struct ph_issuer *issuer, uint64_t after) {
    uint64_t tick = ph_tick_of_id(&issuer->layout, after);
    uint32_t other = ph_coordinator_of_id(&issuer->layout, after);
    uint64_t ms = ph_ms_of_tick(&issuer->layout, tick);
    if (other == issuer->coordinator) {
        return tick + 1;
    }
    return ph_tick_of_ms(&issuer->layout, other < issuer->coordinator ? ms : ms + 1);
}

#endif
