/* What each that asks may take of a millisecond: turns, shares, and a part kept for those who want few ids. */
#include "service/service.h"

#define RING_LOOKBACK_MS 3
/* While some want few ids, an eighth of the current millisecond is kept for them from rings and from bulk requests. */
#define FEW 16
#define RESERVE_SHARE 8
#define RESERVE_NS UINT64_C(1000000000)

/* A bulk request takes no smaller piece of a millisecond than this, so that its runs stay few. */
static uint64_t chunk(const struct ph_service *service) {
    return ph_sooner(256, ph_sequence_count(&service->mint.issuer.layout) / 4);
}

static uint64_t reserve_for_few(const struct ph_service *service) {
    int wanted = service->mint.monotonic_ns - service->few_wanted_ns < RESERVE_NS;
    return wanted ? ph_sequence_count(&service->mint.issuer.layout) / RESERVE_SHARE : 0;
}

struct ph_run ph_share_take(struct ph_service *service, uint64_t floor_tick, uint64_t count) {
    struct ph_mint *mint = &service->mint;
    uint64_t least = ph_sooner(count, chunk(service));
    if (service->turn_left < least) {
        service->turn_over = 1;
        return (struct ph_run){0, 0};
    }
    count = ph_sooner(count, service->turn_left);
    if (count <= FEW) {
        service->few_wanted_ns = mint->monotonic_ns;
    }
    struct ph_run run = ph_mint_take(mint, floor_tick, least, count, count > FEW ? reserve_for_few(service) : 0);
    if (run.count == 0) {
        ph_mint_read(mint);
        ph_mint_renew(mint);
        run = ph_mint_take(mint, floor_tick, least, count, count > FEW ? reserve_for_few(service) : 0);
    }
    if (run.count == 0) {
        service->short_of_ceiling = (uint8_t)ph_mint_lacks_ceiling(mint);
        ph_count(&service->slot->stalls, service->short_of_ceiling);
    }
    service->turn_left -= run.count;
    return run;
}

uint64_t ph_share_of_one(const struct ph_service *service) {
    uint32_t waiting = service->streams.waiting_count + service->rings.waiting_count + 1;
    uint64_t share = ph_sequence_count(&service->mint.issuer.layout) / waiting;
    return share > chunk(service) ? share : chunk(service);
}

void ph_share_begin_turn(struct ph_service *service) {
    service->turn_left = ph_service_has_waiting(service) ? ph_share_of_one(service) : UINT64_MAX;
}

void ph_share_supply(struct ph_service *service, uint64_t max_age_ns, struct ph_supply *supply) {
    struct ph_mint *mint = &service->mint;
    const struct ph_layout *layout = &mint->issuer.layout;
    uint64_t lookback = ph_sooner(ph_sooner(RING_LOOKBACK_MS, max_age_ns / (2 * PH_NS_PER_MS)), mint->now_ms);
    uint64_t limit = ph_tick_of_ms(layout, mint->now_ms + 1) - reserve_for_few(service);
    supply->issuer = &mint->issuer;
    supply->floor_tick = ph_tick_of_ms(layout, mint->now_ms - lookback);
    supply->limit_tick = ph_sooner(limit, ph_tick_end(layout));
    supply->ceiling_tick = ph_syncer_durable(mint->syncer);
    supply->now_ms = mint->now_ms;
    supply->ns_into_ms = (uint64_t)(mint->host_ns % PH_NS_PER_MS);
    supply->monotonic_ns = mint->monotonic_ns;
}
