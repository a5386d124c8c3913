/*
 * Strict requests by socket: an id that is issued now, by the owner of the key or by the worker that was asked.
 *
 * Invariants
 * - A request that must wait for host time waits here, not in its connection: nothing behind it is held up, and on the
 *   connection to a sibling that would be everybody's requests.
 * - A worker passes a request on to the live owner of its key and stands in when that one does not answer in time,
 *   hangs up, or is not there. To stand in is right whatever the owner does meanwhile (mint.h), so it is never asked
 *   whether the owner is dead. An answer of the owner that comes later is dropped: its id is lost.
 */
#include <stdlib.h>

#include "methods.h"
#include "ph_errors.h"

#define HEDGE_MS 50
#define REPLIES_PER_PASS 1024 /* when very many come due at once, others have their turn in between */
#define PASSED_ON_MS_MAX 2    /* who waits longer for host time waits here: a sibling serves few that wait at once */

struct ph_waiting_strict {
    TAILQ_ENTRY(ph_waiting_strict) all;
    LIST_ENTRY(ph_waiting_strict) own; /* of its connection: one that closes does not look at others' */
    struct ph_connection *connection;  /* NULL: it has been closed, and this one is freed by the next pass */
    uint32_t message_id;
    uint64_t stalled_since_ns; /* a ceiling or ticks are missing since; 0: it waits for host time alone */
    struct ph_strict strict;
};

static void put_id(struct ph_worker *worker, struct ph_writer *writer, uint32_t message_id, uint64_t tick) {
    ph_count(&worker->slot->ids_strict, 1);
    ph_put_reply(writer, message_id);
    ph_put_uint(writer, ph_id_of_tick(&worker->mint.issuer.layout, worker->mint.issuer.coordinator, tick));
}

static int must_wait_for_time(const struct ph_worker *worker, const struct ph_strict *strict) {
    const struct ph_mint *mint = &worker->mint;
    return strict->stands_in || ph_ms_of_tick(&mint->issuer.layout, strict->floor_tick) > mint->now_ms;
}

/* Returns 0 when there is no memory for it. */
static int defer(struct ph_worker *worker, struct ph_connection *connection, uint32_t message_id,
                 const struct ph_strict *strict) {
    struct ph_waiting_strict *waiting = malloc(sizeof *waiting);
    if (waiting == NULL) {
        return 0;
    }
    *waiting = (struct ph_waiting_strict){.connection = connection, .message_id = message_id, .strict = *strict};
    TAILQ_INSERT_TAIL(&worker->stricts, waiting, all);
    LIST_INSERT_HEAD(&connection->stricts, waiting, own);
    worker->strict_due_ns = 0;
    connection->forwarded++;
    return 1;
}

/* noted_ns: 0 for the owner, else host time when the request first came to this host. */
static enum ph_outcome issue(struct ph_call *call, uint64_t after, int64_t noted_ns) {
    struct ph_worker *worker = call->worker;
    struct ph_strict strict;
    int error = ph_strict_begin(&worker->mint, &strict, worker->mint.issuer.coordinator, after, noted_ns);
    if (error == 0 && must_wait_for_time(worker, &strict)) {
        error = defer(worker, call->connection, call->request->message_id, &strict) ? 0 : PH_ERR_UNAVAILABLE;
        return error == 0 ? PH_DONE : ph_call_fail(call, error, "out of memory");
    }
    if (error != 0) {
        return ph_call_fail(call, error, NULL);
    }
    struct ph_run run = ph_worker_take(worker, strict.floor_tick, 1);
    if (run.count == 0) {
        return ph_call_wait(call);
    }
    put_id(worker, call->writer, call->request->message_id, run.first_tick);
    return PH_DONE;
}

static int may_pass_on(const struct ph_worker *worker, uint32_t owner, uint64_t after) {
    const struct ph_layout *layout = &worker->mint.issuer.layout;
    uint64_t after_ms = ph_ms_of_tick(layout, ph_tick_of_id(layout, after));
    return ph_is_live(worker, owner) && !ph_link_suspect(worker, owner) &&
           after_ms <= worker->mint.now_ms + PASSED_ON_MS_MAX;
}

/* For a number of the link to its owner, which others have taken: as long as for the owner's answer. */
static int has_waited(const struct ph_call *call) {
    uint64_t since_ns = call->connection->waiting_since_ns;
    return since_ns != 0 && call->worker->mint.monotonic_ns - since_ns > HEDGE_MS * PH_NS_PER_MS;
}

enum ph_outcome ph_strict_call(struct ph_call *call, uint32_t owner, uint64_t after, int direct) {
    struct ph_worker *worker = call->worker;
    /* After recv(): one reading serves every request that was received before it, and none that came later. */
    if (worker->time_is_old) {
        worker->time_is_old = 0;
        ph_mint_read(&worker->mint);
    }
    if (owner == worker->mint.issuer.coordinator) {
        return issue(call, after, 0);
    }
    if (!direct && may_pass_on(worker, owner, after)) {
        struct ph_fallback fallback = {.after = after, .noted_ns = worker->mint.host_ns};
        int error =
            ph_link_forward(worker, call->connection, owner, "@get_timestamp", call->request, HEDGE_MS, &fallback);
        if (error == PH_LINK_FULL && !has_waited(call)) {
            return ph_call_wait(call);
        }
        if (error == 0) {
            return PH_DONE;
        }
    }
    return issue(call, after, worker->mint.host_ns);
}

void ph_strict_stand_in(struct ph_worker *worker, struct ph_connection *connection, uint32_t message_id,
                        const struct ph_fallback *fallback) {
    struct ph_strict strict;
    uint32_t own = worker->mint.issuer.coordinator;
    int error = worker->stopping ? PH_ERR_SHUTTING_DOWN
                                 : ph_strict_begin(&worker->mint, &strict, own, fallback->after, fallback->noted_ns);
    if (error == 0 && defer(worker, connection, message_id, &strict)) {
        return;
    }
    ph_connection_send_error(worker, connection, message_id, error != 0 ? error : PH_ERR_UNAVAILABLE, NULL);
}

static struct ph_connection *forget(struct ph_worker *worker, struct ph_waiting_strict *waiting) {
    struct ph_connection *connection = waiting->connection;
    if (worker->strict_next == waiting) { /* a pass is under way */
        worker->strict_next = TAILQ_NEXT(waiting, all);
    }
    TAILQ_REMOVE(&worker->stricts, waiting, all);
    LIST_REMOVE(waiting, own);
    free(waiting);
    connection->forwarded--;
    return connection;
}

/* Before its reply is sent, which may close the connection. */
static struct ph_connection *detach(struct ph_worker *worker, struct ph_waiting_strict *waiting) {
    struct ph_connection *connection = forget(worker, waiting);
    ph_connection_requeue(worker, connection);
    return connection;
}

/* The error to give up with, or 0: it may wait on. */
static int stalled(struct ph_worker *worker, struct ph_waiting_strict *waiting, int64_t due_ns) {
    if (worker->stopping) {
        return PH_ERR_SHUTTING_DOWN;
    }
    if (due_ns > worker->mint.host_ns + PH_NS_PER_MS || waiting->strict.tick != 0) {
        waiting->stalled_since_ns = 0;
        return 0;
    }
    if (waiting->stalled_since_ns == 0) {
        waiting->stalled_since_ns = worker->mint.monotonic_ns;
    }
    uint64_t waited_ns = worker->mint.monotonic_ns - waiting->stalled_since_ns;
    if (waited_ns <= worker->config.stall_ms_max * PH_NS_PER_MS) {
        return 0;
    }
    return ph_mint_lacks_ceiling(&worker->mint) ? PH_ERR_CEILING_STALLED : PH_ERR_UNAVAILABLE;
}

/* Returns the host time before which it cannot go on; INT64_MAX: it is answered, and gone. */
static int64_t pursue(struct ph_worker *worker, struct ph_waiting_strict *waiting) {
    int64_t due_ns;
    uint32_t message_id = waiting->message_id;
    if (ph_strict_pursue(&worker->mint, &waiting->strict, &due_ns)) {
        uint8_t bytes[32];
        struct ph_writer reply = {bytes, 0, sizeof bytes};
        put_id(worker, &reply, message_id, waiting->strict.tick);
        ph_connection_send(worker, detach(worker, waiting), reply.data, reply.length);
        return INT64_MAX;
    }
    int error = stalled(worker, waiting, due_ns);
    if (error != 0) {
        ph_connection_send_error(worker, detach(worker, waiting), message_id, error, NULL);
        return INT64_MAX;
    }
    return due_ns;
}

void ph_stricts_pursue(struct ph_worker *worker) {
    uint64_t next_tick_before = ph_issuer_next(&worker->mint.issuer);
    uint32_t answered = 0;
    if (TAILQ_EMPTY(&worker->stricts) || (worker->mint.host_ns < worker->strict_due_ns && !worker->stopping)) {
        return;
    }
    worker->few_wanted_ns = worker->mint.monotonic_ns;
    worker->strict_due_ns = INT64_MAX;
    for (struct ph_waiting_strict *one = TAILQ_FIRST(&worker->stricts); one != NULL; one = worker->strict_next) {
        worker->strict_next = TAILQ_NEXT(one, all);
        int64_t due_ns = pursue(worker, one);
        answered += due_ns == INT64_MAX;
        worker->strict_due_ns = due_ns < worker->strict_due_ns ? due_ns : worker->strict_due_ns;
        if (answered >= REPLIES_PER_PASS && !worker->stopping) {
            worker->strict_due_ns = 0;
            break;
        }
    }
    worker->strict_next = NULL;
    if (!TAILQ_EMPTY(&worker->stricts) || ph_issuer_next(&worker->mint.issuer) != next_tick_before) {
        ph_mint_renew(&worker->mint);
    }
}

void ph_strict_forget(struct ph_worker *worker, struct ph_connection *connection) {
    while (!LIST_EMPTY(&connection->stricts)) {
        forget(worker, LIST_FIRST(&connection->stricts));
    }
}
