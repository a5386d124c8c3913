#define _GNU_SOURCE
#include "durable/journal.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/crc.h"
#include "ph_errors.h"

#define JOURNAL_MAGIC UINT64_C(0x5245544e554f4350) /* "PCOUNTER" */
#define BATCH_MAGIC 0x48435442                     /* "BTCH" */
#define FIRST_BATCH_AT PH_OBELISK_PAGE

struct header_sector {
    uint64_t magic;
    uint32_t version;
    uint32_t coordinator;
    uint32_t modulus;
    uint32_t pad0;
    uint64_t id;
    uint64_t first;
    int64_t created_ns;
    uint8_t pad1[460];
    uint32_t crc;
};

struct batch_head {
    uint32_t magic;
    uint32_t length; /* head and records */
    uint64_t number;
    uint64_t id;
    uint32_t crc; /* of the batch with zero here */
    uint32_t pad0;
};

static_assert(sizeof(struct header_sector) == PH_OBELISK_SECTOR, "the header fits one sector");
static_assert(offsetof(struct header_sector, crc) == PH_OBELISK_SECTOR - 4, "the checksum ends the sector");
static_assert(sizeof(struct batch_head) == PH_BATCH_HEAD, "part of the journal's version");
static_assert(PH_JOURNAL_GROWTH_MIN % PH_OBELISK_PAGE == 0, "the file grows by pages");

static uint32_t batch_crc(const uint8_t *batch, uint32_t length) {
    struct batch_head head;
    memcpy(&head, batch, sizeof head);
    head.crc = 0;
    uint32_t crc = ph_crc32c_more(PH_CRC_START, &head, sizeof head);
    return ~ph_crc32c_more(crc, batch + sizeof head, length - sizeof head);
}

static int poison(struct ph_journal *journal, const char *what, struct ph_fault *fault) {
    int error = errno;
    journal->poisoned = 1;
    return ph_fault_set(fault, PH_ERR_SYNC_FAILED, "%s: %s: %s", journal->path, what, strerror(error));
}

/* Reserves room and fills it with zeros, so that writing there later needs no room and changes no metadata. */
static int lengthen(struct ph_journal *journal, uint64_t by, struct ph_fault *fault) {
    static const uint8_t zeros[64 << 10];
    int error = posix_fallocate(journal->fd, (off_t)journal->bytes, (off_t)by);
    if (ph_is_shortage(error)) {
        return ph_fault_set(fault, PH_ERR_STORAGE_FULL, "%s: %s", journal->path, strerror(error));
    }
    if (error != 0 && error != EOPNOTSUPP && error != EINVAL) {
        errno = error;
        return poison(journal, "lengthening", fault);
    }
    for (uint64_t done = 0; done < by;) {
        size_t part = by - done < sizeof zeros ? (size_t)(by - done) : sizeof zeros;
        ssize_t written = journal->io.write_at(journal->fd, zeros, part, (off_t)(journal->bytes + done));
        if (written < 0 && ph_is_shortage(errno)) {
            return ph_fault_set(fault, PH_ERR_STORAGE_FULL, "%s: %s", journal->path, strerror(errno));
        }
        if (written <= 0) {
            return poison(journal, "lengthening", fault);
        }
        done += (uint64_t)written;
    }
    if (journal->io.sync_data(journal->fd) != 0) {
        return poison(journal, "lengthening", fault);
    }
    journal->bytes += by;
    return 0;
}

static void start(struct ph_journal *journal, const char *path) {
    *journal = (struct ph_journal){.fd = -1, .directory_fd = -1, .io = ph_system_io, .at = FIRST_BATCH_AT};
    snprintf(journal->path, sizeof journal->path, "%s", path);
}

static int write_header(struct ph_journal *journal, const struct ph_identity *identity, struct ph_fault *fault) {
    struct timespec now;
    struct header_sector sector;
    clock_gettime(CLOCK_REALTIME, &now);
    memset(&sector, 0, sizeof sector);
    sector.magic = JOURNAL_MAGIC;
    sector.version = PH_JOURNAL_VERSION;
    sector.coordinator = identity->coordinator;
    sector.modulus = identity->modulus;
    sector.id = journal->id;
    sector.first = journal->first;
    sector.created_ns = (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
    sector.crc = ph_crc32c(&sector, sizeof sector - sizeof sector.crc);
    errno = EIO; /* what a short write means; there is room already */
    int whole = journal->io.write_at(journal->fd, &sector, sizeof sector, 0) == (ssize_t)sizeof sector;
    return whole ? 0 : poison(journal, "writing its header", fault);
}

static int note_inode(struct ph_journal *journal) {
    struct stat status;
    if (fstat(journal->fd, &status) != 0) {
        return -1;
    }
    journal->inode = status.st_ino;
    return 0;
}

int ph_journal_create(struct ph_journal *journal, const char *path, const struct ph_identity *identity, uint64_t id,
                      uint64_t first, struct ph_fault *fault) {
    char temporary[520];
    start(journal, path);
    journal->first = first;
    journal->number = first - 1;
    journal->id = id;
    if (id == 0 && getrandom(&journal->id, sizeof journal->id, 0) != sizeof journal->id) {
        return ph_fault_set(fault, PH_ERR_INTERNAL, "no random numbers");
    }
    snprintf(temporary, sizeof temporary, "%s.new", path);
    journal->directory_fd = ph_open_directory_of(path);
    if (journal->directory_fd >= 0) {
        journal->fd = open(temporary, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
    }
    if (journal->fd < 0) {
        int error = errno;
        ph_journal_close(journal);
        journal->id = 0;
        return ph_fault_set(fault, ph_is_shortage(error) ? PH_ERR_STORAGE_FULL : PH_ERR_SYNC_FAILED, "%s: %s",
                            temporary, strerror(error));
    }
    int code = lengthen(journal, PH_JOURNAL_GROWTH_MIN, fault);
    code = code != 0 ? code : write_header(journal, identity, fault);
    if (code == 0 && (fsync(journal->fd) != 0 || note_inode(journal) != 0 || rename(temporary, path) != 0 ||
                      fsync(journal->directory_fd) != 0)) {
        code = poison(journal, "creating", fault);
    }
    if (code != 0) {
        unlink(temporary);
        ph_journal_close(journal);
        journal->id = 0;
    }
    return code;
}

/* --- reading */

static int corrupt(const struct ph_journal *journal, const char *what, struct ph_fault *fault) {
    return ph_fault_set(fault, PH_ERR_COUNTERS_CORRUPT, "%s: %s", journal->path, what);
}

static int read_header(struct ph_journal *journal, const struct ph_identity *identity, struct ph_fault *fault) {
    struct header_sector sector;
    if (pread(journal->fd, &sector, sizeof sector, 0) != (ssize_t)sizeof sector || sector.magic != JOURNAL_MAGIC ||
        sector.crc != ph_crc32c(&sector, sizeof sector - sizeof sector.crc)) {
        return corrupt(journal, "its header is damaged", fault);
    }
    if (sector.version != PH_JOURNAL_VERSION) {
        return ph_fault_set(fault, PH_ERR_OBELISK_TOO_NEW, "%s has format version %u; this pharaohd knows %d",
                            journal->path, sector.version, PH_JOURNAL_VERSION);
    }
    if (sector.coordinator != identity->coordinator || sector.modulus != identity->modulus) {
        return ph_fault_set(fault, PH_ERR_COUNTERS_CORRUPT, "%s is of coordinator %u of %u, not %u of %u",
                            journal->path, sector.coordinator, sector.modulus, identity->coordinator,
                            identity->modulus);
    }
    journal->id = sector.id;
    journal->first = sector.first;
    journal->number = sector.first - 1;
    return 0;
}

/* A piece of the file in memory. */
struct window {
    uint8_t *data; /* PH_BATCH_BYTES_MAX */
    uint64_t at;
    uint64_t length;
    int error; /* of a read that failed: what cannot be read is not missing */
};

/* The bytes at an offset, `length` of them if the file has them; NULL: it has not, or cannot be read. */
static const uint8_t *look(const struct ph_journal *journal, struct window *window, uint64_t at, uint64_t length) {
    if (at < window->at || at + length > window->at + window->length) {
        ssize_t got = pread(journal->fd, window->data, PH_BATCH_BYTES_MAX, (off_t)at);
        window->at = at;
        window->length = got > 0 ? (uint64_t)got : 0;
        window->error = got < 0 ? errno : window->error;
    }
    return length <= window->length - (at - window->at) ? window->data + (at - window->at) : NULL;
}

/* The batch at an offset if it is a whole one of this journal with a number from `least` on. */
static const uint8_t *whole_batch(const struct ph_journal *journal, struct window *window, uint64_t at, uint64_t least,
                                  struct batch_head *head) {
    const uint8_t *found = look(journal, window, at, sizeof *head);
    if (found == NULL) {
        return NULL;
    }
    memcpy(head, found, sizeof *head);
    if (head->magic != BATCH_MAGIC || head->id != journal->id || head->number < least || head->length < sizeof *head ||
        head->length > PH_BATCH_BYTES_MAX) {
        return NULL;
    }
    found = look(journal, window, at, head->length);
    return found != NULL && batch_crc(found, head->length) == head->crc ? found : NULL;
}

/* Reads batches to the end, and makes sure that it is the end. */
static int read_batches(struct ph_journal *journal, struct window *window, ph_journal_visitor *visit, void *context,
                        struct ph_fault *fault) {
    struct batch_head head;
    const uint8_t *batch;
    while ((batch = whole_batch(journal, window, journal->at, journal->number + 1, &head)) != NULL &&
           head.number == journal->number + 1) {
        if (visit(context, batch + sizeof head, head.length - sizeof head) != 0) {
            return corrupt(journal, "a batch holds what this version does not know", fault);
        }
        journal->number = head.number;
        journal->last_at = journal->at;
        journal->at += ph_journal_sectors(head.length);
    }
    for (uint64_t at = journal->at; at < journal->bytes; at += PH_OBELISK_SECTOR) {
        if (whole_batch(journal, window, at, journal->number + 1, &head) != NULL) {
            return ph_fault_set(fault, PH_ERR_COUNTERS_CORRUPT, "%s: batch %llu is damaged, but %llu is there",
                                journal->path, (unsigned long long)(journal->number + 1),
                                (unsigned long long)head.number);
        }
    }
    return window->error == 0 ? 0 : corrupt(journal, strerror(window->error), fault);
}

int ph_journal_open(struct ph_journal *journal, const char *path, const struct ph_identity *identity, int writable,
                    ph_journal_visitor *visit, void *context, struct ph_fault *fault) {
    struct stat status;
    start(journal, path);
    journal->fd = open(path, (writable ? O_RDWR : O_RDONLY) | O_CLOEXEC | O_NOFOLLOW);
    if (journal->fd < 0) {
        return errno != ENOENT ? ph_cannot_open(path, fault)
                               : ph_fault_set(fault, PH_ERR_COUNTERS_MISSING, "%s: %s", path, strerror(errno));
    }
    journal->directory_fd = writable ? ph_open_directory_of(path) : -1;
    if (writable && journal->directory_fd < 0) {
        ph_cannot_open(path, fault);
        ph_journal_close(journal);
        return fault->code;
    }
    struct window window = {.data = malloc(PH_BATCH_BYTES_MAX)};
    int code = 0;
    if (window.data == NULL) {
        code = ph_fault_set(fault, PH_ERR_INTERNAL, "out of memory");
    } else if (fstat(journal->fd, &status) != 0 || !S_ISREG(status.st_mode)) {
        code = corrupt(journal, "not a regular file", fault);
    } else {
        journal->inode = status.st_ino;
        journal->bytes = (uint64_t)status.st_size / PH_OBELISK_SECTOR * PH_OBELISK_SECTOR;
        code = read_header(journal, identity, fault);
    }
    code = code != 0 ? code : read_batches(journal, &window, visit, context, fault);
    free(window.data);
    if (code != 0) {
        ph_journal_close(journal);
    } else if (journal->bytes < journal->at) {
        journal->bytes = journal->at; /* the last batch's padding is missing */
    }
    return code;
}

/* --- writing */

/* Asks for no times: docs/decisions/0016-one-write.md. */
static int check_path(const struct ph_journal *journal, struct ph_fault *fault) {
    struct statx by_path;
    if (statx(AT_FDCWD, journal->path, 0, STATX_INO | STATX_SIZE, &by_path) != 0) {
        return ph_fault_set(fault, PH_ERR_OBELISK_LOST, "%s: %s", journal->path, strerror(errno));
    }
    if (by_path.stx_ino != journal->inode) {
        return ph_fault_set(fault, PH_ERR_OBELISK_LOST, "%s is another file now", journal->path);
    }
    if (by_path.stx_size < journal->bytes) {
        return ph_fault_set(fault, PH_ERR_OBELISK_LOST, "%s was truncated to %llu bytes", journal->path,
                            (unsigned long long)by_path.stx_size);
    }
    return 0;
}

static int put(struct ph_journal *journal, const uint8_t *data, uint64_t length, uint64_t at, struct ph_fault *fault) {
    if (journal->poisoned) {
        return ph_fault_set(fault, PH_ERR_SYNC_FAILED, "%s: an earlier write or sync failed", journal->path);
    }
    errno = EIO; /* what a short write means */
    if (journal->io.write_at(journal->fd, data, length, (off_t)at) != (ssize_t)length) {
        return poison(journal, "writing", fault);
    }
    return journal->io.sync_data(journal->fd) == 0 ? 0 : poison(journal, "syncing", fault);
}

/* Is it still what was read? A page that a failed sync left clean may have been forgotten, and read anew, since. */
static int is_last_batch(const struct ph_journal *journal, const uint8_t *batch, uint64_t length) {
    struct batch_head head;
    memcpy(&head, batch, sizeof head);
    return head.number == journal->number && head.length >= sizeof head && ph_journal_sectors(head.length) == length &&
           batch_crc(batch, head.length) == head.crc;
}

int ph_journal_settle(struct ph_journal *journal, struct ph_fault *fault) {
    if (fsync(journal->directory_fd) != 0) { /* a predecessor may have died before it did */
        return poison(journal, "syncing its directory", fault);
    }
    if (journal->last_at == 0) {
        return 0;
    }
    uint64_t length = journal->at - journal->last_at;
    uint8_t *batch = calloc(1, length);
    int code = batch == NULL ? ph_fault_set(fault, PH_ERR_INTERNAL, "out of memory") : 0;
    errno = EIO; /* what other bytes mean */
    if (code == 0 &&
        (pread(journal->fd, batch, length, (off_t)journal->last_at) <= 0 || !is_last_batch(journal, batch, length))) {
        code = poison(journal, "reading", fault);
    }
    code = code != 0 ? code : put(journal, batch, length, journal->last_at, fault);
    free(batch);
    return code;
}

int ph_journal_append(struct ph_journal *journal, uint8_t *batch, size_t length, struct ph_fault *fault) {
    uint64_t whole = ph_journal_sectors(length);
    struct batch_head head = {
        .magic = BATCH_MAGIC, .length = (uint32_t)length, .number = journal->number + 1, .id = journal->id};
    assert(length >= sizeof head && length <= PH_BATCH_BYTES_MAX && whole <= ph_journal_room(journal));
    memcpy(batch, &head, sizeof head);
    memset(batch + length, 0, whole - length);
    head.crc = batch_crc(batch, head.length);
    memcpy(batch, &head, sizeof head);
    int code = check_path(journal, fault);
    code = code != 0 ? code : put(journal, batch, whole, journal->at, fault);
    if (code == 0) {
        journal->number = head.number;
        journal->last_at = journal->at;
        journal->at += whole;
    }
    return code;
}

int ph_journal_grow(struct ph_journal *journal, struct ph_fault *fault) {
    uint64_t step = journal->bytes / PH_OBELISK_PAGE * PH_OBELISK_PAGE;
    step = step > PH_JOURNAL_GROWTH_MAX ? PH_JOURNAL_GROWTH_MAX : step;
    step = step < PH_JOURNAL_GROWTH_MIN ? PH_JOURNAL_GROWTH_MIN : step;
    if (ph_journal_room(journal) >= step / 2) {
        return 0;
    }
    int code = check_path(journal, fault);
    return code != 0 ? code : lengthen(journal, step, fault);
}

int ph_journal_rename(struct ph_journal *journal, const char *path, struct ph_fault *fault) {
    int code = check_path(journal, fault);
    if (code == 0 && (rename(journal->path, path) != 0 || fsync(journal->directory_fd) != 0)) {
        code = poison(journal, "renaming", fault);
    }
    snprintf(journal->path, sizeof journal->path, "%s", path);
    return code;
}

void ph_journal_close(struct ph_journal *journal) {
    if (journal->fd >= 0) {
        close(journal->fd);
    }
    if (journal->directory_fd >= 0) {
        close(journal->directory_fd);
    }
    journal->fd = journal->directory_fd = -1;
}
