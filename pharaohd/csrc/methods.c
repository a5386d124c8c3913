/* What each request does. The table at the end is the wire's vocabulary: docs/protocol.md. */
#define _GNU_SOURCE
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "methods.h"
#include "ph_errors.h"

#define NS_PER_MS UINT64_C(1000000)
#define MAX_AGE_MS_MAX 10000

enum ph_outcome ph_call_fail(struct ph_call *call, int code, const char *detail) {
    ph_count(&call->worker->slot->errors, 1);
    ph_put_error(call->writer, call->request->message_id, code, detail);
    return PH_DONE;
}

enum ph_outcome ph_call_bad_params(struct ph_call *call, const char *expected) {
    return ph_call_fail(call, PH_ERR_BAD_REQUEST, expected);
}

enum ph_outcome ph_call_wait(struct ph_call *call) {
    uint64_t since_ns = call->connection->waiting_since_ns;
    int exhausted = ph_mint_exhausted(&call->worker->mint);
    uint64_t waited_ns = since_ns != 0 ? call->worker->mint.monotonic_ns - since_ns : 0;
    if (!exhausted && waited_ns <= call->worker->config.stall_ms_max * NS_PER_MS) {
        return PH_WAIT;
    }
    call->connection->run_count = call->connection->run_ids = 0; /* the next request must not find them */
    if (exhausted) {
        return ph_call_fail(call, PH_ERR_TIME_EXHAUSTED, NULL);
    }
    return ph_call_fail(call, call->worker->short_of_ceiling ? PH_ERR_CEILING_STALLED : PH_ERR_UNAVAILABLE, NULL);
}

enum ph_outcome ph_call_forward(struct ph_call *call, uint32_t target, const char *method, uint64_t patience_ms) {
    int error = ph_link_forward(call->worker, call->connection, target, method, call->request, patience_ms, NULL);
    if (error == PH_LINK_FULL) {
        return ph_call_wait(call);
    }
    return error != 0 ? ph_call_fail(call, error, NULL) : PH_DONE;
}

int ph_is_live(const struct ph_worker *worker, uint32_t coordinator) {
    const struct ph_stats_slot *slots = (const struct ph_stats_slot *)(const void *)(worker->stats + 1);
    uint16_t slot = worker->slot_of[coordinator];
    return slot != 0 && ph_load_relaxed(&slots[slot - 1].state) == PH_WORKER_LIVE;
}

static enum ph_outcome ping(struct ph_call *call) {
    if (call->request->param_count != 0) {
        return ph_call_bad_params(call, "ping takes no parameters");
    }
    ph_put_reply(call->writer, call->request->message_id);
    ph_put_text(call->writer, "pong");
    return PH_DONE;
}

void ph_put_pair(struct ph_writer *writer, const char *name, uint64_t value) {
    ph_put_text(writer, name);
    ph_put_uint(writer, value);
}

static int is_owned(const struct ph_worker *worker, uint32_t coordinator) { return worker->slot_of[coordinator] != 0; }

/* Those of this host for which `holds`. */
static void put_coordinators(struct ph_writer *writer, const char *name, const struct ph_worker *worker,
                             int (*holds)(const struct ph_worker *worker, uint32_t coordinator)) {
    uint8_t chosen[PH_COORDINATOR_MAX]; /* asked once: who is live may change meanwhile */
    uint32_t count = 0;
    for (uint32_t i = 0; i < PH_COORDINATOR_MAX; i++) {
        chosen[i] = holds(worker, i) != 0;
        count += chosen[i];
    }
    ph_put_text(writer, name);
    ph_put_array(writer, count);
    for (uint32_t i = 0; i < PH_COORDINATOR_MAX; i++) {
        if (chosen[i]) {
            ph_put_uint(writer, i);
        }
    }
}

static enum ph_outcome hello(struct ph_call *call) {
    const struct ph_worker *worker = call->worker;
    const struct ph_layout *layout = &worker->mint.issuer.layout;
    struct ph_writer *writer = call->writer;
    char layout_text[16];
    ph_read_key(&call->request->params);
    uint64_t protocol = ph_read_uint(&call->request->params);
    if (call->request->param_count != 2 || call->request->params.failed) {
        return ph_call_bad_params(call, "hello takes the client's name and a protocol number");
    }
    if (protocol != PH_PROTOCOL) {
        return ph_call_fail(call, PH_ERR_UNSUPPORTED_PROTOCOL, NULL);
    }
    snprintf(layout_text, sizeof layout_text, "%u-%u-%u", layout->ms_bits & 63U, layout->coordinator_bits & 63U,
             layout->sequence_bits & 63U);
    ph_put_reply(writer, call->request->message_id);
    ph_put_map(writer, 9);
    ph_put_pair(writer, "protocol", PH_PROTOCOL);
    ph_put_text(writer, "server");
    ph_put_text(writer, worker->config.version);
    ph_put_text(writer, "layout");
    ph_put_text(writer, layout_text);
    ph_put_pair(writer, "epoch_ms", layout->epoch_ms);
    ph_put_pair(writer, "coordinator", worker->mint.issuer.coordinator);
    ph_put_pair(writer, "modulus", worker->config.identity.modulus);
    put_coordinators(writer, "coordinators", worker, is_owned);
    ph_put_text(writer, "endpoints");
    ph_put_text(writer, worker->config.endpoints);
    ph_put_text(writer, "limits");
    ph_put_map(writer, 6);
    ph_put_pair(writer, "frame_bytes", PH_FRAME_BYTES_MAX);
    ph_put_pair(writer, "in_flight", PH_IN_FLIGHT_MAX);
    ph_put_pair(writer, "ids_per_request", PH_IDS_MAX);
    ph_put_pair(writer, "key_bytes", PH_KEY_BYTES_MAX);
    ph_put_pair(writer, "count_max", PH_COUNT_MAX);
    ph_put_pair(writer, "schema_bytes", PH_SCHEMA_BYTES_MAX);
    return PH_DONE;
}

static enum ph_outcome route(struct ph_call *call) {
    const struct ph_worker *worker = call->worker;
    struct ph_writer *writer = call->writer;
    struct ph_bytes key = ph_read_key(&call->request->params);
    char endpoint[256] = "";
    if (call->request->param_count != 1 || call->request->params.failed) {
        return ph_call_bad_params(call, "route takes a key");
    }
    if (key.length > PH_KEY_BYTES_MAX) {
        return ph_call_fail(call, PH_ERR_KEY_TOO_LONG, "4096 bytes at most");
    }
    uint32_t coordinator = ph_coordinator_of_key(worker, key);
    int local = is_owned(worker, coordinator);
    if (local) {
        snprintf(endpoint, sizeof endpoint, "%s/%04u.sock", worker->config.endpoints, coordinator);
    }
    ph_put_reply(writer, call->request->message_id);
    ph_put_map(writer, 4);
    ph_put_pair(writer, "coordinator", coordinator);
    ph_put_text(writer, "host");
    ph_put_text(writer, local ? worker->config.host : "");
    ph_put_text(writer, "endpoint");
    ph_put_text(writer, endpoint);
    ph_put_text(writer, "local");
    ph_put_bool(writer, local);
    return PH_DONE;
}

static enum ph_outcome cluster(struct ph_call *call) {
    const struct ph_worker *worker = call->worker;
    struct ph_writer *writer = call->writer;
    if (call->request->param_count != 0) {
        return ph_call_bad_params(call, "cluster takes no parameters");
    }
    ph_put_reply(writer, call->request->message_id);
    ph_put_map(writer, 7);
    ph_put_text(writer, "name");
    ph_put_text(writer, worker->config.cluster);
    ph_put_pair(writer, "modulus", worker->config.identity.modulus);
    ph_put_text(writer, "host");
    ph_put_text(writer, worker->config.host);
    ph_put_text(writer, "owners");
    ph_put_map(writer, 1);
    put_coordinators(writer, worker->config.host, worker, is_owned);
    put_coordinators(writer, "live", worker, ph_is_live);
    ph_put_text(writer, "peers");
    ph_put_array(writer, 0);
    ph_put_text(writer, "clock_offsets");
    ph_put_map(writer, 0);
    return PH_DONE;
}

static enum ph_outcome stats(struct ph_call *call) {
    const struct ph_stats_slot *slot = call->worker->slot;
    struct {
        const char *name;
        uint64_t value;
    } rows[] = {
        {"coordinator", slot->coordinator},
        {"pid", slot->pid},
        {"ids_ring", slot->ids_ring},
        {"ids_socket", slot->ids_socket},
        {"ids_strict", slot->ids_strict},
        {"grants", slot->grants},
        {"requests", slot->requests},
        {"requests_forwarded", slot->requests_forwarded},
        {"errors", slot->errors},
        {"violations", slot->violations},
        {"accepts", slot->accepts},
        {"connections", slot->connections},
        {"rings", slot->rings},
        {"wakeups", slot->wakeups},
        {"syncs", ph_load_relaxed(&call->worker->syncer.sync_count)},
        {"sync_ns_last", ph_load_relaxed(&call->worker->syncer.sync_ns_last)},
        {"sync_ns_max", ph_load_relaxed(&call->worker->syncer.sync_ns_max)},
        {"stalls", slot->stalls},
        {"ceiling", ph_syncer_durable(&call->worker->syncer)},
        {"next_tick", ph_issuer_next(&call->worker->mint.issuer)},
        {"virtual_ms", call->worker->mint.now_ms},
        {"clock_ahead_ms", (uint64_t)(call->worker->mint.clock.ahead_ns / 1000000)},
        {"clock_jump_ms", (uint64_t)(call->worker->mint.clock.jump_ns / 1000000)},
        {"clock_steps_back", call->worker->mint.clock.steps_back},
        {"ids_dense", slot->ids_dense},
        {"counters", slot->counters},
        {"commits", slot->commits},
        {"commit_ns_last", slot->commit_ns_last},
        {"commit_ns_max", slot->commit_ns_max},
        {"ceiling_wait_ms", ph_mint_ceiling_wait_ms(&call->worker->mint)},
    };
    uint32_t count = sizeof rows / sizeof rows[0];
    if (call->request->param_count != 0) {
        return ph_call_bad_params(call, "stats takes no parameters");
    }
    ph_put_reply(call->writer, call->request->message_id);
    ph_put_map(call->writer, count);
    for (uint32_t i = 0; i < count; i++) {
        ph_put_pair(call->writer, rows[i].name, rows[i].value);
    }
    return PH_DONE;
}

int ph_call_is_privileged(const struct ph_call *call) {
    uid_t uid = call->connection->user->uid;
    return uid == 0 || uid == geteuid();
}

static enum ph_outcome clock_accept(struct ph_call *call) {
    uid_t uid = call->connection->user->uid;
    if (!ph_call_is_privileged(call)) {
        return ph_call_fail(call, PH_ERR_PERMISSION_DENIED, NULL);
    }
    if (call->request->param_count != 0) {
        return ph_call_bad_params(call, "clock_accept takes no parameters");
    }
    ph_mint_read(&call->worker->mint);
    int64_t jump_ns = call->worker->mint.clock.jump_ns;
    ph_host_clock_accept(call->worker->mint.clock.page);
    ph_mint_read(&call->worker->mint);
    ph_mint_write_record(&call->worker->mint);
    ph_worker_log(call->worker, PH_LOG_WARNING, "clock accepted by uid %u: host time moved on by %lld ms",
                  (unsigned)uid, (long long)(jump_ns / 1000000));
    ph_put_reply(call->writer, call->request->message_id);
    ph_put_uint(call->writer, (uint64_t)(jump_ns / 1000000));
    return PH_DONE;
}

/* The reply that carries the descriptors leaves by itself, after those before it. */
static int send_attached(struct ph_call *call, struct ph_producer *producer) {
    uint8_t bytes[256];
    struct ph_writer reply = {bytes, 0, sizeof bytes};
    ph_put_reply(&reply, call->request->message_id);
    ph_put_map(&reply, 4);
    ph_put_pair(&reply, "version", PH_RING_VERSION);
    ph_put_pair(&reply, "coordinator", call->worker->mint.issuer.coordinator);
    ph_put_pair(&reply, "max_age_ms", producer->max_age_ns / NS_PER_MS);
    ph_mint_read(&call->worker->mint);
    ph_put_pair(&reply, "now_ns", call->worker->mint.monotonic_ns);
    int fds[3] = {producer->grants_fd, producer->client_fd, producer->doorbell_fd};
    union {
        struct cmsghdr header;
        uint8_t room[CMSG_SPACE(sizeof fds)];
    } control = {.room = {0}};
    struct iovec part = {reply.data, reply.length};
    struct msghdr message = {
        .msg_iov = &part, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof fds);
    memcpy(CMSG_DATA(header), fds, sizeof fds);
    return sendmsg(call->connection->source.fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT) == (ssize_t)reply.length;
}

static enum ph_outcome attach(struct ph_call *call) {
    struct ph_connection *connection = call->connection;
    struct ph_worker *worker = call->worker;
    uint64_t max_age_ms = worker->config.max_age_ms;
    ph_read_key(&call->request->params);
    if (call->request->param_count > 1 && !ph_read_nil(&call->request->params)) {
        max_age_ms = ph_read_uint(&call->request->params);
    }
    if (call->request->param_count < 1 || call->request->param_count > 2 || call->request->params.failed) {
        return ph_call_bad_params(call, "attach takes the client's name and a maximum age in milliseconds or nil");
    }
    if (max_age_ms < 1 || max_age_ms > MAX_AGE_MS_MAX) {
        return ph_call_fail(call, PH_ERR_OUT_OF_RANGE, "a maximum age is 1 to 10000 ms");
    }
    if (connection->ring != NULL) {
        return ph_call_bad_params(call, "this connection has a ring already");
    }
    ph_connection_send(worker, connection, call->writer->data, call->writer->length);
    call->writer->length = 0;
    if (connection->closed || connection->output_length > 0) {
        return ph_call_fail(call, PH_ERR_UNAVAILABLE, "earlier replies have not been read");
    }
    if (ph_ring_attach(worker, connection, max_age_ms * NS_PER_MS) != 0) {
        return ph_call_fail(call, PH_ERR_RING_LIMIT, NULL);
    }
    struct ph_producer *producer = &connection->ring->producer;
    if (!send_attached(call, producer)) {
        ph_connection_close(worker, connection);
        return PH_DONE;
    }
    close(producer->grants_fd);
    close(producer->client_fd);
    producer->grants_fd = producer->client_fd = -1;
    return PH_DONE;
}

/* "@…": what one worker passes on to another, which serves it itself. */
#define METHOD(name, run) {name, sizeof name - 1, run}
static const struct {
    const char *name;
    uint32_t length;
    ph_method *run;
} methods[] = {
    METHOD("next_id", ph_next_id),
    METHOD("next_ids", ph_next_ids),
    METHOD("get_timestamp", ph_get_timestamp),
    METHOD("@get_timestamp", ph_forwarded_timestamp),
    METHOD("begin_transaction", ph_begin_transaction),
    METHOD("create_session", ph_create_session),
    METHOD("next_event_id", ph_next_event_id),
    METHOD("assign_offset", ph_assign_offset),
    METHOD("@assign_offset", ph_forwarded_assign),
    METHOD("join_group", ph_join_group),
    METHOD("@join_group", ph_forwarded_join),
    METHOD("counter_read", ph_counter_read),
    METHOD("@counter_read", ph_forwarded_read),
    METHOD("counter_list", ph_counter_list),
    METHOD("counter_raise", ph_counter_raise),
    METHOD("@counter_raise", ph_forwarded_raise),
    METHOD("register_schema", ph_register_schema),
    METHOD("get_schema", ph_get_schema),
    METHOD("list_schemas", ph_list_schemas),
    METHOD("@next_schema", ph_next_schema),
    METHOD("ping", ping),
    METHOD("hello", hello),
    METHOD("route", route),
    METHOD("cluster", cluster),
    METHOD("stats", stats),
    METHOD("attach", attach),
    METHOD("clock_accept", clock_accept),
};

enum ph_outcome ph_method_call(struct ph_worker *worker, struct ph_connection *connection, struct ph_request *request,
                               struct ph_writer *writer) {
    struct ph_call call = {worker, connection, request, writer};
    ph_count(&worker->slot->requests, connection->waiting_since_ns == 0);
    if (worker->stopping) {
        return ph_call_fail(&call, PH_ERR_SHUTTING_DOWN, NULL);
    }
    if (request->broken != NULL) {
        return ph_call_bad_params(&call, request->broken);
    }
    for (size_t i = 0; i < sizeof methods / sizeof methods[0]; i++) {
        if (request->method.length == methods[i].length &&
            memcmp(request->method.data, methods[i].name, methods[i].length) == 0) {
            return methods[i].run(&call);
        }
    }
    return ph_call_fail(&call, PH_ERR_UNKNOWN_METHOD, NULL);
}
