/*
 * What a host start and a repair make of the evidence that is left: records of Obelisks, the page in memory, the clocks.
 * Pure computation; the callers lock and read the files, and map the page.
 *
 * Invariants
 * - Ceilings are never time, and time is never a bound.
 * - A coordinator goes on exactly at its position when the page is believed: this file itself, of this boot and state
 *   directory, and its entry names the start that the newest record names. Otherwise it goes on at the record's
 *   ceiling, or at the position if that is higher: a page that is not believed is still a lower bound.
 * - Nobody issues below the floor: the first whole millisecond above the bounds of *all* coordinators, since the
 *   coordinator stands above the sequence in an id.
 * - A repair takes no margin. It reaches beyond everything that can have been issued by what the page or the operator
 *   says, and without either it refuses.
 * Source: host-time rules 6, 7, 8, 14.
 */
#ifndef PH_EVIDENCE_H
#define PH_EVIDENCE_H

#include <stdint.h>

#include "engine/hosttime.h"

/* The newest valid record of one coordinator's Obelisk. */
struct ph_evidence {
    uint32_t coordinator;
    uint64_t ceiling;
    uint64_t start_id; /* 0: written by a version that knew none */
    struct ph_clock_sample sample;
};

/* Everything that a start or a repair may know. */
struct ph_known {
    const struct ph_evidence *records; /* every surviving one, each coordinator once */
    uint32_t count;
    const struct ph_host_page *page; /* of this boot and this state directory, or NULL */
    int page_is_own;                 /* it is the file that a start made, not a copy of it */
    int64_t realtime_ns;
    int64_t boottime_ns;
    uint8_t boot_id[16];
    struct ph_layout layout;
    int64_t jump_ns_max;
    int64_t slew_per_mille;
};

struct ph_started {
    int64_t host_ns;
    int64_t jump_ns;   /* the wall clock is so far ahead of the evidence of this boot, and is not followed; or 0 */
    uint64_t floor_ms; /* since the epoch: nobody issues below it */
    uint32_t exact;    /* coordinators that go on exactly where they were */
    int64_t wait_ns;   /* until host time reaches the floor, at least; 0: at once */
};

/*
 * A host start: computes host time and the positions, and writes them to `page`, which may be known->page. It is the
 * caller's duty that nobody else writes to it, and that all coordinators that this host ever had are in `known`.
 */
void ph_host_start(const struct ph_known *known, struct ph_host_page *page, uint64_t start_id,
                   struct ph_started *started);

/* What host time a start would begin with: host_ns and jump_ns alone. */
void ph_host_start_time(const struct ph_known *known, struct ph_started *started);

/* How far host time must have come by all evidence; *same_boot: whether some of it is of this boot. */
int64_t ph_host_estimate(const struct ph_known *known, int *same_boot);

enum ph_repair_way {
    PH_REPAIR_LIVE = 1,     /* a daemon serves: the page says exactly how far the coordinator came */
    PH_REPAIR_CLOCK_OK = 2, /* the operator: since the newest surviving record the clock was never set back */
    PH_REPAIR_ABOVE = 3,    /* the operator: nobody has an id of this host above this time */
};

struct ph_repaired {
    uint64_t ceiling;
    uint64_t start_id; /* of the page that told, which is to be believed on; 0: a new one has to be drawn */
    struct ph_clock_sample sample;
};

/* Which surviving record the question is about: the one with the latest host time. Index, or -1 when there is none. */
int32_t ph_newest_evidence(const struct ph_known *known);

/*
 * What the repaired record of `coordinator` says. above_ms: for ABOVE, since the epoch; everything issued lies below
 * its end. own_ceiling: of the file's own surviving record, or 0.
 */
void ph_repair(const struct ph_known *known, uint32_t coordinator, enum ph_repair_way way, uint64_t above_ms,
               uint64_t own_ceiling, struct ph_repaired *repaired);

#endif
