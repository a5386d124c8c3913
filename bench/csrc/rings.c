/*
 * Many rings of one coordinator, drained in turn by one thread as fast as they are filled.
 *
 *   rings MAX_AGE_MS SECONDS GRANTS_FD CLIENT_FD DOORBELL_FD [GRANTS_FD CLIENT_FD DOORBELL_FD]…
 *
 * Ids must rise in each ring and be unique over all. Prints what each ring got, for fairness.
 */
#define _GNU_SOURCE
#include "bench.h"

#include "ph_ring.h"

#define RINGS_MAX 1024
#define TAKE 1024
#define WAIT_NS 1000000
#define RING_AGAIN_NS 1000000
#define ASK_NS 5000 /* long enough for the bell */
#define IDS_PER_SECOND_MAX 10000000
#define WARM_UP_NS (NS_PER_S / 10)

static struct {
    struct ph_ring *ring;
    uint64_t last, got, rung_ns;
} rings[RINGS_MAX];

static size_t drain(size_t at, struct record *ids, int counts) {
    uint64_t taken[TAKE];
    size_t count = ph_ring_take(rings[at].ring, taken, TAKE);
    for (size_t i = 0; i < count; i++) {
        if (taken[i] <= rings[at].last) {
            fail("an id is not greater than the one before it in its ring");
        }
        rings[at].last = taken[i];
        record_add(ids, taken[i]);
    }
    rings[at].got += counts ? count : 0;
    return count;
}

int main(int argc, char **argv) {
    size_t count = (size_t)(argc - 3) / 3;
    double seconds = argc > 2 ? atof(argv[2]) : 0;
    if (argc < 6 || argc != 3 + 3 * (int)count || count > RINGS_MAX || seconds <= 0) {
        fail("usage: rings MAX_AGE_MS SECONDS GRANTS_FD CLIENT_FD DOORBELL_FD …");
    }
    for (size_t i = 0; i < count; i++) {
        char **fds = argv + 3 + 3 * i;
        rings[i].ring = ph_ring_open(atoi(fds[0]), atoi(fds[1]), atoi(fds[2]), 0, (uint64_t)atol(argv[1]) * 1000000);
        if (rings[i].ring == NULL) {
            fail("a ring cannot be mapped");
        }
    }
    struct record ids = record_new((size_t)((seconds + 1) * IDS_PER_SECOND_MAX));
    uint64_t start_ns = now_ns() + WARM_UP_NS, end_ns = start_ns + (uint64_t)(seconds * (double)NS_PER_S), at_ns;
    for (size_t turn = 0; (at_ns = now_ns()) < end_ns; turn++) {
        size_t taken = 0;
        for (size_t i = 0; i < count; i++) {
            size_t here = drain(i, &ids, at_ns >= start_ns);
            taken += here;
            if (here == 0 &&
                at_ns - rings[i].rung_ns >= RING_AGAIN_NS) { /* an empty ring is asked for, as by any client */
                ph_ring_wait_locked(rings[i].ring, ASK_NS);
                rings[i].rung_ns = at_ns;
            }
        }
        if (taken == 0) {
            ph_ring_wait_locked(rings[turn % count].ring, WAIT_NS);
        }
    }
    uint64_t total = 0;
    printf("{\"got\": [");
    for (size_t i = 0; i < count; i++) {
        total += rings[i].got;
        printf("%s%" PRIu64, i ? ", " : "", rings[i].got);
    }
    printf("], ");
    print_verified(&ids);
    printf(", \"per_second\": %.1f}\n", (double)total / seconds);
    return 0;
}
