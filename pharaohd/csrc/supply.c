/* Time, ceiling, ids: what a worker may issue at the moment. */
#include <time.h>

#include "ph_errors.h"
#include "worker.h"

#define NS_PER_MS 1000000
#define RING_LOOKBACK_MS 3
#define SOCKET_RESERVE_SHARE 8 /* an eighth of the current millisecond is kept from rings while sockets are in use */
#define SOCKET_RESERVE_NS UINT64_C(1000000000)

static uint64_t monotonic_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * UINT64_C(1000000000) + (uint64_t)now.tv_nsec;
}

void ph_worker_refresh_time(struct ph_worker *worker) {
    worker->virtual_ns = ph_clock_advance(&worker->clock);
    worker->monotonic_ns = monotonic_ns();
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

/* Asks for a ceiling one window ahead once half a window is left, so that a sync has the other half to complete in. */
void ph_worker_renew_ceiling(struct ph_worker *worker) {
    uint64_t durable = ph_syncer_durable(&worker->syncer);
    uint64_t half_ahead = tick_of(worker, worker->now_ms + worker->config.window_ms / 2);
    uint64_t wanted =
        min_u64(tick_of(worker, worker->now_ms + worker->config.window_ms), ph_tick_end(&worker->issuer.layout));
    if (durable < half_ahead && worker->requested_ceiling < half_ahead && wanted > worker->requested_ceiling) {
        struct ph_clock_sample sample;
        ph_clock_sample(&worker->clock, worker->boot_id, &sample);
        worker->requested_ceiling = wanted;
        ph_syncer_request(&worker->syncer, wanted, &sample);
    }
}

static struct ph_run take_now(struct ph_worker *worker, uint64_t floor_tick, uint64_t count) {
    uint64_t now_tick = tick_of(worker, worker->now_ms);
    uint64_t limit = min_u64(tick_of(worker, worker->now_ms + 1), ph_tick_end(&worker->issuer.layout));
    uint64_t ceiling = ph_syncer_durable(&worker->syncer);
    return ph_issuer_take(&worker->issuer, floor_tick > now_tick ? floor_tick : now_tick, limit, ceiling, count);
}

struct ph_run ph_worker_take(struct ph_worker *worker, uint64_t floor_tick, uint64_t count) {
    struct ph_run run = take_now(worker, floor_tick, count);
    worker->socket_used_ns = worker->monotonic_ns;
    if (run.count == 0) {
        ph_worker_refresh_time(worker);
        ph_worker_renew_ceiling(worker);
        run = take_now(worker, floor_tick, count);
    }
    if (run.count == 0) {
        worker->short_of_ceiling = ph_syncer_durable(&worker->syncer) <= tick_of(worker, worker->now_ms + 1);
        ph_count(&worker->slot->stalls, worker->short_of_ceiling);
    }
    return run;
}

void ph_worker_supply(struct ph_worker *worker, uint64_t max_age_ns, struct ph_supply *supply) {
    uint64_t lookback = min_u64(min_u64(RING_LOOKBACK_MS, max_age_ns / (2 * NS_PER_MS)), worker->now_ms);
    int socket_in_use = worker->monotonic_ns - worker->socket_used_ns < SOCKET_RESERVE_NS;
    uint64_t reserve = socket_in_use ? ph_sequence_count(&worker->issuer.layout) / SOCKET_RESERVE_SHARE : 0;
    supply->issuer = &worker->issuer;
    supply->floor_tick = tick_of(worker, worker->now_ms - lookback);
    supply->limit_tick = min_u64(tick_of(worker, worker->now_ms + 1) - reserve, ph_tick_end(&worker->issuer.layout));
    supply->ceiling_tick = ph_syncer_durable(&worker->syncer);
    supply->now_ms = worker->now_ms;
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
