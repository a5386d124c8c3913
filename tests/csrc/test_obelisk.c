/*
 * The Obelisk against a model of a disk: the file is the page cache, `medium` is what a power cut leaves. F2, F4, F6.
 *
 * The model: a write dirties its page. Dirty sectors may reach the medium at any time, in any order, in part. A sync
 * that succeeds makes every dirty page durable; one that fails marks the pages clean although any part of them may be
 * missing from the medium, so that a later sync says nothing about them.
 *
 * Invariants
 * - C: the ceiling that a successor finds is never below a position that was issued on the strength of an earlier one.
 * - What is found is the newest valid record; without any, the file is refused.
 * - After the first failure a handle writes nothing more.
 */
#include "durable/obelisk.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "base/crc.h"
#include "check.h"
#include "ph_errors.h"

#define PAGES (PH_OBELISK_BYTES / PH_OBELISK_PAGE)
#define AT_NUMBER 8
#define AT_FILE_ID 16
#define AT_SLOT 24
#define AT_COORDINATOR 28
#define AT_CEILING 32
#define AT_VERSION 8
#define AT_MS_BITS 32
#define AT_CRC (PH_OBELISK_SECTOR - 4)

static char path[64];
static char other_path[64];
static uint8_t medium[PH_OBELISK_BYTES];
static int dirty[PAGES];
static uint64_t random_state = 1;

/* What the next write or sync does. */
static int fail_write, short_write, fail_sync, crash_in_sync, calls;

static const struct ph_identity identity = {
    .coordinator = 7, .modulus = 16, .layout = {41, 10, 13, UINT64_C(1735689600000)}, .cluster_id = {1}};
static const struct ph_clock_sample sample = {.host_ns = 1, .realtime_ns = 2, .boottime_ns = 3, .boot_id = {4}};
static const struct ph_record first_record = {
    .ceiling = 100,
    .clean = 1,
    .start_id = 9,
    .sample = {.host_ns = 5, .realtime_ns = 6, .boottime_ns = 7, .boot_id = {8}}};

static uint64_t random_below(uint64_t bound) {
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state % bound;
}

static void read_file(const char *name, uint8_t *bytes) {
    int fd = open(name, O_RDONLY);
    REQUIRE(fd >= 0 && pread(fd, bytes, PH_OBELISK_BYTES, 0) == PH_OBELISK_BYTES);
    close(fd);
}

/* Into the same inode, as a disk would show it after a restart. */
static void write_file(const uint8_t *bytes) {
    int fd = open(path, O_WRONLY);
    REQUIRE(fd >= 0 && pwrite(fd, bytes, PH_OBELISK_BYTES, 0) == PH_OBELISK_BYTES);
    close(fd);
}

/* A part of each dirty page reaches the medium: nothing, all, or any bytes of each of its sectors. */
static void write_back_in_part(void) {
    uint8_t cache[PH_OBELISK_BYTES];
    read_file(path, cache);
    for (size_t at = 0; at < PH_OBELISK_BYTES; at += PH_OBELISK_SECTOR) {
        uint64_t how = random_below(4);
        size_t cut = random_below(PH_OBELISK_SECTOR + 1);
        for (size_t i = 0; dirty[at / PH_OBELISK_PAGE] && i < PH_OBELISK_SECTOR; i++) {
            if (how == 1 || (how == 2 && i < cut) || (how == 3 && random_below(2))) {
                medium[at + i] = cache[at + i];
            }
        }
    }
}

static void power_cut(void) {
    write_back_in_part();
    write_file(medium);
    memset(dirty, 0, sizeof dirty);
}

static ssize_t model_write(int fd, const void *data, size_t length, off_t offset) {
    calls++;
    if (fail_write) {
        errno = EIO;
        return -1;
    }
    size_t whole = short_write ? random_below(length) : length;
    ssize_t written = pwrite(fd, data, whole, offset);
    dirty[offset / PH_OBELISK_PAGE] = 1;
    return written;
}

static int model_sync(int fd) {
    uint8_t cache[PH_OBELISK_BYTES];
    (void)fd;
    calls++;
    if (crash_in_sync) {
        power_cut();
    } else if (fail_sync) {
        write_back_in_part();
    } else {
        read_file(path, cache);
        for (size_t page = 0; page < PAGES; page++) {
            if (dirty[page]) {
                memcpy(medium + page * PH_OBELISK_PAGE, cache + page * PH_OBELISK_PAGE, PH_OBELISK_PAGE);
            }
        }
    }
    memset(dirty, 0, sizeof dirty);
    errno = EIO;
    return crash_in_sync || fail_sync ? -1 : 0;
}

static void all_goes_well(void) { fail_write = short_write = fail_sync = crash_in_sync = 0; }

static struct ph_obelisk open_it(int mode) {
    struct ph_obelisk obelisk;
    struct ph_fault fault = {0, ""};
    int code = ph_obelisk_open(&obelisk, path, mode, &fault);
    if (code != 0) {
        fprintf(stderr, "%s\n", fault.detail);
    }
    REQUIRE(code == 0);
    obelisk.io = (struct ph_obelisk_io){model_write, model_sync};
    return obelisk;
}

static int open_code(uint64_t *number) {
    struct ph_obelisk obelisk;
    struct ph_fault fault;
    int code = ph_obelisk_open(&obelisk, path, PH_OBELISK_READ, &fault);
    *number = 0;
    if (code == 0) {
        *number = obelisk.newest.number;
        ph_obelisk_close(&obelisk);
    }
    return code;
}

/* A new file with records 2 (slot 1, ceiling 200) and 3 (slot 0, ceiling 300), all of it durable. */
static void make_fresh(void) {
    struct ph_fault fault;
    all_goes_well();
    memset(dirty, 0, sizeof dirty);
    REQUIRE(ph_obelisk_create(path, &identity, &first_record, &fault) == 0);
    read_file(path, medium);
    struct ph_obelisk obelisk = open_it(PH_OBELISK_OWN);
    REQUIRE(ph_obelisk_write(&obelisk, 200, &sample, 0, &fault) == 0);
    REQUIRE(ph_obelisk_write(&obelisk, 300, &sample, 0, &fault) == 0);
    ph_obelisk_close(&obelisk);
}

static size_t slot_at(uint32_t slot) { return PH_OBELISK_PAGE * (size_t)(1 + slot); }

static void seal(uint8_t *sector) {
    uint32_t crc = ph_crc32c(sector, AT_CRC);
    memcpy(sector + AT_CRC, &crc, sizeof crc);
}

static void test_what_was_written_is_found(void) {
    make_fresh();
    struct ph_obelisk obelisk = open_it(PH_OBELISK_READ);
    struct ph_fault fault;
    CHECK_EQ_U64(obelisk.newest.number, 3);
    CHECK_EQ_U64(obelisk.newest.slot, 0);
    CHECK_EQ_U64(obelisk.newest.ceiling, 300);
    CHECK_EQ_U64(obelisk.newest.clean, 0);
    CHECK_EQ_U64(obelisk.newest.sample.host_ns, 1);
    CHECK_EQ_U64(obelisk.newest.sample.realtime_ns, 2);
    CHECK_EQ_U64(obelisk.newest.sample.boottime_ns, 3);
    CHECK(memcmp(obelisk.newest.sample.boot_id, sample.boot_id, 16) == 0);
    CHECK_EQ_U64(ph_obelisk_check(&obelisk, &identity, &fault), 0);
    ph_obelisk_close(&obelisk);
}

/* A repair's word, and the host start that each worker of it names: by these two a start believes the page. */
static void test_records_name_the_start_that_wrote_them(void) {
    struct ph_fault fault;
    REQUIRE(ph_obelisk_create(path, &identity, &first_record, &fault) == 0);
    struct ph_obelisk obelisk = open_it(PH_OBELISK_OWN);
    CHECK_EQ_U64(obelisk.newest.number, 1);
    CHECK_EQ_U64(obelisk.newest.ceiling, 100);
    CHECK_EQ_U64(obelisk.newest.clean, 1);
    CHECK_EQ_U64(obelisk.newest.start_id, 9);
    CHECK_EQ_U64(obelisk.newest.sample.host_ns, 5);
    CHECK(memcmp(&obelisk.newest.sample, &first_record.sample, sizeof first_record.sample) == 0);
    REQUIRE(ph_obelisk_write(&obelisk, 200, &sample, 0, &fault) == 0);
    obelisk.start_id = UINT64_MAX;
    REQUIRE(ph_obelisk_write(&obelisk, 300, &sample, 0, &fault) == 0);
    ph_obelisk_close(&obelisk);
    uint8_t file[PH_OBELISK_BYTES];
    struct ph_record record;
    read_file(path, file);
    ph_obelisk_decode_record(file, 1, &identity, obelisk.file_id, &record);
    CHECK(record.valid && record.start_id == 9);
    ph_obelisk_decode_record(file, 0, &identity, obelisk.file_id, &record);
    CHECK(record.valid && record.start_id == UINT64_MAX);
}

/* Record 4 is being written over record 2 when the power goes: the sector is a mixture of both. */
static void check_mixture(const uint8_t *before, const uint8_t *after, const uint8_t *mixture) {
    uint8_t file[PH_OBELISK_BYTES];
    uint64_t number;
    const size_t at = slot_at(1);
    int whole = memcmp(mixture, after + at, PH_OBELISK_SECTOR) == 0;
    memcpy(file, before, sizeof file);
    memcpy(file + at, mixture, PH_OBELISK_SECTOR);
    write_file(file);
    CHECK_EQ_U64(open_code(&number), 0);
    CHECK_EQ_U64(number, whole ? 4 : 3);
}

/* F2: every prefix, suffix and subset of eighths of the sector, and many subsets of its bytes. */
static void test_torn_writes(void) {
    uint8_t before[PH_OBELISK_BYTES];
    uint8_t after[PH_OBELISK_BYTES];
    uint8_t mixture[PH_OBELISK_SECTOR];
    struct ph_fault fault;
    const size_t at = slot_at(1);
    make_fresh();
    read_file(path, before);
    struct ph_obelisk obelisk = open_it(PH_OBELISK_OWN);
    REQUIRE(ph_obelisk_write(&obelisk, 400, &sample, 0, &fault) == 0);
    ph_obelisk_close(&obelisk);
    read_file(path, after);
    CHECK(memcmp(before + slot_at(0), after + slot_at(0), PH_OBELISK_PAGE) == 0);
    CHECK(memcmp(before, after, PH_OBELISK_PAGE) == 0);
    for (size_t cut = 0; cut <= PH_OBELISK_SECTOR; cut++) {
        memcpy(mixture, before + at, PH_OBELISK_SECTOR);
        memcpy(mixture, after + at, cut);
        check_mixture(before, after, mixture);
        memcpy(mixture, after + at, PH_OBELISK_SECTOR);
        memcpy(mixture, before + at, cut);
        check_mixture(before, after, mixture);
    }
    for (unsigned subset = 0; subset < 256; subset++) {
        for (size_t i = 0; i < PH_OBELISK_SECTOR; i++) {
            mixture[i] = subset >> (i / 64) & 1 ? after[at + i] : before[at + i];
        }
        check_mixture(before, after, mixture);
    }
    for (unsigned round = 0; round < 2000; round++) {
        for (size_t i = 0; i < PH_OBELISK_SECTOR; i++) {
            mixture[i] = random_below(2) ? after[at + i] : before[at + i];
        }
        check_mixture(before, after, mixture);
    }
}

/* F2: any single flipped bit makes its sector invalid, and the other record stands. */
static void test_bit_flips(void) {
    uint8_t file[PH_OBELISK_BYTES];
    make_fresh();
    for (size_t page = 0; page < 3; page++) {
        for (size_t bit = 0; bit < 8 * PH_OBELISK_SECTOR; bit++) {
            uint64_t number;
            memcpy(file, medium, sizeof file);
            file[page * PH_OBELISK_PAGE + bit / 8] ^= (uint8_t)(1 << bit % 8);
            write_file(file);
            int code = open_code(&number);
            CHECK_EQ_U64(code, page > 0 ? 0 : PH_ERR_OBELISK_CORRUPT);
            CHECK_EQ_U64(number, page == 0 ? 0 : page == 1 ? 2 : 3);
        }
    }
}

static void expect(const uint8_t *file, int code, uint64_t number) {
    uint64_t found;
    write_file(file);
    CHECK_EQ_U64(open_code(&found), code);
    CHECK_EQ_U64(found, number);
}

/* F2: a write that went to the wrong place. */
static void test_misdirected_records(void) {
    uint8_t file[PH_OBELISK_BYTES];
    make_fresh();
    memcpy(file, medium, sizeof file);
    memcpy(file + slot_at(0), medium + slot_at(1), PH_OBELISK_PAGE);
    memcpy(file + slot_at(1), medium + slot_at(0), PH_OBELISK_PAGE);
    expect(file, PH_ERR_OBELISK_CORRUPT, 0);
    memcpy(file, medium, sizeof file);
    memcpy(file + slot_at(0), medium + slot_at(1), PH_OBELISK_PAGE);
    expect(file, 0, 2);
    memcpy(file, medium, sizeof file);
    memcpy(file + slot_at(1), medium + slot_at(0), PH_OBELISK_PAGE);
    expect(file, 0, 3);
    memcpy(file + slot_at(0), medium, PH_OBELISK_PAGE); /* the identity over a record: record 3 is only in slot 1 */
    expect(file, PH_ERR_OBELISK_CORRUPT, 0);
}

/* F2: records that are whole, but of another file, coordinator or slot, or beyond the layout; each field by itself. */
static void test_foreign_records(void) {
    static const struct {
        size_t at;
        uint64_t value;
        size_t bytes;
        int valid;
    } cases[] = {
        {AT_NUMBER, 9, 8, 1},
        {AT_CEILING, 900, 8, 1},
        {AT_FILE_ID, 12345, 8, 0},
        {AT_SLOT, 1, 4, 0},
        {AT_SLOT, 2, 4, 0},
        {AT_COORDINATOR, 8, 4, 0},
        {0, UINT64_C(1) << 60, 8, 0},
        {AT_CEILING, UINT64_MAX, 8, 0},
        {AT_CEILING, (UINT64_C(1) << 54) + 1, 8, 0},
    };
    make_fresh();
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        uint8_t file[PH_OBELISK_BYTES];
        memcpy(file, medium, sizeof file);
        memcpy(file + slot_at(0) + cases[i].at, &cases[i].value, cases[i].bytes);
        seal(file + slot_at(0));
        expect(file, 0, !cases[i].valid ? 2 : cases[i].at == AT_NUMBER ? 9 : 3);
    }
    struct ph_fault fault;
    struct ph_identity other = identity;
    uint8_t file[PH_OBELISK_BYTES];
    uint8_t foreign[PH_OBELISK_BYTES];
    other.coordinator = 8;
    REQUIRE(ph_obelisk_create(other_path, &other, &first_record, &fault) == 0);
    read_file(other_path, foreign);
    memcpy(file, medium, sizeof file);
    memcpy(file + slot_at(0), foreign + slot_at(0), PH_OBELISK_PAGE);
    expect(file, 0, 2);
    memset(file + slot_at(1), 0, PH_OBELISK_PAGE);
    expect(file, PH_ERR_OBELISK_CORRUPT, 0);
}

static void test_both_bad_or_no_identity_is_refused(void) {
    uint8_t file[PH_OBELISK_BYTES];
    make_fresh();
    memcpy(file, medium, sizeof file);
    memset(file + slot_at(0), 0, 2 * PH_OBELISK_PAGE);
    expect(file, PH_ERR_OBELISK_CORRUPT, 0);
    memset(file + slot_at(0), 0xff, 2 * PH_OBELISK_PAGE);
    expect(file, PH_ERR_OBELISK_CORRUPT, 0);
    memset(file, 0, sizeof file);
    expect(file, PH_ERR_OBELISK_CORRUPT, 0);
    memcpy(file, medium, sizeof file);
    file[AT_VERSION] = 2;
    seal(file);
    expect(file, PH_ERR_OBELISK_TOO_NEW, 0);
    memcpy(file, medium, sizeof file);
    file[AT_MS_BITS] = 63; /* a checksum that fits makes no sense of a layout that does not */
    seal(file);
    expect(file, PH_ERR_OBELISK_CORRUPT, 0);
    uint64_t number;
    for (off_t length = 0; length < PH_OBELISK_BYTES; length += 511) {
        write_file(medium);
        REQUIRE(truncate(path, length) == 0);
        CHECK_EQ_U64(open_code(&number), PH_ERR_OBELISK_TRUNCATED);
    }
    REQUIRE(unlink(path) == 0);
    CHECK_EQ_U64(open_code(&number), PH_ERR_OBELISK_MISSING);
}

/* F4: after the first failure nothing is written or synced through this handle again. */
static void test_a_failure_is_final(void) {
    int *const failures[] = {&fail_write, &short_write, &fail_sync, &crash_in_sync};
    for (size_t i = 0; i < sizeof failures / sizeof failures[0]; i++) {
        for (int settling = 0; settling < 2; settling++) {
            struct ph_fault fault;
            make_fresh();
            struct ph_obelisk obelisk = open_it(PH_OBELISK_OWN);
            *failures[i] = 1;
            int code =
                settling ? ph_obelisk_settle(&obelisk, &fault) : ph_obelisk_write(&obelisk, 400, &sample, 0, &fault);
            CHECK_EQ_U64(code, PH_ERR_SYNC_FAILED);
            CHECK_EQ_U64(obelisk.newest.ceiling, 300);
            all_goes_well();
            int calls_before = calls;
            CHECK_EQ_U64(ph_obelisk_write(&obelisk, 500, &sample, 0, &fault), PH_ERR_SYNC_FAILED);
            CHECK_EQ_U64(ph_obelisk_settle(&obelisk, &fault), PH_ERR_SYNC_FAILED);
            CHECK_EQ_U64(calls, calls_before);
            CHECK_EQ_U64(obelisk.newest.ceiling, 300);
            ph_obelisk_close(&obelisk);
        }
    }
}

/*
 * F4: the sync of record 4 fails and the medium keeps record 2 in its slot, while the page cache shows record 4. The
 * successor's own record goes over record 3 and is torn by a power cut. Returns the ceiling that the next one finds.
 */
static uint64_t ceiling_after_lying_cache(int settle) {
    struct ph_fault fault;
    uint8_t before[PH_OBELISK_BYTES];
    make_fresh();
    memcpy(before, medium, sizeof before);
    struct ph_obelisk worker = open_it(PH_OBELISK_OWN);
    fail_sync = 1;
    CHECK_EQ_U64(ph_obelisk_write(&worker, 400, &sample, 0, &fault), PH_ERR_SYNC_FAILED);
    ph_obelisk_close(&worker);
    memcpy(medium, before, sizeof medium);
    all_goes_well();
    struct ph_obelisk successor = open_it(PH_OBELISK_OWN);
    CHECK_EQ_U64(successor.newest.number, 4);
    if (settle) {
        CHECK_EQ_U64(ph_obelisk_settle(&successor, &fault), 0);
    }
    fail_sync = 1;
    CHECK_EQ_U64(ph_obelisk_write(&successor, 500, &sample, 0, &fault), PH_ERR_SYNC_FAILED);
    ph_obelisk_close(&successor);
    memcpy(medium + slot_at(0), before + slot_at(0), PH_OBELISK_PAGE);
    medium[slot_at(0) + AT_NUMBER] = 5; /* torn: one byte of the new sector */
    write_file(medium);
    struct ph_obelisk third = open_it(PH_OBELISK_READ);
    uint64_t ceiling = third.newest.ceiling;
    ph_obelisk_close(&third);
    return ceiling;
}

static void test_settling_saves_what_a_failed_sync_lost(void) {
    CHECK(ceiling_after_lying_cache(1) >= 300);
    CHECK(ceiling_after_lying_cache(0) < 300); /* so the model can tell */
}

/* What the next write and sync do: mostly their work. */
static void draw_luck(void) {
    uint64_t luck = random_below(16);
    fail_write = luck == 0;
    short_write = luck == 1;
    fail_sync = luck == 2 || luck == 3;
    crash_in_sync = luck == 4;
}

/* Settles, reserves, issues, until a failure, a kill or a clean stop. Returns the position up to which was issued. */
static uint64_t live(struct ph_obelisk *owner) {
    struct ph_fault fault;
    uint64_t position = 0;
    uint64_t ceiling = owner->newest.ceiling;
    draw_luck();
    int failed = ph_obelisk_settle(owner, &fault);
    for (uint64_t renewals = random_below(8); renewals > 0 && !failed; renewals--) {
        uint64_t start = position != 0 ? position : owner->newest.ceiling;
        draw_luck();
        failed = ph_obelisk_write(owner, ceiling + 1 + random_below(1000), &sample, 0, &fault);
        ceiling = owner->newest.ceiling;
        if (!failed) {
            position = start + random_below(ceiling - start + 1);
        }
        if (random_below(4) == 0) {
            write_back_in_part();
        }
    }
    draw_luck();
    if (!failed && position != 0 && random_below(3) == 0) {
        ph_obelisk_write(owner, position, &sample, 1, &fault);
    }
    return position;
}

static uint64_t live_and_die(uint64_t issued) {
    struct ph_obelisk owner = open_it(PH_OBELISK_OWN);
    CHECK(owner.newest.ceiling >= issued);
    uint64_t position = live(&owner);
    all_goes_well();
    ph_obelisk_close(&owner);
    if (random_below(2) == 0) {
        power_cut();
    }
    return position > issued ? position : issued;
}

/* F2, F4, F6: any sequence of good and bad days. */
static void test_random_lives(void) {
    for (unsigned history = 0; history < 200; history++) {
        make_fresh();
        uint64_t issued = 0;
        for (unsigned life = 0; life < 40; life++) {
            issued = live_and_die(issued);
        }
        CHECK(issued > 300);
    }
}

static void test_a_path_that_changes_is_noticed(void) {
    struct ph_fault fault;
    make_fresh();
    struct ph_obelisk obelisk = open_it(PH_OBELISK_OWN);
    CHECK_EQ_U64(ph_obelisk_check_path(&obelisk, &fault), 0);
    REQUIRE(truncate(path, PH_OBELISK_BYTES - 1) == 0);
    CHECK_EQ_U64(ph_obelisk_check_path(&obelisk, &fault), PH_ERR_OBELISK_LOST);
    write_file(medium);
    CHECK_EQ_U64(ph_obelisk_check_path(&obelisk, &fault), 0);
    REQUIRE(rename(path, other_path) == 0);
    CHECK_EQ_U64(ph_obelisk_check_path(&obelisk, &fault), PH_ERR_OBELISK_LOST);
    REQUIRE(ph_obelisk_create(path, &identity, &first_record, &fault) == 0);
    CHECK_EQ_U64(ph_obelisk_check_path(&obelisk, &fault), PH_ERR_OBELISK_LOST);
    REQUIRE(rename(other_path, path) == 0);
    CHECK_EQ_U64(ph_obelisk_check_path(&obelisk, &fault), 0);
    ph_obelisk_close(&obelisk);
}

/* F25: one owner; whoever only looks needs no lock. */
static void test_one_owner(void) {
    struct ph_fault fault;
    struct ph_obelisk second;
    uint64_t number;
    make_fresh();
    struct ph_obelisk first = open_it(PH_OBELISK_OWN);
    CHECK_EQ_U64(ph_obelisk_open(&second, path, PH_OBELISK_OWN, &fault), PH_ERR_ALREADY_RUNNING);
    CHECK_EQ_U64(open_code(&number), 0);
    ph_obelisk_close(&first);
    REQUIRE(ph_obelisk_open(&second, path, PH_OBELISK_OWN, &fault) == 0);
    ph_obelisk_close(&second);
}

/* What is short now may be there later: no reason to give a coordinator up for good. */
static void test_a_shortage_is_told_from_a_directory_that_is_not_usable(void) {
    struct ph_obelisk obelisk;
    struct ph_fault fault;
    struct rlimit limit, none = {0, 0};
    REQUIRE(getrlimit(RLIMIT_NOFILE, &limit) == 0);
    none.rlim_max = limit.rlim_max;
    REQUIRE(setrlimit(RLIMIT_NOFILE, &none) == 0);
    int code = ph_obelisk_open(&obelisk, path, PH_OBELISK_OWN, &fault);
    REQUIRE(setrlimit(RLIMIT_NOFILE, &limit) == 0);
    CHECK_EQ_U64(code, PH_ERR_INTERNAL);
    CHECK(ph_error_info(code)->retryable);
    CHECK_EQ_U64(ph_obelisk_open(&obelisk, "/dev/null/x", PH_OBELISK_OWN, &fault), PH_ERR_STATE_DIR_UNUSABLE);
}

static void test_identity_is_compared(void) {
    struct ph_fault fault;
    make_fresh();
    struct ph_obelisk obelisk = open_it(PH_OBELISK_READ);
    struct ph_identity wrong[9];
    static const int codes[] = {PH_ERR_OBELISK_FOREIGN, PH_ERR_OBELISK_FOREIGN, PH_ERR_OBELISK_CHANGED,
                                PH_ERR_OBELISK_CHANGED, PH_ERR_OBELISK_CHANGED, PH_ERR_OBELISK_CHANGED,
                                PH_ERR_OBELISK_CHANGED, PH_ERR_OBELISK_FOREIGN, 0};
    for (size_t i = 0; i < 9; i++) {
        wrong[i] = identity;
    }
    wrong[0].coordinator++;
    wrong[1].cluster_id[15]++;
    wrong[2].modulus++;
    wrong[3].layout.ms_bits++;
    wrong[4].layout.coordinator_bits++;
    wrong[5].layout.sequence_bits++;
    wrong[6].layout.epoch_ms++;
    wrong[7].host_id[0]++;
    wrong[8].host_id[0]++; /* but the file says nothing of its host */
    for (size_t i = 0; i < 9; i++) {
        obelisk.identity.host_id[15] = i == 7;
        CHECK_EQ_U64(ph_obelisk_check(&obelisk, &wrong[i], &fault), codes[i]);
    }
    ph_obelisk_close(&obelisk);
}

int main(int argc, char **argv) {
    const char *directory = access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp";
    snprintf(path, sizeof path, "%s/obelisk-%d", directory, (int)getpid());
    snprintf(other_path, sizeof other_path, "%s/obelisk-%d-other", directory, (int)getpid());
    random_state = argc > 1 ? strtoull(argv[1], NULL, 10) : (uint64_t)getpid() * UINT64_C(0x9e3779b97f4a7c15) + 1;
    printf("seed %" PRIu64 "\n", random_state);
    RUN(test_what_was_written_is_found);
    RUN(test_records_name_the_start_that_wrote_them);
    RUN(test_torn_writes);
    RUN(test_bit_flips);
    RUN(test_misdirected_records);
    RUN(test_foreign_records);
    RUN(test_both_bad_or_no_identity_is_refused);
    RUN(test_a_failure_is_final);
    RUN(test_settling_saves_what_a_failed_sync_lost);
    RUN(test_random_lives);
    RUN(test_a_path_that_changes_is_noticed);
    RUN(test_one_owner);
    RUN(test_a_shortage_is_told_from_a_directory_that_is_not_usable);
    RUN(test_identity_is_compared);
    unlink(path);
    unlink(other_path);
    return check_report();
}
