/* Time, ceiling, ids: what a worker may issue at the moment. */

#include "ph_errors.h"
#include "worker.h"

#define NS_PER_MS 1000000
#define RING_LOOKBACK_MS 3
#define SLOW_FACTOR 4
#define SLOW_MS_MAX 2000
#define WINDOW_MS_MAX 60000 /* the largest obelisk.window_ms; a repair reserves above it */
/* While some want few ids, an eighth of the current millisecond is kept for them from rings and from bulk requests. */
#define FEW 16
#define RESERVE_SHARE 8
#define RESERVE_NS UINT64_C(1000000000)

void ph_worker_refresh_time(struct ph_worker *worker) {
    worker->virtual_ns = ph_clock_advance(&worker->clock);
    worker->monotonic_ns = ph_monotonic_ns();
    int64_t since_epoch_ms = worker->virtual_ns / NS_PER_MS - (int64_t)worker->issuer.layout.epoch_ms;
    worker->now_ms = since_epoch_ms > 0 ? (uint64_t)since_epoch_ms : 0;
}

int ph_worker_time_exhausted(const struct ph_worker *worker) {
    return worker->now_ms >> worker->issuer.layout.ms_bits != 0;
}

uint64_t ph_worker_until_next_ms(const struct ph_worker *worker) {
    return (uint64_t)(NS_PER_MS - worker->virtual_ns % NS_PER_MS);
}

static uint64_t tick_of(const struct ph_worker *worker, uint64_t ms) {
    return ph_tick_of_ms(&worker->issuer.layout, ms);
}

static uint64_t min_u64(uint64_t a, uint64_t b) { return a < b ? a : b; }

/* A disk that was slow last time is given more time for the next sync. */
static uint64_t window_ms(const struct ph_worker *worker) {
    uint64_t sync_ms = ph_load_relaxed(&worker->syncer.sync_ns_last) / NS_PER_MS;
    return min_u64(worker->config.window_ms + min_u64(SLOW_FACTOR * sync_ms, SLOW_MS_MAX), WINDOW_MS_MAX);
}

static void request_ceiling(struct ph_worker *worker, uint64_t ceiling) {
    struct ph_clock_sample sample;
    ph_clock_sample(&worker->clock, worker->boot_id, &sample);
    worker->requested_ceiling = ceiling;
    ph_syncer_request(&worker->syncer, ceiling, &sample);
}

/* Asks for a ceiling one window ahead once half a window is left, so that a sync has the other half to complete in. */
void ph_worker_renew_ceiling(struct ph_worker *worker) {
    uint64_t durable = ph_syncer_durable(&worker->syncer);
    uint64_t half_ahead = tick_of(worker, worker->now_ms + window_ms(worker) / 2);
    uint64_t wanted = min_u64(tick_of(worker, worker->now_ms + window_ms(worker)), ph_tick_end(&worker->issuer.layout));
    if (durable < half_ahead && worker->requested_ceiling < half_ahead && wanted > worker->requested_ceiling) {
        request_ceiling(worker, wanted);
    }
}

void ph_worker_write_record(struct ph_worker *worker) { request_ceiling(worker, worker->requested_ceiling); }

/* A bulk request takes no smaller piece of a millisecond than this, so that its runs stay few. */
static uint64_t chunk(const struct ph_worker *worker) {
    return min_u64(256, ph_sequence_count(&worker->issuer.layout) / 4);
}

static uint64_t reserve_for_few(const struct ph_worker *worker) {
    int wanted = worker->monotonic_ns - worker->few_wanted_ns < RESERVE_NS;
    return wanted ? ph_sequence_count(&worker->issuer.layout) / RESERVE_SHARE : 0;
}

static struct ph_run take_now(struct ph_worker *worker, uint64_t floor_tick, uint64_t least, uint64_t count) {
    uint64_t now_tick = tick_of(worker, worker->now_ms);
    uint64_t limit = min_u64(tick_of(worker, worker->now_ms + 1), ph_tick_end(&worker->issuer.layout));
    uint64_t ceiling = ph_syncer_durable(&worker->syncer);
    uint64_t floor = floor_tick > now_tick ? floor_tick : now_tick;
    uint64_t start = worker->issuer.next_tick > floor ? worker->issuer.next_tick : floor;
    if (count > FEW) {
        limit -= reserve_for_few(worker);
    }
    if (start + least > min_u64(limit, ceiling)) {
        return (struct ph_run){start, 0};
    }
    return ph_issuer_take(&worker->issuer, floor, limit, ceiling, count);
}

struct ph_run ph_worker_take(struct ph_worker *worker, uint64_t floor_tick, uint64_t count) {
    uint64_t least = min_u64(count, chunk(worker));
    if (worker->turn_left < least) {
        worker->turn_over = 1;
        return (struct ph_run){0, 0};
    }
    count = min_u64(count, worker->turn_left);
    if (count <= FEW) {
        worker->few_wanted_ns = worker->monotonic_ns;
    }
    struct ph_run run = take_now(worker, floor_tick, least, count);
    if (run.count == 0) {
        ph_worker_refresh_time(worker);
        ph_worker_renew_ceiling(worker);
        run = take_now(worker, floor_tick, least, count);
    }
    if (run.count == 0) {
        worker->short_of_ceiling = ph_syncer_durable(&worker->syncer) <= tick_of(worker, worker->now_ms + 1);
        ph_count(&worker->slot->stalls, worker->short_of_ceiling);
    }
    worker->turn_left -= run.count;
    return run;
}

uint64_t ph_worker_share(const struct ph_worker *worker) {
    uint32_t waiting = worker->waiting_count + worker->starving_count + 1;
    uint64_t share = ph_sequence_count(&worker->issuer.layout) / waiting;
    return share > chunk(worker) ? share : chunk(worker);
}

void ph_worker_supply(struct ph_worker *worker, uint64_t max_age_ns, struct ph_supply *supply) {
    uint64_t lookback = min_u64(min_u64(RING_LOOKBACK_MS, max_age_ns / (2 * NS_PER_MS)), worker->now_ms);
    uint64_t limit = tick_of(worker, worker->now_ms + 1) - reserve_for_few(worker);
    supply->issuer = &worker->issuer;
    supply->floor_tick = tick_of(worker, worker->now_ms - lookback);
    supply->limit_tick = min_u64(limit, ph_tick_end(&worker->issuer.layout));
    supply->ceiling_tick = ph_syncer_durable(&worker->syncer);
    supply->now_ms = worker->now_ms;
    supply->ns_into_ms = (uint64_t)(worker->virtual_ns % NS_PER_MS);
    supply->monotonic_ns = worker->monotonic_ns;
}

/* Bounded against natural time: bounded against virtual time, which it raises, it would be no bound at all. */
int ph_worker_accept_after(struct ph_worker *worker, uint64_t after, uint64_t *floor_tick) {
    *floor_tick = ph_issuer_floor_after(&worker->issuer, after);
    int64_t ms = (int64_t)(ph_ms_of_tick(&worker->issuer.layout, *floor_tick) + worker->issuer.layout.epoch_ms);
    if (ms > worker->virtual_ns / NS_PER_MS) {
        ph_worker_refresh_time(worker);
    }
    if (ms > worker->clock.natural_ns / NS_PER_MS + (int64_t)worker->config.after_ms_max) {
        return PH_ERR_AFTER_TOO_FAR;
    }
    if (ms > worker->virtual_ns / NS_PER_MS) {
        ph_clock_raise(&worker->clock, ms * NS_PER_MS);
        ph_worker_refresh_time(worker);
    }
    return 0;
}
