/*
 * The Obelisk: a coordinator's crash-safe file.
 *
 * Layout: page 0 identity, page 1 ceiling record slot 0, page 2 ceiling record slot 1, page 3 reserved. Each holds one
 * 512-byte sector that validates itself. Little-endian. docs/internals/obelisk.md shows the bytes.
 *
 * Invariants
 * - The identity is written once, before the file gets its name (temporary file, fsync, rename, fsync of the directory).
 * - A record is written over the older or invalid slot, never over the newest valid one; so whatever subset of a torn
 *   write's sectors stands, the newest durable record is still there.
 * - A record is valid only if magic, CRC-32C, file id, coordinator and slot agree: torn, misdirected, swapped and foreign
 *   records all fail. No valid record: refuse; never start from zero.
 * - Before a new owner's first record, the newest one found is written again in place and synced: after a failed sync
 *   the page cache may show a record that the medium lacks, and the other slot may hold the only durable one.
 * - No order between pages is relied on, and a ceiling counts only after its fdatasync has returned success.
 * - The first failed write or sync poisons the handle for ever: a sync that is tried again lies.
 * - The exclusive flock of the file itself is taken by the process that writes, and the path must still name the
 *   locked inode.
 * The file is written by pwrite rather than through a mapping: docs/decisions/0002-pwrite.md.
 */
#ifndef PH_OBELISK_H
#define PH_OBELISK_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/clock.h"
#include "ph_scarab.h"

#define PH_OBELISK_VERSION 1
#define PH_OBELISK_PAGE 4096
#define PH_OBELISK_BYTES 16384
#define PH_OBELISK_SECTOR 512
#define PH_FAULT_DETAIL 400

/* An error of spec/errors.toml, with what was found. */
struct ph_fault {
    int code;
    char detail[PH_FAULT_DETAIL];
};

struct ph_identity {
    uint32_t coordinator;
    uint32_t modulus;
    struct ph_layout layout;
    uint8_t cluster_id[16];
    uint8_t host_id[16]; /* all zero: this host has no identity to compare */
};

struct ph_record {
    uint64_t number; /* grows by one with each record */
    uint32_t slot;
    uint64_t ceiling;
    int clean; /* the ceiling is the exact position of a clean stop */
    struct ph_clock_sample sample;
    uint64_t start_id; /* the host start whose worker, or the repair, that wrote it: drawn at random, never a count */
    uint64_t counters_id; /* which journal of counters belongs to this file; 0: none yet */
    uint64_t
        counters_batch; /* one of its batches that was durable when this was written: an older journal is refused */
    int valid;
};

/* The system calls that safety rests on, replaceable by fault-injecting ones. */
struct ph_obelisk_io {
    ssize_t (*write_at)(int fd, const void *data, size_t length, off_t offset);
    int (*sync_data)(int fd);
};

extern const struct ph_obelisk_io ph_system_io;

struct ph_obelisk {
    int fd;
    int poisoned;
    uint64_t inode;
    uint64_t file_id;
    struct ph_identity identity;
    struct ph_record newest;
    uint64_t start_id; /* what the next record says, and the two below */
    uint64_t counters_id;
    uint64_t counters_batch;
    struct ph_obelisk_io io;
    char path[512];
};

enum ph_obelisk_mode {
    PH_OBELISK_READ = 0, /* no lock, nothing written */
    PH_OBELISK_OWN = 1,  /* exclusive lock for the life of the handle */
};

/* All return 0, or an error's code with `fault` filled in. `first`: ceiling, sample, start_id and clean of its record. */
int ph_obelisk_create(const char *path, const struct ph_identity *identity, const struct ph_record *first,
                      struct ph_fault *fault);
int ph_obelisk_open(struct ph_obelisk *obelisk, const char *path, int mode, struct ph_fault *fault);
int ph_obelisk_check(const struct ph_obelisk *obelisk, const struct ph_identity *expected, struct ph_fault *fault);
/* Is the path still this file, and as long as it was made? */
int ph_obelisk_check_path(const struct ph_obelisk *obelisk, struct ph_fault *fault);
/* Makes a record durable. On failure the handle is poisoned and every later call fails too. */
int ph_obelisk_write(struct ph_obelisk *obelisk, uint64_t ceiling, const struct ph_clock_sample *sample, int clean,
                     struct ph_fault *fault);
/* Out of something that may be there later: room, descriptors, memory. */
int ph_is_shortage(int error);
/* The fault of a file that cannot be opened or looked up, by errno: one that passes when something is short. */
int ph_cannot_open(const char *path, struct ph_fault *fault);
/* A new owner's first act: makes the newest record, as it was read, durable in its place. */
int ph_obelisk_settle(struct ph_obelisk *obelisk, struct ph_fault *fault);
/* Which journal of counters, and which batch of it, the next records shall name. */
void ph_obelisk_name_counters(struct ph_obelisk *obelisk, uint64_t counters_id, uint64_t counters_batch);
void ph_obelisk_close(struct ph_obelisk *obelisk);

/*
 * Both decode a whole file's bytes (PH_OBELISK_BYTES). An identity of another version is not decoded, but *version says
 * which it is; magic, version and checksum are in the same places in every version. *version is 0: damaged.
 */
int ph_obelisk_decode_identity(const uint8_t *file, struct ph_identity *identity, uint64_t *file_id, uint32_t *version);
void ph_obelisk_decode_record(const uint8_t *file, uint32_t slot, const struct ph_identity *identity, uint64_t file_id,
                              struct ph_record *record);

/* The directory that a file lies in. Returns a descriptor, or -1 with errno set. */
int ph_open_directory_of(const char *path);
/* Makes what happened to the names in a file's directory durable. Returns 0, or -1 with errno set. */
int ph_sync_directory_of(const char *path);

int ph_fault_set(struct ph_fault *fault, int code, const char *format, ...) __attribute__((format(printf, 3, 4)));

#endif
