/*
 * Ticks in increasing order, below the ceiling and not ahead of host time.
 *
 * Invariants
 * - *next_tick only grows; a tick below it has been issued or given up, and is never issued again. It lies in memory
 *   that all workers share and that outlives them (hosttime.h). It is moved on in one atomic step before the ticks are
 *   returned: a tick is one process's, and whoever comes next goes on after everything that can have left.
 * - Nothing at or above `ceiling_tick` is issued, and the caller passes only a ceiling that is durable.
 * - A run never crosses a millisecond, so its ids are consecutive.
 */
#ifndef PH_ISSUER_H
#define PH_ISSUER_H

#include <assert.h>
#include <stdint.h>

#include "engine/hosttime.h"
#include "ph_atomic.h"
#include "ph_scarab.h"

#define PH_POSITION_CLOSED (UINT64_C(1) << 63) /* beside next_tick: nobody issues until there is an owner again */

struct ph_issuer {
    struct ph_layout layout;
    uint32_t coordinator;
    uint64_t *next_tick;
};

struct ph_run {
    uint64_t first_tick;
    uint64_t count; /* 0: nothing to be had at the moment */
};

static inline uint64_t ph_position_next(const struct ph_position *position) {
    return ph_load_acquire(&position->next_tick) & ~PH_POSITION_CLOSED; /* pairs with ph_issuer_take() */
}

static inline uint64_t ph_issuer_next(const struct ph_issuer *issuer) {
    return ph_load_relaxed(issuer->next_tick) & ~PH_POSITION_CLOSED;
}

/* Nobody takes anything from now on, until it is opened. Returns the tick below which everything lies that was issued. */
static inline uint64_t ph_issuer_close(struct ph_issuer *issuer) {
    return ph_set_bits(issuer->next_tick, PH_POSITION_CLOSED) & ~PH_POSITION_CLOSED;
}

static inline void ph_issuer_open(struct ph_issuer *issuer) { ph_clear_bits(issuer->next_tick, PH_POSITION_CLOSED); }

static inline uint64_t ph_sooner(uint64_t a, uint64_t b) { return a < b ? a : b; }

/* Issues up to `count` ticks that are >= floor_tick, < limit_tick (the end of host time's millisecond), < ceiling_tick. */
static inline struct ph_run ph_issuer_take(struct ph_issuer *issuer, uint64_t floor_tick, uint64_t limit_tick,
                                           uint64_t ceiling_tick, uint64_t count) {
    for (;;) {
        uint64_t next_tick = ph_load_relaxed(issuer->next_tick);
        uint64_t start = next_tick > floor_tick ? next_tick : floor_tick;
        uint64_t ms_end = (start | (ph_sequence_count(&issuer->layout) - 1)) + 1;
        uint64_t end = ph_sooner(ph_sooner(limit_tick, ceiling_tick), ms_end);
        if (start >= end) { /* a closed position lies above every limit */
            return (struct ph_run){start & ~PH_POSITION_CLOSED, 0};
        }
        uint64_t taken = ph_sooner(count, end - start);
        assert(start >= next_tick && start + taken <= ceiling_tick);
        /* pairs with ph_position_next() */
        if (ph_exchange_if(issuer->next_tick, next_tick, start + taken)) {
            return (struct ph_run){start, taken};
        }
    }
}

/* The least tick whose id, issued for this coordinator, is greater than `after` (an id of any coordinator). */
static inline uint64_t ph_floor_after(const struct ph_layout *layout, uint32_t coordinator, uint64_t after) {
    uint64_t tick = ph_tick_of_id(layout, after);
    uint32_t other = ph_coordinator_of_id(layout, after);
    uint64_t ms = ph_ms_of_tick(layout, tick);
    if (other == coordinator) {
        return tick + 1;
    }
    return ph_tick_of_ms(layout, other < coordinator ? ms : ms + 1);
}

#endif
