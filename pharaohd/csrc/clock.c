#define _GNU_SOURCE
#include "clock.h"

#include <string.h>
#include <time.h>

#define STEP_NS 1000000

static int64_t read_ns(clockid_t which) {
    struct timespec now;
    clock_gettime(which, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

void ph_clock_read_system(void *context, int64_t *realtime_ns, int64_t *boottime_ns) {
    const volatile int64_t *offset_ns = context;
    *realtime_ns = read_ns(CLOCK_REALTIME) + (offset_ns != NULL ? *offset_ns : 0);
    *boottime_ns = read_ns(CLOCK_BOOTTIME);
}

void ph_clock_init(struct ph_clock *clock, struct ph_clock_source source, int64_t jump_ns_max, int64_t slew_per_mille) {
    memset(clock, 0, sizeof *clock);
    clock->source = source;
    clock->jump_ns_max = jump_ns_max;
    clock->slew_per_mille = slew_per_mille;
    source.read(source.context, &clock->realtime_ns, &clock->boottime_ns);
    clock->natural_ns = clock->virtual_ns = clock->realtime_ns;
}

void ph_clock_resume(struct ph_clock *clock, const struct ph_clock_sample *sample, const uint8_t boot_id[16]) {
    if (memcmp(sample->boot_id, boot_id, 16) != 0 || sample->boottime_ns > clock->boottime_ns) {
        return;
    }
    int64_t expected_ns = sample->virtual_ns + (clock->boottime_ns - sample->boottime_ns);
    if (clock->realtime_ns - expected_ns > clock->jump_ns_max) {
        clock->natural_ns = clock->virtual_ns = expected_ns;
        clock->jump_ns = clock->realtime_ns - expected_ns;
    }
}

static int64_t later(int64_t a, int64_t b) { return a > b ? a : b; }

/* Where a time that is ahead of its mark gets to: on, but slower. */
static int64_t slewed(const struct ph_clock *clock, int64_t from_ns, int64_t elapsed_ns) {
    /* wide: a machine may have slept for a year */
    return from_ns + elapsed_ns - (int64_t)((__int128)elapsed_ns * clock->slew_per_mille / 1000);
}

int64_t ph_clock_advance(struct ph_clock *clock) {
    int64_t realtime_ns;
    int64_t boottime_ns;
    clock->source.read(clock->source.context, &realtime_ns, &boottime_ns);
    int64_t elapsed_ns = later(boottime_ns - clock->boottime_ns, 0);
    if (realtime_ns < clock->realtime_ns + elapsed_ns - STEP_NS) {
        clock->steps_back++;
    }
    clock->realtime_ns = realtime_ns;
    clock->boottime_ns += elapsed_ns; /* its highest reading: to and fro, it would count each forth as elapsed */

    int64_t jump_ns = realtime_ns - (clock->natural_ns + elapsed_ns);
    if (jump_ns > clock->jump_ns_max && !clock->accept_jump) {
        clock->natural_ns += elapsed_ns;
        clock->jump_ns = jump_ns;
    } else {
        clock->natural_ns = later(realtime_ns, slewed(clock, clock->natural_ns, elapsed_ns));
        clock->jump_ns = 0;
        clock->accept_jump = 0;
    }
    clock->virtual_ns = later(clock->natural_ns, slewed(clock, clock->virtual_ns, elapsed_ns));
    clock->ahead_ns = later(clock->virtual_ns - realtime_ns, 0);
    return clock->virtual_ns;
}

void ph_clock_start_above(struct ph_clock *clock, int64_t natural_ns) {
    clock->natural_ns = later(clock->natural_ns, natural_ns);
    clock->virtual_ns = later(clock->virtual_ns, natural_ns);
}

void ph_clock_raise(struct ph_clock *clock, int64_t virtual_ns) {
    clock->virtual_ns = later(clock->virtual_ns, virtual_ns);
}

void ph_clock_accept(struct ph_clock *clock) { clock->accept_jump = 1; }

void ph_clock_sample(const struct ph_clock *clock, const uint8_t boot_id[16], struct ph_clock_sample *sample) {
    sample->virtual_ns = clock->virtual_ns;
    sample->realtime_ns = clock->realtime_ns;
    sample->boottime_ns = clock->boottime_ns;
    memcpy(sample->boot_id, boot_id, 16);
}
