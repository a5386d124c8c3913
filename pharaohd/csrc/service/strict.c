/*
 * Strict requests by socket: an id that is issued now, by the owner of the key or by the worker that was asked.
 *
 * Invariants
 * - A request that must wait for host time waits here, not in its stream: nothing behind it is held up, and on the stream
 *   to a sibling that would be everybody's requests.
 * - A worker passes a request on to the live owner of its key and stands in when that one does not answer in time,
 *   hangs up, or is not there. To stand in is right whatever the owner does meanwhile (mint.h), so it is never asked
 *   whether the owner is dead. An answer of the owner that comes later is dropped: its id is lost.
 */
#include <stdlib.h>

#include "ph_errors.h"
#include "service/service.h"

#define HEDGE_MS 50
#define REPLIES_PER_PASS 1024 /* when very many come due at once, others have their turn in between */
#define PASSED_ON_MS_MAX 2    /* who waits longer for host time waits here: a sibling serves few that wait at once */

struct ph_waiting_strict {
    TAILQ_ENTRY(ph_waiting_strict) all;
    LIST_ENTRY(ph_waiting_strict) own; /* of its client: one that closes does not look at others' */
    struct ph_ticket ticket;
    uint64_t stalled_since_ns; /* a ceiling or ticks are missing since; 0: it waits for host time alone */
    struct ph_strict strict;
};

static void put_id(struct ph_service *service, struct ph_writer *writer, uint32_t message_id, uint64_t tick) {
    ph_count(&service->slot->ids_strict, 1);
    ph_put_reply(writer, message_id);
    ph_put_uint(writer, ph_id_of_tick(&service->mint.issuer.layout, service->mint.issuer.coordinator, tick));
}

static int must_wait_for_time(const struct ph_service *service, const struct ph_strict *strict) {
    const struct ph_mint *mint = &service->mint;
    return strict->stands_in || ph_ms_of_tick(&mint->issuer.layout, strict->floor_tick) > mint->now_ms;
}

/* NULL: there is no memory for it. */
static struct ph_waiting_strict *put_in_line(struct ph_service *service, struct ph_client *client,
                                             const struct ph_strict *strict) {
    struct ph_waiting_strict *waiting = malloc(sizeof *waiting);
    if (waiting != NULL) {
        *waiting = (struct ph_waiting_strict){.strict = *strict};
        TAILQ_INSERT_TAIL(&service->stricts.list, waiting, all);
        LIST_INSERT_HEAD(&client->stricts, waiting, own);
        service->stricts.due_ns = 0;
    }
    return waiting;
}

/* Returns 0 when there is no memory for it. */
static int defer(struct ph_call *call, const struct ph_strict *strict) {
    struct ph_waiting_strict *waiting = put_in_line(call->service, call->client, strict);
    if (waiting != NULL) {
        waiting->ticket = ph_stream_defer(&call->client->stream, call->request->message_id, PH_DEFERRED);
    }
    return waiting != NULL;
}

/* noted_ns: 0 for the owner, else host time when the request first came to this host. */
static enum ph_outcome issue(struct ph_call *call, uint64_t after, int64_t noted_ns) {
    struct ph_service *service = call->service;
    struct ph_strict strict;
    int error = ph_strict_begin(&service->mint, &strict, service->mint.issuer.coordinator, after, noted_ns);
    if (error == 0 && must_wait_for_time(service, &strict)) {
        error = defer(call, &strict) ? 0 : PH_ERR_UNAVAILABLE;
        return error == 0 ? PH_DONE : ph_call_fail(call, error, "out of memory");
    }
    if (error != 0) {
        return ph_call_fail(call, error, NULL);
    }
    struct ph_run run = ph_share_take(service, strict.floor_tick, 1);
    if (run.count == 0) {
        return ph_call_wait(call);
    }
    put_id(service, call->writer, call->request->message_id, run.first_tick);
    return PH_DONE;
}

static int may_pass_on(const struct ph_service *service, uint32_t owner, uint64_t after) {
    const struct ph_layout *layout = &service->mint.issuer.layout;
    uint64_t after_ms = ph_ms_of_tick(layout, ph_tick_of_id(layout, after));
    return ph_is_live(service, owner) && !ph_link_is_unhealthy(&service->links, owner) &&
           after_ms <= service->mint.now_ms + PASSED_ON_MS_MAX;
}

/* For a number of the link to its owner, which others have taken: as long as for the owner's answer. */
static int has_waited(const struct ph_call *call) {
    uint64_t since_ns = call->client->stream.waiting_since_ns;
    return since_ns != 0 && call->service->mint.monotonic_ns - since_ns > HEDGE_MS * PH_NS_PER_MS;
}

enum ph_outcome ph_strict_call(struct ph_call *call, uint32_t owner, uint64_t after, int direct) {
    struct ph_service *service = call->service;
    /* After recv(): one reading serves every request that was received before it, and none that came later. */
    if (ph_streams_take_received(&service->streams)) {
        ph_mint_read(&service->mint);
    }
    if (owner == service->mint.issuer.coordinator) {
        return issue(call, after, 0);
    }
    if (!direct && may_pass_on(service, owner, after)) {
        struct ph_fallback fallback = {.after = after, .noted_ns = service->mint.host_ns};
        int error = ph_link_forward(&service->links, &call->client->stream, owner, "@get_timestamp", call->request,
                                    HEDGE_MS, &fallback);
        if (error == PH_LINK_FULL && !has_waited(call)) {
            return ph_call_wait(call);
        }
        if (error == 0) {
            return PH_DONE;
        }
    }
    return issue(call, after, service->mint.host_ns);
}

void ph_strict_stand_in(void *owner, struct ph_ticket ticket, const struct ph_fallback *fallback) {
    struct ph_service *service = owner;
    struct ph_stream *stream = ph_stream_find(&service->streams, ticket);
    struct ph_strict strict;
    uint32_t own = service->mint.issuer.coordinator;
    if (stream == NULL) {
        return; /* nobody waits any more */
    }
    int error = service->stopping ? PH_ERR_SHUTTING_DOWN
                                  : ph_strict_begin(&service->mint, &strict, own, fallback->after, fallback->noted_ns);
    struct ph_waiting_strict *waiting =
        error == 0 ? put_in_line(service, (struct ph_client *)(void *)stream, &strict) : NULL;
    if (waiting != NULL) {
        waiting->ticket = ticket;
        return;
    }
    ph_stream_settle(&service->streams, ticket);
    ph_stream_send_error(stream, ticket.message_id, error != 0 ? error : PH_ERR_UNAVAILABLE, NULL);
}

static void forget(struct ph_service *service, struct ph_waiting_strict *waiting) {
    if (service->stricts.next == waiting) { /* a pass is under way */
        service->stricts.next = TAILQ_NEXT(waiting, all);
    }
    TAILQ_REMOVE(&service->stricts.list, waiting, all);
    LIST_REMOVE(waiting, own);
    free(waiting);
}

/* Before its reply is sent, which may close the stream. */
static struct ph_stream *detach(struct ph_service *service, struct ph_waiting_strict *waiting) {
    struct ph_stream *stream = ph_stream_settle(&service->streams, waiting->ticket);
    forget(service, waiting);
    return stream;
}

/* The error to give up with, or 0: it may wait on. */
static int stalled(struct ph_service *service, struct ph_waiting_strict *waiting, int64_t due_ns) {
    if (service->stopping) {
        return PH_ERR_SHUTTING_DOWN;
    }
    if (due_ns > service->mint.host_ns + PH_NS_PER_MS || waiting->strict.tick != 0) {
        waiting->stalled_since_ns = 0;
        return 0;
    }
    if (waiting->stalled_since_ns == 0) {
        waiting->stalled_since_ns = service->mint.monotonic_ns;
    }
    uint64_t waited_ns = service->mint.monotonic_ns - waiting->stalled_since_ns;
    if (waited_ns <= service->config->settings.rpc_stall_ms_max * PH_NS_PER_MS) {
        return 0;
    }
    return ph_mint_lacks_ceiling(&service->mint) ? PH_ERR_CEILING_STALLED : PH_ERR_UNAVAILABLE;
}

/* Returns the host time before which it cannot go on; INT64_MAX: it is answered, and gone. */
static int64_t pursue(struct ph_service *service, struct ph_waiting_strict *waiting) {
    int64_t due_ns;
    uint32_t message_id = waiting->ticket.message_id;
    if (ph_strict_pursue(&service->mint, &waiting->strict, &due_ns)) {
        uint8_t bytes[32];
        struct ph_writer reply = {bytes, 0, sizeof bytes};
        put_id(service, &reply, message_id, waiting->strict.tick);
        ph_stream_send(detach(service, waiting), reply.data, reply.length);
        return INT64_MAX;
    }
    int error = stalled(service, waiting, due_ns);
    if (error != 0) {
        ph_stream_send_error(detach(service, waiting), message_id, error, NULL);
        return INT64_MAX;
    }
    return due_ns;
}

void ph_stricts_pursue(struct ph_service *service) {
    uint64_t next_tick_before = ph_issuer_next(&service->mint.issuer);
    uint32_t answered = 0;
    if (TAILQ_EMPTY(&service->stricts.list) ||
        (service->mint.host_ns < service->stricts.due_ns && !service->stopping)) {
        return;
    }
    service->few_wanted_ns = service->mint.monotonic_ns;
    service->stricts.due_ns = INT64_MAX;
    for (struct ph_waiting_strict *one = TAILQ_FIRST(&service->stricts.list); one != NULL;
         one = service->stricts.next) {
        service->stricts.next = TAILQ_NEXT(one, all);
        int64_t due_ns = pursue(service, one);
        answered += due_ns == INT64_MAX;
        service->stricts.due_ns = due_ns < service->stricts.due_ns ? due_ns : service->stricts.due_ns;
        if (answered >= REPLIES_PER_PASS && !service->stopping) {
            service->stricts.due_ns = 0;
            break;
        }
    }
    service->stricts.next = NULL;
    if (!TAILQ_EMPTY(&service->stricts.list) || ph_issuer_next(&service->mint.issuer) != next_tick_before) {
        ph_mint_renew(&service->mint);
    }
}

void ph_stricts_forget(struct ph_service *service, struct ph_client *client) {
    while (!LIST_EMPTY(&client->stricts)) {
        forget(service, LIST_FIRST(&client->stricts));
    }
}
