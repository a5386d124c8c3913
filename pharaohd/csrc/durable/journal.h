/*
 * The journal: a coordinator's crash-safe file of what was counted, in batches, each synced before anybody is told.
 *
 * `NNNN.counters` beside the Obelisk: a header sector, then batches from the second page on, each a head with number,
 * length and CRC-32C, and records. While it is being rewritten, to leave out what no longer counts, `NNNN.counters.next`
 * is there too: batches go on in it, and once it holds everything it takes the other's name. docs/internals/counters.md shows the
 * bytes.
 *
 * Invariants
 * - Batches are numbered without a gap, over both files. Each is written only after the one before was synced with
 *   success, so only the last one can be torn, and a torn batch was never reported.
 * - A batch begins at a sector of its own: writing it touches no sector of an earlier one.
 * - An invalid batch with a valid later one behind it is damage, not the end: refuse. So is an end before the batch that
 *   the Obelisk knows of.
 * - Batches are written only where zeros have been written and synced before: a full disk fails the growing of the file,
 *   in good time, and never a batch.
 * - A new owner writes the last batch again, and syncs the directory, before its own first one
 *   (docs/decisions/0010-settle-at-start.md).
 * - What cannot be read is not the end: refuse.
 * - The first failed write or sync poisons the handle for ever.
 * The Obelisk's lock covers this file too.
 */
#ifndef PH_JOURNAL_H
#define PH_JOURNAL_H

#include <stdint.h>

#include "durable/obelisk.h"

#define PH_JOURNAL_VERSION 1
#define PH_BATCH_BYTES_MAX (1 << 20) /* a batch whole */
#define PH_BATCH_HEAD 32
#define PH_JOURNAL_GROWTH_MIN (256 << 10)
#define PH_JOURNAL_GROWTH_MAX (4 << 20)

struct ph_journal {
    int fd;
    int directory_fd; /* held from the beginning: to make a name durable never lacks a descriptor */
    int poisoned;
    uint64_t inode;
    uint64_t id;      /* random, the same for all files of one journal: which journal a batch belongs to */
    uint64_t number;  /* of the last batch */
    uint64_t at;      /* where the next one goes */
    uint64_t bytes;   /* how long the file is, zeros at its end included */
    uint64_t last_at; /* where the last batch begins, or 0 */
    uint64_t first;   /* the number of the file's first batch */
    struct ph_obelisk_io io;
    char path[512];
};

#define PH_NO_JOURNAL ((struct ph_journal){.fd = -1, .directory_fd = -1})

/* Called for the records of each batch, in order; returns 0, or -1 when it cannot make sense of them. */
typedef int ph_journal_visitor(void *context, const uint8_t *records, size_t length);

/* All return 0, or an error's code with `fault` filled in; STORAGE_FULL, for want of room, descriptors or memory, leaves all as it was. */

/* Makes an empty file, whole before it has its name, and opens it. `first`: the number of its first batch. */
int ph_journal_create(struct ph_journal *journal, const char *path, const struct ph_identity *identity, uint64_t id,
                      uint64_t first, struct ph_fault *fault);
/* Reads all batches. `writable` 0: looks only. COUNTERS_MISSING when there is no file. */
int ph_journal_open(struct ph_journal *journal, const char *path, const struct ph_identity *identity, int writable,
                    ph_journal_visitor *visit, void *context, struct ph_fault *fault);
/* A new owner's first act: makes the file's name, and the last batch as it was read, durable. */
int ph_journal_settle(struct ph_journal *journal, struct ph_fault *fault);
/*
 * Makes a batch durable. `batch` begins with PH_BATCH_HEAD bytes that are filled in here; `length` is that of the whole,
 * and the buffer goes on to the next multiple of 512, which is cleared.
 */
int ph_journal_append(struct ph_journal *journal, uint8_t *batch, size_t length, struct ph_fault *fault);
/* Lengthens the file when little room is left. */
int ph_journal_grow(struct ph_journal *journal, struct ph_fault *fault);
/* The file takes another name, in place of what had it. */
int ph_journal_rename(struct ph_journal *journal, const char *path, struct ph_fault *fault);
void ph_journal_close(struct ph_journal *journal);

/* What a batch of so many bytes takes: each begins at a sector of its own. */
static inline uint64_t ph_journal_sectors(uint64_t length) {
    return (length + PH_OBELISK_SECTOR - 1) / PH_OBELISK_SECTOR * PH_OBELISK_SECTOR;
}

/* How much room batches have, their padding included. */
static inline uint64_t ph_journal_room(const struct ph_journal *journal) { return journal->bytes - journal->at; }

#endif
