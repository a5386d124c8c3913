#define _GNU_SOURCE
#include "durable/committer.h"

#include <sched.h>
#include <stdio.h>
#include <unistd.h>

#include "durable/syncer.h"
#include "ph_atomic.h"
#include "ph_errors.h"

#define RETRY_NS UINT64_C(1000000000) /* to lengthen a file takes long on a disk that is full */

struct work {
    uint8_t *batch;
    size_t length;
    enum ph_rewrite rewrite;
};

void ph_journal_next_path(char *out, size_t capacity, const char *path) { snprintf(out, capacity, "%s.next", path); }

/* Who has just committed is likely to be asked again at once: looks for that for a moment before it sleeps. */
static void look_for_work(const struct ph_committer *committer) {
    uint64_t until_ns = ph_monotonic_ns() + committer->spin_ns;
    while (!ph_load_relaxed(&committer->pending) && ph_monotonic_ns() < until_ns) {
        sched_yield();
    }
}

static int next_work(struct ph_committer *committer, struct work *work) {
    if (committer->spin_ns > 0 && committer->commit_count > 0) {
        look_for_work(committer);
    }
    pthread_mutex_lock(&committer->mutex);
    while (!committer->pending && !committer->stopping) {
        pthread_cond_wait(&committer->wanted, &committer->mutex);
    }
    int wanted = committer->pending;
    *work = (struct work){committer->batch, committer->length, committer->rewrite};
    ph_store_relaxed(&committer->pending, 0);
    pthread_mutex_unlock(&committer->mutex);
    return wanted;
}

static void publish_room(struct ph_committer *committer) {
    ph_store_relaxed(&committer->room, ph_journal_room(&committer->journal));
    ph_store_relaxed(&committer->used, committer->journal.at);
    ph_store_relaxed(&committer->journal_id, committer->journal.id);
}

/* The next file, if there is room for one; otherwise the old one goes on. */
static int begin_rewrite(struct ph_committer *committer, struct ph_fault *fault) {
    struct ph_journal *journal = &committer->journal;
    struct ph_journal next;
    char path[sizeof committer->path + 8];
    ph_journal_next_path(path, sizeof path, committer->path);
    int code = ph_journal_create(&next, path, &committer->identity, journal->id, journal->number + 1, fault);
    if (code == 0) {
        ph_journal_close(journal);
        *journal = next;
        ph_store_relaxed(&committer->rewriting, 1);
    }
    return code == PH_ERR_STORAGE_FULL ? 0 : code;
}

/* Makes the first file of all, or lengthens the one that there is. A full disk is no failure. */
static int make_room(struct ph_committer *committer, struct ph_fault *fault) {
    struct ph_journal *journal = &committer->journal;
    int code = journal->fd < 0 ? ph_journal_create(journal, committer->path, &committer->identity, 0, 1, fault)
                               : ph_journal_grow(journal, fault);
    ph_store_relaxed(&committer->full, code == PH_ERR_STORAGE_FULL);
    committer->room_again_ns = code == PH_ERR_STORAGE_FULL ? ph_monotonic_ns() + RETRY_NS : 0;
    return code == PH_ERR_STORAGE_FULL ? 0 : code;
}

static int commit(struct ph_committer *committer, const struct work *work, struct ph_fault *fault) {
    struct ph_journal *journal = &committer->journal;
    int code = 0;
    if (work->rewrite == PH_REWRITE_BEGIN) {
        code = begin_rewrite(committer, fault);
    }
    code = code != 0 ? code : ph_journal_append(journal, work->batch, work->length, fault);
    if (code == 0 && work->rewrite == PH_REWRITE_END) {
        code = ph_journal_rename(journal, committer->path, fault);
        ph_store_relaxed(&committer->rewriting, 0);
    }
    return code;
}

static void tell(struct ph_committer *committer) {
    uint64_t one = 1;
    ssize_t written = write(committer->event_fd, &one, sizeof one);
    (void)written;
}

static void note_time(struct ph_committer *committer, uint64_t started_ns) {
    uint64_t took_ns = ph_monotonic_ns() - started_ns;
    ph_store_relaxed(&committer->commit_count, ph_load_relaxed(&committer->commit_count) + 1);
    ph_store_relaxed(&committer->sync_ns_last, took_ns);
    if (took_ns > ph_load_relaxed(&committer->sync_ns_max)) {
        ph_store_relaxed(&committer->sync_ns_max, took_ns);
    }
}

/* Returns 0, or -1 after a failure. */
static int carry_out(struct ph_committer *committer, const struct work *work) {
    struct ph_fault fault;
    int code = 0;
    if (work->length > 0) {
        uint64_t started_ns = ph_monotonic_ns();
        code = commit(committer, work, &fault);
        note_time(committer, started_ns);
        publish_room(committer);
        if (code == 0) {
            ph_store_release(&committer->durable, committer->journal.number); /* pairs with ph_committer_durable() */
            tell(committer);
        }
    }
    if (code == 0 && (work->length == 0 || ph_monotonic_ns() >= committer->room_again_ns)) {
        code = make_room(committer, &fault);
    }
    if (code != 0) {
        committer->on_failure(&fault);
        return -1;
    }
    if (committer->journal.fd >= 0) {
        publish_room(committer);
    }
    if (work->length == 0) {
        tell(committer);
    }
    return 0;
}

static void *commit_thread(void *argument) {
    struct ph_committer *committer = argument;
    struct work work;
    pthread_setname_np(pthread_self(), "commit");
    while (next_work(committer, &work) && carry_out(committer, &work) == 0) {
    }
    ph_store_release(&committer->ended, 1); /* pairs with ph_committer_has_ended() */
    return NULL;
}

int ph_committer_start(struct ph_committer *committer, const struct ph_journal *journal, int rewriting,
                       const struct ph_identity *identity, const char *path, int event_fd, uint64_t spin_ns) {
    *committer = (struct ph_committer){
        .identity = *identity, .event_fd = event_fd, .spin_ns = spin_ns, .on_failure = ph_end_process};
    snprintf(committer->path, sizeof committer->path, "%s", path);
    committer->journal = PH_NO_JOURNAL;
    if (journal != NULL) {
        committer->journal = *journal;
        committer->durable = journal->number;
        committer->rewriting = (uint64_t)rewriting;
        publish_room(committer);
    }
    pthread_mutex_init(&committer->mutex, NULL);
    pthread_cond_init(&committer->wanted, NULL);
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, 64 * 1024);
    int error = pthread_create(&committer->thread, &attributes, commit_thread, committer);
    pthread_attr_destroy(&attributes);
    return error;
}

void ph_committer_hand_over(struct ph_committer *committer, uint8_t *batch, size_t length, enum ph_rewrite rewrite) {
    pthread_mutex_lock(&committer->mutex);
    committer->batch = batch;
    committer->length = length;
    committer->rewrite = rewrite;
    ph_store_relaxed(&committer->pending, 1);
    pthread_cond_signal(&committer->wanted);
    pthread_mutex_unlock(&committer->mutex);
}

void ph_committer_make_room(struct ph_committer *committer) {
    ph_committer_hand_over(committer, NULL, 0, PH_REWRITE_NONE);
}

uint64_t ph_committer_durable(const struct ph_committer *committer) { return ph_load_acquire(&committer->durable); }

int ph_committer_has_ended(const struct ph_committer *committer) { return ph_load_acquire(&committer->ended) != 0; }

void ph_committer_stop(struct ph_committer *committer) {
    pthread_mutex_lock(&committer->mutex);
    committer->stopping = 1;
    pthread_cond_signal(&committer->wanted);
    pthread_mutex_unlock(&committer->mutex);
    pthread_join(committer->thread, NULL);
    pthread_mutex_destroy(&committer->mutex);
    pthread_cond_destroy(&committer->wanted);
    ph_journal_close(&committer->journal);
}
