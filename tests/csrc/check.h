/*
 * The few macros that the C tests share.
 *
 *     static void test_something(void) { CHECK_EQ_U64(2, 1 + 1); }
 *     int main(void) { RUN(test_something); return check_report(); }
 *
 * CHECK notes a failure and goes on, from any thread; REQUIRE ends the program, for what the rest of a test needs.
 */
#ifndef CHECK_H
#define CHECK_H

#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include "ph_atomic.h"

static uint64_t check_failed; /* in the test that runs now: 0 or 1 */
static unsigned check_tests_passed, check_tests_failed;

static inline void check_that(int holds, const char *what, const char *file, int line) {
    if (holds)
        return;
    fprintf(stderr, "%s:%d: does not hold: %s\n", file, line, what);
    ph_store_relaxed(&check_failed, 1);
}

static inline void check_eq_u64(uint64_t actual, uint64_t expected, const char *what, const char *file, int line) {
    if (actual == expected)
        return;
    fprintf(stderr, "%s:%d: %s is %" PRIu64 " (0x%" PRIx64 "), expected %" PRIu64 " (0x%" PRIx64 ")\n", file, line,
            what, actual, actual, expected, expected);
    ph_store_relaxed(&check_failed, 1);
}

static inline void check_run(const char *name, void (*test)(void)) {
    ph_store_relaxed(&check_failed, 0);
    test();
    int failed = ph_load_relaxed(&check_failed) != 0;
    printf("%s %s\n", failed ? "FAILED" : "ok", name);
    fflush(stdout);
    check_tests_failed += failed;
    check_tests_passed += !failed;
}

/* The program's exit status: a program without tests fails. */
static inline int check_report(void) {
    printf("%u passed, %u failed\n", check_tests_passed, check_tests_failed);
    return check_tests_failed == 0 && check_tests_passed > 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}

#define CHECK(cond) check_that(!!(cond), #cond, __FILE__, __LINE__)
#define CHECK_EQ_U64(actual, expected)                                                                                 \
    check_eq_u64((uint64_t)(actual), (uint64_t)(expected), #actual, __FILE__, __LINE__)
#define REQUIRE(cond)                                                                                                  \
    do {                                                                                                               \
        if (!(cond)) {                                                                                                 \
            fprintf(stderr, "%s:%d: cannot go on: %s\n", __FILE__, __LINE__, #cond);                                   \
            exit(EXIT_FAILURE);                                                                                        \
        }                                                                                                              \
    } while (0)
#define RUN(test) check_run(#test, test)

#endif
