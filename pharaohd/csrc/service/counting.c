/*
 * Methods of dense values. A counter lives in its name's coordinator and nowhere else: what another one is asked for goes
 * there.
 */
#include <string.h>

#include "base/clock.h"
#include "ph_errors.h"
#include "service/service.h"

#define LIST_BYTES (PH_REPLY_BYTES_MAX - PH_NAME_BYTES_MAX - 256) /* after so much a list goes on in another reply */

static enum ph_outcome wait_for_commit(struct ph_call *call) {
    uint64_t since_ns = call->client->stream.waiting_since_ns;
    uint64_t stall_ns = call->service->config->settings.rpc_stall_ms_max * PH_NS_PER_MS;
    if (since_ns != 0 && call->service->mint.monotonic_ns - since_ns > stall_ns) {
        return ph_call_fail(call, PH_ERR_CEILING_STALLED, "the journal of counters");
    }
    return PH_WAIT;
}

/* Whose the name is. Returns 1 when it is this worker's; otherwise *outcome is what comes of the request. */
static int is_own(struct ph_call *call, struct ph_bytes name, const char *method, enum ph_outcome *outcome) {
    struct ph_service *service = call->service;
    uint32_t home = ph_coordinator_of_key(service, name);
    if (home == service->mint.issuer.coordinator) {
        return 1;
    }
    if (method == NULL || service->slot_of[home] == 0) {
        *outcome = ph_call_fail(call, PH_ERR_WRONG_COORDINATOR, NULL);
    } else if (!ph_is_live(service, home)) {
        *outcome = ph_call_fail(call, PH_ERR_UNAVAILABLE, "the name's own coordinator is down");
    } else {
        *outcome = ph_call_forward(call, home, method, service->config->settings.rpc_stall_ms_max + PH_LINK_TIMEOUT_MS);
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

/* --- answers */

static void put_answer(struct ph_writer *writer, const struct ph_answer *answer) {
    ph_put_reply(writer, answer->ticket.message_id);
    if (!answer->has_sessions) {
        ph_put_uint(writer, answer->value);
        return;
    }
    ph_put_map(writer, 2);
    ph_put_text(writer, "next");
    ph_put_uint(writer, answer->value);
    ph_put_text(writer, "sessions");
    ph_put_uint(writer, answer->sessions);
}

/* Replies of one client that follow each other leave with one write. */
void ph_counting_answer(struct ph_service *service) {
    struct ph_streams *streams = &service->streams;
    struct ph_writer writer = {streams->output, 0, sizeof streams->output};
    struct ph_stream *stream = NULL;
    const struct ph_answer *answer;
    int error;
    while ((answer = ph_tally_next_answer(&service->tally, &error)) != NULL) {
        struct ph_stream *next = ph_stream_settle(streams, answer->ticket);
        if (next != stream || writer.capacity - writer.length < PH_REPLY_BYTES_MAX) {
            if (stream != NULL) {
                ph_stream_send(stream, writer.data, writer.length);
            }
            writer.length = 0;
        }
        stream = next;
        if (stream != NULL && error != 0) {
            ph_count(&service->slot->errors, 1);
            ph_put_error(&writer, answer->ticket.message_id, error, "the journal of counters");
        } else if (stream != NULL) {
            put_answer(&writer, answer);
        }
    }
    if (stream != NULL) {
        ph_stream_send(stream, writer.data, writer.length);
    }
}

/* Whether one more answer may come later. */
static int may_wait(const struct ph_call *call) {
    return call->client->stream.deferred[PH_COMMITTING] < PH_IN_FLIGHT_MAX;
}

static struct ph_ticket put_off(struct ph_call *call) {
    return ph_stream_defer(&call->client->stream, call->request->message_id, PH_COMMITTING);
}

static enum ph_outcome reply(struct ph_call *call, enum ph_counted counted, const struct ph_count_result *result) {
    ph_count(&call->service->slot->ids_dense, result->taken);
    switch (counted) {
    case PH_COUNTED:
        ph_put_reply(call->writer, call->request->message_id);
        ph_put_uint(call->writer, result->value);
        return PH_DONE;
    case PH_COUNTED_LATER:
        ph_tally_put_off(&call->service->tally, put_off(call), result);
        return PH_DONE;
    case PH_COUNTED_NOT_YET:
        return wait_for_commit(call);
    case PH_COUNTED_NOT:
        break;
    }
    return ph_call_fail(call, result->error, result->detail);
}

static enum ph_outcome count(struct ph_call *call, struct ph_count *wanted) {
    struct ph_count_result result;
    wanted->may_wait = may_wait(call);
    enum ph_counted counted = ph_tally_count(&call->service->tally, wanted, &result);
    return reply(call, counted, &result);
}

/* --- counting */

static enum ph_outcome join(struct ph_call *call, const char *pass_on_as) {
    struct ph_reader reader = call->request->params;
    struct ph_count wanted = {.kind = PH_KIND_GROUP, .count = 1};
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
        return ph_call_fail(call, PH_ERR_KEY_TOO_LONG, PH_TEXT(PH_KEY_BYTES_MAX) " bytes at most");
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
    struct ph_count wanted = {.kind = PH_KIND_OFFSET, .count = 1};
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
        return ph_call_fail(call, PH_ERR_KEY_TOO_LONG, PH_TEXT(PH_KEY_BYTES_MAX) " bytes at most");
    }
    if (wanted.count < 1 || wanted.count > PH_COUNT_MAX) {
        return ph_call_fail(call, PH_ERR_OUT_OF_RANGE, "a count is 1 to " PH_TEXT(PH_COUNT_MAX));
    }
    return is_own(call, wanted.name, pass_on_as, &outcome) ? count(call, &wanted) : outcome;
}

enum ph_outcome ph_assign_offset(struct ph_call *call) { return assign(call, "@assign_offset"); }

enum ph_outcome ph_forwarded_assign(struct ph_call *call) { return assign(call, NULL); }

/* Numbers of schemas, for the router. */
enum ph_outcome ph_next_schema(struct ph_call *call) {
    struct ph_count wanted = {.kind = PH_KIND_SCHEMA, .name = {(const uint8_t *)"", 0}, .count = 1};
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
                       const char *expected, struct ph_count *wanted, enum ph_outcome *outcome) {
    *wanted = (struct ph_count){.kind = read_kind(reader), .may_wait = may_wait(call)};
    wanted->name = ph_read_key(reader);
    wanted->count = param_count > 2 ? ph_read_uint(reader) : 0;
    if (call->request->param_count != param_count || reader->failed ||
        (wanted->kind == PH_KIND_SCHEMA && wanted->name.length != 0)) {
        *outcome = ph_call_bad_params(call, expected);
        return 0;
    }
    if (wanted->name.length > PH_KEY_BYTES_MAX) {
        *outcome = ph_call_fail(call, PH_ERR_KEY_TOO_LONG, PH_TEXT(PH_KEY_BYTES_MAX) " bytes at most");
        return 0;
    }
    return wanted->kind == PH_KIND_SCHEMA || is_own(call, wanted->name, pass_on_as, outcome);
}

static enum ph_outcome read_counter(struct ph_call *call, const char *pass_on_as) {
    struct ph_reader reader = call->request->params;
    struct ph_tally *tally = &call->service->tally;
    struct ph_count wanted;
    struct ph_count_result result;
    enum ph_outcome outcome;
    uint32_t sessions;
    if (!own_counter(call, &reader, 2, pass_on_as, "counter_read takes kind (group, offset or schema) and name",
                     &wanted, &outcome)) {
        return outcome;
    }
    enum ph_counted counted = ph_tally_read(tally, &wanted, &result, &sessions);
    if (counted != PH_COUNTED_LATER) {
        return reply(call, counted, &result);
    }
    ph_tally_put_off_state(tally, put_off(call), &result, sessions);
    return PH_DONE;
}

enum ph_outcome ph_counter_read(struct ph_call *call) { return read_counter(call, "@counter_read"); }

enum ph_outcome ph_forwarded_read(struct ph_call *call) { return read_counter(call, NULL); }

static enum ph_outcome raise_counter(struct ph_call *call, const char *pass_on_as) {
    struct ph_tally *tally = &call->service->tally;
    struct ph_reader reader = call->request->params;
    struct ph_count wanted;
    struct ph_count_result result;
    enum ph_outcome outcome;
    if (!ph_call_is_privileged(call)) {
        return ph_call_fail(call, PH_ERR_PERMISSION_DENIED, NULL);
    }
    if (!own_counter(call, &reader, 3, pass_on_as, "counter_raise takes kind, name and the next value", &wanted,
                     &outcome)) {
        return outcome;
    }
    if (wanted.count > ph_tally_end_of(tally, wanted.kind)) {
        return ph_call_fail(call, PH_ERR_OUT_OF_RANGE, "beyond the end of this kind of counter");
    }
    if (wanted.count < ph_tally_start_of(wanted.kind)) {
        return ph_call_fail(call, PH_ERR_COUNTER_LOWER, NULL);
    }
    enum ph_counted counted = ph_tally_raise(tally, &wanted, &result);
    return reply(call, counted, &result);
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
    const struct ph_counters *counters =
        call->service->tally.batches != NULL ? &call->service->tally.batches->counters : &none;
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
