#include "engine/mint.h"

#include <string.h>

#include "ph_atomic.h"
#include "ph_errors.h"

#define SLOW_FACTOR 4
#define SLOW_SYNCS 32      /* with each sync that much of a slow one is forgotten: a thirty-second */
#define REACH_MS_MAX 60000 /* the largest obelisk.window_ms; with the reserve nobody waits longer after a lost page */
#define TEND_MS 1000

static uint64_t min_u64(uint64_t a, uint64_t b) { return a < b ? a : b; }
static uint64_t max_u64(uint64_t a, uint64_t b) { return a > b ? a : b; }

static uint64_t tick_of(const struct ph_mint *mint, uint64_t ms) { return ph_tick_of_ms(&mint->issuer.layout, ms); }

static int64_t ns_of_ms(const struct ph_mint *mint, uint64_t ms) {
    return (int64_t)(ms + mint->issuer.layout.epoch_ms) * PH_NS_PER_MS;
}

void ph_mint_init(struct ph_mint *mint, struct ph_host_page *page, struct ph_syncer *syncer,
                  const struct ph_layout *layout, uint32_t coordinator, uint64_t window_ms, uint64_t after_ms_max) {
    memset(mint, 0, sizeof *mint);
    mint->syncer = syncer;
    mint->issuer.layout = *layout;
    mint->issuer.coordinator = coordinator;
    mint->issuer.next_tick = &page->positions[coordinator].next_tick;
    mint->window_ms = window_ms;
    mint->after_ms_max = after_ms_max;
    mint->tend_ms = TEND_MS;
    ph_boot_id(mint->boot_id);
}

void ph_mint_read(struct ph_mint *mint) {
    mint->host_ns = ph_host_clock_read(&mint->clock);
    mint->monotonic_ns = ph_monotonic_ns();
    int64_t since_epoch_ms = mint->host_ns / PH_NS_PER_MS - (int64_t)mint->issuer.layout.epoch_ms;
    mint->now_ms = since_epoch_ms > 0 ? (uint64_t)since_epoch_ms : 0;
}

int ph_mint_exhausted(const struct ph_mint *mint) { return mint->now_ms >> mint->issuer.layout.ms_bits != 0; }

uint64_t ph_mint_until_next_ms(const struct ph_mint *mint) {
    return (uint64_t)(PH_NS_PER_MS - mint->host_ns % PH_NS_PER_MS);
}

/*
 * A disk that has been slow is given more time for the next sync. What the one under way has taken so far counts: what
 * is asked for meanwhile is for after its end. And a slow one is forgotten bit by bit: a disk may hang now and then.
 */
static uint64_t reach_ms(struct ph_mint *mint) {
    uint64_t last_ms = ph_load_relaxed(&mint->syncer->sync_ns_last) / PH_NS_PER_MS;
    uint64_t durable = ph_syncer_durable(mint->syncer);
    if (durable != mint->durable_weighed) {
        mint->durable_weighed = durable;
        mint->slow_ms -= (mint->slow_ms + SLOW_SYNCS - 1) / SLOW_SYNCS;
    }
    mint->slow_ms = max_u64(mint->slow_ms, max_u64(last_ms, ph_mint_ceiling_wait_ms(mint)));
    return min_u64(max_u64(mint->window_ms, SLOW_FACTOR * mint->slow_ms), REACH_MS_MAX);
}

static void take_sample(const struct ph_mint *mint, struct ph_clock_sample *sample) {
    sample->host_ns = mint->clock.host_ns;
    sample->realtime_ns = mint->clock.realtime_ns;
    sample->boottime_ns = mint->clock.boottime_ns;
    memcpy(sample->boot_id, mint->boot_id, sizeof sample->boot_id);
}

int ph_mint_take_over(struct ph_mint *mint, struct ph_obelisk *obelisk, struct ph_fault *fault) {
    struct ph_clock_sample sample;
    int code = ph_obelisk_settle(obelisk, fault);
    if (code != 0) {
        return code;
    }
    ph_mint_read(mint);
    if (mint->now_ms == 0 || ph_mint_exhausted(mint)) {
        return ph_fault_set(fault, PH_ERR_CLOCK_UNUSABLE, "the clock is %s the layout's %u bits of milliseconds",
                            mint->now_ms == 0 ? "before" : "beyond", mint->issuer.layout.ms_bits);
    }
    uint64_t reach = tick_of(mint, mint->now_ms + mint->window_ms);
    /* Not below what the last owner made durable: siblings issue up to there for as long as it stands in the page. */
    uint64_t lent = ph_load_acquire(&mint->clock.page->positions[mint->issuer.coordinator].durable_ceiling);
    uint64_t least = max_u64(ph_issuer_next(&mint->issuer), lent);
    uint64_t ceiling = min_u64(max_u64(least, reach), ph_tick_end(&mint->issuer.layout));
    take_sample(mint, &sample);
    obelisk->start_id = mint->clock.page->start_id;
    mint->requested_ceiling = ceiling;
    mint->recorded_ahead_ns = mint->clock.ahead_ns;
    mint->tended_tick = ph_issuer_next(&mint->issuer);
    code = ph_obelisk_write(obelisk, ceiling, &sample, 0, fault);
    if (code == 0) {
        ph_issuer_open(&mint->issuer);
    }
    return code;
}

int ph_mint_hand_over(struct ph_mint *mint, struct ph_obelisk *obelisk, struct ph_fault *fault) {
    struct ph_clock_sample sample;
    ph_mint_read(mint);
    take_sample(mint, &sample);
    uint64_t next_tick = ph_issuer_close(&mint->issuer); /* first: no sibling goes on from here */
    int code = ph_obelisk_check_path(obelisk, fault);
    return code != 0 ? code : ph_obelisk_write(obelisk, next_tick, &sample, 1, fault);
}

struct ph_run ph_mint_take(struct ph_mint *mint, uint64_t floor_tick, uint64_t least, uint64_t count,
                           uint64_t kept_back) {
    uint64_t limit = min_u64(tick_of(mint, mint->now_ms + 1), ph_tick_end(&mint->issuer.layout)) - kept_back;
    uint64_t ceiling = ph_syncer_durable(mint->syncer);
    uint64_t floor = max_u64(floor_tick, tick_of(mint, mint->now_ms));
    uint64_t start = max_u64(ph_issuer_next(&mint->issuer), floor);
    if (start + least > min_u64(limit, ceiling)) {
        return (struct ph_run){start, 0};
    }
    return ph_issuer_take(&mint->issuer, floor, limit, ceiling, count);
}

/* One tick from a sibling's position. */
static struct ph_run take_of_sibling(const struct ph_mint *mint, uint32_t coordinator, uint64_t floor_tick) {
    struct ph_host_page *page = mint->clock.page;
    struct ph_position *position = &page->positions[coordinator];
    struct ph_issuer issuer = {mint->issuer.layout, coordinator, &position->next_tick};
    if (ph_load_acquire(&position->start_id) != ph_load_acquire(&page->start_id)) {
        return (struct ph_run){0, 0}; /* it is none of this host's */
    }
    uint64_t limit = min_u64(tick_of(mint, mint->now_ms + 1), ph_tick_end(&mint->issuer.layout));
    uint64_t ceiling = ph_load_acquire(&position->durable_ceiling);
    return ph_issuer_take(&issuer, max_u64(floor_tick, tick_of(mint, mint->now_ms)), limit, ceiling, 1);
}

int ph_mint_lacks_ceiling(const struct ph_mint *mint) {
    return ph_syncer_durable(mint->syncer) < tick_of(mint, mint->now_ms + 1);
}

static void request_ceiling(struct ph_mint *mint, uint64_t ceiling) {
    struct ph_clock_sample sample;
    take_sample(mint, &sample);
    if (ph_syncer_durable(mint->syncer) >= mint->requested_ceiling) {
        mint->requested_ns = mint->monotonic_ns;
        mint->durable_seen = ph_syncer_durable(mint->syncer);
    }
    mint->requested_ceiling = ceiling;
    mint->recorded_ahead_ns = mint->clock.ahead_ns;
    ph_syncer_request(mint->syncer, ceiling, &sample);
}

/* Asks for a ceiling `ms` ahead when the durable one, or the one asked for, is less than `least_ms` ahead. */
static void keep_ahead(struct ph_mint *mint, uint64_t least_ms, uint64_t ms) {
    uint64_t least = tick_of(mint, mint->now_ms + least_ms);
    uint64_t wanted = min_u64(tick_of(mint, mint->now_ms + ms), ph_tick_end(&mint->issuer.layout));
    if (ph_syncer_durable(mint->syncer) < least && mint->requested_ceiling < least &&
        wanted > mint->requested_ceiling) {
        request_ceiling(mint, wanted);
    }
}

/* For two turns of ph_mint_tend(), and what a window is good for besides. */
static uint64_t reserve_ms(const struct ph_mint *mint, uint64_t reach) { return 2 * mint->tend_ms + reach; }

void ph_mint_write_record(struct ph_mint *mint) { request_ceiling(mint, mint->requested_ceiling); }

void ph_mint_renew(struct ph_mint *mint) {
    uint64_t reach = reach_ms(mint);
    uint64_t pause_ms = (mint->monotonic_ns - mint->issued_before_ns) / PH_NS_PER_MS;
    int seldom = pause_ms > reach / 4 && pause_ms <= 2 * mint->tend_ms; /* the next pause may be twice as long */
    mint->seldom |= (uint8_t)seldom;
    mint->issued_ns = mint->issued_before_ns = mint->monotonic_ns;
    keep_ahead(mint, reach / 2, seldom ? reserve_ms(mint, reach) : reach);
}

/* Since the last ph_mint_tend() something was issued, and what was asked for then may not be enough for the next one. */
static int needs_reserve(const struct ph_mint *mint, uint64_t reach) {
    if (mint->issued_ns == 0) {
        return ph_issuer_next(&mint->issuer) != mint->tended_tick; /* by siblings */
    }
    return mint->seldom || mint->monotonic_ns - mint->issued_ns > reach / 2 * PH_NS_PER_MS;
}

void ph_mint_tend(struct ph_mint *mint) {
    uint64_t reach = reach_ms(mint);
    if (needs_reserve(mint, reach)) {
        keep_ahead(mint, mint->tend_ms + reach, reserve_ms(mint, reach));
    }
    mint->tended_tick = ph_issuer_next(&mint->issuer);
    mint->issued_ns = 0;
    mint->seldom = 0;
    if (mint->clock.ahead_ns > mint->recorded_ahead_ns + PH_NS_PER_MS) {
        ph_mint_write_record(mint);
    } else if (mint->clock.ahead_ns < mint->recorded_ahead_ns) {
        mint->recorded_ahead_ns = mint->clock.ahead_ns;
    }
}

uint64_t ph_mint_ceiling_wait_ms(struct ph_mint *mint) {
    uint64_t durable = ph_syncer_durable(mint->syncer);
    if (durable >= mint->requested_ceiling) {
        mint->requested_ns = 0;
        return 0;
    }
    if (mint->requested_ns == 0 || durable != mint->durable_seen) {
        mint->requested_ns = mint->monotonic_ns;
        mint->durable_seen = durable;
    }
    return (mint->monotonic_ns - mint->requested_ns) / PH_NS_PER_MS;
}

int ph_strict_begin(const struct ph_mint *mint, struct ph_strict *strict, uint32_t coordinator, uint64_t after,
                    int64_t noted_ns) {
    *strict = (struct ph_strict){
        .coordinator = coordinator, .stands_in = noted_ns != 0, .pick_ns = noted_ns != 0 ? noted_ns + PH_NS_PER_MS : 0};
    if (ph_mint_exhausted(mint)) {
        return PH_ERR_TIME_EXHAUSTED;
    }
    if (after != 0) {
        strict->floor_tick = ph_floor_after(&mint->issuer.layout, coordinator, after);
        if (ph_ms_of_tick(&mint->issuer.layout, strict->floor_tick) > mint->now_ms + mint->after_ms_max) {
            return PH_ERR_AFTER_TOO_FAR;
        }
    }
    return 0;
}

int ph_strict_pursue(struct ph_mint *mint, struct ph_strict *strict, int64_t *due_ns) {
    if (strict->tick == 0) {
        uint64_t floor_ms = ph_ms_of_tick(&mint->issuer.layout, strict->floor_tick);
        *due_ns = strict->pick_ns;
        if (mint->host_ns < strict->pick_ns) {
            return 0;
        }
        *due_ns = ns_of_ms(mint, max_u64(floor_ms, mint->now_ms + 1));
        if (floor_ms > mint->now_ms) {
            return 0;
        }
        struct ph_run run = strict->coordinator == mint->issuer.coordinator
                                ? ph_mint_take(mint, strict->floor_tick, 1, 1, 0)
                                : take_of_sibling(mint, strict->coordinator, strict->floor_tick);
        if (run.count == 0) {
            return 0;
        }
        strict->tick = run.first_tick;
    }
    *due_ns = strict->stands_in ? ns_of_ms(mint, ph_ms_of_tick(&mint->issuer.layout, strict->tick) + 1) : 0;
    return mint->host_ns >= *due_ns;
}
