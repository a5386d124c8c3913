/*
 * The journal of counters against the model of a disk in disk.h. F1, F2, F3, F4, F6, F7, F8.
 *
 * Invariants
 * - A batch whose append returned success is found by every successor, whole, in its place, whatever happens.
 * - A batch whose append did not is found whole or not at all; once a successor has settled it, it counts as the others.
 * - What a torn end, written by nobody else, cannot have left is refused, never taken for a shorter journal.
 * - After the first failure a handle writes nothing more. A full disk is no failure, and changes nothing.
 */
#define _GNU_SOURCE
#include "durable/journal.h"

#include <sched.h>
#include <stddef.h>
#include <sys/mount.h>
#include <sys/wait.h>

#include "base/crc.h"
#include "check.h"
#include "disk.h"
#include "ph_errors.h"

#define FIRST_AT PH_OBELISK_PAGE
#define BATCHES_MAX 4096
#define IMAGE_MAX (1 << 20)
#define AT_VERSION 8
#define AT_LENGTH 4
#define AT_NUMBER 8
#define AT_ID 16
#define AT_CRC 24

static const struct ph_identity identity = {.coordinator = 3, .modulus = 4};
static uint8_t buffer[PH_BATCH_BYTES_MAX + PH_OBELISK_SECTOR];

/* What was written, and what a reader found: each batch by the checksum of its records. */
struct batches {
    uint32_t count;
    uint32_t crc[BATCHES_MAX];
};

static struct batches written, found;

static int note(void *context, const uint8_t *records, size_t length) {
    struct batches *batches = context;
    REQUIRE(batches->count < BATCHES_MAX);
    batches->crc[batches->count++] = ph_crc32c(records, length);
    return 0;
}

static int refuse(void *context, const uint8_t *records, size_t length) {
    (void)context, (void)records, (void)length;
    return -1;
}

static int open_journal(struct ph_journal *journal, int writable) {
    struct ph_fault fault = {0, ""};
    found.count = 0;
    return ph_journal_open(journal, disk.path[DISK_BASE], &identity, writable, note, &found, &fault);
}

static int open_code(void) {
    struct ph_journal journal;
    int code = open_journal(&journal, 0);
    if (code == 0) {
        ph_journal_close(&journal);
    }
    return code;
}

static void expect(int code, uint32_t count) {
    CHECK_EQ_U64(open_code(), code);
    if (code == 0) {
        CHECK_EQ_U64(found.count, count);
        CHECK(memcmp(found.crc, written.crc, found.count * sizeof found.crc[0]) == 0);
    }
}

/* Random records in `buffer`; returns the whole batch's length. */
static size_t draw_batch(size_t records_max) {
    size_t length = PH_BATCH_HEAD + 8 * (size_t)disk_random(records_max / 8 + 1);
    for (size_t i = PH_BATCH_HEAD; i < length; i++) {
        buffer[i] = (uint8_t)disk_random(256);
    }
    return length;
}

static int append(struct ph_journal *journal, size_t length) {
    struct ph_fault fault;
    written.crc[written.count] = ph_crc32c(buffer + PH_BATCH_HEAD, length - PH_BATCH_HEAD);
    int code = ph_journal_append(journal, buffer, length, &fault);
    written.count += code == 0;
    return code;
}

static struct ph_journal create(void) {
    struct ph_journal journal;
    struct ph_fault fault;
    disk_format();
    written.count = 0;
    REQUIRE(ph_journal_create(&journal, disk.path[DISK_BASE], &identity, 0, 1, &fault) == 0);
    return journal;
}

/* Some batches, the last one of `last_sectors` sectors. */
static void make_batches(uint32_t count, uint32_t last_sectors) {
    struct ph_journal journal = create();
    while (written.count + 1 < count) {
        REQUIRE(append(&journal, draw_batch(1500)) == 0);
    }
    size_t length = last_sectors * DISK_SECTOR - 8 * (size_t)disk_random(32);
    for (size_t i = PH_BATCH_HEAD; i < length; i++) {
        buffer[i] = (uint8_t)(1 + disk_random(255)); /* a zero in the file is one that was not written */
    }
    REQUIRE(append(&journal, length) == 0);
    ph_journal_close(&journal);
}

/* --- the file as bytes */

static uint8_t image[IMAGE_MAX];
static size_t image_length;

static void read_image(void) {
    int fd = open(disk.path[DISK_BASE], O_RDONLY | O_CLOEXEC);
    REQUIRE(fd >= 0);
    image_length = (size_t)disk_status(fd).st_size;
    REQUIRE(image_length <= sizeof image && read(fd, image, image_length) == (ssize_t)image_length);
    close(fd);
}

static void write_bytes(const void *bytes, size_t length, size_t at) {
    int fd = open(disk.path[DISK_BASE], O_WRONLY | O_CLOEXEC);
    REQUIRE(fd >= 0 && syscall(SYS_pwrite64, fd, bytes, length, at) == (long)length);
    close(fd);
}

static void restore_image(void) { write_bytes(image, image_length, 0); }

static uint32_t length_at(size_t at) {
    uint32_t length;
    memcpy(&length, image + at + AT_LENGTH, sizeof length);
    return length;
}

static size_t sectors_of(size_t length) { return (length + DISK_SECTOR - 1) / DISK_SECTOR * DISK_SECTOR; }

/* Where the batch of a number lies in the image. */
static size_t batch_at(uint32_t number) {
    size_t at = FIRST_AT;
    while (--number > 0) {
        at += sectors_of(length_at(at));
    }
    return at;
}

static void seal_header(uint8_t *header) {
    uint32_t crc = ph_crc32c(header, DISK_SECTOR - 4);
    memcpy(header + DISK_SECTOR - 4, &crc, sizeof crc);
}

static void seal_batch(uint8_t *batch, size_t length) {
    memset(batch + AT_CRC, 0, 4);
    uint32_t crc = ph_crc32c(batch, length);
    memcpy(batch + AT_CRC, &crc, sizeof crc);
}

/* --- tests */

static void test_what_was_written_is_found(void) {
    static const size_t lengths[] = {PH_BATCH_HEAD, 40, 504, 512, 520, 1024, 4096, 100000, PH_BATCH_BYTES_MAX, 48};
    struct ph_fault fault;
    struct ph_journal journal = create();
    uint64_t id = journal.id;
    expect(0, 0);
    for (size_t i = 0; i < sizeof lengths / sizeof lengths[0]; i++) {
        draw_batch(8192);
        while (ph_journal_room(&journal) < sectors_of(lengths[i])) {
            REQUIRE(append(&journal, 32 << 10) == 0);
            REQUIRE(ph_journal_grow(&journal, &fault) == 0);
        }
        CHECK_EQ_U64(append(&journal, lengths[i]), 0);
        expect(0, written.count);
    }
    CHECK_EQ_U64(journal.number, written.count);
    struct ph_journal again;
    REQUIRE(open_journal(&again, 1) == 0);
    CHECK_EQ_U64(again.id, id);
    CHECK_EQ_U64(again.number, journal.number);
    CHECK_EQ_U64(again.at, journal.at);
    CHECK_EQ_U64(again.bytes, journal.bytes);
    CHECK_EQ_U64(again.last_at, journal.last_at);
    CHECK_EQ_U64(ph_journal_settle(&again, &fault), 0);
    ph_journal_close(&again);
    ph_journal_close(&journal);
    expect(0, written.count);
}

/* The successor of a torn batch goes on where it began. */
static void go_on(uint32_t count) {
    struct ph_journal journal;
    struct ph_fault fault;
    struct batches before = {.count = 0};
    memcpy(&before, &written, sizeof before);
    written.count = count;
    REQUIRE(open_journal(&journal, 1) == 0);
    CHECK_EQ_U64(ph_journal_settle(&journal, &fault), 0);
    for (int i = 0; i < 3; i++) {
        CHECK_EQ_U64(append(&journal, draw_batch(1500)), 0);
    }
    ph_journal_close(&journal);
    expect(0, count + 3);
    memcpy(&written, &before, sizeof before);
}

/* The last batch as a power cut leaves it: of each sector what `is_new` says, over zeros or over what `below` has. */
static void check_torn(size_t at, size_t length, const uint8_t *is_new, const uint8_t *below, int goes_on) {
    static uint8_t mixture[IMAGE_MAX];
    memcpy(mixture, below, sectors_of(length));
    for (size_t sector = 0; sector * DISK_SECTOR < length; sector++) {
        if (is_new[sector]) {
            memcpy(mixture + sector * DISK_SECTOR, image + at + sector * DISK_SECTOR, DISK_SECTOR);
        }
    }
    int whole = memcmp(mixture, image + at, length) == 0;
    restore_image();
    write_bytes(mixture, sectors_of(length), at);
    uint32_t count = written.count - !whole;
    expect(0, count);
    if (goes_on) {
        go_on(count);
    }
}

/* F2: every subset of the sectors of a batch of up to eight. */
static void test_torn_small_batches(void) {
    static const uint8_t zeros[8 * DISK_SECTOR];
    for (uint32_t sectors = 1; sectors <= 8; sectors++) {
        make_batches(4, sectors);
        read_image();
        for (unsigned subset = 0; subset < 1U << sectors; subset++) {
            uint8_t is_new[8];
            for (uint32_t i = 0; i < sectors; i++) {
                is_new[i] = subset >> i & 1;
            }
            check_torn(batch_at(4), length_at(batch_at(4)), is_new, zeros, subset % 16 == 0);
        }
    }
}

/* F2: large ones, over what an earlier torn one left. */
static void test_torn_large_batches(void) {
    static uint8_t below[IMAGE_MAX];
    uint8_t is_new[512];
    for (uint64_t round = random_rounds(60); round > 0; round--) {
        uint32_t sectors = (uint32_t)(1 + disk_random(300));
        make_batches(3, sectors);
        read_image();
        for (size_t i = 0; i < sizeof below; i++) {
            below[i] = (uint8_t)disk_random(256);
        }
        for (uint64_t subset = 0; subset < 8; subset++) {
            uint64_t missing_one_in = 1 + disk_random(subset < 4 ? 4 : sectors);
            for (uint32_t i = 0; i < sectors; i++) {
                is_new[i] = !random_chance(&disk.random, missing_one_in);
            }
            check_torn(batch_at(3), length_at(batch_at(3)), is_new, below, subset == 0);
        }
    }
}

static void flip(size_t at, unsigned bit) {
    uint8_t byte = image[at] ^ (uint8_t)(1U << bit);
    write_bytes(&byte, 1, at);
}

/* F2: a bit of the header, or of any batch but the last, is never taken for the end of the journal. */
static void test_bit_flips(void) {
    make_batches(5, 3);
    read_image();
    for (size_t bit = 0; bit < 8 * DISK_SECTOR; bit++) {
        flip(bit / 8, bit % 8);
        expect(PH_ERR_COUNTERS_CORRUPT, 0);
        write_bytes(image, DISK_SECTOR, 0);
    }
    for (uint32_t number = 1; number <= 5; number++) {
        size_t at = batch_at(number);
        size_t length = length_at(at);
        for (size_t byte = 0; byte < sectors_of(length); byte++) {
            int padding = byte >= length;
            for (unsigned bit = byte < PH_BATCH_HEAD ? 0 : disk_random(8), end = byte < PH_BATCH_HEAD ? 8 : bit + 1;
                 bit < end && (byte < 28 || byte >= 32 || bit == 0); bit++) {
                flip(at + byte, bit);
                expect(padding ? 0 : number < 5 ? PH_ERR_COUNTERS_CORRUPT : 0, padding ? 5 : 4);
                write_bytes(image + at + byte, 1, at + byte);
            }
        }
    }
}

/* F2: batches that went to the wrong place, or come from elsewhere. */
static void test_misdirected_and_foreign_batches(void) {
    static uint8_t foreign[IMAGE_MAX];
    make_batches(3, 2);
    read_image();
    memcpy(foreign, image, sizeof foreign);
    const size_t foreign_at[] = {0, batch_at(1), batch_at(2), batch_at(3)};
    make_batches(6, 2);
    read_image();
    size_t end = batch_at(6) + sectors_of(length_at(batch_at(6)));
    for (uint32_t to = 1; to <= 7; to++) {
        size_t at = to == 7 ? end : batch_at(to);
        for (uint32_t from = 1; from <= 6; from++) {
            size_t source = batch_at(from);
            restore_image();
            size_t length = sectors_of(length_at(source));
            size_t room = to == 7 ? length : sectors_of(length_at(at)); /* so that it destroys one batch, not two */
            write_bytes(image + source, length < room ? length : room, at);
            int harmless = to == 7 || from == to;
            expect(harmless || to == 6 ? 0 : PH_ERR_COUNTERS_CORRUPT, harmless ? 6 : 5);
        }
        for (uint32_t from = 1; from <= 3; from++) {
            restore_image();
            write_bytes(foreign + foreign_at[from], DISK_SECTOR, at);
            expect(to >= 6 ? 0 : PH_ERR_COUNTERS_CORRUPT, to == 7 ? 6 : 5);
        }
    }
    restore_image();
    write_bytes(image + batch_at(6), sectors_of(length_at(batch_at(6))), end + 9 * DISK_SECTOR);
    expect(0, 6); /* there twice */
    uint8_t zeros[DISK_SECTOR] = {0};
    write_bytes(zeros, sizeof zeros, batch_at(6));
    expect(PH_ERR_COUNTERS_CORRUPT, 0); /* only in the wrong place */
}

/* A batch that is whole but lies about one field; the seal fits. */
static void test_lying_batches(void) {
    static const struct {
        size_t at;
        uint64_t value;
        size_t bytes;
        int code;
        uint32_t count;
    } cases[] = {
        {AT_NUMBER, 4, 8, 0, 4},
        {AT_NUMBER, 3, 8, 0, 3},
        {AT_NUMBER, 0, 8, 0, 3},
        {AT_NUMBER, 5, 8, PH_ERR_COUNTERS_CORRUPT, 0},
        {AT_NUMBER, UINT64_MAX, 8, PH_ERR_COUNTERS_CORRUPT, 0},
        {AT_ID, 1, 8, 0, 3},
        {0, 0, 4, 0, 3},
        {AT_LENGTH, 0, 4, 0, 3},
        {AT_LENGTH, PH_BATCH_HEAD - 1, 4, 0, 3},
        {AT_LENGTH, PH_BATCH_BYTES_MAX, 4, 0, 3},
        {AT_LENGTH, PH_BATCH_BYTES_MAX + 1, 4, 0, 3},
        {AT_LENGTH, UINT32_MAX, 4, 0, 3},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        make_batches(4, 1);
        read_image();
        uint8_t *batch = image + batch_at(4);
        size_t length = length_at(batch_at(4));
        memcpy(batch + cases[i].at, &cases[i].value, cases[i].bytes);
        seal_batch(batch, length);
        restore_image();
        expect(cases[i].code, cases[i].count);
    }
}

static void expect_header(size_t at, uint32_t value, int code) {
    uint8_t header[DISK_SECTOR];
    memcpy(header, image, sizeof header);
    memcpy(header + at, &value, sizeof value);
    seal_header(header);
    write_bytes(header, sizeof header, 0);
    expect(code, 2);
}

static void test_other_headers(void) {
    make_batches(2, 1);
    read_image();
    expect_header(AT_VERSION, PH_JOURNAL_VERSION, 0);
    expect_header(AT_VERSION, PH_JOURNAL_VERSION + 1, PH_ERR_OBELISK_TOO_NEW);
    expect_header(12, 2, PH_ERR_COUNTERS_CORRUPT);
    expect_header(16, 5, PH_ERR_COUNTERS_CORRUPT);
    expect_header(0, 7, PH_ERR_COUNTERS_CORRUPT);
    REQUIRE(truncate(disk.path[DISK_BASE], 511) == 0);
    expect(PH_ERR_COUNTERS_CORRUPT, 0);
    REQUIRE(truncate(disk.path[DISK_BASE], 0) == 0);
    expect(PH_ERR_COUNTERS_CORRUPT, 0);
    REQUIRE(unlink(disk.path[DISK_BASE]) == 0);
    expect(PH_ERR_COUNTERS_MISSING, 0);
    REQUIRE(mkdir(disk.path[DISK_BASE], 0700) == 0);
    expect(PH_ERR_COUNTERS_CORRUPT, 0);
    REQUIRE(rmdir(disk.path[DISK_BASE]) == 0);
    REQUIRE(symlink("/dev/zero", disk.path[DISK_BASE]) == 0);
    expect(PH_ERR_STATE_DIR_UNUSABLE, 0);
}

static void test_records_that_make_no_sense_are_refused(void) {
    struct ph_journal journal;
    struct ph_fault fault;
    make_batches(2, 1);
    CHECK_EQ_U64(ph_journal_open(&journal, disk.path[DISK_BASE], &identity, 1, refuse, NULL, &fault),
                 PH_ERR_COUNTERS_CORRUPT);
    CHECK_EQ_U64(journal.fd, -1);
}

/* F8: a file that was cut off while nobody had it: what is left of it is found (how much there was the Obelisk knows). */
static void test_truncated_while_down(void) {
    make_batches(5, 4);
    read_image();
    for (size_t length = FIRST_AT; length < batch_at(5) + 5 * DISK_SECTOR; length += 1 + disk_random(200)) {
        restore_image();
        REQUIRE(truncate(disk.path[DISK_BASE], (off_t)length) == 0);
        uint32_t whole = 0;
        while (whole < 5 && batch_at(whole + 1) + length_at(batch_at(whole + 1)) <= length) {
            whole++;
        }
        expect(0, whole);
        struct ph_journal journal;
        struct ph_fault fault;
        uint32_t before = written.count;
        written.count = whole;
        REQUIRE(open_journal(&journal, 1) == 0);
        CHECK_EQ_U64(ph_journal_settle(&journal, &fault), 0);
        CHECK_EQ_U64(ph_journal_grow(&journal, &fault), 0);
        uint32_t kept = written.crc[whole];
        CHECK_EQ_U64(append(&journal, draw_batch(3000)), 0);
        ph_journal_close(&journal);
        expect(0, whole + 1);
        written.crc[whole] = kept;
        written.count = before;
    }
}

/* F2: what cannot be read is not the journal's end. */
static void test_read_errors(void) {
    make_batches(5, 3);
    read_image();
    for (size_t at = 0; at < image_length; at += DISK_SECTOR) {
        disk.unreadable_from = (off_t)at;
        expect(PH_ERR_COUNTERS_CORRUPT, 0);
    }
    disk.unreadable_from = (off_t)image_length;
    expect(0, 5);
}

/* F4: after the first failure nothing is written or synced through this handle again. */
static void test_a_failure_is_final(void) {
    int *const failures[] = {&disk.fail_write, &disk.short_write, &disk.fail_sync};
    for (size_t i = 0; i < sizeof failures / sizeof failures[0]; i++) {
        for (int settling = 0; settling < 2; settling++) {
            struct ph_journal journal;
            struct ph_fault fault;
            make_batches(3, 2);
            REQUIRE(open_journal(&journal, 1) == 0);
            *failures[i] = 1;
            int code = settling ? ph_journal_settle(&journal, &fault) : append(&journal, draw_batch(900));
            CHECK_EQ_U64(code, PH_ERR_SYNC_FAILED);
            disk_behave();
            uint64_t writes = disk.writes, syncs = disk.syncs;
            CHECK_EQ_U64(append(&journal, draw_batch(900)), PH_ERR_SYNC_FAILED);
            CHECK_EQ_U64(ph_journal_settle(&journal, &fault), PH_ERR_SYNC_FAILED);
            CHECK_EQ_U64(disk.writes, writes);
            CHECK_EQ_U64(disk.syncs, syncs);
            CHECK_EQ_U64(journal.number, 3);
            ph_journal_close(&journal);
        }
    }
}

/* F4: a lengthening that failed, other than for want of room, ends the handle too. */
static void test_a_failed_lengthening_is_final(void) {
    int *const failures[] = {&disk.fail_write, &disk.fail_sync};
    for (size_t i = 0; i < 2; i++) {
        struct ph_fault fault;
        struct ph_journal journal = create();
        while (ph_journal_room(&journal) > (128 << 10)) {
            REQUIRE(append(&journal, 32 << 10) == 0);
        }
        REQUIRE(append(&journal, 32 << 10) == 0);
        *failures[i] = 1;
        CHECK_EQ_U64(ph_journal_grow(&journal, &fault), PH_ERR_SYNC_FAILED);
        disk_behave();
        CHECK_EQ_U64(append(&journal, draw_batch(900)), PH_ERR_SYNC_FAILED);
        ph_journal_close(&journal);
        expect(0, written.count);
    }
}

/*
 * F4: the sync of a batch fails; the page cache shows it and the medium lacks it. A successor goes on behind it, and then
 * the power goes. Returns what the next one finds.
 */
static int code_after_lying_cache(int settle) {
    struct ph_journal journal;
    struct ph_fault fault;
    make_batches(3, 2);
    REQUIRE(open_journal(&journal, 1) == 0);
    disk.fail_sync = 1;
    size_t length = draw_batch(6000);
    CHECK_EQ_U64(append(&journal, length), PH_ERR_SYNC_FAILED);
    uint32_t pages = (uint32_t)(length / DISK_PAGE);
    ph_journal_close(&journal);
    disk_behave();
    memset(disk.files[disk.cached[DISK_BASE]].medium + journal.at, 0, length);
    REQUIRE(open_journal(&journal, 1) == 0);
    CHECK_EQ_U64(journal.number, 4);
    written.count = 4;
    if (settle) {
        CHECK_EQ_U64(ph_journal_settle(&journal, &fault), 0);
    }
    for (uint32_t i = 0; i <= pages + 8; i++) {
        CHECK_EQ_U64(append(&journal, 512), 0);
    }
    ph_journal_close(&journal);
    disk_power_cut();
    return open_code();
}

static void test_settling_saves_what_a_failed_sync_lost(void) {
    int lost = 0;
    for (int i = 0; i < 20; i++) {
        CHECK_EQ_U64(code_after_lying_cache(1), 0);
        expect(0, written.count);
        lost += code_after_lying_cache(0) == PH_ERR_COUNTERS_CORRUPT;
    }
    CHECK(lost > 0); /* so the model can tell */
}

/* F4: between reading and settling the cache forgot a page that a failed sync had left clean. */
static void test_only_what_was_read_is_settled(void) {
    for (size_t damage = 0; damage < 4; damage++) {
        static const size_t places[] = {AT_LENGTH, AT_NUMBER, AT_CRC, 600};
        struct ph_journal journal;
        struct ph_fault fault;
        make_batches(3, 2);
        REQUIRE(open_journal(&journal, 1) == 0);
        uint64_t writes = disk.writes;
        uint8_t zeros[8] = {0};
        write_bytes(zeros, damage == 0 ? 4 : 8, journal.last_at + places[damage]);
        CHECK_EQ_U64(ph_journal_settle(&journal, &fault), PH_ERR_SYNC_FAILED);
        CHECK_EQ_U64(append(&journal, draw_batch(100)), PH_ERR_SYNC_FAILED);
        CHECK_EQ_U64(disk.writes, writes);
        ph_journal_close(&journal);
        expect(0, 2);
    }
}

/* F3: whoever made the file died before its name was durable. Its successor makes it so before it writes. */
static void test_the_name_is_settled_too(void) {
    for (int empty = 0; empty < 2; empty++) {
        struct ph_fault fault;
        struct ph_journal journal = create();
        uint32_t count = 0;
        if (!empty) {
            REQUIRE(append(&journal, draw_batch(900)) == 0);
            count = 1;
        }
        ph_journal_close(&journal);
        disk.changes[disk.change_count++] = (struct disk_change){disk.cached[DISK_BASE], DISK_NONE, DISK_BASE};
        disk.durable[DISK_BASE] = DISK_NONE;
        REQUIRE(open_journal(&journal, 1) == 0);
        CHECK_EQ_U64(ph_journal_settle(&journal, &fault), 0);
        CHECK_EQ_U64(disk.change_count, 0);
        CHECK_EQ_U64(append(&journal, draw_batch(900)), 0);
        ph_journal_close(&journal);
        disk_power_cut();
        expect(0, count + 1);
        REQUIRE(open_journal(&journal, 1) == 0);
        disk.fail_sync = 1;
        CHECK_EQ_U64(ph_journal_settle(&journal, &fault), PH_ERR_SYNC_FAILED);
        ph_journal_close(&journal);
    }
}

/* F3: at each step of the making: there is no file, or a whole one, also for processes that come right after. */
static void test_crashes_while_creating(void) {
    int64_t step = 1;
    int succeeded = 0;
    for (; !succeeded; step++) {
        for (int cut = 0; cut < 4; cut++) {
            struct ph_journal journal;
            struct ph_fault fault;
            disk_format();
            written.count = 0;
            disk.steps_left = step;
            int code = ph_journal_create(&journal, disk.path[DISK_BASE], &identity, 0, 1, &fault);
            int died = disk.dead;
            CHECK_EQ_U64(code != 0, died);
            succeeded = code == 0;
            if (code == 0) {
                ph_journal_close(&journal);
            }
            disk_behave();
            if (cut > 0) {
                disk_power_cut();
            }
            code = open_code();
            CHECK(code == 0 || (died && code == PH_ERR_COUNTERS_MISSING));
            CHECK_EQ_U64(found.count, 0);
            if (code != 0) {
                REQUIRE(ph_journal_create(&journal, disk.path[DISK_BASE], &identity, 0, 1, &fault) == 0);
            } else {
                REQUIRE(open_journal(&journal, 1) == 0 && ph_journal_settle(&journal, &fault) == 0);
            }
            CHECK_EQ_U64(append(&journal, draw_batch(900)), 0);
            ph_journal_close(&journal);
            disk_power_cut();
            expect(0, 1);
        }
    }
    CHECK(step > 8);
}

/* Fills the file until it should grow. */
static void use_up(struct ph_journal *journal) {
    while (ph_journal_room(journal) >= 2 * (32 << 10)) {
        REQUIRE(append(journal, 32 << 10) == 0);
    }
}

/* F7: a disk without room refuses the growing; what room there is can be written to, and nothing has changed. */
static void check_full(struct ph_journal *journal, int code) {
    struct ph_fault fault;
    struct ph_journal before = *journal;
    CHECK_EQ_U64(ph_journal_grow(journal, &fault), code);
    CHECK_EQ_U64(journal->bytes, before.bytes);
    CHECK_EQ_U64(journal->at, before.at);
    CHECK_EQ_U64(journal->poisoned, 0);
    CHECK_EQ_U64(append(journal, 1000), 0);
    expect(0, written.count);
}

static void test_full_disk(void) {
    for (int no_fallocate = 0; no_fallocate < 2; no_fallocate++) {
        for (int64_t room = 0; room < PH_JOURNAL_GROWTH_MIN; room += 60 << 10) {
            struct ph_fault fault;
            struct ph_journal journal = create();
            use_up(&journal);
            disk.no_fallocate = no_fallocate;
            disk.room = room;
            check_full(&journal, PH_ERR_STORAGE_FULL);
            disk.room = 0;
            check_full(&journal, PH_ERR_STORAGE_FULL);
            disk.room = -1;
            uint64_t had = journal.bytes;
            CHECK_EQ_U64(ph_journal_grow(&journal, &fault), 0);
            CHECK(journal.bytes >= had + PH_JOURNAL_GROWTH_MIN);
            CHECK_EQ_U64(append(&journal, 100 << 10), 0);
            ph_journal_close(&journal);
            disk_power_cut();
            expect(0, written.count);
        }
        struct ph_journal journal;
        struct ph_fault fault;
        disk_format();
        written.count = 0;
        disk.no_fallocate = no_fallocate;
        disk.room = 100 << 10;
        CHECK_EQ_U64(ph_journal_create(&journal, disk.path[DISK_BASE], &identity, 0, 1, &fault), PH_ERR_STORAGE_FULL);
        CHECK_EQ_U64(journal.fd, -1);
        expect(PH_ERR_COUNTERS_MISSING, 0);
        disk.room = -1;
        REQUIRE(ph_journal_create(&journal, disk.path[DISK_BASE], &identity, 0, 1, &fault) == 0);
        ph_journal_close(&journal);
    }
}

/* What lies beyond the length that the handle knows is overwritten with zeros: it may be the rest of a growing that failed. */
static void test_growing_clears(void) {
    static uint8_t rubbish[PH_JOURNAL_GROWTH_MIN];
    struct ph_fault fault;
    struct ph_journal journal = create();
    use_up(&journal);
    memset(rubbish, 0x5a, sizeof rubbish);
    write_bytes(rubbish, sizeof rubbish, journal.bytes);
    REQUIRE(ph_journal_grow(&journal, &fault) == 0);
    read_image();
    CHECK(journal.bytes == image_length);
    for (size_t i = journal.at; i < journal.bytes; i++) {
        REQUIRE(image[i] == 0);
    }
    ph_journal_close(&journal);
}

/* --- what a batch asks of the file system */

static uint64_t times_asked; /* so often somebody wanted to know when a file was written */

int stat(const char *restrict path, struct stat *restrict status) {
    times_asked++;
    return fstatat(AT_FDCWD, path, status, 0);
}

int statx(int directory, const char *restrict path, int flags, unsigned mask, struct statx *restrict status) {
    times_asked += (mask & (STATX_CTIME | STATX_MTIME)) != 0;
    return (int)syscall(SYS_statx, directory, path, flags, mask, status);
}

/* One write and one sync. Who asks for a file's times makes its next write take new ones, and its sync write the inode. */
static void test_a_batch_is_one_write(void) {
    struct ph_journal journal = create();
    disk.writes = disk.syncs = times_asked = 0;
    for (uint64_t count = 1; count <= 100; count++) {
        CHECK_EQ_U64(append(&journal, 1000), 0);
        CHECK_EQ_U64(disk.writes, count);
        CHECK_EQ_U64(disk.syncs, count);
    }
    CHECK_EQ_U64(times_asked, 0);
    ph_journal_close(&journal);
}

static int fill_small_tmpfs(void) {
    struct ph_fault fault;
    int full = 0;
    if (mount("tmpfs", disk.directory, "tmpfs", 0, "size=1m") != 0) {
        return 2;
    }
    struct ph_journal journal = create();
    for (int i = 0; i < 1000 && !full; i++) {
        full = ph_journal_room(&journal) < (32 << 10);
        CHECK_EQ_U64(full ? 0 : append(&journal, 32 << 10), 0);
        int code = ph_journal_grow(&journal, &fault);
        CHECK(code == 0 || code == PH_ERR_STORAGE_FULL);
    }
    CHECK(full && journal.bytes >= 2 * PH_JOURNAL_GROWTH_MIN && written.count > 8);
    check_full(&journal, PH_ERR_STORAGE_FULL);
    REQUIRE(mount("tmpfs", disk.directory, "tmpfs", MS_REMOUNT, "size=4m") == 0);
    CHECK_EQ_U64(ph_journal_grow(&journal, &fault), 0);
    CHECK_EQ_U64(append(&journal, 100 << 10), 0);
    expect(0, written.count);
    ph_journal_close(&journal);
    return ph_load_relaxed(&check_failed) != 0;
}

/* F7, by the kernel: needs root for a mount of its own. */
static void test_full_tmpfs(void) {
    int status;
    fflush(stdout);
    pid_t child = fork();
    REQUIRE(child >= 0);
    if (child == 0) {
        int alone = unshare(CLONE_NEWNS) == 0 && mount("", "/", NULL, MS_REC | MS_PRIVATE, NULL) == 0;
        _exit(alone ? fill_small_tmpfs() : 2);
    }
    REQUIRE(waitpid(child, &status, 0) == child);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) != 1);
    if (WEXITSTATUS(status) == 2) {
        printf("without a tmpfs of its own: needs root\n");
    }
}

/* F8: a path that has changed is noticed before anything is written. */
static void test_a_path_that_changes_is_noticed(void) {
    struct ph_fault fault;
    char elsewhere[128];
    struct ph_journal journal = create();
    snprintf(elsewhere, sizeof elsewhere, "%s.new", disk.path[DISK_NEXT]);
    REQUIRE(append(&journal, draw_batch(900)) == 0);
    read_image();
    uint64_t writes = disk.writes;
    REQUIRE(truncate(disk.path[DISK_BASE], (off_t)image_length - 1) == 0);
    CHECK_EQ_U64(append(&journal, draw_batch(900)), PH_ERR_OBELISK_LOST);
    restore_image();
    REQUIRE(syscall(SYS_renameat, AT_FDCWD, disk.path[DISK_BASE], AT_FDCWD, elsewhere) == 0);
    CHECK_EQ_U64(append(&journal, draw_batch(900)), PH_ERR_OBELISK_LOST);
    CHECK_EQ_U64(ph_journal_rename(&journal, disk.path[DISK_NEXT], &fault), PH_ERR_OBELISK_LOST);
    snprintf(journal.path, sizeof journal.path, "%s", disk.path[DISK_BASE]);
    int other = open(disk.path[DISK_BASE], O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    REQUIRE(other >= 0 && ftruncate(other, (off_t)image_length) == 0);
    close(other);
    CHECK_EQ_U64(append(&journal, draw_batch(900)), PH_ERR_OBELISK_LOST);
    CHECK_EQ_U64(disk.writes, writes);
    REQUIRE(syscall(SYS_renameat, AT_FDCWD, elsewhere, AT_FDCWD, disk.path[DISK_BASE]) == 0);
    CHECK_EQ_U64(append(&journal, draw_batch(900)), 0);
    ph_journal_close(&journal);
    expect(0, 2);
}

/* F3: a rename that a crash overtakes has happened or not; one that returned success has happened. */
static void test_renaming(void) {
    for (int64_t step = 1; step <= 4; step++) {
        for (int cut = 0; cut < 6; cut++) {
            struct ph_journal next;
            struct ph_fault fault;
            make_batches(3, 1);
            uint64_t id = 77;
            REQUIRE(ph_journal_create(&next, disk.path[DISK_NEXT], &identity, id, 4, &fault) == 0);
            REQUIRE(append(&next, draw_batch(900)) == 0);
            disk.steps_left = step;
            int code = ph_journal_rename(&next, disk.path[DISK_BASE], &fault);
            CHECK_EQ_U64(code, disk.dead ? PH_ERR_SYNC_FAILED : 0);
            ph_journal_close(&next);
            int dead = disk.dead;
            disk_behave();
            if (cut > 0) {
                disk_power_cut();
            }
            CHECK_EQ_U64(open_code(), 0);
            CHECK(found.count == 1 || (found.count == 3 && dead));
            int has_next = access(disk.path[DISK_NEXT], F_OK) == 0;
            CHECK_EQ_U64(has_next, found.count == 3);
        }
    }
}

/* --- random lives */

/* What the next calls do: mostly their work. */
static void draw_luck(void) {
    uint64_t luck = disk_random(24);
    disk_behave();
    disk.fail_write = luck == 0;
    disk.short_write = luck == 1;
    disk.fail_sync = luck == 2 || luck == 3;
    disk.steps_left = luck == 4 ? (int64_t)(1 + disk_random(4)) : -1;
    disk.room = luck == 5 ? (int64_t)disk_random(PH_JOURNAL_GROWTH_MAX) : -1;
}

/* Settles, appends, grows, until a failure, a kill or the end of its days. */
static void live(struct ph_journal *owner) {
    struct ph_fault fault;
    draw_luck();
    int code = ph_journal_settle(owner, &fault);
    written.count = code == 0 ? found.count : written.count;
    for (uint64_t days = disk_random(12); days > 0 && code == 0; days--) {
        draw_luck();
        size_t length = draw_batch(disk_random(8) == 0 ? 60000 : 1500);
        code = ph_journal_grow(owner, &fault);
        if (code == PH_ERR_STORAGE_FULL) {
            code = 0;
        }
        if (code == 0 && ph_journal_room(owner) >= sectors_of(length)) {
            code = append(owner, length);
        }
    }
}

/* F1, F2, F4, F6, F7: any sequence of good and bad days. */
static void test_random_lives(void) {
    uint64_t batches = 0;
    for (uint64_t history = random_rounds(60); history > 0; history--) {
        struct ph_journal owner = create();
        ph_journal_close(&owner);
        for (int i = 0; i < 40; i++) {
            REQUIRE(open_journal(&owner, 1) == 0);
            /* What was promised, and perhaps the one that was under way. */
            REQUIRE(found.count >= written.count && found.count <= written.count + 1);
            CHECK(memcmp(found.crc, written.crc, found.count * sizeof found.crc[0]) == 0);
            live(&owner);
            disk_behave();
            ph_journal_close(&owner);
            if (disk_random(2) == 0) {
                disk_power_cut();
            }
        }
        batches += written.count;
    }
    CHECK(batches > 0);
}

int main(void) {
    disk_start("journal");
    RUN(test_what_was_written_is_found);
    RUN(test_torn_small_batches);
    RUN(test_torn_large_batches);
    RUN(test_bit_flips);
    RUN(test_misdirected_and_foreign_batches);
    RUN(test_lying_batches);
    RUN(test_other_headers);
    RUN(test_records_that_make_no_sense_are_refused);
    RUN(test_truncated_while_down);
    RUN(test_read_errors);
    RUN(test_a_failure_is_final);
    RUN(test_a_failed_lengthening_is_final);
    RUN(test_settling_saves_what_a_failed_sync_lost);
    RUN(test_only_what_was_read_is_settled);
    RUN(test_the_name_is_settled_too);
    RUN(test_crashes_while_creating);
    RUN(test_full_disk);
    RUN(test_growing_clears);
    RUN(test_a_batch_is_one_write);
    RUN(test_full_tmpfs);
    RUN(test_a_path_that_changes_is_noticed);
    RUN(test_renaming);
    RUN(test_random_lives);
    disk_end();
    return check_report();
}
