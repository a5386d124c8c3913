#include "engine/evidence.h"

#include <string.h>

#include "engine/issuer.h"
#include "ph_atomic.h"

static int64_t later(int64_t a, int64_t b) { return a > b ? a : b; }
static uint64_t greater(uint64_t a, uint64_t b) { return a > b ? a : b; }

/* Where a sample says that host time is now. Only within a boot is it known how long ago it was taken. */
static int64_t carried_on(const struct ph_known *known, int64_t host_ns, int64_t realtime_ns, int64_t boottime_ns) {
    int64_t elapsed_ns = known->boottime_ns - boottime_ns;
    int64_t nearer = host_ns < realtime_ns ? host_ns : realtime_ns;
    return later(nearer + elapsed_ns, ph_slewed(host_ns, elapsed_ns, known->slew_per_mille));
}

int64_t ph_host_estimate(const struct ph_known *known, int *same_boot) {
    int64_t estimate_ns = INT64_MIN;
    *same_boot = 0;
    for (uint32_t i = 0; i < known->count; i++) {
        const struct ph_clock_sample *sample = &known->records[i].sample;
        int64_t host_ns = sample->host_ns;
        if (ph_same_boot(known->boot_id, sample->boot_id) && sample->boottime_ns <= known->boottime_ns) {
            host_ns = carried_on(known, host_ns, sample->realtime_ns, sample->boottime_ns);
            *same_boot = 1;
        }
        estimate_ns = later(estimate_ns, host_ns);
    }
    if (known->page != NULL) {
        struct ph_moment moment;
        ph_host_page_moment(known->page, &moment);
        if (moment.boottime_ns <= known->boottime_ns) {
            int64_t host_ns = carried_on(known, moment.host_ns, moment.realtime_ns, moment.boottime_ns);
            estimate_ns = later(estimate_ns, host_ns);
            *same_boot = 1;
        } else { /* another time namespace: what it says of V holds, how much time has gone by since is unknown */
            estimate_ns = later(estimate_ns, moment.host_ns);
        }
    }
    return estimate_ns;
}

void ph_host_start_time(const struct ph_known *known, struct ph_started *started) {
    int same_boot;
    int64_t estimate_ns = ph_host_estimate(known, &same_boot);
    if (same_boot && known->realtime_ns > estimate_ns + known->jump_ns_max) {
        started->host_ns = estimate_ns;
        started->jump_ns = known->realtime_ns - estimate_ns;
    } else {
        started->host_ns = later(estimate_ns, known->realtime_ns);
        started->jump_ns = 0;
    }
}

/* Everything that the coordinator issued lies below this tick. */
static uint64_t bound_of(const struct ph_known *known, const struct ph_evidence *record, int *exact) {
    *exact = 0;
    if (known->page == NULL) {
        return record->ceiling;
    }
    const struct ph_position *position = &known->page->positions[record->coordinator];
    *exact = known->page_is_own && record->start_id != 0 &&
             (record->start_id == position->start_id || record->start_id == position->start_id_before);
    return *exact ? ph_position_next(position) : greater(record->ceiling, ph_position_next(position));
}

/* The first whole millisecond above everything that lies below `bound`. */
static uint64_t ms_above(const struct ph_known *known, uint64_t bound) {
    return bound > 0 ? ph_ms_of_tick(&known->layout, bound - 1) + 1 : 0;
}

/*
 * In this order a start that dies between any two stores leaves an entry that is believed, or is a lower bound, as it
 * was before: the position only rises.
 */
static void write_position(struct ph_position *position, uint64_t next_tick, uint64_t start_id,
                           uint64_t start_id_before) {
    ph_store_release(&position->durable_ceiling, 0); /* a record of the coordinator may name an earlier one now */
    ph_store_release(&position->next_tick, next_tick);
    ph_store_release(&position->start_id_before, start_id_before);
    ph_store_release(&position->start_id, start_id);
}

void ph_host_start(const struct ph_known *known, struct ph_host_page *page, uint64_t start_id,
                   struct ph_started *started) {
    uint64_t bounds[PH_COORDINATOR_MAX] = {0};
    uint64_t before[PH_COORDINATOR_MAX] = {0};
    uint8_t part[PH_COORDINATOR_MAX] = {0};
    uint64_t highest = 0;
    started->exact = 0;
    ph_host_start_time(known, started);
    for (uint32_t i = 0; i < known->count; i++) {
        const struct ph_evidence *record = &known->records[i];
        int exact;
        bounds[record->coordinator] = bound_of(known, record, &exact);
        before[record->coordinator] = record->start_id;
        part[record->coordinator] = 1;
        highest = greater(highest, bounds[record->coordinator]);
        started->exact += (uint32_t)exact;
    }
    started->floor_ms = ms_above(known, highest);
    uint64_t floor_tick = ph_tick_of_ms(&known->layout, started->floor_ms);
    for (uint32_t c = 0; c < PH_COORDINATOR_MAX; c++) {
        if (part[c]) {
            write_position(&page->positions[c], greater(bounds[c], floor_tick), start_id, before[c]);
        } else if (page->positions[c].start_id != 0) {
            write_position(&page->positions[c], ph_position_next(&page->positions[c]), 0, 0);
        }
    }
    struct ph_moment moment = {
        .host_ns = started->host_ns, .boottime_ns = known->boottime_ns, .realtime_ns = known->realtime_ns};
    ph_host_page_set_moment(page, &moment);
    ph_store_release(&page->accept_jump, 0); /* what was accepted before is done, or its teller died */
    ph_store_release(&page->start_id, start_id);
    int64_t floor_ns = (int64_t)(started->floor_ms + known->layout.epoch_ms) * PH_NS_PER_MS;
    started->wait_ns = later(floor_ns - started->host_ns, 0);
}

int32_t ph_newest_evidence(const struct ph_known *known) {
    int32_t newest = -1;
    for (uint32_t i = 0; i < known->count; i++) {
        const struct ph_clock_sample *one = &known->records[i].sample;
        const struct ph_clock_sample *best = newest >= 0 ? &known->records[newest].sample : NULL;
        if (best == NULL || one->host_ns > best->host_ns ||
            (one->host_ns == best->host_ns && one->realtime_ns < best->realtime_ns)) {
            newest = (int32_t)i;
        }
    }
    return newest;
}

static int64_t ns_of_ms(const struct ph_known *known, uint64_t ms) {
    return (int64_t)(ms + known->layout.epoch_ms) * PH_NS_PER_MS;
}

/* The tick from which nothing was issued when all that was lies at or below this host time. */
static uint64_t tick_above(const struct ph_known *known, int64_t host_ns) {
    int64_t ms = host_ns / PH_NS_PER_MS - (int64_t)known->layout.epoch_ms;
    return ph_tick_of_ms(&known->layout, ms >= 0 ? (uint64_t)ms + 1 : 0);
}

void ph_repair(const struct ph_known *known, uint32_t coordinator, enum ph_repair_way way, uint64_t above_ms,
               uint64_t own_ceiling, struct ph_repaired *repaired) {
    struct ph_started now;
    ph_host_start_time(
        known, &now); /* what a start would make of the evidence: the record is evidence of this boot from now on */
    int64_t bound_ns = 0;
    repaired->start_id = 0;
    if (way == PH_REPAIR_LIVE) {
        /* Its siblings issue for it meanwhile, below the ceiling that its last owner had made durable. */
        const struct ph_position *position = &known->page->positions[coordinator];
        repaired->start_id = position->start_id;
        repaired->ceiling = greater(ph_load_acquire(&position->durable_ceiling), ph_position_next(position));
    } else if (way == PH_REPAIR_CLOCK_OK) {
        const struct ph_clock_sample *newest = &known->records[ph_newest_evidence(known)].sample;
        bound_ns = known->realtime_ns + later(newest->host_ns - newest->realtime_ns, 0);
        repaired->ceiling = tick_above(known, bound_ns);
    } else {
        bound_ns = ns_of_ms(known, above_ms);
        repaired->ceiling = tick_above(known, bound_ns);
    }
    repaired->ceiling = greater(repaired->ceiling, own_ceiling);
    repaired->sample.host_ns = later(bound_ns, now.host_ns);
    repaired->sample.realtime_ns = known->realtime_ns;
    repaired->sample.boottime_ns = known->boottime_ns;
    memcpy(repaired->sample.boot_id, known->boot_id, 16);
}
