/*
 * A process that pauses, or is killed, at each instruction of a reading of host time (F12, F43). A child reads, the parent
 * traces it: it lets the child take N single steps and then reads host time itself.
 *
 * Invariants
 * - Wherever the child stands, the parent's reading is exactly the wall clock: no half of a moment is seen, and nothing
 *   waits for the child.
 * - When the child goes on, and the wall clock has been set back meanwhile, host time is not set back with it.
 * - Killed, it leaves host time as it is.
 */
#define _GNU_SOURCE
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"
#include "engine/hosttime.h"
#include "ph_atomic.h"

#if defined(__x86_64__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)

#define MS INT64_C(1000000)
#define T0 (INT64_C(1790000000000) * MS)
#define STEPS_MAX 5000
#define CHILD 1
#define PARENT 2

static struct shared {
    uint64_t wall_ns, boot_ns, done;
    struct ph_host_page page;
} *shared;

static void read_shared(void *context, int64_t *realtime_ns, int64_t *boottime_ns) {
    (void)context;
    *realtime_ns = (int64_t)ph_load_relaxed(&shared->wall_ns);
    *boottime_ns = (int64_t)ph_load_relaxed(&shared->boot_ns);
}

static struct ph_host_clock clock_of(uint32_t writer) {
    struct ph_host_clock clock;
    struct ph_clock_source source = {read_shared, NULL};
    ph_host_clock_init(&clock, &shared->page, writer, source, 1000000 * MS, 10);
    return clock;
}

static void pass(int64_t ms) {
    shared->wall_ns += (uint64_t)(ms * MS);
    shared->boot_ns += (uint64_t)(ms * MS);
}

static void child_main(void) {
    struct ph_host_clock clock = clock_of(CHILD);
    ph_host_clock_read(&clock); /* the newest moment is this writer's own */
    ptrace(PTRACE_TRACEME, 0, NULL, NULL);
    kill(getpid(), SIGSTOP); /* the steps begin in here */
    ph_host_clock_read(&clock);
    ph_store_release(&shared->done, 1);
    _exit(0);
}

/* Lets the child take `steps` steps. Returns 0 when its reading had ended before. */
static int step_to(pid_t child, long steps) {
    int status;
    REQUIRE(waitpid(child, &status, 0) == child && WIFSTOPPED(status));
    pass(10);
    for (long i = 0; i < steps; i++) {
        REQUIRE(ptrace(PTRACE_SINGLESTEP, child, NULL, NULL) == 0);
        REQUIRE(waitpid(child, &status, 0) == child);
        if (!WIFSTOPPED(status) || ph_load_acquire(&shared->done)) {
            return 0;
        }
    }
    return 1;
}

/* Returns 0 when there are no more steps to be tried. */
static int try_at(long steps, int kills) {
    memset(shared, 0, sizeof *shared);
    shared->wall_ns = (uint64_t)T0;
    shared->boot_ns = (uint64_t)(5000 * MS);
    struct ph_moment moment = {.host_ns = T0 - MS, .boottime_ns = 4999 * MS, .realtime_ns = T0 - MS};
    ph_host_page_set_moment(&shared->page, &moment);
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        child_main();
    }
    int more = step_to(child, steps);
    struct ph_host_clock clock = clock_of(PARENT);
    pass(5);
    int64_t before_ns = ph_host_clock_read(&clock);
    CHECK_EQ_U64(before_ns, shared->wall_ns);
    shared->wall_ns -= (uint64_t)(100 * MS);
    int status = 0;
    if (more) {
        REQUIRE(ptrace(kills ? PTRACE_KILL : PTRACE_CONT, child, NULL, NULL) == 0);
        while (waitpid(child, &status, 0) == child && !WIFEXITED(status) && !WIFSIGNALED(status)) {
            ptrace(PTRACE_CONT, child, NULL, NULL);
        }
    } else {
        kill(child, SIGKILL);
        waitpid(child, &status, 0);
    }
    CHECK(ph_host_clock_read(&clock) / MS >= before_ns / MS);
    return more;
}

static void at_every_instruction(int kills) {
    long steps = 0;
    while (steps < STEPS_MAX && try_at(steps, kills)) {
        steps++;
    }
    CHECK(steps > 50 && steps < STEPS_MAX);
}

static void test_paused_at_every_instruction(void) { at_every_instruction(0); }
static void test_killed_at_every_instruction(void) { at_every_instruction(1); }

int main(void) {
    shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    REQUIRE(shared != MAP_FAILED);
    RUN(test_paused_at_every_instruction);
    RUN(test_killed_at_every_instruction);
    return check_report();
}

#else

static void test_skipped(void) { puts("skipped: single steps are tried on x86-64 without sanitizers"); }

int main(void) {
    RUN(test_skipped);
    return check_report();
}

#endif
