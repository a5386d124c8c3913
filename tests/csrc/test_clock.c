/*
 * Virtual time under a wall clock and a boot clock that do whatever a test says (F18, F19, F20, F21, F22).
 *
 * Invariants, checked after every single reading
 * - Natural and virtual time never go back, and virtual time is never behind natural time.
 * - Virtual time moves on with boottime, slower by the slew at most: a backward step is no outage.
 * - Natural time gets ahead of (natural time before + elapsed boottime) only by following a wall clock that is no more
 *   than the bound ahead of that, or that the operator accepted.
 * - `jump_ns` is set exactly while the wall clock is further ahead than the bound.
 * - While ahead of the wall clock, it runs slower than boottime.
 */
#include <string.h>

#include "check.h"
#include "clock.h"
#include "issuer.h"
#include "random.h"

#define US INT64_C(1000)
#define MS INT64_C(1000000)
#define SECOND INT64_C(1000000000)
#define HOUR (3600 * SECOND)
#define YEAR (8766 * HOUR)
#define EPOCH_MS INT64_C(1735689600000)
#define START_NS (EPOCH_MS * MS + YEAR)
#define JUMP_NS_MAX (300 * SECOND)
#define SLEW 10

static const uint8_t this_boot[16] = {1};
static const uint8_t other_boot[16] = {2};

/* The machine: its two clocks. */
struct machine {
    int64_t realtime_ns;
    int64_t boottime_ns;
};

static void read_machine(void *context, int64_t *realtime_ns, int64_t *boottime_ns) {
    const struct machine *machine = context;
    *realtime_ns = machine->realtime_ns;
    *boottime_ns = machine->boottime_ns;
}

static struct machine new_machine(void) { return (struct machine){START_NS, HOUR}; }

static struct ph_clock new_clock(struct machine *machine) {
    struct ph_clock clock;
    ph_clock_init(&clock, (struct ph_clock_source){read_machine, machine}, JUMP_NS_MAX, SLEW);
    return clock;
}

static void pass(struct machine *machine, int64_t ns) {
    machine->realtime_ns += ns;
    machine->boottime_ns += ns;
}

static int64_t least_progress(const struct ph_clock *clock, int64_t elapsed_ns) {
    return (int64_t)((__int128)elapsed_ns * (1000 - clock->slew_per_mille) / 1000);
}

/* Reads the clock once, checks every invariant against the clock as it was before, and returns virtual time. */
static int64_t advance(struct ph_clock *clock) {
    struct ph_clock was = *clock;
    int64_t now_ns = ph_clock_advance(clock);
    int64_t realtime_ns;
    int64_t boottime_ns;
    clock->source.read(clock->source.context, &realtime_ns, &boottime_ns);
    int64_t elapsed_ns = boottime_ns > was.boottime_ns ? boottime_ns - was.boottime_ns : 0;
    int64_t jump_ns = realtime_ns - (was.natural_ns + elapsed_ns);
    int followed = jump_ns <= was.jump_ns_max || was.accept_jump;

    CHECK(now_ns == clock->virtual_ns);
    CHECK(clock->natural_ns >= was.natural_ns && clock->virtual_ns >= was.virtual_ns);
    CHECK(clock->virtual_ns >= clock->natural_ns);
    CHECK(clock->virtual_ns - was.virtual_ns >= least_progress(&was, elapsed_ns));
    CHECK(clock->natural_ns - was.natural_ns >= least_progress(&was, elapsed_ns));
    CHECK(clock->natural_ns <= was.natural_ns + elapsed_ns || (followed && clock->natural_ns == realtime_ns));
    CHECK(!followed || clock->natural_ns >= realtime_ns);
    CHECK(clock->jump_ns == (followed ? 0 : jump_ns));
    CHECK(clock->ahead_ns == (clock->virtual_ns > realtime_ns ? clock->virtual_ns - realtime_ns : 0));
    if (clock->ahead_ns > 0 && clock->virtual_ns > clock->natural_ns) {
        CHECK(clock->virtual_ns - was.virtual_ns <= least_progress(&was, elapsed_ns) + 1);
    }
    CHECK(!clock->accept_jump);
    return now_ns;
}

static void test_follows_a_good_clock(void) {
    struct machine machine = new_machine();
    struct ph_clock clock = new_clock(&machine);
    for (int i = 0; i < 10000; i++) {
        pass(&machine, i % 7 * 333 * US);
        CHECK(advance(&clock) == machine.realtime_ns);
    }
    CHECK_EQ_U64(clock.steps_back, 0);
    CHECK(clock.ahead_ns == 0 && clock.jump_ns == 0);
}

/* F18, F21: one step of the wall clock, then a minute in steps of a millisecond. */
struct step {
    const char *name;
    int64_t step_ns;
    int followed;
    unsigned steps_back;
};

static const struct step steps[] = {
    {"a leap second, stepped", -SECOND, 0, 1},
    {"5 ms back", -5 * MS, 0, 1},
    {"half a millisecond back", -MS / 2, 0, 0},
    {"an hour back", -HOUR, 0, 1},
    {"to 1970", -START_NS, 0, 1},
    {"a second forth", SECOND, 1, 0},
    {"just within the bound", JUMP_NS_MAX, 1, 0},
    {"just beyond the bound", JUMP_NS_MAX + 1, 0, 0},
    {"8 hours forth", 8 * HOUR, 0, 0},
    {"10 years forth", 10 * YEAR, 0, 0},
    {"200 years forth", 200 * YEAR, 0, 0},
};

static void test_steps(void) {
    for (size_t i = 0; i < sizeof steps / sizeof steps[0]; i++) {
        const struct step *step = &steps[i];
        struct machine machine = new_machine();
        struct ph_clock clock = new_clock(&machine);
        int64_t before_ns = advance(&clock);
        machine.realtime_ns += step->step_ns;
        int64_t after_ns = advance(&clock);
        CHECK(after_ns == (step->followed ? machine.realtime_ns : before_ns));
        for (int ms = 0; ms < 60000; ms++) {
            pass(&machine, MS);
            advance(&clock);
        }
        CHECK_EQ_U64(clock.steps_back, step->steps_back);
        CHECK((clock.jump_ns > 0) == (step->step_ns > JUMP_NS_MAX));
        if (ph_load_relaxed(&check_failed)) {
            fprintf(stderr, "  in: %s\n", step->name);
            return;
        }
    }
}

/* F18, F22: after an hour back, the ids come at the rate of the whole space less the slew. */
static void test_full_rate_through_a_step_back(void) {
    struct machine machine = new_machine();
    struct ph_clock clock = new_clock(&machine);
    struct ph_issuer issuer = {{41, 10, 13, EPOCH_MS}, 7, 0};
    uint64_t issued = 0;
    uint64_t last = 0;
    const uint64_t steps_of_1ms = random_rounds(600000);
    machine.realtime_ns -= HOUR;
    for (uint64_t i = 0; i < steps_of_1ms; i++) {
        pass(&machine, MS);
        uint64_t ms = (uint64_t)(advance(&clock) / MS - EPOCH_MS);
        uint64_t now = ph_tick_of_ms(&issuer.layout, ms);
        uint64_t limit = ph_tick_of_ms(&issuer.layout, ms + 1);
        struct ph_run run = ph_issuer_take(&issuer, now, limit, UINT64_MAX, 8192);
        if (run.count > 0) {
            CHECK(run.first_tick > last);
            last = run.first_tick + run.count - 1;
        }
        issued += run.count;
    }
    CHECK(issued >= steps_of_1ms * 8192 * 98 / 100);
    CHECK(issued <= steps_of_1ms * 8192);
}

static void test_slower_until_they_meet(void) {
    struct machine machine = new_machine();
    struct ph_clock clock = new_clock(&machine);
    machine.realtime_ns -= 10 * SECOND;
    int64_t ahead_ns = 10 * SECOND + 1;
    uint64_t steps_taken = 0;
    while (advance(&clock) > machine.realtime_ns) {
        CHECK(clock.ahead_ns < ahead_ns);
        ahead_ns = clock.ahead_ns;
        pass(&machine, 10 * MS);
        REQUIRE(++steps_taken < 200000);
    }
    /* 10 s at 10 per mille: 1000 s of steps of 10 ms */
    CHECK_EQ_U64(steps_taken, 100000);
    CHECK(clock.virtual_ns == machine.realtime_ns && clock.ahead_ns == 0);
    pass(&machine, MS);
    CHECK(advance(&clock) == machine.realtime_ns);
}

/* F21 */
static void test_strobing(void) {
    struct machine machine = new_machine();
    struct ph_clock clock = new_clock(&machine);
    int64_t start_ns = advance(&clock);
    for (int i = 0; i < 20000; i++) {
        int64_t offset_ns = i % 2 ? 100 * SECOND : -100 * SECOND;
        pass(&machine, MS);
        machine.realtime_ns += offset_ns;
        advance(&clock);
        machine.realtime_ns -= offset_ns;
    }
    /* It has followed the strobe to its greater side once, not on and on. */
    CHECK(clock.virtual_ns - start_ns <= 20 * SECOND + 100 * SECOND);
    CHECK_EQ_U64(clock.steps_back, 10000);
}

/* F21: boottime that regresses moves nothing on twice; time goes on with the wall clock meanwhile. */
static void test_boottime_regressions(void) {
    struct machine machine = new_machine();
    struct ph_clock clock = new_clock(&machine);
    advance(&clock);
    for (int i = 0; i < 10000; i++) {
        pass(&machine, MS);
        machine.boottime_ns -= 50 * SECOND;
        advance(&clock);
        machine.boottime_ns += 50 * SECOND;
        advance(&clock);
        CHECK(clock.virtual_ns <= machine.realtime_ns + MS);
    }
    machine.boottime_ns -= HOUR;
    for (int i = 0; i < 1000; i++) {
        pass(&machine, MS);
        CHECK(advance(&clock) == machine.realtime_ns);
    }
}

/* F20: a machine that slept for years; no arithmetic overflows. */
static void test_long_sleep(void) {
    for (int64_t slew = 1; slew <= 500; slew += 499) {
        struct machine machine = new_machine();
        struct ph_clock clock = new_clock(&machine);
        clock.slew_per_mille = slew;
        machine.realtime_ns -= HOUR;
        advance(&clock);
        pass(&machine, 100 * YEAR);
        CHECK(advance(&clock) == machine.realtime_ns);
    }
}

/* F19 */
static void test_far_future_is_accepted_by_hand_only(void) {
    struct machine machine = new_machine();
    struct ph_clock clock = new_clock(&machine);
    machine.realtime_ns += 8 * HOUR;
    for (int i = 0; i < 1000; i++) {
        pass(&machine, MS);
        CHECK(advance(&clock) == machine.realtime_ns - 8 * HOUR);
        CHECK(clock.jump_ns == 8 * HOUR);
    }
    ph_clock_accept(&clock);
    CHECK(advance(&clock) == machine.realtime_ns);
    CHECK(clock.jump_ns == 0);
    machine.realtime_ns += 8 * HOUR; /* accepted once, not for ever */
    CHECK(advance(&clock) == machine.realtime_ns - 8 * HOUR);
    machine.realtime_ns -= 8 * HOUR; /* it came back by itself */
    pass(&machine, MS);
    CHECK(advance(&clock) == machine.realtime_ns && clock.jump_ns == 0);
}

static void test_accept_without_a_jump_leaves_nothing_behind(void) {
    struct machine machine = new_machine();
    struct ph_clock clock = new_clock(&machine);
    ph_clock_accept(&clock);
    advance(&clock);
    machine.realtime_ns += 8 * HOUR;
    CHECK(advance(&clock) == machine.realtime_ns - 8 * HOUR);
}

static void test_raise(void) {
    struct machine machine = new_machine();
    struct ph_clock clock = new_clock(&machine);
    int64_t start_ns = advance(&clock);
    ph_clock_raise(&clock, start_ns - HOUR);
    CHECK(advance(&clock) == start_ns);
    for (int i = 0; i < 100; i++) {
        ph_clock_raise(&clock, clock.natural_ns + 10 * SECOND);
    }
    CHECK(advance(&clock) == start_ns + 10 * SECOND);
    CHECK(clock.natural_ns == start_ns); /* what may be asked for does not grow with it */
    pass(&machine, SECOND);
    CHECK(advance(&clock) == start_ns + 10 * SECOND + SECOND * (1000 - SLEW) / 1000);
    CHECK(clock.natural_ns == machine.realtime_ns);
}

/* F19: what a start makes of a predecessor's sample. */
struct resumption {
    const char *name;
    const uint8_t *boot;
    int64_t boottime_passed_ns;
    int64_t step_ns;
    int jump_known;
};

static const struct resumption resumptions[] = {
    {"same boot, a good clock", this_boot, SECOND, 0, 0},
    {"same boot, a jump within the bound", this_boot, SECOND, JUMP_NS_MAX, 0},
    {"same boot, a jump beyond it", this_boot, SECOND, JUMP_NS_MAX + 1, 1},
    {"same boot, ten years", this_boot, 100 * HOUR, 10 * YEAR, 1},
    {"same boot, a step back", this_boot, SECOND, -HOUR, 0},
    {"another boot: nothing to compare with", other_boot, SECOND, 10 * YEAR, 0},
    {"another boot whose boottime is less", other_boot, -HOUR / 2, 10 * YEAR, 0},
};

static void test_resume(void) {
    for (size_t i = 0; i < sizeof resumptions / sizeof resumptions[0]; i++) {
        const struct resumption *resumption = &resumptions[i];
        struct machine machine = new_machine();
        struct ph_clock clock = new_clock(&machine);
        struct ph_clock_sample sample;
        advance(&clock);
        ph_clock_sample(&clock, this_boot, &sample);
        pass(&machine, resumption->boottime_passed_ns);
        int64_t expected_ns = machine.realtime_ns;
        machine.realtime_ns += resumption->step_ns;
        clock = new_clock(&machine);
        ph_clock_resume(&clock, &sample, resumption->boot);
        int64_t now_ns = advance(&clock);
        CHECK(now_ns == (resumption->jump_known ? expected_ns : machine.realtime_ns));
        CHECK((clock.jump_ns != 0) == resumption->jump_known);
        if (ph_load_relaxed(&check_failed)) {
            fprintf(stderr, "  in: %s\n", resumption->name);
            return;
        }
    }
}

/* Restarts: at least the ceiling, which is natural time from then on; the wall clock is met again by running slower. */
static void test_start_above(void) {
    struct machine machine = new_machine();
    struct ph_clock clock = new_clock(&machine);
    ph_clock_start_above(&clock, START_NS - HOUR);
    CHECK(clock.virtual_ns == START_NS && clock.natural_ns == START_NS);
    ph_clock_start_above(&clock, START_NS + 250 * MS);
    CHECK(advance(&clock) == START_NS + 250 * MS && clock.natural_ns == START_NS + 250 * MS);
    CHECK(clock.ahead_ns == 250 * MS);
}

/* F19: a chain of workers, each killed or stopped in the middle of a jump, lets it in at no link. */
static void test_restart_chain_never_lets_a_jump_in(void) {
    struct random random = random_start();
    for (uint64_t round = 0; round < random_rounds(200); round++) {
        struct machine machine = new_machine();
        struct ph_clock clock = new_clock(&machine);
        struct ph_clock_sample sample;
        int64_t ceiling_ns = advance(&clock) + 250 * MS;
        ph_clock_sample(&clock, this_boot, &sample);
        int64_t jump_ns = random_between(&random, JUMP_NS_MAX + SECOND, 20 * YEAR);
        int64_t true_ns = machine.realtime_ns;
        machine.realtime_ns += jump_ns;
        for (int link = 0; link < 50; link++) {
            int64_t alive_ns = random_between(&random, 0, 10 * SECOND);
            pass(&machine, alive_ns);
            true_ns += alive_ns;
            int64_t now_ns = advance(&clock);
            if (random_chance(&random, 2)) {
                ph_clock_sample(&clock, this_boot, &sample);
                ceiling_ns = now_ns + 250 * MS;
            }
            CHECK(clock.jump_ns > 0 && sample.virtual_ns <= now_ns);
            /* each restart may add its window, and nothing else */
            CHECK(now_ns <= true_ns + 250 * MS * (link + 1));
            pass(&machine, 50 * MS);
            true_ns += 50 * MS;
            clock = new_clock(&machine);
            ph_clock_resume(&clock, &sample, this_boot);
            ph_clock_start_above(&clock, ceiling_ns);
            CHECK(clock.virtual_ns >= ceiling_ns);
        }
    }
}

static void random_move(struct random *random, struct machine *machine, struct ph_clock *clock) {
    static const int64_t scales[] = {1, 100, US, MS, SECOND, 400 * SECOND, HOUR, YEAR};
    int64_t scale = scales[random_below(random, sizeof scales / sizeof scales[0])];
    pass(machine, random_between(random, 0, 3 * MS));
    switch (random_below(random, 16)) {
    case 0:
        machine->realtime_ns += random_between(random, -scale, scale);
        break;
    case 1:
        machine->boottime_ns -= random_between(random, 0, scale < HOUR ? scale : HOUR);
        break;
    case 2:
        pass(machine, random_between(random, 0, scale));
        break;
    case 3:
        ph_clock_raise(clock, clock->natural_ns + random_between(random, -10 * SECOND, 10 * SECOND));
        break;
    case 4:
        if (random_chance(random, 50)) {
            ph_clock_accept(clock);
        }
        break;
    case 5: /* back near the virtual time */
        machine->realtime_ns = clock->virtual_ns + random_between(random, -scale, scale) / 1000;
        break;
    default:
        break;
    }
    /* what a clock can show at all: no more than 150 years around the start */
    if (machine->realtime_ns < 0 || machine->realtime_ns > START_NS + 150 * YEAR) {
        machine->realtime_ns = START_NS;
    }
}

static void test_random_walks(void) {
    struct random random = random_start();
    for (uint64_t walk = 0; walk < random_rounds(100) && !ph_load_relaxed(&check_failed); walk++) {
        struct machine machine = new_machine();
        struct ph_clock clock = new_clock(&machine);
        clock.slew_per_mille = random_between(&random, 1, 500);
        clock.jump_ns_max = random_between(&random, SECOND, HOUR);
        for (int i = 0; i < 5000; i++) {
            random_move(&random, &machine, &clock);
            advance(&clock);
            if (clock.virtual_ns > START_NS + 200 * YEAR) {
                break;
            }
        }
    }
}

static void test_system_clock_with_an_offset(void) {
    int64_t offset_ns = 0;
    int64_t realtime_ns;
    int64_t shifted_ns;
    int64_t boottime_ns;
    int64_t later_ns;
    ph_clock_read_system(NULL, &realtime_ns, &boottime_ns);
    offset_ns = -HOUR;
    ph_clock_read_system(&offset_ns, &shifted_ns, &later_ns);
    CHECK(shifted_ns + HOUR >= realtime_ns && shifted_ns < realtime_ns);
    CHECK(boottime_ns > 0 && later_ns >= boottime_ns);
    CHECK(realtime_ns > START_NS - YEAR);
}

int main(void) {
    RUN(test_follows_a_good_clock);
    RUN(test_steps);
    RUN(test_full_rate_through_a_step_back);
    RUN(test_slower_until_they_meet);
    RUN(test_strobing);
    RUN(test_boottime_regressions);
    RUN(test_long_sleep);
    RUN(test_far_future_is_accepted_by_hand_only);
    RUN(test_accept_without_a_jump_leaves_nothing_behind);
    RUN(test_raise);
    RUN(test_resume);
    RUN(test_start_above);
    RUN(test_restart_chain_never_lets_a_jump_in);
    RUN(test_random_walks);
    RUN(test_system_clock_with_an_offset);
    return check_report();
}
