/*
 * Methods of dense values, and those that the router serves. A counter lives in its name's coordinator and nowhere else:
 * what another one is asked for goes there.
 */
#include "counters.h"
#include "dense.h"
#include "methods.h"
#include "ph_errors.h"

#include <string.h>

#define NS_PER_MS UINT64_C(1000000)
#define ROUTER_PATIENCE_MS 2000
#define LIST_BYTES (PH_REPLY_BYTES_MAX - PH_NAME_BYTES_MAX - 256) /* after so much a list goes on in another reply */

struct counting {
    enum ph_counter_kind kind;
    struct ph_bytes name;
    struct ph_token token;
    uint64_t count;
};

/* The first value that a kind does not have any more, and the one that it begins with. */
static uint64_t end_of(const struct ph_worker *worker, enum ph_counter_kind kind) {
    switch (kind) {
    case PH_KIND_GROUP: /* int32, as Kafka's generations */
        return UINT64_C(1) << 31;
    case PH_KIND_SCHEMA: /* n * modulus + coordinator fits 31 bits: docs/schemas.md */
        return (INT32_MAX - worker->mint.issuer.coordinator) / worker->config.identity.modulus + 1;
    default:
        return UINT64_C(1) << 63;
    }
}

static uint64_t start_of(enum ph_counter_kind kind) { return kind == PH_KIND_OFFSET ? 0 : 1; }

static enum ph_outcome wait_for_commit(struct ph_call *call) {
    uint64_t since_ns = call->connection->waiting_since_ns;
    uint64_t stall_ns = call->worker->config.stall_ms_max * NS_PER_MS;
    if (since_ns != 0 && call->worker->mint.monotonic_ns - since_ns > stall_ns) {
        return ph_call_fail(call, PH_ERR_CEILING_STALLED, "the journal of counters");
    }
    return PH_WAIT;
}

/* Whose the name is. Returns 1 when it is this worker's; otherwise *outcome is what comes of the request. */
static int is_own(struct ph_call *call, struct ph_bytes name, const char *method, enum ph_outcome *outcome) {
    struct ph_worker *worker = call->worker;
    uint32_t home = ph_coordinator_of_key(worker, name);
    if (home == worker->mint.issuer.coordinator) {
        return 1;
    }
    if (method == NULL || worker->slot_of[home] == 0) {
        *outcome = ph_call_fail(call, PH_ERR_WRONG_COORDINATOR, NULL);
    } else if (!ph_is_live(worker, home)) {
        *outcome = ph_call_fail(call, PH_ERR_UNAVAILABLE, "the name's own coordinator is down");
    } else {
        *outcome = ph_call_forward(call, home, method, worker->config.stall_ms_max + PH_LINK_PATIENCE_MS);
    }
    return 0;
}

/* nil, [session, sequence] or [session, sequence, client id]. */
static void read_token(struct ph_reader *reader, struct ph_token *token) {
    *token = (struct ph_token){.session = 0};
    if (ph_read_nil(reader)) {
        return;
    }
    uint32_t parts = ph_read_array(reader);
    token->session = ph_read_uint(reader);
    token->sequence = ph_read_uint(reader);
    if (parts == 3) {
        struct ph_bytes client = ph_read_key(reader);
        token->client = reader->failed ? 0 : ph_client_hash(client);
        reader->failed |= client.length > PH_KEY_BYTES_MAX;
    }
    reader->failed |= parts < 2 || parts > 3 || token->session == 0 || token->sequence > INT64_MAX;
}

/* The counter, made if need be and if there may be one more; NULL: *error says why not. */
static struct ph_counter *find_or_make(struct ph_worker *worker, enum ph_counter_kind kind, struct ph_bytes name,
                                       int *error) {
    struct ph_dense *dense = worker->dense;
    struct ph_counter *counter = ph_counters_find(&dense->counters, kind, name);
    if (counter != NULL) {
        return counter;
    }
    if (dense->counters.size >= worker->config.counters_max) {
        *error = PH_ERR_COUNTER_LIMIT;
        return NULL;
    }
    counter = ph_counters_add(&dense->counters, kind, name, start_of(kind));
    if (counter == NULL) {
        *error = PH_ERR_UNAVAILABLE;
        return NULL;
    }
    counter->reserves = (uint8_t)ph_dense_reserves(worker, kind, name);
    ph_dense_note_counter(dense, counter);
    return counter;
}

static uint64_t min_u64(uint64_t a, uint64_t b) { return a < b ? a : b; }

static void note_durable(const struct ph_dense *dense, struct ph_counter *counter) {
    if (counter->batch <= ph_committer_durable(&dense->committer)) {
        counter->safe = counter->bound;
    }
}

/* Writes the bound down, further ahead if it reserves. Returns whether the values just taken are safe already. */
static int raise_bound(struct ph_worker *worker, struct ph_counter *counter, const struct ph_session *session) {
    struct ph_dense *dense = worker->dense;
    if (!counter->reserves) {
        counter->bound = counter->next;
        ph_dense_note_value(dense, counter, session);
        return 0;
    }
    note_durable(dense, counter);
    uint64_t ahead = worker->config.reserve_ahead;
    uint64_t end = end_of(worker, counter->kind);
    int low = counter->next > counter->bound || (counter->bound - counter->next < ahead / 2 && counter->bound < end);
    if (low) {
        counter->bound = min_u64(counter->next + ahead, end);
    }
    if (low || session != NULL) {
        ph_dense_note_value(dense, counter, session);
    }
    return session == NULL && counter->next <= counter->safe;
}

static void answer_at_once(struct ph_call *call, uint64_t first) {
    ph_put_reply(call->writer, call->request->message_id);
    ph_put_uint(call->writer, first);
}

static enum ph_outcome take_values(struct ph_call *call, const struct counting *wanted, struct ph_counter *counter) {
    struct ph_worker *worker = call->worker;
    uint64_t first = counter->next;
    struct ph_session session = {.token = wanted->token,
                                 .first = first,
                                 .batch = ph_dense_batch(worker->dense),
                                 .count = (uint32_t)wanted->count};
    int has_token = wanted->token.session != 0;
    if (has_token && ph_counter_remember(&worker->dense->counters, counter, &session) != 0) {
        return ph_call_fail(call, PH_ERR_UNAVAILABLE, "out of memory");
    }
    counter->next += wanted->count;
    ph_count(&worker->slot->ids_dense, wanted->count);
    if (raise_bound(worker, counter, has_token ? &session : NULL)) {
        answer_at_once(call, first);
        return PH_DONE;
    }
    ph_dense_reply(worker, call->connection, call->request->message_id, counter->batch, first);
    return PH_DONE;
}

/* A request whose token is known gets the old answer, once that is durable. Returns 0 when the token is new. */
static int answer_known_token(struct ph_call *call, const struct counting *wanted, const struct ph_counter *counter) {
    const struct ph_session *session = NULL;
    switch (ph_counter_judge(counter, &wanted->token, &session)) {
    case PH_TOKEN_NEW:
        return 0;
    case PH_TOKEN_FENCED:
        ph_call_fail(call, PH_ERR_FENCED, NULL);
        return 1;
    case PH_TOKEN_FORGOTTEN:
        ph_call_fail(call, PH_ERR_SESSION_FORGOTTEN, NULL);
        return 1;
    case PH_TOKEN_REPEATED:
        break;
    }
    if (session->count != wanted->count) {
        ph_call_bad_params(call, "this token was used with another count");
    } else {
        ph_dense_reply(call->worker, call->connection, call->request->message_id, session->batch, session->first);
    }
    return 1;
}

/* While nothing can be written down: what was reserved ahead is spent. Returns 0 when that does not suffice. */
static int take_reserved(struct ph_call *call, const struct counting *wanted) {
    const struct ph_dense *dense = call->worker->dense;
    struct ph_counter *counter = dense != NULL ? ph_counters_find(&dense->counters, wanted->kind, wanted->name) : NULL;
    if (counter == NULL || !counter->reserves || wanted->token.session != 0) {
        return 0;
    }
    note_durable(dense, counter);
    if (counter->next > counter->safe || wanted->count > counter->safe - counter->next) {
        return 0;
    }
    answer_at_once(call, counter->next);
    counter->next += wanted->count;
    ph_count(&call->worker->slot->ids_dense, wanted->count);
    return 1;
}

static enum ph_outcome count(struct ph_call *call, const struct counting *wanted) {
    struct ph_worker *worker = call->worker;
    int error;
    enum ph_outcome admitted = ph_dense_admit(worker, call->connection, PH_COUNTER_RECORDS_MAX, &error);
    if ((admitted == PH_WAIT || error != 0) && take_reserved(call, wanted)) {
        return PH_DONE;
    }
    if (admitted == PH_WAIT) {
        return wait_for_commit(call);
    }
    if (error != 0) {
        return ph_call_fail(call, error, NULL);
    }
    struct ph_counter *counter = find_or_make(worker, wanted->kind, wanted->name, &error);
    if (counter == NULL) {
        return ph_call_fail(call, error, NULL);
    }
    if (wanted->token.session != 0 && answer_known_token(call, wanted, counter)) {
        return PH_DONE;
    }
    if (wanted->count > end_of(worker, wanted->kind) - counter->next) {
        return ph_call_fail(call, PH_ERR_COUNTER_EXHAUSTED, NULL);
    }
    return take_values(call, wanted, counter);
}

static enum ph_outcome join(struct ph_call *call, const char *pass_on_as) {
    struct ph_reader reader = call->request->params;
    struct counting wanted = {.kind = PH_KIND_GROUP, .count = 1};
    enum ph_outcome outcome;
    wanted.name = ph_read_key(&reader);
    struct ph_bytes member = ph_read_key(&reader);
    if (call->request->param_count > 2) {
        read_token(&reader, &wanted.token);
    }
    if (call->request->param_count < 2 || call->request->param_count > 3 || reader.failed) {
        return ph_call_bad_params(call, "join_group takes group, member and a token ([session, sequence]) or nil");
    }
    if (wanted.name.length > PH_KEY_BYTES_MAX || member.length > PH_KEY_BYTES_MAX) {
        return ph_call_fail(call, PH_ERR_KEY_TOO_LONG, "4096 bytes at most");
    }
    if (wanted.token.session != 0 && wanted.token.client == 0) {
        wanted.token.client = ph_client_hash(member);
    }
    return is_own(call, wanted.name, pass_on_as, &outcome) ? count(call, &wanted) : outcome;
}

enum ph_outcome ph_join_group(struct ph_call *call) { return join(call, "@join_group"); }

enum ph_outcome ph_forwarded_join(struct ph_call *call) { return join(call, NULL); }

static enum ph_outcome assign(struct ph_call *call, const char *pass_on_as) {
    struct ph_reader reader = call->request->params;
    struct counting wanted = {.kind = PH_KIND_OFFSET, .count = 1};
    enum ph_outcome outcome;
    wanted.name = ph_read_key(&reader);
    if (call->request->param_count > 1 && !ph_read_nil(&reader)) {
        wanted.count = ph_read_uint(&reader);
    }
    if (call->request->param_count > 2) {
        read_token(&reader, &wanted.token);
    }
    if (call->request->param_count < 1 || call->request->param_count > 3 || reader.failed) {
        return ph_call_bad_params(call,
                                  "assign_offset takes partition, count and a token ([session, sequence]) or nil");
    }
    if (wanted.name.length > PH_KEY_BYTES_MAX) {
        return ph_call_fail(call, PH_ERR_KEY_TOO_LONG, "4096 bytes at most");
    }
    if (wanted.count < 1 || wanted.count > PH_COUNT_MAX) {
        return ph_call_fail(call, PH_ERR_OUT_OF_RANGE, "a count is 1 to 2147483647");
    }
    return is_own(call, wanted.name, pass_on_as, &outcome) ? count(call, &wanted) : outcome;
}

enum ph_outcome ph_assign_offset(struct ph_call *call) { return assign(call, "@assign_offset"); }

enum ph_outcome ph_forwarded_assign(struct ph_call *call) { return assign(call, NULL); }

/* Numbers of schemas, for the router. */
enum ph_outcome ph_next_schema(struct ph_call *call) {
    struct counting wanted = {.kind = PH_KIND_SCHEMA, .name = {(const uint8_t *)"", 0}, .count = 1};
    if (!ph_call_is_privileged(call)) {
        return ph_call_fail(call, PH_ERR_PERMISSION_DENIED, NULL);
    }
    return call->request->param_count == 0 ? count(call, &wanted)
                                           : ph_call_bad_params(call, "@next_schema takes no parameters");
}

/* --- looking at counters, and raising them */

static const char *const kind_names[] = {"", "group", "offset", "schema"};

static enum ph_counter_kind read_kind(struct ph_reader *reader) {
    struct ph_bytes text = ph_read_key(reader);
    for (uint32_t kind = 1; !reader->failed && kind < PH_KIND_END; kind++) {
        if (text.length == strlen(kind_names[kind]) && memcmp(text.data, kind_names[kind], text.length) == 0) {
            return kind;
        }
    }
    reader->failed = 1;
    return PH_KIND_END;
}

/* Reads kind and name. Returns 1 when the counter is this worker's: those of schemas have no name. */
static int own_counter(struct ph_call *call, struct ph_reader *reader, uint32_t param_count, const char *pass_on_as,
                       const char *expected, struct counting *wanted, enum ph_outcome *outcome) {
    wanted->kind = read_kind(reader);
    wanted->name = ph_read_key(reader);
    wanted->count = param_count > 2 ? ph_read_uint(reader) : 0;
    if (call->request->param_count != param_count || reader->failed ||
        (wanted->kind == PH_KIND_SCHEMA && wanted->name.length != 0)) {
        *outcome = ph_call_bad_params(call, expected);
        return 0;
    }
    if (wanted->name.length > PH_KEY_BYTES_MAX) {
        *outcome = ph_call_fail(call, PH_ERR_KEY_TOO_LONG, "4096 bytes at most");
        return 0;
    }
    return wanted->kind == PH_KIND_SCHEMA || is_own(call, wanted->name, pass_on_as, outcome);
}

static enum ph_outcome read_counter(struct ph_call *call, const char *pass_on_as) {
    struct ph_reader reader = call->request->params;
    struct counting wanted;
    enum ph_outcome outcome;
    if (!own_counter(call, &reader, 2, pass_on_as, "counter_read takes kind (group, offset or schema) and name",
                     &wanted, &outcome)) {
        return outcome;
    }
    const struct ph_dense *dense = call->worker->dense;
    const struct ph_counter *counter =
        dense != NULL ? ph_counters_find(&dense->counters, wanted.kind, wanted.name) : NULL;
    if (counter == NULL) {
        return ph_call_fail(call, PH_ERR_COUNTER_UNKNOWN, NULL);
    }
    if (dense->count == PH_DENSE_PENDING_MAX) {
        return wait_for_commit(call);
    }
    ph_dense_reply(call->worker, call->connection, call->request->message_id, counter->batch, counter->next);
    ph_dense_reply_sessions(call->worker->dense, counter->sessions != NULL ? counter->sessions->count : 0);
    return PH_DONE;
}

enum ph_outcome ph_counter_read(struct ph_call *call) { return read_counter(call, "@counter_read"); }

enum ph_outcome ph_forwarded_read(struct ph_call *call) { return read_counter(call, NULL); }

static enum ph_outcome raise_counter(struct ph_call *call, const char *pass_on_as) {
    struct ph_worker *worker = call->worker;
    struct ph_reader reader = call->request->params;
    struct counting wanted;
    enum ph_outcome outcome;
    int error;
    if (!ph_call_is_privileged(call)) {
        return ph_call_fail(call, PH_ERR_PERMISSION_DENIED, NULL);
    }
    if (!own_counter(call, &reader, 3, pass_on_as, "counter_raise takes kind, name and the next value", &wanted,
                     &outcome)) {
        return outcome;
    }
    if (wanted.count > end_of(worker, wanted.kind)) {
        return ph_call_fail(call, PH_ERR_OUT_OF_RANGE, "beyond the end of this kind of counter");
    }
    if (wanted.count < start_of(wanted.kind)) {
        return ph_call_fail(call, PH_ERR_COUNTER_LOWER, NULL);
    }
    if (ph_dense_admit(worker, call->connection, PH_COUNTER_RECORDS_MAX, &error) == PH_WAIT) {
        return wait_for_commit(call);
    }
    struct ph_counter *counter = error == 0 ? find_or_make(worker, wanted.kind, wanted.name, &error) : NULL;
    if (counter == NULL) {
        return ph_call_fail(call, error, NULL);
    }
    if (wanted.count < counter->next) {
        return ph_call_fail(call, PH_ERR_COUNTER_LOWER, NULL);
    }
    counter->next = wanted.count;
    counter->bound = counter->bound > counter->next ? counter->bound : counter->next;
    ph_dense_note_value(worker->dense, counter, NULL);
    ph_dense_reply(worker, call->connection, call->request->message_id, counter->batch, counter->next);
    return PH_DONE;
}

enum ph_outcome ph_counter_raise(struct ph_call *call) { return raise_counter(call, "@counter_raise"); }

enum ph_outcome ph_forwarded_raise(struct ph_call *call) { return raise_counter(call, NULL); }

static uint32_t counters_that_fit(const struct ph_counters *counters, uint32_t first) {
    size_t bytes = 0;
    uint32_t count = 0;
    while (first + count < counters->size && bytes < LIST_BYTES) {
        bytes += ph_counters_at(counters, first + count++)->name_length + 32U;
    }
    return count;
}

/* Those of this worker, in the order in which they were first used. Values of the last moment may not be durable yet. */
enum ph_outcome ph_counter_list(struct ph_call *call) {
    static const struct ph_counters none;
    struct ph_reader reader = call->request->params;
    struct ph_writer *writer = call->writer;
    const struct ph_counters *counters = call->worker->dense != NULL ? &call->worker->dense->counters : &none;
    uint64_t first = call->request->param_count > 0 && !ph_read_nil(&reader) ? ph_read_uint(&reader) : 0;
    if (call->request->param_count > 1 || reader.failed || first > UINT32_MAX) {
        return ph_call_bad_params(call, "counter_list takes a cursor or nil");
    }
    uint32_t count = first < counters->size ? counters_that_fit(counters, (uint32_t)first) : 0;
    ph_put_reply(writer, call->request->message_id);
    ph_put_map(writer, 2);
    ph_put_text(writer, "counters");
    ph_put_array(writer, count);
    for (uint32_t i = 0; i < count; i++) {
        const struct ph_counter *counter = ph_counters_at(counters, (uint32_t)first + i);
        ph_put_array(writer, 4);
        ph_put_text(writer, kind_names[counter->kind]);
        ph_put_binary(writer, counter->name, counter->name_length);
        ph_put_uint(writer, counter->next);
        ph_put_uint(writer, counter->sessions != NULL ? counter->sessions->count : 0);
    }
    ph_put_text(writer, "next");
    if (first + count < counters->size) {
        ph_put_uint(writer, first + count);
    } else {
        ph_put_nil(writer);
    }
    return PH_DONE;
}

/* --- schemas: the router's, which draws their numbers here */

static enum ph_outcome to_router(struct ph_call *call, uint32_t coordinator, const char *method) {
    if (call->worker->slot_of[coordinator] == 0) {
        return ph_call_fail(call, PH_ERR_WRONG_COORDINATOR, NULL);
    }
    return ph_call_forward(call, PH_ROUTER, method, call->worker->config.stall_ms_max + ROUTER_PATIENCE_MS);
}

enum ph_outcome ph_register_schema(struct ph_call *call) {
    struct ph_reader reader = call->request->params;
    struct ph_bytes subject = ph_read_key(&reader);
    struct ph_bytes schema = ph_read_key(&reader);
    if (call->request->param_count > 2 && !ph_read_nil(&reader)) {
        ph_read_key(&reader);
    }
    if (call->request->param_count < 2 || call->request->param_count > 3 || reader.failed) {
        return ph_call_bad_params(call, "register_schema takes subject, schema and a type (json, avro, bytes) or nil");
    }
    if (subject.length > PH_KEY_BYTES_MAX) {
        return ph_call_fail(call, PH_ERR_KEY_TOO_LONG, "4096 bytes at most");
    }
    if (schema.length > PH_SCHEMA_BYTES_MAX) {
        return ph_call_fail(call, PH_ERR_SCHEMA_INVALID, "57344 bytes at most");
    }
    return to_router(call, ph_coordinator_of_key(call->worker, subject), "@register_schema");
}

enum ph_outcome ph_get_schema(struct ph_call *call) {
    struct ph_reader reader = call->request->params;
    uint64_t id = ph_read_uint(&reader);
    if (call->request->param_count != 1 || reader.failed) {
        return ph_call_bad_params(call, "get_schema takes a schema id");
    }
    if (id < 1 || id > INT32_MAX) {
        return ph_call_fail(call, PH_ERR_OUT_OF_RANGE, "a schema id is 1 to 2147483647");
    }
    return to_router(call, (uint32_t)id % call->worker->config.identity.modulus, "@get_schema");
}

enum ph_outcome ph_list_schemas(struct ph_call *call) {
    struct ph_reader reader = call->request->params;
    uint32_t coordinator = call->worker->mint.issuer.coordinator;
    if (call->request->param_count > 0 && !ph_read_nil(&reader)) {
        struct ph_bytes subject = ph_read_key(&reader);
        coordinator = reader.failed ? coordinator : ph_coordinator_of_key(call->worker, subject);
    }
    if (call->request->param_count > 2 || reader.failed) {
        return ph_call_bad_params(call, "list_schemas takes subject or nil and the last row had or nil");
    }
    return to_router(call, coordinator, "@list_schemas");
}
