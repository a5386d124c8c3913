/* Host time: tables of readings, several processes on one page, writers that die. F18, F19, F21, F43. */
#define _GNU_SOURCE
#include "engine/hosttime.h"

#include <pthread.h>
#include <string.h>

#include "check.h"
#include "ph_atomic.h"
#include "random.h"

#define MS INT64_C(1000000)
#define S (1000 * MS)
#define T0 (INT64_C(1790000000) * S)
#define JUMP_NS (300 * S)
#define SLEW 10

static int64_t realtime_ns, boottime_ns; /* what the source says */
static struct ph_host_page page;

static void read_fake(void *context, int64_t *realtime, int64_t *boottime) {
    (void)context;
    *realtime = realtime_ns;
    *boottime = boottime_ns;
}

static struct ph_host_clock clock_of(uint32_t writer) {
    struct ph_host_clock clock;
    ph_host_clock_init(&clock, &page, writer, (struct ph_clock_source){read_fake, NULL}, JUMP_NS, SLEW);
    return clock;
}

static void start_at(int64_t host_ns) {
    realtime_ns = host_ns;
    boottime_ns = 1000 * S;
    memset(&page, 0, sizeof page);
    struct ph_moment moment = {.host_ns = host_ns, .boottime_ns = boottime_ns, .realtime_ns = realtime_ns};
    ph_host_page_set_moment(&page, &moment);
}

/* elapsed and wall in milliseconds; wall since T0; host: expected, in microseconds since T0. */
struct row {
    int64_t elapsed, wall, host_us, ahead_us, jump_ms;
};

static void run_table(const struct row *rows, size_t count) {
    struct ph_host_clock clock = clock_of(0);
    for (size_t i = 0; i < count; i++) {
        boottime_ns += rows[i].elapsed * MS;
        realtime_ns = T0 + rows[i].wall * MS;
        int64_t host_ns = ph_host_clock_read(&clock);
        CHECK_EQ_U64((host_ns - T0) / 1000, rows[i].host_us);
        CHECK_EQ_U64(clock.ahead_ns / 1000, rows[i].ahead_us);
        CHECK_EQ_U64(clock.jump_ns / MS, rows[i].jump_ms);
    }
}

static void test_follows_the_wall_clock(void) {
    static const struct row rows[] = {
        {0, 0, 0, 0, 0}, {5, 5, 5000, 0, 0}, {5, 12, 12000, 0, 0}, {100000, 100012, 100012000, 0, 0}};
    start_at(T0);
    run_table(rows, 4);
}

static void test_a_step_back_is_gone_through_more_slowly(void) {
    static const struct row rows[] = {
        {0, 0, 0, 0, 0},
        {1000, -99000, 990000, 99990000, 0},      /* 1 % slower from here on */
        {9000, -90000, 9900000, 99900000, 0},     /* 10 s after the step, 100 ms less */
        {990000, 900000, 990000000, 90000000, 0}, /* the lead shrinks by 1 % of the time */
        {9000000, 9900000, 9900000000, 0, 0},     /* they have met */
        {1000, 9901000, 9901000000, 0, 0}};       /* and it follows again */
    start_at(T0);
    run_table(rows, 6);
}

static void test_a_jump_is_not_followed(void) {
    static const struct row rows[] = {{1000, 300000, 300000000, 0, 0},      /* within the bound */
                                      {1000, 602000, 301000000, 0, 301000}, /* beyond it: on by boottime */
                                      {1000, 603000, 302000000, 0, 301000},
                                      {1000, 303500, 303500000, 0, 0}}; /* it has come back */
    start_at(T0);
    run_table(rows, 4);
}

static void test_a_jump_is_followed_once_accepted_by_whoever_reads_next(void) {
    start_at(T0);
    struct ph_host_clock one = clock_of(1), other = clock_of(2);
    realtime_ns = T0 + 3600 * S;
    CHECK_EQ_U64(ph_host_clock_read(&one), T0);
    CHECK_EQ_U64(one.jump_ns, 3600 * S);
    ph_host_clock_accept(&page);
    CHECK_EQ_U64(ph_host_clock_read(&other), T0 + 3600 * S);
    CHECK_EQ_U64(ph_host_clock_read(&one), T0 + 3600 * S);
    CHECK_EQ_U64(one.jump_ns, 0);
    realtime_ns = T0 + 7200 * S; /* it was good for one jump */
    CHECK_EQ_U64(ph_host_clock_read(&one), T0 + 3600 * S);
}

/* A jump of 3 s for each of 200 steps is followed, as the bound allows; a strobing clock adds nothing up. */
static int torn_readings; /* so many readings from now on are cut in two by a pause */

static void read_torn(void *context, int64_t *realtime, int64_t *boottime) {
    read_fake(context, realtime, boottime);
    if (torn_readings > 0) {
        torn_readings--;
        boottime_ns += 40 * MS;
        realtime_ns += 40 * MS;
        *boottime = boottime_ns;
    }
}

/* Who loses the processor between the two clocks sees no step, and host time does not lead the wall clock for it. */
static void test_a_reading_that_is_cut_in_two_is_repeated(void) {
    start_at(T0);
    struct ph_host_clock clock = clock_of(0);
    clock.source.read = read_torn;
    ph_host_clock_read(&clock);
    for (int i = 0; i < 20; i++) {
        boottime_ns += 3 * MS;
        realtime_ns += 3 * MS;
        torn_readings = i % 3;
        int64_t host_ns = ph_host_clock_read(&clock); /* moves the clocks on while it is cut */
        CHECK_EQ_U64(host_ns, realtime_ns);
        CHECK_EQ_U64(clock.ahead_ns, 0);
    }
    CHECK_EQ_U64(clock.steps_back, 0);
    boottime_ns += 3 * MS;
    realtime_ns -= 500 * MS;
    ph_host_clock_read(&clock);
    CHECK_EQ_U64(clock.steps_back, 1); /* a step is one */
}

static void test_strobing_clocks(void) {
    start_at(T0);
    struct ph_host_clock clock = clock_of(0);
    for (int i = 0; i < 1000; i++) {
        realtime_ns = T0 + (i % 2 ? 3 * S : 0);
        boottime_ns = 1000 * S + (i % 3 ? 0 : i * 1000); /* to and fro */
        int64_t host_ns = ph_host_clock_read(&clock);
        CHECK(host_ns >= T0 && host_ns <= T0 + 3 * S + 1000 * 1000);
    }
    CHECK(clock.steps_back > 400);
}

static void test_siblings_share_one_time(void) {
    start_at(T0);
    struct ph_host_clock one = clock_of(1), other = clock_of(2);
    realtime_ns = T0 + 10 * MS;
    int64_t host_ns = ph_host_clock_read(&one);
    realtime_ns = T0 - 3600 * S; /* the other one has not seen the time before */
    boottime_ns += 10 * MS;
    CHECK(ph_host_clock_read(&other) / MS >= host_ns / MS);
    boottime_ns += 1 * S;
    host_ns = ph_host_clock_read(&other);
    CHECK_EQ_U64((host_ns - T0) / MS, 10 + 9 + 990);
    CHECK_EQ_U64(ph_host_clock_read(&one), host_ns);
}

/* Half a moment in the entry of a writer that died changes nothing, and its successor writes over it. */
static void test_a_writer_that_dies_is_not_seen(void) {
    start_at(T0);
    struct ph_host_clock one = clock_of(1), other = clock_of(2);
    for (int i = 1; i < 10; i++) {
        realtime_ns += 10 * MS;
        boottime_ns += 10 * MS;
        ph_host_clock_read(&one);
        uint64_t current = page.current & 0xffff;
        page.moments[current == 2 ? 3 : 2].host_ns = T0 + 1000 * S;
        CHECK_EQ_U64(ph_host_clock_read(&other), realtime_ns);
        CHECK_EQ_U64(ph_host_clock_read(&one), realtime_ns);
    }
}

/* --- threads as processes: the clock moves under them, and nobody ever sees an earlier millisecond than another did */

#define THREADS 4

static uint64_t shared_realtime, shared_boottime, highest_ms, wrong;

static void read_shared(void *context, int64_t *realtime, int64_t *boottime) {
    (void)context;
    *realtime = (int64_t)ph_load_acquire(&shared_realtime);
    *boottime = (int64_t)ph_load_acquire(&shared_boottime);
}

static void *reader(void *argument) {
    struct ph_host_clock clock;
    struct random random = {(uint64_t)(uintptr_t)argument};
    ph_host_clock_init(&clock, &page, (uint32_t)(uintptr_t)argument, (struct ph_clock_source){read_shared, NULL},
                       JUMP_NS, SLEW);
    for (int i = 0; i < 20000; i++) {
        if (random_chance(&random, 8)) { /* time passes, and the clock is set */
            ph_store_release(&shared_boottime, ph_load_acquire(&shared_boottime) + random_below(&random, 600000));
            int64_t step = random_chance(&random, 50) ? random_between(&random, -20 * MS, 5 * MS) : 300000;
            ph_store_release(&shared_realtime, ph_load_acquire(&shared_realtime) + (uint64_t)step);
        }
        uint64_t seen_ms = ph_load_seq_cst(&highest_ms);
        uint64_t ms = (uint64_t)(ph_host_clock_read(&clock) / MS);
        if (ms < seen_ms) {
            ph_store_relaxed(&wrong, 1);
        }
        for (uint64_t highest = seen_ms; ms > highest && !ph_exchange_if(&highest_ms, highest, ms);) {
            highest = ph_load_seq_cst(&highest_ms);
        }
    }
    return NULL;
}

static void test_no_reader_is_behind_another(void) {
    pthread_t threads[THREADS];
    start_at(T0);
    shared_realtime = (uint64_t)T0;
    shared_boottime = (uint64_t)boottime_ns;
    highest_ms = wrong = 0;
    for (uintptr_t i = 0; i < THREADS; i++) {
        REQUIRE(pthread_create(&threads[i], NULL, reader, (void *)(i + 1)) == 0);
    }
    for (int i = 0; i < THREADS; i++) {
        pthread_join(threads[i], NULL);
    }
    CHECK_EQ_U64(wrong, 0);
    CHECK(highest_ms > (uint64_t)(T0 / MS));
}

/* A machine may have slept for years. */
static void test_a_long_sleep(void) {
    CHECK_EQ_U64(ph_slewed(5, INT64_C(1) << 61, 500), (INT64_C(1) << 60) + 5);
    CHECK_EQ_U64(ph_slewed(T0, 1000 * S, SLEW), T0 + 990 * S);
}

static void test_an_unknown_boot_is_no_boot(void) {
    uint8_t unknown[16] = {0}, one[16] = {1}, other[16] = {2};
    CHECK(ph_same_boot(one, one));
    CHECK(!ph_same_boot(one, other));
    CHECK(!ph_same_boot(unknown, unknown));
}

static void test_the_system_s_clocks(void) {
    int64_t offset_ns = 3600 * S, wall, wall_with_offset, boottime;
    ph_clock_read_system(NULL, &wall, &boottime);
    ph_clock_read_system(&offset_ns, &wall_with_offset, &boottime);
    CHECK(wall_with_offset - wall >= offset_ns && wall_with_offset - wall < offset_ns + 60 * S);
    CHECK(boottime > 0);
}

int main(void) {
    RUN(test_follows_the_wall_clock);
    RUN(test_a_step_back_is_gone_through_more_slowly);
    RUN(test_a_jump_is_not_followed);
    RUN(test_a_jump_is_followed_once_accepted_by_whoever_reads_next);
    RUN(test_a_reading_that_is_cut_in_two_is_repeated);
    RUN(test_strobing_clocks);
    RUN(test_siblings_share_one_time);
    RUN(test_a_writer_that_dies_is_not_seen);
    RUN(test_no_reader_is_behind_another);
    RUN(test_a_long_sleep);
    RUN(test_an_unknown_boot_is_no_boot);
    RUN(test_the_system_s_clocks);
    return check_report();
}
