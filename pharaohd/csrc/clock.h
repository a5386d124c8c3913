/*
 * Virtual time: what the ids' milliseconds are taken from. `now = max(realtime, last + elapsed boottime)`.
 *
 * *Natural* time is that, and nothing else; virtual time may besides be raised above it (an `after` that was accepted).
 * What may be asked for is bounded against natural time, so that nobody can push the clock on step by step.
 *
 * Invariants
 * - Neither ever goes back, whatever the two clocks do.
 * - While it is ahead of the wall clock it runs slower by `slew_per_mille` until they meet.
 * - A forward jump of the wall clock against boottime beyond `jump_ns_max` is not followed: it is reported in `jump_ns`
 *   until the wall clock comes back or ph_clock_accept() is called. So a wrong future time is never made durable.
 * Uniqueness does not rest on any of this: that is the ceiling's work.
 */
#ifndef PH_CLOCK_H
#define PH_CLOCK_H

#include <stdint.h>
#include <time.h>

struct ph_clock_source {
    /* Both in nanoseconds: CLOCK_REALTIME since 1970, CLOCK_BOOTTIME since boot. */
    void (*read)(void *context, int64_t *realtime_ns, int64_t *boottime_ns);
    void *context;
};

/* What is kept in the Obelisk, so that a restart within one boot still knows a jump for a jump. */
struct ph_clock_sample {
    int64_t virtual_ns;
    int64_t realtime_ns;
    int64_t boottime_ns;
    uint8_t boot_id[16];
};

struct ph_clock {
    struct ph_clock_source source;
    int64_t jump_ns_max;
    int64_t slew_per_mille;

    int64_t natural_ns; /* since 1970 */
    int64_t virtual_ns; /* since 1970; never below natural_ns */
    int64_t realtime_ns;
    int64_t boottime_ns; /* the highest seen */

    int64_t ahead_ns;    /* virtual time minus wall clock, when positive */
    int64_t jump_ns;     /* a forward jump that is not followed, or 0 */
    uint64_t steps_back; /* backward steps of the wall clock of more than a millisecond */
    int accept_jump;
};

/* For durations and deadlines: nobody sets this one. */
static inline uint64_t ph_monotonic_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * UINT64_C(1000000000) + (uint64_t)now.tv_nsec;
}

/* The system's clocks, plus a signed offset in nanoseconds read from *context when it is not NULL (for tests). */
void ph_clock_read_system(void *context, int64_t *realtime_ns, int64_t *boottime_ns);

void ph_clock_init(struct ph_clock *clock, struct ph_clock_source source, int64_t jump_ns_max, int64_t slew_per_mille);

/* Takes up a predecessor's sample; call once, before the first reading. Samples of another boot are of no use. */
void ph_clock_resume(struct ph_clock *clock, const struct ph_clock_sample *sample, const uint8_t boot_id[16]);

/* Reads the source and moves virtual time on; returns it, in nanoseconds since 1970. */
int64_t ph_clock_advance(struct ph_clock *clock);

/* Natural time is at least this: the ceiling that a predecessor left. Call once, before the first reading. */
void ph_clock_start_above(struct ph_clock *clock, int64_t natural_ns);

/* Virtual time is at least this from now on. */
void ph_clock_raise(struct ph_clock *clock, int64_t virtual_ns);

/* The operator says that the wall clock is right: the next reading follows it. */
void ph_clock_accept(struct ph_clock *clock);

void ph_clock_sample(const struct ph_clock *clock, const uint8_t boot_id[16], struct ph_clock_sample *sample);

#endif
