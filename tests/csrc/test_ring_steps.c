/*
 * A client that is killed, or forked past every hook, at each instruction of a pop (F10, F23). The parent is worker and
 * tracer: it lets a child take N single steps into ph_ring_next() or ph_ring_take_locked() and then strikes.
 *
 * Invariants
 * - Killed anywhere: the worker finds nothing out of range, and what the dead client had not taken goes to nobody else.
 * - Forked before the pop's last look at `alive`: the child gets nothing, the parent gets its ids. Where the last look
 *   is, wiping the page without a fork tells: before it, the pop then returns nothing.
 * - Forked after it: the fork was one after the call, for the result lies in a register already; both return it. By then
 *   the ids are claimed.
 * - Whatever the child does afterwards, it gets nothing more, does not crash and harms its parent's ring in nothing.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "check.h"
#include "ph_ring.h"
#include "service/producer.h"

#if defined(__x86_64__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)

#define STEPS_MAX 20000
#define AGE_NS UINT64_C(100000000000) /* grants must outlive the stepping */
#define START_MS 1000
#define IDS_MAX 256

/* How far the client is when the steps begin. */
struct scene {
    const char *name;
    uint64_t grants; /* published beforehand, of 4 ids each; the last one is opened to its middle first */
    unsigned pops_before;
    uint64_t grants_after; /* published after those pops */
    unsigned gets_ids;
    unsigned take; /* how many ids are asked for at once, or 0 for a single one */
};

#define TAKE_MAX 16
enum { AT_HAND = 1, TAKE_AT_HAND = 6 };
static const struct scene scenes[] = {
    {"the first grant is opened", 1, 0, 0, 1, 0}, {"an id is at hand", 1, 1, 0, 1, 0},
    {"the low-water mark", 1, 2, 0, 1, 0},        {"from one grant to the next", 3, 4, 0, 1, 0},
    {"the slots wrap", 64, 256, 2, 1, 0},         {"the ring is empty", 1, 4, 0, 0, 0},
    {"two of one grant", 3, 1, 0, 2, 2},          {"three grants at once", 3, 1, 0, 11, TAKE_MAX},
    {"take from an empty ring", 1, 4, 0, 0, 3},
};

/* What each process of one trial got, where its death does not take it. */
struct shared {
    uint64_t first[2]; /* by role: 0 the client, 1 its forked child */
    uint64_t last[2];
    uint64_t count[2];
    uint64_t second[2];
    uint64_t status[2];
    uint64_t done[2];
    uint64_t returned; /* the pop under the steps */
    struct ph_ring *ring;
    uint64_t before[IDS_MAX];
    uint64_t before_count;
};

struct trial {
    uint64_t position;
    struct ph_issuer issuer;
    struct ph_producer producer;
    pid_t client;
};

static struct shared *shared;
static uint64_t virtual_ms;

/* Executed in the client's place: fork, then a trap for the tracer. */
__asm__(".pushsection .text\n.globl steps_fork_gadget\nsteps_fork_gadget: syscall\nint3\n.popsection\n");
extern const uint8_t steps_fork_gadget[];

static uint64_t monotonic_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * UINT64_C(1000000000) + (uint64_t)now.tv_nsec;
}

static void publish(struct ph_producer *producer, struct ph_issuer *issuer, uint64_t ids) {
    struct ph_supply supply = {.issuer = issuer,
                               .floor_tick = ph_tick_of_ms(&issuer->layout, virtual_ms),
                               .limit_tick = ph_tick_of_ms(&issuer->layout, virtual_ms + 1),
                               .ceiling_tick = UINT64_MAX,
                               .now_ms = virtual_ms,
                               .monotonic_ns = monotonic_ns()};
    REQUIRE(ph_producer_refill(producer, &supply, ids) == ids);
}

static void client_main(struct ph_ring *ring, const struct scene *scene) {
    static uint64_t ids[TAKE_MAX];
    ssize_t nothing = write(-1, "", 0); /* the steps are to go through the pop, not through the dynamic linker */
    (void)nothing;
    monotonic_ns();
    for (unsigned i = 0; i < scene->pops_before; i++) {
        shared->before[shared->before_count++] = ph_ring_next(ring);
    }
    pid_t self = getpid();
    kill(self, SIGSTOP); /* the steps begin in here */
    uint64_t count = 0;
    if (scene->take != 0) {
        count = ph_ring_take_locked(ring, ids, scene->take);
    } else {
        ids[0] = ph_ring_next(ring);
    }
    ph_store_relaxed(&shared->returned, 1);
    int role = getpid() != self;
    count = scene->take != 0 ? count : ids[0] != 0;
    shared->count[role] = count;
    shared->first[role] = count != 0 ? ids[0] : 0;
    shared->last[role] = count != 0 ? ids[count - 1] : 0;
    kill(getpid(), SIGSTOP); /* and have ended by now */
    shared->second[role] = ph_ring_next(ring);
    shared->status[role] = (uint64_t)ph_ring_status(ring);
    shared->done[role] = 1;
    _exit(0);
}

static int stopped_by(pid_t pid) {
    int status;
    REQUIRE(waitpid(pid, &status, __WALL) == pid);
    return WIFSTOPPED(status) ? WSTOPSIG(status) | (status >> 16) << 8 : -1;
}

/* A client at the brink of its pop. */
static void begin(struct trial *trial, const struct scene *scene) {
    memset(shared, 0, sizeof *shared);
    REQUIRE(ph_producer_open(&trial->producer, &trial->issuer, AGE_NS) == 0);
    for (uint64_t i = 0; i < scene->grants; i++) {
        publish(&trial->producer, &trial->issuer, 4);
    }
    fflush(stdout);
    trial->client = fork();
    REQUIRE(trial->client >= 0);
    if (trial->client == 0) {
        struct ph_ring *ring =
            ph_ring_open(trial->producer.grants_fd, trial->producer.client_fd, trial->producer.doorbell_fd, 0, AGE_NS);
        sigset_t children;
        sigemptyset(&children);
        sigaddset(&children, SIGCHLD);
        signal(SIGCHLD, SIG_IGN); /* nobody here waits for its child */
        if (ring == NULL || sigprocmask(SIG_BLOCK, &children, NULL) != 0 ||
            ptrace(PTRACE_TRACEME, 0, NULL, NULL) != 0) {
            _exit(1);
        }
        shared->ring = ring;
        client_main(ring, scene);
    }
    REQUIRE(stopped_by(trial->client) == SIGSTOP);
    REQUIRE(ph_producer_demand(&trial->producer, monotonic_ns()) >= 0);
    for (uint64_t i = 0; i < scene->grants_after; i++) {
        publish(&trial->producer, &trial->issuer, 4);
    }
    REQUIRE(ptrace(PTRACE_SETOPTIONS, trial->client, NULL, (void *)(PTRACE_O_TRACEFORK | PTRACE_O_EXITKILL)) == 0);
}

/* 0: the pop ended before that many steps. */
static int step(pid_t pid, unsigned steps) {
    for (unsigned i = 0; i < steps; i++) {
        REQUIRE(ptrace(PTRACE_SINGLESTEP, pid, NULL, NULL) == 0);
        REQUIRE(stopped_by(pid) == SIGTRAP);
        if (ph_load_relaxed(&shared->returned)) {
            return 0;
        }
    }
    return 1;
}

static void go_on(pid_t pid) { REQUIRE(ptrace(PTRACE_CONT, pid, NULL, NULL) == 0); }

static void end_killed(pid_t pid) {
    int status;
    kill(pid, SIGKILL);
    REQUIRE(waitpid(pid, &status, __WALL) == pid);
}

/* Lets a process run from the stop that it is in to its end. */
static void run_out(pid_t pid) {
    int status;
    go_on(pid);
    REQUIRE(waitpid(pid, &status, __WALL) == pid);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    if (WIFSTOPPED(status)) {
        end_killed(pid);
    }
}

/* Worker and other clients after the strike: the ring is in order, and no id of it is handed to anyone else. */
static void check_worker(struct trial *trial) {
    CHECK(ph_producer_demand(&trial->producer, monotonic_ns()) >= 0);
    uint64_t granted_end = trial->position;
    struct ph_producer other;
    REQUIRE(ph_producer_open(&other, &trial->issuer, AGE_NS) == 0);
    publish(&other, &trial->issuer, 4);
    struct ph_ring *ring = ph_ring_open(other.grants_fd, other.client_fd, other.doorbell_fd, 0, AGE_NS);
    REQUIRE(ring != NULL);
    uint64_t id = ph_ring_next(ring);
    CHECK(ph_tick_of_id(&trial->issuer.layout, id) >= granted_end);
    for (uint64_t i = 0; i < shared->before_count; i++) {
        CHECK(shared->before[i] != 0 && shared->before[i] < id);
    }
    CHECK(shared->last[0] < id && shared->second[0] < id);
    ph_ring_close(ring);
    ph_producer_close(&other);
}

static void new_trial(struct trial *trial) {
    virtual_ms++;
    *trial = (struct trial){.issuer = {{41, 10, 13, 0}, 5, &trial->position}};
}

/* The page as a forked child finds it; what is beyond these bytes of it is not in use. */
static void wipe(struct trial *trial) {
    static uint8_t zeros[4096];
    struct iovec from = {zeros, sizeof zeros};
    struct iovec to = {shared->ring, sizeof zeros};
    REQUIRE(process_vm_writev(trial->client, &from, 1, &to, 1, 0) == sizeof zeros);
}

/* The next id to be claimed: the first word of the client's page. */
static uint64_t next_unclaimed(struct trial *trial) {
    uint64_t id;
    struct iovec to = {&id, sizeof id};
    struct iovec from = {shared->ring, sizeof id};
    REQUIRE(process_vm_readv(trial->client, &to, 1, &from, 1, 0) == sizeof id);
    return id;
}

static unsigned steps_to_return(pid_t pid) {
    unsigned steps = 1;
    while (step(pid, 1)) {
        steps++;
    }
    return steps;
}

/* Wipes the page after so many steps into a pop. 0: it ended before; otherwise *left is what it still ran to an id. */
static int wipe_at(const struct scene *scene, unsigned steps, unsigned *left) {
    struct trial trial;
    new_trial(&trial);
    begin(&trial, scene);
    int in_pop = step(trial.client, steps);
    *left = 0;
    if (in_pop) {
        wipe(&trial);
        unsigned ran = steps_to_return(trial.client);
        go_on(trial.client);
        REQUIRE(stopped_by(trial.client) == SIGSTOP);
        *left = shared->first[0] != 0 ? ran : 0;
    }
    end_killed(trial.client);
    ph_producer_close(&trial.producer);
    return in_pop;
}

/*
 * The instructions at a pop's end that a wiped page no longer stops: those after the last look at `alive`. Tried more
 * than once: a clock that is being updated costs a trial a few steps, and with them the instruction that it was for.
 */
static unsigned steps_after_look(const struct scene *scene) {
    unsigned longest = 0;
    for (int round = 0; round < 4; round++) {
        unsigned left;
        for (unsigned steps = 0; steps < STEPS_MAX && wipe_at(scene, steps, &left); steps++) {
            CHECK(steps > 0 || left == 0); /* at the first instruction the look lies ahead */
            longest = left > longest ? left : longest;
        }
    }
    CHECK(longest > 0);
    return longest;
}

/* Forks the client where it stands, with everything but the id of the process left as it is. */
static pid_t fork_client(pid_t client) {
    struct user_regs_struct saved;
    REQUIRE(ptrace(PTRACE_GETREGS, client, NULL, &saved) == 0);
    struct user_regs_struct gadget = saved;
    gadget.rip = (uint64_t)(uintptr_t)steps_fork_gadget;
    gadget.rax = SYS_fork;
    gadget.orig_rax = UINT64_MAX;
    REQUIRE(ptrace(PTRACE_SETREGS, client, NULL, &gadget) == 0);
    go_on(client);
    REQUIRE(stopped_by(client) == (SIGTRAP | PTRACE_EVENT_FORK << 8));
    unsigned long child;
    REQUIRE(ptrace(PTRACE_GETEVENTMSG, client, NULL, &child) == 0);
    REQUIRE(stopped_by((pid_t)child) == SIGSTOP);
    go_on(client);
    REQUIRE(stopped_by(client) == SIGTRAP); /* the int3 */
    REQUIRE(ptrace(PTRACE_SETREGS, client, NULL, &saved) == 0);
    REQUIRE(ptrace(PTRACE_SETREGS, (pid_t)child, NULL, &saved) == 0);
    return (pid_t)child;
}

/* Runs a child that was forked in the middle of the pop to its end; returns the id that it got. */
static uint64_t run_child(pid_t child) {
    shared->first[1] = shared->count[1] = shared->second[1] = shared->status[1] = shared->done[1] = 0;
    go_on(child);
    int stop = stopped_by(child);
    CHECK_EQ_U64(stop, SIGSTOP);
    if (stop == SIGSTOP) {
        run_out(child);
    }
    CHECK_EQ_U64(shared->done[1], 1);
    CHECK_EQ_U64(shared->second[1], 0);
    CHECK_EQ_U64(shared->status[1], PH_RING_FORKED);
    shared->returned = 0; /* that was the child's */
    return shared->first[1];
}

/* One pop, at each of whose instructions the client is forked. */
static void fork_all_along(const struct scene *scene, unsigned after_look) {
    static uint64_t got[STEPS_MAX];
    static uint64_t unclaimed[STEPS_MAX];
    struct trial trial;
    unsigned steps = 0;
    unsigned children_with_id = 0;
    new_trial(&trial);
    begin(&trial, scene);
    do {
        REQUIRE(steps < STEPS_MAX);
        uint64_t cursor = ph_load_relaxed(&trial.producer.client->cursor);
        unclaimed[steps] = next_unclaimed(&trial);
        got[steps++] = run_child(fork_client(trial.client));
        /* in its parent's name it stores at most what the parent was about to store */
        CHECK(ph_load_relaxed(&trial.producer.client->cursor) - cursor <= 1);
        CHECK(ph_producer_demand(&trial.producer, monotonic_ns()) >= 0);
    } while (step(trial.client, 1));
    go_on(trial.client);
    REQUIRE(stopped_by(trial.client) == SIGSTOP);
    run_out(trial.client);
    uint64_t id = shared->first[0];
    CHECK_EQ_U64(shared->count[0], scene->gets_ids);
    for (unsigned i = 0; i < steps; i++) {
        int looked = id != 0 && steps - i <= after_look;
        CHECK_EQ_U64(got[i], looked ? id : 0);
        CHECK(got[i] == 0 || unclaimed[i] > shared->last[0]); /* claimed first, looked afterwards */
        children_with_id += got[i] != 0;
    }
    CHECK(steps > 20);
    CHECK(shared->second[0] == 0 || shared->second[0] > shared->last[0]);
    check_worker(&trial);
    ph_producer_close(&trial.producer);
    printf("   %s: forked at %u instructions, %u of them after the last look\n", scene->name, steps, children_with_id);
}

static int kill_at(const struct scene *scene, unsigned steps) {
    struct trial trial;
    new_trial(&trial);
    begin(&trial, scene);
    int in_pop = step(trial.client, steps);
    end_killed(trial.client);
    check_worker(&trial);
    ph_producer_close(&trial.producer);
    return in_pop;
}

static void test_killed_at_every_instruction(void) {
    for (size_t i = 0; i < sizeof scenes / sizeof scenes[0]; i++) {
        unsigned steps = 0;
        while (steps < STEPS_MAX && kill_at(&scenes[i], steps)) {
            steps++;
        }
        CHECK(steps > 20 && steps < STEPS_MAX);
        printf("   %s: killed at %u instructions\n", scenes[i].name, steps);
    }
}

static void test_forked_at_every_instruction(void) {
    unsigned after_pop = steps_after_look(&scenes[AT_HAND]);
    unsigned after_take = steps_after_look(&scenes[TAKE_AT_HAND]);
    for (size_t i = 0; i < sizeof scenes / sizeof scenes[0]; i++) {
        fork_all_along(&scenes[i], scenes[i].take != 0 ? after_take : after_pop);
    }
}

int main(void) {
    shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    REQUIRE(shared != MAP_FAILED);
    virtual_ms = START_MS;
    RUN(test_killed_at_every_instruction);
    RUN(test_forked_at_every_instruction);
    return check_report();
}

#else

static void test_nothing_here(void) { puts("   skipped: needs x86-64, and instructions without a sanitizer's"); }

int main(void) {
    RUN(test_nothing_here);
    return check_report();
}

#endif
