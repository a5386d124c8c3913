/*
 * Attached rings: who lacks ticks, who asked strictly.
 *
 * Fairness: when a millisecond begins, each ring that lacks ticks and each connection that waits has one turn, for an
 * equal share; what is then left is shared out in rounds. So a greedy client costs another its share, and a wait for
 * the next millisecond, not its service.
 */
#define _GNU_SOURCE
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "ph_errors.h"
#include "service/service.h"

#define SHARE_MIN 32
#define NS_PER_US UINT64_C(1000)

static void start_waiting(struct ph_service *service, struct ph_ring_owner *ring) {
    if (!ring->is_waiting) {
        TAILQ_INSERT_TAIL(&service->rings.waiting, ring, waiting);
        ring->is_waiting = 1;
        service->rings.waiting_count++;
    }
}

static void stop_waiting(struct ph_service *service, struct ph_ring_owner *ring) {
    if (ring->is_waiting) {
        TAILQ_REMOVE(&service->rings.waiting, ring, waiting);
        ring->is_waiting = 0;
        service->rings.waiting_count--;
    }
}

static void set_polled(struct ph_service *service, struct ph_ring_owner *ring, int polled) {
    if (polled && !ring->is_polled) {
        LIST_INSERT_HEAD(&service->rings.polled, ring, polled);
    } else if (!polled && ring->is_polled) {
        LIST_REMOVE(ring, polled);
    }
    if (polled != ring->is_polled) {
        ring->is_polled = (uint8_t)polled;
        ph_producer_set_polling(&ring->producer, polled);
    }
}

struct answer {
    enum ph_strict_status status;
    uint64_t value;
};

static struct answer refused(struct ph_service *service, int error) {
    ph_count(&service->slot->errors, 1);
    return (struct answer){PH_STRICT_REFUSED, (uint64_t)error};
}

/* From the position of the key's owner, whoever that is (mint.h). Returns 1 with *answer set, or 0: wait. */
static int issue_strictly(struct ph_service *service, uint64_t coordinator, uint64_t after, struct answer *answer) {
    struct ph_mint *mint = &service->mint;
    struct ph_strict strict;
    int64_t due_ns;
    if (coordinator >> mint->issuer.layout.coordinator_bits != 0) {
        *answer = refused(service, PH_ERR_OUT_OF_RANGE);
        return 1;
    }
    ph_mint_read(mint); /* after the request was seen: a reading before it could be of before a stand-in's answer */
    int error = ph_strict_begin(mint, &strict, (uint32_t)coordinator, after, 0);
    if (error != 0) {
        *answer = refused(service, error);
        return 1;
    }
    service->few_wanted_ns = mint->monotonic_ns;
    if (ph_strict_pursue(mint, &strict, &due_ns)) {
        ph_count(&service->slot->ids_strict, 1);
        *answer = (struct answer){PH_STRICT_OK, ph_id_of_tick(&mint->issuer.layout, strict.coordinator, strict.tick)};
        return 1;
    }
    if (coordinator != mint->issuer.coordinator) { /* by socket its owner is asked, or stood in for */
        *answer = (struct answer){PH_STRICT_ELSEWHERE, 0};
        return 1;
    }
    service->short_of_ceiling = (uint8_t)ph_mint_lacks_ceiling(mint);
    ph_count(&service->slot->stalls, service->short_of_ceiling);
    return 0;
}

/* 1: nothing is left unanswered. */
static int answer_request(struct ph_service *service, struct ph_ring_owner *ring) {
    struct ph_strict_request request;
    if (!ph_producer_request(&ring->producer, &request)) {
        return 1;
    }
    uint64_t coordinator = request.flags & PH_STRICT_KEYLESS ? service->first : request.coordinator;
    struct answer answer;
    if (!issue_strictly(service, coordinator, request.after, &answer)) {
        return 0;
    }
    service->rings.has_woken |= ph_producer_answer(&ring->producer, &request, answer.status, answer.value);
    if (service->config->settings.ring_strict_spin_us > 0) {
        service->rings.poll_until_ns =
            service->mint.monotonic_ns + service->config->settings.ring_strict_spin_us * NS_PER_US;
        set_polled(service, ring, 1);
    }
    return 1;
}

/* Gives at most `share` of what the ring lacks. Returns 1 when it lacks nothing any more. */
static int feed(struct ph_service *service, struct ph_ring_owner *ring, uint64_t share) {
    int64_t lacking = ph_producer_demand(&ring->producer, service->mint.monotonic_ns);
    if (lacking < 0) {
        ph_count(&service->slot->violations, 1);
        ph_log(service->streams.events, PH_LOG_WARNING, "ring of uid %u revoked: its cursor is out of range",
               (unsigned)ring->client->stream.user->uid);
        ph_stream_close(&ring->client->stream);
        return 1;
    }
    uint64_t count = (uint64_t)lacking < share ? (uint64_t)lacking : share;
    struct ph_supply supply;
    ph_share_supply(service, ring->producer.max_age_ns, &supply);
    uint64_t given = ph_producer_refill(&ring->producer, &supply, count);
    ph_count(&service->slot->ids_ring, given);
    ph_count(&service->slot->grants, given > 0);
    return given == (uint64_t)lacking;
}

static void rung(struct ph_source *source, uint32_t events) {
    struct ph_ring_owner *ring = (struct ph_ring_owner *)(void *)source;
    struct ph_service *service = ph_service_of(&ring->client->stream);
    (void)events;
    if (ring->client->stream.closed) {
        return;
    }
    int satisfied = answer_request(service, ring);
    /* Where others starve it waits for its turn: something at once for each bell would go to those who ring most. */
    satisfied &= service->rings.waiting_count == 0 && feed(service, ring, UINT64_MAX);
    if (!satisfied && !ring->client->stream.closed) {
        start_waiting(service, ring);
        ph_mint_renew(&service->mint);
    }
}

/* Ticks that could be had now, over all milliseconds that are still open. */
static uint64_t supply_left(struct ph_service *service) {
    struct ph_supply supply;
    ph_share_supply(service, service->config->settings.ring_max_age_ms * PH_NS_PER_MS, &supply);
    uint64_t next_tick = ph_issuer_next(&service->mint.issuer);
    uint64_t start = next_tick > supply.floor_tick ? next_tick : supply.floor_tick;
    uint64_t end = supply.limit_tick < supply.ceiling_tick ? supply.limit_tick : supply.ceiling_tick;
    return end > start ? end - start : 0;
}

static void feed_each(struct ph_service *service, uint64_t share) {
    for (uint32_t left = service->rings.waiting_count; left > 0 && !TAILQ_EMPTY(&service->rings.waiting); left--) {
        struct ph_ring_owner *ring = TAILQ_FIRST(&service->rings.waiting);
        stop_waiting(service, ring);
        int satisfied = answer_request(service, ring);
        satisfied &= feed(service, ring, share);
        if (!satisfied && !ring->client->stream.closed) {
            start_waiting(service, ring);
        }
    }
}

void ph_rings_feed_in_turn(struct ph_service *service) { feed_each(service, ph_share_of_one(service)); }

void ph_rings_feed(struct ph_service *service) {
    uint64_t left = supply_left(service);
    service->short_of_ceiling = left == 0 && ph_syncer_durable(service->mint.syncer) <=
                                                 ph_tick_of_ms(&service->mint.issuer.layout, service->mint.now_ms);
    while (service->rings.waiting_count > 0 && left > 0) {
        uint64_t share =
            left / service->rings.waiting_count > SHARE_MIN ? left / service->rings.waiting_count : SHARE_MIN;
        feed_each(service, share);
        uint64_t now_left = supply_left(service);
        if (now_left >= left) {
            return; /* what they lack cannot be had yet (full rings, unanswered requests) */
        }
        left = now_left;
    }
    ph_mint_renew(&service->mint);
}

/* Looks at the rings that asked strictly a moment ago; once that is long enough ago, they must ring again. */
void ph_rings_poll(struct ph_service *service) {
    struct ph_ring_owner *ring = LIST_FIRST(&service->rings.polled);
    int over = service->mint.monotonic_ns >= service->rings.poll_until_ns;
    while (ring != NULL) {
        struct ph_ring_owner *next = LIST_NEXT(ring, polled);
        if (over) {
            set_polled(service, ring, 0); /* before the last look: pairs with exchange() in ph_ring.c */
        }
        if (!answer_request(service, ring)) {
            start_waiting(service, ring);
        }
        ring = next;
    }
}

/* --- attaching and detaching */

/* The last quarter of the rings is for users that hold less than a quarter: nobody can take them all. */
static int ring_to_be_had(const struct ph_service *service, const struct ph_user *user) {
    uint64_t max = service->config->settings.ring_rings_max;
    return service->slot->rings < max - max / 4 || (service->slot->rings < max && user->rings < max / 4);
}

static int attach_ring(struct ph_service *service, struct ph_client *client, uint64_t max_age_ns) {
    struct ph_ring_owner *ring = ring_to_be_had(service, client->stream.user) ? calloc(1, sizeof *ring) : NULL;
    if (ring == NULL || ph_producer_open(&ring->producer, &service->mint.issuer, max_age_ns) != 0) {
        free(ring);
        return PH_ERR_RING_LIMIT;
    }
    ring->source = (struct ph_source){ring->producer.doorbell_fd, rung};
    ring->client = client;
    if (ph_reactor_add(service->streams.reactor, &ring->source, EPOLLIN | EPOLLET) != 0) {
        ph_producer_close(&ring->producer);
        free(ring);
        return PH_ERR_RING_LIMIT;
    }
    client->ring = ring;
    ph_user_count_ring(client->stream.user, 1);
    ph_count(&service->slot->rings, 1);
    return 0;
}

/* The owner itself is freed with its connection, after the events of this round. */
void ph_ring_detach(struct ph_service *service, struct ph_ring_owner *ring) {
    stop_waiting(service, ring);
    set_polled(service, ring, 0);
    /* The client may keep its end of the doorbell, and then closing ours would not take it out of the set. */
    ph_reactor_remove(service->streams.reactor, &ring->source);
    ph_producer_close(&ring->producer);
    ph_user_count_ring(ring->client->stream.user, -1);
    ph_count(&service->slot->rings, UINT64_MAX);
}

/* The reply that carries the descriptors leaves by itself, after those before it. */
static int send_attached(struct ph_call *call, struct ph_producer *producer) {
    uint8_t bytes[256];
    struct ph_writer reply = {bytes, 0, sizeof bytes};
    ph_put_reply(&reply, call->request->message_id);
    ph_put_map(&reply, 4);
    ph_put_pair(&reply, "version", PH_RING_VERSION);
    ph_put_pair(&reply, "coordinator", call->service->mint.issuer.coordinator);
    ph_put_pair(&reply, "max_age_ms", producer->max_age_ns / PH_NS_PER_MS);
    ph_mint_read(&call->service->mint);
    ph_put_pair(&reply, "now_ns", call->service->mint.monotonic_ns);
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
    return sendmsg(call->client->stream.source.fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT) == (ssize_t)reply.length;
}

enum ph_outcome ph_attach(struct ph_call *call) {
    struct ph_client *client = call->client;
    struct ph_service *service = call->service;
    uint64_t max_age_ms = service->config->settings.ring_max_age_ms;
    ph_read_key(&call->request->params);
    if (call->request->param_count > 1 && !ph_read_nil(&call->request->params)) {
        max_age_ms = ph_read_uint(&call->request->params);
    }
    if (call->request->param_count < 1 || call->request->param_count > 2 || call->request->params.failed) {
        return ph_call_bad_params(call, "attach takes the client's name and a maximum age in milliseconds or nil");
    }
    if (max_age_ms < 1 || max_age_ms > PH_MAX_AGE_MS_MAX) {
        return ph_call_fail(call, PH_ERR_OUT_OF_RANGE, "a maximum age is 1 to " PH_TEXT(PH_MAX_AGE_MS_MAX) " ms");
    }
    if (client->ring != NULL) {
        return ph_call_bad_params(call, "this connection has a ring already");
    }
    ph_stream_send(&client->stream, call->writer->data, call->writer->length);
    call->writer->length = 0;
    if (client->stream.closed || client->stream.output_length > 0) {
        return ph_call_fail(call, PH_ERR_UNAVAILABLE, "earlier replies have not been read");
    }
    if (attach_ring(service, client, max_age_ms * PH_NS_PER_MS) != 0) {
        return ph_call_fail(call, PH_ERR_RING_LIMIT, NULL);
    }
    struct ph_producer *producer = &client->ring->producer;
    if (!send_attached(call, producer)) {
        ph_stream_close(&client->stream);
        return PH_DONE;
    }
    close(producer->grants_fd);
    close(producer->client_fd);
    producer->grants_fd = producer->client_fd = -1;
    return PH_DONE;
}
