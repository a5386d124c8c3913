#define _GNU_SOURCE
#include "durable/obelisk.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/crc.h"
#include "ph_errors.h"

#define IDENTITY_MAGIC UINT64_C(0x4b53494c45424f50) /* "POBELISK" */
#define RECORD_MAGIC UINT64_C(0x474e494c49454350)   /* "PCEILING" */
#define LOCK_ATTEMPTS 200
#define LOCK_PAUSE_NS 10000000

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the file's byte order is the host's");

struct identity_sector {
    uint64_t magic;
    uint32_t version;
    uint32_t bytes;
    uint64_t file_id;
    uint32_t coordinator;
    uint32_t modulus;
    uint8_t ms_bits;
    uint8_t coordinator_bits;
    uint8_t sequence_bits;
    uint8_t pad0[5];
    uint64_t epoch_ms;
    uint8_t cluster_id[16];
    uint8_t host_id[16];
    int64_t created_ns;
    uint8_t pad1[420];
    uint32_t crc;
};

struct record_sector {
    uint64_t magic;
    uint64_t number;
    uint64_t file_id;
    uint32_t slot;
    uint32_t coordinator;
    uint64_t ceiling;
    uint32_t clean;
    uint32_t pad0;
    int64_t host_ns;
    int64_t realtime_ns;
    int64_t boottime_ns;
    uint8_t boot_id[16];
    uint64_t counters_id;
    uint64_t counters_batch;
    uint64_t start_id; /* 0 in records of versions before it */
    uint8_t pad1[396];
    uint32_t crc;
};

static_assert(sizeof(struct identity_sector) == PH_OBELISK_SECTOR, "the identity fits one sector");
static_assert(sizeof(struct record_sector) == PH_OBELISK_SECTOR, "a record fits one sector");
static_assert(offsetof(struct identity_sector, crc) == PH_OBELISK_SECTOR - 4, "the checksum ends the sector");
static_assert(offsetof(struct record_sector, crc) == PH_OBELISK_SECTOR - 4, "the checksum ends the sector");

int ph_fault_set(struct ph_fault *fault, int code, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    fault->code = code;
    vsnprintf(fault->detail, sizeof fault->detail, format, arguments);
    va_end(arguments);
    return code;
}

static off_t record_offset(uint32_t slot) { return (off_t)PH_OBELISK_PAGE * (1 + (off_t)slot); }

static uint32_t sector_crc(const void *sector) { return ph_crc32c(sector, PH_OBELISK_SECTOR - sizeof(uint32_t)); }

static void encode_identity(struct identity_sector *sector, const struct ph_identity *identity, uint64_t file_id) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    memset(sector, 0, sizeof *sector);
    sector->magic = IDENTITY_MAGIC;
    sector->version = PH_OBELISK_VERSION;
    sector->bytes = PH_OBELISK_BYTES;
    sector->file_id = file_id;
    sector->coordinator = identity->coordinator;
    sector->modulus = identity->modulus;
    sector->ms_bits = identity->layout.ms_bits;
    sector->coordinator_bits = identity->layout.coordinator_bits;
    sector->sequence_bits = identity->layout.sequence_bits;
    sector->epoch_ms = identity->layout.epoch_ms;
    memcpy(sector->cluster_id, identity->cluster_id, sizeof sector->cluster_id);
    memcpy(sector->host_id, identity->host_id, sizeof sector->host_id);
    sector->created_ns = (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
    sector->crc = sector_crc(sector);
}

int ph_obelisk_decode_identity(const uint8_t *file, struct ph_identity *identity, uint64_t *file_id,
                               uint32_t *version) {
    struct identity_sector sector;
    memcpy(&sector, file, sizeof sector);
    memset(identity, 0, sizeof *identity);
    int whole = sector.magic == IDENTITY_MAGIC && sector.crc == sector_crc(&sector);
    *version = whole ? sector.version : 0;
    if (!whole || sector.version != PH_OBELISK_VERSION) {
        return 0;
    }
    *file_id = sector.file_id;
    identity->coordinator = sector.coordinator;
    identity->modulus = sector.modulus;
    identity->layout.ms_bits = sector.ms_bits;
    identity->layout.coordinator_bits = sector.coordinator_bits;
    identity->layout.sequence_bits = sector.sequence_bits;
    identity->layout.epoch_ms = sector.epoch_ms;
    memcpy(identity->cluster_id, sector.cluster_id, sizeof identity->cluster_id);
    memcpy(identity->host_id, sector.host_id, sizeof identity->host_id);
    return ph_layout_valid(&identity->layout); /* ticks are shifted by its bits */
}

static void encode_record(struct record_sector *sector, const struct ph_obelisk *obelisk,
                          const struct ph_record *record) {
    memset(sector, 0, sizeof *sector);
    sector->magic = RECORD_MAGIC;
    sector->number = record->number;
    sector->file_id = obelisk->file_id;
    sector->slot = record->slot;
    sector->coordinator = obelisk->identity.coordinator;
    sector->ceiling = record->ceiling;
    sector->clean = (uint32_t)record->clean;
    sector->host_ns = record->sample.host_ns;
    sector->realtime_ns = record->sample.realtime_ns;
    sector->boottime_ns = record->sample.boottime_ns;
    memcpy(sector->boot_id, record->sample.boot_id, sizeof sector->boot_id);
    sector->counters_id = record->counters_id;
    sector->counters_batch = record->counters_batch;
    sector->start_id = record->start_id;
    sector->crc = sector_crc(sector);
}

void ph_obelisk_decode_record(const uint8_t *file, uint32_t slot, const struct ph_identity *identity, uint64_t file_id,
                              struct ph_record *record) {
    struct record_sector sector;
    memcpy(&sector, file + record_offset(slot), sizeof sector);
    record->number = sector.number;
    record->slot = sector.slot;
    record->ceiling = sector.ceiling;
    record->clean = sector.clean != 0;
    record->sample.host_ns = sector.host_ns;
    record->sample.realtime_ns = sector.realtime_ns;
    record->sample.boottime_ns = sector.boottime_ns;
    memcpy(record->sample.boot_id, sector.boot_id, sizeof sector.boot_id);
    record->counters_id = sector.counters_id;
    record->counters_batch = sector.counters_batch;
    record->start_id = sector.start_id;
    record->valid = sector.magic == RECORD_MAGIC && sector.crc == sector_crc(&sector) && sector.slot == slot &&
                    sector.file_id == file_id && sector.coordinator == identity->coordinator &&
                    sector.ceiling <= ph_tick_end(&identity->layout);
}

/* What was written is what a successor will find: the whole file, in one piece, before it has a name. */
static int write_new_file(int fd, const struct ph_identity *identity, const struct ph_record *first) {
    struct ph_obelisk fresh = {.identity = *identity};
    struct ph_record record = *first;
    record.number = 1;
    record.slot = 0;
    record.counters_id = record.counters_batch = 0; /* it takes over the journal that lies beside it */
    uint8_t *image = calloc(1, PH_OBELISK_BYTES);
    int result = -1;
    if (image != NULL && getrandom(&fresh.file_id, sizeof fresh.file_id, 0) == sizeof fresh.file_id) {
        encode_identity((struct identity_sector *)(void *)image, identity, fresh.file_id);
        encode_record((struct record_sector *)(void *)(image + record_offset(0)), &fresh, &record);
        errno = ENOSPC; /* the reason of a write that was cut short */
        if (pwrite(fd, image, PH_OBELISK_BYTES, 0) == PH_OBELISK_BYTES && fsync(fd) == 0) {
            result = 0;
        }
    }
    free(image);
    return result;
}

int ph_open_directory_of(const char *path) {
    char directory[512];
    snprintf(directory, sizeof directory, "%s", path);
    char *slash = strrchr(directory, '/');
    if (slash == NULL) {
        snprintf(directory, sizeof directory, ".");
    } else {
        slash[slash == directory] = '\0';
    }
    return open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
}

int ph_sync_directory_of(const char *path) {
    int fd = ph_open_directory_of(path);
    if (fd < 0) {
        return -1;
    }
    int result = fsync(fd);
    close(fd);
    return result;
}

int ph_obelisk_create(const char *path, const struct ph_identity *identity, const struct ph_record *first,
                      struct ph_fault *fault) {
    char temporary[512];
    if (snprintf(temporary, sizeof temporary, "%s.new", path) >= (int)sizeof temporary) {
        return ph_fault_set(fault, PH_ERR_STATE_DIR_UNUSABLE, "%s: path too long", path);
    }
    int fd = open(temporary, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0) {
        return ph_fault_set(fault, PH_ERR_STATE_DIR_UNUSABLE, "%s: %s", temporary, strerror(errno));
    }
    int failed = write_new_file(fd, identity, first);
    int error = errno;
    close(fd);
    if (failed || rename(temporary, path) != 0 || ph_sync_directory_of(path) != 0) {
        error = failed ? error : errno;
        unlink(temporary);
        return ph_fault_set(fault, PH_ERR_STATE_DIR_UNUSABLE, "creating %s: %s", path, strerror(error));
    }
    return 0;
}

/* A predecessor that is just dying holds its lock for a moment; one that lives holds it for good. */
static int lock_exclusively(struct ph_obelisk *obelisk, struct ph_fault *fault) {
    for (int attempt = 0; flock(obelisk->fd, LOCK_EX | LOCK_NB) != 0; attempt++) {
        if (errno != EWOULDBLOCK && errno != EINTR) {
            return ph_cannot_open(obelisk->path, fault);
        }
        if (attempt == LOCK_ATTEMPTS) {
            return ph_fault_set(fault, PH_ERR_ALREADY_RUNNING, "%s is locked", obelisk->path);
        }
        struct timespec pause = {0, LOCK_PAUSE_NS};
        nanosleep(&pause, NULL);
    }
    struct ph_fault lost;
    if (ph_obelisk_check_path(obelisk, &lost) == PH_ERR_OBELISK_LOST) {
        return ph_fault_set(fault, PH_ERR_ALREADY_RUNNING, "%s was replaced while it was being opened", obelisk->path);
    }
    return 0;
}

static int read_whole(struct ph_obelisk *obelisk, uint8_t *file, struct ph_fault *fault) {
    struct stat status;
    if (fstat(obelisk->fd, &status) != 0 || !S_ISREG(status.st_mode)) {
        return ph_fault_set(fault, PH_ERR_OBELISK_CORRUPT, "%s is not a regular file", obelisk->path);
    }
    obelisk->inode = status.st_ino;
    ssize_t length = pread(obelisk->fd, file, PH_OBELISK_BYTES, 0);
    if (length < 0) {
        return ph_fault_set(fault, PH_ERR_OBELISK_CORRUPT, "reading %s: %s", obelisk->path, strerror(errno));
    }
    if (length < PH_OBELISK_BYTES) {
        return ph_fault_set(fault, PH_ERR_OBELISK_TRUNCATED, "%s has %zd bytes of %d", obelisk->path, length,
                            PH_OBELISK_BYTES);
    }
    return 0;
}

static int recover(struct ph_obelisk *obelisk, const uint8_t *file, struct ph_fault *fault) {
    uint32_t version;
    if (!ph_obelisk_decode_identity(file, &obelisk->identity, &obelisk->file_id, &version)) {
        if (version != 0 && version != PH_OBELISK_VERSION) {
            return ph_fault_set(fault, PH_ERR_OBELISK_TOO_NEW, "%s has format version %u; this pharaohd knows %d",
                                obelisk->path, version, PH_OBELISK_VERSION);
        }
        return ph_fault_set(fault, PH_ERR_OBELISK_CORRUPT, "the identity page of %s is damaged", obelisk->path);
    }
    struct ph_record records[2];
    for (uint32_t slot = 0; slot < 2; slot++) {
        ph_obelisk_decode_record(file, slot, &obelisk->identity, obelisk->file_id, &records[slot]);
    }
    if (!records[0].valid && !records[1].valid) {
        return ph_fault_set(fault, PH_ERR_OBELISK_CORRUPT, "neither ceiling record of %s is valid", obelisk->path);
    }
    int second = records[1].valid && (!records[0].valid || records[1].number > records[0].number);
    obelisk->newest = records[second];
    obelisk->start_id = obelisk->newest.start_id;
    obelisk->counters_id = obelisk->newest.counters_id;
    obelisk->counters_batch = obelisk->newest.counters_batch;
    return 0;
}

static ssize_t system_write_at(int fd, const void *data, size_t length, off_t offset) {
    return pwrite(fd, data, length, offset);
}

const struct ph_obelisk_io ph_system_io = {system_write_at, fdatasync};

int ph_is_shortage(int error) {
    return error == ENOSPC || error == EDQUOT || error == EFBIG || error == EMFILE || error == ENFILE ||
           error == ENOMEM || error == ENOLCK;
}

int ph_cannot_open(const char *path, struct ph_fault *fault) {
    int error = errno;
    int code = ph_is_shortage(error) ? PH_ERR_INTERNAL : PH_ERR_STATE_DIR_UNUSABLE;
    return ph_fault_set(fault, code, "%s: %s", path, strerror(error));
}

int ph_obelisk_open(struct ph_obelisk *obelisk, const char *path, int mode, struct ph_fault *fault) {
    memset(obelisk, 0, sizeof *obelisk);
    obelisk->io = ph_system_io;
    snprintf(obelisk->path, sizeof obelisk->path, "%s", path);
    obelisk->fd = open(path, (mode == PH_OBELISK_OWN ? O_RDWR : O_RDONLY) | O_CLOEXEC | O_NOFOLLOW);
    if (obelisk->fd < 0) {
        return errno != ENOENT ? ph_cannot_open(path, fault)
                               : ph_fault_set(fault, PH_ERR_OBELISK_MISSING, "%s: %s", path, strerror(errno));
    }
    uint8_t *file = malloc(PH_OBELISK_BYTES);
    int code = file == NULL ? ph_fault_set(fault, PH_ERR_INTERNAL, "out of memory") : 0;
    /* Locked before it is read, so that nobody writes in between; the first read learns the inode to compare. */
    if (code == 0) {
        code = read_whole(obelisk, file, fault);
    }
    if (code == 0 && mode == PH_OBELISK_OWN) {
        code = lock_exclusively(obelisk, fault);
        code = code != 0 ? code : read_whole(obelisk, file, fault);
    }
    if (code == 0) {
        code = recover(obelisk, file, fault);
    }
    free(file);
    if (code != 0) {
        ph_obelisk_close(obelisk);
    }
    return code;
}

static int all_zero(const uint8_t id[16]) {
    static const uint8_t zero[16];
    return memcmp(id, zero, sizeof zero) == 0;
}

int ph_obelisk_check(const struct ph_obelisk *obelisk, const struct ph_identity *expected, struct ph_fault *fault) {
    const struct ph_identity *found = &obelisk->identity;
    if (found->coordinator != expected->coordinator) {
        return ph_fault_set(fault, PH_ERR_OBELISK_FOREIGN, "%s is of coordinator %u, not %u", obelisk->path,
                            found->coordinator, expected->coordinator);
    }
    if (memcmp(found->cluster_id, expected->cluster_id, 16) != 0) {
        return ph_fault_set(fault, PH_ERR_OBELISK_FOREIGN, "%s is of another cluster (cluster.name differs)",
                            obelisk->path);
    }
    if (!all_zero(found->host_id) && !all_zero(expected->host_id) &&
        memcmp(found->host_id, expected->host_id, 16) != 0) {
        return ph_fault_set(fault, PH_ERR_OBELISK_FOREIGN, "%s was made on another host (machine-id differs)",
                            obelisk->path);
    }
    const struct ph_layout *was = &found->layout;
    const struct ph_layout *now = &expected->layout;
    if (was->ms_bits != now->ms_bits || was->coordinator_bits != now->coordinator_bits ||
        was->sequence_bits != now->sequence_bits || was->epoch_ms != now->epoch_ms ||
        found->modulus != expected->modulus) {
        return ph_fault_set(fault, PH_ERR_OBELISK_CHANGED,
                            "%s has layout %u-%u-%u, epoch %llu ms, modulus %u; the settings say %u-%u-%u, %llu ms, %u",
                            obelisk->path, was->ms_bits, was->coordinator_bits, was->sequence_bits,
                            (unsigned long long)was->epoch_ms, found->modulus, now->ms_bits, now->coordinator_bits,
                            now->sequence_bits, (unsigned long long)now->epoch_ms, expected->modulus);
    }
    return 0;
}

int ph_obelisk_check_path(const struct ph_obelisk *obelisk, struct ph_fault *fault) {
    struct stat by_path;
    struct stat by_fd;
    if (stat(obelisk->path, &by_path) != 0) {
        return ph_fault_set(fault, PH_ERR_OBELISK_LOST, "%s: %s", obelisk->path, strerror(errno));
    }
    if (fstat(obelisk->fd, &by_fd) != 0 || by_path.st_ino != by_fd.st_ino || by_path.st_dev != by_fd.st_dev) {
        return ph_fault_set(fault, PH_ERR_OBELISK_LOST, "%s is another file now", obelisk->path);
    }
    if (by_fd.st_size < PH_OBELISK_BYTES) {
        return ph_fault_set(fault, PH_ERR_OBELISK_LOST, "%s was truncated to %lld bytes", obelisk->path,
                            (long long)by_fd.st_size);
    }
    return 0;
}

static int put_sector(struct ph_obelisk *obelisk, const struct record_sector *sector, uint32_t slot,
                      struct ph_fault *fault) {
    if (obelisk->poisoned) {
        return ph_fault_set(fault, PH_ERR_SYNC_FAILED, "%s: an earlier write or sync failed", obelisk->path);
    }
    ssize_t written = obelisk->io.write_at(obelisk->fd, sector, sizeof *sector, record_offset(slot));
    if (written != (ssize_t)sizeof *sector || obelisk->io.sync_data(obelisk->fd) != 0) {
        obelisk->poisoned = 1;
        return ph_fault_set(fault, PH_ERR_SYNC_FAILED, "%s: %s", obelisk->path,
                            written >= 0 && written < (ssize_t)sizeof *sector ? "short write" : strerror(errno));
    }
    return 0;
}

int ph_obelisk_write(struct ph_obelisk *obelisk, uint64_t ceiling, const struct ph_clock_sample *sample, int clean,
                     struct ph_fault *fault) {
    struct ph_record record = {.number = obelisk->newest.number + 1,
                               .slot = 1 - obelisk->newest.slot,
                               .ceiling = ceiling,
                               .clean = clean,
                               .sample = *sample,
                               .start_id = obelisk->start_id,
                               .counters_id = obelisk->counters_id,
                               .counters_batch = obelisk->counters_batch,
                               .valid = 1};
    struct record_sector sector;
    encode_record(&sector, obelisk, &record);
    int code = put_sector(obelisk, &sector, record.slot, fault);
    if (code == 0) {
        obelisk->newest = record;
    }
    return code;
}

int ph_obelisk_settle(struct ph_obelisk *obelisk, struct ph_fault *fault) {
    struct record_sector sector;
    encode_record(&sector, obelisk, &obelisk->newest);
    return put_sector(obelisk, &sector, obelisk->newest.slot, fault);
}

void ph_obelisk_name_counters(struct ph_obelisk *obelisk, uint64_t counters_id, uint64_t counters_batch) {
    obelisk->counters_id = counters_id;
    obelisk->counters_batch = counters_batch;
}

void ph_obelisk_close(struct ph_obelisk *obelisk) {
    if (obelisk->fd >= 0) {
        close(obelisk->fd); /* also gives the lock back */
    }
    obelisk->fd = -1;
}
