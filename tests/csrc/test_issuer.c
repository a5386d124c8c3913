/*
 * The issuer under random takes, the end of the layout, and the floor that an `after` sets (F1, F22).
 *
 * Invariants
 * - Runs come in increasing order and share no tick; each is below the ceiling and the limit, and at or above the floor.
 * - A run never crosses a millisecond, and never is longer than asked for.
 * - What can be had is given: count 0 only when there is no tick at all between floor and end.
 */
#include <pthread.h>

#include "check.h"
#include "engine/issuer.h"
#include "random.h"

static const struct ph_layout layouts[] = {{41, 10, 13, 0}, {41, 9, 14, 0},  {40, 10, 14, 0},
                                           {38, 10, 16, 0}, {44, 10, 10, 0}, {44, 4, 16, 0}};
#define LAYOUTS (sizeof layouts / sizeof layouts[0])

/* It stands for the position in the host's page: of one issuer at a time. */
static uint64_t position;

static struct ph_issuer new_issuer(const struct ph_layout *layout, uint64_t next_tick) {
    position = next_tick;
    return (struct ph_issuer){*layout, 5, &position};
}

static uint64_t lesser(uint64_t a, uint64_t b) { return a < b ? a : b; }
static uint64_t greater(uint64_t a, uint64_t b) { return a > b ? a : b; }

/* One take, checked against what it may and must give. */
static struct ph_run take(struct ph_issuer *issuer, uint64_t floor, uint64_t limit, uint64_t ceiling, uint64_t count) {
    uint64_t before = ph_issuer_next(issuer);
    struct ph_run run = ph_issuer_take(issuer, floor, limit, ceiling, count);
    uint64_t start = greater(before, floor);
    uint64_t ms_end = ph_tick_of_ms(&issuer->layout, ph_ms_of_tick(&issuer->layout, start) + 1);
    uint64_t end = lesser(lesser(limit, ceiling), ms_end);
    uint64_t expected = start < end ? lesser(end - start, count) : 0;
    CHECK_EQ_U64(run.count, expected);
    if (run.count == 0) {
        CHECK(ph_issuer_next(issuer) >= before);
        return run;
    }
    uint64_t last = run.first_tick + run.count - 1;
    CHECK_EQ_U64(run.first_tick, start);
    CHECK(last < ceiling && last < limit);
    CHECK_EQ_U64(ph_ms_of_tick(&issuer->layout, last), ph_ms_of_tick(&issuer->layout, run.first_tick));
    CHECK_EQ_U64(ph_issuer_next(issuer), last + 1);
    uint64_t first_id = ph_id_of_tick(&issuer->layout, issuer->coordinator, run.first_tick);
    CHECK_EQ_U64(ph_id_of_tick(&issuer->layout, issuer->coordinator, last), first_id + run.count - 1);
    return run;
}

static void test_random_takes(void) {
    struct random random = random_start();
    for (uint64_t round = 0; round < random_rounds(300) && !ph_load_relaxed(&check_failed); round++) {
        const struct ph_layout *layout = &layouts[random_below(&random, LAYOUTS)];
        uint64_t sequences = ph_sequence_count(layout);
        struct ph_issuer issuer = new_issuer(layout, random_below(&random, 1000 * sequences));
        uint64_t now_ms = ph_ms_of_tick(layout, ph_issuer_next(&issuer));
        uint64_t ceiling = ph_issuer_next(&issuer);
        uint64_t end_of_last = ph_issuer_next(&issuer);
        for (int i = 0; i < 2000; i++) {
            now_ms += random_chance(&random, 4);
            if (random_chance(&random, 20)) {
                ceiling = greater(ceiling, ph_issuer_next(&issuer) + random_below(&random, 5 * sequences));
            }
            uint64_t floor = random_chance(&random, 8) ? ph_issuer_next(&issuer) + random_below(&random, sequences)
                                                       : ph_tick_of_ms(layout, now_ms - lesser(now_ms, 3));
            uint64_t limit = ph_tick_of_ms(layout, now_ms + 1) - random_below(&random, sequences / 4);
            uint64_t count = random_below(&random, random_chance(&random, 10) ? UINT64_MAX : 100);
            struct ph_run run = take(&issuer, floor, limit, ceiling, count);
            if (run.count > 0) {
                CHECK(run.first_tick >= end_of_last);
                end_of_last = run.first_tick + run.count;
            }
        }
    }
}

/* F22 */
static void test_spent_millisecond_waits_for_the_next(void) {
    struct ph_issuer issuer = new_issuer(&layouts[0], 0);
    for (uint64_t ms = 100; ms < 110; ms++) {
        uint64_t now = ph_tick_of_ms(&layouts[0], ms);
        uint64_t limit = ph_tick_of_ms(&layouts[0], ms + 1);
        CHECK_EQ_U64(take(&issuer, now, limit, UINT64_MAX, 8000).first_tick, now);
        CHECK_EQ_U64(take(&issuer, now, limit, UINT64_MAX, 8000).count, 192);
        CHECK_EQ_U64(take(&issuer, now, limit, UINT64_MAX, 1).count, 0);
        CHECK_EQ_U64(take(&issuer, now, limit, UINT64_MAX, 8192).count, 0);
    }
}

static void test_ceiling_stops_it_in_the_middle_of_a_millisecond(void) {
    struct ph_issuer issuer = new_issuer(&layouts[0], 1000);
    CHECK_EQ_U64(take(&issuer, 0, 8192, 1003, 8192).count, 3);
    CHECK_EQ_U64(take(&issuer, 0, 8192, 1003, 1).count, 0);
    CHECK_EQ_U64(take(&issuer, 0, 8192, 1004, 8192).first_tick, 1003);
    CHECK_EQ_U64(take(&issuer, 0, 8192, 999, 1).count, 0); /* a ceiling below what was issued: nothing, and no harm */
    CHECK_EQ_U64(ph_issuer_next(&issuer), 1004);
}

static void test_end_of_the_layout(void) {
    for (size_t i = 0; i < LAYOUTS; i++) {
        uint64_t end = ph_tick_end(&layouts[i]);
        struct ph_issuer issuer = new_issuer(&layouts[i], end - 2);
        struct ph_run run = take(&issuer, 0, end, end, 8192);
        CHECK_EQ_U64(run.count, 2);
        uint64_t last_id = ph_id_of_tick(&layouts[i], issuer.coordinator, run.first_tick + 1);
        CHECK_EQ_U64(ph_tick_of_id(&layouts[i], last_id), end - 1);
        CHECK_EQ_U64(ph_coordinator_of_id(&layouts[i], last_id), issuer.coordinator);
        CHECK_EQ_U64(take(&issuer, 0, end, end, 1).count, 0);
        CHECK_EQ_U64(ph_issuer_next(&issuer), end);
    }
}

/* The least of this coordinator's ids that is greater than `after`. */
static void check_floor(struct ph_issuer *issuer, uint64_t after) {
    uint64_t floor = ph_floor_after(&issuer->layout, issuer->coordinator, after);
    uint64_t ms = ph_ms_of_tick(&issuer->layout, floor);
    if (ms >> issuer->layout.ms_bits != 0) { /* beyond the layout: refused, for nothing greater exists */
        CHECK_EQ_U64(ph_ms_of_tick(&issuer->layout, ph_tick_of_id(&issuer->layout, after)), ms - 1);
        return;
    }
    CHECK(ph_id_of_tick(&issuer->layout, issuer->coordinator, floor) > after);
    if (floor > 0) {
        CHECK(ph_id_of_tick(&issuer->layout, issuer->coordinator, floor - 1) <= after);
    }
}

static void test_floor_after(void) {
    struct random random = random_start();
    for (size_t i = 0; i < LAYOUTS; i++) {
        struct ph_issuer issuer = new_issuer(&layouts[i], 0);
        uint64_t last = ph_sequence_count(&layouts[i]) - 1;
        uint64_t sequences[] = {0, 1, last - 1, last};
        for (uint32_t other = 3; other < 8; other++) {
            for (size_t s = 0; s < 4; s++) {
                uint64_t tick = ph_tick_of_ms(&layouts[i], 123456) | sequences[s];
                check_floor(&issuer, ph_id_of_tick(&layouts[i], other, tick));
            }
        }
        for (uint64_t round = 0; round < random_rounds(20000); round++) {
            issuer.coordinator = (uint32_t)random_below(&random, 1u << layouts[i].coordinator_bits);
            check_floor(&issuer, random_u64(&random) >> random_below(&random, 64));
        }
        check_floor(&issuer, 0);
        check_floor(&issuer, UINT64_MAX);
    }
}

/* An owner and its siblings at one position, while it is closed and opened: no tick is two threads', none is lost. */
enum { TAKERS = 3, TAKES = 20000 };

static struct ph_issuer shared;
static uint8_t taken[TAKERS * TAKES];
static uint64_t gates; /* how often it was closed */

static void *take_many(void *argument) {
    for (int i = 0; i < TAKES;) {
        struct ph_run run = ph_issuer_take(&shared, 0, UINT64_MAX, TAKERS * TAKES, 1);
        for (uint64_t tick = run.first_tick; tick < run.first_tick + run.count; tick++, i++) {
            CHECK(!__atomic_exchange_n(&taken[tick], 1, __ATOMIC_RELAXED));
        }
        if (argument != NULL && i % 100 == 0 && run.count > 0) {
            uint64_t last = ph_issuer_close(&shared);
            for (int looks = 0; looks < 50; looks++) {
                CHECK_EQ_U64(ph_load_seq_cst(shared.next_tick), last | PH_POSITION_CLOSED);
            }
            ph_issuer_open(&shared);
            gates++;
        }
    }
    return NULL;
}

static void test_many_takers_share_one_position(void) {
    pthread_t threads[TAKERS];
    shared = new_issuer(&layouts[0], 0);
    for (size_t i = 0; i < TAKERS; i++) {
        CHECK(pthread_create(&threads[i], NULL, take_many, i == 0 ? &gates : NULL) == 0);
    }
    for (size_t i = 0; i < TAKERS; i++) {
        pthread_join(threads[i], NULL);
    }
    CHECK_EQ_U64(ph_issuer_next(&shared), TAKERS * TAKES);
    CHECK(gates > 0);
}

static void test_id_and_tick_are_in_the_same_order(void) {
    struct random random = random_start();
    for (uint64_t round = 0; round < random_rounds(20000); round++) {
        const struct ph_layout *layout = &layouts[random_below(&random, LAYOUTS)];
        uint64_t a = random_below(&random, ph_tick_end(layout));
        uint64_t b = random_chance(&random, 2) ? a + 1 : random_below(&random, ph_tick_end(layout));
        if (b == ph_tick_end(layout)) {
            continue;
        }
        CHECK_EQ_U64(ph_tick_of_id(layout, ph_id_of_tick(layout, 3, a)), a);
        CHECK((a < b) == (ph_id_of_tick(layout, 3, a) < ph_id_of_tick(layout, 3, b)));
    }
}

int main(void) {
    RUN(test_random_takes);
    RUN(test_spent_millisecond_waits_for_the_next);
    RUN(test_ceiling_stops_it_in_the_middle_of_a_millisecond);
    RUN(test_end_of_the_layout);
    RUN(test_floor_after);
    RUN(test_many_takers_share_one_position);
    RUN(test_id_and_tick_are_in_the_same_order);
    return check_report();
}
