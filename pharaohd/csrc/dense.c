#define _GNU_SOURCE
#include "dense.h"

#include <assert.h>
#include <fnmatch.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "ph_errors.h"
#include "recovery.h"

#define NS_PER_MS UINT64_C(1000000)
#define BATCH_LIMIT (120 << 10)
#define COPY_LIMIT (64 << 10)   /* how much of the old records goes into one batch of the new file */
#define COPY_RESERVE (32 << 10) /* of a batch, kept free of requests: a rewrite comes to its end under any load */
#define REWRITE_SLACK (4 << 20) /* a journal is rewritten when it is twice as long as what counts, and this */
#define RETRY_NS UINT64_C(1000000000)
#define NOTE_NS UINT64_C(250000000)
#define NO_RECORD UINT32_MAX

/* The batch that begins a new file fits there, and so does the one that is collected while that happens. */
static_assert(2 * BATCH_LIMIT + PH_OBELISK_PAGE <= PH_JOURNAL_GROWTH_MIN, "a batch that is handed over always fits");
static_assert(PH_COUNTER_RECORDS_MAX <= COPY_RESERVE, "there is always room to copy one");

/* --- a life */

static int check_against_obelisk(const struct ph_worker *worker, const struct ph_journal *journal,
                                 struct ph_fault *fault) {
    const struct ph_record *known = &worker->obelisk.newest;
    if (known->counters_id != 0 && known->counters_id != journal->id) {
        return ph_fault_set(fault, PH_ERR_COUNTERS_CORRUPT, "%s is not the file that the Obelisk names", journal->path);
    }
    if (journal->number < known->counters_batch) {
        return ph_fault_set(fault, PH_ERR_COUNTERS_MISSING, "%s ends with batch %llu; the Obelisk knows of %llu",
                            journal->path, (unsigned long long)journal->number,
                            (unsigned long long)known->counters_batch);
    }
    return 0;
}

static void discard(struct ph_dense *dense) {
    ph_counters_free(&dense->counters);
    free(dense->filling < dense->in_flight ? dense->filling : dense->in_flight); /* one allocation */
    free(dense);
}

static struct ph_dense *new_dense(void) {
    struct ph_dense *dense = calloc(1, sizeof *dense);
    uint8_t *buffers = malloc(2 * (size_t)(BATCH_LIMIT + PH_OBELISK_SECTOR));
    if (dense == NULL || buffers == NULL) {
        free(dense);
        free(buffers);
        return NULL;
    }
    dense->filling = buffers;
    dense->in_flight = buffers + BATCH_LIMIT + PH_OBELISK_SECTOR;
    dense->length = PH_BATCH_HEAD;
    ph_counters_init(&dense->counters);
    return dense;
}

/* `journal` NULL: there is none yet. */
static int start(struct ph_worker *worker, struct ph_dense *dense, const struct ph_journal *journal, int rewriting) {
    dense->handed = dense->noted_batch = journal != NULL ? journal->number : 0;
    dense->copying = (uint32_t)rewriting;
    if (ph_committer_start(&dense->committer, journal, rewriting, &worker->config.identity,
                           worker->config.counters_path, worker->sync_events.fd,
                           worker->config.commit_spin_us * 1000) != 0) {
        return -1;
    }
    worker->dense = dense;
    return 0;
}

/* The first dense request of all. */
static int start_empty(struct ph_worker *worker) {
    struct ph_dense *dense = new_dense();
    if (dense != NULL && start(worker, dense, NULL, 0) != 0) {
        discard(dense);
    }
    return worker->dense != NULL ? 0 : -1;
}

int ph_dense_open(struct ph_worker *worker, struct ph_fault *fault) {
    struct ph_journal journal;
    const char *path = worker->config.counters_path;
    int rewriting;
    if (worker->obelisk.newest.counters_id == 0 && access(path, F_OK) != 0) {
        return 0;
    }
    struct ph_dense *dense = new_dense();
    if (dense == NULL) {
        return ph_fault_set(fault, PH_ERR_INTERNAL, "out of memory");
    }
    int code = ph_recover_counters(path, &worker->config.identity, 1, &dense->counters, &journal, &rewriting, fault);
    code = code != 0 ? code : check_against_obelisk(worker, &journal, fault);
    if (code == 0 && start(worker, dense, &journal, rewriting) != 0) {
        code = ph_fault_set(fault, PH_ERR_INTERNAL, "no thread for counters");
    }
    for (uint32_t i = 0; code == 0 && i < dense->counters.size; i++) {
        struct ph_counter *counter = ph_counters_at(&dense->counters, i);
        struct ph_bytes name = {counter->name, counter->name_length};
        counter->reserves = (uint8_t)ph_dense_reserves(worker, counter->kind, name);
        counter->safe = counter->bound;
    }
    return code; /* a worker that cannot open ends, and with it all that it holds */
}

void ph_dense_free(struct ph_worker *worker) {
    struct ph_dense *dense = worker->dense;
    if (dense != NULL) {
        discard(dense);
        worker->dense = NULL;
    }
}

/* --- one batch after the other */

uint64_t ph_dense_batch(const struct ph_dense *dense) { return dense->handed + 1; }

int ph_dense_is_committing(const struct ph_dense *dense) {
    return ph_committer_durable(&dense->committer) < dense->handed;
}

/* Bytes that the batch being collected may still grow by, up to `limit`. */
static size_t room(const struct ph_dense *dense, size_t limit) {
    int committing = ph_dense_is_committing(dense); /* before `room`: one that is older still holds what it took */
    uint64_t file = ph_load_relaxed(&dense->committer.room);
    uint64_t taken = ph_journal_sectors(dense->length) + (committing ? ph_journal_sectors(dense->in_flight_length) : 0);
    uint64_t in_file = file > taken ? file - taken : 0;
    uint64_t in_batch = limit > dense->length ? limit - dense->length : 0;
    return (size_t)(in_file < in_batch ? in_file : in_batch);
}

void ph_dense_note_counter(struct ph_dense *dense, struct ph_counter *counter) {
    counter->batch = ph_dense_batch(dense);
    counter->record_at = (uint32_t)dense->length;
    dense->length += ph_record_counter(dense->filling + dense->length, counter);
}

void ph_dense_note_value(struct ph_dense *dense, struct ph_counter *counter, const struct ph_session *session) {
    uint64_t batch = ph_dense_batch(dense);
    if (session == NULL && counter->batch == batch && counter->record_at != NO_RECORD) {
        ph_record_set_bound(dense->filling + counter->record_at, counter->bound);
        return;
    }
    counter->batch = batch;
    counter->record_at = (uint32_t)dense->length;
    uint8_t *out = dense->filling + dense->length;
    dense->length += session != NULL ? ph_record_session(out, counter, session) : ph_record_value(out, counter);
}

/* Writes down old counters in the new file. Returns whether it is complete with that. */
static int copy_some(struct ph_dense *dense) {
    size_t least = dense->length + COPY_RESERVE;
    size_t limit = least > COPY_LIMIT ? least : COPY_LIMIT;
    while (dense->copy_at < dense->counters.size && dense->length < limit &&
           room(dense, BATCH_LIMIT) >= PH_COUNTER_RECORDS_MAX) {
        struct ph_counter *counter = ph_counters_at(&dense->counters, dense->copy_at++);
        dense->length += ph_record_counter(dense->filling + dense->length, counter);
        counter->record_at = NO_RECORD; /* a record before this one must not be what is raised later */
    }
    return dense->copy_at == dense->counters.size;
}

static enum ph_rewrite rewrite_step(struct ph_worker *worker, struct ph_dense *dense) {
    int rewriting = ph_load_relaxed(&dense->committer.rewriting) != 0;
    if (rewriting) {
        dense->copy_at = dense->copying ? dense->copy_at : 0;
        dense->copying = 1;
        return copy_some(dense) ? PH_REWRITE_END : PH_REWRITE_NONE;
    }
    dense->copying = 0;
    uint64_t used = ph_load_relaxed(&dense->committer.used);
    if (dense->length == PH_BATCH_HEAD || used < 2 * dense->counters.live_bytes + REWRITE_SLACK ||
        worker->mint.monotonic_ns - dense->rewrite_tried_ns < RETRY_NS / 4) {
        return PH_REWRITE_NONE;
    }
    dense->rewrite_tried_ns = worker->mint.monotonic_ns;
    return PH_REWRITE_BEGIN;
}

static void hand_over(struct ph_worker *worker, struct ph_dense *dense) {
    enum ph_rewrite rewrite = rewrite_step(worker, dense);
    if (dense->length == PH_BATCH_HEAD && rewrite != PH_REWRITE_END) {
        return;
    }
    uint8_t *batch = dense->filling;
    dense->filling = dense->in_flight;
    dense->in_flight = batch;
    dense->in_flight_length = dense->length;
    dense->length = PH_BATCH_HEAD;
    dense->handed++;
    dense->handed_ns = worker->mint.monotonic_ns;
    ph_committer_hand_over(&dense->committer, batch, dense->in_flight_length, rewrite);
}

/* The file is too short, or not there: has the commit thread been asked to mend that a moment ago? */
static void ask_for_room(struct ph_worker *worker, struct ph_dense *dense) {
    if (dense->room_asked_ns == 0 || worker->mint.monotonic_ns - dense->room_asked_ns > RETRY_NS) {
        dense->room_asked_ns = worker->mint.monotonic_ns;
        ph_committer_make_room(&dense->committer);
    }
}

/* Tells the Obelisk which journal is its own and how far that is known to have come. */
static void note_journal(struct ph_worker *worker, struct ph_dense *dense, uint64_t durable) {
    uint64_t id = ph_load_relaxed(&dense->committer.journal_id);
    int unknown = id != 0 && ph_syncer_durable_counters_id(&worker->syncer) != id;
    if (id == 0 || (!unknown && durable == dense->noted_batch) ||
        (dense->noted_ns != 0 && worker->mint.monotonic_ns - dense->noted_ns < NOTE_NS)) {
        return;
    }
    dense->noted_ns = worker->mint.monotonic_ns;
    dense->noted_batch = durable;
    ph_syncer_note_counters(&worker->syncer, id, durable);
    ph_mint_write_record(&worker->mint);
}

enum ph_outcome ph_dense_admit(struct ph_worker *worker, const struct ph_connection *connection, size_t bytes,
                               int *error) {
    *error = 0;
    if (worker->dense == NULL && start_empty(worker) != 0) {
        *error = PH_ERR_UNAVAILABLE;
        return PH_DONE;
    }
    struct ph_dense *dense = worker->dense;
    uint64_t stall_ns = worker->config.stall_ms_max * NS_PER_MS;
    if (ph_dense_is_committing(dense) && worker->mint.monotonic_ns - dense->handed_ns > stall_ns) {
        *error = PH_ERR_CEILING_STALLED;
        return PH_DONE;
    }
    uint64_t id = ph_load_relaxed(&dense->committer.journal_id);
    if (id == 0 || room(dense, BATCH_LIMIT - COPY_RESERVE) < bytes) {
        int in_file = id == 0 || dense->length + bytes <= BATCH_LIMIT - COPY_RESERVE;
        if (in_file && !ph_dense_is_committing(dense)) {
            ask_for_room(worker, dense);
        }
        *error = in_file && ph_load_relaxed(&dense->committer.full) ? PH_ERR_STORAGE_FULL : 0;
        return *error != 0 ? PH_DONE : PH_WAIT;
    }
    if (ph_syncer_durable_counters_id(&worker->syncer) != id) {
        note_journal(worker, dense, ph_committer_durable(&dense->committer));
        return PH_WAIT;
    }
    return dense->count < PH_DENSE_PENDING_MAX && connection->counting < PH_IN_FLIGHT_MAX ? PH_DONE : PH_WAIT;
}

/* --- replies */

void ph_dense_reply(struct ph_worker *worker, struct ph_connection *connection, uint32_t message_id, uint64_t batch,
                    uint64_t value) {
    struct ph_dense *dense = worker->dense;
    dense->pending[(dense->first + dense->count) % PH_DENSE_PENDING_MAX] =
        (struct ph_dense_pending){connection, batch, value, worker->mint.monotonic_ns, message_id, 0};
    dense->count++;
    connection->counting++;
}

void ph_dense_reply_sessions(struct ph_dense *dense, uint32_t sessions) {
    dense->pending[(dense->first + dense->count - 1) % PH_DENSE_PENDING_MAX].sessions = sessions + 1;
}

static struct ph_dense_pending pop(struct ph_dense *dense) {
    struct ph_dense_pending pending = dense->pending[dense->first];
    dense->count--;
    dense->first = dense->count > 0 ? (dense->first + 1) % PH_DENSE_PENDING_MAX : 0; /* few pages when few wait */
    pending.connection->counting--;
    return pending;
}

static const struct ph_dense_pending *oldest(const struct ph_dense *dense) {
    return dense->count > 0 ? &dense->pending[dense->first] : NULL;
}

static void put_answer(struct ph_writer *writer, const struct ph_dense_pending *pending) {
    ph_put_reply(writer, pending->message_id);
    if (pending->sessions == 0) {
        ph_put_uint(writer, pending->value);
        return;
    }
    ph_put_map(writer, 2);
    ph_put_text(writer, "next");
    ph_put_uint(writer, pending->value);
    ph_put_text(writer, "sessions");
    ph_put_uint(writer, pending->sessions - 1);
}

static void send_replies(struct ph_worker *worker, struct ph_connection *connection, struct ph_writer *writer) {
    if (!connection->closed) {
        ph_connection_send(worker, connection, writer->data, writer->length);
        ph_connection_requeue(worker, connection);
    }
}

/* Replies of one connection that follow each other leave with one write. */
static void answer(struct ph_worker *worker, struct ph_dense *dense, uint64_t durable) {
    const struct ph_dense_pending *head;
    while ((head = oldest(dense)) != NULL && head->batch <= durable) {
        struct ph_connection *connection = head->connection;
        struct ph_writer writer = {worker->output, 0, sizeof worker->output};
        while ((head = oldest(dense)) != NULL && head->batch <= durable && head->connection == connection &&
               writer.capacity - writer.length >= PH_REPLY_BYTES_MAX) {
            struct ph_dense_pending pending = pop(dense);
            put_answer(&writer, &pending);
        }
        send_replies(worker, connection, &writer);
    }
}

/* On a disk that hangs: whether it was counted is not known, and a retry with a token will tell. */
static void give_up_old(struct ph_worker *worker, struct ph_dense *dense) {
    uint64_t stall_ns = worker->config.stall_ms_max * NS_PER_MS;
    const struct ph_dense_pending *head;
    while ((head = oldest(dense)) != NULL && worker->mint.monotonic_ns - head->since_ns > stall_ns) {
        struct ph_dense_pending pending = pop(dense);
        struct ph_writer writer = {worker->output, 0, sizeof worker->output};
        ph_count(&worker->slot->errors, 1);
        ph_put_error(&writer, pending.message_id, PH_ERR_CEILING_STALLED, "the journal of counters");
        send_replies(worker, pending.connection, &writer);
    }
}

void ph_dense_round(struct ph_worker *worker) {
    struct ph_dense *dense = worker->dense;
    uint64_t durable = ph_committer_durable(&dense->committer);
    answer(worker, dense, durable);
    if (durable == dense->handed) {
        hand_over(worker, dense);
    }
    give_up_old(worker, dense);
    note_journal(worker, dense, durable);
}

/* What reserves ahead is written down as it stands: a clean stop leaves no gap. */
static void note_exact_values(struct ph_dense *dense, uint32_t *at) {
    for (; *at < dense->counters.size && room(dense, BATCH_LIMIT) >= PH_COUNTER_RECORDS_MAX; (*at)++) {
        struct ph_counter *counter = ph_counters_at(&dense->counters, *at);
        if (counter->bound != counter->next) {
            counter->bound = counter->next;
            ph_dense_note_value(dense, counter, NULL);
        }
    }
}

/* Returns whether all that was handed over is durable. If not, it never will be: the commit thread has failed. */
static int await_commit(const struct ph_dense *dense) {
    while (ph_dense_is_committing(dense) && !ph_committer_has_ended(&dense->committer)) {
        usleep(100);
    }
    return !ph_dense_is_committing(dense); /* it may have ended after the last batch */
}

void ph_dense_finish(struct ph_worker *worker) {
    struct ph_dense *dense = worker->dense;
    uint32_t at = 0;
    int goes_on = 1;
    while (goes_on && await_commit(dense)) {
        int room_left = room(dense, BATCH_LIMIT) >= PH_COUNTER_RECORDS_MAX;
        note_exact_values(dense, &at);
        hand_over(worker, dense);
        goes_on = ph_dense_is_committing(dense) || (room_left && at < dense->counters.size);
    }
    answer(worker, dense, ph_committer_durable(&dense->committer));
    ph_committer_stop(&dense->committer);
}

/* --- reserving ahead */

int ph_dense_reserves(const struct ph_worker *worker, uint32_t kind, struct ph_bytes name) {
    static const char *const kinds[] = {"", "group", "offset", "schema"};
    char text[256];
    if (name.length >= sizeof text) {
        return 0;
    }
    memcpy(text, name.data, name.length);
    text[name.length] = '\0';
    const char *pattern = worker->config.reserve;
    for (; *pattern != '\0'; pattern += strlen(pattern) + 1) {
        size_t length = strlen(kinds[kind]);
        if (strncmp(pattern, kinds[kind], length) != 0) {
            continue;
        }
        if (pattern[length] == '\0' || (pattern[length] == ':' && fnmatch(pattern + length + 1, text, 0) == 0)) {
            return 1;
        }
    }
    return 0;
}
