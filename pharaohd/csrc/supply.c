/* What each that asks may take of a millisecond: turns, shares, and a part kept for those who want few ids. */

#include "worker.h"

#define RING_LOOKBACK_MS 3
/* While some want few ids, an eighth of the current millisecond is kept for them from rings and from bulk requests. */
#define FEW 16
#define RESERVE_SHARE 8
#define RESERVE_NS UINT64_C(1000000000)

static uint64_t min_u64(uint64_t a, uint64_t b) { return a < b ? a : b; }

/* A bulk request takes no smaller piece of a millisecond than this, so that its runs stay few. */
static uint64_t chunk(const struct ph_worker *worker) {
    return min_u64(256, ph_sequence_count(&worker->mint.issuer.layout) / 4);
}

static uint64_t reserve_for_few(const struct ph_worker *worker) {
    int wanted = worker->mint.monotonic_ns - worker->few_wanted_ns < RESERVE_NS;
    return wanted ? ph_sequence_count(&worker->mint.issuer.layout) / RESERVE_SHARE : 0;
}

struct ph_run ph_worker_take(struct ph_worker *worker, uint64_t floor_tick, uint64_t count) {
    struct ph_mint *mint = &worker->mint;
    uint64_t least = min_u64(count, chunk(worker));
    if (worker->turn_left < least) {
        worker->turn_over = 1;
        return (struct ph_run){0, 0};
    }
    count = min_u64(count, worker->turn_left);
    if (count <= FEW) {
        worker->few_wanted_ns = mint->monotonic_ns;
    }
    struct ph_run run = ph_mint_take(mint, floor_tick, least, count, count > FEW ? reserve_for_few(worker) : 0);
    if (run.count == 0) {
        ph_mint_read(mint);
        ph_mint_renew(mint);
        run = ph_mint_take(mint, floor_tick, least, count, count > FEW ? reserve_for_few(worker) : 0);
    }
    if (run.count == 0) {
        worker->short_of_ceiling = (uint8_t)ph_mint_lacks_ceiling(mint);
        ph_count(&worker->slot->stalls, worker->short_of_ceiling);
    }
    worker->turn_left -= run.count;
    return run;
}

uint64_t ph_worker_share(const struct ph_worker *worker) {
    uint32_t waiting = worker->waiting_count + worker->starving_count + 1;
    uint64_t share = ph_sequence_count(&worker->mint.issuer.layout) / waiting;
    return share > chunk(worker) ? share : chunk(worker);
}

void ph_worker_supply(struct ph_worker *worker, uint64_t max_age_ns, struct ph_supply *supply) {
    struct ph_mint *mint = &worker->mint;
    const struct ph_layout *layout = &mint->issuer.layout;
    uint64_t lookback = min_u64(min_u64(RING_LOOKBACK_MS, max_age_ns / (2 * PH_NS_PER_MS)), mint->now_ms);
    uint64_t limit = ph_tick_of_ms(layout, mint->now_ms + 1) - reserve_for_few(worker);
    supply->issuer = &mint->issuer;
    supply->floor_tick = ph_tick_of_ms(layout, mint->now_ms - lookback);
    supply->limit_tick = min_u64(limit, ph_tick_end(layout));
    supply->ceiling_tick = ph_syncer_durable(mint->syncer);
    supply->now_ms = mint->now_ms;
    supply->ns_into_ms = (uint64_t)(mint->host_ns % PH_NS_PER_MS);
    supply->monotonic_ns = mint->monotonic_ns;
}
