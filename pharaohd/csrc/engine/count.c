/* What a dense request does to its counter. */
#include "engine/tally.h"
#include "ph_errors.h"

uint64_t ph_tally_end_of(const struct ph_tally *tally, enum ph_counter_kind kind) {
    switch (kind) {
    case PH_KIND_GROUP: /* int32, as Kafka's generations */
        return UINT64_C(1) << 31;
    case PH_KIND_SCHEMA: /* n * modulus + coordinator fits 31 bits: docs/internals/schemas.md */
        return (INT32_MAX - tally->config.identity.coordinator) / tally->config.identity.modulus + 1;
    default:
        return UINT64_C(1) << 63;
    }
}

uint64_t ph_tally_start_of(enum ph_counter_kind kind) { return kind == PH_KIND_OFFSET ? 0 : 1; }

static enum ph_counted refuse(struct ph_count_result *result, int error, const char *detail) {
    result->error = error;
    result->detail = detail;
    return PH_COUNTED_NOT;
}

static enum ph_counted later(struct ph_count_result *result, uint64_t batch, uint64_t value) {
    result->batch = batch;
    result->value = value;
    return PH_COUNTED_LATER;
}

/* The counter, made if need be and if there may be one more; NULL: *error says why not. */
static struct ph_counter *find_or_make(struct ph_tally *tally, const struct ph_count *wanted, int *error) {
    struct ph_counters *counters = &tally->batches->counters;
    struct ph_counter *counter = ph_counters_find(counters, wanted->kind, wanted->name);
    if (counter != NULL) {
        return counter;
    }
    if (counters->size >= tally->config.counters_max) {
        *error = PH_ERR_COUNTER_LIMIT;
        return NULL;
    }
    counter = ph_counters_add(counters, wanted->kind, wanted->name, ph_tally_start_of(wanted->kind));
    if (counter == NULL) {
        *error = PH_ERR_UNAVAILABLE;
        return NULL;
    }
    counter->reserves = (uint8_t)ph_tally_reserves(tally, wanted->kind, wanted->name);
    ph_tally_note_counter(tally, counter);
    return counter;
}

static void note_durable(const struct ph_tally *tally, struct ph_counter *counter) {
    if (counter->batch <= ph_committer_durable(&tally->batches->committer)) {
        counter->safe = counter->bound;
    }
}

/* Writes the bound down, further ahead if it reserves. Returns whether the values just taken are safe already. */
static int raise_bound(struct ph_tally *tally, struct ph_counter *counter, const struct ph_session *session) {
    if (!counter->reserves) {
        counter->bound = counter->next;
        ph_tally_note_value(tally, counter, session);
        return 0;
    }
    note_durable(tally, counter);
    uint64_t ahead = tally->config.reserve_ahead;
    uint64_t end = ph_tally_end_of(tally, counter->kind);
    int low = counter->next > counter->bound || (counter->bound - counter->next < ahead / 2 && counter->bound < end);
    if (low) {
        counter->bound = ph_sooner(counter->next + ahead, end);
    }
    if (low || session != NULL) {
        ph_tally_note_value(tally, counter, session);
    }
    return session == NULL && counter->next <= counter->safe;
}

static enum ph_counted take_values(struct ph_tally *tally, const struct ph_count *wanted, struct ph_counter *counter,
                                   struct ph_count_result *result) {
    uint64_t first = counter->next;
    struct ph_session session = {
        .token = wanted->token, .first = first, .batch = ph_tally_batch(tally), .count = (uint32_t)wanted->count};
    int has_token = wanted->token.session != 0;
    if (has_token && ph_counter_remember(&tally->batches->counters, counter, &session) != 0) {
        return refuse(result, PH_ERR_UNAVAILABLE, "out of memory");
    }
    counter->next += wanted->count;
    result->taken = wanted->count;
    int is_safe = raise_bound(tally, counter, has_token ? &session : NULL);
    later(result, counter->batch, first);
    return is_safe ? PH_COUNTED : PH_COUNTED_LATER;
}

/* A request whose token is known gets the old answer, once that is durable. Returns 0 when the token is new. */
static int answer_known_token(const struct ph_count *wanted, const struct ph_counter *counter,
                              struct ph_count_result *result, enum ph_counted *outcome) {
    const struct ph_session *session = NULL;
    switch (ph_counter_judge(counter, &wanted->token, &session)) {
    case PH_TOKEN_NEW:
        return 0;
    case PH_TOKEN_FENCED:
        *outcome = refuse(result, PH_ERR_FENCED, NULL);
        return 1;
    case PH_TOKEN_FORGOTTEN:
        *outcome = refuse(result, PH_ERR_SESSION_FORGOTTEN, NULL);
        return 1;
    case PH_TOKEN_REPEATED:
        break;
    }
    *outcome = session->count != wanted->count
                   ? refuse(result, PH_ERR_BAD_REQUEST, "this token was used with another count")
                   : later(result, session->batch, session->first);
    return 1;
}

/* While nothing can be written down: what was reserved ahead is spent. Returns 0 when that does not suffice. */
static int take_reserved(struct ph_tally *tally, const struct ph_count *wanted, struct ph_count_result *result) {
    struct ph_counter *counter =
        tally->batches != NULL ? ph_counters_find(&tally->batches->counters, wanted->kind, wanted->name) : NULL;
    if (counter == NULL || !counter->reserves || wanted->token.session != 0) {
        return 0;
    }
    note_durable(tally, counter);
    if (counter->next > counter->safe || wanted->count > counter->safe - counter->next) {
        return 0;
    }
    result->value = counter->next;
    result->taken = wanted->count;
    counter->next += wanted->count;
    return 1;
}

enum ph_counted ph_tally_count(struct ph_tally *tally, const struct ph_count *wanted, struct ph_count_result *result) {
    *result = (struct ph_count_result){0};
    enum ph_counted outcome = ph_tally_admit(tally, PH_COUNTER_RECORDS_MAX, wanted->may_wait, &result->error);
    if (outcome != PH_COUNTED) {
        return take_reserved(tally, wanted, result) ? PH_COUNTED : outcome;
    }
    struct ph_counter *counter = find_or_make(tally, wanted, &result->error);
    if (counter == NULL) {
        return PH_COUNTED_NOT;
    }
    if (wanted->token.session != 0 && answer_known_token(wanted, counter, result, &outcome)) {
        return outcome;
    }
    if (wanted->count > ph_tally_end_of(tally, wanted->kind) - counter->next) {
        return refuse(result, PH_ERR_COUNTER_EXHAUSTED, NULL);
    }
    return take_values(tally, wanted, counter, result);
}

enum ph_counted ph_tally_raise(struct ph_tally *tally, const struct ph_count *wanted, struct ph_count_result *result) {
    *result = (struct ph_count_result){0};
    enum ph_counted outcome = ph_tally_admit(tally, PH_COUNTER_RECORDS_MAX, wanted->may_wait, &result->error);
    if (outcome != PH_COUNTED) {
        return outcome;
    }
    struct ph_counter *counter = find_or_make(tally, wanted, &result->error);
    if (counter == NULL) {
        return PH_COUNTED_NOT;
    }
    if (wanted->count < counter->next) {
        return refuse(result, PH_ERR_COUNTER_LOWER, NULL);
    }
    counter->next = wanted->count;
    counter->bound = counter->bound > counter->next ? counter->bound : counter->next;
    ph_tally_note_value(tally, counter, NULL);
    return later(result, counter->batch, counter->next);
}

enum ph_counted ph_tally_read(struct ph_tally *tally, const struct ph_count *wanted, struct ph_count_result *result,
                              uint32_t *sessions) {
    *result = (struct ph_count_result){0};
    const struct ph_counter *counter =
        tally->batches != NULL ? ph_counters_find(&tally->batches->counters, wanted->kind, wanted->name) : NULL;
    if (counter == NULL) {
        return refuse(result, PH_ERR_COUNTER_UNKNOWN, NULL);
    }
    if (tally->batches->count == PH_ANSWERS_MAX) {
        return PH_COUNTED_NOT_YET;
    }
    *sessions = counter->sessions != NULL ? counter->sessions->count : 0;
    return later(result, counter->batch, counter->next);
}
