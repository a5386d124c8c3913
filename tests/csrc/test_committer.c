/*
 * The commit thread with the disk of disk.h. F1, F3, F4, F7, F8, F9.
 *
 * Invariants
 * - A batch is published only after it was written and the sync after that has returned success.
 * - After a failure nothing is published, written or synced any more; by default the process is at its end.
 * - `room` never says more than the file has. A full disk is said, and is no failure.
 * - A rewrite begins with a file of its own or not at all, and ends in the old one's place.
 */
#define _GNU_SOURCE
#include "durable/committer.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/wait.h>

#include "check.h"
#include "disk.h"
#include "ph_errors.h"

#define BATCH 1000

static const struct ph_identity identity = {.coordinator = 3, .modulus = 4};
static uint64_t spin_ns; /* how long the thread looks for its next batch before it sleeps */
static sem_t failed;
static int failure_code;
static uint8_t buffers[2][(100 << 10) + PH_OBELISK_SECTOR];

static void note_failure(const struct ph_fault *fault) {
    failure_code = fault->code;
    sem_post(&failed);
}

struct rig {
    struct ph_committer committer;
    int event_fd;
    uint64_t handed;
    uint64_t due, told; /* the thread tells once of each batch and of each room made */
};

static int count(void *context, const uint8_t *records, size_t length) {
    (void)records, (void)length;
    ++*(uint64_t *)context;
    return 0;
}

/* How many batches a file has; its journal is closed again. UINT64_MAX: it is not there, or not whole. */
static uint64_t batches_in(enum disk_name name, struct ph_journal *journal) {
    struct ph_fault fault;
    uint64_t batches = 0;
    if (ph_journal_open(journal, disk.path[name], &identity, 0, count, &batches, &fault) != 0) {
        return UINT64_MAX;
    }
    ph_journal_close(journal);
    return batches;
}

static void start(struct rig *rig, const struct ph_journal *journal, int rewriting) {
    rig->handed = journal != NULL ? journal->number : 0;
    rig->due = rig->told = 0;
    rig->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    REQUIRE(ph_committer_start(&rig->committer, journal, rewriting, &identity, disk.path[DISK_BASE], rig->event_fd,
                               spin_ns) == 0);
    rig->committer.on_failure = note_failure; /* before the first batch, whose mutex publishes it */
}

static void set_up(struct rig *rig) {
    struct ph_fault fault;
    struct ph_journal journal;
    disk_format();
    failure_code = 0;
    sem_init(&failed, 0, 0);
    REQUIRE(ph_journal_create(&journal, disk.path[DISK_BASE], &identity, 0, 1, &fault) == 0);
    disk.writes = disk.syncs = 0;
    start(rig, &journal, 0);
}

static void tear_down(struct rig *rig) {
    ph_committer_stop(&rig->committer);
    close(rig->event_fd);
}

static void hand_over(struct rig *rig, size_t length, enum ph_rewrite rewrite) {
    uint8_t *batch = buffers[rig->handed++ % 2];
    rig->due++;
    memset(batch, (int)rig->handed, length);
    ph_committer_hand_over(&rig->committer, batch, length, rewrite);
}

static void await_durable(struct rig *rig) {
    while (rig->told < rig->due) {
        uint64_t value;
        struct pollfd event = {.fd = rig->event_fd, .events = POLLIN};
        REQUIRE(poll(&event, 1, 60000) == 1);
        REQUIRE(read(rig->event_fd, &value, sizeof value) == sizeof value);
        rig->told += value;
    }
    CHECK_EQ_U64(ph_committer_durable(&rig->committer), rig->handed);
}

static void commit(struct rig *rig, size_t length, enum ph_rewrite rewrite) {
    hand_over(rig, length, rewrite);
    await_durable(rig);
}

/* Afterwards the thread does nothing: after a batch it goes on to lengthen the file. */
static void make_room(struct rig *rig) {
    rig->due++;
    ph_committer_make_room(&rig->committer);
    await_durable(rig);
}

static void await_failure(void) {
    struct timespec deadline;
    clock_gettime(CLOCK_REALTIME, &deadline);
    deadline.tv_sec += 60;
    REQUIRE(sem_timedwait(&failed, &deadline) == 0);
}

/* F1, F9: while the sync hangs nothing is published. */
static void test_a_hanging_sync_publishes_nothing(void) {
    struct rig rig;
    set_up(&rig);
    ph_store_relaxed(&disk.held, 1);
    hand_over(&rig, BATCH, PH_REWRITE_NONE);
    sem_wait(&disk.entered);
    usleep(20000);
    CHECK_EQ_U64(ph_committer_durable(&rig.committer), 0);
    CHECK_EQ_U64(ph_load_relaxed(&rig.committer.commit_count), 0);
    ph_store_relaxed(&disk.held, 0);
    sem_post(&disk.may_return);
    await_durable(&rig);
    CHECK_EQ_U64(ph_committer_durable(&rig.committer), 1);
    CHECK_EQ_U64(ph_load_relaxed(&rig.committer.commit_count), 1);
    CHECK(ph_load_relaxed(&rig.committer.sync_ns_max) >= 20000000);
    tear_down(&rig);
}

/* F1: at the moment at which a batch is published a power cut leaves it there. */
static void test_published_after_synced(void) {
    struct rig rig;
    struct ph_journal journal;
    set_up(&rig);
    for (int i = 0; i < 500; i++) {
        hand_over(&rig, BATCH + (size_t)i, PH_REWRITE_NONE);
        while (ph_committer_durable(&rig.committer) < rig.handed) {
        }
        disk_lock();
        const uint8_t *medium = disk.files[disk.cached[DISK_BASE]].medium;
        uint64_t number;
        size_t at = PH_OBELISK_PAGE;
        for (int earlier = 0; earlier < i; earlier++) {
            at += (BATCH + (size_t)earlier + DISK_SECTOR - 1) / DISK_SECTOR * DISK_SECTOR;
        }
        memcpy(&number, medium + at + 8, sizeof number);
        CHECK_EQ_U64(number, rig.handed);
        CHECK_EQ_U64(medium[at + BATCH + (size_t)i - 1], rig.handed % 256);
        disk_unlock();
    }
    tear_down(&rig);
    disk_power_cut();
    CHECK_EQ_U64(batches_in(DISK_BASE, &journal), 500);
}

/* F4 */
static void test_a_failure_is_the_end(void) {
    int *const failures[] = {&disk.fail_sync, &disk.fail_write, &disk.short_write};
    for (size_t i = 0; i < sizeof failures / sizeof failures[0]; i++) {
        struct rig rig;
        set_up(&rig);
        *failures[i] = 1;
        hand_over(&rig, BATCH, PH_REWRITE_NONE);
        await_failure();
        CHECK_EQ_U64(failure_code, PH_ERR_SYNC_FAILED);
        *failures[i] = 0;
        uint64_t calls = disk.calls;
        ph_committer_hand_over(&rig.committer, buffers[1], BATCH, PH_REWRITE_NONE);
        usleep(20000);
        CHECK_EQ_U64(ph_committer_durable(&rig.committer), 0);
        CHECK_EQ_U64(disk.calls, calls);
        tear_down(&rig);
    }
}

/* F8: a file that has lost its name is not written any more. */
static void test_an_unlinked_file_is_the_end(void) {
    struct rig rig;
    set_up(&rig);
    REQUIRE(unlink(disk.path[DISK_BASE]) == 0);
    hand_over(&rig, BATCH, PH_REWRITE_NONE);
    await_failure();
    CHECK_EQ_U64(failure_code, PH_ERR_OBELISK_LOST);
    CHECK_EQ_U64(ph_committer_durable(&rig.committer), 0);
    CHECK_EQ_U64(disk.writes, 0);
    tear_down(&rig);
}

static void *let_go_later(void *nothing) {
    usleep(20000);
    ph_store_relaxed(&disk.held, 0);
    sem_post(&disk.may_return);
    return nothing;
}

/* A stop waits for a batch that is under way, and for one that was handed over a moment ago. */
static void test_stop_waits_for_the_last_batch(void) {
    for (int under_way = 0; under_way < 2; under_way++) {
        struct rig rig;
        struct ph_journal journal;
        pthread_t thread;
        set_up(&rig);
        ph_store_relaxed(&disk.held, 1);
        hand_over(&rig, BATCH, PH_REWRITE_NONE);
        if (under_way) {
            sem_wait(&disk.entered);
        }
        REQUIRE(pthread_create(&thread, NULL, let_go_later, NULL) == 0);
        ph_committer_stop(&rig.committer);
        CHECK_EQ_U64(rig.committer.durable, 1);
        CHECK_EQ_U64(batches_in(DISK_BASE, &journal), 1);
        pthread_join(thread, NULL);
        while (sem_trywait(&disk.entered) == 0 || sem_trywait(&disk.may_return) == 0) {
        }
        close(rig.event_fd);
    }
}

/* F7: there is no file until there is room for one. */
static void test_the_first_file(void) {
    struct rig rig;
    struct ph_journal journal;
    disk_format();
    disk.room = 1000;
    start(&rig, NULL, 0);
    make_room(&rig);
    CHECK_EQ_U64(ph_load_relaxed(&rig.committer.full), 1);
    CHECK_EQ_U64(ph_load_relaxed(&rig.committer.journal_id), 0);
    CHECK_EQ_U64(ph_load_relaxed(&rig.committer.room), 0);
    CHECK_EQ_U64(batches_in(DISK_BASE, &journal), UINT64_MAX);
    disk.room = -1;
    make_room(&rig);
    CHECK_EQ_U64(ph_load_relaxed(&rig.committer.full), 0);
    CHECK(ph_load_relaxed(&rig.committer.room) >= 200 << 10);
    commit(&rig, BATCH, PH_REWRITE_NONE);
    uint64_t id = ph_load_relaxed(&rig.committer.journal_id);
    tear_down(&rig);
    disk_power_cut();
    CHECK_EQ_U64(batches_in(DISK_BASE, &journal), 1);
    CHECK(id != 0 && journal.id == id);
}

/* F7: the file grows ahead of need; when it cannot, what room there is is spent to the end, and later it grows again. */
static void test_room_and_full(void) {
    struct rig rig;
    struct ph_journal journal;
    set_up(&rig);
    for (int i = 0; i < 40; i++) {
        commit(&rig, 64 << 10, PH_REWRITE_NONE);
        make_room(&rig);
        CHECK(ph_load_relaxed(&rig.committer.room) >= 128 << 10);
        CHECK_EQ_U64(ph_load_relaxed(&rig.committer.full), 0);
    }
    disk.room = 0;
    for (uint64_t room; (room = ph_load_relaxed(&rig.committer.room)) >= 64 << 10;) {
        uint64_t used = ph_load_relaxed(&rig.committer.used);
        commit(&rig, 64 << 10, PH_REWRITE_NONE);
        make_room(&rig);
        CHECK_EQ_U64(ph_load_relaxed(&rig.committer.room), room - (64 << 10));
        CHECK_EQ_U64(ph_load_relaxed(&rig.committer.used), used + (64 << 10));
    }
    CHECK_EQ_U64(ph_load_relaxed(&rig.committer.full), 1);
    disk.room = -1;
    make_room(&rig);
    CHECK_EQ_U64(ph_load_relaxed(&rig.committer.full), 0);
    commit(&rig, 64 << 10, PH_REWRITE_NONE);
    tear_down(&rig);
    disk_power_cut();
    CHECK_EQ_U64(batches_in(DISK_BASE, &journal), rig.handed);
}

/* F7: when a batch is published, `room` leaves it out already: the loop may fill what is left. Then the file grows. */
static void test_room_is_never_too_large(void) {
    struct rig rig;
    set_up(&rig);
    commit(&rig, 64 << 10, PH_REWRITE_NONE);
    make_room(&rig);
    uint64_t room = ph_load_relaxed(&rig.committer.room);
    CHECK(room >= PH_JOURNAL_GROWTH_MIN / 2 && room < PH_JOURNAL_GROWTH_MIN / 2 + (64 << 10));
    ph_store_relaxed(&disk.held, 1);
    hand_over(&rig, 64 << 10, PH_REWRITE_NONE);
    sem_wait(&disk.entered);
    sem_post(&disk.may_return);
    sem_wait(&disk.entered); /* the sync of what was added to the file */
    CHECK_EQ_U64(ph_committer_durable(&rig.committer), rig.handed);
    CHECK_EQ_U64(ph_load_relaxed(&rig.committer.room), room - (64 << 10));
    ph_store_relaxed(&disk.held, 0);
    sem_post(&disk.may_return);
    make_room(&rig);
    CHECK_EQ_U64(ph_load_relaxed(&rig.committer.room), room - (64 << 10) + PH_JOURNAL_GROWTH_MIN);
    tear_down(&rig);
}

/* F3 */
static void test_a_rewrite(void) {
    struct rig rig;
    struct ph_journal base, next;
    set_up(&rig);
    for (int i = 0; i < 5; i++) {
        commit(&rig, BATCH, PH_REWRITE_NONE);
    }
    commit(&rig, BATCH, PH_REWRITE_BEGIN);
    CHECK_EQ_U64(ph_load_relaxed(&rig.committer.rewriting), 1);
    CHECK_EQ_U64(batches_in(DISK_BASE, &base), 5);
    CHECK_EQ_U64(batches_in(DISK_NEXT, &next), 1);
    CHECK_EQ_U64(next.first, 6);
    CHECK_EQ_U64(next.id, base.id);
    commit(&rig, BATCH, PH_REWRITE_NONE);
    CHECK_EQ_U64(ph_load_relaxed(&rig.committer.rewriting), 1);
    commit(&rig, BATCH, PH_REWRITE_END);
    CHECK_EQ_U64(ph_load_relaxed(&rig.committer.rewriting), 0);
    commit(&rig, BATCH, PH_REWRITE_NONE);
    tear_down(&rig);
    disk_power_cut();
    CHECK_EQ_U64(batches_in(DISK_BASE, &base), 4);
    CHECK_EQ_U64(base.number, 9);
    CHECK_EQ_U64(base.id, next.id);
    CHECK(access(disk.path[DISK_NEXT], F_OK) != 0);
}

/* A successor goes on with what its predecessor began. */
static void test_a_rewrite_that_is_taken_over(void) {
    struct rig rig;
    struct ph_journal base, next;
    struct ph_fault fault;
    uint64_t batches = 0;
    set_up(&rig);
    commit(&rig, BATCH, PH_REWRITE_NONE);
    commit(&rig, BATCH, PH_REWRITE_BEGIN);
    tear_down(&rig);
    REQUIRE(ph_journal_open(&next, disk.path[DISK_NEXT], &identity, 1, count, &batches, &fault) == 0);
    start(&rig, &next, 1);
    CHECK_EQ_U64(ph_committer_durable(&rig.committer), 2);
    CHECK_EQ_U64(ph_load_relaxed(&rig.committer.rewriting), 1);
    CHECK_EQ_U64(ph_load_relaxed(&rig.committer.journal_id), next.id);
    commit(&rig, BATCH, PH_REWRITE_END);
    tear_down(&rig);
    CHECK_EQ_U64(batches_in(DISK_BASE, &base), 2);
    CHECK_EQ_U64(base.number, 3);
}

/* F7: without room for another file the old one goes on. */
static void test_a_rewrite_without_room(void) {
    struct rig rig;
    struct ph_journal base;
    set_up(&rig);
    commit(&rig, BATCH, PH_REWRITE_NONE);
    make_room(&rig);
    disk.room = 100 << 10;
    commit(&rig, BATCH, PH_REWRITE_BEGIN);
    CHECK_EQ_U64(ph_load_relaxed(&rig.committer.rewriting), 0);
    commit(&rig, BATCH, PH_REWRITE_NONE);
    make_room(&rig);
    disk.room = -1;
    CHECK(access(disk.path[DISK_NEXT], F_OK) != 0);
    CHECK_EQ_U64(batches_in(DISK_BASE, &base), 3);
    commit(&rig, BATCH, PH_REWRITE_BEGIN);
    CHECK_EQ_U64(ph_load_relaxed(&rig.committer.rewriting), 1);
    tear_down(&rig);
    CHECK_EQ_U64(batches_in(DISK_BASE, &base), 3);
}

/* F4: by default a failure ends the process at once, with the status that stands for it. */
static void test_a_failure_ends_the_process(void) {
    int status;
    disk_format();
    fflush(stdout);
    pid_t child = fork();
    REQUIRE(child >= 0);
    if (child == 0) {
        struct ph_committer committer;
        struct ph_journal journal;
        int quiet = open("/dev/null", O_WRONLY | O_CLOEXEC);
        dup2(quiet, STDERR_FILENO);
        REQUIRE(ph_journal_create(&journal, disk.path[DISK_BASE], &identity, 0, 1, &(struct ph_fault){0}) == 0);
        REQUIRE(ph_committer_start(&committer, &journal, 0, &identity, disk.path[DISK_BASE], eventfd(0, EFD_CLOEXEC),
                                   0) == 0);
        disk.fail_sync = 1;
        ph_committer_hand_over(&committer, buffers[0], BATCH, PH_REWRITE_NONE);
        sleep(60);
        _exit(0);
    }
    REQUIRE(waitpid(child, &status, 0) == child);
    CHECK(WIFEXITED(status));
    CHECK_EQ_U64(WEXITSTATUS(status), ph_error_info(PH_ERR_SYNC_FAILED)->exit_status);
}

int main(void) {
    disk_start("committer");
    RUN(test_a_hanging_sync_publishes_nothing);
    RUN(test_published_after_synced);
    RUN(test_a_failure_is_the_end);
    RUN(test_an_unlinked_file_is_the_end);
    for (spin_ns = 0; spin_ns <= 1000000; spin_ns += 1000000) {
        RUN(test_stop_waits_for_the_last_batch);
        RUN(test_room_and_full);
        RUN(test_room_is_never_too_large);
        RUN(test_a_rewrite);
    }
    spin_ns = 0;
    RUN(test_the_first_file);
    RUN(test_a_rewrite_that_is_taken_over);
    RUN(test_a_rewrite_without_room);
    RUN(test_a_failure_ends_the_process);
    disk_end();
    return check_report();
}
