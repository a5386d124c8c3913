#define _GNU_SOURCE
#include "engine/tally.h"

#include <assert.h>
#include <errno.h>
#include <fnmatch.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "engine/recovery.h"
#include "ph_atomic.h"
#include "ph_errors.h"

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

static int check_against_obelisk(const struct ph_record *known, const struct ph_journal *journal,
                                 struct ph_fault *fault) {
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

static void discard(struct ph_batches *batches) {
    ph_counters_free(&batches->counters);
    free(batches->filling < batches->in_flight ? batches->filling : batches->in_flight); /* one allocation */
    free(batches);
}

static struct ph_batches *new_batches(void) {
    struct ph_batches *batches = calloc(1, sizeof *batches);
    uint8_t *buffers = malloc(2 * (size_t)(BATCH_LIMIT + PH_OBELISK_SECTOR));
    if (batches == NULL || buffers == NULL) {
        free(batches);
        free(buffers);
        return NULL;
    }
    batches->filling = buffers;
    batches->in_flight = buffers + BATCH_LIMIT + PH_OBELISK_SECTOR;
    batches->length = PH_BATCH_HEAD;
    ph_counters_init(&batches->counters);
    return batches;
}

/* `journal` NULL: there is none yet. */
static int start(struct ph_tally *tally, struct ph_batches *batches, const struct ph_journal *journal, int rewriting) {
    const struct ph_tally_config *config = &tally->config;
    batches->handed = batches->noted_batch = journal != NULL ? journal->number : 0;
    batches->copying = (uint32_t)rewriting;
    if (ph_committer_start(&batches->committer, journal, rewriting, &config->identity, config->path, config->event_fd,
                           config->commit_spin_us * 1000) != 0) {
        return -1;
    }
    tally->batches = batches;
    return 0;
}

/* The first batches request of all. */
static int start_empty(struct ph_tally *tally) {
    struct ph_batches *batches = new_batches();
    if (batches != NULL && start(tally, batches, NULL, 0) != 0) {
        discard(batches);
    }
    return tally->batches != NULL ? 0 : -1;
}

int ph_tally_open(struct ph_tally *tally, const struct ph_tally_config *config, struct ph_mint *mint,
                  const struct ph_record *newest, struct ph_fault *fault) {
    struct ph_journal journal;
    int rewriting;
    tally->config = *config;
    tally->mint = mint;
    tally->batches = NULL;
    if (newest->counters_id == 0 && access(config->path, F_OK) != 0) {
        return errno == ENOENT ? 0 : ph_cannot_open(config->path, fault); /* unknown is not absent */
    }
    struct ph_batches *batches = new_batches();
    if (batches == NULL) {
        return ph_fault_set(fault, PH_ERR_INTERNAL, "out of memory");
    }
    int code = ph_recover_counters(config->path, &config->identity, 1, &batches->counters, &journal, &rewriting, fault);
    code = code != 0 ? code : check_against_obelisk(newest, &journal, fault);
    if (code == 0 && start(tally, batches, &journal, rewriting) != 0) {
        code = ph_fault_set(fault, PH_ERR_INTERNAL, "no thread for counters");
    }
    for (uint32_t i = 0; code == 0 && i < batches->counters.size; i++) {
        struct ph_counter *counter = ph_counters_at(&batches->counters, i);
        struct ph_bytes name = {counter->name, counter->name_length};
        counter->reserves = (uint8_t)ph_tally_reserves(tally, counter->kind, name);
        counter->safe = counter->bound;
    }
    return code; /* a worker that cannot open ends, and with it all that it holds */
}

void ph_tally_set_stall(struct ph_tally *tally, uint64_t stall_ms_max) { tally->stall_ms_max = stall_ms_max; }

void ph_tally_close(struct ph_tally *tally, uint64_t *journal_id, uint64_t *last_batch) {
    struct ph_batches *batches = tally->batches;
    *journal_id = *last_batch = 0;
    if (batches != NULL) {
        *journal_id = batches->committer.journal_id;
        *last_batch = batches->handed;
        discard(batches);
        tally->batches = NULL;
    }
}

/* --- one batch after the other */

uint64_t ph_tally_batch(const struct ph_tally *tally) { return tally->batches->handed + 1; }

static int is_committing(const struct ph_batches *batches) {
    return ph_committer_durable(&batches->committer) < batches->handed;
}

int ph_tally_is_committing(const struct ph_tally *tally) {
    return tally->batches != NULL && is_committing(tally->batches);
}

int ph_tally_is_awaited(const struct ph_tally *tally) { return tally->batches != NULL && tally->batches->count > 0; }

/* Bytes that the batch being collected may still grow by, up to `limit`. */
static size_t room(const struct ph_batches *batches, size_t limit) {
    int committing = is_committing(batches); /* before `room`: one that is older still holds what it took */
    uint64_t file = ph_load_relaxed(&batches->committer.room);
    uint64_t taken =
        ph_journal_sectors(batches->length) + (committing ? ph_journal_sectors(batches->in_flight_length) : 0);
    uint64_t in_file = file > taken ? file - taken : 0;
    uint64_t in_batch = limit > batches->length ? limit - batches->length : 0;
    return (size_t)(in_file < in_batch ? in_file : in_batch);
}

void ph_tally_note_counter(struct ph_tally *tally, struct ph_counter *counter) {
    struct ph_batches *batches = tally->batches;
    counter->batch = ph_tally_batch(tally);
    counter->record_at = (uint32_t)batches->length;
    batches->length += ph_record_counter(batches->filling + batches->length, counter);
}

void ph_tally_note_value(struct ph_tally *tally, struct ph_counter *counter, const struct ph_session *session) {
    struct ph_batches *batches = tally->batches;
    uint64_t batch = ph_tally_batch(tally);
    if (session == NULL && counter->batch == batch && counter->record_at != NO_RECORD) {
        ph_record_set_bound(batches->filling + counter->record_at, counter->bound);
        return;
    }
    counter->batch = batch;
    counter->record_at = (uint32_t)batches->length;
    uint8_t *out = batches->filling + batches->length;
    batches->length += session != NULL ? ph_record_session(out, counter, session) : ph_record_value(out, counter);
}

/* Writes down old counters in the new file. Returns whether it is complete with that. */
static int copy_some(struct ph_batches *batches) {
    size_t least = batches->length + COPY_RESERVE;
    size_t limit = least > COPY_LIMIT ? least : COPY_LIMIT;
    while (batches->copy_at < batches->counters.size && batches->length < limit &&
           room(batches, BATCH_LIMIT) >= PH_COUNTER_RECORDS_MAX) {
        struct ph_counter *counter = ph_counters_at(&batches->counters, batches->copy_at++);
        batches->length += ph_record_counter(batches->filling + batches->length, counter);
        counter->record_at = NO_RECORD; /* a record before this one must not be what is raised later */
    }
    return batches->copy_at == batches->counters.size;
}

static enum ph_rewrite rewrite_step(struct ph_tally *tally, struct ph_batches *batches) {
    int rewriting = ph_load_relaxed(&batches->committer.rewriting) != 0;
    if (rewriting) {
        batches->copy_at = batches->copying ? batches->copy_at : 0;
        batches->copying = 1;
        return copy_some(batches) ? PH_REWRITE_END : PH_REWRITE_NONE;
    }
    batches->copying = 0;
    uint64_t used = ph_load_relaxed(&batches->committer.used);
    if (batches->length == PH_BATCH_HEAD || used < 2 * batches->counters.live_bytes + REWRITE_SLACK ||
        tally->mint->monotonic_ns - batches->rewrite_tried_ns < RETRY_NS / 4) {
        return PH_REWRITE_NONE;
    }
    batches->rewrite_tried_ns = tally->mint->monotonic_ns;
    return PH_REWRITE_BEGIN;
}

static void hand_over(struct ph_tally *tally, struct ph_batches *batches) {
    enum ph_rewrite rewrite = rewrite_step(tally, batches);
    if (batches->length == PH_BATCH_HEAD && rewrite != PH_REWRITE_END) {
        return;
    }
    uint8_t *batch = batches->filling;
    batches->filling = batches->in_flight;
    batches->in_flight = batch;
    batches->in_flight_length = batches->length;
    batches->length = PH_BATCH_HEAD;
    batches->handed++;
    batches->handed_ns = tally->mint->monotonic_ns;
    ph_committer_hand_over(&batches->committer, batch, batches->in_flight_length, rewrite);
}

/* The file is too short, or not there: has the commit thread been asked to mend that a moment ago? */
static void ask_for_room(struct ph_tally *tally, struct ph_batches *batches) {
    if (batches->room_asked_ns == 0 || tally->mint->monotonic_ns - batches->room_asked_ns > RETRY_NS) {
        batches->room_asked_ns = tally->mint->monotonic_ns;
        ph_committer_make_room(&batches->committer);
    }
}

/* Tells the Obelisk which journal is its own and how far that is known to have come. */
static void note_journal(struct ph_tally *tally, struct ph_batches *batches, uint64_t durable) {
    uint64_t id = ph_load_relaxed(&batches->committer.journal_id);
    int unknown = id != 0 && ph_syncer_durable_counters_id(tally->mint->syncer) != id;
    if (id == 0 || (!unknown && durable == batches->noted_batch) ||
        (batches->noted_ns != 0 && tally->mint->monotonic_ns - batches->noted_ns < NOTE_NS)) {
        return;
    }
    batches->noted_ns = tally->mint->monotonic_ns;
    batches->noted_batch = durable;
    ph_syncer_note_counters(tally->mint->syncer, id, durable);
    ph_mint_write_record(tally->mint);
}

enum ph_counted ph_tally_admit(struct ph_tally *tally, size_t bytes, int may_wait, int *error) {
    *error = 0;
    if (tally->batches == NULL && start_empty(tally) != 0) {
        *error = PH_ERR_UNAVAILABLE;
        return PH_COUNTED_NOT;
    }
    struct ph_batches *batches = tally->batches;
    uint64_t stall_ns = tally->stall_ms_max * PH_NS_PER_MS;
    if (is_committing(batches) && tally->mint->monotonic_ns - batches->handed_ns > stall_ns) {
        *error = PH_ERR_CEILING_STALLED;
        return PH_COUNTED_NOT;
    }
    uint64_t id = ph_load_relaxed(&batches->committer.journal_id);
    if (id == 0 || room(batches, BATCH_LIMIT - COPY_RESERVE) < bytes) {
        int in_file = id == 0 || batches->length + bytes <= BATCH_LIMIT - COPY_RESERVE;
        if (in_file && !is_committing(batches)) {
            ask_for_room(tally, batches);
        }
        *error = in_file && ph_load_relaxed(&batches->committer.full) ? PH_ERR_STORAGE_FULL : 0;
        return *error != 0 ? PH_COUNTED_NOT : PH_COUNTED_NOT_YET;
    }
    if (ph_syncer_durable_counters_id(tally->mint->syncer) != id) {
        note_journal(tally, batches, ph_committer_durable(&batches->committer));
        return PH_COUNTED_NOT_YET;
    }
    return batches->count < PH_ANSWERS_MAX && may_wait ? PH_COUNTED : PH_COUNTED_NOT_YET;
}

/* --- answers */

static struct ph_answer *put_off(struct ph_tally *tally, struct ph_ticket ticket,
                                 const struct ph_count_result *result) {
    struct ph_batches *batches = tally->batches;
    struct ph_answer *answer = &batches->answers[(batches->first + batches->count++) % PH_ANSWERS_MAX];
    answer->ticket = ticket;
    answer->batch = result->batch;
    answer->value = result->value;
    answer->since_ns = tally->mint->monotonic_ns;
    answer->has_sessions = 0;
    return answer;
}

void ph_tally_put_off(struct ph_tally *tally, struct ph_ticket ticket, const struct ph_count_result *result) {
    put_off(tally, ticket, result);
}

void ph_tally_put_off_state(struct ph_tally *tally, struct ph_ticket ticket, const struct ph_count_result *result,
                            uint32_t sessions) {
    struct ph_answer *answer = put_off(tally, ticket, result);
    answer->has_sessions = 1;
    answer->sessions = sessions;
}

const struct ph_answer *ph_tally_next_answer(struct ph_tally *tally, int *error) {
    struct ph_batches *batches = tally->batches;
    if (batches == NULL || batches->count == 0) {
        return NULL;
    }
    const struct ph_answer *oldest = &batches->answers[batches->first];
    int durable = oldest->batch <= ph_committer_durable(&batches->committer);
    if (!durable && tally->mint->monotonic_ns - oldest->since_ns <= tally->stall_ms_max * PH_NS_PER_MS) {
        return NULL;
    }
    *error = durable ? 0 : PH_ERR_CEILING_STALLED; /* a disk that hangs */
    batches->count--;
    batches->first = batches->count > 0 ? (batches->first + 1) % PH_ANSWERS_MAX : 0; /* few pages when few wait */
    return oldest;
}

void ph_tally_commit(struct ph_tally *tally) {
    struct ph_batches *batches = tally->batches;
    if (batches == NULL) {
        return;
    }
    uint64_t durable = ph_committer_durable(&batches->committer);
    if (durable == batches->handed) {
        hand_over(tally, batches);
    }
    note_journal(tally, batches, durable);
}

/* What reserves ahead is written down as it stands: a clean stop leaves no gap. */
static void note_exact_values(struct ph_tally *tally, uint32_t *at) {
    struct ph_batches *batches = tally->batches;
    for (; *at < batches->counters.size && room(batches, BATCH_LIMIT) >= PH_COUNTER_RECORDS_MAX; (*at)++) {
        struct ph_counter *counter = ph_counters_at(&batches->counters, *at);
        if (counter->bound != counter->next) {
            counter->bound = counter->next;
            ph_tally_note_value(tally, counter, NULL);
        }
    }
}

/* Returns whether all that was handed over is durable. If not, it never will be: the commit thread has failed. */
static int await_commit(const struct ph_batches *batches) {
    while (is_committing(batches) && !ph_committer_has_ended(&batches->committer)) {
        usleep(100);
    }
    return !is_committing(batches); /* it may have ended after the last batch */
}

void ph_tally_finish(struct ph_tally *tally) {
    struct ph_batches *batches = tally->batches;
    uint32_t at = 0;
    int goes_on = batches != NULL;
    while (goes_on && await_commit(batches)) {
        int room_left = room(batches, BATCH_LIMIT) >= PH_COUNTER_RECORDS_MAX;
        note_exact_values(tally, &at);
        hand_over(tally, batches);
        goes_on = is_committing(batches) || (room_left && at < batches->counters.size);
    }
    if (batches != NULL) {
        ph_committer_stop(&batches->committer);
    }
}

/* --- reserving ahead */

int ph_tally_reserves(const struct ph_tally *tally, uint32_t kind, struct ph_bytes name) {
    static const char *const kinds[] = {"", "group", "offset", "schema"};
    char text[256];
    if (name.length >= sizeof text) {
        return 0;
    }
    memcpy(text, name.data, name.length);
    text[name.length] = '\0';
    const char *pattern = tally->config.reserve;
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
