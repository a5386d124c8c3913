/* Readings of the system's clocks, and the sample of them that an Obelisk's record keeps. */
#ifndef PH_CLOCK_H
#define PH_CLOCK_H

#include <stdint.h>

#define PH_NS_PER_MS 1000000

struct ph_clock_source {
    /* Both in nanoseconds: CLOCK_REALTIME since 1970, CLOCK_BOOTTIME since boot. */
    void (*read)(void *context, int64_t *realtime_ns, int64_t *boottime_ns);
    void *context;
};

/* All of one moment: host time, wall clock, and the time since that boot. A boot id of zeros is unknown. */
struct ph_clock_sample {
    int64_t host_ns; /* since 1970 */
    int64_t realtime_ns;
    int64_t boottime_ns;
    uint8_t boot_id[16];
};

/* For durations and deadlines: nobody sets this one. */
uint64_t ph_monotonic_ns(void);

/* The system's clocks, plus a signed offset in nanoseconds read from *context when it is not NULL (for tests). */
void ph_clock_read_system(void *context, int64_t *realtime_ns, int64_t *boottime_ns);

/* Zeros when the kernel does not tell (ProcSubset=pid hides it). */
void ph_boot_id(uint8_t boot_id[16]);

/* Both known, and the same. */
int ph_same_boot(const uint8_t one[16], const uint8_t other[16]);

#endif
