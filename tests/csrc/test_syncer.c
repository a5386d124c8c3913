/*
 * The sync thread with a disk that the test holds in its hand. F1, F4, F8, F9.
 *
 * Invariants
 * - A ceiling is published only after its record was written and the sync after that has returned success.
 * - After a failure nothing is published, written or synced any more.
 */
#define _GNU_SOURCE
#include "durable/syncer.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <semaphore.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"
#include "ph_errors.h"

static char path[64];
static sem_t sync_entered, sync_may_return, failed;
static uint64_t writes, syncs, synced_ceiling, written_ceiling; /* as the disk sees them */
static uint64_t sync_fails, held;                               /* how it behaves */
static int failure_code;

static const struct ph_identity identity = {
    .coordinator = 3, .modulus = 4, .layout = {41, 10, 13, UINT64_C(1735689600000)}};
static const struct ph_clock_sample sample;
static const struct ph_record first_record = {.ceiling = 100};

static ssize_t disk_write(int fd, const void *data, size_t length, off_t offset) {
    uint64_t ceiling;
    memcpy(&ceiling, (const uint8_t *)data + 32, sizeof ceiling);
    ph_store_relaxed(&written_ceiling, ceiling);
    ph_store_relaxed(&writes, ph_load_relaxed(&writes) + 1);
    return pwrite(fd, data, length, offset);
}

static int disk_sync(int fd) {
    (void)fd;
    if (ph_load_relaxed(&held)) {
        sem_post(&sync_entered);
        sem_wait(&sync_may_return);
    }
    ph_store_relaxed(&syncs, ph_load_relaxed(&syncs) + 1);
    if (ph_load_relaxed(&sync_fails)) {
        errno = EIO;
        return -1;
    }
    ph_store_release(&synced_ceiling, ph_load_relaxed(&written_ceiling)); /* pairs with test_published_after_synced() */
    return 0;
}

static void note_failure(const struct ph_fault *fault) {
    failure_code = fault->code;
    sem_post(&failed);
}

static struct ph_position position;

struct rig {
    struct ph_obelisk obelisk;
    struct ph_syncer syncer;
    int event_fd;
};

static void set_up(struct rig *rig) {
    struct ph_fault fault;
    writes = syncs = synced_ceiling = written_ceiling = sync_fails = held = 0;
    failure_code = 0;
    sem_init(&sync_entered, 0, 0);
    sem_init(&sync_may_return, 0, 0);
    sem_init(&failed, 0, 0);
    REQUIRE(ph_obelisk_create(path, &identity, &first_record, &fault) == 0);
    REQUIRE(ph_obelisk_open(&rig->obelisk, path, PH_OBELISK_OWN, &fault) == 0);
    rig->obelisk.io = (struct ph_obelisk_io){disk_write, disk_sync};
    rig->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    REQUIRE(ph_syncer_start(&rig->syncer, &rig->obelisk, &position, rig->event_fd) == 0);
    rig->syncer.on_failure = note_failure; /* before the first request, whose mutex publishes it */
}

static void tear_down(struct rig *rig) {
    ph_syncer_stop(&rig->syncer);
    ph_obelisk_close(&rig->obelisk);
    close(rig->event_fd);
    unlink(path);
}

static void await_durable(struct rig *rig, uint64_t ceiling) {
    while (ph_syncer_durable(&rig->syncer) < ceiling) {
        uint64_t count;
        struct pollfd event = {.fd = rig->event_fd, .events = POLLIN};
        REQUIRE(poll(&event, 1, 60000) == 1);
        REQUIRE(read(rig->event_fd, &count, sizeof count) == sizeof count);
    }
}

static void test_starts_from_what_is_durable(void) {
    struct rig rig;
    set_up(&rig);
    CHECK_EQ_U64(ph_syncer_durable(&rig.syncer), 100);
    tear_down(&rig);
    CHECK_EQ_U64(writes, 0);
}

/* F1, F9: while the sync hangs, the ceiling stays where it was, whatever is asked for. */
static void test_a_hanging_sync_publishes_nothing(void) {
    struct rig rig;
    set_up(&rig);
    ph_store_relaxed(&held, 1);
    ph_syncer_request(&rig.syncer, 200, &sample);
    sem_wait(&sync_entered);
    CHECK_EQ_U64(ph_load_relaxed(&written_ceiling), 200);
    ph_syncer_request(&rig.syncer, 300, &sample);
    ph_syncer_request(&rig.syncer, 400, &sample);
    usleep(20000);
    CHECK_EQ_U64(ph_syncer_durable(&rig.syncer), 100);
    CHECK_EQ_U64(ph_load_relaxed(&rig.syncer.sync_count), 0);
    ph_store_relaxed(&held, 0);
    sem_post(&sync_may_return);
    await_durable(&rig, 400);
    CHECK_EQ_U64(ph_syncer_durable(&rig.syncer), 400);
    CHECK_EQ_U64(ph_load_relaxed(&syncs), 2); /* 300 was overtaken */
    CHECK(ph_load_relaxed(&rig.syncer.sync_ns_max) >= 20000000);
    CHECK_EQ_U64(rig.obelisk.newest.ceiling, 400);
    tear_down(&rig);
}

static void test_published_after_synced(void) {
    struct rig rig;
    uint64_t seen = 0;
    set_up(&rig);
    for (uint64_t ceiling = 101; ceiling < 3000; ceiling++) {
        ph_syncer_request(&rig.syncer, ceiling, &sample);
        uint64_t durable = ph_syncer_durable(&rig.syncer);
        CHECK(durable >= seen);
        CHECK(durable == 100 || durable <= ph_load_acquire(&synced_ceiling)); /* pairs with disk_sync() */
        seen = durable;
    }
    await_durable(&rig, 2999);
    tear_down(&rig);
}

/* F4 */
static void test_a_failed_sync_is_the_end(void) {
    struct rig rig;
    set_up(&rig);
    ph_store_relaxed(&sync_fails, 1);
    ph_syncer_request(&rig.syncer, 200, &sample);
    sem_wait(&failed);
    CHECK_EQ_U64(failure_code, PH_ERR_SYNC_FAILED);
    ph_store_relaxed(&sync_fails, 0);
    ph_syncer_request(&rig.syncer, 300, &sample);
    usleep(20000);
    CHECK_EQ_U64(ph_syncer_durable(&rig.syncer), 100);
    CHECK_EQ_U64(ph_load_relaxed(&writes), 1);
    CHECK_EQ_U64(ph_load_relaxed(&syncs), 1);
    tear_down(&rig);
}

/* F8: a file that has lost its name is not written any more. */
static void test_an_unlinked_file_is_the_end(void) {
    struct rig rig;
    set_up(&rig);
    REQUIRE(unlink(path) == 0);
    ph_syncer_request(&rig.syncer, 200, &sample);
    sem_wait(&failed);
    CHECK_EQ_U64(failure_code, PH_ERR_OBELISK_LOST);
    CHECK_EQ_U64(ph_syncer_durable(&rig.syncer), 100);
    CHECK_EQ_U64(ph_load_relaxed(&writes), 0);
    tear_down(&rig);
}

static void *let_go_later(void *nothing) {
    usleep(20000);
    sem_post(&sync_may_return);
    return nothing;
}

static void test_stop_waits_for_the_sync_that_runs_and_drops_the_next(void) {
    struct rig rig;
    pthread_t thread;
    set_up(&rig);
    ph_store_relaxed(&held, 1);
    ph_syncer_request(&rig.syncer, 200, &sample);
    sem_wait(&sync_entered);
    ph_syncer_request(&rig.syncer, 300, &sample);
    REQUIRE(pthread_create(&thread, NULL, let_go_later, NULL) == 0);
    ph_syncer_stop(&rig.syncer);
    CHECK_EQ_U64(rig.obelisk.newest.ceiling, 200);
    CHECK_EQ_U64(syncs, 1);
    pthread_join(thread, NULL);
    ph_obelisk_close(&rig.obelisk);
    close(rig.event_fd);
    unlink(path);
}

/* F4: by default a failure ends the process at once, with the status that stands for it. */
static void test_a_failure_ends_the_process(void) {
    held = 0;
    fflush(stdout);
    pid_t child = fork();
    REQUIRE(child >= 0);
    if (child == 0) {
        struct rig rig;
        int quiet = open("/dev/null", O_WRONLY | O_CLOEXEC);
        dup2(quiet, STDERR_FILENO);
        REQUIRE(ph_obelisk_create(path, &identity, &first_record, &(struct ph_fault){0}) == 0);
        REQUIRE(ph_obelisk_open(&rig.obelisk, path, PH_OBELISK_OWN, &(struct ph_fault){0}) == 0);
        rig.obelisk.io = (struct ph_obelisk_io){disk_write, disk_sync};
        REQUIRE(ph_syncer_start(&rig.syncer, &rig.obelisk, &position, eventfd(0, EFD_CLOEXEC)) == 0);
        ph_store_relaxed(&sync_fails, 1);
        ph_syncer_request(&rig.syncer, 200, &sample);
        sleep(10);
        _exit(0);
    }
    int status;
    REQUIRE(waitpid(child, &status, 0) == child);
    CHECK(WIFEXITED(status));
    CHECK_EQ_U64(WEXITSTATUS(status), ph_error_info(PH_ERR_SYNC_FAILED)->exit_status);
    unlink(path);
}

int main(void) {
    const char *directory = access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp";
    snprintf(path, sizeof path, "%s/syncer-%d", directory, (int)getpid());
    RUN(test_starts_from_what_is_durable);
    RUN(test_a_hanging_sync_publishes_nothing);
    RUN(test_published_after_synced);
    RUN(test_a_failed_sync_is_the_end);
    RUN(test_an_unlinked_file_is_the_end);
    RUN(test_stop_waits_for_the_sync_that_runs_and_drops_the_next);
    RUN(test_a_failure_ends_the_process);
    return check_report();
}
