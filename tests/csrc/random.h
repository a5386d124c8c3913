/*
 * Randomness that can be repeated, and how much of it: the seed is printed, and TEST_SEED sets it; TEST_EFFORT is a
 * factor on the rounds of randomised tests.
 */
#ifndef RANDOM_H
#define RANDOM_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

struct random {
    uint64_t state;
};

/* SplitMix64. */
static inline uint64_t random_u64(struct random *random) {
    uint64_t z = random->state += UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

static inline uint64_t random_below(struct random *random, uint64_t end) { return random_u64(random) % end; }

/* low … high, both included. */
static inline int64_t random_between(struct random *random, int64_t low, int64_t high) {
    return low + (int64_t)random_below(random, (uint64_t)(high - low) + 1);
}

static inline int random_chance(struct random *random, uint64_t one_in) { return random_below(random, one_in) == 0; }

static inline struct random random_start(void) {
    struct timespec now;
    const char *given = getenv("TEST_SEED");
    clock_gettime(CLOCK_REALTIME, &now);
    uint64_t seed = given != NULL ? strtoull(given, NULL, 10) : (uint64_t)now.tv_sec * 1000003 + (uint64_t)now.tv_nsec;
    printf("seed %llu (repeat with TEST_SEED)\n", (unsigned long long)seed);
    return (struct random){seed};
}

static inline uint64_t random_rounds(uint64_t by_default) {
    const char *given = getenv("TEST_EFFORT");
    double rounds = (double)by_default * (given != NULL ? strtod(given, NULL) : 1.0);
    return rounds > 1 ? (uint64_t)rounds : 1;
}

#endif
