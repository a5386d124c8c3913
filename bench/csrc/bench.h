/* What the bench's C programs share: time, the check of ids, and JSON on stdout. */
#ifndef BENCH_H
#define BENCH_H

#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>

#define NS_PER_S UINT64_C(1000000000)

static inline void fail(const char *what) {
    fprintf(stderr, "%s\n", what);
    exit(1);
}

static inline uint64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * NS_PER_S + (uint64_t)now.tv_nsec;
}

/* Values in the order of their arrival. Memory is there from the start, so that recording costs a store. */
struct record {
    uint64_t *values;
    size_t length, capacity;
};

static inline struct record record_new(size_t capacity) {
    void *memory = mmap(NULL, capacity * sizeof(uint64_t), PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) {
        fail("no memory for the record");
    }
    madvise(memory, capacity * sizeof(uint64_t), MADV_HUGEPAGE);
    madvise(memory, capacity * sizeof(uint64_t), MADV_POPULATE_WRITE); /* before Linux 5.14 it comes as it is used */
    return (struct record){memory, 0, capacity};
}

static inline void record_add(struct record *record, uint64_t value) {
    if (record->length == record->capacity) {
        fail("more values than the record holds");
    }
    record->values[record->length++] = value;
}

static inline int compare_u64(const void *a, const void *b) {
    uint64_t left = *(const uint64_t *)a, right = *(const uint64_t *)b;
    return (left > right) - (left < right);
}

static inline void record_sort(struct record *record) {
    qsort(record->values, record->length, sizeof(uint64_t), compare_u64);
}

/* Sorts the ids, fails on a duplicate, and prints how many were verified, and between which bounds. */
static inline void print_verified(struct record *ids) {
    record_sort(ids);
    for (size_t i = 1; i < ids->length; i++) {
        if (ids->values[i] == ids->values[i - 1]) {
            fail("an id came twice");
        }
    }
    if (ids->length == 0 || ids->values[0] == 0) {
        fail("no id came, or one that is zero");
    }
    printf("\"ids\": %zu, \"first\": %" PRIu64 ", \"last\": %" PRIu64, ids->length, ids->values[0],
           ids->values[ids->length - 1]);
}

/* Prints {"share": nanoseconds, …}: so much or less in that share of all cases. */
static inline void print_quantiles(const char *name, struct record *durations_ns) {
    static const char *const shares[] = {"0",   "0.01", "0.05", "0.1",   "0.25",   "0.5",     "0.75",
                                         "0.9", "0.95", "0.99", "0.999", "0.9999", "0.99999", "1"};
    record_sort(durations_ns);
    printf("\"%s\": {", name);
    for (size_t i = 0; i < sizeof shares / sizeof shares[0]; i++) {
        size_t at = (size_t)(atof(shares[i]) * (double)(durations_ns->length - 1));
        printf("%s\"%s\": %" PRIu64, i ? ", " : "", shares[i], durations_ns->values[at]);
    }
    printf("}");
}

#endif
