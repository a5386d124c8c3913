/*
 * One ring, attached by the bench and handed over as descriptors, used from C.
 *
 *   ring pop|strict GRANTS_FD CLIENT_FD DOORBELL_FD MAX_AGE_MS SECONDS
 *
 * pop: takes whatever there is, one by one, and sleeps for more. A run of pops without a wait is timed as a whole.
 * strict: one request after the other, each timed.
 */
#define _GNU_SOURCE
#include "bench.h"

#include <string.h>
#include <sys/resource.h>

#include "ph_ring.h"

#define WAIT_NS NS_PER_S
#define PATIENCE_NS (10 * NS_PER_S)
#define RUN_MIN 256 /* shorter runs of pops would measure the clock */

struct check {
    uint64_t first, last, count;
};

/* Rising from id to id within one process and one ring, hence unique. */
static inline void verify(struct check *check, uint64_t id) {
    if (id <= check->last) {
        fail("an id is not greater than the one before it");
    }
    check->first = check->count++ == 0 ? id : check->first;
    check->last = id;
}

static double cpu_seconds(void) {
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
           (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
}

static void pop(struct ph_ring *ring, struct check *check, struct record *pop_ps, uint64_t end_ns) {
    /* On a machine with much else to do, a run that is long enough may be late in coming. */
    while (now_ns() < end_ns || (pop_ps->length == 0 && now_ns() < end_ns + PATIENCE_NS)) {
        uint64_t before_ns = now_ns(), count = 0, id;
        while ((id = ph_ring_next(ring)) != 0) {
            verify(check, id);
            count++;
        }
        uint64_t took_ns = now_ns() - before_ns;
        if (count >= RUN_MIN) {
            record_add(pop_ps, took_ns * 1000 / count);
        }
        if (ph_ring_wait_locked(ring, WAIT_NS) != PH_RING_READY) {
            fail("the ring stays empty");
        }
    }
}

static void strict(struct ph_ring *ring, struct check *check, struct record *latencies_ns, uint64_t end_ns) {
    uint64_t before_ns = now_ns();
    while (before_ns < end_ns) {
        uint64_t id = ph_ring_strict_locked(ring, ph_ring_coordinator(ring), check->last, WAIT_NS);
        uint64_t after_ns = now_ns();
        if (id == 0) {
            fail("a strict request was not answered");
        }
        verify(check, id);
        record_add(latencies_ns, after_ns - before_ns);
        before_ns = after_ns;
    }
}

int main(int argc, char **argv) {
    if (argc != 7) {
        fail("usage: ring pop|strict GRANTS_FD CLIENT_FD DOORBELL_FD MAX_AGE_MS SECONDS");
    }
    uint64_t max_age_ns = (uint64_t)atol(argv[5]) * 1000000;
    double seconds = atof(argv[6]);
    struct ph_ring *ring = ph_ring_open(atoi(argv[2]), atoi(argv[3]), atoi(argv[4]), 0, max_age_ns);
    if (ring == NULL) {
        fail("the ring cannot be mapped");
    }
    struct record durations = record_new((size_t)((seconds + 1) * 4000000));
    struct check check = {0};
    int pops = strcmp(argv[1], "pop") == 0;
    uint64_t start_ns = now_ns(), end_ns = start_ns + (uint64_t)(seconds * (double)NS_PER_S);
    double cpu_before = cpu_seconds();
    (pops ? pop : strict)(ring, &check, &durations, end_ns);
    double took = (double)(now_ns() - start_ns) / (double)NS_PER_S, cpu = cpu_seconds() - cpu_before;
    if (check.count == 0 || durations.length == 0) {
        fail("no ids, or no run of them long enough to be timed");
    }
    printf("{\"per_second\": %.1f, \"cpu_share\": %.4f, ", (double)check.count / took, cpu / took);
    print_quantiles(pops ? "pop_ps" : "latency_ns", &durations);
    printf(", \"ids\": %" PRIu64 ", \"first\": %" PRIu64 ", \"last\": %" PRIu64 "}\n", check.count, check.first,
           check.last);
    ph_ring_close(ring);
    return 0;
}
