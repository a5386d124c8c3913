/* What each request does. The table at the end is the wire's vocabulary: docs/protocol.md. */
#define _GNU_SOURCE
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "crc.h"
#include "ph_errors.h"
#include "worker.h"

#define NS_PER_MS UINT64_C(1000000)
#define MAX_AGE_MS_MAX 10000

struct call {
    struct ph_worker *worker;
    struct ph_connection *connection;
    struct ph_request *request;
    struct ph_writer *writer;
};

static enum ph_outcome fail(struct call *call, int code, const char *detail) {
    ph_count(&call->worker->slot->errors, 1);
    ph_put_error(call->writer, call->request->message_id, code, detail);
    return PH_DONE;
}

static enum ph_outcome bad_params(struct call *call, const char *expected) {
    return fail(call, PH_ERR_BAD_REQUEST, expected);
}

/* Nothing to be had at the moment: wait for time or a ceiling, up to a limit. */
static enum ph_outcome wait_or_fail(struct call *call) {
    uint64_t since_ns = call->connection->waiting_since_ns;
    int exhausted = ph_worker_time_exhausted(call->worker);
    uint64_t waited_ns = since_ns != 0 ? call->worker->monotonic_ns - since_ns : 0;
    if (!exhausted && waited_ns <= call->worker->config.stall_ms_max * NS_PER_MS) {
        return PH_WAIT;
    }
    call->connection->run_count = call->connection->run_ids = 0; /* the next request must not find them */
    if (exhausted) {
        return fail(call, PH_ERR_TIME_EXHAUSTED, NULL);
    }
    return fail(call, call->worker->short_of_ceiling ? PH_ERR_CEILING_STALLED : PH_ERR_UNAVAILABLE, NULL);
}

static uint64_t id_of(const struct ph_worker *worker, uint64_t tick) {
    return ph_id_of_tick(&worker->issuer.layout, worker->issuer.coordinator, tick);
}

static enum ph_outcome next_id(struct call *call) {
    if (call->request->param_count != 0) {
        return bad_params(call, "next_id takes no parameters");
    }
    struct ph_run run = ph_worker_take(call->worker, 0, 1);
    if (run.count == 0) {
        return wait_or_fail(call);
    }
    ph_count(&call->worker->slot->ids_socket, 1);
    ph_put_reply(call->writer, call->request->message_id);
    ph_put_uint(call->writer, id_of(call->worker, run.first_tick));
    return PH_DONE;
}

/* Collects runs on the connection until there are `wanted` ids; what it has is kept while it waits. */
static int collect_runs(struct call *call, uint64_t wanted) {
    struct ph_connection *connection = call->connection;
    while (connection->run_ids < wanted && connection->run_count < PH_RUNS_MAX) {
        struct ph_run run = ph_worker_take(call->worker, 0, wanted - connection->run_ids);
        if (run.count == 0) {
            return 0;
        }
        if (connection->waiting_since_ns != 0) {
            connection->waiting_since_ns =
                call->worker->monotonic_ns; /* it moves: the deadline is for standing still */
        }
        connection->runs[connection->run_count++] = run;
        connection->run_ids += (uint32_t)run.count;
    }
    return connection->run_ids >= wanted;
}

static enum ph_outcome next_ids(struct call *call) {
    struct ph_connection *connection = call->connection;
    uint64_t wanted = ph_read_uint(&call->request->params);
    if (call->request->param_count != 1 || call->request->params.failed) {
        return bad_params(call, "next_ids takes one number");
    }
    if (wanted < 1 || wanted > PH_IDS_MAX) {
        return fail(call, PH_ERR_OUT_OF_RANGE, "next_ids takes 1 to 8192");
    }
    if (!collect_runs(call, wanted)) {
        return wait_or_fail(call);
    }
    ph_count(&call->worker->slot->ids_socket, wanted);
    ph_put_reply(call->writer, call->request->message_id);
    ph_put_array(call->writer, connection->run_count);
    for (uint32_t i = 0; i < connection->run_count; i++) {
        ph_put_array(call->writer, 2);
        ph_put_uint(call->writer, id_of(call->worker, connection->runs[i].first_tick));
        ph_put_uint(call->writer, connection->runs[i].count);
    }
    connection->run_count = connection->run_ids = 0;
    return PH_DONE;
}

enum ph_outcome ph_strict_issue(struct ph_worker *worker, uint64_t after, uint64_t *id, int *error) {
    uint64_t floor_tick = 0;
    *error = after != 0 ? ph_worker_accept_after(worker, after, &floor_tick) : 0;
    if (*error == 0 && ph_worker_time_exhausted(worker)) {
        *error = PH_ERR_TIME_EXHAUSTED;
    }
    if (*error != 0) {
        ph_count(&worker->slot->errors, 1);
        return PH_DONE;
    }
    struct ph_run run = ph_worker_take(worker, floor_tick, 1);
    if (run.count == 0) {
        return PH_WAIT;
    }
    ph_count(&worker->slot->ids_strict, 1);
    *id = id_of(worker, run.first_tick);
    return PH_DONE;
}

static int live(const struct ph_worker *worker, uint32_t coordinator) {
    const struct ph_stats_slot *slots = (const struct ph_stats_slot *)(const void *)(worker->stats + 1);
    uint16_t slot = worker->slot_of[coordinator];
    return slot != 0 && ph_load_relaxed(&slots[slot - 1].state) == PH_WORKER_LIVE;
}

/* The key's coordinator, or the next live one of this host. -1: this host does not own the key's; -2: none is live. */
static int coordinator_of_key(const struct ph_worker *worker, struct ph_bytes key) {
    uint32_t modulus = worker->config.identity.modulus;
    uint32_t home = ph_crc32(key.data, key.length) % modulus;
    if (worker->slot_of[home] == 0) {
        return -1;
    }
    for (uint32_t i = 0; i < modulus; i++) {
        uint32_t candidate = (home + i) % modulus;
        if (candidate == worker->issuer.coordinator || live(worker, candidate)) {
            return (int)candidate;
        }
    }
    return -2;
}

struct timestamp_params {
    struct ph_bytes key;
    int has_key;
    uint64_t after;
};

static int read_timestamp_params(struct ph_request *request, struct timestamp_params *params) {
    struct ph_reader *reader = &request->params;
    *params = (struct timestamp_params){.after = 0};
    if (request->param_count > 2) {
        return 0;
    }
    if (request->param_count > 0 && !ph_read_nil(reader)) {
        params->key = ph_read_key(reader);
        params->has_key = 1;
    }
    if (request->param_count > 1 && !ph_read_nil(reader)) {
        params->after = ph_read_uint(reader);
    }
    return !reader->failed;
}

static enum ph_outcome issue_timestamp(struct call *call, uint64_t after) {
    uint64_t id;
    int error;
    if (ph_strict_issue(call->worker, after, &id, &error) == PH_WAIT) {
        return wait_or_fail(call);
    }
    if (error != 0) {
        return fail(call, error, NULL);
    }
    ph_put_reply(call->writer, call->request->message_id);
    ph_put_uint(call->writer, id);
    return PH_DONE;
}

/* `direct`: a sibling has sent it here, so it goes no further. */
static enum ph_outcome timestamp(struct call *call, int direct) {
    struct ph_worker *worker = call->worker;
    struct ph_reader raw = call->request->params;
    struct timestamp_params params;
    if (!read_timestamp_params(call->request, &params)) {
        return bad_params(call, "get_timestamp takes key (text, bytes or nil) and after (an id or nil)");
    }
    if (params.has_key && params.key.length > PH_KEY_BYTES_MAX) {
        return fail(call, PH_ERR_KEY_TOO_LONG, "4096 bytes at most");
    }
    uint64_t first_live = ph_load_relaxed(&worker->stats->first_live);
    int target = params.has_key ? coordinator_of_key(worker, params.key) : (int)(uint32_t)first_live;
    if (params.has_key && target == -1) {
        return fail(call, PH_ERR_WRONG_COORDINATOR, NULL);
    }
    if (target == (int)worker->issuer.coordinator || (direct && params.has_key)) {
        return issue_timestamp(call, params.after);
    }
    if (target < 0 || direct) {
        return fail(call, PH_ERR_UNAVAILABLE, NULL);
    }
    int error = ph_link_forward(worker, call->connection, (uint32_t)target, call->request->message_id, "@get_timestamp",
                                &raw, call->request->param_count);
    if (error == PH_LINK_FULL) {
        return wait_or_fail(call);
    }
    return error != 0 ? fail(call, error, NULL) : PH_DONE;
}

static enum ph_outcome get_timestamp(struct call *call) { return timestamp(call, 0); }

static enum ph_outcome forwarded_timestamp(struct call *call) { return timestamp(call, 1); }

static enum ph_outcome ping(struct call *call) {
    ph_put_reply(call->writer, call->request->message_id);
    ph_put_text(call->writer, "pong");
    return PH_DONE;
}

static void put_pair(struct ph_writer *writer, const char *name, uint64_t value) {
    ph_put_text(writer, name);
    ph_put_uint(writer, value);
}

static void put_coordinators(struct ph_writer *writer, const struct ph_worker *worker) {
    uint32_t count = 0;
    for (uint32_t i = 0; i < PH_COORDINATOR_MAX; i++) {
        count += worker->slot_of[i] != 0;
    }
    ph_put_text(writer, "coordinators");
    ph_put_array(writer, count);
    for (uint32_t i = 0; i < PH_COORDINATOR_MAX; i++) {
        if (worker->slot_of[i] != 0) {
            ph_put_uint(writer, i);
        }
    }
}

static enum ph_outcome hello(struct call *call) {
    const struct ph_worker *worker = call->worker;
    const struct ph_layout *layout = &worker->issuer.layout;
    struct ph_writer *writer = call->writer;
    char layout_text[16];
    ph_read_text(&call->request->params);
    uint64_t protocol = ph_read_uint(&call->request->params);
    if (call->request->param_count != 2 || call->request->params.failed) {
        return bad_params(call, "hello takes the client's name and a protocol number");
    }
    if (protocol != PH_PROTOCOL) {
        return fail(call, PH_ERR_UNSUPPORTED_PROTOCOL, NULL);
    }
    snprintf(layout_text, sizeof layout_text, "%u-%u-%u", layout->ms_bits & 63U, layout->coordinator_bits & 63U,
             layout->sequence_bits & 63U);
    ph_put_reply(writer, call->request->message_id);
    ph_put_map(writer, 9);
    put_pair(writer, "protocol", PH_PROTOCOL);
    ph_put_text(writer, "server");
    ph_put_text(writer, worker->config.version);
    ph_put_text(writer, "layout");
    ph_put_text(writer, layout_text);
    put_pair(writer, "epoch_ms", layout->epoch_ms);
    put_pair(writer, "coordinator", worker->issuer.coordinator);
    put_pair(writer, "modulus", worker->config.identity.modulus);
    put_coordinators(writer, worker);
    ph_put_text(writer, "endpoints");
    ph_put_text(writer, worker->config.endpoints);
    ph_put_text(writer, "limits");
    ph_put_map(writer, 4);
    put_pair(writer, "frame_bytes", PH_FRAME_BYTES_MAX);
    put_pair(writer, "in_flight", PH_IN_FLIGHT_MAX);
    put_pair(writer, "ids_per_request", PH_IDS_MAX);
    put_pair(writer, "key_bytes", PH_KEY_BYTES_MAX);
    return PH_DONE;
}

static enum ph_outcome stats(struct call *call) {
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
        {"next_tick", call->worker->issuer.next_tick},
        {"virtual_ms", call->worker->now_ms},
        {"clock_ahead_ms", (uint64_t)(call->worker->clock.ahead_ns / 1000000)},
        {"clock_jump_ms", (uint64_t)(call->worker->clock.jump_ns / 1000000)},
        {"clock_steps_back", call->worker->clock.steps_back},
    };
    uint32_t count = sizeof rows / sizeof rows[0];
    ph_put_reply(call->writer, call->request->message_id);
    ph_put_map(call->writer, count);
    for (uint32_t i = 0; i < count; i++) {
        put_pair(call->writer, rows[i].name, rows[i].value);
    }
    return PH_DONE;
}

/* Only the owner of the daemon and root. */
static enum ph_outcome clock_accept(struct call *call) {
    uid_t uid = call->connection->user->uid;
    if (uid != 0 && uid != geteuid()) {
        return fail(call, PH_ERR_PERMISSION_DENIED, NULL);
    }
    int64_t jump_ns = call->worker->clock.jump_ns;
    ph_clock_accept(&call->worker->clock);
    ph_worker_refresh_time(call->worker);
    ph_worker_renew_ceiling(call->worker); /* so that an idle worker's successor knows of it too */
    ph_worker_log(call->worker, PH_LOG_WARNING, "clock accepted by uid %u: virtual time moved on by %lld ms",
                  (unsigned)uid, (long long)(jump_ns / 1000000));
    ph_put_reply(call->writer, call->request->message_id);
    ph_put_uint(call->writer, (uint64_t)(jump_ns / 1000000));
    return PH_DONE;
}

/* The reply that carries the descriptors leaves by itself, after those before it. */
static int send_attached(struct call *call, struct ph_producer *producer) {
    uint8_t bytes[256];
    struct ph_writer reply = {bytes, 0, sizeof bytes};
    ph_put_reply(&reply, call->request->message_id);
    ph_put_map(&reply, 4);
    put_pair(&reply, "version", 1);
    put_pair(&reply, "coordinator", call->worker->issuer.coordinator);
    put_pair(&reply, "max_age_ms", producer->max_age_ns / NS_PER_MS);
    ph_worker_refresh_time(call->worker);
    put_pair(&reply, "now_ns", call->worker->monotonic_ns);
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

static enum ph_outcome attach(struct call *call) {
    struct ph_connection *connection = call->connection;
    struct ph_worker *worker = call->worker;
    uint64_t max_age_ms = worker->config.max_age_ms;
    ph_read_text(&call->request->params);
    if (call->request->param_count > 1 && !ph_read_nil(&call->request->params)) {
        max_age_ms = ph_read_uint(&call->request->params);
    }
    if (call->request->param_count < 1 || call->request->param_count > 2 || call->request->params.failed) {
        return bad_params(call, "attach takes the client's name and a maximum age in milliseconds or nil");
    }
    if (max_age_ms < 1 || max_age_ms > MAX_AGE_MS_MAX) {
        return fail(call, PH_ERR_OUT_OF_RANGE, "a maximum age is 1 to 10000 ms");
    }
    if (connection->ring != NULL) {
        return bad_params(call, "this connection has a ring already");
    }
    ph_connection_send(worker, connection, call->writer->data, call->writer->length);
    call->writer->length = 0;
    if (connection->closed || connection->output_length > 0) {
        return fail(call, PH_ERR_UNAVAILABLE, "earlier replies have not been read");
    }
    if (ph_ring_attach(worker, connection, max_age_ms * NS_PER_MS) != 0) {
        return fail(call, PH_ERR_RING_LIMIT, NULL);
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

static const struct {
    const char *name;
    enum ph_outcome (*run)(struct call *call);
} methods[] = {
    {"next_id", next_id},
    {"next_ids", next_ids},
    {"get_timestamp", get_timestamp},
    {"@get_timestamp", forwarded_timestamp},
    {"ping", ping},
    {"hello", hello},
    {"stats", stats},
    {"attach", attach},
    {"clock_accept", clock_accept},
};

enum ph_outcome ph_method_call(struct ph_worker *worker, struct ph_connection *connection, struct ph_request *request,
                               struct ph_writer *writer) {
    struct call call = {worker, connection, request, writer};
    ph_count(&worker->slot->requests, connection->waiting_since_ns == 0);
    if (worker->stopping) {
        return fail(&call, PH_ERR_SHUTTING_DOWN, NULL);
    }
    for (size_t i = 0; i < sizeof methods / sizeof methods[0]; i++) {
        size_t length = strlen(methods[i].name);
        if (request->method.length == length && memcmp(request->method.data, methods[i].name, length) == 0) {
            return methods[i].run(&call);
        }
    }
    return fail(&call, PH_ERR_UNKNOWN_METHOD, NULL);
}
