/* Ceilings asked for in time, strict requests and their waits, with a clock and a sync thread in the test's hand. F22,
 * F43, F59, F62. */
#define _GNU_SOURCE
#include "engine/mint.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "check.h"
#include "ph_errors.h"

#define MS INT64_C(1000000)
#define EPOCH_MS UINT64_C(1735689600000)
#define AT(ms) ((int64_t)(EPOCH_MS + (uint64_t)(ms)) * MS)
#define START_MS 100000

static const struct ph_layout layout = {41, 10, 13, EPOCH_MS};
static struct ph_host_page page;
static struct ph_mint mint;
static struct ph_syncer syncer;
static int64_t wall_ns, boot_ns;
static uint64_t asked; /* how often the sync thread was */

static void read_fake(void *context, int64_t *realtime_ns, int64_t *boottime_ns) {
    (void)context;
    *realtime_ns = wall_ns;
    *boottime_ns = boot_ns;
}

static uint64_t tick(uint64_t ms) { return ph_tick_of_ms(&layout, ms); }

static void set_up(void) {
    wall_ns = AT(START_MS);
    boot_ns = 5000 * MS;
    asked = 0;
    memset(&page, 0, sizeof page);
    memset(&syncer, 0, sizeof syncer);
    struct ph_moment moment = {.host_ns = wall_ns, .boottime_ns = boot_ns, .realtime_ns = wall_ns};
    ph_host_page_set_moment(&page, &moment);
    ph_mint_init(&mint, &page, &syncer, &layout, 2, 250, 1000);
    ph_host_clock_init(&mint.clock, &page, 2, (struct ph_clock_source){read_fake, NULL}, 300000 * MS, 10);
    pthread_mutex_init(&syncer.mutex, NULL);
    pthread_cond_init(&syncer.wanted, NULL);
    ph_mint_read(&mint);
    syncer.durable_ceiling = &page.positions[2].durable_ceiling;
    mint.requested_ceiling = *syncer.durable_ceiling = tick(START_MS + 250);
}

static void read_at_this_moment(void) {
    ph_mint_read(&mint);
    mint.monotonic_ns = (uint64_t)boot_ns;
}

static void pass_us(int64_t us) {
    wall_ns += us * 1000;
    boot_ns += us * 1000;
    read_at_this_moment();
}

/* The sync thread's work, when it was asked. */
static void sync_now(uint64_t took_ms) {
    if (syncer.pending) {
        syncer.pending = 0;
        *syncer.durable_ceiling = syncer.ceiling;
        syncer.sync_ns_last = took_ms * MS;
        asked++;
    }
}

static uint64_t take(uint64_t count) {
    struct ph_run run = ph_mint_take(&mint, 0, 1, count, 0);
    ph_mint_renew(&mint);
    return run.count;
}

static void test_a_ceiling_is_asked_for_at_half_of_the_window(void) {
    set_up();
    pass_us(124000);
    CHECK_EQ_U64(take(1), 1);
    CHECK(!syncer.pending);
    pass_us(2000);
    CHECK_EQ_U64(take(1), 1);
    CHECK(syncer.pending);
    CHECK_EQ_U64(syncer.ceiling, tick(START_MS + 126 + 250));
    CHECK_EQ_U64(syncer.sample.host_ns, AT(START_MS + 126));
    CHECK_EQ_U64(syncer.sample.realtime_ns, wall_ns);
    syncer.pending = 0;
    pass_us(50000);
    CHECK_EQ_U64(take(1), 1);
    CHECK(!syncer.pending); /* one is under way */
}

static void test_a_slow_disk_is_asked_for_more(void) {
    set_up();
    pass_us(1000);
    syncer.sync_ns_last = 2000 * MS;
    CHECK_EQ_U64(take(1), 1);
    CHECK_EQ_U64(syncer.ceiling, tick(START_MS + 1 + 4 * 2000));
    sync_now(20000);
    pass_us(4001 * 1000);
    CHECK_EQ_U64(take(1), 1);
    CHECK_EQ_U64(syncer.ceiling, tick(START_MS + 1 + 4001 + 60000)); /* and no more than that */
}

/* What is asked for while the first slow sync is under way reaches beyond the second one. */
static void test_a_disk_that_becomes_slow(void) {
    set_up();
    pass_us(126 * 1000);
    CHECK_EQ_U64(take(1), 1);
    uint64_t flies = syncer.ceiling;
    syncer.pending = 0;
    for (int i = 0; i < 2000; i++) {
        pass_us(1000);
        take(1);
    }
    CHECK(flies < tick(mint.now_ms)); /* when it becomes durable now, two seconds later, it is past */
    CHECK(syncer.pending);
    CHECK(syncer.ceiling >= tick(START_MS + 126 + 2000 + 2 * 2000 - 1));
}

/* One that hangs now and then and is fast in between: a fast sync does not make it forget the slow ones. */
static void test_a_disk_that_hangs_now_and_then(void) {
    set_up();
    pass_us(130 * 1000);
    CHECK_EQ_U64(take(1), 1);
    pass_us(2500 * 1000);
    sync_now(2500);
    uint64_t reach_ms = 4 * 2500;
    for (int i = 0; i < 16; i++) {
        take(1);
        sync_now(1);
        reach_ms -= reach_ms / 32 + 4;
        while (!syncer.pending) {
            pass_us(1000);
            CHECK_EQ_U64(take(1), 1);
        }
        CHECK(*syncer.durable_ceiling >= tick(mint.now_ms + reach_ms / 2 - 1));
    }
    for (int i = 0; i < 4000; i++) {
        pass_us(200 * 1000);
        take(1);
        sync_now(1);
    }
    *syncer.durable_ceiling = 0;
    mint.requested_ceiling = 0;
    take(1);
    CHECK_EQ_U64(syncer.ceiling, tick(mint.now_ms + 250)); /* in the end they are forgotten */
}

static void test_nothing_leaves_above_the_durable_ceiling(void) {
    set_up();
    pass_us(249000);
    CHECK_EQ_U64(take(10000), 8192);
    pass_us(1000);
    CHECK_EQ_U64(take(1), 0);
    CHECK(ph_mint_lacks_ceiling(&mint));
    pass_us(1500 * 1000);
    CHECK_EQ_U64(ph_mint_ceiling_wait_ms(&mint), 1501);
    sync_now(1);
    CHECK_EQ_U64(ph_mint_ceiling_wait_ms(&mint), 0);
}

static void test_a_millisecond_s_ticks(void) {
    set_up();
    CHECK_EQ_U64(take(8000), 8000);
    CHECK_EQ_U64(ph_mint_take(&mint, 0, 200, 200, 0).count, 0); /* all or as many as asked at least */
    CHECK_EQ_U64(ph_mint_take(&mint, 0, 1, 200, 100).count, 92);
    CHECK_EQ_U64(take(200), 100);
    CHECK_EQ_U64(take(1), 0);
    CHECK(!ph_mint_lacks_ceiling(&mint));
    pass_us(1000);
    CHECK_EQ_U64(take(1), 1);
}

/* Counted: syncs per id, at a pace of so many milliseconds between two. F59. */
static uint64_t syncs_in_a_minute(int64_t pause_ms, uint64_t *waits) {
    set_up();
    int64_t next_tend_ns = boot_ns, next_id_ns = boot_ns + pause_ms * MS;
    *waits = 0;
    for (int64_t end_ns = boot_ns + 60000 * MS; boot_ns < end_ns; pass_us(1000)) {
        if (boot_ns >= next_tend_ns) {
            ph_mint_tend(&mint);
            next_tend_ns += 1000 * MS;
        }
        sync_now(1);
        if (pause_ms > 0 && boot_ns >= next_id_ns) {
            next_id_ns += pause_ms * MS;
            if (take(1) == 0) {
                sync_now(1);
                ++*waits;
                CHECK_EQ_U64(take(1), 1);
            }
        }
    }
    return asked;
}

static void test_no_id_of_an_ordinary_pace_waits_for_a_sync(void) {
    uint64_t waits;
    for (int64_t pause_ms = 1; pause_ms <= 1000; pause_ms += pause_ms < 20 ? 1 : 49) {
        uint64_t syncs = syncs_in_a_minute(pause_ms, &waits);
        CHECK(waits <= 2); /* the first ids, before it is known how they come */
        CHECK(syncs < 60000 / (uint64_t)pause_ms);
        CHECK(syncs <= (pause_ms <= 125 ? 60 * 8 : 60) + 2);
    }
    CHECK_EQ_U64(syncs_in_a_minute(0, &waits), 0); /* nobody asks */
}

static void test_a_growing_lead_is_recorded_once_idle_or_not(void) {
    set_up();
    ph_mint_tend(&mint);
    CHECK(!syncer.pending);
    wall_ns -= 3600 * 1000 * MS;
    pass_us(1000);
    ph_mint_tend(&mint);
    CHECK(syncer.pending);
    CHECK_EQ_U64(syncer.ceiling, tick(START_MS + 250)); /* the same ceiling */
    CHECK(syncer.sample.host_ns - syncer.sample.realtime_ns >= 3599 * 1000 * MS);
    syncer.pending = 0;
    for (int i = 0; i < 10; i++) {
        pass_us(1000 * 1000);
        ph_mint_tend(&mint);
        CHECK(!syncer.pending); /* it shrinks */
    }
    wall_ns -= 20 * MS; /* less than it has shrunk by, but it has grown */
    pass_us(0);
    ph_mint_tend(&mint);
    CHECK(syncer.pending);
}

/* --- strict requests */

static void test_an_owner_answers_at_once(void) {
    struct ph_strict strict;
    int64_t due_ns;
    set_up();
    pass_us(500);
    CHECK_EQ_U64(ph_strict_begin(&mint, &strict, 2, 0, 0), 0);
    CHECK(ph_strict_pursue(&mint, &strict, &due_ns));
    CHECK_EQ_U64(strict.tick, tick(START_MS));
    CHECK_EQ_U64(ph_issuer_next(&mint.issuer), tick(START_MS) + 1);
}

static void test_after_waits_for_host_time_and_moves_nothing(void) {
    struct ph_strict strict;
    int64_t due_ns;
    set_up();
    uint64_t later_id = ph_id_of_tick(&layout, 3, tick(START_MS + 20) + 9); /* of a higher coordinator */
    CHECK_EQ_U64(ph_strict_begin(&mint, &strict, 2, later_id, 0), 0);
    for (int i = 0; i < 21; i++) {
        CHECK(!ph_strict_pursue(&mint, &strict, &due_ns));
        CHECK_EQ_U64(due_ns, AT(START_MS + 21));
        CHECK_EQ_U64(mint.host_ns, wall_ns);
        pass_us(1000);
    }
    CHECK(ph_strict_pursue(&mint, &strict, &due_ns));
    CHECK(ph_id_of_tick(&layout, 2, strict.tick) > later_id);
    CHECK_EQ_U64(ph_strict_begin(&mint, &strict, 2, ph_id_of_tick(&layout, 1, tick(START_MS + 21) + 9), 0), 0);
    CHECK(ph_strict_pursue(&mint, &strict, &due_ns)); /* of a lower one: at once in the same millisecond */
}

static void test_after_beyond_the_bound_is_refused_at_once(void) {
    struct ph_strict strict;
    set_up();
    CHECK_EQ_U64(ph_strict_begin(&mint, &strict, 2, ph_id_of_tick(&layout, 1, tick(START_MS + 1000)), 0), 0);
    CHECK_EQ_U64(ph_strict_begin(&mint, &strict, 2, ph_id_of_tick(&layout, 1, tick(START_MS + 1001)), 0),
                 PH_ERR_AFTER_TOO_FAR);
    CHECK_EQ_U64(ph_strict_begin(&mint, &strict, 2, UINT64_MAX, 0), PH_ERR_AFTER_TOO_FAR);
}

static void test_a_stand_in_waits_before_and_after(void) {
    struct ph_strict strict;
    int64_t due_ns;
    set_up();
    pass_us(300);
    CHECK_EQ_U64(ph_strict_begin(&mint, &strict, 2, 0, mint.host_ns), 0);
    CHECK(!ph_strict_pursue(&mint, &strict, &due_ns));
    CHECK_EQ_U64(due_ns, AT(START_MS + 1) + 300000);
    CHECK_EQ_U64(strict.tick, 0);
    pass_us(999);
    CHECK(!ph_strict_pursue(&mint, &strict, &due_ns));
    pass_us(1);
    CHECK(!ph_strict_pursue(&mint, &strict, &due_ns)); /* picked, and not answered before the next millisecond */
    CHECK_EQ_U64(strict.tick, tick(START_MS + 1));
    CHECK_EQ_U64(due_ns, AT(START_MS + 2));
    pass_us(699);
    CHECK(!ph_strict_pursue(&mint, &strict, &due_ns));
    pass_us(1);
    CHECK(ph_strict_pursue(&mint, &strict, &due_ns));
    CHECK_EQ_U64(strict.tick, tick(START_MS + 1));
}

/* --- a sibling's ids */

#define SIBLING 5

static void lend(uint64_t next_tick, uint64_t durable_ceiling) {
    set_up();
    page.start_id = 77;
    page.positions[SIBLING] =
        (struct ph_position){.next_tick = next_tick, .durable_ceiling = durable_ceiling, .start_id = 77};
}

/* Asks once; returns the tick, or 0. */
static uint64_t ask_for_sibling(uint64_t after) {
    struct ph_strict strict;
    int64_t due_ns;
    uint64_t own = ph_issuer_next(&mint.issuer);
    CHECK_EQ_U64(ph_strict_begin(&mint, &strict, SIBLING, after, 0), 0);
    int ready = ph_strict_pursue(&mint, &strict, &due_ns);
    CHECK_EQ_U64(ph_issuer_next(&mint.issuer), own);
    CHECK_EQ_U64(page.positions[2].durable_ceiling, tick(START_MS + 250));
    return ready ? strict.tick : 0;
}

static void test_a_sibling_s_tick_comes_from_its_position(void) {
    struct ph_position *position = &page.positions[SIBLING];
    lend(tick(START_MS - 9), tick(START_MS) + 3);
    CHECK_EQ_U64(ask_for_sibling(0), tick(START_MS));
    CHECK_EQ_U64(ask_for_sibling(0), tick(START_MS) + 1);
    CHECK_EQ_U64(position->next_tick, tick(START_MS) + 2);
    CHECK_EQ_U64(ask_for_sibling(0), tick(START_MS) + 2);
    CHECK_EQ_U64(ask_for_sibling(0), 0); /* its ceiling is no higher */
    position->durable_ceiling = tick(START_MS + 1) + 10;
    CHECK_EQ_U64(ask_for_sibling(ph_id_of_tick(&layout, SIBLING, tick(START_MS) + 6)), tick(START_MS) + 7);
    CHECK_EQ_U64(ask_for_sibling(ph_id_of_tick(&layout, SIBLING + 1, tick(START_MS))), 0); /* it would have to wait */
    pass_us(1000);
    CHECK_EQ_U64(ask_for_sibling(0), tick(START_MS + 1));
    position->next_tick = tick(START_MS + 2);
    position->durable_ceiling = tick(START_MS + 9);
    CHECK_EQ_U64(ask_for_sibling(0), 0); /* not ahead of host time */
}

static void test_nothing_is_lent_by_one_that_closed_or_is_no_part_of_this_start(void) {
    struct ph_issuer issuer = {layout, SIBLING, &page.positions[SIBLING].next_tick};
    lend(tick(START_MS), tick(START_MS + 9));
    CHECK_EQ_U64(ph_issuer_close(&issuer), tick(START_MS));
    CHECK_EQ_U64(ask_for_sibling(0), 0);
    CHECK_EQ_U64(ph_position_next(&page.positions[SIBLING]), tick(START_MS));
    ph_issuer_open(&issuer);
    CHECK_EQ_U64(ask_for_sibling(0), tick(START_MS));
    page.positions[SIBLING].start_id = 76;
    CHECK_EQ_U64(ask_for_sibling(0), 0);
}

/* What a new owner writes first is not below what its siblings go by, and its last act leaves them nothing. */
static void test_owners_come_and_go_while_siblings_issue(void) {
    char path[] = "/tmp/test_mint-XXXXXX";
    struct ph_fault fault;
    struct ph_obelisk obelisk;
    struct ph_identity identity = {.coordinator = 2, .modulus = 4, .layout = layout};
    struct ph_record first = {.clean = 1, .start_id = 1};
    REQUIRE(mkdtemp(path) != NULL);
    char *file = NULL;
    REQUIRE(asprintf(&file, "%s/0002.obelisk", path) > 0);
    REQUIRE(ph_obelisk_create(file, &identity, &first, &fault) == 0);
    for (uint64_t ahead_ms = 100; ahead_ms < 500; ahead_ms += 300) {
        set_up();
        struct ph_position *position = &page.positions[2];
        position->next_tick = tick(START_MS) | PH_POSITION_CLOSED;
        position->durable_ceiling = tick(START_MS + ahead_ms);
        REQUIRE(ph_obelisk_open(&obelisk, file, PH_OBELISK_OWN, &fault) == 0);
        REQUIRE(ph_mint_take_over(&mint, &obelisk, &fault) == 0);
        CHECK_EQ_U64(obelisk.newest.ceiling, tick(START_MS + (ahead_ms > 250 ? ahead_ms : 250)));
        CHECK_EQ_U64(position->next_tick, tick(START_MS)); /* open */
        *syncer.durable_ceiling = obelisk.newest.ceiling;
        ph_mint_tend(&mint); /* nobody has asked since: no reserve */
        CHECK(!syncer.pending);
        CHECK_EQ_U64(take(3), 3);
        REQUIRE(ph_mint_hand_over(&mint, &obelisk, &fault) == 0);
        CHECK_EQ_U64(obelisk.newest.ceiling, tick(START_MS) + 3);
        CHECK_EQ_U64(position->next_tick, (tick(START_MS) + 3) | PH_POSITION_CLOSED);
        ph_obelisk_close(&obelisk);
    }
    set_up(); /* and after a start that found it far ahead */
    page.positions[2] = (struct ph_position){.next_tick = tick(START_MS + 400)};
    REQUIRE(ph_obelisk_open(&obelisk, file, PH_OBELISK_OWN, &fault) == 0);
    REQUIRE(ph_mint_take_over(&mint, &obelisk, &fault) == 0);
    CHECK_EQ_U64(obelisk.newest.ceiling, tick(START_MS + 400));
    ph_obelisk_close(&obelisk);
    unlink(file);
    rmdir(path);
    free(file);
}

/* The owner sees that its position moves, keeps a ceiling in reserve, and stops when nobody asks any more. */
static void test_a_reserve_for_siblings(void) {
    set_up();
    for (int second = 0; second < 5; second++) {
        page.positions[2].next_tick = tick(mint.now_ms) + 1; /* a sibling issued */
        ph_mint_tend(&mint);
        sync_now(1);
        CHECK(*syncer.durable_ceiling >= tick(mint.now_ms + 1250));
        pass_us(1000000);
    }
    ph_mint_tend(&mint); /* in the second that ends nobody asked */
    asked = 0;
    for (int second = 0; second < 5; second++) {
        ph_mint_tend(&mint);
        sync_now(1);
        pass_us(1000000);
    }
    CHECK_EQ_U64(asked, 0);
}

static void test_time_beyond_the_layout(void) {
    struct ph_strict strict;
    set_up();
    wall_ns = AT(UINT64_C(1) << 41);
    ph_host_clock_accept(&page);
    pass_us(0);
    CHECK(ph_mint_exhausted(&mint));
    CHECK_EQ_U64(ph_strict_begin(&mint, &strict, 2, 0, 0), PH_ERR_TIME_EXHAUSTED);
    CHECK_EQ_U64(take(1), 0);
}

int main(void) {
    RUN(test_a_ceiling_is_asked_for_at_half_of_the_window);
    RUN(test_a_slow_disk_is_asked_for_more);
    RUN(test_a_disk_that_becomes_slow);
    RUN(test_a_disk_that_hangs_now_and_then);
    RUN(test_nothing_leaves_above_the_durable_ceiling);
    RUN(test_a_millisecond_s_ticks);
    RUN(test_no_id_of_an_ordinary_pace_waits_for_a_sync);
    RUN(test_a_growing_lead_is_recorded_once_idle_or_not);
    RUN(test_an_owner_answers_at_once);
    RUN(test_after_waits_for_host_time_and_moves_nothing);
    RUN(test_after_beyond_the_bound_is_refused_at_once);
    RUN(test_a_stand_in_waits_before_and_after);
    RUN(test_a_sibling_s_tick_comes_from_its_position);
    RUN(test_nothing_is_lent_by_one_that_closed_or_is_no_part_of_this_start);
    RUN(test_owners_come_and_go_while_siblings_issue);
    RUN(test_a_reserve_for_siblings);
    RUN(test_time_beyond_the_layout);
    return check_report();
}
