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
#include "worker.h"

#define SHARE_MIN 32
#define NS_PER_MS UINT64_C(1000000)
#define NS_PER_US UINT64_C(1000)

static void start_starving(struct ph_worker *worker, struct ph_ring_owner *ring) {
    if (!ring->is_starving) {
        TAILQ_INSERT_TAIL(&worker->starving, ring, starving);
        ring->is_starving = 1;
        worker->starving_count++;
    }
}

static void stop_starving(struct ph_worker *worker, struct ph_ring_owner *ring) {
    if (ring->is_starving) {
        TAILQ_REMOVE(&worker->starving, ring, starving);
        ring->is_starving = 0;
        worker->starving_count--;
    }
}

static void set_hot(struct ph_worker *worker, struct ph_ring_owner *ring, int hot) {
    if (hot && !ring->is_hot) {
        LIST_INSERT_HEAD(&worker->hot, ring, hot);
    } else if (!hot && ring->is_hot) {
        LIST_REMOVE(ring, hot);
    }
    if (hot != ring->is_hot) {
        ring->is_hot = (uint8_t)hot;
        ph_producer_set_polling(&ring->producer, hot);
    }
}

/* The last quarter of the rings is for users that hold less than a quarter: nobody can take them all. */
static int ring_to_be_had(const struct ph_worker *worker, const struct ph_user *user) {
    uint64_t max = worker->config.rings_max;
    return worker->slot->rings < max - max / 4 || (worker->slot->rings < max && user->rings < max / 4);
}

int ph_ring_attach(struct ph_worker *worker, struct ph_connection *connection, uint64_t max_age_ns) {
    struct ph_ring_owner *ring = ring_to_be_had(worker, connection->user) ? calloc(1, sizeof *ring) : NULL;
    if (ring == NULL || ph_producer_open(&ring->producer, &worker->mint.issuer, max_age_ns) != 0) {
        free(ring);
        return PH_ERR_RING_LIMIT;
    }
    ring->source = (struct ph_source){PH_SOURCE_RING, ring->producer.doorbell_fd};
    ring->connection = connection;
    if (ph_worker_watch(worker, &ring->source, EPOLLIN | EPOLLET) != 0) {
        ph_producer_close(&ring->producer);
        free(ring);
        return PH_ERR_RING_LIMIT;
    }
    connection->ring = ring;
    connection->user->rings++;
    ph_count(&worker->slot->rings, 1);
    return 0;
}

/* The owner itself is freed with its connection, after the events of this round. */
void ph_ring_detach(struct ph_worker *worker, struct ph_ring_owner *ring) {
    stop_starving(worker, ring);
    set_hot(worker, ring, 0);
    /* The client may keep its end of the doorbell, and then closing ours would not take it out of the set. */
    epoll_ctl(worker->epoll_fd, EPOLL_CTL_DEL, ring->source.fd, NULL);
    ph_producer_close(&ring->producer);
    ring->connection->user->rings--;
    ph_count(&worker->slot->rings, UINT64_MAX);
}

struct answer {
    enum ph_strict_status status;
    uint64_t value;
};

static struct answer refused(struct ph_worker *worker, int error) {
    ph_count(&worker->slot->errors, 1);
    return (struct answer){PH_STRICT_REFUSED, (uint64_t)error};
}

/* From the position of the key's owner, whoever that is (mint.h). Returns 1 with *answer set, or 0: wait. */
static int issue_strictly(struct ph_worker *worker, uint64_t coordinator, uint64_t after, struct answer *answer) {
    struct ph_mint *mint = &worker->mint;
    struct ph_strict strict;
    int64_t due_ns;
    if (coordinator >> mint->issuer.layout.coordinator_bits != 0) {
        *answer = refused(worker, PH_ERR_OUT_OF_RANGE);
        return 1;
    }
    ph_mint_read(mint); /* after the request was seen: a reading before it could be of before a stand-in's answer */
    int error = ph_strict_begin(mint, &strict, (uint32_t)coordinator, after, 0);
    if (error != 0) {
        *answer = refused(worker, error);
        return 1;
    }
    worker->few_wanted_ns = mint->monotonic_ns;
    if (ph_strict_pursue(mint, &strict, &due_ns)) {
        ph_count(&worker->slot->ids_strict, 1);
        *answer = (struct answer){PH_STRICT_OK, ph_id_of_tick(&mint->issuer.layout, strict.coordinator, strict.tick)};
        return 1;
    }
    if (coordinator != mint->issuer.coordinator) { /* by socket its owner is asked, or stood in for */
        *answer = (struct answer){PH_STRICT_ELSEWHERE, 0};
        return 1;
    }
    worker->short_of_ceiling = (uint8_t)ph_mint_lacks_ceiling(mint);
    ph_count(&worker->slot->stalls, worker->short_of_ceiling);
    return 0;
}

/* 1: nothing is left unanswered. */
static int answer_request(struct ph_worker *worker, struct ph_ring_owner *ring) {
    struct ph_strict_request request;
    if (!ph_producer_request(&ring->producer, &request)) {
        return 1;
    }
    uint64_t coordinator = request.flags & PH_STRICT_KEYLESS ? worker->first : request.coordinator;
    struct answer answer;
    if (!issue_strictly(worker, coordinator, request.after, &answer)) {
        return 0;
    }
    worker->has_woken |= ph_producer_answer(&ring->producer, &request, answer.status, answer.value);
    if (worker->config.strict_spin_us > 0) {
        worker->spin_until_ns = worker->mint.monotonic_ns + worker->config.strict_spin_us * NS_PER_US;
        set_hot(worker, ring, 1);
    }
    return 1;
}

/* Gives at most `share` of what the ring lacks. Returns 1 when it lacks nothing any more. */
static int feed(struct ph_worker *worker, struct ph_ring_owner *ring, uint64_t share) {
    int64_t lacking = ph_producer_demand(&ring->producer, worker->mint.monotonic_ns);
    if (lacking < 0) {
        ph_count(&worker->slot->violations, 1);
        ph_worker_log(worker, PH_LOG_WARNING, "ring of uid %u revoked: its cursor is out of range",
                      (unsigned)ring->connection->user->uid);
        ph_connection_close(worker, ring->connection);
        return 1;
    }
    uint64_t count = (uint64_t)lacking < share ? (uint64_t)lacking : share;
    struct ph_supply supply;
    ph_worker_supply(worker, ring->producer.max_age_ns, &supply);
    uint64_t given = ph_producer_refill(&ring->producer, &supply, count);
    ph_count(&worker->slot->ids_ring, given);
    ph_count(&worker->slot->grants, given > 0);
    return given == (uint64_t)lacking;
}

void ph_ring_rung(struct ph_worker *worker, struct ph_ring_owner *ring) {
    if (ring->connection->closed) {
        return;
    }
    int satisfied = answer_request(worker, ring);
    /* Where others starve it waits for its turn: something at once for each bell would go to those who ring most. */
    satisfied &= worker->starving_count == 0 && feed(worker, ring, UINT64_MAX);
    if (!satisfied && !ring->connection->closed) {
        start_starving(worker, ring);
        ph_mint_renew(&worker->mint);
    }
}

/* Ticks that could be had now, over all milliseconds that are still open. */
static uint64_t supply_left(struct ph_worker *worker) {
    struct ph_supply supply;
    ph_worker_supply(worker, worker->config.max_age_ms * NS_PER_MS, &supply);
    uint64_t next_tick = ph_issuer_next(&worker->mint.issuer);
    uint64_t start = next_tick > supply.floor_tick ? next_tick : supply.floor_tick;
    uint64_t end = supply.limit_tick < supply.ceiling_tick ? supply.limit_tick : supply.ceiling_tick;
    return end > start ? end - start : 0;
}

static void feed_each(struct ph_worker *worker, uint64_t share) {
    for (uint32_t left = worker->starving_count; left > 0 && !TAILQ_EMPTY(&worker->starving); left--) {
        struct ph_ring_owner *ring = TAILQ_FIRST(&worker->starving);
        stop_starving(worker, ring);
        int satisfied = answer_request(worker, ring);
        satisfied &= feed(worker, ring, share);
        if (!satisfied && !ring->connection->closed) {
            start_starving(worker, ring);
        }
    }
}

void ph_rings_feed_in_turn(struct ph_worker *worker) { feed_each(worker, ph_worker_share(worker)); }

void ph_rings_feed(struct ph_worker *worker) {
    uint64_t left = supply_left(worker);
    worker->short_of_ceiling = left == 0 && ph_syncer_durable(&worker->syncer) <=
                                                ph_tick_of_ms(&worker->mint.issuer.layout, worker->mint.now_ms);
    while (worker->starving_count > 0 && left > 0) {
        uint64_t share = left / worker->starving_count > SHARE_MIN ? left / worker->starving_count : SHARE_MIN;
        feed_each(worker, share);
        uint64_t now_left = supply_left(worker);
        if (now_left >= left) {
            return; /* what they lack cannot be had yet (full rings, unanswered requests) */
        }
        left = now_left;
    }
    ph_mint_renew(&worker->mint);
}

/* Looks at the rings that asked strictly a moment ago; once that is long enough ago, they must ring again. */
void ph_rings_poll(struct ph_worker *worker) {
    struct ph_ring_owner *ring = LIST_FIRST(&worker->hot);
    int over = worker->mint.monotonic_ns >= worker->spin_until_ns;
    while (ring != NULL) {
        struct ph_ring_owner *next = LIST_NEXT(ring, hot);
        if (over) {
            set_hot(worker, ring, 0); /* before the last look: pairs with exchange() in ph_ring.c */
        }
        if (!answer_request(worker, ring)) {
            start_starving(worker, ring);
        }
        ring = next;
    }
}
