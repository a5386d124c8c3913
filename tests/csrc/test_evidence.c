/* What a start and a repair make of the evidence, as tables. F18, F19, F43, F44, F60, F61. */
#include "engine/evidence.h"
#include "engine/issuer.h"

#include <string.h>

#include "check.h"

#define MS INT64_C(1000000)
#define S (1000 * MS)
#define EPOCH_MS UINT64_C(1735689600000)
#define AT(ms) ((int64_t)(EPOCH_MS + (uint64_t)(ms)) * MS)
#define TICK(ms) ((uint64_t)(ms) << 13)
#define BOOT 7

static const struct ph_layout layout = {41, 10, 13, EPOCH_MS};
static struct ph_host_page page, fresh_page;

static struct ph_evidence record(uint32_t coordinator, uint64_t ceiling, uint64_t start_id, uint8_t boot,
                                 int64_t host_ms, int64_t wall_ms, int64_t boottime_s) {
    struct ph_evidence evidence = {coordinator, ceiling, start_id, {AT(host_ms), AT(wall_ms), boottime_s * S, {boot}}};
    return evidence;
}

/* Now: wall clock at wall_ms, 100 s after boot BOOT. */
static struct ph_known now(const struct ph_evidence *records, uint32_t count, int64_t wall_ms) {
    struct ph_known known = {.records = records,
                             .count = count,
                             .realtime_ns = AT(wall_ms),
                             .boottime_ns = 100 * S,
                             .boot_id = {BOOT},
                             .layout = layout,
                             .jump_ns_max = 300 * S,
                             .slew_per_mille = 10};
    return known;
}

static void with_page(struct ph_known *known, int64_t host_ms, int64_t wall_ms, int64_t boottime_s) {
    struct ph_moment moment = {.host_ns = AT(host_ms), .realtime_ns = AT(wall_ms), .boottime_ns = boottime_s * S};
    memset(&page, 0, sizeof page);
    ph_host_page_set_moment(&page, &moment);
    known->page = &page;
    known->page_is_own = 1;
}

static struct ph_started started_with(const struct ph_known *known) {
    struct ph_started started;
    memset(&fresh_page, 0, sizeof fresh_page);
    ph_host_start(known, &fresh_page, 99, &started);
    return started;
}

/* Evidence of one record, taken at 90 s after boot; now 100 s after boot. All in milliseconds since the epoch. */
static void test_host_time_at_a_start(void) {
    static const struct {
        uint8_t boot;
        int64_t host, wall_then, wall_now, expected, jump;
    } rows[] = {
        {BOOT, 50000, 50000, 60000, 60000, 0},       /* all went on as it should */
        {BOOT, 50000, 50000, 61000, 61000, 0},       /* the clock was set on a little */
        {BOOT, 50000, 50000, 55000, 60000, 0},       /* the clock was set back: on by boottime */
        {BOOT, 50000, 20000, 25000, 59900, 0},       /* it led the clock then: on, but slower */
        {BOOT, 50000, 49950, 25000, 59950, 0},       /* a small lead is gone through by now */
        {BOOT, 50000, 50000, 360001, 60000, 300001}, /* a jump beyond the bound is not followed */
        {BOOT, 50000, 50000, 360000, 360000, 0},
        {1, 50000, 50000, 3600000, 3600000, 0}, /* another boot: the clock is believed */
        {1, 50000, 50000, 40000, 50000, 0},     /* but it never goes back */
        {0, 50000, 50000, 40000, 50000, 0},     /* an unknown boot is another one */
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        struct ph_evidence one = record(3, TICK(1), 5, rows[i].boot, rows[i].host, rows[i].wall_then, 90);
        struct ph_known known = now(&one, 1, rows[i].wall_now);
        struct ph_started started = started_with(&known);
        CHECK_EQ_U64(started.host_ns, AT(rows[i].expected));
        CHECK_EQ_U64(started.jump_ns, rows[i].jump * MS);
    }
}

static void test_the_page_s_time_is_evidence(void) {
    struct ph_evidence one = record(3, TICK(1), 5, BOOT, 50000, 50000, 90);
    struct ph_known known = now(&one, 1, 30000);
    with_page(&known, 80000, 30000, 99); /* newer, and ahead */
    CHECK_EQ_U64(started_with(&known).host_ns, AT(80000 + 990));
    known.page_is_own = 0; /* a copy of it too */
    CHECK_EQ_U64(started_with(&known).host_ns, AT(80000 + 990));
    with_page(&known, 80000, 30000, 101); /* of another time namespace: what it says of host time holds */
    CHECK_EQ_U64(started_with(&known).host_ns, AT(80000));
}

static void test_an_unreadable_future_sample_is_of_no_boot(void) {
    struct ph_evidence one = record(3, TICK(1), 5, BOOT, 50000, 50000, 200); /* later than now in this boot */
    struct ph_known known = now(&one, 1, 30000);
    CHECK_EQ_U64(started_with(&known).host_ns, AT(50000));
}

static void test_positions(void) {
    struct ph_evidence two[] = {record(0, TICK(70), 5, BOOT, 50, 50, 90), record(3, TICK(90) + 5, 6, BOOT, 50, 50, 90)};
    struct ph_known known = now(two, 2, 60);
    struct ph_started started = started_with(&known); /* no page: from the ceilings, and nobody below the highest */
    CHECK_EQ_U64(started.floor_ms, 91);
    CHECK_EQ_U64(started.exact, 0);
    CHECK_EQ_U64(fresh_page.positions[0].next_tick, TICK(91));
    CHECK_EQ_U64(fresh_page.positions[3].next_tick, TICK(91));
    CHECK_EQ_U64(fresh_page.positions[3].start_id, 99);
    CHECK_EQ_U64(fresh_page.positions[3].start_id_before, 6);
    CHECK_EQ_U64(fresh_page.positions[1].start_id, 0);
    CHECK_EQ_U64(started.wait_ns, 0);
    two[1].ceiling = TICK(20000) + 1;
    CHECK_EQ_U64(started_with(&known).wait_ns, AT(20001) - started.host_ns);
    two[1].ceiling = TICK(90) + 5;

    with_page(&known, 60, 60, 100);
    page.positions[0] = (struct ph_position){.next_tick = TICK(60), .start_id = 5};
    page.positions[3] = (struct ph_position){.next_tick = TICK(60) + 7, .start_id = 50, .start_id_before = 6};
    started = started_with(&known); /* believed: exactly where they were, in whole milliseconds above all */
    CHECK_EQ_U64(started.exact, 2);
    CHECK_EQ_U64(started.floor_ms, 61);

    page.positions[3].start_id_before = 50; /* of another start than the record: a lower bound */
    CHECK_EQ_U64(started_with(&known).floor_ms, 91);
    page.positions[3].next_tick = TICK(200);
    CHECK_EQ_U64(started_with(&known).floor_ms, 200);
    page.positions[3].start_id_before = 6;
    known.page_is_own = 0;
    CHECK_EQ_U64(started_with(&known).floor_ms, 200);
    CHECK_EQ_U64(started_with(&known).exact, 0);
}

static void test_a_record_that_knew_no_start_fits_no_entry(void) {
    struct ph_evidence one = record(0, TICK(70), 0, BOOT, 50, 50, 90);
    struct ph_known known = now(&one, 1, 60);
    with_page(&known, 60, 60, 100);
    page.positions[0] = (struct ph_position){.next_tick = TICK(60)};
    CHECK_EQ_U64(started_with(&known).floor_ms, 70);
}

/* The same page is read and written: a coordinator that is not there any more loses its part in it. */
static void test_a_start_writes_to_the_page_that_it_reads(void) {
    struct ph_evidence one = record(0, TICK(70), 5, BOOT, 50, 50, 90);
    struct ph_known known = now(&one, 1, 60);
    struct ph_started started;
    with_page(&known, 60, 60, 100);
    uint64_t closed = PH_POSITION_CLOSED; /* by owners that ended in order */
    page.positions[0] =
        (struct ph_position){.next_tick = (TICK(60) + 1) | closed, .durable_ceiling = TICK(80), .start_id = 5};
    page.positions[1] =
        (struct ph_position){.next_tick = TICK(65) | closed, .durable_ceiling = TICK(80), .start_id = 5};
    ph_host_start(&known, &page, 99, &started);
    CHECK_EQ_U64(page.positions[0].next_tick, TICK(61));
    CHECK_EQ_U64(page.positions[0].start_id, 99);
    CHECK_EQ_U64(page.positions[1].next_tick, TICK(65));
    CHECK_EQ_U64(page.positions[1].start_id, 0);
    CHECK_EQ_U64(page.positions[0].durable_ceiling, 0);
    CHECK_EQ_U64(page.positions[1].durable_ceiling, 0);
    CHECK_EQ_U64(page.start_id, 99);
    struct ph_moment moment;
    ph_host_page_moment(&page, &moment);
    CHECK_EQ_U64(moment.host_ns, started.host_ns);
}

static void test_repairs(void) {
    struct ph_evidence two[] = {record(0, TICK(70), 5, BOOT, 50000, 20000, 90), record(3, TICK(1), 6, BOOT, 9, 9, 90)};
    struct ph_known known = now(two, 2, 31000);
    struct ph_repaired repaired;
    CHECK_EQ_U64(ph_newest_evidence(&known), 0);
    ph_repair(&known, 1, PH_REPAIR_CLOCK_OK, 0, 0, &repaired); /* the clock now, and the lead of then */
    CHECK_EQ_U64(repaired.ceiling, TICK(61001));
    CHECK_EQ_U64(repaired.sample.host_ns, AT(61000));
    CHECK_EQ_U64(repaired.sample.realtime_ns, AT(31000));
    CHECK_EQ_U64(repaired.sample.boottime_ns, 100 * S);
    ph_repair(&known, 1, PH_REPAIR_CLOCK_OK, 0, TICK(90000), &repaired); /* never below its own ceiling */
    CHECK_EQ_U64(repaired.ceiling, TICK(90000));
    ph_repair(&known, 1, PH_REPAIR_ABOVE, 70000, 0, &repaired);
    CHECK_EQ_U64(repaired.ceiling, TICK(70001));
    CHECK_EQ_U64(repaired.sample.host_ns, AT(70000));
    ph_repair(&known, 1, PH_REPAIR_ABOVE, 100, 0, &repaired); /* the record's time is the evidence's all the same */
    CHECK_EQ_U64(repaired.sample.host_ns, AT(59900));

    with_page(&known, 50000, 31000, 100);
    page.positions[1].next_tick = TICK(49000) + 3;
    ph_repair(&known, 1, PH_REPAIR_LIVE, 0, 0, &repaired);
    CHECK_EQ_U64(repaired.ceiling, TICK(49000) + 3);

    known = now(two, 0, 31000);
    CHECK_EQ_U64((uint64_t)ph_newest_evidence(&known), (uint64_t)-1);
    ph_repair(&known, 1, PH_REPAIR_ABOVE, 70000, 0, &repaired); /* nothing is left */
    CHECK_EQ_U64(repaired.ceiling, TICK(70001));
}

/* One after the other they do not drive each other apart: each rests on the same lead. */
static void test_repairs_in_turn_stay_together(void) {
    struct ph_evidence all[8];
    all[0] = record(0, TICK(70), 5, BOOT, 50000, 20000, 90);
    for (uint32_t c = 1; c < 8; c++) {
        struct ph_known known = now(all, c, 31000);
        struct ph_repaired repaired;
        ph_repair(&known, c, PH_REPAIR_CLOCK_OK, 0, 0, &repaired);
        CHECK_EQ_U64(repaired.ceiling, TICK(61001));
        all[c] = (struct ph_evidence){c, repaired.ceiling, 100 + c, repaired.sample};
    }
}

int main(void) {
    RUN(test_host_time_at_a_start);
    RUN(test_the_page_s_time_is_evidence);
    RUN(test_an_unreadable_future_sample_is_of_no_boot);
    RUN(test_positions);
    RUN(test_a_record_that_knew_no_start_fits_no_entry);
    RUN(test_a_start_writes_to_the_page_that_it_reads);
    RUN(test_repairs);
    RUN(test_repairs_in_turn_stay_together);
    return check_report();
}
