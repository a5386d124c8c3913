/*
 * The commit thread: the only one that touches the journal of counters while a worker serves.
 *
 * Invariants
 * - One batch at a time: the next is handed over after the last was reported durable.
 * - `durable` is published (release) only after the sync of its batch has returned success; the loop tells clients of
 *   nothing beyond the value that it loads (acquire).
 * - The file is lengthened in the time between batches. When the disk is full it stays as it is, and `room` tells the
 *   loop how much may still be written: a batch that was handed over always fits.
 * - The first failed write or sync ends the process at once. Where `on_failure` returns instead, as in tests, the thread
 *   ends and says so: nobody waits for it.
 */
#ifndef PH_COMMITTER_H
#define PH_COMMITTER_H

#include <pthread.h>
#include <stdint.h>

#include "durable/journal.h"

enum ph_rewrite {
    PH_REWRITE_NONE = 0,
    PH_REWRITE_BEGIN = 1, /* go on in a new file, starting with this batch, if there is room for one */
    PH_REWRITE_END = 2,   /* this batch makes the new file complete: it takes the old one's place */
};

struct ph_committer {
    uint64_t durable;    /* the number of the last durable batch */
    uint64_t room;       /* bytes that batches may still take, padding included */
    uint64_t used;       /* bytes of the file with batches in them */
    uint64_t full;       /* the file could not be lengthened at the last attempt */
    uint64_t rewriting;  /* a new file is being filled */
    uint64_t journal_id; /* 0: there is no file yet */
    uint64_t ended;      /* nothing more will become durable */
    uint64_t commit_count;
    uint64_t sync_ns_last;
    uint64_t sync_ns_max;

    struct ph_journal journal; /* fd -1: there is none yet */
    struct ph_identity identity;
    char path[512];
    void (*on_failure)(const struct ph_fault *fault);
    uint64_t room_again_ns; /* when to try again after a disk was full */
    int event_fd;           /* readable after each batch */
    uint64_t spin_ns;       /* how long the thread looks for the next batch before it sleeps */

    pthread_t thread;
    pthread_mutex_t mutex;
    pthread_cond_t wanted;
    /* Under the mutex. */
    uint8_t *batch;
    size_t length;
    enum ph_rewrite rewrite;
    uint64_t pending; /* also looked at without the mutex */
    int stopping;
};

/* Starts the thread. `journal`: what was opened, or NULL when there is none yet. Returns 0 or an errno. */
int ph_committer_start(struct ph_committer *committer, const struct ph_journal *journal, int rewriting,
                       const struct ph_identity *identity, const char *path, int event_fd, uint64_t spin_ns);
/* Hands a batch over; the buffer (see ph_journal_append) is the thread's until `durable` has grown by one. */
void ph_committer_hand_over(struct ph_committer *committer, uint8_t *batch, size_t length, enum ph_rewrite rewrite);
/* Without a batch: makes the first file, or lengthens the one that there is. Not while a batch is under way. */
void ph_committer_make_room(struct ph_committer *committer);
uint64_t ph_committer_durable(const struct ph_committer *committer);
/* After a failure that did not end the process: `durable` stays as it is. */
int ph_committer_has_ended(const struct ph_committer *committer);
/* Waits for what was handed over, and ends the thread. */
void ph_committer_stop(struct ph_committer *committer);

/* The name of the file that takes the journal's place once it is complete. */
void ph_journal_next_path(char *out, size_t capacity, const char *path);

#endif
